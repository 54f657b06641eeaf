"""Makes models/ref.json: the right answers to inputs 0..63 of both models. Run with the venv `floor`."""

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
import payloads

MODELS = Path(os.environ.get("PEERBENCH_HOME", "~/.cache/pelton-peerbench")).expanduser() / "models"


def answers(model):
    items = [payloads.item(model, i) for i in range(64)]
    if model == "T":
        batch = np.array(items, np.float32)
    else:
        batch = np.stack([np.frombuffer(item, np.uint8).reshape(96, 96, 3) for item in items])
    return ort.InferenceSession(str(MODELS / f"{model}.onnx")).run(None, {"x": batch})[0].tolist()


if __name__ == "__main__":
    reference = {model: answers(model) for model in "TV"}
    (MODELS / "ref.json").write_text(json.dumps(reference))
    print("T:", reference["T"][:2], "\nV:", reference["V"][0])
