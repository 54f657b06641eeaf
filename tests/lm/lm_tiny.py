"""Tiny models for tests: written as Hugging Face folders, with weights drawn from their names."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pelton.runtimes.lm.engine import EngineOptions, LmEngine
from pelton.runtimes.step_engine import LmOutput, LmRequest, StepReport

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("make_golden", HERE / "make_golden.py")
assert _spec is not None
assert _spec.loader is not None
make_golden = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_golden)

FAMILIES: dict[str, Any] = json.loads((HERE / "golden" / "families.json").read_text())
OPTIONS = EngineOptions(device="cpu", max_seqs=8, token_budget=32, block_size=4, kv_blocks=64)


def write_folder(folder: Path, family: str) -> Path:
    golden = FAMILIES[family]
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(golden["config"]))
    tensors = {name: torch.from_numpy(make_golden.weight(name, shape)) for name, shape in golden["shapes"].items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


class Ran:
    """What came of running an engine dry."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.outputs: list[LmOutput] = []
        self.reports: list[StepReport] = []

    def take(self, report: StepReport) -> None:
        self.reports.append(report)
        for output in report.outputs:
            self.outputs.append(output)
            self.tokens.setdefault(output.request_id, []).extend(output.tokens)

    def finish(self, request_id: str) -> str | None:
        ends = [o.finish_reason for o in self.outputs if o.request_id == request_id and o.finish_reason]
        assert len(ends) <= 1, "a request ended twice"
        return ends[0] if ends else None


def run(engine: LmEngine, *requests: LmRequest) -> Ran:
    """Add the requests, step until nothing is left, check the scheduler at each step."""
    ran = Ran()
    for request in requests:
        engine.add(request)
    while engine.has_work():
        ran.take(engine.step())
        engine.scheduler.check()
    return ran
