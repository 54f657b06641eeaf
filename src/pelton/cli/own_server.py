"""A server of a command's own: on a free port of this machine, gone with the command."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pelton.cli.http_client import Client
from pelton.errors import ModelFailed, NotReady

START_SECONDS = 600.0  # a large model is converted the first time
POLL_SECONDS = 0.05
LISTENING = re.compile(r"listening on (https?://\S+)")


@contextlib.contextmanager
def own_server(arguments: list[str], say: IO[str]) -> Iterator[str]:
    """Serves `arguments` (of `pelton serve`) and gives the address once every model answers. `say`: for progress.

    Raises ModelFailed with the server's last words where it ends or a model cannot be loaded."""
    command = [
        sys.executable,
        "-m",
        "pelton",
        "serve",
        *arguments,
        "--port",
        "0",
        "--grace",
        "0",
        "--log-level",
        "info",
    ]
    with tempfile.TemporaryDirectory(prefix="pelton-") as folder:
        log = Path(folder) / "server.log"
        with log.open("wb") as stream:
            # a session of its own: Ctrl-C stops an answer here, not the server
            server = subprocess.Popen(  # noqa: S603 - our own command
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                env=_environment(),
            )
        try:
            yield _ready(server, log, say)
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _environment() -> dict[str, str]:
    """Settings of the environment are for servers that others reach."""
    foreign = ("PELTON_PORT", "PELTON_HOST", "PELTON_WORKERS", "PELTON_LOG_FORMAT", "PELTON_TLS_CERT", "PELTON_TLS_KEY")
    return {name: value for name, value in os.environ.items() if name not in foreign}


def _ready(server: subprocess.Popen[bytes], log: Path, say: IO[str]) -> str:
    began = time.monotonic()
    told = False
    while time.monotonic() < began + START_SECONDS:
        words = log.read_text(errors="replace")
        address = LISTENING.search(words)
        if server.poll() is not None or "cannot be served" in words:
            raise ModelFailed("the server did not start:\n" + "\n".join(words.splitlines()[-5:]))
        if address is not None and _answers(address[1]):
            return address[1]
        if not told and time.monotonic() > began + 2.0:
            print("loading the model ...", file=say, flush=True)
            told = True
        time.sleep(POLL_SECONDS)
    raise ModelFailed(f"the model was not ready within {START_SECONDS:.0f} s")


def _answers(url: str) -> bool:
    try:
        Client(url).get("/v2/health/ready")
    except NotReady:
        return False
    return True
