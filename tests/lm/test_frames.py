"""The whole model on Triton kernels (through the interpreter), in arrays padded as CUDA graphs need them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lm_tiny import FAMILIES, OPTIONS, run, write_folder

from pelton.runtimes.lm.attention import TorchAttention, TritonAttention
from pelton.runtimes.lm.engine import LmEngine
from pelton.runtimes.lm.layout import Frame, Layout, decode_frame, lay_out, mixed_frame, pack
from pelton.runtimes.lm.ops import TorchOps, TritonOps
from pelton.runtimes.lm.runner import captured_mixes, captured_rows
from pelton.runtimes.step_engine import LmRequest

pytest.importorskip("triton")
pytestmark = pytest.mark.lm


def load(folder: Path, family: str, layers: int = 3) -> LmEngine:
    write_folder(folder / family, family)
    config = {**FAMILIES[family]["config"], "num_hidden_layers": layers}
    (folder / family / "config.json").write_text(json.dumps(config))
    loaded = LmEngine.load(folder / family, replace(OPTIONS, block_size=16, kv_blocks=16))
    loaded.model.ops, loaded.model.attention = TritonOps(), TritonAttention()
    return loaded


def logits(engine: LmEngine, layout: Layout, frame: Frame) -> torch.Tensor:
    runner = engine.runner
    flat = torch.from_numpy(pack(layout, frame, runner._idle_slot, engine.model.attention.tile_rows))
    batch = runner._batch(flat, frame, frame.prefill)
    with torch.inference_mode():
        return engine.model.forward(batch, runner.cache, runner.table, runner.last)[: len(layout.sample_slots)]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_the_triton_model_answers_like_transformers(family: str, tmp_path: Path) -> None:
    golden = FAMILIES[family]
    ran = run(load(tmp_path, family), LmRequest("a", tuple(golden["prompt"]), 3))
    assert ran.tokens["a"] == golden["tokens"][:3]


@pytest.mark.timeout(180)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # padding rows compute with whatever memory holds
def test_padding_changes_nothing(tmp_path: Path) -> None:
    engine = load(tmp_path, "qwen3", layers=1)
    kernels, plain = (engine.model.ops, engine.model.attention), (TorchOps(), TorchAttention())
    rows, step = engine.model.attention.tile_rows, 0
    for i, length in enumerate((3, 8)):
        engine.add(LmRequest(str(i), tuple(range(i, i + length)), 3))
    seen: set[tuple[bool, bool]] = set()
    while engine.scheduler.sequences:
        plan = engine.scheduler.plan()
        layout = lay_out(plan)
        engine.runner._place(layout)
        exact = layout.exact_frame(rows)
        padded = mixed_frame(3, 48, rows) if layout.packed else decode_frame(4)
        assert layout.fits(padded)
        seen.add((bool(layout.ids), bool(layout.packed)))
        found = logits(engine, layout, padded)
        engine.model.ops, engine.model.attention = plain
        wanted = logits(engine, layout, exact)
        assert torch.allclose(found, wanted, atol=1e-4)
        flight = engine.runner.launch(plan)
        engine.scheduler.commit(plan, engine.runner.collect(flight).tokens)
        engine.model.ops, engine.model.attention = kernels
        step += 1
        if step == 1:
            engine.add(LmRequest("late", (9, 8), 1))
    assert seen == {(False, True), (True, True), (True, False)}


def test_captured_sizes_cover_every_step_up_to_the_limit() -> None:
    for most in (1, 7, 64, 256, 300):
        sizes = captured_rows(most)
        assert sizes[-1] == most
        assert sizes == sorted(set(sizes))
    assert max(captured_mixes(256, 2048)) == (256, 2048)
    assert all(tokens <= 300 for _, tokens in captured_mixes(8, 300))
