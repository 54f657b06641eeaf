"""The torch engine in an engine process: what `pelton.runtimes.language` finds under the name "torch"."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import msgspec

from pelton.errors import ExtraMissing, ModelFailed, PackageInvalid

try:
    import torch
except ModuleNotFoundError:
    raise ExtraMissing("the engine torch", "lm") from None

from pelton.runtimes.engine_process.order import Built, EngineOrder
from pelton.runtimes.language import Facts, Speed
from pelton.runtimes.lm.engine import EngineOptions, LmEngine
from pelton.runtimes.step_engine import LmRequest

PROBE_PROMPT, PROBE_TOKENS = 256, 8


class TorchOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`engine_options` of this engine. `device`: "cuda", "cuda:1", "cpu" or "auto"; `dtype`: "bf16", "fp16", "fp32" or
    "auto"; `fp8`: weights, KV cache, or both in float8 (CUDA only); `token_budget`: positions of a step; `guesses`: tokens
    guessed per step by prompt lookup."""

    device: str = "auto"
    dtype: str = "auto"
    fp8: str = ""  # "", "weights", "kv", "both"
    token_budget: int = 0
    guesses: int = 0


def build(order: EngineOrder) -> Built:
    """Loads a Hugging Face folder or a GGUF file. Raises PackageInvalid for options that it does not have."""
    own, options = order.own(TorchOptions), order.options
    if own.fp8 not in ("", "weights", "kv", "both"):
        raise PackageInvalid(
            f"model {order.model!r}: options.engine_options.fp8 is {own.fp8!r}: weights, kv, both or nothing"
        )
    cuda = own.device.startswith("cuda") or (own.device == "auto" and torch.cuda.is_available())
    if not cuda:
        torch.set_num_threads(order.threads or max(1, (os.cpu_count() or 2) - 1))
    streams = options.streams or (256 if cuda else 16)
    block = 64 if cuda else 16
    path = order.path if order.path.suffix == ".gguf" else order.path.parent
    try:
        engine = LmEngine.load(
            path,
            EngineOptions(
                device=own.device,
                dtype=own.dtype,
                fp8_weights=own.fp8 in ("weights", "both"),
                fp8_kv=own.fp8 in ("kv", "both"),
                max_seqs=streams,
                max_length=options.context,
                token_budget=own.token_budget or (4096 if cuda else 256),
                kv_blocks=-(-options.kv_tokens // block),
                prefix_cache=options.prefix_cache != "off",
                guesses=own.guesses,
            ),
        )
    except (ValueError, MemoryError, OSError) as error:
        raise ModelFailed(f"model {order.model!r}: {error}") from None
    pool = engine.scheduler.pool
    return Built(
        engine,
        Facts(
            engine="torch",
            context=min(engine.max_length, pool.count * pool.size),
            streams=streams,
            kv_tokens=pool.count * pool.size,
            speed=measure(engine, streams),
            why=f"torch on {engine.runner.device.type}",
            prompt_logprobs=False,
        ),
    )


def measure(engine: LmEngine, streams: int) -> Speed:
    """A few short generations, which also warm the device up."""
    ids = (f"probe-{number}" for number in itertools.count())
    length = min(PROBE_PROMPT, engine.max_length // 2)
    _run(engine, ids, 1, length)
    prefill, _ = _run(engine, ids, 1, length)
    decode = {count: _run(engine, ids, count, 4)[1] for count in sorted({1, min(8, streams)})}
    return Speed(length / prefill, decode)


def _run(engine: LmEngine, ids: Iterator[str], count: int, length: int) -> tuple[float, float]:
    """Seconds of the steps with prefill, and the mean of those without, of `count` generations at once."""
    for number in range(count):
        prompt = tuple((7 * i + number) % 97 + 1 for i in range(length))
        engine.add(LmRequest(next(ids), prompt, PROBE_TOKENS, salt=f"probe {number}"))
    prefill, decode = 0.0, []
    while engine.has_work():
        report = engine.step()
        if report.prefill_tokens:
            prefill += report.seconds
        elif report.decode_tokens:
            decode.append(report.seconds)
    return max(prefill, 1e-6), sum(decode) / max(1, len(decode))
