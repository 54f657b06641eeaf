"""Changes of version under the highest load the machine gives: nothing may fail, nothing undeployed may answer.

usage: rollout.py [--swaps 50] [--canaries 10] [--connections 32] [--workers 1]
Closed loop over raw connections from a process of its own, against versions that tell themselves apart by their answers
(y = k * x). Meanwhile an operator deploys and rolls back by the store, by the command line and by the admin API, and
runs canaries with a shadow that are promoted, rolled back for their faults, or aborted. Counted: calls that failed,
answers from a version that was never deployed, answers that are not those of the version in the header `pelton-version`.
Swap time: from the order to the first answer of the new version, asked every few milliseconds on another connection.
Also: what the split costs a call, in a loop of its own.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import onnx
import results
from live import PELTON, Live, environment, on_core
from onnx import TensorProto, helper

from pelton.control import Control
from pelton.packages import Manifest, save
from pelton.registry import Registry
from pelton.rollout import Limits
from pelton.types import Signature, TensorSpec

BOUND_S = 60
WIDTH = 30
PROBE_S = 0.003
CALM_S = 4.0  # before the first order and after the last
LEFT_S = 1.0  # between two orders
VERSIONS = (2, 3, 4, 5)  # the last one is never deployed
FAULTY = 6  # a candidate that answers otherwise: its canary is rolled back for disagreement


# ---- the load, in its own process


class Caller(asyncio.Protocol):
    """One connection: the next request when the answer is whole. Keeps counts of (status, version, factor)."""

    def __init__(self, request, counts, broken):
        self.request, self.counts, self.broken = request, counts, broken
        self.buffer = b""
        self.asked = False

    def connection_made(self, transport):
        self.transport = transport
        self.ask()

    def ask(self):
        self.asked = True
        self.transport.write(self.request)

    def data_received(self, data):
        data = self.buffer + data
        end = data.find(b"\r\n\r\n")
        if end >= 0:
            start = data.find(b"content-length: ") + 16
            length = int(data[start : data.find(b"\r", start)])
            if len(data) >= end + 4 + length:
                self.buffer = b""
                self.asked = False
                self.count(data[:end], data[end + 4 :])
                self.ask()
                return
        self.buffer = data

    def count(self, head, body):
        start = head.find(b"pelton-version: ")
        version = head[start + 16 : start + 28] if start >= 0 else b""
        self.counts[head[9:12], version, body[6:9] if head[9:12] == b"200" else b""] += 1

    def connection_lost(self, exc):
        if self.asked:
            self.broken.append(str(exc))


async def load(port, connections):
    loop = asyncio.get_running_loop()
    body = json.dumps({"x": [1.0] * WIDTH}).encode()
    request = b"POST /predict/m HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    counts, broken = Counter(), []
    callers = [
        (await loop.create_connection(lambda: Caller(request, counts, broken), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    ticks = []

    def tick():
        ticks.append((time.perf_counter(), counts.total()))
        loop.call_later(0.5, tick)

    begin = time.perf_counter()
    tick()
    await loop.run_in_executor(None, sys.stdin.read)  # until the operator is done
    seconds = time.perf_counter() - begin
    for caller in callers:
        caller.asked = False
        caller.transport.abort()
    told = [[status.decode(), version.decode(), answer.decode(), n] for (status, version, answer), n in counts.items()]
    calm = [
        (after[1] - before[1]) / (after[0] - before[0])
        for before, after in ((ticks[1], ticks[5]), (ticks[-6], ticks[-2]))
    ]
    print(json.dumps({"seconds": seconds, "counts": told, "broken": broken, "calm": calm}))


def run_load(port, connections):
    import uvloop

    on_core(1)
    uvloop.run(load(port, connections))


# ---- the models


def add_versions(home, folder):
    """Version digests by factor."""
    registry = Registry(home)
    versions = {}
    for factor in (*VERSIONS, FAULTY):
        source = Path(folder) / str(factor)
        source.mkdir()
        nodes = [helper.make_node("Sum", ["x"] * factor, ["y"])]
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in "xy")
        opset = [helper.make_opsetid("", 17)]
        graph = helper.make_graph(nodes, "g", [x], [y])
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), source / "m.onnx")
        signature = Signature((TensorSpec("x", "FP32", (WIDTH,)),), (TensorSpec("y", "FP32", (WIDTH,)),))
        save(Manifest("m", "onnx", "m.onnx", signature), source)
        versions[factor] = registry.add(source)
    registry.close()
    return versions


# ---- the operator


class Operator:
    """Orders changes and waits until they answer."""

    def __init__(self, home, server, versions):
        registry = Registry(Path(home))
        self.home, self.server, self.versions = home, server, versions
        self.control = Control(registry.store, registry)
        self.took, self.verdicts = {"store": [], "command line": [], "admin API": []}, Counter()

    def answering(self):
        status, headers, _ = self.server.ask("POST", "/predict/m", json.dumps({"x": [1.0] * WIDTH}))
        assert status == 200, status
        return headers["pelton-version"]

    def until(self, true, what):
        end = time.perf_counter() + BOUND_S
        while not (found := true()):
            if time.perf_counter() > end:
                raise RuntimeError(f"not within {BOUND_S} s: {what}\n{self.server.text()[-2000:]}")
            time.sleep(PROBE_S)
        return found

    def swap(self, number):
        """A deployment of the next version, or a rollback to the one before; each way of ordering in its turn."""
        wanted = self.versions[VERSIONS[number % (len(VERSIONS) - 1)]]
        how = "command line" if number % 10 == 3 else "admin API" if number % 10 == 7 else "store"
        before = self.control.deployments.get("m")
        back = number % 2 == 1 and bool(before.previous)
        if back:
            wanted = before.previous
        begin = time.perf_counter()
        if how == "store":
            if back:
                self.control.rollback("m", to=wanted)
            else:
                self.control.deploy(f"m:{wanted}")
        else:
            where = ["--url", f"http://{self.server.host}:{self.server.port}"] if how == "admin API" else []
            order = ["rollback", "m", "--to", wanted[:12]] if back else ["deploy", f"m:{wanted}"]
            place = where or ["--home", str(self.home)]
            done = subprocess.run(
                [*PELTON, *order, *place, "--wait", "0"], env=environment(), capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
        self.until(lambda: self.answering() == wanted[:12], f"{wanted[:12]} answers")
        self.took[how].append(time.perf_counter() - begin)

    def canary(self, number):
        """One that is promoted, one that answers otherwise and is rolled back, one that is aborted by hand."""
        kind = ("promoted", "rolled_back", "aborted")[number % 3]
        stable = self.control.deployments.get("m").version
        others = [self.versions[factor] for factor in VERSIONS[:-1] if self.versions[factor] != stable]
        candidate = self.versions[FAULTY] if kind == "rolled_back" else others[0]
        limits = Limits(
            min_calls=500 if kind == "promoted" else 10**9, error_increase=0.01, slow_increase=0.05,
            disagreement=0.05 if kind == "rolled_back" else None,
        )  # fmt: skip
        begun = self.control.start_rollout(f"m:{candidate}", steps=(0.1, 0.5, 1.0), limits=limits, shadow_share=0.05)
        if kind == "aborted":
            time.sleep(LEFT_S)
            self.control.abort("m")
        self.until(lambda: self.control.deployments.rollout(begun.rollout.id).status == kind, f"it is {kind}")
        serves = candidate if kind == "promoted" else stable
        self.until(lambda: {self.answering() for _ in range(5)} == {serves[:12]}, "one version answers")
        self.verdicts[kind] += 1


# ---- what a call pays


def routing_ns(rounds=200_000):
    """Nanoseconds of what the path does for a call: without a split, with one, with a key."""
    from pelton.server.control.splits import LiveSplit

    class Version:
        split = mirror = None

    stable, candidate = Version(), Version()
    split = LiveSplit("rollout", 0.1, 7, stable, candidate)
    picks = {
        "no canary, no shadow": lambda: stable.split is not None or stable.mirror is not None,
        "canary, no key": lambda: split.pick(None),
        "canary, with a key": lambda: split.pick(b"user-123456"),
    }
    rows = []
    for what, work in picks.items():
        best = min(timed(work, rounds) for _ in range(5)) - min(timed(lambda: None, rounds) for _ in range(5))
        rows.append({"a call": what, "ns": best})
    return rows


def timed(work, rounds):
    begin = time.perf_counter_ns()
    for _ in range(rounds):
        work()
    return (time.perf_counter_ns() - begin) / rounds


# ---- all of it


def measure(args, folder):
    home = Path(folder) / "home"
    home.mkdir()
    versions = add_versions(home, folder)
    registry = Registry(home)
    Control(registry.store, registry).deploy(f"m:{versions[2]}")
    registry.close()
    core = 0 if args.workers == 1 else None
    with Live(home, "--workers", str(args.workers), "--trust", "*", core=core) as server:
        operator = Operator(home, server, versions)
        caller = subprocess.Popen(
            [sys.executable, __file__, "--load", str(server.port), "--connections", str(args.connections)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            time.sleep(CALM_S)
            for number in range(args.swaps):
                operator.swap(number)
                if number % max(1, args.swaps // max(1, args.canaries)) == 0:
                    operator.canary(number // max(1, args.swaps // max(1, args.canaries)))
                time.sleep(LEFT_S / 4)
            time.sleep(CALM_S)
            told = json.loads(caller.communicate("", timeout=BOUND_S)[0])
        finally:
            with contextlib.suppress(OSError):
                caller.kill()
            caller.wait()
        memory = server.rss_mb()
    return operator, told, versions, memory


def judge(operator, told, versions):
    """(rows, whether a promise was broken)."""
    by_version = {version[:12]: factor for factor, version in versions.items()}
    allowed = {versions[factor][:12] for factor in (*VERSIONS[:-1], FAULTY)}
    answered = failed = foreign = wrong = 0
    for status, version, answer, count in told["counts"]:
        if status != "200":
            failed += count
            continue
        answered += count
        foreign += 0 if version in allowed else count
        wrong += 0 if answer == f"{by_version.get(version, 0)}.0" else count
    failed += len(told["broken"])
    swaps = [seconds for times in operator.took.values() for seconds in times]
    rows = [
        {"what": "answers", "value": answered},
        {"what": "answers/s", "value": answered / told["seconds"]},
        {"what": "answers/s before the first change", "value": told["calm"][0]},
        {"what": "answers/s after the last change", "value": told["calm"][1]},
        {"what": "failed calls", "value": failed},
        {"what": "answers of a version that was never deployed", "value": foreign},
        {"what": "answers that are not those of the version they name", "value": wrong},
        {"what": "versions that answered", "value": len({v for _, v, _, _ in told["counts"] if v})},
        {"what": "swaps (deployments and rollbacks)", "value": len(swaps)},
        {"what": "canaries", "value": ", ".join(f"{n} {kind}" for kind, n in sorted(operator.verdicts.items()))},
    ]
    for how, times in operator.took.items():
        if times:
            rows.append({"what": f"swap by {how}, median s", "value": results.quantile(times, 0.5)})
            rows.append({"what": f"swap by {how}, longest s", "value": max(times)})
    return rows, bool(failed or foreign or wrong)


def main():
    parser = results.arguments(__doc__)
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--canaries", type=int, default=10)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--load", type=int, help="port: only the load, until its input ends")
    args = parser.parse_args()
    if args.load:
        run_load(args.load, args.connections)
        return 0
    on_core(1)
    with tempfile.TemporaryDirectory(prefix="pelton-bench-") as folder:
        operator, told, versions, memory = measure(args, folder)
    rows, broken = judge(operator, told, versions)
    rows.append({"what": "memory at the end, MB", "value": memory})
    results.report(args.out, "rollout", "Changes of version under load", rows, workers=args.workers)
    results.report(args.out, "rollout", "What routing costs", routing_ns())
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
