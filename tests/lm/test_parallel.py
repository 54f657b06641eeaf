"""Tensor parallelism with two processes on the CPU: the answers of one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lm_tiny import FAMILIES, write_folder

pytestmark = pytest.mark.lm

WORKER = """
import json, sys
sys.path.insert(0, sys.argv[5])
import torch
torch.set_num_threads(1)
from lm_tiny import OPTIONS, run
from pelton.runtimes.lm import parallel
from pelton.runtimes.lm.engine import LmEngine
from pelton.runtimes.lm.follower import follow, dismiss
from pelton.runtimes.step_engine import LmRequest, Sampling

rank, folder, meet, prompt = int(sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
ranks = parallel.join(rank, 2, meet, torch.device("cpu"))
engine = LmEngine.load(folder, OPTIONS, ranks)
if rank:
    follow(engine)
else:
    requests = [LmRequest("a", tuple(prompt), 12), LmRequest("b", tuple(prompt[4:]), 9, Sampling(temperature=1.0))]
    ran = run(engine, *requests)
    dismiss(engine)
    print(json.dumps(ran.tokens))
parallel.leave()
"""


@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_two_processes_answer_like_one(family: str, tmp_path: Path) -> None:
    from lm_tiny import OPTIONS, run

    from pelton.runtimes.lm.engine import LmEngine
    from pelton.runtimes.step_engine import LmRequest, Sampling

    folder = write_folder(tmp_path / family, family)
    prompt = FAMILIES[family]["prompt"]
    here = str(Path(__file__).parent)
    arguments = [str(folder), f"file://{tmp_path / 'meet'}", json.dumps(prompt), here]
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(rank), *arguments], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    answers = [worker.communicate(timeout=50)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    sampled = LmRequest("b", tuple(prompt[4:]), 9, Sampling(temperature=1.0))
    alone = run(LmEngine.load(folder, OPTIONS), LmRequest("a", tuple(prompt), 12), sampled)
    assert json.loads(answers[0]) == alone.tokens
    assert alone.tokens["a"] == FAMILIES[family]["tokens"]
