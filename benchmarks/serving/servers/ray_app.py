"""Ray Serve with serve.batch, tuned for throughput."""

import os
import time

os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import common
import numpy as np
import ray
from ray import serve
from ray.serve.config import HTTPOptions


@serve.deployment(
    num_replicas=common.WORKERS, max_ongoing_requests=256, max_queued_requests=-1, ray_actor_options={"num_cpus": 0.5}
)
class Model:
    def __init__(self):
        self.session = common.session()

    @serve.batch(max_batch_size=common.MAX_BATCH, batch_wait_timeout_s=float(os.environ.get("BATCH_WAIT_S", "0")))
    async def infer(self, rows):
        return list(self.session.run(None, {"x": np.stack(rows)})[0])

    async def __call__(self, request):
        body = await request.json()
        return {"prob": (await self.infer(common.decode(body["data"]))).tolist()}


if __name__ == "__main__":
    passed_on = (
        "MODEL",
        "PEERBENCH_HOME",
        "PYTHONPATH",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED",
        "RAY_SERVE_ENABLE_HA_PROXY",
        "ORT_THREADS",
        "OMP_NUM_THREADS",
    )
    env = {name: os.environ[name] for name in passed_on if name in os.environ}
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": env},
        object_store_memory=200 * 2**20,
    )
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=common.PORT))
    serve.run(Model.bind(), route_prefix="/predict", logging_config={"enable_access_log": False, "log_level": "ERROR"})
    while True:
        time.sleep(3600)
