"""From an order to an engine that is warm: the graph, the KV memory, and how fast steps are on this machine."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Final, Literal

import msgspec
import openvino as ov

from pelton.errors import PackageInvalid
from pelton.runtimes.engine_process.order import Built, EngineOrder
from pelton.runtimes.language import Facts, Speed
from pelton.runtimes.lm.blocks import BlockPool
from pelton.runtimes.lm.scheduler import Limits
from pelton.runtimes.memory import free_memory
from pelton.runtimes.openvino.convert import graph_file
from pelton.runtimes.openvino.engine import OpenVinoEngine
from pelton.runtimes.openvino.graph import BLOCK, Graph, compile_paged
from pelton.runtimes.openvino.runner import Chunk, Room, Runner
from pelton.scheduling.token_speed import TokenSpeed

STREAMS: Final = 32
CONTEXT: Final = 4096  # where neither the options nor the model say
STEP_TOKENS: Final = 256
KV_BYTES: Final = 1 << 30  # of memory for KV by default, or four whole contexts where that is more ...
KV_SHARE: Final = 0.25  # ... but never more than this share of what the machine has left
MEASURE_SECONDS: Final = 1.0


class OpenVinoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`options.engine_options` of this engine.

    `kv_precision`: of the KV cache; u8 halves its memory and time against f16 with little loss. `step_tokens`: positions
    computed in one step, at most. `step_seconds`: a step with prompts in it aims to stay below. `guesses`: tokens that
    prompt lookup guesses per step for a few streams; 0: off.
    """

    kv_precision: Literal["u8", "f16", "bf16", "f32"] = "u8"
    step_tokens: int = STEP_TOKENS
    step_seconds: float = 0.5
    guesses: int = 0


class _Card(msgspec.Struct):
    """What this engine wants to know of `language.json`."""

    context: int = 0


def build(order: EngineOrder) -> Built:
    options = order.own(OpenVinoOptions)
    _check(order, options)
    with graph_file(order, release()) as path:
        graph = compile_paged(path, order.threads or order.options.threads, options.kv_precision)
    built = Built(*assemble(order, options, graph))
    # What exists now lives as long as the process: a full garbage collection that walks it would stop all streams.
    gc.collect()
    gc.freeze()
    return built


def assemble(order: EngineOrder, options: OpenVinoOptions, graph: Graph) -> tuple[OpenVinoEngine, Facts]:
    """The engine over a compiled graph, warm and measured."""
    own = order.options
    streams = own.streams or STREAMS
    context = own.context or _context(order) or CONTEXT
    token_bytes = graph.caches.block_bytes / BLOCK
    wanted = own.kv_tokens or min(streams * context, int(_kv_bytes(context * token_bytes) / token_bytes))
    blocks = max(1, -(-wanted // BLOCK))
    context = min(context, blocks * BLOCK)
    budget = max(options.step_tokens, streams * (1 + options.guesses))
    runner = Runner(graph, Room(blocks, streams, budget, -(-context // BLOCK)))
    speed = measure(runner, streams, min(blocks, -(-context // BLOCK)), min(budget, context))
    pool = BlockPool(blocks, BLOCK, own.prefix_cache != "off")
    limits = Limits(budget, streams, options.guesses, step_seconds=options.step_seconds)
    engine = OpenVinoEngine(runner, pool, limits, context, TokenSpeed(speed.prefill, speed.decode))
    engine.shares_prefixes = own.prefix_cache == "shared"
    return engine, Facts("openvino", context, streams, blocks * BLOCK, speed)


def measure(runner: Runner, streams: int, blocks: int, positions: int) -> Speed:
    """Runs steps of several sizes; the fastest of each counts. Takes about a second, or three steps of each size."""
    sizes = sorted({1, *(size for size in (4, 16, 32, 64) if size < min(streams, blocks)), min(streams, blocks)})
    runner.place([(slot, 0, slot) for slot in range(sizes[-1])])
    decode = {
        size: _fastest(
            runner, [Chunk(slot, BLOCK // 2, (1,), (0,)) for slot in range(size)], MEASURE_SECONDS / len(sizes)
        )
        for size in sizes
    }
    length = min(positions, blocks * BLOCK)
    runner.place([(0, index, index) for index in range(-(-length // BLOCK))])
    prefill = _fastest(runner, [Chunk(0, 0, (1,) * length, (length - 1,))], 0.0)
    return Speed(length / prefill, decode)


def _fastest(runner: Runner, step: list[Chunk], seconds: float) -> float:
    """Of two steps or more, as `seconds` allow. The first of its size does not count: it prepares what others reuse."""
    runner.run(step)
    times: list[float] = []
    while len(times) < 2 or (len(times) < 5 and sum(times) + min(times) < seconds):
        start = time.perf_counter()
        runner.run(step)
        times.append(time.perf_counter() - start)
    return min(times)


def release() -> str:
    """Of OpenVINO, as in file names: files made by one are not read by another."""
    return str(ov.get_version()).split("-")[0]


def _check(order: EngineOrder, options: OpenVinoOptions) -> None:
    where = f"model {order.model!r}: options.engine_options"
    if not 32 <= options.step_tokens <= 65536:
        raise PackageInvalid(f"{where}.step_tokens must be between 32 and 65536, not {options.step_tokens}")
    if not options.step_seconds > 0.0:
        raise PackageInvalid(f"{where}.step_seconds must be above 0, not {options.step_seconds}")
    if not 0 <= options.guesses <= 16:
        raise PackageInvalid(f"{where}.guesses must be between 0 (off) and 16, not {options.guesses}")


def _context(order: EngineOrder) -> int:
    """What the model was trained for; 0 where its card is missing."""
    try:
        return msgspec.json.decode((Path(order.folder) / "language.json").read_bytes(), type=_Card).context
    except FileNotFoundError:
        return 0
    except msgspec.DecodeError as error:
        raise PackageInvalid(f"model {order.model!r}: language.json: {error}") from None


def _kv_bytes(context_bytes: float) -> float:
    return min(max(KV_BYTES, 4 * context_bytes), KV_SHARE * free_memory())
