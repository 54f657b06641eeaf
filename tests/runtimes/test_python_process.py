"""What happens to the server, its callers and the machine when the process of a model misbehaves."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pelton.errors import InvalidInput, ModelFailed, NotReady, PackageInvalid
from pelton.runtimes import contract
from pelton.runtimes.contract import RuntimeOptions

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def model_source(predict: str, setup: str = "pass", before: str = "") -> str:
    """Echoes unless `predict` does something else first."""
    return f"""
{before}
import os, signal, sys, time
import numpy as np

class Model:
    inputs = {{"x": "FP32[-1]"}}
    outputs = {{"y": "FP32[-1]"}}
    batch = True

    def setup(self, folder):
        self.folder = folder
{textwrap.indent(setup, "        ")}

    def predict(self, x):
{textwrap.indent(predict, "        ")}
        return x
"""


def row(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


def running(pid: int) -> bool:
    """Zombies do not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pid: int) -> bool:
    """Whether a process that was killed has ended; the kernel needs a moment on a busy machine."""
    end = time.monotonic() + 10.0
    while running(pid) and time.monotonic() < end:
        os.sched_yield()
    return not running(pid)


@pytest.mark.parametrize(
    ("death", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL.*out of memory"),
        ("sys.exit(7)", "exit code 7"),
        ("os._exit(9)", "exit code 9"),
        ("os.closerange(3, 1000)", "exit code 1"),
        (
            "import glob; [os.write(int(os.path.basename(n)), b'x' * 100) for n in glob.glob('/proc/self/fd/*') if os.path.islink(n) and os.readlink(n).startswith('socket:')]; time.sleep(60)",
            "killed by SIGKILL",
        ),
    ],
)
def test_a_death_fails_its_call_says_how_and_the_next_call_is_answered(serve, death, message):
    model = serve(model_source(f"if x[0, 0] == 13:\n    {death}"))
    assert model.run([row(1)])[0].tolist() == [[1]]
    with pytest.raises(ModelFailed, match=message):
        model.run([row(13)])
    assert model.run([row(2)])[0].tolist() == [[2]]


def test_a_process_killed_while_idle_is_replaced_without_a_failed_call(serve):
    model = serve(model_source("pass"))
    (pid,) = model.pids
    os.kill(pid, signal.SIGKILL)
    assert model.run([row(2)])[0].tolist() == [[2]]
    assert model.pids != [pid]


def test_a_death_does_not_touch_the_other_process(serve):
    model = serve(model_source("if x[0, 0] == 13:\n    os._exit(1)"), processes=2)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(model.run, [row(n)]) for n in range(40)]
        for n, answer in enumerate(answers):
            if n == 13:
                with pytest.raises(ModelFailed, match="exit code 1"):
                    answer.result()
            else:
                assert answer.result()[0].tolist() == [[n]]


def test_a_class_that_cannot_start_again_is_reported_as_not_ready(serve, package):
    made = package(
        model_source(
            "os._exit(1)",
            setup="if (folder / 'used').exists():\n    raise OSError('device lost')\n(folder / 'used').touch()",
        )
    )
    model = contract.load(made, RuntimeOptions(trust=True))
    try:
        with pytest.raises(ModelFailed, match="exit code 1"):
            model.run([row(1)])
        with pytest.raises(NotReady, match="OSError: device lost"):
            model.run([row(1)])
    finally:
        model.close()


def test_calls_wait_for_a_restart_no_longer_than_the_bound(serve):
    source = model_source(
        "os._exit(1)", setup="if (folder / 'used').exists():\n    time.sleep(60)\n(folder / 'used').touch()"
    )
    model = serve(source, restart_seconds=0.05)
    with pytest.raises(ModelFailed):
        model.run([row(1)])
    with pytest.raises(NotReady, match="starting again"):
        model.run([row(1)])


def test_a_predict_that_never_returns_is_ended(serve):
    model = serve(model_source("if x[0, 0] == 13:\n    time.sleep(60)"), predict_seconds=0.5)
    with pytest.raises(ModelFailed, match=r"no answer within 0\.5 s"):
        model.run([row(13)])
    assert model.run([row(1)])[0].tolist() == [[1]]


