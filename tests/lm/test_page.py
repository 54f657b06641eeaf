"""docs/lm.md: its first example runs as it stands, and its options are the engine's."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from lm_tiny import write_folder

from pelton.runtimes.lm.engine import EngineOptions

pytestmark = pytest.mark.lm

PAGE = (Path(__file__).parents[2] / "docs" / "lm.md").read_text()


def test_the_first_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models").mkdir()
    write_folder(tmp_path / "models" / "Qwen3-8B", "qwen3")
    monkeypatch.chdir(tmp_path)
    first = re.search(r"(?:^    .*\n|^\n(?=    ))+", PAGE, re.MULTILINE)
    assert first is not None
    code = "\n".join(line[4:] for line in first[0].splitlines())
    exec(compile(code, "docs/lm.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "a (" in printed
    assert "b (" in printed


def test_every_option_is_on_the_page() -> None:
    table = PAGE.split("## Options")[1].split("## ")[0]
    named = set(re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines() if "|" in line)))
    assert named == {option.name for option in dataclasses.fields(EngineOptions)}
