"""A real `pelton serve` with one language model, and what can be seen of it from outside: metrics, memory, open files."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

PELTON = [sys.executable, "-m", "pelton"]
START_S = 240.0  # a first start may convert weights and measure engines
END_S = 15.0
NAME = "chat"
MEGABYTE = 1024 * 1024


class Memory(NamedTuple):
    """Of one process, in megabytes. `anonymous`: what it has of its own, without files that are mapped; what of these
    counts as its share changes with every other process that maps them."""

    role: str
    pid: int
    resident: float
    anonymous: float


class Host:
    """The server. It is asked over new connections."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: Any = None, timeout: float = 60.0) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def ready(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.ask("GET", "/v2/health/ready", timeout=5.0)[0] == 200
        return False

    def metrics(self) -> dict[str, float]:
        """Each series added up over its labels."""
        sums: dict[str, float] = {}
        for line in self.ask("GET", "/metrics")[1].decode().splitlines():
            found = re.fullmatch(r"([a-z_]+)(?:\{.*\})? (\S+)", line)
            if found is not None:
                sums[found[1]] = sums.get(found[1], 0.0) + float(found[2])
        return sums

    def memory(self) -> list[Memory]:
        """Of the server and of every process below it."""
        found = []
        for pid in [self.process.pid, *below(self.process.pid)]:
            with contextlib.suppress(OSError):
                found.append(memory_of(pid))
        return found

    def files(self) -> int:
        """Open files of all its processes."""
        count = 0
        for pid in [self.process.pid, *below(self.process.pid)]:
            with contextlib.suppress(OSError):
                count += len(os.listdir(f"/proc/{pid}/fd"))
        return count


def below(pid: int) -> list[int]:
    """The processes that `pid` has started, and theirs."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found += [int(child) for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
    return found + [grandchild for child in list(found) for grandchild in below(child)]


def memory_of(pid: int) -> Memory:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    role = next((word.rpartition(".")[2] for word in words if word.startswith("pelton.")), "server")
    role = {"child": "engine"}.get(role, role)
    sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE))
    return Memory(role, pid, int(sizes["Rss"]) / 1024, int(sizes["Pss_Anon"]) / 1024)


@contextlib.contextmanager
def serving(model: Path, *options: str, arguments: tuple[str, ...] = ()) -> Iterator[Host]:
    """`options`: NAME=VALUE of `pelton add`; `arguments`: of `pelton serve`. Killed with all its processes at the end."""
    with tempfile.TemporaryDirectory(prefix="pelton-bench-") as home:
        command = [*PELTON, "add", str(model), "--name", NAME, "--home", home]
        for option in options:
            command += ["--option", option]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        log = Path(home, "server.log")
        with log.open("wb") as file:
            command = [*PELTON, "serve", NAME, "--home", home, "--port", "0", "--grace", "0", *arguments]
            process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            yield started(process, log)
        finally:
            process.terminate()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def started(process: subprocess.Popen[bytes], log: Path) -> Host:
    """Waits until it is ready. Exits where it does not become so."""
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        port = re.search(r"listening on http://[^:]+:(\d+)", log.read_text())
        if port is not None:
            host = Host(process, int(port[1]), log)
            if host.ready():
                return host
        time.sleep(0.05)
    sys.exit(f"the server did not start: {log.read_text()[-2000:]}")
