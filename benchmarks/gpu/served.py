"""The GPU engine behind `pelton serve`: tokens per second and TTFT over HTTP, beside the engine in the same folder alone.

    python benchmarks/gpu/served.py --tokenizer FOLDER [--size 0.6b] [--streams 1,64,256] [--prompt 128] [--new 256]

FOLDER holds the tokenizer.json of any model; the weights are random numbers of Qwen3's shape, so the text means nothing.
The engine alone runs first, with the same prompts, and gives the GPU back; then the server is started and asked by
`--clients` processes that share the streams. Every token crosses the engine's process, the gateway and HTTP.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from workload import qwen3

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "chat"))
from load import prompts  # type: ignore[import-not-found]

LOAD = Path(__file__).resolve().parent.parent / "chat" / "load.py"
PYTHON = [sys.executable, "-m", "pelton"]


def write_model(folder: Path, tokenizer: Path, size: str) -> None:
    """A Hugging Face folder with random weights."""
    config = qwen3(size)
    shutil.copyfile(tokenizer / "tokenizer.json", folder / "tokenizer.json")
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": config.vocab,
                "hidden_size": config.hidden, "intermediate_size": config.intermediate,
                "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
                "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim, "rms_norm_eps": config.norm_eps,
                "max_position_embeddings": 8192, "rope_theta": config.rope.theta, "hidden_act": "silu",
                "tie_word_embeddings": config.tied, "torch_dtype": "bfloat16", "eos_token_id": 0,
            }
        )
    )  # fmt: skip
    made: dict[str, torch.Tensor] = {}

    def weight(name: str, *shape: int) -> None:
        made[name] = torch.randn(shape, dtype=torch.bfloat16) * 0.02 if len(shape) > 1 else torch.ones(shape).bfloat16()

    hidden, inner, head = config.hidden, config.intermediate, config.head_dim
    weight("model.embed_tokens.weight", config.vocab, hidden)
    weight("model.norm.weight", hidden)
    if not config.tied:
        weight("lm_head.weight", config.vocab, hidden)
    for layer in range(config.layers):
        at = f"model.layers.{layer}"
        for name, rows in (("q", config.heads * head), ("k", config.kv_heads * head), ("v", config.kv_heads * head)):
            weight(f"{at}.self_attn.{name}_proj.weight", rows, hidden)
        weight(f"{at}.self_attn.o_proj.weight", hidden, config.heads * head)
        for name in ("q_norm", "k_norm"):
            weight(f"{at}.self_attn.{name}.weight", head)
        weight(f"{at}.mlp.gate_proj.weight", inner, hidden)
        weight(f"{at}.mlp.up_proj.weight", inner, hidden)
        weight(f"{at}.mlp.down_proj.weight", hidden, inner)
        weight(f"{at}.input_layernorm.weight", hidden)
        weight(f"{at}.post_attention_layernorm.weight", hidden)
    save_file(made, folder / "model.safetensors", {"format": "pt"})


def alone(folder: Path, arguments: argparse.Namespace) -> dict[int, float]:
    """Tokens per second of the engine, in this process."""
    from pelton.runtimes.lm.engine import EngineOptions, LmEngine
    from pelton.runtimes.step_engine import LmRequest

    weights, kv = arguments.fp8 in ("weights", "both"), arguments.fp8 in ("kv", "both")
    engine = LmEngine.load(folder, EngineOptions(device=arguments.device, fp8_weights=weights, fp8_kv=kv))
    found = {}
    for attempt, streams in enumerate([arguments.streams[0], *arguments.streams]):
        began = time.perf_counter()
        for index, prompt in enumerate(prompts(streams, arguments.prompt, attempt)):
            engine.add(LmRequest(f"{attempt}.{index}", tuple(prompt), arguments.new))
        while engine.has_work():
            engine.step()
        found[streams] = streams * arguments.new / (time.perf_counter() - began)
    return found


def served(home: Path, arguments: argparse.Namespace) -> list[str]:
    """Rows of the table."""
    log = home / "serve.log"
    rows = []
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [*PYTHON, "serve", "gpu", "--home", str(home), "--port", "0"], stdout=stream, stderr=stream
        )
    try:
        url = wait(log, server)
        print(log.read_text()[-600:], file=sys.stderr)
        for attempt, streams in enumerate([arguments.streams[0], *arguments.streams]):
            clients = min(arguments.clients, streams)
            began = time.perf_counter()
            loads = [
                subprocess.Popen(
                    [sys.executable, str(LOAD), url, "gpu", str(streams // clients), str(arguments.prompt),
                     str(arguments.new), str(1000 * attempt + client)],
                    stdout=subprocess.PIPE, text=True,
                )
                for client in range(clients)
            ]  # fmt: skip
            told: list[dict[str, Any]] = [json.loads(load.communicate()[0]) for load in loads]
            seconds = max(one["seconds"] for one in told)
            print(f"{streams} streams: {time.perf_counter() - began:.1f} s with the clients' start", file=sys.stderr)
            rows.append((streams, sum(one["tokens"] for one in told) / seconds, max(one["ttft"] for one in told) * 1e3))
    finally:
        server.terminate()
        server.wait(30)
    return [f"| {streams} | {rate:.0f} | {ttft:.0f} |" for streams, rate, ttft in rows[1:]]


def wait(log: Path, server: subprocess.Popen[bytes]) -> str:
    import urllib.error
    import urllib.request

    while server.poll() is None:
        words = log.read_text()
        if "listening on " in words:
            url = words.split("listening on ")[1].split()[0]
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"{url}/v2/health/ready")
                return url
        time.sleep(0.1)
    raise SystemExit(log.read_text()[-3000:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--size", default="0.6b", choices=("0.6b", "8b"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--fp8", default="", choices=("", "weights", "kv", "both"))
    parser.add_argument("--streams", type=lambda text: [int(n) for n in text.split(",")], default=[1, 64, 256])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--clients", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, home = Path(name) / "model", Path(name) / "home"
        folder.mkdir()
        write_model(folder, arguments.tokenizer, arguments.size)
        add = [*PYTHON, "add", str(folder), "--name", "gpu", "--home", str(home), "--option", "engine=torch"]
        options = {"device": arguments.device, "fp8": arguments.fp8}
        add += ["--option", f"engine_options={json.dumps(options)}"]
        subprocess.run(add, check=True)
        print("| streams | tokens/s | TTFT ms (median of the slowest client) |\n|---|---|---|")
        print("\n".join(served(home, arguments)), flush=True)
        for streams, rate in alone(folder, arguments).items():
            print(f"engine alone, {streams} streams: {rate:.0f} tokens/s")


if __name__ == "__main__":
    main()
