#!/usr/bin/env python3
"""Measures model servers under wrk, one row of rows.py after the other, and appends one JSON line per sample.

usage: bench.py --rows e_bare,fastapi --model T,V --cores 1 --conc 1,32,128 --secs 10 --reps 3 --rounds 1 --out FILE
--cores 1: the server and all its children on core 0, wrk (one thread) on core 1. --cores 2: nothing pinned.
--rounds 3 --reps 1 alternates: every row once, then every row again. See README.md.
"""

import argparse
import contextlib
import http.client
import json
import os
import signal
import statistics
import subprocess
import threading
import time
from pathlib import Path

import payloads
from rows import ROWS

HOME = Path(os.environ.get("PEERBENCH_HOME", "~/.cache/pelton-peerbench")).expanduser().absolute()
SERVERS = Path(__file__).resolve().parent / "servers"
SERVER_CORE, WRK_CORE = "0", "1"
START_TIMEOUT_S = 150
CHECKED = 48  # distinct concurrent requests whose answers are compared with the reference
TOLERANCE = {"T": 1e-4, "V": 5e-5}
NOISY = 0.16  # cores used by others above which --retry repeats a sample
TICKS = os.sysconf("SC_CLK_TCK")
WRK_ERRORS = ("e_conn", "e_read", "e_write", "e_status", "e_timeout")


# ---- processes


def raise_priority():
    """Own session with autogroup nice -20, and nice -20: other programs cannot take our cores. Needs root."""
    try:
        os.setsid()
        Path("/proc/self/autogroup").write_text("-20")
    except OSError:
        pass
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)


def stat_fields(pid):
    """/proc/PID/stat after the command name: [0] state, [1] parent, [11] user ticks, [12] system ticks."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def all_pids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def server_pids(root, tag):
    """The server's process, its descendants, and daemons that left the tree but kept PEERBENCH_TAG in their environment."""
    children, tagged = {}, set()
    for pid in all_pids():
        try:
            children.setdefault(int(stat_fields(pid)[1]), []).append(pid)
            if f"PEERBENCH_TAG={tag}".encode() in Path(f"/proc/{pid}/environ").read_bytes():
                tagged.add(pid)
        except OSError:
            pass
    found, todo = set(), [root]
    while todo:
        pid = todo.pop()
        found.add(pid)
        todo += children.get(pid, [])
    return (found | tagged) - {os.getpid()}


def usage(pids):
    """CPU seconds, resident MB, high-water MB, summed over processes."""
    cpu = rss = high = 0
    for pid in pids:
        try:
            fields = stat_fields(pid)
            status = dict(
                line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
            )
        except OSError:
            continue
        cpu += int(fields[11]) + int(fields[12])
        rss += int(status.get("VmRSS", "0 kB").split()[0])
        high += int(status.get("VmHWM", "0 kB").split()[0])
    return cpu / TICKS, rss / 1024, high / 1024


def machine_busy():
    """CPU seconds that the whole machine has worked since boot."""
    ticks = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / TICKS


def running(pid):
    try:
        return stat_fields(pid)[0] != "Z"
    except OSError:
        return False


class Server:
    """One started server of a row: `with Server(...) as server`. Leaving the block ends all of its processes."""

    def __init__(self, name, model, port, cores=1, extra_env=None):
        self.row, self.model, self.port = ROWS[name], model, port
        self.tag = f"{name}_{model}_{port}_{time.time():.0f}"
        self.settings = {**self.row.env, **(self.row.env_two if cores == 2 else {}), **(extra_env or {})}
        bin_dir = HOME / "venvs" / self.row.venv / "bin"
        self.env = {
            "BENTOML_DO_NOT_TRACK": "True",
            **os.environ,
            "PEERBENCH_HOME": str(HOME),
            "PEERBENCH_TAG": self.tag,
            "BENTOML_HOME": str(HOME / "logs" / "bento"),
            "MODEL": model,
            "PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(SERVERS), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "PATH": f"{bin_dir}:{os.environ['PATH']}",
            **self.settings,
        }
        if self.row.script == "bentoml":
            options = ["--host", "127.0.0.1", "--port", str(port), "-q"]
            self.command = [bin_dir / "bentoml", "serve", "bento_app:Service", *options]
        else:
            self.command = [bin_dir / "python", SERVERS / self.row.script]
        if cores == 1:
            self.command = ["taskset", "-c", SERVER_CORE, *self.command]
        self.log = HOME / "logs" / f"server_{name}_{model}_{cores}.log"

    def __enter__(self):
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "w") as log:
            if self.row.prepare:
                subprocess.run([*self.command, "prepare"], env=self.env, stdout=log, stderr=log, check=True)
            self.started = time.perf_counter()
            self.process = subprocess.Popen(
                self.command, cwd=SERVERS, env=self.env, stdout=log, stderr=log, preexec_fn=raise_priority
            )
        return self

    def pids(self):
        return server_pids(self.process.pid, self.tag)

    def post(self, i=0, timeout=20):
        body, headers = payloads.encode(self.model, self.row.kind, i)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("POST", self.row.path, body, headers)
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"{response.status} {answer[:300]}")
        return answer

    def wait_first_answer(self):
        """Seconds from the start of the process to the first answered request."""
        while True:
            try:
                self.post(timeout=5)
                return time.perf_counter() - self.started
            except Exception as error:
                if self.process.poll() is not None or time.perf_counter() - self.started > START_TIMEOUT_S:
                    raise RuntimeError(f"did not start ({error}), see {self.log}") from error
                time.sleep(0.02)

    def wait_ready(self):
        """The first answer came from one worker; the others may still load."""
        while time.perf_counter() - self.started < START_TIMEOUT_S:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            try:
                connection.request("GET", self.row.ready)
                if connection.getresponse().status == 200:
                    return
            except (OSError, http.client.HTTPException):
                pass
            finally:
                connection.close()
            time.sleep(0.02)
        raise RuntimeError(f"not ready, see {self.log}")

    def __exit__(self, *_):
        pids = self.pids()
        for sig in (signal.SIGTERM, signal.SIGKILL):
            for pid in pids:
                with contextlib.suppress(OSError):
                    os.kill(pid, sig)
            for _ in range(40):
                self.process.poll()
                if not any(running(pid) for pid in pids):
                    break
                time.sleep(0.05)
            pids |= self.pids()
        self.process.wait()


