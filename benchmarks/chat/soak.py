"""Clients that leave at random moments, or are killed, against a real server with a real engine; what they leave behind.

    python benchmarks/chat/soak.py --model FILE.gguf --engine openvino [--cancels 500] [--kills 100]

Streams of random length, of several tenants. Some are read to their end; most are left: before the answer, in its
middle, with an ordinary end of the connection or a reset. Beside them processes that hold several streams each are
killed with SIGKILL, some of these running and some waiting. It fails where an answer is not what it should be, a stream
sticks, metrics do not come back to zero, files stay open, a call afterwards takes longer than before, or anonymous memory
grows by more than `--growth-mb` (server and engines together). It begins with a part that is not counted: engines keep
what they prepared for each shape of a step, up to a bound.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

from host import NAME, Host, serving

STUCK_S = 120.0  # a stream that is read and says nothing for so long
SETTLE_S = 10.0  # from the last stream to metrics at zero
FILL, FILLER = 1.25, 512  # times its tokens that the KV memory is filled with; tokens of a prompt that does
FRESH = 7  # calls before and after, of which the median counts
SLOWER, SLACK_S = 1.5, 0.1
FILES = 4  # more than before
TENANTS = 5
GAUGES = ("pelton_generations_running", "pelton_generations_waiting", "pelton_in_flight", "pelton_kv_cache_usage_ratio")
WORDS = [
    "what",
    "is",
    "an",
    "invoice",
    "and",
    "why",
    "would",
    "anybody",
    "send",
    "one",
    "to",
    "a",
    "person",
    "who",
    "has",
    "paid",
    "already",
]
HOLDER = """
import json, select, socket, sys
port, streams, seed = map(int, sys.argv[1:4])
socks = []
for number in range(streams):
    body = json.dumps({"model": sys.argv[4], "prompt": "Once upon a time %d %d there was" % (seed, number), "stream": True,
                       "max_tokens": 400, "ignore_eos": True}).encode()
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(b"POST /v1/completions HTTP/1.1\\r\\nhost: x\\r\\nauthorization: Bearer holder-%d\\r\\n"
                 b"content-length: %d\\r\\n\\r\\n" % (seed % 3, len(body)) + body)
    socks.append(sock)
seen, told = dict.fromkeys(socks, b""), False
while True:
    for sock in select.select(socks, [], [])[0]:
        more = sock.recv(65536)
        if not more and b"[DONE]" not in seen[sock]:
            sys.exit("the server ended a stream: %r" % seen[sock])
        seen[sock] = (seen[sock] + more)[-4096:]
        if not told and (b"data:" in seen[sock] or b" 429 " in seen[sock]):
            print("streaming", flush=True)
            told = True
