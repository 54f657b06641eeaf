"""Starts llama.cpp for one order and measures it, in the engine's process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from pelton.errors import PackageInvalid
from pelton.language import card as cards
from pelton.runtimes.engine_choice import cores
from pelton.runtimes.engine_process.order import Built, EngineOrder
from pelton.runtimes.language import Facts, Speed
from pelton.runtimes.llama_cpp.engine import LlamaEngine
from pelton.runtimes.llama_cpp.grammars import Grammars
from pelton.runtimes.llama_cpp.library import Library, release
from pelton.runtimes.step_engine import LmRequest, StepEngine

STREAMS: Final = 8
CONTEXT: Final = 4096  # where no card tells what the model was trained for
KV_TOKENS: Final = 8192
PROBE_PROMPT, PROBE_TOKENS = 96, 8
PATIENCE: Final = 8.0  # seconds that the first probe may take, for there to be more


def build(order: EngineOrder) -> Built:
    """Raises PackageInvalid, ExtraMissing, ModelFailed."""
    if order.path.suffix != ".gguf":
        raise PackageInvalid(f"model {order.model!r}: llama.cpp loads .gguf files, not {order.file!r}")
    own = order.options
    streams = own.streams or STREAMS
    trained = cards.read(Path(order.folder)).context if (Path(order.folder) / cards.CARD).exists() else CONTEXT
    context = min(own.context or trained, trained)
    kv_tokens = own.kv_tokens or max(context, min(context * streams, KV_TOKENS))
    context = min(context, kv_tokens)
    threads = order.threads or cores()
    library = Library(order.path, streams, kv_tokens, threads)
    engine = LlamaEngine(library, streams, context, kv_tokens, own.prefix_cache)
    speed = measure(engine, sorted({1, streams}))
    facts = Facts(
        engine="llama.cpp",
        context=context,
        streams=streams,
        kv_tokens=kv_tokens,
        speed=speed,
        why=f"llama.cpp (xllamacpp {release()}) with {threads} threads: "
        + ", ".join(f"{count / step:.0f} tok/s at {count} streams" for count, step in sorted(speed.decode.items())),
        grammar=(Path(order.folder) / cards.TOKENIZER).exists() and (Path(order.folder) / cards.CARD).exists(),
        prompt_logprobs=False,
        fair=False,
    )
    return Built(engine, facts, Grammars(order.folder), library.close)


def measure(engine: StepEngine, streams: list[int]) -> Speed:
    """Runs a few tokens: alone, and with so many streams. The first tokens after loading are slow and do not count,
    unless the model is so slow that measuring it again would take too long."""
    begin = time.perf_counter()
    first = _run(engine, "warm", 1, 2)
    took = time.perf_counter() - begin
    if took > PATIENCE:
        return Speed(PROBE_PROMPT / took, {1: first})
    begin = time.perf_counter()
    _run(engine, "prefill", 1, 1)
    prefill = PROBE_PROMPT / max(time.perf_counter() - begin, 1e-6)
    return Speed(prefill, {count: _run(engine, f"decode-{count}", count, PROBE_TOKENS) for count in streams})


def _run(engine: StepEngine, name: str, count: int, tokens: int) -> float:
    """Seconds of a step in which `count` streams decode: from when all have their first token to the last one's last."""
    size = PROBE_PROMPT if count == 1 else 4
    for i in range(count):
        prompt = tuple(range(5 + i, 5 + i + size))
        engine.add(LmRequest(f"probe-{i}", prompt, tokens, salt=f"pelton-{name}"))
    made = dict.fromkeys((f"probe-{i}" for i in range(count)), 0)
    begun, before = 0.0, 0
    while engine.has_work():
        for output in engine.step().outputs:
            made[output.request_id] += len(output.tokens)
            if output.finish_reason == "failed":
                raise PackageInvalid(f"llama.cpp cannot run this model: {output.error}")
        if not begun and min(made.values()) > 0:
            begun, before = time.perf_counter(), sum(made.values())
    rest = sum(made.values()) - before
    return (time.perf_counter() - begun) * count / rest if rest > 0 else 1e-3
