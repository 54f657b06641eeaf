"""`pelton predict`: one question, a file of them, or standard input; in this process or through a server."""

from __future__ import annotations

import argparse
import base64
import csv
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pelton.cli.http_client import Client
from pelton.errors import InvalidInput

Row = dict[str, Any]
Ask = Callable[[Row], Row]
MAX_LINE = 64 * 1024 * 1024


def run(arguments: argparse.Namespace) -> int:
    ask, example = _remote(arguments) if arguments.url else _local(arguments)
    failed = 0
    for number, row in enumerate(_rows(arguments.inputs, example), 1):
        try:
            print(json.dumps(ask(row), ensure_ascii=False), flush=True)
        except InvalidInput as error:
            failed += 1
            print(f"pelton: row {number}: {error}", file=sys.stderr)
    return 1 if failed else 0


def _local(arguments: argparse.Namespace) -> tuple[Ask, Row | None]:
    from pelton import replicas
    from pelton.cli.models import open_registry, package_of
    from pelton.runtimes.contract import RuntimeOptions

    registry = open_registry(arguments.home)
    package = package_of(arguments.model, registry, arguments.trust)
    replica = replicas.load(package, RuntimeOptions(trust=arguments.trust), time.perf_counter)

    def ask(row: Row) -> Row:
        return replica.ask({name: [value] for name, value in row.items()})[0]

    return ask, package.manifest.example


def _remote(arguments: argparse.Namespace) -> tuple[Ask, Row | None]:
    client = Client(arguments.url)
    name, _, version = arguments.model.partition(":")
    path = f"/predict/{name}/{version}" if version else f"/predict/{name}"

    def ask(row: Row) -> Row:
        answer: Row = client.post(path, row)
        return answer

    return ask, None


def _rows(inputs: list[str], example: Row | None) -> Iterator[Row]:
    """Rows as the command line gives them."""
    if not inputs:
        if example is None:
            raise InvalidInput(
                "give inputs: field=value, field=@file, @rows.jsonl, @rows.csv or - (pelton predict --help)"
            )
        yield example
    elif inputs == ["-"]:
        yield from _json_lines(sys.stdin.buffer, "standard input")
    elif len(inputs) == 1 and inputs[0].startswith("@"):
        yield from _file(Path(inputs[0][1:]))
    else:
        yield dict(_field(text) for text in inputs)


def _file(path: Path) -> Iterator[Row]:
    try:
        if path.suffix.lower() == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as lines:
                for row in csv.DictReader(lines):
                    yield {name: value_of(text) for name, text in row.items() if name is not None}
        else:
            with path.open("rb") as lines:
                yield from _json_lines(lines, str(path))
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from None


def _json_lines(lines: Iterable[bytes], source: str) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if len(line) > MAX_LINE:
            raise InvalidInput(f"{source}: line {number} is longer than {MAX_LINE} bytes")
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{source}: line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise InvalidInput(f"{source}: line {number} must be a JSON object with the model's fields")
        yield row


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidInput(f"{text!r} is not field=value; a file of rows is @file, one file as a field is field=@file")
    if value.startswith("@"):
        try:
            return name, {"b64": base64.b64encode(Path(value[1:]).read_bytes()).decode()}
        except OSError as error:
            raise InvalidInput(f"{name}: cannot read {value[1:]}: {error.strerror}") from None
    return name, value_of(value)


def value_of(text: str | None) -> Any:
    """A number, true, false, null or list where the text is one; else the text. Empty: null, a missing value."""
    if text is None or text == "":
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text
