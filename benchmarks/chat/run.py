"""Tokens per second and time to the first token: Pelton beside the bare engines and llama.cpp's own server.

    python benchmarks/chat/run.py --model SmolLM2-135M-Instruct.Q4_1.gguf [--rounds 5] [--streams 1,8,16]

All are loaded once and asked in turn; a round asks each at every number of streams with the same prompts (random token
ids, another seed each round). Ratios are medians over rounds of Pelton against the better bare engine of that round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
Result = dict[str, float]


class Bare:
    """An engine driven directly."""

    def __init__(self, kind: str, file: Path, threads: int) -> None:
        command = [sys.executable, str(HERE / "bare.py"), kind, str(file), str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.told = self._read()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:  # engines print lines of their own
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise SystemExit("a bare engine ended")

    def ask(self, streams: int, length: int, new: int, seed: int) -> Result:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{streams} {length} {new} {seed}\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class Http:
    """A server with the OpenAI API."""

    def __init__(self, url: str, model: str, key: str = "") -> None:
        self._target = (url, model)
        self._key = key

    def ask(self, streams: int, length: int, new: int, seed: int) -> Result:
        command = [sys.executable, str(HERE / "load.py"), *self._target, *map(str, (streams, length, new, seed))]
        done = subprocess.run([*command, *([self._key] if self._key else [])], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        found: Result = json.loads(done.stdout)
        return found


@contextlib.contextmanager
def pelton(home: Path, model: Path, engine: str, extra: list[str]) -> Iterator[Http]:
    """Pelton with everything switched on; answers once the model is loaded."""
    name = f"chat-{engine.replace('.', '')}"
    python = [sys.executable, "-m", "pelton"]
    subprocess.run(
        [*python, "add", str(model), "--name", name, "--option", f"engine={engine}", "--home", str(home)], check=True
    )
    log = (home / f"{name}.log").open("wb")
    server = subprocess.Popen(
        [*python, "serve", name, "--home", str(home), "--port", "0", *extra], stderr=log, stdout=log
    )
    try:
        yield Http(wait(home / f"{name}.log", server), name)
    finally:
        server.terminate()
        server.wait()


def wait(log: Path, server: subprocess.Popen[bytes]) -> str:
    """The address of a server once it is ready."""
    while server.poll() is None:
        words = log.read_text()
        if "listening on " in words:
            url = words.split("listening on ")[1].split()[0]
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"{url}/v2/health/ready")
                return url
        time.sleep(0.05)
    raise SystemExit(log.read_text()[-2000:])


def measure(peers: dict[str, Any], arguments: argparse.Namespace) -> dict[int, dict[str, list[Result]]]:
    """Every peer at every number of streams, round after round; who begins changes."""
    found: dict[int, dict[str, list[Result]]] = {n: {name: [] for name in peers} for n in arguments.streams}
    names = list(peers)
    for number in range(arguments.rounds):
        for streams in arguments.streams:
            for name in names[number % len(names) :] + names[: number % len(names)]:
                one = peers[name].ask(streams, arguments.prompt, arguments.new, 1000 * number + streams)
                if one["tokens"] != streams * arguments.new:
                    raise SystemExit(f"{name} gave {one['tokens']} tokens instead of {streams * arguments.new}")
                found[streams][name].append(one)
                print(
                    f"{streams:3} {name:24} {one['tokens'] / one['seconds']:7.1f} tokens/s", file=sys.stderr, flush=True
                )
    return found


def table(found: dict[int, dict[str, list[Result]]], bare: list[str]) -> Iterator[str]:
    yield "| streams | engine | tokens/s | of the better bare engine | TTFT ms | more than its |"
    yield "|---|---|---|---|---|---|"
    for streams, peers in found.items():
        rates = {name: [one["tokens"] / one["seconds"] for one in results] for name, results in peers.items()}
        best = max(bare, key=lambda name: statistics.median(rates[name]))
        for name, results in peers.items():
            ratio = statistics.median(mine / theirs for mine, theirs in zip(rates[name], rates[best], strict=True))
            ttft = statistics.median(one["ttft"] for one in results) * 1e3
            more = statistics.median(
                (mine["ttft"] - theirs["ttft"]) * 1e3 for mine, theirs in zip(results, peers[best], strict=True)
            )
            yield f"| {streams} | {name} | {statistics.median(rates[name]):.1f} | {ratio:.2f} | {ttft:.0f} | {more:+.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8, 16])
    parser.add_argument("--prompt", type=int, default=66)
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the bare engines")
    parser.add_argument("--engine", default="auto", help="Pelton's; several with commas")
    parser.add_argument("--without-server", action="store_true", help="leave llama.cpp's own server out")
    arguments, extra = parser.parse_known_args()
    with contextlib.ExitStack() as ends, tempfile.TemporaryDirectory() as home:
        peers: dict[str, Any] = {}
        for kind in ("openvino", "llama.cpp"):
            peers[f"bare {kind}"] = Bare(kind, arguments.model, arguments.threads)
            ends.callback(peers[f"bare {kind}"].close)
        bare = list(peers)
        if not arguments.without_server:
            server = Bare("llama-server", arguments.model, arguments.threads)
            ends.callback(server.close)
            peers["llama.cpp's server"] = Http(server.told["url"], arguments.model.name, server.told["key"])
        for engine in arguments.engine.split(","):
            peers[f"Pelton, {engine}"] = ends.enter_context(pelton(Path(home), arguments.model, engine, extra))
        for line in table(measure(peers, arguments), bare):
            print(line)


if __name__ == "__main__":
    main()
