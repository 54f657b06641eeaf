"""HTTP floor: decode a 30-float JSON body, answer two of the floats. No model.

FRONT: bare, fast (hand-written parser), rsgi, asgi (granian), uvicorn, robyn, blacksheep. DECODER: msgspec, orjson.
"""

import os
import sys

import http_front
import msgspec
import orjson

FRONT, PORT, WORKERS = os.environ["FRONT"], int(os.environ["PORT"]), int(os.environ.get("WORKERS", "1"))

if os.environ.get("DECODER", "msgspec") == "msgspec":
    decode = msgspec.json.Decoder(msgspec.defstruct("Request", [("data", list[float])])).decode
    encode = msgspec.json.Encoder().encode

    def work(body):
        data = decode(body).data
        return encode({"prob": [data[0], data[1]]})
else:

    def work(body):
        data = orjson.loads(body)["data"]
        return orjson.dumps({"prob": [data[0], data[1]]})


async def answer(body):
    return work(body)


rsgi = http_front.RsgiApp(answer)
asgi = http_front.asgi_app(answer)


class Bare(http_front.HttptoolsProtocol):
    def handle(self, body):
        self.transport.write(http_front.response(work(body)))


class Fast(http_front.HandParsedProtocol):
    handle = Bare.handle


def run_granian():
    from granian import Granian

    Granian(
        f"echo:{FRONT}",
        address="127.0.0.1",
        port=PORT,
        interface=FRONT,
        workers=WORKERS,
        log_enabled=False,
        backlog=4096,
        loop="uvloop",
    ).serve()


def run_uvicorn(app="echo:asgi", **options):
    import uvicorn

    uvicorn.run(
        app, port=PORT, log_level="warning", access_log=False, loop="uvloop", http="httptools", backlog=4096, **options
    )


def run_robyn():
    sys.argv = [sys.argv[0], "--processes", "1", "--workers", "1", "--log-level", "WARN"]
    from robyn import Response, Robyn

    app = Robyn(__file__)

    @app.post("/predict")
    def predict(request):
        body = request.body
        body = body.encode() if isinstance(body, str) else bytes(body)
        return Response(200, {"content-type": "application/json"}, work(body).decode())

    app.start(host="127.0.0.1", port=PORT)


def run_blacksheep():
    from blacksheep import Application, Content, Response

    app = Application()

    @app.router.post("/predict")
    async def predict(request):
        return Response(200, content=Content(b"application/json", work(await request.read())))

    run_uvicorn(app)


def run_bare():
    import uvloop

    uvloop.run(http_front.serve(Fast if FRONT == "fast" else Bare, PORT))


FRONTS = {
    "rsgi": run_granian,
    "asgi": run_granian,
    "robyn": run_robyn,
    "blacksheep": run_blacksheep,
    "bare": run_bare,
    "fast": run_bare,
    "uvicorn": lambda: run_uvicorn(workers=WORKERS, lifespan="off"),
}
if __name__ == "__main__":
    FRONTS[FRONT]()
