"""SIGTERM with calls running and queued: every accepted call answered, readiness 503 at once, exit in bounds.

usage: drain.py [--calls 64] [--ms 100] [--grace 1] [--workers 1]
A model takes --ms for each batch of at most 4 rows, so most of the calls wait when the signal comes. During the grace
period a new call is sent every 50 ms. The second row sends the signal twice: the second one ends the server now.
"""

import http.client
import json
import signal
import sys
import threading
import time
from pathlib import Path

import results
from live import Live, home_with

HERE = Path(__file__).resolve().parent
EVERY_S = 0.05
STOP_S = 20


def call(server, ms, found):
    try:
        body = json.dumps({"x": [1000.0 + ms]})
        status, _, content = server.ask("POST", "/predict/slow", body)
        found.append(status if status != 200 or json.loads(content)["y"] == [2 * (1000.0 + ms)] else "wrong")
    except (OSError, http.client.HTTPException) as error:
        found.append(type(error).__name__)


def readiness(server):
    try:
        return server.ask("GET", "/v2/health/ready", timeout=5)[0]
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__


def start_calls(server, args):
    """All calls sent and accepted: some run, the others wait."""
    accepted = []
    threads = [threading.Thread(target=call, args=(server, args.ms, accepted)) for _ in range(args.calls)]
    for thread in threads:
        thread.start()
    time.sleep(3 * args.ms / 1e3)
    return accepted, threads


def during_grace(server, args, begun):
    """Status of calls that are made in the grace period."""
    found, threads = [], []
    while time.perf_counter() - begun < args.grace - 2 * EVERY_S:
        threads.append(threading.Thread(target=call, args=(server, 1, found)))
        threads[-1].start()
        time.sleep(EVERY_S)
    return found, threads


def run(home, args, twice):
    options = ["--trust", "*", "--slots", "1", "--grace", str(args.grace), "--stop-timeout", str(STOP_S)]
    with Live(home, *options, "--workers", str(args.workers)) as server:
        accepted, threads = start_calls(server, args)
        answered_before = len(accepted)
        begun = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)
        while (ready := readiness(server)) == 200 and time.perf_counter() - begun < 5:
            pass
        turned = time.perf_counter() - begun
        if twice:
            again = time.perf_counter()
            server.process.send_signal(signal.SIGTERM)
            code = server.process.wait(STOP_S + args.grace + 10)
            late, late_threads, ended = [], [], time.perf_counter() - again
        else:
            late, late_threads = during_grace(server, args, begun)
            code = server.process.wait(STOP_S + args.grace + 10)
            ended = time.perf_counter() - begun
        for thread in (*threads, *late_threads):
            thread.join()
    return {
        "signals": 2 if twice else 1, "calls accepted": args.calls, "answered before": answered_before,
        "answered right": accepted.count(200), "lost or wrong": args.calls - accepted.count(200),
        "calls in grace": len(late), "of these answered": late.count(200), "readiness": ready,
        "503 after ms": turned * 1e3, "exit after s": ended, "bound s": 0.5 if twice else args.grace + STOP_S, "exit code": code,
    }  # fmt: skip


def main():
    parser = results.arguments(__doc__)
    parser.add_argument("--calls", type=int, default=64)
    parser.add_argument("--ms", type=float, default=100)
    parser.add_argument("--grace", type=float, default=1)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    source = f"{HERE / 'models' / 'slow.py'}:Slow"
    with home_with((source, "slow", "--p99-ms", "60000", "--max-rows", "4", "--trust")) as home:
        rows = [run(home, args, twice=False), run(home, args, twice=True)]
    results.report(args.out, "drain", f"SIGTERM under load, {args.workers} worker(s)", rows, workers=args.workers)
    kept = rows[0]["lost or wrong"] == 0 and rows[0]["calls in grace"] == rows[0]["of these answered"]
    in_time = all(row["exit after s"] <= row["bound s"] for row in rows)
    return 0 if kept and in_time and rows[0]["readiness"] == 503 else 1


if __name__ == "__main__":
    sys.exit(main())
