"""Shared by all server scripts: settings from the environment, the model, the decoding of one request's payload."""

import base64
import os
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402
import onnxruntime as ort  # noqa: E402

HOME = Path(os.environ.get("PEERBENCH_HOME", "~/.cache/pelton-peerbench")).expanduser()
MODEL = os.environ.get("MODEL", "T")  # T: 30 floats, boosted trees; V: a 96x96x3 picture, a convolutional network
PORT = int(os.environ.get("PORT", "8100"))
WORKERS = int(os.environ.get("WORKERS", "1"))
MAX_BATCH = int(os.environ.get("MAX_BATCH", "32"))
ORT_THREADS = int(os.environ.get("ORT_THREADS", "1"))


def session():
    """The model in ONNX Runtime, one thread: the same in every server."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = ORT_THREADS
    options.inter_op_num_threads = 1
    return ort.InferenceSession(str(HOME / "models" / f"{MODEL}.onnx"), options, providers=["CPUExecutionProvider"])


def decode(data):
    """One request's payload (list of floats, or base64 text) as one row of the batch."""
    if MODEL == "T":
        return np.asarray(data, np.float32)
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(96, 96, 3)
