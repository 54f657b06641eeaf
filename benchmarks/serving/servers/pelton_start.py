"""`pelton add` of models/T.onnx or V.onnx as `m`, then `pelton serve` with everything on that is on by default.

usage: pelton_start.py prepare     makes a fresh home folder with the model: before the clock of the cold start runs
       pelton_start.py             becomes the server
SLOTS: batches that run at the same time in one process. WORKERS: processes. P99_MS: another latency target.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

PEERBENCH_HOME = Path(os.environ.get("PEERBENCH_HOME", "~/.cache/pelton-peerbench")).expanduser()
MODEL, PORT = os.environ["MODEL"], os.environ["PORT"]
HOME = PEERBENCH_HOME / "logs" / f"pelton_{MODEL}_{PORT}"
PELTON = [sys.executable, "-m", "pelton"]


def prepare():
    shutil.rmtree(HOME, ignore_errors=True)
    source = PEERBENCH_HOME / "models" / f"{MODEL}.onnx"
    target = ["--p99-ms", os.environ["P99_MS"]] if "P99_MS" in os.environ else []
    command = [*PELTON, "add", str(source), "--name", "m", "--home", str(HOME), *target]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def serve():
    slots, workers = os.environ.get("SLOTS", "1"), os.environ.get("WORKERS", "1")
    os.execv(
        sys.executable,
        [*PELTON, "serve", "--home", str(HOME), "--port", PORT, "--slots", slots, "--workers", workers],
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["prepare"]:
        prepare()
    else:
        serve()
