"""`pelton predict`: one question, a file of them, or standard input; in this process or through a server."""

from __future__ import annotations

import argparse
import base64
import contextlib
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
Example = Callable[[], Row | None]
MAX_LINE = 64 * 1024 * 1024


def run(arguments: argparse.Namespace) -> int:
    failed = 0
    with contextlib.ExitStack() as ends:
        ask, example = _remote(arguments) if arguments.url else _local(arguments, ends)
        for number, row in enumerate(_rows(arguments.inputs, example), 1):
            try:
                print(json.dumps(ask(row), ensure_ascii=False), flush=True)
            except InvalidInput as error:
                failed += 1
                print(f"pelton: row {number}: {error}", file=sys.stderr)
    return 1 if failed else 0


def _local(arguments: argparse.Namespace, ends: contextlib.ExitStack) -> tuple[Ask, Example]:
    from pelton import replicas
    from pelton.cli.models import open_registry, package_of
    from pelton.runtimes.contract import RuntimeOptions

    registry = open_registry(arguments.home)
    package = package_of(arguments.model, registry, arguments.trust)
    replica = replicas.load(package, RuntimeOptions(trust=arguments.trust), time.perf_counter)
    ends.callback(replica.close)

    def ask(row: Row) -> Row:
        return replica.ask({name: [value] for name, value in row.items()})[0]

    return ask, lambda: package.manifest.example


def _remote(arguments: argparse.Namespace) -> tuple[Ask, Example]:
    from pelton.types import ModelRef

    client = Client(arguments.url)
    ref = ModelRef.parse(arguments.model)
    name = f"{ref.name}@{ref.alias}" if ref.alias else ref.name
    path = f"/predict/{name}/{ref.version}" if ref.version else f"/predict/{name}"

    def ask(row: Row) -> Row:
        answer: Row = client.post(path, row)
        return answer

    def example() -> Row:
        row: Row = client.get(f"/models/{name}/example")
        return row

    return ask, example


def _rows(inputs: list[str], example: Example) -> Iterator[Row]:
    """Rows as the command line gives them."""
    if not inputs:
        row = example()
        if row is None:
            raise InvalidInput(
                "give inputs: field=value, field=@file, @rows.jsonl, @rows.csv or - (pelton predict --help)"
            )
        yield row
    elif inputs == ["-"]:
        yield from _json_lines(sys.stdin.buffer, "standard input")
    elif len(inputs) == 1 and inputs[0].startswith("@"):
        yield from _file(Path(inputs[0][1:]))
    else:
        yield _one_row(inputs)


def _file(path: Path) -> Iterator[Row]:
    try:
        if path.suffix.lower() == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as lines:
                yield from _table(lines, str(path))
        else:
            with path.open("rb") as lines:
                yield from _json_lines(lines, str(path))
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from None


def _table(lines: Iterable[str], source: str) -> Iterator[Row]:
    csv.field_size_limit(MAX_LINE)  # a picture may stand in a cell
    table = csv.DictReader(lines)
    try:
        if not table.fieldnames:
            raise InvalidInput(f"{source} has no header: its first line must name the fields")
        for number, row in enumerate(table, 1):
            if None in row:
                raise InvalidInput(f"{source}: row {number} has more cells than the header")
            yield {name: value_of(text) for name, text in row.items()}
    except (csv.Error, UnicodeDecodeError) as error:
        raise InvalidInput(f"{source}: after line {table.line_num}: {error}") from None


def _json_lines(lines: Iterable[bytes], source: str) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if len(line) > MAX_LINE:
            raise InvalidInput(f"{source}: line {number} is longer than {MAX_LINE} bytes")
        try:
            row = json.loads(line, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{source}: line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise InvalidInput(f"{source}: line {number} must be a JSON object with the model's fields")
        yield row


def _one_row(inputs: list[str]) -> Row:
    row: Row = {}
    for text in inputs:
        name, value = _field(text)
        if name in row:
            raise InvalidInput(f"{name!r} is given twice; rows of a file are @file.jsonl or @file.csv")
        row[name] = value
    return row


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
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")  # Python would take NaN and Infinity