# ---- wrk

LUA = r"""wrk.method = "POST"
%s
local bodies = {%s}
local requests, i = {}, 0
init = function(args) for k = 1, #bodies do requests[k] = wrk.format("POST", nil, nil, bodies[k]) end end
request = function() i = i %% #requests + 1; return requests[i] end
done = function(summary, latency, rates)
  local e = summary.errors
  io.write(string.format('JSON{"req":%%d,"us":%%d,"p50":%%.1f,"p99":%%.1f,"max":%%.1f,"e_conn":%%d,"e_read":%%d,"e_write":%%d,"e_status":%%d,"e_timeout":%%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency.max, e.connect, e.read, e.write, e.status, e.timeout))
end
"""


def write_lua(model, kind):
    """wrk's script: the distinct bodies round-robin, and a summary as JSON (times in microseconds)."""
    distinct = payloads.DISTINCT[model]
    path = HOME / "lua" / f"{kind}_{model}_{distinct}.lua"
    if path.exists() and path.stat().st_mtime > Path(payloads.__file__).stat().st_mtime:
        return path
    encoded = [payloads.encode(model, kind, i) for i in range(distinct)]
    headers = "\n".join(f'wrk.headers["{key}"] = "{value}"' for key, value in encoded[0][1].items())
    bodies = ",".join('"' + "".join(f"\\{byte:03d}" for byte in body) + '"' for body, _ in encoded)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(LUA % (headers, bodies))
    return path


