"""The tritonserver binary of the nvidia-pytriton wheel with its python backend: no pytriton proxy in between.

Lays out a model repository and a copy of the backends (with the stub for this Python), then becomes tritonserver.
"""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import common

SITE = Path(sysconfig.get_paths()["purelib"])
SERVERS = Path(__file__).resolve().parent
TRITON = SITE / "pytriton" / "tritonserver"

repository = common.HOME / "logs" / f"triton_{common.MODEL}_{common.PORT}"
(repository / "m" / "1").mkdir(parents=True, exist_ok=True)
dims, dtype, classes = ("30", "TYPE_FP32", 2) if common.MODEL == "T" else ("96, 96, 3", "TYPE_UINT8", 10)
if common.MODEL == "V" and os.environ.get("INPUT") == "BYTES":  # JSON: base64 text, as the JSON peers get it
    dims, dtype = "1", "TYPE_STRING"
(repository / "m" / "config.pbtxt").write_text(f"""
name: "m"
backend: "python"
max_batch_size: {common.MAX_BATCH}
input [{{ name: "x" data_type: {dtype} dims: [ {dims} ] }}]
output [{{ name: "prob" data_type: TYPE_FP32 dims: [ {classes} ] }}]
dynamic_batching {{ max_queue_delay_microseconds: {os.environ.get("QUEUE_DELAY_US", "0")} }}
instance_group [{{ kind: KIND_CPU count: {common.WORKERS} }}]
""")
shutil.copy(SERVERS / "triton_model.py", repository / "m" / "1" / "model.py")

backends = repository.with_name(repository.name + "_backends")
shutil.rmtree(backends, ignore_errors=True)
shutil.copytree(TRITON / "backends", backends)
stub = backends / "python" / "triton_python_backend_stub"
shutil.copy(TRITON / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}" / stub.name, stub)
stub.chmod(0o755)

# The stub must load the libpython of this interpreter, not the system's (another patch version crashes it).
os.environ["LD_LIBRARY_PATH"] = ":".join(
    [str(SITE / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH", "")]
)
os.environ["PYTHONPATH"] = f"{SITE}:{SERVERS}"
os.execv(
    TRITON / "bin" / "tritonserver",
    [
        "tritonserver",
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        f"--http-port={common.PORT}",
        "--http-address=127.0.0.1",
        "--allow-grpc=false",
        "--allow-metrics=false",
        "--log-info=false",
        f"--http-thread-count={os.environ.get('HTTP_THREADS', '2')}",
    ],
)
