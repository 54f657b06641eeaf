"""The command line as a whole: help, versions, wrong words, exit codes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from pelton import __version__
from pelton.cli.parser import make_parser

Pelton = Callable[..., Any]


def commands() -> list[str]:
    [action] = [action for action in make_parser()._actions if action.dest == "command"]
    return sorted(action.choices or {})


def test_the_version_is_told(pelton: Pelton) -> None:
    assert pelton("--version") == (0, f"pelton {__version__}\n", "")


def test_help_names_every_command(pelton: Pelton) -> None:
    done = pelton("--help")
    assert (done.code, done.err) == (0, "")
    for name in commands():
        assert re.search(rf"^ +{name}\b", done.out, re.MULTILINE), name


@pytest.mark.parametrize("name", commands())
def test_every_command_has_help(pelton: Pelton, name: str) -> None:
    done = pelton(name, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"usage: pelton {name}")


@pytest.mark.parametrize("arguments", [[], ["fly"], ["--fly"], [""]])
def test_a_wrong_call_is_a_2_with_the_usage(pelton: Pelton, arguments: list[str]) -> None:
    done = pelton(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("usage: pelton")


def test_the_module_is_the_command(tmp_path: Any) -> None:
    for module in ("pelton", "pelton.cli"):
        command = [sys.executable, "-m", module, "list", "--home", str(tmp_path / "home"), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_the_exit_code_reaches_the_shell(tmp_path: Any) -> None:
    command = [sys.executable, "-m", "pelton", "remove", "nobody", "--home", str(tmp_path / "home")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("pelton: ")
