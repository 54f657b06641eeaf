"""Makes models/T.onnx and models/V.onnx, then shows their speed. Run with the venv `model`.

T: LightGBM, 200 trees of 31 leaves, 30 floats -> 2 probabilities, on synthetic labels.
V: uint8 96x96x3 -> four stride-2 convolutions -> a wide MLP -> 10 probabilities, random weights (33 MB).
"""

import os
import time
from pathlib import Path

import lightgbm
import numpy as np
import onnxruntime as ort
import torch
from onnxmltools import convert_lightgbm
from onnxmltools.convert.common.data_types import FloatTensorType
from torch import nn

MODELS = Path(os.environ.get("PEERBENCH_HOME", "~/.cache/pelton-peerbench")).expanduser() / "models"
rng = np.random.default_rng(0)


def make_t():
    x = rng.normal(size=(20000, 30)).astype(np.float32)
    score = x @ rng.normal(size=30) + 0.7 * x[:, 0] * x[:, 1] + rng.normal(size=20000)
    trees = lightgbm.LGBMClassifier(n_estimators=200, num_leaves=31, verbose=-1, n_jobs=2).fit(
        x, (score > 3.5).astype(int)
    )
    model = convert_lightgbm(trees, initial_types=[("x", FloatTensorType([None, 30]))], zipmap=False, target_opset=15)
    probabilities = [output for output in model.graph.output if "prob" in output.name.lower()]
    del model.graph.output[:]
    model.graph.output.extend(probabilities)
    (MODELS / "T.onnx").write_bytes(model.SerializeToString())


class Vision(nn.Module):
    def __init__(self, width=1536):
        super().__init__()

        def conv(i, o):
            return nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.ReLU())

        self.stem = nn.Sequential(conv(3, 16), conv(16, 32), conv(32, 64), conv(64, 64))
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64 * 36, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 10),
        )

    def forward(self, x):
        return torch.softmax(self.head(self.stem(x.permute(0, 3, 1, 2).float() / 127.5 - 1.0)), -1)


def make_v():
    torch.manual_seed(0)
    model = Vision().eval()
    with torch.no_grad():
        model.head[-1].weight.mul_(2000)  # spreads the answers, so that a mix-up of rows shows
    example = torch.randint(0, 255, (2, 96, 96, 3), dtype=torch.uint8)
    torch.onnx.export(
        model,
        (example,),
        str(MODELS / "V.onnx"),
        input_names=["x"],
        output_names=["prob"],
        dynamic_axes={"x": {0: "n"}, "prob": {0: "n"}},
        dynamo=False,
        opset_version=17,
    )


def show_speed(name, make_batch):
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(MODELS / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
    for rows in (1, 8, 32, 128):
        batch = make_batch(rows)
        for _ in range(3):
            session.run(None, {"x": batch})
        start, runs = time.perf_counter(), 0
        while time.perf_counter() - start < 0.5:
            session.run(None, {"x": batch})
            runs += 1
        seconds = (time.perf_counter() - start) / runs
        print(f"{name} batch {rows}: {seconds * 1e3:.3f} ms, {rows / seconds:.0f} rows/s")


if __name__ == "__main__":
    MODELS.mkdir(parents=True, exist_ok=True)
    make_t()
    make_v()
    show_speed("T", lambda rows: rng.normal(size=(rows, 30)).astype(np.float32))
    show_speed("V", lambda rows: rng.integers(0, 255, (rows, 96, 96, 3), dtype=np.uint8))
