"""Mixed calls against a real server, every answer checked, and its memory watched.

usage: soak.py [--calls 1000000] [--callers 32] [--workers 1]
Plain JSON, OIP v2 JSON and binary tensors for model T, pictures for model V (1 %), wrong input (1 %) that must get a
4xx with a reason, and callers that hang up before their answer (0.1 %). A failure is anything else than the right
answer, or for wrong input than a 4xx. Memory: of all processes of the server, after the first tenth and at the end.
"""

import asyncio
import json
import random
import sys
import time

import results
from live import Live, home_with, on_core, payloads, peer_model, reference

DISTINCT = {"T": 64, "V": 8}  # the answers that ref.json has
TOLERANCE = {"T": 1e-4, "V": 5e-5}
MIX = (("plain", "T", 0.55), ("v2", "T", 0.25), ("v2bin", "T", 0.179), ("v2bin", "V", 0.005), ("plain", "V", 0.005))
WRONG_SHARE, HANG_UP_SHARE = 0.01, 0.001
PATHS = {"plain": "/predict/{}", "v2": "/v2/models/{}/infer", "v2bin": "/v2/models/{}/infer"}
GROWTH_MB = 5
ANSWER_S = 60
WRONG = (
    ("/predict/T", b"{"), ("/predict/T", b'{"data": [1, 2, 3]}'), ("/predict/T", b'{"data": ["a"]}'),
    ("/predict/T", b'{"nope": 1}'), ("/predict/T", b"[" * 20_000), ("/predict/T", b'{"data": "\\ud800"}'),
    ("/predict/none", b"{}"), ("/v2/models/T/infer", b'{"inputs": []}'),
    ("/v2/models/T/infer", b'{"inputs": [{"name": "x", "shape": [1, 30], "datatype": "FP32", "data": [1e999]}]}'),
    ("/v2/models/T/infer", b'{"inputs": [{"name": "x", "shape": [-1, 30], "datatype": "FP64", "data": [1]}]}'),
    ("/predict/V", b'{"data": "AAAA"}'),
)  # fmt: skip


def request(path, body, headers):
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {path} HTTP/1.1\r\nHost: bench\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Answers:
    """Whether an answer is the right one. Bytes that were right before are not read again."""

    def __init__(self):
        self.expected = {model: reference(model) for model in "TV"}
        self.known = {}

    def right(self, kind, model, i, content):
        known = self.known.setdefault((kind, model, i), set())
        if content in known:
            return True
        row, expected = payloads.decode_answer(content), self.expected[model][i]
        good = len(row) == len(expected) and all(
            abs(x - y) < TOLERANCE[model] for x, y in zip(row, expected, strict=True)
        )
        if good and len(known) < 64:
            known.add(content)
        return good


class Soak:
    def __init__(self, server, args):
        self.server, self.total, self.left = server, args.calls, args.calls
        self.done, self.answers, self.random = 0, Answers(), random.Random(args.seed)
        self.counts = dict.fromkeys(("right", "wrong input refused", "hung up", "failures"), 0)
        self.failures, self.first_mb, self.moments = [], None, []
        self.requests = {
            (kind, model, i): request(PATHS[kind].format(model), *payloads.encode(model, kind, i))
            for kind, model, _ in MIX
            for i in range(DISTINCT[model])
        }
        self.wrong = [request(path, body, payloads.JSON) for path, body in WRONG]

    def draw(self):
        """What the next call is: (what, key or number, bytes)."""
        chance = self.random.random()
        if chance < HANG_UP_SHARE:
            return "hang up", None, self.random.choice(list(self.requests.values()))
        if chance < HANG_UP_SHARE + WRONG_SHARE:
            number = self.random.randrange(len(WRONG))
            return "wrong", number, self.wrong[number]
        kind, model, _ = self.random.choices(MIX, [share for _, _, share in MIX])[0]
        key = (kind, model, self.random.randrange(DISTINCT[model]))
        return "call", key, self.requests[key]

    async def caller(self):
        streams = None
        while self.left > 0:
            self.left -= 1
            what, key, content = self.draw()
            try:
                streams = streams or await asyncio.open_connection(self.server.host, self.server.port)
                streams = await asyncio.wait_for(self.one(streams, what, key, content), ANSWER_S)
            except (OSError, TimeoutError, ValueError, KeyError, asyncio.IncompleteReadError) as error:
                self.fail(f"{what} {key}: {error!r}")
                streams = None
            self.count()
        if streams:
            streams[1].close()

    async def one(self, streams, what, key, content):
        """One call; the connection that can be used again, or None."""
        reader, writer = streams
        if what == "hang up":
            writer.write(content[: len(content) // 2] if self.random.random() < 0.5 else content)
            await writer.drain()
            writer.transport.abort()
            self.counts["hung up"] += 1
            return None
        writer.write(content)
        head = await reader.readuntil(b"\r\n\r\n")
        status, low = int(head[9:12]), head.lower()
        at = low.index(b"content-length:") + 15
        body = await reader.readexactly(int(low[at : low.index(b"\r", at)]))
        if what == "wrong":
            if 400 <= status < 500 and json.loads(body)["error"]:
                self.counts["wrong input refused"] += 1
            else:
                self.fail(f"wrong input {key}: {status} {body[:200]!r}")
        elif status == 200 and self.answers.right(*key, body):
            self.counts["right"] += 1
        else:
            self.fail(f"{key}: {status} {body[:200]!r}")
        if b"connection: close" in low:
            writer.close()
            return None
        return streams

    def fail(self, text):
        self.counts["failures"] += 1
        if len(self.failures) < 20:
            self.failures.append(text)

    def count(self):
        self.done += 1
        if self.done % max(1, self.total // 10) == 0:
            self.moments.append(round(self.server.rss_mb(), 1))
            print(f"{self.done:,} calls, {self.moments[-1]:.1f} MB, failures {self.counts['failures']}", flush=True)


async def run(server, args):
    soak = Soak(server, args)
    await asyncio.gather(*(soak.caller() for _ in range(args.callers)))
    return soak


def main():
    parser = results.arguments(__doc__)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    on_core(1)
    models = [(peer_model(name), name, "--p99-ms", "5000") for name in "TV"]
    options = ["--slots", "1", "--workers", str(args.workers)]
    with home_with(*models) as home, Live(home, *options) as server:
        begun = time.perf_counter()
        soak = asyncio.run(run(server, args))
        seconds = time.perf_counter() - begun
        peak = server.peak_mb()
    first, last = soak.moments[0], soak.moments[-1]
    row = {"calls": soak.done, **soak.counts, "calls/s": soak.done / seconds, "MB after a tenth": first,
           "MB at the end": last, "growth MB": round(last - first, 1), "peak MB": peak}  # fmt: skip
    results.report(args.out, "soak", "Soak", [row], failures=soak.failures, memory_mb=soak.moments)
    for text in soak.failures:
        print("  failure:", text)
    return 0 if not soak.counts["failures"] and last - first < GROWTH_MB else 1


if __name__ == "__main__":
    sys.exit(main())
