"""transformers' continuous batching at its best: FlashAttention 3, CUDA graphs, async batching. Part of run.py.

transformers accepts FlashAttention 3 only from a distribution named `flash-attn-3`; `register_flash` writes that
name beside the package that is installed, so that the peer gets the same kernels as we do.
"""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import torch
import workload
from ours import Outcome

from pelton.runtimes.lm.config import ModelConfig


def register_flash() -> None:
    spec = importlib.util.find_spec("flash_attn_interface")
    if spec is None or spec.origin is None:
        raise SystemExit("FlashAttention 3 is not installed: the comparison would be with a slower peer")
    info = Path(spec.origin).parent / "flash_attn_3-3.0.0.dist-info"
    if not info.exists():
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flash-attn-3\nVersion: 3.0.0\n")
        (info / "top_level.txt").write_text("flash_attn_interface\nflash_attn_3\nflash_attn_config\n")
        (info / "RECORD").write_text("flash_attn_interface.py,,\nflash_attn_config.py,,\n")


def build(config: ModelConfig) -> Any:
    """The same shape with transformers' own classes, random bf16 weights."""
    register_flash()
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = Qwen3Config(
        vocab_size=config.vocab,
        hidden_size=config.hidden,
        intermediate_size=config.intermediate,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.context,
        rms_norm_eps=config.norm_eps,
        rope_theta=config.rope.theta,
        tie_word_embeddings=config.tied,
        attn_implementation="paged|flash_attention_3",
        dtype=torch.bfloat16,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = Qwen3ForCausalLM(shape).eval()
    torch.set_default_dtype(torch.float32)
    return model


def _settings(batch_tokens: int) -> tuple[Any, Any, Any]:
    from transformers import GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig
    from transformers.generation.continuous_batching.utils import WorkloadHints

    generation = GenerationConfig(do_sample=False, max_new_tokens=1024, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(use_cuda_graph=True, use_async_batching=True, max_batch_tokens=batch_tokens)
    return generation, batching, WorkloadHints(1024, 1024, 256)


def run(model: Any, name: str, arrivals: list[float] | None, batch_tokens: int = 8192) -> tuple[Outcome, list[Any]]:
    """All at once, or at `arrivals` (seconds); prompts and lengths are the workload's, in turn.

    Returns the outcome and, per request, (arrival, first token, last token, tokens) in seconds.
    """
    generation, batching, hints = _settings(batch_tokens)
    work = workload.offline()
    count = len(arrivals) if arrivals else len(work)
    with model.continuous_batching_context_manager(
        generation_config=generation, continuous_batching_config=batching, workload_hints=hints, timeout=30
    ) as manager:
        for i in range(8):  # first use of anything that the warm-up missed
            manager.add_request(list(work[i][0]), max_new_tokens=8, request_id=f"warm{i}")
        for _ in range(8):
            while (result := manager.get_result(timeout=5)) is None or not result.is_finished():
                pass
        begun = time.perf_counter()
        due: list[float] = []
        done: dict[str, Any] = {}
        for i in range(count):
            due.append(begun + (arrivals[i] if arrivals else 0.0))
            while (wait := due[i] - time.perf_counter()) > 0:
                time.sleep(min(wait, 0.002))
            prompt, out = work[i % len(work)]
            manager.add_request(list(prompt), max_new_tokens=out, request_id=str(i), record_timestamps=True)
        while len(done) < count:
            result = manager.get_result(timeout=5)
            if result is not None and result.is_finished():
                done[result.request_id] = result
            elif result is None and not manager.is_running():
                raise RuntimeError("transformers' thread died")
        seconds = time.perf_counter() - begun
    tokens = sum(len(r.generated_tokens) for r in done.values())
    assert all(len(done[str(i)].generated_tokens) == work[i % len(work)][1] for i in range(count))
    times = [
        (due[i], done[str(i)].timestamps[0], done[str(i)].timestamps[-1], len(done[str(i)].timestamps))
        for i in range(count)
    ]
    return Outcome(name, tokens, seconds), times
