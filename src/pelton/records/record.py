"""The record: everything that is kept of one call."""

from __future__ import annotations

import msgspec


class Record(msgspec.Struct, gc=False):
    """Who asked what of which model, how long each stage took, and how it ended. Times are seconds.

    `at` is the monotonic time of the reply; `total` counts from the first byte read to the reply handed to the socket.
    `device` is the call's share of the time that its batch held the device (by rows): cost is computed from it.
    `error` is empty for an answer, else the kind of error; `reason` says why the batch left the queue, or, for a
    refusal, why it was refused. `route` is the revision of the deployment whose split has picked the version (0: the
    caller named it, or there was no choice), `key` what that caller is told apart by (0: nothing).
    """

    model: str
    version: str
    protocol: str
    tenant: str
    rows: int
    batch_rows: int
    reason: str
    error: str
    at: float
    prepare: float
    queue: float
    run: float
    total: float
    device: float
    request_id: str = ""
    trace: str = ""
    route: int = 0
    key: int = 0
