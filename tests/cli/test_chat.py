"""`pelton chat`: one question, a conversation, a server of its own, refusals."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pelton import cli
from pelton.cli.chat_command import receipt_line
from pelton.cli.chat_stream import Reply
from pelton.cli.own_server import own_server

sys.path.insert(0, str(Path(__file__).parent.parent / "server" / "openai"))  # echo_model lives there

import echo_model

QUESTION = "tell me more"
SURE = ("--temperature", "0")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    echo_model.add(folder, "parrot")
    return folder


@pytest.fixture(scope="module")
def url(home: Path) -> Iterator[str]:
    with own_server(["parrot", "--home", str(home)], io.StringIO()) as address:
        yield address


def test_one_question_goes_to_standard_output_and_its_receipt_to_standard_error(
    url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["chat", "parrot", QUESTION, "--url", url, "--max-tokens", "60", *SURE]) == 0
    out, err = capfd.readouterr()
    assert QUESTION in out
    assert "tokens in" in err
    assert " out" in err
    assert "echo, parrot:" in err


def test_the_only_language_model_need_not_be_named(
    url: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(QUESTION))
    assert cli.main(["chat", "--url", url, "--max-tokens", "4", *SURE]) == 0
    assert "4 out" in capfd.readouterr().err


def test_a_server_of_its_own_is_gone_with_the_command(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = _children()
    assert cli.main(["chat", "parrot", QUESTION, "--home", str(home), "--max-tokens", "4", *SURE]) == 0
    assert "4 out" in capfd.readouterr().err
    assert _children() == before


def test_the_server_s_own_words_are_told(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", "parrot", QUESTION, "--url", url, "--temperature", "9"]) == 1
    assert "temperature" in capfd.readouterr().err


def test_without_a_server_and_a_model_it_says_what_to_name(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", "--url", "http://127.0.0.1:9"]) == 1
    assert "is `pelton serve` running there?" in capfd.readouterr().err


def test_a_model_that_does_not_load_ends_the_command_with_its_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    echo_model.add(tmp_path, "broken", engine_options={"load_error": "no weights today"})
    assert cli.main(["chat", "broken", QUESTION, "--home", str(tmp_path)]) == 1
    assert "no weights today" in capfd.readouterr().err


def test_a_key_in_the_environment_is_no_setting(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELTON_API_KEY", "secret")
    assert cli.main(["list", "--home", str(home)]) == 0


def test_a_receipt_tells_rates_and_why_an_answer_was_cut() -> None:
    receipt = {"prompt_tokens": 12, "cached_tokens": 8, "completion_tokens": 21, "queue_ms": 1.2, "prefill_ms": 30.0}
    told = receipt_line(Reply("x", "length", {**receipt, "decode_ms": 500.0, "engine": "echo", "model": "m:1"}))
    assert told == (
        "[12 tokens in (8 cached), 21 out | queue 1 ms, prefill 30 ms | decode 0.50 s (40 tokens/s) | echo, m:1 | length]"
    )


def _children() -> set[int]:
    """Processes that this one has started and that still run."""
    return {int(pid) for pid in os.listdir("/proc") if pid.isdigit() and _parent(pid) == os.getpid()}


def _parent(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0
