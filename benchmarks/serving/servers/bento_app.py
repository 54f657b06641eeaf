"""BentoML with adaptive batching. Its batchable API takes a batch: the body is {"data": [row]}."""

import os

import bentoml
import common
import numpy as np

BATCHING = {
    "batchable": True,
    "batch_dim": 0,
    "max_batch_size": common.MAX_BATCH,
    "max_latency_ms": int(os.environ.get("MAX_LATENCY_MS", "2000")),
    "route": "/predict",
}


@bentoml.service(
    workers=common.WORKERS,
    traffic={"timeout": 30, "max_concurrency": 1024},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Service:
    def __init__(self):
        self.session = common.session()

    if common.MODEL == "T":

        @bentoml.api(**BATCHING)
        def predict(self, data: np.ndarray) -> np.ndarray:
            return self.session.run(None, {"x": np.ascontiguousarray(data, np.float32)})[0]
    else:

        @bentoml.api(**BATCHING)
        def predict(self, data: list[str]) -> np.ndarray:
            return self.session.run(None, {"x": np.stack([common.decode(item) for item in data])})[0]
