"""`pelton bench` against a real server: what it sends for each kind of model, what it writes, and what it refuses."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Pelton = Callable[..., Any]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("model", ["people", "words", "grey"], ids=["a table", "a text", "a picture"])
def test_a_quick_bench_finds_a_rate_without_being_told_what_to_send(
    pelton: Pelton, server: Any, tmp_path: Path, model: str
) -> None:
    done = pelton("bench", model, "--url", server.url, "--quick", "--callers", "2", "--p99-ms", "40")
    assert done.code in (0, 1), done.err  # 1: a machine too busy to hold any rate
    assert f"{model}   target: p99 ≤ 40 ms" in done.out
    assert "Overload, " in done.out
    assert "failed or timed out" not in done.out
    assert "closed: 2 callers" in done.err
    assert ("holds with 99 % confidence" in done.out) == (done.code == 0)
    page = (tmp_path / f"bench-{model}.html").read_text()
    assert page.startswith("<!doctype html>")
    assert f"report: bench-{model}.html" in done.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nobody"], "nobody"),
        (["people:0123"], "0123"),
        (["a b"], "a b"),
        (["people:"], "names nothing"),
        (["people", "--callers", "many"], "--callers"),
        (["people", "--callers", "0"], "--callers"),
        (["people", "--callers", ""], "--callers"),
        (["people", "--callers", "1,100000"], "callers"),
        (["people", "--p99-ms", "0"], "p99_ms"),
        (["people", "--p99-ms", "-1"], "p99_ms"),
        (["people", "--p99-ms", "nan"], "p99_ms"),
        (["people", "--body", "missing.jsonl"], "missing.jsonl"),
        (["people", "--body", "empty.jsonl"], "bodies"),
        (["people", "--body", "wrong.jsonl"], "400 to body 1"),
        (["people", "--report", "missing/report.html"], "--report"),
        (["people", "--report", "."], "--report"),
    ],
)
def test_what_cannot_be_measured_is_told_before_any_load(
    pelton: Pelton, server: Any, tmp_path: Path, arguments: list[str], says: str
) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "wrong.jsonl").write_text('{"age": 1, "member": true, "country": "AT"}\n{"age": "old"}\n')
    begun = time.monotonic()
    done = pelton("bench", *arguments, "--url", server.url, "--quick")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("pelton: ")
    assert says in done.err
    assert list(tmp_path.glob("*.html")) == []
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1:1", "pelton serve"),
        ("https://127.0.0.1:1", "plain HTTP"),
        ("nonsense://host", "is not the address of a server"),
    ],
)
def test_a_server_that_cannot_be_asked_is_told(pelton: Pelton, url: str, says: str) -> None:
    done = pelton("bench", "people", "--url", url)
    assert (done.code, done.out) == (1, "")
    assert says in done.err


@pytest.mark.timeout(300)
def test_an_interrupt_ends_a_bench_with_130_and_leaves_no_report(
    process: Any, finish: Any, server: Any, tmp_path: Path
) -> None:
    body = tmp_path / "rows.jsonl"
    body.write_text(json.dumps({"age": 5, "member": False, "country": "AT"}) + "\n")
    running = process("bench", "people", "--url", server.url, "--body", body)
    assert "warming up" in running.stderr.readline()
    running.send_signal(signal.SIGINT)
    done = finish(running)
    assert (done.code, done.out) == (130, "")
    assert list(tmp_path.glob("*.html")) == []
