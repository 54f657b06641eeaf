"""The workload and the model shapes of the GPU benchmark."""

from __future__ import annotations

from random import Random

from pelton.runtimes.lm.config import ModelConfig, Rope

BANDWIDTH = 4.29e12  # bytes/s, device-to-device copy measured on one H200


def offline() -> list[tuple[list[int], int]]:
    """256 prompts of 100-1024 tokens, 100-1024 output tokens each: 142,827 in, 133,966 out (nano-vllm's bench)."""
    random = Random(0)
    prompts = [[random.randint(0, 10000) for _ in range(random.randint(100, 1024))] for _ in range(256)]
    return [(prompt, random.randint(100, 1024)) for prompt in prompts]


def qwen3(size: str) -> ModelConfig:
    """The shapes of Qwen3-0.6B and Qwen3-8B."""
    hidden, intermediate, layers, heads, tied = {
        "0.6b": (1024, 3072, 28, 16, True),
        "8b": (4096, 12288, 36, 32, False),
    }[size]
    return ModelConfig(
        family="qwen3",
        vocab=151936,
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        heads=heads,
        kv_heads=8,
        head_dim=128,
        context=40960,
        norm_eps=1e-6,
        rope=Rope(1_000_000.0),
        tied=tied,
        qk_norm=True,
    )


def floor_seconds(config: ModelConfig, bandwidth: float, kv_bytes: int = 2, weight_bytes: int = 2) -> float:
    """What reading the weights once per step and each sequence's KV once per token must take (decode only)."""
    work = offline()
    steps = max(out for _, out in work)
    kv = sum(out * len(prompt) + out * (out + 1) // 2 for prompt, out in work) * config.kv_bytes_per_token(kv_bytes)
    return (kv + steps * config.parameters * weight_bytes) / bandwidth


if __name__ == "__main__":
    work = offline()
    print(sum(len(prompt) for prompt, _ in work), sum(out for _, out in work), max(out for _, out in work))
    for size in ("0.6b", "8b"):
        seconds = floor_seconds(qwen3(size), BANDWIDTH)
        print(size, f"{seconds:.2f} s", f"{sum(out for _, out in work) / seconds:.0f} tokens/s at most")
