"""Does blocking work inside the event loop keep new connections out? It does under uvloop, not under asyncio.

A server runs a "model" inline: 20 ms of blocking sleep per batch of up to 32 requests. Four clients keep it busy; then 128
more connect at once and send requests for 3 s. Shown: when the loop accepted the 1st, 32nd, 64th and 128th of them, and the
latencies of all, counted from the moment a client connects. Without the four, the outcome is a race between the connects
and the first body.
usage (venv `floor`): accept_starvation.py [port]
"""

import asyncio
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time

EARLY, CLIENTS, BATCH, BATCH_S, EARLY_S, CLIENT_S = 4, 128, 32, 0.02, 0.3, 3


def serve(loop_name, port, body_size):
    accepted, queue, batches, busy = [], [], 0, False

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport):
            accepted.append(time.time())
            self.transport, self.received = transport, 0

        def data_received(self, data):
            nonlocal busy
            self.received += len(data)
            if self.received >= body_size:
                self.received = 0
                queue.append(self.transport)
                if not busy:
                    busy = True
                    asyncio.get_running_loop().call_soon(flush)

    def flush():
        nonlocal batches, busy
        batch = queue[:BATCH]
        del queue[:BATCH]
        batches += 1
        time.sleep(BATCH_S)
        for transport in batch:
            if not transport.is_closing():
                transport.write(b"x")
        if queue:
            asyncio.get_running_loop().call_soon(flush)
        else:
            busy = False

    async def main():
        server = await asyncio.get_running_loop().create_server(Protocol, "127.0.0.1", port, backlog=4096)
        await asyncio.sleep(EARLY_S + CLIENT_S + 2)
        server.close()
        print(json.dumps({"accepted": accepted, "batches": batches}))

    if loop_name == "uvloop":
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())


class Client:
    def __init__(self, port):
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.connect_ex(("127.0.0.1", port))
        self.sent, self.started, self.latencies = 0, time.time(), []


def run(loop_name, port, body_size):
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve", loop_name, str(port), str(body_size)], stdout=subprocess.PIPE, text=True
    )
    time.sleep(0.8)
    poll, clients, body = select.epoll(), {}, b"a" * body_size

    def connect(count):
        for _ in range(count):
            client = Client(port)
            clients[client.socket.fileno()] = client
            poll.register(client.socket, select.EPOLLIN | select.EPOLLOUT)

    def send_and_receive(seconds):
        end = time.time() + seconds
        while time.time() < end:
            for fd, events in poll.poll(0.05):
                client = clients[fd]
                if events & select.EPOLLIN:
                    client.socket.recv(9)
                    client.latencies.append(time.time() - client.started)
                    client.sent, client.started = 0, time.time()
                    poll.modify(fd, select.EPOLLIN | select.EPOLLOUT)
                elif events & select.EPOLLOUT:
                    with contextlib.suppress(OSError):
                        client.sent += client.socket.send(body[client.sent :])
                    if client.sent == body_size:
                        poll.modify(fd, select.EPOLLIN)

    connect(EARLY)
    send_and_receive(EARLY_S)
    start = time.time()
    connect(CLIENTS)
    send_and_receive(CLIENT_S)
    for client in clients.values():
        client.socket.close()

    report = json.loads(server.communicate()[0])
    accepted = sorted(t - start for t in report["accepted"])[EARLY:]
    answers = sorted(len(client.latencies) for client in clients.values())
    latencies = sorted(x for client in clients.values() for x in client.latencies)
    accepted_at = ", ".join(
        f"#{n} {accepted[n - 1]:.2f} s" if len(accepted) >= n else f"#{n} never" for n in (1, 32, 64, CLIENTS)
    )
    percentiles = ", ".join(f"p{p} {latencies[len(latencies) * p // 100] * 1e3:.0f} ms" for p in (50, 99))
    print(
        f"{loop_name}, bodies of {body_size} bytes, {report['batches']} batches: accepted {accepted_at}; answers per connection "
        f"{answers[0]}-{answers[-1]}, median {answers[len(answers) // 2]}, none {answers.count(0)}; {percentiles}, max {latencies[-1] * 1e3:.0f} ms",
        flush=True,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        port = int(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("PEERBENCH_PORT", "18100"))
        for loop_name in ("uvloop", "asyncio"):
            for body_size in (300, 37000):
                run(loop_name, port, body_size)
                port += 1
