"""README.md and docs/*.md, run: every shell and Python block in order, with a server where the page starts one.

What a page may say to this file, in a comment right before a block:
    <!-- file: NAME -->         the block is written to that file
    <!-- output -->             the block is what the last command printed; `...` stands for anything
    <!-- docs-test: REASON -->  the block is not run; REASON must stand in NOT_RUN below
A block that begins with `pelton serve` is a server: it runs until the next one, or the end of the page, on a free port
that takes the place of the one on the page, and must end well. Blocks share a folder, not variables.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import ssl
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pelton.packages import Manifest
from pelton.records import Record, Window, WindowKey
from pelton.records.record import TokenUsage
from pelton.records.snapshot import Lane, Padding, Snapshot, Streams, Usage, sums_of
from pelton.server.pages.metrics import render

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
MADE = ("settings.md", "cli.md", "errors.md")
RUN = ("sh", "python")
SHOWN = ("text", "toml", "json", "yaml", "ini")
NOT_RUN = {
    "demo": "tests of the demo run it",
    "needs the demo": "tests of the demo run it",
    "network": "needs an index or a hub; the importers' tests run the same against local ones",
}
BOUND = 60.0  # seconds until a server is ready, or ends; a loaded machine is slow


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str
    note: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    number, note = 0, ""
    while number < len(lines):
        line = lines[number]
        comment = re.fullmatch(r"<!-- (.*) -->", line.strip())
        if line.startswith("```"):
            begin = number
            number += 1
            while not lines[number].startswith("```"):
                number += 1
            found.append(
                Block(page.name, begin + 1, line[3:].strip(), "\n".join(lines[begin + 1 : number]) + "\n", note)
            )
            note = ""
        elif comment:
            note = comment[1]
        elif line.strip():
            note = ""
        number += 1
    return found


class Server:
    """A `pelton serve` of a page."""

    def __init__(self, block: Block, folder: Path, environment: dict[str, str]) -> None:
        self.place = block.place
        self._log = folder / "serve.log"
        written = re.search(r"--port[ =](\d+)", block.text)
        self.page_port = written[1] if written else "8080"
        command = re.sub(r"--port[ =]\d+", "--port 0", block.text)
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", command], cwd=folder, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        scheme, self.port = self._wait_for_port()
        self.base = f"{scheme}://127.0.0.1:{self.port}"
        self._wait_until_ready()

    def text(self) -> str:
        return self._log.read_text()

    def _wait_for_port(self) -> tuple[str, str]:
        end = time.monotonic() + BOUND
        while time.monotonic() < end and self._process.poll() is None:
            found = re.search(r"listening on (https?)://[^\"\s]+:(\d+)", self.text())
            if found:
                return found[1], found[2]
            time.sleep(0.02)
        raise self._failure("does not listen")

    def _wait_until_ready(self) -> None:
        insecure = ssl._create_unverified_context()
        end = time.monotonic() + BOUND
        while time.monotonic() < end and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.base}/v2/health/ready", context=insecure, timeout=BOUND):
                    return
            except (urllib.error.HTTPError, OSError):
                time.sleep(0.02)
        raise self._failure("is not ready")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(BOUND)
        except subprocess.TimeoutExpired:
            raise self._failure("does not end") from None
        assert code == 0, f"{self.place}: the server ended with {code}\n{self.text()}"

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _failure(self, what: str) -> AssertionError:
        self.kill()
        return AssertionError(f"{self.place}: the server {what}\n{self.text()}")


class Reader:
    """Somebody who does what a page says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "work"
        self.folder.mkdir()
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PELTON_", "OTEL_"))},
            "HOME": str(folder),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PELTON_HOME": str(folder / "home"),
            "PELTON_PORT": "0",
            "PELTON_GRACE": "0",
        }
        self._server: Server | None = None
        self._printed = ""

    def follow(self, block: Block) -> None:
        name, _, value = block.note.partition(": ")
        if name == "docs-test":
            return
        if name == "file":
            path = self.folder / value
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        elif name == "output":
            self._compare(block)
        elif block.language == "sh" and block.text.startswith("pelton serve"):
            self.leave()
            self._server = Server(block, self.folder, self._environment)
        elif block.language in RUN:
            self._run(block)

    def leave(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            server.stop()

    def close(self) -> None:
        if self._server is not None:
            self._server.kill()

    def _run(self, block: Block) -> None:
        text = block.text
        if self._server is not None:
            text = re.sub(rf"(127\.0\.0\.1|localhost):{self._server.page_port}\b", rf"\1:{self._server.port}", text)
        program = [sys.executable, "-c"] if block.language == "python" else ["bash", "-euo", "pipefail", "-c"]
        done = subprocess.run(
            [*program, text], cwd=self.folder, env=self._environment, capture_output=True, text=True, check=False,
            stdin=subprocess.DEVNULL, timeout=4 * BOUND,
        )  # fmt: skip
        log = self._server.text() if self._server is not None else ""
        assert done.returncode == 0, f"{block.place} ended with {done.returncode}\n{done.stdout}{done.stderr}\n{log}"
        self._printed = done.stdout

    def _compare(self, block: Block) -> None:
        pattern = ".*".join(re.escape(part) for part in block.text.strip().split("..."))
        assert re.fullmatch(pattern, self._printed.strip(), re.DOTALL), (
            f"{block.place} shows\n{block.text}\nbut the command printed\n{self._printed}"
        )


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    reader.close()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_works_as_it_stands(page, reader):
    for block in blocks_of(page):
        reader.follow(block)
    reader.leave()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_is_run_or_says_why_not(page):
    for block in blocks_of(page):
        assert block.language in RUN + SHOWN, f"{block.place}: {block.language!r} would not be run"
        name, _, reason = block.note.partition(": ")
        assert name != "docs-test" or reason in NOT_RUN, f"{block.place}: {reason!r} is no reason"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_of_the_repository_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_is_in_the_index():
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, f"docs/README.md does not name {page.name}"


@pytest.mark.parametrize("name", MADE)
def test_the_pages_that_are_made_are_as_the_code_says(name):
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert (DOCS / name).read_text(encoding="utf-8") == generate.pages()[name], "run `make docs`"


@pytest.mark.parametrize(
    "block",
    [block for block in blocks_of(DOCS / "packages.md") if block.language == "toml"],
    ids=lambda block: str(block.line),
)
def test_every_manifest_of_the_page_about_packages_is_one(block):
    """Whole, or a part that is put into a whole one."""
    least: dict[str, Any] = {
        "name": "m",
        "runtime": "onnx",
        "file": "model.onnx",
        "signature": {"inputs": [], "outputs": []},
    }
    given = tomllib.loads(block.text)
    given["signature"] = {**least["signature"], **given.get("signature", {})}
    msgspec.convert({**least, **given}, Manifest)


def test_the_metrics_that_are_emitted_are_those_that_are_documented():
    page = (DOCS / "operations.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `((?:pelton|process|gen_ai)_[a-z_]+)`", page, re.MULTILINE))
    assert documented == emitted()


