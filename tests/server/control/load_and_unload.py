"""Run by test_memory: loads and unloads a model beside one that serves, and prints this process's memory, in MB."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from pelton.engine import Engine
from pelton.records import Ledger
from pelton.registry import Registry
from pelton.scheduling import Executor
from pelton.server.fleet import Fleet
from pelton.settings import Settings


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


async def main(home: Path, cycles: int) -> None:
    registry = Registry(home)
    loop = asyncio.get_running_loop()
    engine = Engine(loop, Executor(loop, 1, time.perf_counter), Ledger(time.perf_counter), time.perf_counter)
    fleet = Fleet(engine, registry, Settings(home=str(home)))
    small, big = registry.versions("small")[0].version, registry.versions("big")[0].version
    fleet.switch(await fleet.stage("small", small))
    before, told = resident(), []
    loaded = 0.0
    for _ in range(cycles):
        served = await fleet.stage("big", big)
        fleet.switch(served)
        loaded = max(loaded, resident())
        fleet.withdraw("big")
        fleet.release(served)
        del served
        while fleet.releasing():
            await asyncio.sleep(0.001)
        told.append(resident())
    print(json.dumps({"before": before, "loaded": loaded, "after": told}))
    await fleet.close()
    engine.close()
    registry.close()


asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
