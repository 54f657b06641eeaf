"""`pelton serve` as a command: what keeps it from serving is told before it listens. How it serves: tests/server."""

from __future__ import annotations

import json
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Pelton = Callable[..., Any]


def log_until(running: Any, pattern: str) -> tuple[list[str], re.Match[str]]:
    """Lines of the log up to the one that matches."""
    lines = []
    for line in running.stderr:
        lines.append(line)
        if match := re.search(pattern, line):
            return lines, match
    raise AssertionError(f"no {pattern!r} in\n{''.join(lines)}")


def test_an_empty_home_says_what_to_add(pelton: Pelton, home: Path) -> None:
    done = pelton("serve", "--home", home, "--port", "0")
    assert (done.code, done.out) == (1, "")
    assert "pelton add" in done.err


@pytest.mark.parametrize("model", ["nobody", "linear:0123456789ab", "linear:", "a b", "missing.onnx", "some/where"])
def test_a_model_that_is_not_there_is_named(pelton: Pelton, models: Path, model: str) -> None:
    done = pelton("serve", model, "--home", models, "--port", "0")
    assert (done.code, done.out) == (1, "")
    assert model.rstrip(":").split(":")[-1] in done.err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--port", "99999"], "port"),
        (["--port", "-1"], "port"),
        (["--workers", "0"], "workers"),
        (["--max-body", "0"], "max_body"),
        (["--grace", "-1"], "grace"),
        (["--log-level", "loud"], "log_level"),
        (["--tls-cert", "missing.pem"], "tls"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["--store", "mysql://host/db"], "mysql"),
    ],
)
def test_a_setting_that_cannot_be_is_named(pelton: Pelton, models: Path, flags: list[str], says: str) -> None:
    done = pelton("serve", "linear", "--home", models, "--port", "0", *flags)
    assert (done.code, done.out) == (1, "")
    assert says in done.err


@pytest.mark.parametrize("flags", [["--port", "eighty"], ["--workers", "1.5"], ["--colour", "red"]])
def test_a_flag_of_the_wrong_kind_is_a_2(pelton: Pelton, models: Path, flags: list[str]) -> None:
    done = pelton("serve", "linear", "--home", models, *flags)
    assert (done.code, done.out) == (2, "")
    assert "usage: " in done.err


def test_an_unknown_setting_of_the_environment_names_the_nearest(
    pelton: Pelton, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PELTON_PROT", "9000")
    done = pelton("serve", "linear", "--home", models)
    assert (done.code, done.out) == (1, "")
    assert "PELTON_PORT" in done.err


@pytest.mark.parametrize("content", ["port = ", "prot = 9000", "port = 'eighty'", "\xff"])
def test_a_settings_file_that_cannot_be_read_is_named(pelton: Pelton, full_home: Path, content: str) -> None:
    (full_home / "settings.toml").write_bytes(content.encode("latin-1"))
    done = pelton("serve", "linear", "--home", full_home)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("pelton: ")
    assert "settings.toml" in done.err or "port" in done.err


def test_a_port_that_is_taken_is_told(process: Any, finish: Any, models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = finish(process("serve", "linear", "--home", models, "--port", port))
    assert done.code == 1
    assert str(port) in done.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 0)])
def test_a_server_that_is_asked_to_end_ends_well(
    process: Any, finish: Any, models: Path, number: signal.Signals, code: int
) -> None:
    running = process("serve", "linear", "--home", models, "--port", "0", "--grace", "0")
    log_until(running, r"model linear:\w+ serves")
    running.send_signal(number)
    assert finish(running).code == code


def test_log_lines_may_be_json(process: Any, finish: Any, models: Path) -> None:
    running = process("serve", "linear", "--home", models, "--port", "0", "--grace", "0", "--log-format", "json")
    lines, _ = log_until(running, r"model linear:\w+ serves")
    running.send_signal(signal.SIGINT)
    done = finish(running)
    assert done.code == 0
    told = [json.loads(line) for line in [*lines, *done.err.splitlines()]]
    assert {"time", "level", "logger", "message"} <= set.intersection(*(set(one) for one in told))


def test_a_file_may_be_served_at_once(process: Any, finish: Any, home: Path, linear: Path) -> None:
    running = process("serve", linear, "--home", home, "--port", "0", "--grace", "0")
    log_until(running, r"model linear:\w+ serves")
    running.send_signal(signal.SIGINT)
    assert finish(running).code == 0
