"""What is measured: one Row per server and configuration. To add a server: a start script in servers/, one line here.

The start script reads MODEL (T or V), PORT, WORKERS and PEERBENCH_HOME from the environment and serves on 127.0.0.1.
"""

from dataclasses import dataclass, field

PREDICT, V2 = "/predict", "/v2/models/m/infer"


@dataclass
class Row:
    venv: str
    script: str  # in servers/, or "bentoml" for BentoML's own command
    kind: str  # of body, see payloads.py
    path: str
    env: dict = field(default_factory=dict)  # always
    env_two: dict = field(default_factory=dict)  # in addition when both cores are used
    prepare: bool = False  # run the script with the argument `prepare` before the clock of the cold start

    ready: str = ""  # path that answers 200 when all workers can be asked

    @property
    def two_only(self):
        """Whether the row differs from another one only when both cores are used."""
        return self.script == "pelton_start.py" and self.env_two == TWO


TWO = {"WORKERS": "2"}
TWO_SLOTS = {"SLOTS": "2"}
WAIT_1MS = {"BATCH_WAIT_S": "0.001"}
RAY_WAIT = {"RAY_raylet_start_wait_time_s": "90"}

ROWS = {
    "fastapi": Row("fastapi", "fastapi_naive.py", "plain", PREDICT, {}, TWO),
    "fastapi_async": Row("fastapi", "fastapi_async.py", "plain", PREDICT, {}, TWO),
    "litserve": Row("litserve", "litserve_app.py", "plain", PREDICT, WAIT_1MS, TWO),
    "litserve_nowait": Row("litserve", "litserve_app.py", "plain", PREDICT, {"BATCH_WAIT_S": "0"}, TWO),
    "litserve_zmq": Row("litserve", "litserve_app.py", "plain", PREDICT, {**WAIT_1MS, "FAST_QUEUE": "1"}, TWO),
    "bentoml": Row("bentoml", "bentoml", "batch1", PREDICT, {}, TWO),
    "bentoml2": Row("bentoml2", "bentoml", "batch1", PREDICT, {}, TWO),
    "mlserver": Row("mlserver", "mlserver_start.py", "v2", V2, WAIT_1MS, TWO),
    "mlserver2": Row("mlserver2", "mlserver_start.py", "v2", V2, WAIT_1MS, TWO),
    "mlserver_nobatch": Row("mlserver", "mlserver_start.py", "v2", V2, {"MAX_BATCH": "0"}, TWO),
    "rayserve": Row("ray", "ray_app.py", "plain", PREDICT, RAY_WAIT, TWO),
    "rayserve_ha": Row("ray", "ray_app.py", "plain", PREDICT, {**RAY_WAIT, "RAY_SERVE_ENABLE_HA_PROXY": "1"}, TWO),
    "pytriton": Row("pytriton", "pytriton_app.py", "v2bin", V2, {}, TWO),
    "triton_json": Row("pytriton", "triton_start.py", "v2", V2, {"INPUT": "BYTES"}, TWO),
    "triton_bin": Row("pytriton", "triton_start.py", "v2bin", V2, {}, TWO),
}


def pelton(kind, path, env_two):
    return Row("pelton", "pelton_start.py", kind, path, {}, env_two, prepare=True, ready="/v2/health/ready")


for _name, _kind, _path in (
    ("pelton", "plain", "/predict/m"),
    ("pelton_v2", "v2array", V2),
    ("pelton_v2bin", "v2bin", V2),
):
    ROWS[_name] = pelton(_kind, _path, TWO_SLOTS)
    ROWS[f"{_name}_workers"] = pelton(_kind, _path, TWO)


def prototype(front, mode, kind="plain", path=PREDICT, workers=2, **env):
    return Row("floor", "prototype.py", kind, path, {"FRONT": front, "MODE": mode, **env}, {"WORKERS": str(workers)})


for _front in ("bare", "fast", "rsgi", "asgi", "uvicorn"):
    ROWS[f"p_{_front}_inline"] = prototype(_front, "inline")
    ROWS[f"p_{_front}_thread"] = prototype(_front, "thread", workers=1)
ROWS |= {
    "p_bare_nobatch": prototype("bare", "inline", MAX_BATCH="1"),
    "p_bare_tick1ms": prototype("bare", "inline", WAIT_S="0.001"),
    "p_bare_maxb8": prototype("bare", "inline", MAX_BATCH="8"),
    "p_bare_maxb128": prototype("bare", "inline", MAX_BATCH="128"),
    "p_bare_inline_v2": prototype("bare", "inline", "v2", V2, BODY="v2"),
    "p_bare_rawbin": prototype("bare", "inline", "rawbin", BODY="bin"),
}

for _front in ("bare", "fast", "rsgi", "asgi", "uvicorn", "robyn", "blacksheep"):  # HTTP floor, no model
    ROWS[f"e_{_front}"] = Row("floor", "echo.py", "plain", PREDICT, {"FRONT": _front}, TWO)
for _front in ("bare", "rsgi"):
    ROWS[f"e_{_front}_orjson"] = Row("floor", "echo.py", "plain", PREDICT, {"FRONT": _front, "DECODER": "orjson"})

NAMES = {  # as report_tables.py prints them; others appear under their key
    "fastapi": "FastAPI+uvicorn naive (def)",
    "fastapi_async": "FastAPI async def, ORT inline",
    "litserve": "LitServe (batch 32, 1 ms)",
    "litserve_zmq": "LitServe fast_queue (zmq)",
    "bentoml": "BentoML adaptive (pip default: h11+asyncio)",
    "bentoml2": "BentoML + httptools/uvloop installed",
    "mlserver": "MLServer adaptive 32/1 ms",
    "mlserver2": "MLServer adaptive + httptools, uvloop 0.21",
    "mlserver_nobatch": "MLServer no batching",
    "rayserve": "Ray Serve serve.batch (THROUGHPUT_OPTIMIZED)",
    "rayserve_ha": "Ray Serve + HAProxy",
    "pytriton": "nvidia-pytriton",
    "triton_json": "Triton + python backend (ORT), JSON",
    "triton_bin": "Triton + python backend (ORT), binary",
    "pelton": "Pelton, plain JSON",
    "pelton_workers": "Pelton --workers 2, plain JSON",
    "pelton_v2": "Pelton, OIP v2 JSON",
    "pelton_v2_workers": "Pelton --workers 2, OIP v2 JSON",
    "pelton_v2bin": "Pelton, OIP v2 binary",
    "pelton_v2bin_workers": "Pelton --workers 2, OIP v2 binary",
}
