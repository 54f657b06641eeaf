"""llama.cpp, through the wheel of xllamacpp (extra "chat"): any GGUF file on a CPU, best for a single stream.

Its server runs in the engine's process and is asked over a Unix socket that nobody else can reach: of its interfaces only
that one tells the ids of the tokens. `ask` says what is asked, `exchange` is one request on the socket, `library` starts
the server, `engine` makes a step engine of it, `grammars` translates grammars.
"""

from __future__ import annotations

from pelton.runtimes.engine_process.order import Built, EngineOrder

__all__ = ["build"]


def build(order: EngineOrder) -> Built:
    """The engine `llama.cpp` of `pelton.toml`."""
    from pelton.runtimes.llama_cpp.build import build

    return build(order)
