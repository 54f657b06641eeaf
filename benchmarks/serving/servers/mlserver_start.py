"""Writes MLServer's settings folder, then becomes `mlserver start`. MAX_BATCH=0: no adaptive batching."""

import json
import os
import sys
from pathlib import Path

HOME = Path(os.environ.get("PEERBENCH_HOME", "~/.cache/pelton-peerbench")).expanduser()
model, port, workers = os.environ["MODEL"], int(os.environ["PORT"]), int(os.environ.get("WORKERS", "1"))
folder = HOME / "logs" / f"mlserver_{model}_{port}"
folder.mkdir(parents=True, exist_ok=True)
(folder / "settings.json").write_text(
    json.dumps(
        {
            "host": "127.0.0.1",
            "http_port": port,
            "grpc_port": port + 1,
            "metrics_port": port + 2,
            "metrics_endpoint": None,
            "metrics_dir": str(folder),
            "debug": False,
            "gzip_enabled": False,
            "parallel_workers": 0 if workers == 1 else workers,
        }
    )
)
(folder / "model-settings.json").write_text(
    json.dumps(
        {
            "name": "m",
            "implementation": "mlserver_runtime.Runtime",
            "max_batch_size": int(os.environ.get("MAX_BATCH", "32")),
            "max_batch_time": float(os.environ.get("BATCH_WAIT_S", "0.001")),
        }
    )
)

os.environ["PYTHONPATH"] = os.path.dirname(os.path.abspath(__file__))
os.environ["PATH"] = os.path.dirname(sys.executable) + ":" + os.environ["PATH"]
os.execv(sys.executable, [sys.executable, "-c", "from mlserver.cli import main; main()", "start", str(folder)])
