"""Open loop at twice the capacity: what is answered inside the target, and how fast the rest is refused.

usage: overload.py [--secs 10] [--factor 2] [--cases T,T32,V]
The server is pinned to core 0, the generator (that of `pelton bench`) to core 1. Capacity is what the best of three
closed loops gets answered. T: one row a call; T32: 32 rows a call (the generator can overload that one for sure);
V: one picture a call. Binary bodies. Look at "offered": where the generator cannot reach the wanted rate, the row
shows less than the overload asked for, and its lateness is part of the latencies.
"""

import json
import resource
import sys

import results
from live import Live, home_with, on_core, payloads, peer_model

from pelton.bench.load import REFUSALS, Pool, arrivals, closed_loop, connection_limit, open_loop
from pelton.bench.load import run as run_loop
from pelton.bench.plan import Target, encode_requests
from pelton.bench.results import summarize

# model, rows of a call, different bodies, target in ms
CASES = {"T": ("T", 1, 1024, 50), "T32": ("T", 32, 64, 100), "V": ("V", 1, 32, 200)}
CALLERS = (32, 64, 128)
SETTLE_S = 0.5
TIMEOUT_S = 10
CONNECTIONS = 8192  # a call that waits in the generator for a connection does not overload the server
CONFIDENCE = 0.99
SOON_S = 0.02  # refusals are to come within


class CheckedPool(Pool):
    """Also looks at the head of each refusal."""

    refusals = with_retry = with_reason = 0

    def settle(self, intended, sent, now, status, head):
        if status in REFUSALS:
            self.refusals += 1
            low = head.lower()
            self.with_retry += b"\r\nretry-after:" in low
            self.with_reason += b"\r\npelton-reason:" in low
        super().settle(intended, sent, now, status, head)


def target_of(server, model, rows, distinct):
    bodies, headers = [], {}
    for first in range(distinct):
        body, headers = payloads.binary(model, [payloads.item(model, first * rows + i) for i in range(rows)])
        bodies.append(body)
    return Target(
        host=server.host, port=server.port, path="/v2/models/m/infer", bodies=tuple(bodies),
        headers=tuple((name.lower(), value) for name, value in headers.items()), p99_ms=target_ms(server),
    )  # fmt: skip


def target_ms(server):
    return float(json.loads(server.ask("GET", "/v2/models/m")[2])["properties"]["target_ms"])


async def measure(server, target, args):
    limit = connection_limit(CONNECTIONS)
    pool = CheckedPool(target.host, target.port, encode_requests(target), limit=limit, timeout=TIMEOUT_S)
    try:
        await closed_loop(pool, CALLERS[0], max(1.0, args.secs / 4), 0)  # warm
        capacity, busy = 0.0, 0.0
        for callers in CALLERS:
            before, begun = server.cpu(), pool.clock()
            window = await closed_loop(pool, callers, args.secs / 2, SETTLE_S)
            step = summarize(window, "closed", target.p99_ms, CONFIDENCE, callers=callers)
            if step.answered > capacity:
                capacity, busy = step.answered, (server.cpu() - before) / (pool.clock() - begun)
        rate = capacity * args.factor
        times = arrivals(rate, SETTLE_S, max(50, int(rate * args.secs)), seed=1)
        await pool.open(CALLERS[-1] + int(1.5 * rate * target.p99_ms / 1e3))
        pool.refusals = pool.with_retry = pool.with_reason = 0
        window = await open_loop(pool, times, SETTLE_S, over_after=target.p99_ms / 1e3, give_up=False)
        return (
            capacity,
            busy,
            rate,
            window,
            summarize(window, "overload", target.p99_ms, CONFIDENCE, offered=rate),
            pool,
        )
    finally:
        await pool.close()


def row_of(case, capacity, busy, rate, window, step, pool, target):
    columns = window.samples.columns()
    inside = (columns["intended"] >= window.begin) & (columns["intended"] <= window.end)
    refused = [float(x) for x in columns["latency"][inside & ((columns["status"] == 429) | (columns["status"] == 503))]]
    sent_late = columns["latency"] - (columns["sent"] - columns["intended"])
    ended = columns["intended"] + columns["latency"]
    in_window = (ended >= window.begin) & (ended <= window.end)
    from_sending = in_window & (columns["status"] == 200) & (sent_late <= target.p99_ms / 1e3)
    last = max(columns["sent"].max(), window.begin + 1e-9)
    offered = float((columns["sent"] >= window.begin).sum() / (last - window.begin))
    p50, p99 = results.quantile(refused, 0.5), results.quantile(refused, 0.99)
    return {
        "case": case, "target ms": target.p99_ms, "capacity calls/s": capacity, "server cores then": busy,
        "wanted calls/s": rate, "offered calls/s": offered,
        "in target, % of capacity": 100 * step.good / capacity, "counted from sending, %": 100 * float(from_sending.sum()) / step.seconds / capacity,
        "answered, % of capacity": 100 * step.answered / capacity,
        "refused": step.refused, "refusal p50 ms": p50 and p50 * 1e3, "p99 ms": p99 and p99 * 1e3,
        "within 20 ms, %": 100 * sum(x <= SOON_S for x in refused) / len(refused) if refused else None,
        "Retry-After, %": 100 * pool.with_retry / pool.refusals if pool.refusals else None,
        "reason, %": 100 * pool.with_reason / pool.refusals if pool.refusals else None,
        "failed or timed out": step.failed + step.timed_out + step.unsent,
        "generator late p99 ms": step.generator_late_ms, "generator core": step.generator_cpu,
    }  # fmt: skip


def run(case, args):
    model, rows, distinct, p99_ms = CASES[case]
    options = ["--p99-ms", str(args.p99_ms or p99_ms)]
    with home_with((peer_model(model), "m", *options)) as home, Live(home, "--slots", "1", core=0) as server:
        target = target_of(server, model, rows, distinct)
        return row_of(case, *run_loop(measure(server, target, args)), target)


def main():
    parser = results.arguments(__doc__)
    parser.add_argument("--secs", type=float, default=10, help="of the open loop; closed loops take half (%(default)s)")
    parser.add_argument("--factor", type=float, default=2.0, help="over the capacity (%(default)s)")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--p99-ms", type=float, help="another target for all cases")
    args = parser.parse_args()
    on_core(1)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    rows = [run(case, args) for case in args.cases.split(",")]
    results.report(args.out, "overload", f"Open loop at {args.factor:g} times the capacity", rows, seconds=args.secs)


if __name__ == "__main__":
    sys.exit(main())
