"""`make demo`: adds the models where they are missing, starts the server, asks each model once, keeps serving."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import setup as demo_setup

HERE = Path(__file__).resolve().parent
WAIT_SECONDS = 60.0
CHAT_SECONDS = 180.0  # a language model takes longer to load, the first time above all
QUESTION = "What is an invoice? Answer in one sentence."
ASKED = (
    ("phishing", "a table row with 9 named columns: is this web page a phishing page?"),
    ("spam", "a text: is this e-mail spam?"),
    ("text-line", "a picture of a line of text: what does it say?"),
    ("notes", "a sound: which notes are played?"),
)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--stop", action="store_true", help="stop after the example calls (tests)")
    arguments = parser.parse_args()
    if demo_setup.setup(arguments.home):
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # the server is ended with this process
    begin = time.perf_counter()
    command = [sys.executable, "-m", "pelton", "serve", "--home", str(arguments.home), "--port", str(arguments.port)]
    server = subprocess.Popen(command, env={**os.environ, "PELTON_LOG_LEVEL": "warning"})  # noqa: S603 - our own command
    try:
        return show(server, arguments, begin)
    except KeyboardInterrupt:
        return 0
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


def show(server: subprocess.Popen[bytes], arguments: argparse.Namespace, begin: float) -> int:
    """One example call to each model, then what to try next; returns when the server ends."""
    for number, (name, question) in enumerate(ASKED):
        body = json.dumps(example(arguments.home, name)).encode()
        answer, told, seconds = ask(server, arguments.port, name, body)
        if number == 0:
            print(f"first answer {time.perf_counter() - begin:.2f} s after the start of the server\n")
        print(
            f"{name}: {question}\n    {shorten(answer)}\n    {seconds * 1e3:.1f} ms, batch of {told} row(s)\n",
            flush=True,
        )
    chat(server, arguments.port)
    print(hints(arguments.port), flush=True)
    return 0 if arguments.stop else server.wait()


def example(home: Path, name: str) -> dict[str, Any]:
    """The example that stands in the model's package."""
    from pelton.registry import Registry
    from pelton.types import ModelRef

    row = Registry(home).resolve(ModelRef(name)).manifest.example
    assert row is not None
    return row


def chat(server: subprocess.Popen[bytes], port: int) -> None:
    """One question to the language model; its answer is printed as it comes."""
    from pelton.cli.chat_command import receipt_line
    from pelton.cli.chat_stream import Conversation, Reply
    from pelton.cli.http_client import Client
    from pelton.errors import NotReady, PeltonError

    print(f"chat: {QUESTION}\n    ", end="", flush=True)
    client, end, reply = Client(f"http://127.0.0.1:{port}"), time.perf_counter() + CHAT_SECONDS, Reply()
    while True:
        try:
            client.get("/v2/models/chat/ready")
            break
        except NotReady:
            if time.perf_counter() > end or server.poll() is not None:
                sys.exit(f"chat was not ready in {CHAT_SECONDS:.0f} s")
            time.sleep(0.1)
    body = {"model": "chat", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 60}
    try:
        for piece in Conversation(client).ask(body, reply):
            print(piece.replace("\n", "\n    "), end="", flush=True)
    except PeltonError as error:
        sys.exit(f"failed: {error}")
    print(f"\n    {receipt_line(reply)}\n", flush=True)


def ask(server: subprocess.Popen[bytes], port: int, name: str, body: bytes) -> tuple[Any, str, float]:
    """Asks until the model is loaded; returns the answer, the rows of its batch, and the seconds of the call."""
    end = time.perf_counter() + WAIT_SECONDS
    while time.perf_counter() < end and server.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        begin = time.perf_counter()
        try:
            connection.request("POST", f"/predict/{name}", body, {"content-type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
        except ConnectionError:
            time.sleep(0.01)
            continue
        finally:
            connection.close()
        if response.status == 200:
            return answer, response.headers["pelton-batch-rows"], time.perf_counter() - begin
        if response.status != 503:
            sys.exit(f"{name} answered {response.status}: {answer}")
        time.sleep(0.01)
    sys.exit(
        "the server did not start" if server.poll() is not None else f"{name} was not ready in {WAIT_SECONDS:.0f} s"
    )


def shorten(answer: Any) -> str:
    text = json.dumps(answer, ensure_ascii=False)
    return text if len(text) <= 150 else text[:147] + "..."


def hints(port: int) -> str:
    base = f"http://127.0.0.1:{port}"
    return f"""serving on {base} until Ctrl-C. Try, in another terminal:

    curl -s {base}/predict/spam -d '{{"text": "Lunch at noon? I have the report with me."}}'
    curl -s {base}/v1/models/spam:predict -d '{{"instances": ["Win money now", "See you on Monday"]}}'
    curl -s {base}/predict/text-line -d "{{\\"image\\": \\"$(base64 -w0 demo/examples/invoice-line.png)\\"}}"
    curl -s {base}/v2/models/phishing
    curl -s {base}/metrics | grep pelton_request
    {DEMO_COMMAND} bench spam --url {base} --quick
    {DEMO_COMMAND} chat --url {base}
    any client of the OpenAI API with base_url="{base}/v1" and model="chat"
    open {base} in a browser: every model with a form to try it"""


DEMO_COMMAND = ".venv-demo/bin/pelton"

if __name__ == "__main__":
    sys.exit(main())
