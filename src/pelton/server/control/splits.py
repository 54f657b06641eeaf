"""On the path of calls: which version a call goes to, and which calls are copied to a shadow."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import msgspec
import numpy as np

from pelton.deployments import Shadow
from pelton.engine import Engine, Pick, Served
from pelton.errors import Refused
from pelton.packages import preprocess as pre
from pelton.rollout import Pairs
from pelton.rollout.compare import compare
from pelton.rollout.evidence import Comparison, observe
from pelton.routing import Sticky
from pelton.server.control.evidence import PROTOCOL
from pelton.types import Array, Call, Fields

log = logging.getLogger(__name__)

PENDING: Final = 64  # copies that are neither answered nor compared
PENDING_BYTES: Final = 64 * 1024 * 1024
PRIORITY: Final = -8
PATIENCE: Final = 30.0  # seconds that a copy may wait: lanes of live calls, whose deadlines are earlier, go first
COMPARED_HERE: Final = 64 * 1024  # bytes of answers that are compared on the event loop; more: in a thread
SHOWN: Final = 8  # numbers of an array in an example
SHOWN_TEXT: Final = 100


class LiveSplit:
    """`engine.Split`: shares calls between the version that serves and its candidate, which is loaded and warm."""

    __slots__ = ("_candidate", "_pick", "_route", "_stable", "_without_key")

    def __init__(self, salt: str, weight: float, route: int, stable: Served, candidate: Served) -> None:
        self._pick = Sticky(salt, weight).pick
        self._route = route
        self._stable = stable
        self._candidate = candidate
        self._without_key = (Pick(stable, route, 0), Pick(candidate, route, 0))

    def pick(self, key: bytes | None) -> Pick:
        """The version for one call; the same one for the same key."""
        chosen, number = self._pick(key)
        if not number:
            return self._without_key[chosen]
        return Pick(self._candidate if chosen else self._stable, self._route, number)


class Copy(msgspec.Struct, eq=False):
    """A call that was answered, kept until its copy is compared."""

    inputs: list[Array]
    counts: tuple[int, ...] | None
    rows: int
    fields: Fields | None
    answer: list[Array]
    seconds: float  # device
    size: int  # bytes


class LiveMirror:
    """`engine.Mirror`: a share of the calls is copied to the shadow once it has been answered, and both answers compared.

    Copies are skipped, and counted so, while live calls wait for more than the next batch, and while many are pending.
    """

    def __init__(
        self,
        engine: Engine,
        current: Served,
        shadow: Served,
        options: Shadow,
        pairs: Pairs,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._engine = engine
        self._live = current.scheduler
        self._shadow = shadow
        self._options = options
        self._pairs = pairs
        self._draw = draw
        self._share = options.share
        self._signature = current.replica.signature
        self._classes = _classes(current)
        self._prepared = _prepared_alike(current, shadow)
        self._inputs = _order(current, shadow)
        self._waiting: deque[Copy] = deque()
        self._pending = 0
        self._bytes = 0
        self._threads: ThreadPoolExecutor | None = None
        self._loop = asyncio.get_running_loop()
        self._broken = False  # said once

    def watch(self, call: Call) -> None:
        """Sees a call before it is submitted."""
        if self._draw() < self._share:
            call.done = partial(self._answered, call.done, call.fields)

    def _answered(self, done: Callable[[Call], None], fields: Fields | None, call: Call) -> None:
        """The caller gets its answer; whatever else is done comes after."""
        done(call)
        try:
            self._keep(call, fields)
        except Exception:  # noqa: BLE001 - the original is answered; what became of its copy is none of its affairs
            self._fail()

    def _keep(self, call: Call, fields: Fields | None) -> None:
        answer, batch = call.outcome, call.batch
        if not isinstance(answer, list) or batch is None or self._engine.draining:
            return
        inputs = call.inputs if self._prepared else []
        size = sum([array.nbytes for array in answer]) + sum([array.nbytes for array in call.inputs])
        if self._pending >= PENDING or self._bytes + size > PENDING_BYTES or self._live.behind():
            self._pairs.skipped += 1
            return
        self._pending += 1
        self._bytes += size
        seconds = batch.run_seconds * call.rows / batch.rows
        copy = Copy(inputs, call.counts if inputs else None, call.rows, fields, answer, seconds, size)
        if not self._waiting:
            self._loop.call_soon(self._submit)
        self._waiting.append(copy)

    def _submit(self) -> None:
        """What was answered in this turn of the loop, when all of that has been sent."""
        waiting, self._waiting = self._waiting, deque()
        for copy in waiting:
            try:
                self._submit_one(copy)
            except Exception:  # noqa: BLE001 - the other copies go on
                self._drop(copy)

    def _submit_one(self, copy: Copy) -> None:
        if self._inputs is None:  # it takes other inputs
            self._pairs.copied += 1
            self._pairs.failed += 1
            self._end(copy)
            return
        now = self._engine.clock()
        call = Call(
            inputs=[copy.inputs[i] for i in self._inputs] if copy.inputs else [],
            rows=copy.rows,
            done=partial(self._returned, copy),
            received=now,
            deadline=now + PATIENCE,
            fields=None if copy.inputs else copy.fields,
            counts=copy.counts,
            own_deadline=True,
            priority=PRIORITY,
            protocol=PROTOCOL,
        )
        self._engine.submit(self._shadow, call)

    def _returned(self, copy: Copy, call: Call) -> None:
        """The shadow has answered, or not."""
        try:
            self._look(copy, call)
        except Exception:  # noqa: BLE001 - whatever answers are like, they are only compared
            self._drop(copy)

    def _look(self, copy: Copy, call: Call) -> None:
        outcome, pairs = call.outcome, self._pairs
        if isinstance(outcome, Refused):
            pairs.skipped += 1
            self._end(copy)
            return
        if not isinstance(outcome, list) or call.batch is None:
            pairs.copied += 1
            pairs.failed += 1
            self._end(copy)
            return
        pairs.deployed_seconds += copy.seconds
        pairs.shadow_seconds += call.batch.run_seconds * call.rows / call.batch.rows
        work = partial(compare, copy.answer, outcome, self._signature, self._options.tolerance, self._classes)
        if sum([array.nbytes for array in outcome]) <= COMPARED_HERE:
            self._compared(copy, outcome, work())
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(1, thread_name_prefix="pelton-compare")
        done = self._threads.submit(work)
        done.add_done_callback(
            lambda found: self._loop.call_soon_threadsafe(self._compared_elsewhere, copy, outcome, found)
        )

    def _compared_elsewhere(self, copy: Copy, outcome: list[Array], found: Any) -> None:
        try:
            self._compared(copy, outcome, found.result())
        except Exception:  # noqa: BLE001 - what the comparison raised in its thread
            self._drop(copy)

    def _compared(self, copy: Copy, outcome: list[Array], found: Comparison) -> None:
        segment = self._segment(copy) if self._options.segment else ""
        observe(self._pairs, found, segment, partial(self._example, copy, outcome))
        self._pairs.copied += 1
        self._end(copy)

    def _segment(self, copy: Copy) -> str:
        """The value of the segment field in the first row."""
        wanted = self._options.segment
        values: Any = None
        if copy.fields is not None:
            values = copy.fields.get(wanted)
        else:
            names = [spec.name for spec in self._signature.inputs]
            if wanted in names and copy.inputs:
                values = copy.inputs[names.index(wanted)].ravel()
        if values is None or not len(values):
            return "(none)"
        return _text(values[0])

    def _example(
        self, copy: Copy, outcome: list[Array]
    ) -> tuple[dict[str, object], dict[str, object], dict[str, object]]:
        if copy.fields is not None:
            inputs = {name: _short(values) for name, values in copy.fields.items()}
        else:
            inputs = {
                spec.name: _short(array) for spec, array in zip(self._signature.inputs, copy.inputs, strict=False)
            }
        names = [spec.name for spec in self._signature.outputs]
        theirs = [spec.name for spec in self._shadow.replica.signature.outputs]
        return (
            inputs,
            {name: _short(array) for name, array in zip(names, copy.answer, strict=False)},
            {name: _short(array) for name, array in zip(theirs, outcome, strict=False)},
        )

    def _end(self, copy: Copy) -> None:
        self._pending -= 1
        self._bytes -= copy.size

    def _drop(self, copy: Copy) -> None:
        """A copy that went wrong here."""
        self._pairs.copied += 1
        self._end(copy)
        self._fail()

    def _fail(self) -> None:
        self._pairs.failed += 1
        if not self._broken:
            self._broken = True
            log.exception("model %s: a copy for its shadow failed; further ones are only counted", self._shadow.name)


def _classes(served: Served) -> list[str]:
    """Outputs that are scores of classes."""
    post = served.replica.package.manifest.postprocess
    return [block.output for block in post if isinstance(block, pre.Labels)]


def _prepared_alike(current: Served, shadow: Served) -> bool:
    """Whether the tensors of a call to one version are right for the other, so that nothing is prepared twice."""
    one, other = current.replica.package.manifest, shadow.replica.package.manifest
    files = any(isinstance(block, pre.Text) and block.tokenizer != "bytes" for block in one.preprocess)
    return one.preprocess == other.preprocess and not files


def _order(current: Served, shadow: Served) -> list[int] | None:
    """Where the shadow's inputs stand among those of the version that serves; None: it takes others."""
    ours = {spec.name: (i, spec.datatype) for i, spec in enumerate(current.replica.signature.inputs)}
    specs = shadow.replica.signature.inputs
    if not _prepared_alike(current, shadow):
        return list(range(len(specs)))  # each version prepares the fields for itself
    if any(ours.get(spec.name, (0, ""))[1] != spec.datatype for spec in specs):
        return None
    return [ours[spec.name][0] for spec in specs]


def _short(values: Any) -> object:
    """At most a few numbers or letters, as JSON has them."""
    flat = values.ravel() if isinstance(values, np.ndarray) else values
    if not hasattr(flat, "__len__") or isinstance(flat, str | bytes):
        return _text(flat)
    shown = [_plain(value) for value in flat[:SHOWN]]
    return shown[0] if len(flat) == 1 else shown


def _plain(value: Any) -> object:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    return _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            value = bytes(value[: SHOWN_TEXT + 1]).decode()
        except UnicodeDecodeError:
            return f"({len(value)} bytes)"
    elif isinstance(value, np.generic):
        value = value.item()
    return str(value)[:SHOWN_TEXT]
