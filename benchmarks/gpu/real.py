"""A real small model on the GPU against the golden answers that transformers gave in float32. Part of run.py."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pelton.runtimes.lm.engine import EngineOptions, LmEngine
from pelton.runtimes.step_engine import LmRequest, Sampling

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "lm" / "golden" / "smollm2.json"


def check(name: str, **options: Any) -> None:
    """Agreement of the most likely token and drift of its logprob, each position given transformers' own prefix."""
    path = os.environ.get("SMOLLM2_GGUF")
    if not path:
        raise SystemExit("set SMOLLM2_GGUF to the path of SmolLM2-135M-Instruct.Q4_1.gguf")
    engine = LmEngine.load(path, EngineOptions(max_length=1024, kv_blocks=2048, max_seqs=64, **options))
    cases = json.loads(GOLDEN.read_text())["cases"]
    wanted: dict[str, tuple[int, float]] = {}
    for i, case in enumerate(cases):
        for at in range(len(case["tokens"])):
            known = (*case["prompt"], *case["tokens"][:at])
            wanted[f"{i}.{at}"] = tuple(case["top"][at][0])
            engine.add(LmRequest(f"{i}.{at}", known, 1, Sampling(logprobs=20)))
    agreed, drift, worst = 0, 0.0, 0.0
    while engine.has_work():
        for output in engine.step().outputs:
            token, logprob = wanted[output.request_id]
            assert output.logprobs is not None
            agreed += output.tokens[0] == token
            moved = abs(dict(output.logprobs[0].top).get(token, -20.0) - logprob)
            drift, worst = drift + moved, max(worst, moved)
    same = 0
    for i, case in enumerate(cases):
        engine.add(LmRequest(str(i), tuple(case["prompt"]), len(case["tokens"])))
    got: dict[str, list[int]] = {}
    while engine.has_work():
        for output in engine.step().outputs:
            got.setdefault(output.request_id, []).extend(output.tokens)
    for i, case in enumerate(cases):
        same += sum(a == b for a, b in zip(got[str(i)], case["tokens"], strict=True))
    count = len(wanted)
    print(
        f"   {name:34s} most likely token {agreed}/{count}, logprob off by {drift / count:.4f} on average,"
        f" {worst:.4f} at most; free greedy run {same}/{count} tokens as in float32",
        flush=True,
    )


def run() -> None:
    check("bf16, default attention")
    check("bf16, our attention", attention="triton")
    check("bf16, no CUDA graphs", cuda_graphs=False)
    check("fp16, our attention", attention="triton", dtype="fp16")
    check("fp8 weights", fp8_weights=True)
    check("fp8 weights and KV", fp8_weights=True, fp8_kv=True)
    check("bf16, guessing 4", guesses=4)
