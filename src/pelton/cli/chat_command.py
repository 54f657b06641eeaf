"""`pelton chat`: talk to a language model in the terminal. Answers stream; a receipt stands under each."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from pelton.cli.chat_stream import Conversation, Reply
from pelton.cli.http_client import Client
from pelton.cli.own_server import own_server
from pelton.errors import InvalidInput, NotFound, NotReady, PeltonError

DEFAULT_URL = "http://127.0.0.1:8080"
KEY_VARIABLE = "PELTON_API_KEY"
HELP = """\
/system TEXT   say how the model should behave, and begin anew
/retry         ask the last question again
/clear         forget the conversation
/help          this list
/quit          or Ctrl-D; Ctrl-C stops an answer
A line that ends with \\ goes on in the next one."""


def run(arguments: argparse.Namespace) -> int:
    with _server(arguments) as client:
        model = arguments.model if arguments.url and arguments.model else _model(client, arguments)
        chat = Chat(
            Conversation(client, os.environ.get(KEY_VARIABLE, "")), model, _options(arguments), arguments.system
        )
        if arguments.prompt:
            return chat.once(" ".join(arguments.prompt))
        if not sys.stdin.isatty():
            return chat.once(sys.stdin.read().strip())
        return chat.talk(client.url)


class Chat:
    """A conversation: what was said so far, and how to ask."""

    def __init__(self, conversation: Conversation, model: str, options: dict[str, Any], system: str) -> None:
        self._conversation = conversation
        self._model = model
        self._options = options
        self._system = system
        self._messages: list[dict[str, str]] = []

    def once(self, question: str) -> int:
        """One question; the answer goes to standard output, the receipt to standard error."""
        if not question:
            raise InvalidInput("there is nothing to ask: give a prompt, or write one to standard input")
        self._answer(question)
        return 0

    def talk(self, where: str) -> int:
        """Until the end of input."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - input() gets history and editing

        print(_dim(f"{self._model} on {where} - /help lists commands, Ctrl-D ends"))
        while True:
            try:
                line = _read()
            except EOFError:
                print()
                return 0
            except KeyboardInterrupt:
                print()
                continue
            if line in ("/quit", "/exit", "/bye"):
                return 0
            self._heed(line)

    def _heed(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        if command == "/help":
            print(_dim(HELP))
        elif command == "/clear":
            self._messages.clear()
        elif command == "/system":
            self._system = rest.strip()
            self._messages.clear()
        elif command == "/retry":
            while self._messages and self._messages[-1]["role"] != "user":
                self._messages.pop()
            if self._messages:
                self._turn(self._messages.pop()["content"])
        elif command.startswith("/"):
            print(_dim(f"{command} is no command; /help lists them"))
        elif line:
            self._turn(line)

    def _turn(self, question: str) -> None:
        """One question of many: what fails is told, and the conversation goes on."""
        try:
            self._answer(question)
        except PeltonError as error:
            print(f"pelton: {error}", file=sys.stderr)

    def _answer(self, question: str) -> None:
        system = [{"role": "system", "content": self._system}] if self._system else []
        asked = [*self._messages, {"role": "user", "content": question}]
        reply = Reply()
        pieces = self._conversation.ask({"model": self._model, "messages": system + asked, **self._options}, reply)
        try:
            for piece in pieces:
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            pieces.close()  # hangs up
            reply.finish_reason = "stopped"
        print()
        print(_dim(receipt_line(reply), sys.stderr), file=sys.stderr, flush=True)
        self._messages = [*asked, {"role": "assistant", "content": reply.text}]


def receipt_line(reply: Reply) -> str:
    """What an answer took, on one line."""
    receipt = reply.receipt
    if not receipt:
        return f"[{reply.finish_reason}]"
    count, decode = receipt.get("completion_tokens", 0), receipt.get("decode_ms", 0.0) / 1e3
    cached = receipt.get("cached_tokens", 0)
    parts = [
        f"{receipt.get('prompt_tokens', 0)} tokens in" + (f" ({cached} cached)" if cached else "") + f", {count} out",
        f"queue {receipt.get('queue_ms', 0.0):.0f} ms, prefill {receipt.get('prefill_ms', 0.0):.0f} ms",
        f"decode {decode:.2f} s" + (f" ({(count - 1) / decode:.0f} tokens/s)" if decode > 0 and count > 1 else ""),
        f"{receipt.get('engine', '?')}, {receipt.get('model', '?')}",
    ]
    if reply.finish_reason != "stop":
        parts.append(reply.finish_reason)
    return "[" + " | ".join(parts) + "]"


def _read() -> str:
    """One message, perhaps of several lines."""
    lines = [input("> ")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input(". "))
    return "\n".join(lines).strip()


def _dim(text: str, stream: Any = None) -> str:
    """Grey on a terminal."""
    plain = not (stream or sys.stdout).isatty() or "NO_COLOR" in os.environ
    return text if plain else f"\x1b[2m{text}\x1b[0m"


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "max_completion_tokens": arguments.max_tokens,
        "seed": arguments.seed,
    }
    return {name: value for name, value in given.items() if value is not None}


@contextlib.contextmanager
def _server(arguments: argparse.Namespace) -> Iterator[Client]:
    """The server that `--url` names, one that runs at the default address, or one of this command's own."""
    if arguments.url:
        yield Client(arguments.url)
        return
    if arguments.model is None and _is_there(client := Client(DEFAULT_URL)):
        yield client
        return
    if arguments.model is None:
        raise NotReady(f"no server answers at {DEFAULT_URL}: name a model to load, or a server with --url")
    home = ["--home", arguments.home] if arguments.home else []
    with own_server([arguments.model, *home], sys.stderr) as url:
        yield Client(url)


def _is_there(client: Client) -> bool:
    with contextlib.suppress(PeltonError):
        client.get("/v2/health/live")
        return True
    return False


def _model(client: Client, arguments: argparse.Namespace) -> str:
    """The language model that is meant: the one named, or the only one."""
    names = _language_models(client.get)
    wanted = (arguments.model or "").partition(":")[0]
    if wanted in names:
        return str(arguments.model)
    if len(names) == 1:
        return names[0]
    if not names:
        raise NotFound(f"no language model is served at {client.url}; add one, for example: pelton add model.gguf")
    raise InvalidInput(f"name one of the language models that are served: {', '.join(names)}")


def _language_models(get: Callable[[str], Any]) -> list[str]:
    return [str(one["id"]) for one in get("/v1/models").get("data", []) if one.get("kind") == "language"]