def test_a_setup_that_never_returns_is_an_invalid_package(serve):
    with pytest.raises(PackageInvalid, match=r"setup took longer than 0\.5 s"):
        serve(model_source("pass", setup="time.sleep(60)"), setup_seconds=0.5)


def test_a_slow_setup_is_waited_for(serve):
    model = serve(model_source("pass", setup="print('x' * 200_000)\ntime.sleep(0.2)"))
    assert model.run([row(1)])[0].tolist() == [[1]]


@pytest.mark.parametrize(
    ("death", "message"),
    [("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"), ("os._exit(4)", "exit code 4")],
)
def test_a_death_in_setup_is_an_invalid_package(serve, death, message):
    with pytest.raises(PackageInvalid, match=f"model 'm': its process ended in setup: {message}"):
        serve(model_source("pass", setup=death), processes=2)


def test_two_hundred_concurrent_runs_are_never_mixed_up(serve):
    model = serve(model_source("pass"), processes=2)

    def ask(n: int) -> bool:
        sent = np.full((1 + n % 5, 1 + n * 150), n, np.float32)  # both sides of the limit for shared memory
        (got,) = model.run([sent])
        return got.shape == sent.shape and bool((got == n).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(200)))


def test_what_users_print_reaches_the_log_and_never_the_channel(serve, caplog):
    caplog.set_level(logging.INFO)
    noise = "print('from predict', x[0, 0])\nos.write(1, b'raw \\xff bytes\\n')\nprint('bad', file=sys.stderr)"
    model = serve(model_source(noise, before="print('while importing')"))
    for n in range(3):
        assert model.run([row(n)])[0].tolist() == [[n]]
    model.close()
    for line in ("while importing", "from predict 2.0", "raw \\xff bytes", "bad"):
        assert f"[m] {line}" in caplog.text


def test_a_line_without_end_is_cut_not_collected(serve, caplog):
    caplog.set_level(logging.INFO)
    model = serve(model_source("os.write(1, b'z' * 50_000)"))
    model.run([row(1)])
    model.close()
    lines = [record.getMessage() for record in caplog.records if "zzz" in record.getMessage()]
    assert max(map(len, lines)) <= 8192 + 10
    assert sum(line.count("z") for line in lines) == 50_000


def test_standard_input_is_closed_to_users(serve):
    assert serve(model_source("assert sys.stdin.read() == ''")).run([row(1)])[0].tolist() == [[1]]


def test_twenty_megabytes_go_there_and_back(serve):
    model = serve(model_source("x += 1"))
    for start in (0, 1):
        sent = np.arange(start, start + 5_000_000, dtype=np.float32).reshape(2, -1)
        kept = sent.copy()
        (got,) = model.run([sent])
        np.testing.assert_array_equal(got, kept + 1)
        np.testing.assert_array_equal(sent, kept)


def test_bodies_beyond_what_is_kept_are_answered_too(serve):
    model = serve(model_source("pass"))
    for n in (20_000_000, 1_000_000, 20_000_000):
        sent = np.full((1, n), n, np.float32)
        assert (model.run([sent])[0] == n).all()


def test_inputs_that_a_class_keeps_are_never_overwritten(serve):
    source = model_source(
        "self.kept = getattr(self, 'kept', []) + [x]\nassert all((k == k[0, 0]).all() for k in self.kept)\nassert [k[0, 0] for k in self.kept] == list(range(len(self.kept)))"
    )
    model = serve(source)
    for n in range(6):
        (got,) = model.run([np.full((1, 300_000), n, np.float32)])
        assert (got == n).all()


def test_an_array_of_another_type_than_the_signature_is_refused(serve):
    with pytest.raises(InvalidInput, match="float64"):
        serve(model_source("pass")).run([np.zeros((1, 2))])


def test_arrays_that_are_not_contiguous_are_sent_right(serve):
    sent = np.arange(12, dtype=np.float32).reshape(3, 4).T
    np.testing.assert_array_equal(serve(model_source("pass")).run([sent])[0], sent)


