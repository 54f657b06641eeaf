"""A real `pelton serve` under test: its own home folder, its own processes, looked at from outside through /proc."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "serving"))

import payloads  # noqa: E402

import bench  # noqa: E402

MODELS = bench.HOME / "models"
PELTON = [sys.executable, "-m", "pelton"]
START_S = 30
LISTENING = re.compile(r"listening on https?://[^ ]+:(\d+)")


def environment():
    """The caller's, without settings of Pelton: a benchmark must not depend on who runs it."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PELTON_")}
    return {**kept, "OMP_NUM_THREADS": "1"}


def peer_model(name):
    """models/T.onnx or V.onnx of the peer benchmark."""
    path = MODELS / f"{name}.onnx"
    if not path.exists():
        sys.exit(
            f"{path} is missing: run benchmarks/serving/install.sh floor model, then make_models.py and make_ref.py"
        )
    return path


def reference(name):
    """The right answers to payloads.item(name, 0..63)."""
    peer_model(name)
    return json.loads((MODELS / "ref.json").read_text())[name]


def add(home, source, name, *options):
    """`pelton add`."""
    command = [*PELTON, "add", str(source), "--name", name, "--home", str(home), *options]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")


@contextlib.contextmanager
def home_with(*models):
    """A temporary home with models, each (source, name, *options of `pelton add`)."""
    with tempfile.TemporaryDirectory(prefix="pelton-bench-") as folder:
        for source, name, *options in models:
            add(folder, source, name, *options)
        yield folder


class Live:
    """`with Live(home, "--workers", "2") as server`: started, ready, ended. `core`: pinned there; None: not pinned."""

    def __init__(self, home, *options, core=0, prefix=()):
        pinned = [] if core is None else ["taskset", "-c", str(core)]
        self.command = [*pinned, *prefix, *PELTON, "serve", "--home", str(home), "--port", "0", *options]
        self.host, self.port = "127.0.0.1", 0

    def __enter__(self):
        self.log = tempfile.NamedTemporaryFile("w+", prefix="pelton-bench-", suffix=".log")
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            self.command, env=environment(), stdout=self.log, stderr=self.log, preexec_fn=bench.raise_priority
        )
        try:
            self.port = self._until(self._listening)
            self._until(self._ready)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        pids = self.pids()
        for number, seconds in ((signal.SIGINT, 5), (signal.SIGKILL, 5)):
            for pid in pids if number == signal.SIGKILL else [self.process.pid]:
                with contextlib.suppress(OSError):
                    os.kill(pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
                break
        self.log.close()

    def _until(self, found):
        while not (value := found()):
            if self.process.poll() is not None or time.perf_counter() - self.started > START_S:
                raise RuntimeError(f"the server did not start: {self.text()[-800:]}")
            time.sleep(0.003)
        return value

    def text(self):
        """Its log so far."""
        return Path(self.log.name).read_text()

    def _listening(self):
        match = LISTENING.search(self.text())
        return int(match[1]) if match else 0

    def _ready(self):
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.ask("GET", "/v2/health/ready")[0] == 200

    def ask(self, method, path, body=None, headers=None, timeout=30):
        """(status, headers with lower-case names, body) over a connection of its own."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        finally:
            connection.close()

    def pids(self):
        return bench.server_pids(self.process.pid, "none")

    def cpu(self):
        """CPU seconds of all its processes."""
        return bench.usage(self.pids())[0]

    def rss_mb(self):
        return bench.usage(self.pids())[1]

    def peak_mb(self):
        return bench.usage(self.pids())[2]


def on_core(core):
    """The load gets a core of its own, where there is one, and the priority that the server has."""
    with contextlib.suppress(OSError, ValueError):
        os.sched_setaffinity(0, {core})
    if os.getsid(0) == os.getpid():  # started with setsid, as run_all.sh does: only then is the autogroup ours
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text("-20")
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)


__all__ = [
    "PELTON",
    "Live",
    "add",
    "bench",
    "environment",
    "home_with",
    "on_core",
    "payloads",
    "peer_model",
    "reference",
]
