"""One tenant with 64 open streams, another with one, against a real server with a real engine.

    python benchmarks/chat/fairness.py --model FILE.gguf --engine openvino [--streams 64] [--seconds 100]

The second tenant asks one short completion after the other; what it sees is measured three times, in turn:

    alone        nobody else asks
    fair share   one other tenant has one busy stream: two tenants, so half of the machine is each one's
    flood        one other tenant keeps `--streams` streams open

It fails where, in the flood, the median time to the first token or per token is more than `BOUND` times that at its fair
share. Prompts are random token ids, so no prefix cache helps anybody.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from host import NAME, Host, serving
from load import HIGH, LOW

BOUND = 2.0
PROMPT, NEW, PAUSE_S = 64, 32, 0.2  # of the tenant that is measured
OTHERS_PROMPT, OTHERS_NEW = 64, 100
SHARES = {"alone": 0.2, "fair share": 0.2, "flood": 0.6}  # of the time, a third of which is for getting steady
AGAIN_S = 0.5  # after a refusal
LEAST = 5  # calls of a phase


class Seen(NamedTuple):
    """One completion: seconds to the first token, and per token after it."""

    first: float
    each: float


class Tenant:
    """Streams that are asked one after the other until they are told to end."""

    def __init__(self, host: Host, key: str, prompt: int, new: int, pause: float) -> None:
        self.seen: list[Seen] = []
        self.tokens = self.refused = 0
        self._port, self._key, self._pause = host.port, key, pause
        self._prompt, self._new = prompt, new
        self._random = random.Random(key)

    async def go_on(self) -> None:
        while True:
            await self._one()
            await asyncio.sleep(self._pause)

    async def _one(self) -> None:
        body = {
            "model": NAME,
            "prompt": [self._random.randrange(LOW, HIGH) for _ in range(self._prompt)],
            "max_tokens": self._new,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        data = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {self._key}\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            began = time.perf_counter()
            writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
            status = (await reader.readuntil(b"\r\n\r\n"))[9:12]
            if status in (b"429", b"503"):
                self.refused += 1
                await asyncio.sleep(AGAIN_S)
            elif status != b"200":
                raise SystemExit(f"answered {status!r}: {(await reader.read(1000))!r}")
            else:
                await self._read(reader, began)
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, began: float) -> None:
        times: list[float] = []
        async for line in reader:
            if b"[DONE]" in line:
                break
            if b'"error"' in line:
                raise SystemExit(f"a stream ended with {line!r}")
            if line.startswith(b"data:") and b'"text"' in line:
                times.append(time.perf_counter())
                self.tokens += 1
        if len(times) > 1:  # several tokens may come in one event: counted are those that were asked for
            self.seen.append(Seen(times[0] - began, (times[-1] - times[0]) / (self._new - 1)))


async def phase(host: Host, streams: int, seconds: float) -> tuple[Tenant, float]:
    """What one stream sees beside `streams` of another tenant, and what those get, in tokens per second."""
    other = Tenant(host, f"other {streams}", OTHERS_PROMPT, OTHERS_NEW, 0.0)
    lone = Tenant(host, f"lone beside {streams}", PROMPT, NEW, PAUSE_S)
    tasks = [asyncio.create_task(other.go_on()) for _ in range(streams)]
    tasks.append(asyncio.create_task(lone.go_on()))
    try:
        await watched(tasks, seconds / 3)
        lone.seen.clear()
        other.tokens = 0
        await watched(tasks, 2 * seconds / 3)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return lone, other.tokens / (2 * seconds / 3)


async def watched(tasks: Sequence[asyncio.Task[None]], seconds: float) -> None:
    """Waits. Raises what one of the tasks raised."""
    done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()


def settled(host: Host) -> None:
    """Returns when nothing runs any more."""
    end = time.monotonic() + 30.0
    while host.metrics().get("pelton_generations_running", 0.0):
        if time.monotonic() > end:
            sys.exit("streams whose callers have left still run after 30 s")
        time.sleep(0.1)


def row(name: str, lone: Tenant, others: float) -> str:
    first, each = (sorted(values) for values in zip(*lone.seen, strict=True))
    nine = int(0.9 * len(first))
    return (
        f"| {name} | {len(first)} | {median(first) * 1e3:.0f} | {first[nine] * 1e3:.0f} | {median(each) * 1e3:.0f} | "
        f"{each[nine] * 1e3:.0f} | {others:.0f} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--option", action="append", default=[], help="of `pelton add`, as NAME=VALUE")
    parser.add_argument("--streams", type=int, default=64, help="of the other tenant")
    parser.add_argument("--seconds", type=float, default=100.0, help="of all three phases")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # the server ends as well
    crowd = dict(zip(SHARES, (0, 1, args.streams), strict=True))
    found: dict[str, Tenant] = {}
    print(f"{args.engine}; {args.streams} streams in the flood; milliseconds")
    print("| | calls | TTFT | 90 % | per token | 90 % | tokens/s of the others |")
    print("|---|---|---|---|---|---|---|")
    with serving(args.model, f"engine={args.engine}", *args.option) as host:
        for name, share in SHARES.items():
            found[name], others = asyncio.run(phase(host, crowd[name], share * args.seconds))
            if len(found[name].seen) < LEAST:
                sys.exit(f"{name}: {len(found[name].seen)} calls were answered, {found[name].refused} refused: too few")
            print(row(name, found[name], others), flush=True)
            settled(host)
    fair, flood = (
        [median(values) for values in zip(*found[name].seen, strict=True)] for name in ("fair share", "flood")
    )
    ratios = [have / want for have, want in zip(flood, fair, strict=True)]
    print(f"flood / fair share: TTFT {ratios[0]:.2f}, per token {ratios[1]:.2f}; allowed {BOUND:g}")
    print(f"refused: {', '.join(f'{name} {tenant.refused}' for name, tenant in found.items())}")
    return 1 if max(ratios) > BOUND else 0


if __name__ == "__main__":
    sys.exit(main())