def test_the_process_imports_neither_the_server_nor_onnxruntime(serve):
    heavy = "{'onnxruntime', 'starlette', 'uvloop', 'PIL', 'pelton.server', 'pelton.packages'}"
    model = serve(model_source(f"assert not {heavy} & set(sys.modules), sys.modules.keys() & {heavy}"))
    assert model.run([row(1)])[0].tolist() == [[1]]


def test_the_process_gets_the_servers_number_of_threads(package, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    made = package(model_source("assert os.environ['OMP_NUM_THREADS'] == '3'"))
    model = contract.load(made, RuntimeOptions(threads=3, trust=True))
    try:
        assert model.run([row(1)])[0].tolist() == [[1]]
    finally:
        model.close()


def test_sigterm_to_the_process_leaves_the_end_to_the_server(serve):
    model = serve(model_source("os.kill(os.getpid(), signal.SIGTERM)"))
    assert model.run([row(1)])[0].tolist() == [[1]]
    assert model.run([row(2)])[0].tolist() == [[2]]


@linux
def test_closing_ends_a_busy_process_its_helpers_and_its_call(serve, tmp_path):
    helper = f"import subprocess\nchild = subprocess.Popen(['sleep', '60'])\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\nos.mkfifo({str(tmp_path / 'fifo')!r})\nos.rename({str(tmp_path / 'fifo')!r}, {str(tmp_path / 'busy')!r})\nopen({str(tmp_path / 'busy')!r}).read()"
    model = serve(model_source(helper))
    (pid,) = model.pids
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(model.run, [row(1)])
        while not (tmp_path / "busy").exists():
            assert not call.done()
        with (tmp_path / "busy").open("w"):  # opens once predict reads: it is busy, and stays so
            model.close()
        with pytest.raises(ModelFailed, match="killed by SIGTERM"):
            call.result()
    assert gone(pid)
    assert gone(int((tmp_path / "pid").read_text()))
    with pytest.raises(NotReady, match="unloaded"):
        model.run([row(1)])


def test_the_end_is_orderly_when_idle(serve, tmp_path):
    model = serve(model_source("pass", before=f"import atexit\natexit.register(open, {str(tmp_path / 'bye')!r}, 'w')"))
    model.close()
    assert (tmp_path / "bye").exists()


@linux
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_killed_server_leaves_no_process_behind(package, tmp_path, busy):
    made = package(model_source("time.sleep(60)" if busy else "pass"))
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    made.file.write_text(
        made.file.read_text().replace("self.folder = folder", f"self.alive = open({str(fifo)!r}, 'w')")
    )
    server = f"""
import threading, numpy as np
from pathlib import Path
from pelton.packages import load
from pelton.runtimes import contract
model = contract.load(load(Path({str(made.folder)!r})), contract.RuntimeOptions(trust=True))
print(model.pids[0], flush=True)
model.run([np.zeros((1, 1), np.float32)])
threading.Event().wait()
"""
    process = subprocess.Popen([sys.executable, "-c", server], stdout=subprocess.PIPE, text=True)
    with fifo.open() as alive:  # ends when the last process that has it open is gone
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 0
        process.kill()
        process.wait()
        process.stdout.close()
        assert alive.read() == ""


@linux
@pytest.mark.timeout(180)
def test_fifty_lives_leave_no_process_no_file_and_no_thread(package):
    made = package(model_source("pass"), processes=2)

    def live() -> list[int]:
        model = contract.load(made, RuntimeOptions(trust=True))
        model.run([np.zeros((1, 100_000), np.float32)])
        pids = model.pids
        model.close()
        return pids

    live()
    files = sorted(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    pids = [pid for _ in range(25) for pid in live()]
    assert len(set(pids)) == 50
    assert sorted(os.listdir("/proc/self/fd")) == files
    assert threading.active_count() == threads
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@linux
def test_memory_of_the_server_stays_flat_over_large_calls(serve):
    model = serve(model_source("pass"))
    sent = np.ones((1, 500_000), np.float32)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for _ in range(20):
        model.run([sent])
    before = resident()
    for _ in range(300):
        model.run([sent])
    assert resident() - before < 20_000_000  # 300 leaked answers would be 600 MB
