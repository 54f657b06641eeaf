"""Where the processor time of a token goes: to the engine, the server in front of it, the clients.

    python benchmarks/chat/cost.py --model FILE.gguf [--engines openvino,llama.cpp] [--streams 1,8,16] [--rounds 3]

Prints, for each engine alone and through Pelton, milliseconds of processor time per token of each process, how often its
threads gave their core up (waiting) or lost it (to another), and tokens per second. Processor time is steadier than rates:
two versions of Pelton are told apart by it on a machine where rates are not.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from host import NAME, below, memory_of, serving
from run import Bare, Http, Result


class Used(NamedTuple):
    """Of one process: seconds of its threads on a core, seconds they could have run and did not, switches."""

    seconds: float
    kept_waiting: float
    gave_up: float
    lost: float

    def __sub__(self, other: Used) -> Used:  # type: ignore[override]
        return Used(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


def used(pid: int) -> Used:
    """Of all threads that live now."""
    ran = waited = gave_up = lost = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            on_core, queued, _ = (task / "schedstat").read_text().split()
            ran, waited = ran + int(on_core), waited + int(queued)
            for line in (task / "status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name == "voluntary_ctxt_switches":
                    gave_up += int(value)
                elif name == "nonvoluntary_ctxt_switches":
                    lost += int(value)
    return Used(ran / 1e9, waited / 1e9, gave_up, lost)


def clients() -> Used:
    """Of the processes that sent the load: all children that have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Used(spent.ru_utime + spent.ru_stime, 0.0, spent.ru_nvcsw, spent.ru_nivcsw)


Peer = tuple[str, Callable[[int, int, int, int], Result], dict[str, int]]


def sample(peer: Peer, arguments: argparse.Namespace, streams: int, seed: int) -> tuple[Result, dict[str, Used]]:
    _, ask, pids = peer
    before = {role: used(pid) for role, pid in pids.items()} | {"clients": clients()}
    one = ask(streams, arguments.prompt, arguments.new, seed)
    after = {role: used(pid) for role, pid in pids.items()} | {"clients": clients()}
    return one, {role: after[role] - before[role] for role in before}


def show(found: dict[tuple[int, str], list[tuple[Result, dict[str, Used]]]]) -> None:
    print("| streams | engine | tokens/s | TTFT ms | process | ms/token | kept waiting | gave up/token | lost/token |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (streams, name), samples in found.items():
        rate = statistics.median(one["tokens"] / one["seconds"] for one, _ in samples)
        ttft = statistics.median(one["ttft"] for one, _ in samples) * 1e3
        total = 0.0
        for role in samples[0][1]:
            middle = Used(
                *(
                    statistics.median(parts[role][i] / one["tokens"] for one, parts in samples)
                    for i in range(len(Used._fields))
                )
            )
            total += middle.seconds
            print(
                f"| {streams} | {name} | {rate:.1f} | {ttft:.0f} | {role} | {middle.seconds * 1e3:.3f} | "
                f"{middle.kept_waiting * 1e3:.3f} | {middle.gave_up:.2f} | {middle.lost:.2f} |"
            )
        print(f"| {streams} | {name} | {rate:.1f} | {ttft:.0f} | all | {total * 1e3:.3f} | | | |", flush=True)


def peers(arguments: argparse.Namespace, ends: contextlib.ExitStack) -> list[Peer]:
    found: list[Peer] = []
    for kind in arguments.bare.split(",") if arguments.bare else ():
        bare = Bare(kind, arguments.model, arguments.threads)
        ends.callback(bare.close)
        found.append((f"bare {kind}", bare.ask, {"engine": bare.pid}))
    for engine in arguments.engines.split(",") if arguments.engines else ():
        host = ends.enter_context(serving(arguments.model, f"engine={engine}", *arguments.option))
        processes = [host.process.pid, *below(host.process.pid)]
        pids: dict[str, int] = {}
        for pid in processes:
            role = memory_of(pid).role
            pids[role if role not in pids else f"{role} {len(pids)}"] = pid
        found.append((f"Pelton, {engine}", Http(host.url, NAME).ask, pids))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--engines", default="openvino,llama.cpp", help="through Pelton")
    parser.add_argument("--bare", default="openvino,llama.cpp", help="driven directly")
    parser.add_argument("--option", action="append", default=[], help="NAME=VALUE of `pelton add`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8, 16])
    parser.add_argument("--prompt", type=int, default=66)
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the bare engines")
    arguments = parser.parse_args()
    found: dict[tuple[int, str], list[tuple[Any, dict[str, Used]]]] = {}
    with contextlib.ExitStack() as ends:
        asked = peers(arguments, ends)
        for number in range(arguments.rounds):
            for streams in arguments.streams:
                for peer in asked[number % len(asked) :] + asked[: number % len(asked)]:
                    made = sample(peer, arguments, streams, 1000 * number + streams)
                    found.setdefault((streams, peer[0]), []).append(made)
                    rate = made[0]["tokens"] / made[0]["seconds"]
                    print(f"{streams:3} {peer[0]:24} {rate:7.1f} tokens/s", file=sys.stderr, flush=True)
        show(dict(sorted(found.items())))


if __name__ == "__main__":
    main()
