"""Every family of the engine on the GPU against transformers in float32. Part of run.py; also runs alone, on a CPU.

Random weights of a small but plausible shape, written as a Hugging Face folder by transformers itself. Eight prompts of
different lengths are answered greedily side by side, through prefill, decode and the sliding windows; then transformers
reads our answers in one pass, in float32 over the same bf16 weights, and tells at each position what it holds most likely.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "lm")]

import torch  # noqa: E402
from make_golden import COMMON, FAMILIES  # type: ignore[import-not-found]  # noqa: E402

from pelton.runtimes.lm.engine import EngineOptions, LmEngine  # noqa: E402
from pelton.runtimes.step_engine import LmRequest, Sampling  # noqa: E402

SHAPE = {
    "vocab_size": 4096, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 6,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 4096,
}  # fmt: skip
GEMMA = {
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "query_pre_attn_scalar": 256,
    "tie_word_embeddings": False,  # tied random weights would only ever repeat the last token: Gemma scales them up
}  # fmt: skip
WINDOW, NEW = 100, 64
PROMPTS = (17, 60, 99, 128, 190, 257, 400, 700)  # tokens; the longer ones leave the windows behind
VARIANTS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "bf16, our attention": {"attention": "triton"},
    "FP8 weights and KV": {"fp8_weights": True, "fp8_kv": True},
}


def write_model(name: str, folder: Path, device: str) -> Any:
    """The folder, and transformers' model of it in float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    raw = {**COMMON, **FAMILIES[name], **SHAPE, **(GEMMA if name == "gemma3" else {})}
    if raw.get("sliding_window"):
        raw["sliding_window"] = WINDOW
    if "layer_types" in raw:
        raw["layer_types"] = [*raw["layer_types"]] * 2
    config = AutoConfig.for_model(**raw)
    model = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            drawn = torch.randn(tensor.shape, generator=generator)
            if tensor.dim() < 2:  # norms and biases: about what transformers makes them
                tensor.copy_((tensor + 0.1 * drawn).bfloat16())
                continue
            # what goes in keeps its size on the way through; the head's numbers have a spread of 3
            spread = (3 if "embed" in key or "lm_head" in key else 1) / tensor.shape[1] ** 0.5
            tensor.copy_((drawn * spread).bfloat16())
    model.tie_weights()
    model.bfloat16().save_pretrained(folder)  # this also rounds the rotation's frequencies, so it is read back below
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**written, "model_type": raw["model_type"]}))
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").to(device)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(0, SHAPE["vocab_size"], (n,), generator=generator).tolist() for n in PROMPTS]


def answers(engine: LmEngine) -> tuple[dict[str, list[int]], dict[str, list[dict[int, float]]]]:
    """Tokens, and the twenty most likely ones with their logprobs, by request."""
    for i, prompt in enumerate(prompts()):
        engine.add(LmRequest(str(i), tuple(prompt), NEW, Sampling(logprobs=20)))
    tokens: dict[str, list[int]] = {}
    tops: dict[str, list[dict[int, float]]] = {}
    while engine.has_work():
        for output in engine.step().outputs:
            tokens.setdefault(output.request_id, []).extend(output.tokens)
            tops.setdefault(output.request_id, []).extend([dict(one.top) for one in output.logprobs or ()])
    return tokens, tops


def compare(reference: Any, engine: LmEngine, device: str) -> str:
    tokens, tops = answers(engine)
    agreed, drift, worst, count = 0, 0.0, 0.0, 0
    for i, prompt in enumerate(prompts()):
        mine = tokens[str(i)]
        with torch.inference_mode():
            logits = reference(torch.tensor([[*prompt, *mine]], device=device)).logits[0]
        logs = torch.log_softmax(logits[len(prompt) - 1 : -1].float(), -1)
        values, ids = (part.tolist() for part in logs.max(-1))
        for token, top, best, value in zip(mine, tops[str(i)], ids, values, strict=True):
            moved = abs(top.get(best, -20.0) - value)
            agreed, drift, worst, count = agreed + (token == best), drift + moved, max(worst, moved), count + 1
    return f"most likely token {agreed}/{count}, logprob off by {drift / count:.4f} on average, {worst:.4f} at most"


def run(device: str = "cuda", variants: dict[str, dict[str, Any]] = VARIANTS) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            reference = write_model(family, Path(folder), device)
            for name, options in variants.items():
                engine = LmEngine.load(folder, EngineOptions(device=device, max_length=1024, kv_blocks=512, **options))
                print(f"   {family:8s} {name:22s} {compare(reference, engine, device)}", flush=True)
                del engine
            del reference


if __name__ == "__main__":
    run("cpu", {"float32": {}})
