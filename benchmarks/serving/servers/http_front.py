"""The bare HTTP/1.1 protocols that echo.py and prototype.py share. A subclass says what to do with a body: handle(body)."""

import asyncio

import httptools


def response(body):
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


class HttptoolsProtocol(asyncio.Protocol):
    __slots__ = ("body", "parser", "transport")

    def connection_made(self, transport):
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.body = []

    def data_received(self, data):
        self.parser.feed_data(data)

    def on_message_begin(self):
        self.body = []

    def on_body(self, data):
        self.body.append(data)

    def on_message_complete(self):
        self.handle(self.body[0] if len(self.body) == 1 else b"".join(self.body))


class HandParsedProtocol(asyncio.Protocol):
    """No parser callbacks: finds the header's end and Content-Length itself. Pipelined and partial requests are kept."""

    __slots__ = ("rest", "transport")

    def connection_made(self, transport):
        self.transport = transport
        self.rest = b""

    def data_received(self, data):
        if self.rest:
            data = self.rest + data
        while data:
            head_end = data.find(b"\r\n\r\n")
            if head_end < 0:
                break
            field = data.find(b"ontent-Length: ", 0, head_end)
            if field < 0:
                field = data.lower().find(b"ontent-length: ", 0, head_end)
            length = int(data[field + 15 : data.find(b"\r\n", field + 15)])
            end = head_end + 4 + length
            if len(data) < end:
                break
            self.handle(data[head_end + 4 : end])
            data = data[end:]
        self.rest = data


async def serve(protocol, port):
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", port, backlog=4096, reuse_port=True)
    await server.serve_forever()


def asgi_app(answer):
    """An ASGI application around `async answer(body) -> bytes`."""

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        message = await receive()
        body = message["body"]
        while message.get("more_body"):
            message = await receive()
            body += message["body"]
        out = await answer(body)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(out))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": out})

    return app


class RsgiApp:
    """A granian RSGI application around `async answer(body) -> bytes`."""

    HEADERS = (("content-type", "application/json"),)

    def __init__(self, answer):
        self.answer = answer

    async def __rsgi__(self, scope, protocol):
        protocol.response_bytes(200, list(self.HEADERS), await self.answer(await protocol()))
