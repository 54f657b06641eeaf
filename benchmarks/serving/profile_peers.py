"""Where a server spends its time: py-spy on its busiest processes at c=32, one core. Needs root.

usage: profile_peers.py row,row [T|V] [first port]
(Not named profile.py: that would shadow the standard library's `profile`, which cProfile and torch import.)
"""

import collections
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import bench

CONNECTIONS = 32
IDLE = ("Condition.wait", "wait (threading", "_worker (concurrent", "select (selectors", "poll (", "accept (")


def package(frame):
    """'run (starlette/routing.py)' -> 'starlette'."""
    match = re.match(r"(.+) \((.+?)(:\d+)?\)", frame)
    place = (match.group(2) if match else frame).replace("<module> ", "")
    return place.split("/")[0]


def show(stacks_file):
    own, functions, inclusive, total = collections.Counter(), collections.Counter(), collections.Counter(), 0
    for line in stacks_file.read_text().splitlines():
        stack, count = line.rsplit(" ", 1)
        frames, count = stack.split(";"), int(count)
        if any(mark in frames[-1] for mark in IDLE):
            continue
        total += count
        own[package(frames[-1])] += count
        functions[frames[-1]] += count
        for frame in set(frames):
            inclusive[frame] += count

    def share(counter, limit, least=0.0):
        return "; ".join(f"{key} {n / total:.0%}" for key, n in counter.most_common(limit) if n / total > least)

    print(
        f"  busy samples {total}\n  self time by package: {share(own, 12)}\n  by function: {share(functions, 12)}\n  inclusive: {share(inclusive, 40, 0.04)}"
    )


def profile(name, model, port):
    with bench.Server(name, model, port) as server:
        server.wait_first_answer()
        lua = bench.write_lua(model, server.row.kind)
        bench.wrk(server, lua, CONNECTIONS, 2, pinned=True)
        load = subprocess.Popen(
            bench.wrk_command(server, lua, CONNECTIONS, 9, pinned=True), stdout=subprocess.PIPE, text=True
        )
        time.sleep(0.5)
        pids = server.pids()
        before = {pid: bench.usage([pid])[0] for pid in pids}
        time.sleep(3)
        cpu = sorted(((bench.usage([pid])[0] - before[pid]) / 3, pid) for pid in pids)[::-1]
        print(f"\n## {name}, model {model}")
        recorders = []
        for cores, pid in [x for x in cpu if x[0] > 0.08][:3]:
            command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()[-60:]
            stacks = bench.HOME / "logs" / f"spy_{name}_{pid}.txt"
            py_spy = [
                bench.HOME / "venvs" / "floor" / "bin" / "py-spy",
                "record",
                "-p",
                str(pid),
                "-d",
                "4",
                "-r",
                "150",
                "-f",
                "raw",
                "-F",
                "-o",
                stacks,
            ]
            recorders.append(
                (
                    f"{cores:.2f} cores: ...{command}",
                    stacks,
                    subprocess.Popen(
                        ["taskset", "-c", bench.WRK_CORE, *py_spy], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                    ),
                )
            )
        for title, stacks, recorder in recorders:
            recorder.wait()
            print(title)
            if stacks.exists():
                show(stacks)
            else:
                print("  no py-spy data")
        print([line for line in load.communicate()[0].splitlines() if "Requests/sec" in line], "under profiling")


if __name__ == "__main__":
    model = sys.argv[2] if len(sys.argv) > 2 else "T"
    port = int(sys.argv[3] if len(sys.argv) > 3 else os.environ.get("PEERBENCH_PORT", "18100"))
    for i, name in enumerate(sys.argv[1].split(",")):
        profile(name, model, port + 10 * i)
