"""Every bound of the HTTP side in one place."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True):
    """Sizes are bytes, times seconds."""

    head: int = 64 * 1024  # request line and headers together
    headers: int = 100
    path: int = 8 * 1024
    body: int = 64 * 1024 * 1024  # as sent, and after decompression
    json: int = 16 * 1024 * 1024  # of the JSON part of a body: parsing it keeps the event loop busy
    read_timeout: float = 30.0  # from the first byte of a request to its last
    idle_timeout: float = 75.0  # between requests of a kept connection
    write_timeout: float = 60.0  # a reader that takes nothing for so long is cut off
    linger: float = 5.0  # an error was answered: what the client still sends is read and dropped for so long
    pipelined: int = 16  # requests of one connection that may wait for their turn
    connections: int = 16_384
