"""The prototype to beat: natural micro-batching in front of ONNX Runtime, five front-ends, two ways to run the model.

A batch is whatever arrived while the previous one ran (MODE=thread), or whatever the event loop had already read when
the flush callback came (MODE=inline). No timer, unless WAIT_S sets one.
FRONT: bare, fast (hand-written parser), rsgi, asgi (granian), uvicorn. BODY: plain JSON, v2 (OIP v2 JSON), bin (raw bytes).
"""

import asyncio
import base64
import os
from concurrent.futures import ThreadPoolExecutor

import common
import http_front
import msgspec
import numpy as np

FRONT, MODE = os.environ.get("FRONT", "rsgi"), os.environ.get("MODE", "inline")
BODY, WAIT_S = os.environ.get("BODY", "plain"), float(os.environ.get("WAIT_S", "0"))
SHAPE, DTYPE = ((30,), np.float32) if common.MODEL == "T" else ((96, 96, 3), np.uint8)


class V2Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: list


class V2Request(msgspec.Struct):
    inputs: list[V2Input]
    id: str = ""


decode_plain = msgspec.json.Decoder(
    msgspec.defstruct("Request", [("data", list[float] if common.MODEL == "T" else str)])
).decode
decode_v2 = msgspec.json.Decoder(V2Request).decode
encode = msgspec.json.Encoder().encode


def parse(body):
    if BODY == "v2":
        data = decode_v2(body).inputs[0].data
        return data if common.MODEL == "T" else base64.b64decode(data[0])
    if BODY == "bin":
        return np.frombuffer(body, np.float32) if common.MODEL == "T" else body
    data = decode_plain(body).data
    return data if common.MODEL == "T" else base64.b64decode(data)


def render(row):
    if BODY == "v2":
        return encode(
            {"model_name": "m", "outputs": [{"name": "prob", "shape": [1, len(row)], "datatype": "FP32", "data": row}]}
        )
    return b'{"prob":' + encode(row) + b"}"


class Batcher:
    def __init__(self):
        self.loop = asyncio.get_running_loop()
        self.session = common.session()
        self.executor = ThreadPoolExecutor(1)
        self.buffer = np.empty((common.MAX_BATCH, *SHAPE), DTYPE)
        self.queue = []
        self.busy = False

    def submit(self, item, settle):
        """settle(row) is called with the item's output."""
        self.queue.append((item, settle))
        if not self.busy:
            self.busy = True
            if WAIT_S:
                self.loop.call_later(WAIT_S, self.flush)
            else:
                self.loop.call_soon(self.flush)

    def flush(self):
        batch, self.queue = self.queue[: common.MAX_BATCH], self.queue[common.MAX_BATCH :]
        items = [item for item, _ in batch]
        if MODE == "inline":
            self.settle(batch, self.run(items))
        else:
            future = self.executor.submit(self.run, items)
            future.add_done_callback(lambda done: self.loop.call_soon_threadsafe(self.settle, batch, done.result()))

    def run(self, items):
        if common.MODEL == "T":
            rows = np.array(items, np.float32)
        else:
            rows = self.buffer[: len(items)]
            for i, item in enumerate(items):
                rows[i] = np.frombuffer(item, np.uint8).reshape(SHAPE)
        return self.session.run(None, {"x": rows})[0].tolist()

    def settle(self, batch, rows):
        for (_, settle), row in zip(batch, rows, strict=True):
            settle(row)
        if not self.queue:
            self.busy = False
        elif MODE == "inline":
            self.loop.call_soon(self.flush)  # the loop reads its sockets first
        else:
            self.flush()


_batcher = None


def batcher():
    global _batcher
    if _batcher is None:
        _batcher = Batcher()  # needs the running loop
    return _batcher


async def answer(body):
    future = batcher().loop.create_future()
    batcher().submit(parse(body), lambda row: future.done() or future.set_result(row))
    return render(await future)


rsgi = http_front.RsgiApp(answer)
asgi = http_front.asgi_app(answer)


class Bare(http_front.HttptoolsProtocol):
    def handle(self, body):
        batcher().submit(parse(body), self.send)

    def send(self, row):
        if not self.transport.is_closing():
            self.transport.write(http_front.response(render(row)))


class Fast(http_front.HandParsedProtocol):
    handle = Bare.handle
    send = Bare.send


if __name__ == "__main__":
    if FRONT in ("rsgi", "asgi"):
        from granian import Granian

        Granian(
            f"prototype:{FRONT}",
            address="127.0.0.1",
            port=common.PORT,
            interface=FRONT,
            workers=common.WORKERS,
            log_enabled=False,
            backlog=4096,
            loop="uvloop",
            runtime_threads=1,
        ).serve()
    elif FRONT == "uvicorn":
        import uvicorn

        uvicorn.run(
            "prototype:asgi",
            port=common.PORT,
            workers=common.WORKERS,
            log_level="warning",
            access_log=False,
            lifespan="off",
            loop="uvloop",
            http="httptools",
            backlog=4096,
        )
    else:
        import uvloop

        for _ in range(common.WORKERS - 1):  # each process binds the port with SO_REUSEPORT
            if os.fork() == 0:
                break
        uvloop.run(http_front.serve(Fast if FRONT == "fast" else Bare, common.PORT))