def emitted() -> set[str]:
    """Names as Prometheus stores them, from a process where everything happened once."""
    window = Window()
    window.add([Record("m", "v", "native", "", 1, 1, "idle", "", 1.0, 0.1, 0.1, 0.1, 0.3, 0.1)])
    window.add([Record("m", "v", "native", "", 1, 0, "late", "refused", 1.0, 0.0, 0.0, 0.0, 0.3, 0.0)])
    took = TokenUsage(prompt=3, cached=1, completion=2, first=0.1, prefill=0.1, decode=0.1)
    window.add([Record("m", "v", "openai", "", 1, 1, "stop", "", 1.0, 0.1, 0.1, 0.1, 0.3, 0.1, usage=took)])
    streams = Streams("echo", "", 4, 100, 1, 0, 0, 0.5, 1.0, 0)
    snapshot = Snapshot(
        "1", "3", 0, Usage(1.0, 1.0, 1, 1, 1, 1), sums_of({WindowKey("m", "v", "native", ""): window}, 0.0),
        lanes=[Lane("m", "v", 0.1, 8, 0, 0, streams=streams, padding=Padding(8, 10, 0, 64))], connections=1,
    )  # fmt: skip
    names = set()
    for family in text_string_to_metric_families(render([snapshot])[0].decode()):
        names.add(family.name + {"counter": "_total"}.get(family.type, ""))
    return names


def test_the_reasons_of_refusals_that_the_code_has_are_documented():
    page = (DOCS / "operations.md").read_text(encoding="utf-8")
    source = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "src/pelton").rglob("*.py") if "testing" not in path.parts
    )
    reasons = set(re.findall(r'\breason(?: = |=)"([a-z_]+)"', source)) - {"refused"}
    assert reasons >= {"overloaded", "not_ready", "draining", "late"}
    for reason in reasons:
        assert f"`{reason}`" in page, f"operations.md does not tell of {reason!r}"


def test_the_attributes_of_spans_are_documented():
    from pelton.records.traces import NAMES

    page = (DOCS / "operations.md").read_text(encoding="utf-8")
    for name in NAMES.values():
        assert f"`{name}`" in page


def test_every_header_that_inference_reads_or_writes_is_documented():
    page = (DOCS / "protocols.md").read_text(encoding="utf-8")
    files = ("inference", "call_headers", "dispatcher")
    source = "".join((ROOT / f"src/pelton/server/{name}.py").read_text(encoding="utf-8") for name in files)
    written = set(re.findall(r"(?:\\r\\n|b\")([a-z-]+): ", source))
    read = set(re.findall(r'(?:header\(|KEY: Final = )b"([a-z-]+)"', source))
    assert {"x-request-id", "pelton-timeout-ms", "traceparent"} <= read
    for name in (written | read) - {"date", "connection"}:
        assert f"`{name}`" in page, f"protocols.md does not name {name}"


def test_a_comparison_of_output_fails_where_it_differs(tmp_path):
    reader = Reader(tmp_path)
    reader.follow(Block("page", 1, "sh", "echo one two three\n", ""))
    reader.follow(Block("page", 2, "text", "one ... three\n", "output"))
    with pytest.raises(AssertionError, match="page:3"):
        reader.follow(Block("page", 3, "text", "one two\n", "output"))


def test_a_command_that_fails_fails_its_page(tmp_path):
    with pytest.raises(AssertionError, match="page:1 ended with 1"):
        Reader(tmp_path).follow(Block("page", 1, "sh", "false\necho never\n", ""))