"""


class Soak:
    """What was done, and what went wrong. `end`: on the monotonic clock, when it stops with what was done by then."""

    def __init__(self, host: Host, cancels: int, kills: int, seed: int, end: float) -> None:
        self.host = host
        self._end = end
        self.cancels, self.kills = cancels, kills
        self.random = random.Random(seed)
        self.left = self.killed = self.answered = self.refused = 0
        self.failures: list[str] = []
        self.moments: list[tuple[float, dict[str, float]]] = []
        self._began = time.monotonic()

    # ---- clients that leave

    async def caller(self) -> None:
        while (self.left < self.cancels or self.killed < self.kills) and time.monotonic() < self._end:
            try:
                async with asyncio.timeout(STUCK_S):
                    await self.one()
            except TimeoutError:
                self.failures.append(f"a stream stuck for {STUCK_S:g} s")
            except (OSError, ValueError, asyncio.IncompleteReadError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
            self.watch()

    async def one(self) -> None:
        draw = self.random
        chat, stream = draw.random() < 0.5, draw.random() < 0.8
        text = " ".join(draw.choices(WORDS, k=draw.choice((4, 10, 30, 120))))
        body = {
            "model": NAME,
            "max_tokens": draw.choice((4, 16, 48)),
            "stream": stream,
            "temperature": draw.choice((0, 1)),
        }
        body |= {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
        events = None if draw.random() < 0.25 else draw.choice((0, 0, 1, 2, 5, 10))  # None: to its end
        reader, writer = await asyncio.open_connection("127.0.0.1", self.host.port)
        try:
            await self._ask(reader, writer, "/v1/chat/completions" if chat else "/v1/completions", body, events)
        finally:
            if draw.random() < 0.5:  # a reset instead of an ordinary end
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.close()

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: dict[str, object],
        events: int | None,
    ) -> None:  # fmt: skip
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer key-{self.random.randrange(TENANTS)}\r\n"
        data = f"{head}content-length: {len(data)}\r\n\r\n".encode() + data
        if events == 0:  # before the answer, perhaps before the request is whole
            writer.write(data[: self.random.choice((len(data) // 2, len(data), len(data), len(data)))])
            await asyncio.sleep(self.random.choice((0.0, 0.001, 0.01, 0.1, 0.3)))
            self.left += 1
            return
        writer.write(data)
        status = (await reader.readuntil(b"\r\n\r\n"))[9:12]
        if status in (b"429", b"503"):
            self.refused += 1
            await asyncio.sleep(0.2)
        elif status != b"200":
            raise ValueError(f"status {status!r}: {(await reader.read(500))!r}")
        elif not body["stream"]:
            if b'"finish_reason"' not in await reader.readuntil(b'"usage"'):
                raise ValueError("an answer without an end")
            self.answered += 1
        else:
            await self._read(reader, events)

    async def _read(self, reader: asyncio.StreamReader, events: int | None) -> None:
        seen = 0
        while events is None or seen < events:
            line = await reader.readline()
            if b"[DONE]" in line:
                self.answered += 1
                return
            if b'"error"' in line or not line:
                raise ValueError(f"a stream ended with {line!r}")
            seen += line.startswith(b"data:")
        self.left += 1

    # ---- clients that are killed

    async def killer(self) -> None:
        while self.killed < self.kills and time.monotonic() < self._end:
            seed = self.random.randrange(1 << 30)
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", "-c", HOLDER, str(self.host.port), "3", str(seed), NAME,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            assert child.stdout is not None
            assert child.stderr is not None
            try:
                async with asyncio.timeout(STUCK_S):
                    said = await child.stdout.readline()
                if said != b"streaming\n":
                    self.failures.append(f"a client that holds streams: {(await child.stderr.read())[-300:]!r}")
                await asyncio.sleep(self.random.choice((0.0, 0.01, 0.1, 0.3)))
            except TimeoutError:
                self.failures.append(f"streams that began stuck for {STUCK_S:g} s")
            finally:
                with contextlib.suppress(ProcessLookupError):
                    child.send_signal(signal.SIGKILL)
                await child.communicate()
            self.killed += 1
            self.watch()

    # ---- what is watched

    def watch(self) -> None:
        """Memory, after each tenth of what is to be done."""
        done = (min(self.left, self.cancels) + min(self.killed, self.kills)) / (self.cancels + self.kills)
        if done * 10 >= max(1, len(self.moments)):
            self.look()

    def look(self) -> None:
        """Notes what memory all processes have now."""
        sizes: dict[str, float] = {}
        for one in self.host.memory():
            sizes[f"{one.role} {one.pid}"] = round(one.anonymous, 1)
        self.moments.append((time.monotonic() - self._began, sizes))
        told = ", ".join(f"{name} {size:.1f}" for name, size in sizes.items())
        print(
            f"{self.moments[-1][0]:6.1f} s: {self.left} left, {self.killed} killed, {self.answered} answered, "
            f"{self.refused} refused, {len(self.failures)} failures; anonymous memory, MB: {told}",
            flush=True,
        )

    def settled(self) -> dict[str, float]:
        """The gauges, once they are zero or `SETTLE_S` have passed."""
        end = time.monotonic() + SETTLE_S
        while True:
            metrics = self.host.metrics()
            left = {name: metrics.get(name, 0.0) for name in GAUGES if metrics.get(name, 0.0)}
            if not left or time.monotonic() > end:
                return left
            time.sleep(0.1)

    async def run(self, callers: int, killers: int) -> None:
        self.look()
        await asyncio.gather(*(self.caller() for _ in range(callers)), *(self.killer() for _ in range(killers)))


def fill(host: Host, tokens: int) -> None:
    """Prompts that are all different, until every part of the KV memory was written once: it is kept for later prompts,
    so memory grows until then."""
    for number in range(int(FILL * tokens) // FILLER + 1):
        body = {
            "model": NAME,
            "prompt": [1000 + (7 * number + 31 * place) % 40000 for place in range(FILLER)],
            "max_tokens": 1,
        }
        status, answer = host.ask("POST", "/v1/completions", body, timeout=STUCK_S)
        if status != 200:
            sys.exit(f"a call that fills the memory was answered {status}: {answer[:300]!r}")


def fresh(host: Host) -> float:
    """Seconds of a short call that nobody disturbs: the median of several."""
    times = []
    for number in range(FRESH):
        body = {
            "model": NAME,
            "prompt": f"{number} Once upon a time",
            "max_tokens": 16,
            "ignore_eos": True,
            "temperature": 0,
        }
        begin = time.perf_counter()
        status, answer = host.ask("POST", "/v1/completions", body)
        if status != 200:
            sys.exit(f"a fresh call was answered {status}: {answer[:300]!r}")
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--option", action="append", default=[], help="of `pelton add`, as NAME=VALUE")
    parser.add_argument("--kv-tokens", type=int, default=4096, help="size of the KV memory, which is filled first")
    parser.add_argument("--cancels", type=int, default=500)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--callers", type=int, default=12)
    parser.add_argument("--killers", type=int, default=2)
    parser.add_argument("--growth-mb", type=float, default=16.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3600.0, help="then it stops, with what was done by then")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # the server ends as well
    options = [f"engine={args.engine}", f"kv_tokens={args.kv_tokens}", *args.option]
    with serving(args.model, *options, arguments=("--workers", str(args.workers))) as host:
        fill(host, args.kv_tokens)
        end = time.monotonic() + args.seconds
        warm = Soak(host, max(1, args.cancels // 10), args.kills // 3, args.seed + 1, end)
        asyncio.run(warm.run(args.callers, args.killers))
        warm.settled()
        before, files = fresh(host), host.files()
        soak = Soak(host, args.cancels, args.kills, args.seed, end)
        asyncio.run(soak.run(args.callers, args.killers))
        left = soak.settled()
        soak.look()
        after, files = fresh(host), host.files() - files
        metrics = host.metrics()
        log = host.log.read_text()
    problems = [*warm.failures, *soak.failures][:20]
    if len(soak.moments) < 3:
        problems.append("nothing can be said of memory: not even a tenth was done")
    if left:
        problems.append(f"not back at zero after {SETTLE_S:g} s: {left}")
    if files > FILES:
        problems.append(f"{files} files more are open than before")
    if after > SLOWER * before + SLACK_S:
        problems.append(f"a fresh call takes {after * 1e3:.0f} ms, before it took {before * 1e3:.0f} ms")
    if metrics.get("pelton_engine_restarts_total", 0.0):
        problems.append("an engine was started again")
    if "Traceback" in log:
        problems.append("the server's log has a traceback: " + log[log.index("Traceback") :][:2000])
    first, last = (sum(soak.moments[place][1].values()) for place in (0, -1))
    if last - first > args.growth_mb:
        problems.append(f"memory grew by {last - first:.1f} MB, allowed are {args.growth_mb:g}")
    print(
        f"{args.engine}: {soak.left} streams left, {soak.killed} clients killed, {soak.answered} answered to the end, "
        f"{soak.refused} refused in {soak.moments[-1][0]:.0f} s; memory {first:.1f} -> {last:.1f} MB (anonymous, all processes); "
        f"a fresh call {before * 1e3:.0f} -> {after * 1e3:.0f} ms; open files {files:+d}"
    )
    for problem in problems:
        print("problem:", problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
