"""Writes the golden files in `golden/` with transformers: what other code says our engine must answer.

    pip install transformers==5.17.0 gguf accelerate safetensors "torch>=2.6"
    python tests/lm/make_golden.py families
    python tests/lm/make_golden.py smollm2 path/to/SmolLM2-135M-Instruct.Q4_1.gguf

`families`: tiny models of each supported architecture with weights drawn from their names, so that the files hold
only what transformers answered. `smollm2`: greedy answers of a real model in float32.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
PROMPT = [3, 17, 5, 99, 42, 7, 11, 64, 2, 90, 33, 21, 8, 54, 76, 1, 13, 87, 45, 60, 31, 9]
COMMON = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "rope_parameters": ROPE},
    "llama3": {"model_type": "llama", "rope_parameters": LLAMA3, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "rope_parameters": ROPE, "sliding_window": 8},
    "qwen2": {"model_type": "qwen2", "rope_parameters": ROPE},
    "qwen3": {"model_type": "qwen3", "rope_parameters": ROPE, "tie_word_embeddings": True},
    "gemma3": {
        "model_type": "gemma3_text", "sliding_window": 8, "query_pre_attn_scalar": 16, "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh", "sliding_window_pattern": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
            "sliding_attention": ROPE,
        },
    },
}  # fmt: skip


def weight(name: str, shape: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The same numbers for the same name, everywhere."""
    drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    return drawn * np.float32(0.3 if len(shape) == 1 else 0.15) + np.float32(len(shape) == 1 and "norm" in name)


def family(name: str) -> dict[str, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    raw = {**COMMON, **FAMILIES[name]}
    config = AutoConfig.for_model(**raw)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).float().eval()
    tied = {"lm_head.weight"} if raw["tie_word_embeddings"] else set()
    shapes = {n: list(t.shape) for n, t in model.state_dict().items() if n not in tied}
    model.load_state_dict({n: torch.from_numpy(weight(n, s)) for n, s in shapes.items()}, strict=False)
    model.tie_weights()
    with torch.inference_mode():
        logits = model(torch.tensor([PROMPT])).logits[0, -1]
        tokens = list(PROMPT)
        for _ in range(12):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return {
        "config": raw, "shapes": shapes, "prompt": PROMPT, "tokens": tokens[len(PROMPT) :],
        "logprobs": [round(float(x), 5) for x in torch.log_softmax(logits, -1)],
    }  # fmt: skip


def smollm2(path: Path) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    texts = (
        "What is an invoice?",
        "Write one sentence about the sea.",
        "Repeat after me: one two three four five six seven. One two three",
        "List the days of the week.",
    )
    cases = []
    for text in texts:
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
        prompt = list(prompt["input_ids"] if isinstance(prompt, dict) or hasattr(prompt, "keys") else prompt)
        tokens, tops = list(prompt), []
        with torch.inference_mode():
            for _ in range(32):
                logs = torch.log_softmax(model(torch.tensor([tokens])).logits[0, -1], -1)
                values, ids = logs.topk(3)
                tops.append([[int(i), round(float(v), 4)] for i, v in zip(ids, values, strict=True)])
                tokens.append(int(ids[0]))
        cases.append({"text": text, "prompt": prompt, "tokens": tokens[len(prompt) :], "top": tops})
    return {"file": path.name, "cases": cases}


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    if sys.argv[1] == "families":
        found = {name: family(name) for name in FAMILIES}
        (GOLDEN / "families.json").write_text(json.dumps(found, separators=(",", ":")) + "\n")
    else:
        (GOLDEN / "smollm2.json").write_text(json.dumps(smollm2(Path(sys.argv[2])), separators=(",", ":")) + "\n")
