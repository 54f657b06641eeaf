"""How fast it starts, how much it weighs: start to first answer, peak memory, `pelton --help`, packages of an install.

usage: start.py [--runs 5] [--skip-install] [--demo-home DIR]
Start: `pelton serve` of the four demo models, from the start of the process to the first right answer of the table
model, and until all are ready. Peak memory: with model T after calls of 32 callers. `--help`: CPU time, user and system.
Install: a wheel of this checkout in a fresh virtual environment with nothing but the default dependencies.
"""

import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import results
from live import PELTON, Live, add, bench, environment, home_with, on_core, payloads, peer_model

from pelton.bench.load import Pool, closed_loop
from pelton.bench.load import run as run_loop
from pelton.bench.plan import Target, encode_requests
from pelton.registry import Registry

DEMO_MODEL = "phishing"
CALLERS = 32
HELP_RUNS = 7


class Timed(Live):
    """Notes when the first call was answered; the port is chosen beforehand, so that no log is waited for."""

    def __init__(self, home, body):
        super().__init__(home, "--workers", "1", core=None)
        self.body, self.first_answer = body, 0.0

    def _ready(self):
        try:
            if not self.first_answer and self.ask("POST", f"/predict/{DEMO_MODEL}", self.body)[0] == 200:
                self.first_answer = time.perf_counter() - self.started
        except (OSError, http.client.HTTPException):
            return False
        return bool(self.first_answer) and super()._ready()


def demo_home(folder):
    """The home of the demo; made where it is not there yet."""
    command = [sys.executable, results.ROOT / "demo" / "setup.py", str(folder)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"the demo's models cannot all be had, starting with {DEMO_MODEL} only: {done.stdout[-300:]}")
        if DEMO_MODEL not in Registry(Path(folder)).models():
            add(folder, results.ROOT / "demo" / "models" / DEMO_MODEL, DEMO_MODEL)
    return folder


def starts(folder, runs):
    home = demo_home(folder)
    body = example(home)
    first, ready = [], []
    for _ in range(runs):
        with Timed(home, body) as server:
            first.append(server.first_answer)
            ready.append(time.perf_counter() - server.started)
    models = len(Registry(Path(home)).models())
    return [
        figure(f"start to first answer, {models} demo models, s", results.quantile(first, 0.5), first),
        figure("start to all models ready, s", results.quantile(ready, 0.5), ready),
    ]


def example(home):
    """A body for the table model: its recorded example, or the middle of every column."""
    import tomllib

    manifest = tomllib.loads((results.ROOT / "demo" / "models" / DEMO_MODEL / "pelton.toml").read_text())
    if "example" in manifest:
        return json.dumps(manifest["example"])
    columns = next(step["columns"] for step in manifest["preprocess"] if step["kind"] == "table")
    return json.dumps({column["name"]: 0.5 for column in columns})


async def load(target, seconds):
    pool = Pool(target.host, target.port, encode_requests(target), limit=CALLERS, timeout=30)
    try:
        window = await closed_loop(pool, CALLERS, seconds, 0)
        return len(window.samples)
    finally:
        await pool.close()


def memory(seconds):
    bodies = tuple(payloads.encode("T", "plain", i)[0] for i in range(64))
    with home_with((peer_model("T"), "m")) as home, Live(home, "--slots", "1") as server:
        idle = server.rss_mb()
        target = Target(host=server.host, port=server.port, path="/predict/m", bodies=bodies, p99_ms=1000)
        calls = run_loop(load(target, seconds))
        peak = server.peak_mb()
    return [
        figure("memory with model T before the first call, MB", idle),
        figure(f"peak memory with model T after {calls:,} calls, MB", peak),
    ]


def help_cpu(runs):
    seconds = []
    for _ in range(runs):
        process = subprocess.Popen([*PELTON, "--help"], env=environment(), stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds.append(usage.ru_utime + usage.ru_stime)
    return figure("CPU of `pelton --help`, best, ms", min(seconds) * 1e3, [s * 1e3 for s in seconds])


def install():
    """Packages and size of a default install, without pip."""
    with tempfile.TemporaryDirectory(prefix="pelton-install-") as folder:
        wheels, target = Path(folder) / "wheels", Path(folder) / "venv"
        pip = [sys.executable, "-m", "pip"]
        subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", wheels, results.ROOT], check=True)
        venv.create(target, with_pip=False)
        python = target / "bin" / "python"
        wheel = next(wheels.glob("pelton-*.whl"))
        clean = {key: value for key, value in environment().items() if key != "PYTHONPATH"}
        subprocess.run([*pip, "--python", python, "install", "-q", "--no-compile", wheel], check=True, env=clean)
        packages = [path.name.partition("-")[0] for path in target.glob("lib/*/site-packages/*.dist-info")]
        size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file() and not path.is_symlink())
        subprocess.run([target / "bin" / "pelton", "--version"], check=True, env=clean, stdout=subprocess.DEVNULL)
        print("installed:", ", ".join(sorted(packages)))
        return [
            figure("packages of a default install", len(packages)),
            figure("size of a default install, MB", size / 2**20),
            figure("size of the wheel, MB", wheel.stat().st_size / 2**20),
        ]


def figure(what, value, samples=()):
    spread = f"{results.cell(min(samples))}-{results.cell(max(samples))}" if samples else None
    return {"what": what, "value": value, "min-max": spread, "samples": len(samples) or 1}


def main():
    parser = results.arguments(__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--secs", type=float, default=5, help="of load before the peak memory is read (%(default)s)")
    parser.add_argument("--skip-install", action="store_true", help="no fresh environment, no downloads of packages")
    parser.add_argument("--demo-home", type=Path, default=results.DEFAULT_OUT.with_name("demo-home"))
    args = parser.parse_args()
    bench.raise_priority()
    rows = [help_cpu(HELP_RUNS), *starts(args.demo_home, args.runs)]
    on_core(1)
    rows += memory(args.secs)
    if not args.skip_install:
        rows += install()
    results.report(args.out, "start", "Start and weight", rows)


if __name__ == "__main__":
    sys.exit(main())
