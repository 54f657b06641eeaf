"""What a request took: usage as OpenAI counts it, headers, and the receipt that callers may ask for."""

from __future__ import annotations

from typing import Any, Final

from pelton.engine import Served
from pelton.server.openai.caller import Caller
from pelton.server.openai.run import Run

Json = dict[str, Any]

VERSION: Final = "2020-10-01"  # of OpenAI's API; it has had no other


def usage(run: Run, thought: int = 0) -> Json:
    """Each prompt counts once, however many choices it has. `thought`: tokens of the outputs that are thoughts."""
    prompts = sum(map(len, run.plan.prompts))
    said = sum(choice.completion_tokens for choice in run.choices)
    return {
        "prompt_tokens": prompts,
        "completion_tokens": said,
        "total_tokens": prompts + said,
        "prompt_tokens_details": {"cached_tokens": cached(run), "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": thought,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def cached(run: Run) -> int:
    """Prompt tokens that the prefix cache saved."""
    return sum(choice.generation.receipt.cached_tokens for choice in run.choices[:: run.plan.n])


def receipt(run: Run) -> Json:
    """Times are milliseconds: of the slowest choice, but for `device_ms`, which is the sum of all."""
    receipts = [choice.generation.receipt for choice in run.choices]
    return {
        "model": f"{run.served.name}:{run.served.short_version}",
        "engine": engine_of(run),
        "request_id": run.caller.request_id,
        "prompt_tokens": sum(map(len, run.plan.prompts)),
        "cached_tokens": cached(run),
        "completion_tokens": sum(choice.completion_tokens for choice in run.choices),
        "queue_ms": _ms(max(one.queue for one in receipts)),
        "prefill_ms": _ms(max(one.prefill for one in receipts)),
        "decode_ms": _ms(max(one.decode for one in receipts)),
        "device_ms": _ms(sum(one.device for one in receipts)),
    }


def engine_of(run: Run) -> str:
    facts = run.served.engine_facts
    return run.choices[0].generation.receipt.engine or (facts.engine if facts is not None else "")


def headers(served: Served, caller: Caller, ignored: list[str]) -> dict[str, str]:
    """What is known before the first token."""
    facts = served.engine_facts
    made = {
        "pelton-version": served.short_version,
        "x-request-id": caller.request_id,
        "openai-version": VERSION,
    }
    if facts is not None:
        made["pelton-engine"] = facts.engine
    if ignored:
        made["pelton-ignored"] = ", ".join(ignored)
    return made


def headers_of(run: Run, ignored: list[str]) -> dict[str, str]:
    """All that a finished run can tell in headers."""
    told = receipt(run)
    timing = ", ".join(f"{name};dur={told[f'{name}_ms']:.3f}" for name in ("queue", "prefill", "decode"))
    return {
        **headers(run.served, run.caller, ignored),
        "pelton-engine": told["engine"],
        "server-timing": timing,
        "openai-processing-ms": f"{run.seconds() * 1e3:.0f}",
        "pelton-tokens": f"prompt={told['prompt_tokens']};cached={told['cached_tokens']}"
        f";completion={told['completion_tokens']}",
    }


def fingerprint(served: Served) -> str:
    """`system_fingerprint`: the same as long as the version is."""
    return f"fp_{served.short_version}"


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
