"""Many connections at once while a slow model runs: when is the last one accepted, and when is it answered?

usage: accept.py [--connections 128] [--ms 20] [--secs 1]
Four callers keep a model busy that takes --ms a batch; then all connections are opened at once, each with a health
request. Accepted: when the kernel's queue of the listening socket (/proc/net/tcp) is empty again. The forms:
process    the class in a process of its own (the default)
thread     isolation = "thread": in the server's process
surprise   thread, and the calls before were fast, so that the server may run the model on its event loop; the first
           slow batch comes together with the connections
"""

import contextlib
import json
import multiprocessing
import select
import shutil
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

import results
from live import Live, home_with, on_core

HERE = Path(__file__).resolve().parent
EARLY = 4
LISTEN = "0A"  # state of a listening socket in /proc/net/tcp
HEALTH = b"GET /v2/health/live HTTP/1.1\r\nHost: bench\r\n\r\n"
LIMIT_S = 10
BOUND_MS = 50
FORK = multiprocessing.get_context("fork")


def waiting_connections(port):
    """Connections that the kernel has completed and the server has not accepted yet."""
    total = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=5)
        if fields[3] == LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
            total += int(fields[4].partition(":")[2], 16)
    return total


def keep_busy(server, ms):
    """In a process of its own, until it is ended: its Python must not delay the connections."""
    body = json.dumps({"x": [1000.0 + ms]})

    def caller():
        while True:
            with contextlib.suppress(OSError):
                server.ask("POST", "/predict/slow", body)

    for _ in range(EARLY):
        threading.Thread(target=caller).start()


def connect_all(server, count):
    """Seconds until all were connected and until all were accepted, the longest queue, seconds to each answer."""
    poll, sockets, answered, longest, accepted = select.epoll(), {}, [], 0, None
    made = [socket.socket() for _ in range(count)]
    start = time.perf_counter()
    for one in made:
        one.connect((server.host, server.port))
    connected = time.perf_counter() - start
    for one in made:
        one.sendall(HEALTH)
        sockets[one.fileno()] = one
        poll.register(one.fileno(), select.EPOLLIN)
    while (len(answered) < count or accepted is None) and time.perf_counter() - start < LIMIT_S:
        if accepted is None:
            now_waiting = waiting_connections(server.port)
            longest = max(longest, now_waiting)
            if not now_waiting:
                accepted = time.perf_counter() - start
        for fd, _ in poll.poll(0.001):
            if sockets[fd].recv(65536).startswith(b"HTTP/1.1 200"):
                answered.append(time.perf_counter() - start)
            poll.unregister(fd)
    for one in sockets.values():
        one.close()
    return connected, accepted, longest, answered


def run(form, home, args):
    with Live(home, "--trust", "*", "--slots", "1") as server:
        busy = FORK.Process(target=keep_busy, args=(server, args.ms))
        if form == "surprise":
            for _ in range(200):
                server.ask("POST", "/predict/slow", json.dumps({"x": [1.0]}))
        busy.start()
        if form != "surprise":
            time.sleep(args.secs)
        try:
            connected, accepted, longest, answered = connect_all(server, args.connections)
        finally:
            busy.kill()
            busy.join()
    return {
        "form": form, "ms a batch": args.ms, "connections": args.connections, "connecting took ms": connected * 1e3,
        "last accepted ms": None if accepted is None else accepted * 1e3, "longest queue": longest,
        "answered": len(answered), "first answer ms": min(answered, default=0) * 1e3,
        "last answer ms": max(answered, default=0) * 1e3,
    }  # fmt: skip


@contextlib.contextmanager
def package(form):
    """The slow class as a package; in the server's process where the form says so."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(HERE / "models" / "slow.py", folder)
        isolation = "process" if form == "process" else "thread"
        (Path(folder) / "pelton.toml").write_text(
            'name = "slow"\nruntime = "python"\nfile = "slow.py"\n'
            f'[options]\nclass = "Slow"\nbatch = true\nisolation = "{isolation}"\n'
            '[[signature.inputs]]\nname = "x"\ndatatype = "FP32"\nshape = [1]\n'
            '[[signature.outputs]]\nname = "y"\ndatatype = "FP32"\nshape = [1]\n'
        )
        with home_with((folder, "slow", "--p99-ms", "5000", "--trust")) as home:
            yield home


def main():
    parser = results.arguments(__doc__)
    parser.add_argument("--connections", type=int, default=128)
    parser.add_argument("--ms", type=float, default=20, help="a batch of the model takes (%(default)s)")
    parser.add_argument("--secs", type=float, default=1, help="busy before the connections come (%(default)s)")
    args = parser.parse_args()
    on_core(1)
    rows = []
    for form in ("process", "thread", "surprise"):
        with package(form) as home:
            rows.append(run(form, home, args))
    results.report(args.out, "accept", f"{args.connections} connections while a model runs", rows, bound_ms=BOUND_MS)
    return 0 if all((row["last accepted ms"] or 1e9) <= BOUND_MS for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