def wrk_command(server, lua, connections, seconds, pinned):
    pin = ["taskset", "-c", WRK_CORE] if pinned else []
    options = ["-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(lua)]
    return [*pin, "wrk", *options, f"http://127.0.0.1:{server.port}{server.row.path}"]


def wrk(server, lua, connections, seconds, pinned):
    before = os.times()
    output = subprocess.run(
        wrk_command(server, lua, connections, seconds, pinned),
        capture_output=True,
        text=True,
        preexec_fn=raise_priority,
    ).stdout
    after = os.times()
    result = json.loads(output[output.index("JSON") + 4 :].splitlines()[0])
    result["wrk_cpu_s"] = after.children_user + after.children_system - before.children_user - before.children_system
    return result


# ---- one row


def wrong_answers(server, model, reference):
    """Sends distinct requests at once; counts answers that are missing or belong to another request."""
    wrong = []

    def check(i):
        try:
            answer = payloads.decode_answer(server.post(i))
            good = (
                len(answer) == len(reference[i])
                and max(abs(x - y) for x, y in zip(answer, reference[i], strict=True)) < TOLERANCE[model]
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, the row is no result
            good = False
            print("  check:", repr(error)[:200])
        if not good:
            wrong.append(i)

    threads = [threading.Thread(target=check, args=(i,)) for i in range(CHECKED)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(wrong)


def sample(server, lua, connections, seconds, pinned):
    """One run of wrk, with the CPU used meanwhile by the server, by wrk and by everybody else."""
    cpu0, busy0, t0 = usage(server.pids())[0], machine_busy(), time.perf_counter()
    result = wrk(server, lua, connections, seconds, pinned)
    pids = server.pids()
    cpu1, rss, high = usage(pids)
    wrk_cpu_s = result.pop("wrk_cpu_s")
    wall = result["us"] / 1e6
    return result | {
        "other": max(0.0, (machine_busy() - busy0 - (cpu1 - cpu0) - wrk_cpu_s) / (time.perf_counter() - t0)),
        "rps": result["req"] / wall,
        "srv_cpu": (cpu1 - cpu0) / wall,
        "wrk_cpu": wrk_cpu_s / wall,
        "rss": rss,
        "hwm": high,
        "nproc": len(pids),
    }


def quiet_sample(retries, *args):
    """The sample least disturbed by other programs, out of up to `retries`."""
    best = None
    for _ in range(retries):
        one = sample(*args)
        if best is None or one["other"] < best["other"]:
            best = one
        if best["other"] < NOISY:
            break
        time.sleep(0.5)
    return best


def print_line(name, model, cores, connections, samples):
    def median(key):
        return statistics.median(s[key] for s in samples)

    rates = [s["rps"] for s in samples]
    errors = sum(s[key] for s in samples for key in WRK_ERRORS)
    print(
        f"{name:18s} {model} cores={cores} c={connections:<4d} rps={median('rps'):9.0f} [{min(rates):.0f}-{max(rates):.0f}] "
        f"p50={median('p50') / 1e3:8.2f}ms p99={median('p99') / 1e3:8.2f}ms err={errors} bad={samples[0]['bad']} "
        f"srvcpu={median('srv_cpu'):.2f} wrkcpu={median('wrk_cpu'):.2f} hwm={median('hwm'):.0f}MB nproc={median('nproc'):.0f} "
        f"cold={samples[0]['cold']:.2f}s other={max(s['other'] for s in samples):.2f}",
        flush=True,
    )


def measure(name, model, args, port):
    with Server(name, model, port, args.cores, args.env) as server:
        cold = server.wait_first_answer()
        if server.row.ready:
            server.wait_ready()
        if name.startswith("e_"):
            bad = 0
        else:
            reference = json.loads((HOME / "models" / "ref.json").read_text())[model]
            bad = wrong_answers(server, model, reference)
        lua, pinned = write_lua(model, server.row.kind), args.cores == 1
        wrk(server, lua, 32, 2, pinned)
        for connections in args.conc:
            wrk(server, lua, connections, 1, pinned)
            samples = []
            for rep in range(args.reps):
                one = quiet_sample(args.retry, server, lua, connections, args.secs, pinned)
                one |= {"row": name, "model": model, "cores": args.cores, "c": connections, "rep": rep}
                one |= {"cold": cold, "bad": bad, "env": server.settings, "distinct": args.distinct, "t": time.time()}
                samples.append(one)
                with open(args.out, "a") as out:
                    out.write(json.dumps(one) + "\n")
            print_line(name, model, args.cores, connections, samples)


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    port = int(os.environ.get("PEERBENCH_PORT", "18100"))
    option = parser.add_argument
    option("--rows", type=lambda text: text.split(","), required=True, help="keys of ROWS in rows.py")
    option("--model", type=lambda text: text.split(","), default=["T", "V"])
    option("--cores", type=int, choices=(1, 2), default=1)
    option("--conc", type=lambda text: [int(x) for x in text.split(",")], default=[1, 32, 128], help="connections")
    option("--secs", type=int, default=4, help="length of a sample")
    option("--reps", type=int, default=3, help="samples per server start and concurrency")
    option("--rounds", type=int, default=1, help="times that the whole list of rows is run")
    option("--retry", type=int, default=1, help=f"tries per sample while others use more than {NOISY} cores")
    option("--distinct", type=int, default=payloads.DISTINCT["T"], help="different bodies of model T (%(default)s)")
    option("--out", type=Path, default=HOME / "results" / "main.jsonl")
    option("--port", type=int, default=port, help="first port; each server start takes the next ten")
    option("--env", type=settings_of, default={}, help="settings for the server: A=1,B=2")
    return parser


def settings_of(text):
    return dict(part.split("=", 1) for part in text.split(","))


def run_rows(args):
    """All rows, `args.rounds` times in turn; the samples go to `args.out`."""
    payloads.DISTINCT["T"] = args.distinct
    args.out.parent.mkdir(parents=True, exist_ok=True)
    port = args.port
    for _ in range(args.rounds):
        for name in args.rows:
            if args.cores == 1 and ROWS[name].two_only:
                print("--", name, "differs only with --cores 2", flush=True)
                continue
            for model in ["T"] if name.startswith("e_") else args.model:
                try:
                    measure(name, model, args, port)
                except Exception as error:  # noqa: BLE001 - one server that fails must not end the others' run
                    print("!!", name, model, repr(error)[:300], flush=True)
                port += 10


def main():
    parser = make_parser()
    args = parser.parse_args()
    unknown = [name for name in args.rows if name not in ROWS]
    if unknown:
        parser.error(f"unknown rows {unknown}; known: {', '.join(ROWS)}")
    run_rows(args)


if __name__ == "__main__":
    main()
