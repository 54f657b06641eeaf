"""An engine driven directly, in a process of its own: `python bare.py openvino|llama.cpp|llama-server FILE THREADS`.

Reads lines "STREAMS PROMPT NEW SEED" and answers each with one JSON object, as load.py does. "llama-server" prints the
address and key of llama.cpp's own HTTP server and waits.
"""

from __future__ import annotations

import json
import secrets
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from load import prompts

CONTEXT = 1024  # tokens of one stream
MOST = 16  # streams

Run = Callable[[int, int, int, int], dict[str, float]]


def openvino(file: str, threads: int) -> Run:
    """OpenVINO GenAI's continuous batching, stepped by the caller as its documentation shows."""
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.max_num_batched_tokens = 256
    scheduler.max_num_seqs = 256
    scheduler.cache_size = 1
    pipe = genai.ContinuousBatchingPipeline(file, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}, {})
    ids = iter(range(1 << 60))

    def run(streams: int, length: int, new: int, seed: int) -> dict[str, float]:
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = new, True, False
        began = time.perf_counter()
        handles = [
            pipe.add_request(next(ids), ov.Tensor(np.array([prompt], np.int64)), config)
            for prompt in prompts(streams, length, seed)
        ]
        firsts: dict[int, float] = {}
        tokens = 0
        while pipe.has_non_finished_requests():
            pipe.step()
            now = time.perf_counter() - began
            for i, handle in enumerate(handles):
                if handle.can_read():
                    tokens += sum(len(output.generated_ids) for output in handle.read().values())
                    firsts.setdefault(i, now)
        return {"seconds": time.perf_counter() - began, "tokens": tokens, "ttft": middle(firsts.values())}

    return run


def llama(file: str, threads: int, streams: int, key: str = "") -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_parallel = streams
    params.n_ctx = streams * CONTEXT
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = 0
    if key:
        params.api_keys = [key]
    return xllamacpp.Server(params)


def llama_cpp(file: str, threads: int) -> Run:
    """llama.cpp's server loop through xllamacpp, without HTTP: one thread per stream."""
    server = llama(file, threads, MOST)

    def one(prompt: list[int], new: int, began: float, ended: list[tuple[float, int]]) -> None:
        first, count = 0.0, 0

        def heard(chunk: Any) -> None:
            nonlocal first, count
            if any(choice["text"] for choice in chunk.get("choices", ())):
                first = first or time.perf_counter() - began
            count = chunk.get("usage", {}).get("completion_tokens", count)

        told = {"prompt": prompt, "n_predict": new, "ignore_eos": True, "temperature": 0}
        server.handle_completions({**told, "stream": True, "cache_prompt": False}, heard)
        ended.append((first, count))

    def run(streams: int, length: int, new: int, seed: int) -> dict[str, float]:
        began = time.perf_counter()
        ended: list[tuple[float, int]] = []
        threads = [
            threading.Thread(target=one, args=(prompt, new, began, ended)) for prompt in prompts(streams, length, seed)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
        return {
            "seconds": seconds,
            "tokens": sum(count for _, count in ended),
            "ttft": middle(first for first, _ in ended),
        }

    return run


def middle(values: Any) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def main() -> None:
    kind, file, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if kind == "llama-server":
        key = secrets.token_hex(8)
        server = llama(file, threads, MOST, key)
        print(json.dumps({"url": server.listening_address, "key": key}), flush=True)
        sys.stdin.read()
        return
    run = openvino(file, threads) if kind == "openvino" else llama_cpp(file, threads)
    run(1, 16, 4, 0)
    print(json.dumps({"ready": kind}), flush=True)
    for line in sys.stdin:
        streams, length, new, seed = map(int, line.split())
        print(json.dumps(run(streams, length, new, seed)), flush=True)


if __name__ == "__main__":
    main()
