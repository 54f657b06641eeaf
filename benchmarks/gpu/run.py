"""Build, check and time everything in one run on one GPU.

    python benchmarks/gpu/run.py kernels               # every kernel in several shapes, against libraries
    python benchmarks/gpu/run.py families              # Llama, Mistral, Qwen2, Qwen3, Gemma 3 against transformers
    python benchmarks/gpu/run.py engine-0.6b engine-8b engine-8b-fp8
    python benchmarks/gpu/run.py compare-0.6b compare-8b   # our engine and transformers, offline, same run
    python benchmarks/gpu/run.py online-0.6b           # Poisson arrivals, a long prompt, 10,000 requests; both engines

Sections run in the order given; each prints its table. `make`-free on purpose: a GPU machine has only Python.
"""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks" / "gpu")]

import families  # noqa: E402
import kernel_times  # noqa: E402
import online  # noqa: E402
import ours  # noqa: E402
import peer  # noqa: E402
import real  # noqa: E402
import torch  # noqa: E402
import workload  # noqa: E402

from pelton.runtimes.lm.attention import flash_available  # noqa: E402


def release() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def engine_section(size: str, fp8: bool, detail: bool = True) -> None:
    engine = ours.build(size, fp8_weights=fp8, fp8_kv=fp8)
    label = f"ours {size} {'fp8' if fp8 else 'bf16'}"
    if detail:
        for rows in (256, 64, 1):
            ours.profile(engine, rows)
        ours.host_times(engine)
    print(ours.offline(engine, label), flush=True)
    print(ours.single(engine, f"{label} single stream"), flush=True)
    del engine
    release()


def tune_section(size: str, fp8: bool) -> None:
    engine = ours.build(size, fp8_weights=fp8, fp8_kv=fp8, cuda_graphs=True)
    ours.tune(engine, f"{size} {'fp8' if fp8 else 'bf16'}")
    print(ours.offline(engine, f"ours {size} {'fp8' if fp8 else 'bf16'}"), flush=True)
    print(ours.single(engine, f"ours {size} {'fp8' if fp8 else 'bf16'} single stream"), flush=True)
    del engine
    release()


def compare_section(size: str, fp8: bool) -> None:
    """Offline, everything at once: ours in bf16 (and FP8), then transformers."""
    results = []
    for eight in (False, True) if fp8 else (False,):
        engine = ours.build(size, fp8_weights=eight, fp8_kv=eight)
        label = f"ours {size} {'fp8' if eight else 'bf16'}"
        results.append(ours.offline(engine, label))
        results.append(ours.single(engine, f"{label} single stream"))
        del engine
        release()
    model = peer.build(workload.qwen3(size))
    results.append(peer.run(model, f"transformers {size} bf16 FA3+graphs+async", None)[0])
    for result in results:
        print(result, flush=True)


def online_section(size: str, rates: tuple[float, ...], count: int, budget: int) -> None:
    engine = ours.build(size, token_budget=budget, max_length=20000)
    online.long_prompt(engine)
    kept = []
    for rate in rates:
        arrivals = online.poisson(rate, count)
        online.report(f"ours {size} budget {budget}", rate, online.ours(engine, arrivals, str(rate)))
        kept.append(arrivals)
    online.soak(engine)
    del engine
    release()
    model = peer.build(workload.qwen3(size))
    for rate, arrivals in zip(rates, kept, strict=True):
        online.report(f"transformers {size}", rate, peer.run(model, "", arrivals)[1])


SECTIONS: dict[str, Callable[[], None]] = {
    "kernels": lambda: kernel_times.run(flash=True),
    "small": kernel_times.small_section,
    "decode": lambda: kernel_times.decode_section(flash_available()),
    "decode-order": kernel_times.decode_order_section,
    "prefill": lambda: kernel_times.prefill_section(True),
    "linear": kernel_times.linear_section,
    "real": real.run,
    "families": families.run,
    "compare-0.6b": lambda: compare_section("0.6b", False),
    "compare-8b": lambda: compare_section("8b", True),
    "online-0.6b": lambda: online_section("0.6b", (15.0, 35.0), 300, 2048),
    "online-8b": lambda: online_section("8b", (13.4,), 100, 2048),
    "tune-0.6b": lambda: tune_section("0.6b", False),
    "tune-8b": lambda: tune_section("8b", False),
    "tune-8b-fp8": lambda: tune_section("8b", True),
    "engine-0.6b": lambda: engine_section("0.6b", False),
    "engine-8b": lambda: engine_section("8b", False),
    "engine-8b-fp8": lambda: engine_section("8b", True),
}


def main(names: list[str]) -> None:
    unknown = [name for name in names if name not in SECTIONS]
    if unknown or not names:
        raise SystemExit(f"sections: {' '.join(SECTIONS)}")
    print(torch.cuda.get_device_name(), torch.__version__, "flash", flash_available(), flush=True)
    for name in names:
        begun = time.perf_counter()
        print(f"== {name}", flush=True)
        try:
            SECTIONS[name]()
        except Exception:  # noqa: BLE001 - device time is scarce: the other sections still run
            traceback.print_exc()
        release()
        print(f"== {name} took {time.perf_counter() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
