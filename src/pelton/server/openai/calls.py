"""Ordinary calls of the engine (embeddings, speech) as something that an endpoint waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from starlette.types import Receive

from pelton.engine import Engine
from pelton.errors import PeltonError
from pelton.server.openai.caller import Caller
from pelton.server.openai.endpoint import PROTOCOL, Target
from pelton.server.openai.stream import watch
from pelton.types import Call

GONE: Final = object()


async def submitted(
    engine: Engine, target: Target, caller: Caller, fields: Mapping[str, Sequence[Any]], receive: Receive
) -> Call | None:
    """The call once it is answered; None: its caller left before. Raises what it failed with."""
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def settle(call: Call) -> None:
        if not done.done():
            done.set_result(call.outcome)

    served = target.served
    call = Call(
        [],
        0,
        settle,
        caller.received,
        caller.received + (caller.timeout or served.target),
        fields,
        own_deadline=caller.timeout > 0.0,
        priority=caller.priority,
        tenant=caller.tenant,
        protocol=PROTOCOL,
        request_id=caller.request_id,
        trace=caller.trace,
        route=target.route,
        key=target.key,
    )
    if served.mirror is not None:
        served.mirror.watch(call)

    def left() -> None:
        if not done.done():
            done.set_result(GONE)

    watcher = asyncio.get_running_loop().create_task(watch(receive, left))
    try:
        engine.submit(served, call)
        outcome = await done
    finally:
        watcher.cancel()
    if outcome is GONE:
        engine.cancel(served, call)
        return None
    if isinstance(outcome, PeltonError):
        raise outcome
    return call
