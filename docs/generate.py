"""Writes the pages that follow from the code: settings.md, cli.md, errors.md. `make docs`; a test fails when they are old."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pelton import errors, settings
from pelton.cli.parser import make_parser
from pelton.engine.account import error_kind
from pelton.server.protocols.status import status_of

DOCS = Path(__file__).resolve().parent
NOTE = "<!-- Made by docs/generate.py out of the code: change it there, then `make docs`. -->"


def pages() -> dict[str, str]:
    """File name -> contents."""
    made = {"settings.md": settings_page(), "cli.md": cli_page(), "errors.md": errors_page()}
    return {name: "\n".join(lines).rstrip() + "\n" for name, lines in made.items()}


def settings_page() -> Iterator[str]:
    yield from ("# Settings", "", NOTE, "")
    yield (
        "How `pelton serve` runs. Sizes are MiB, times seconds unless a name says otherwise. The first of these that "
        "names a setting wins:"
    )
    yield from (
        "",
        "1. a flag: `--max-body 16`",
        "2. the environment: `PELTON_MAX_BODY=16`",
        f"3. `{settings.FILE_NAME}` in the home folder: `max_body = 16`",
        "4. the default",
        "",
        "An unknown key is an error that names the nearest known one. What belongs to one model (its latency target, "
        "batching, preprocessing) stands in its package: [packages.md](packages.md).",
        "",
    )
    rows = [(f"`{name}`", _default(default), _sentence(text)) for name, text, default in settings.describe()]
    yield from table(("setting", "default", "what it does"), rows)
    yield from (
        "",
        "Beside these: `OTEL_TRACES_SAMPLER_ARG` (the share of calls without a caller's trace that is traced, 0.01) and "
        "`OTEL_EXPORTER_OTLP_HEADERS` in the environment, as OpenTelemetry defines them.",
    )


def cli_page() -> Iterator[str]:
    parser = make_parser()
    yield from ("# Commands", "", NOTE, "")
    yield f"{parser.description} {parser.epilog}"
    yield from ("", "Exit codes: 0 done, 1 failed, 2 called wrongly, 130 interrupted.")
    for name, command in _commands(parser):
        yield from ("", f"## pelton {name}", "", _sentence(command.description or ""), "")
        positionals = [action for action in command._actions if not action.option_strings]
        usage = " ".join(["pelton", name, *map(_usage, positionals), "[flags]"])
        yield from ("```text", usage, "```", "")
        rows = [
            (_shape(action), _sentence(_help(action)))
            for action in [*positionals, *(action for action in command._actions if action.option_strings)]
            if not isinstance(action, argparse._HelpAction)
        ]
        yield from table(("argument", "what it does"), rows)
        if command.epilog:
            yield from ("", "```text", command.epilog, "```")


def _commands(parser: argparse.ArgumentParser, prefix: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command that can be called: those with actions (`alias set`) by their actions."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                inner = list(_commands(command, f"{prefix}{name} "))
                yield from inner or [(prefix + name, command)]


def errors_page() -> Iterator[str]:
    yield from ("# Errors", "", NOTE, "")
    yield (
        "Every error says what was wrong and what to do. In Python they are the classes of `pelton.errors`; over HTTP the "
        'body is `{"error": "..."}` in every protocol, with these statuses.'
    )
    tree = (errors.__doc__ or "").partition("\n\n")[2].rstrip()
    yield from ("", "```text", tree, "```", "")
    rows = []
    for kind in kinds():
        example = kind("", "") if kind is errors.ExtraMissing else kind("")
        reason = f"`{example.reason}`" if isinstance(example, errors.Refused) else ""
        rows.append((f"`{kind.__name__}`", str(status_of(example)), f"`{error_kind(example)}`", reason, _told(kind)))
    yield from table(("error", "status", "word in metrics", "`pelton-reason`", "when"), rows)
    yield from (
        "",
        "A refusal (503) has `retry-after` in seconds. A refused call was not run (but for the reason `worker_lost`, "
        "where it may have begun): it may be sent again, also to another server. `Cancelled` (499) is never read by anyone; it stands in metrics and logs only.",
    )


def kinds() -> list[type[errors.PeltonError]]:
    """All errors, in the order of the file."""
    found = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.PeltonError)]
    return sorted(found, key=lambda kind: inspect.getsourcelines(kind)[1])


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"


def _default(value: Any) -> str:
    if value == "":
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _told(kind: type) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0]


def _help(action: argparse.Action) -> str:
    text = action.help or ""
    return text.replace("%(default)s", str(action.default)).replace("%%", "%")


def _usage(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest).upper()
    return {"*": f"[{name} ...]", "?": f"[{name}]"}.get(str(action.nargs), name)


def _shape(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{_usage(action)}`"
    flags = ", ".join(f"`{flag}`" for flag in action.option_strings)
    if action.nargs == 0:
        return flags
    value = "\\|".join(action.choices) if action.choices else str(action.metavar or action.dest).upper()
    return f"`{action.option_strings[-1]} {value}`".replace("\\|", "|")


def main() -> int:
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
