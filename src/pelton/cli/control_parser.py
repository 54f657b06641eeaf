"""Flags of the commands about versions, deployments, rollouts, and who is told. Imports nothing heavy."""

from __future__ import annotations

import argparse
from typing import Any

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def add_commands(commands: Any) -> None:
    """All of them."""
    _models(commands)
    _history(commands)
    _diff(commands)
    _alias(commands)
    _deploy(commands)
    _undeploy(commands)
    _rollout(commands)
    _rollback(commands)
    _shadow(commands)
    _status(commands)
    _apply(commands)
    _gc(commands)
    _audit(commands)
    _webhook(commands)


def share(text: str) -> float:
    """A share of calls: 0.05 or 5%."""
    try:
        return float(text.removesuffix("%")) / (100.0 if text.endswith("%") else 1.0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: write 0.05 or 5%") from None


def age(text: str) -> float:
    """Seconds of an age such as 30d, 12h or 90s."""
    try:
        return float(text[:-1]) * UNITS[text[-1:]]
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is no age: write 30d, 12h, 45m or 90s") from None


def _command(commands: Any, name: str, summary: str, epilog: str | None = None) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--home", metavar="DIR", help="folder of models, versions and settings (~/.pelton)")
    parser.add_argument("--url", help="ask a running server, e.g. http://127.0.0.1:8080, instead of the store here")
    parser.add_argument("--token", help="of that server's admin API; better: PELTON_ADMIN_TOKEN in the environment")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _change(parser: argparse.ArgumentParser, waits: bool = True, expect: bool = True) -> None:
    """Flags of what changes something."""
    parser.add_argument("--why", default="", metavar="TEXT", help="kept in the history")
    if expect:
        parser.add_argument(
            "--expect", type=int, metavar="REVISION", help="refuse where it is at another revision than this one"
        )
    if waits:
        parser.add_argument(
            "--wait", type=float, default=60.0, metavar="SECONDS",
            help="how long to wait until the running servers have made the change; 0: do not (%(default)g)",
        )  # fmt: skip


def _models(commands: Any) -> None:
    parser = _command(commands, "models", "show models with their versions, aliases, and what is deployed")
    parser.add_argument("name", nargs="?", help="show all versions of this model")


def _history(commands: Any) -> None:
    parser = _command(commands, "history", "who changed a deployment or an alias, when and why")
    parser.add_argument("model", metavar="NAME[@ALIAS]", help="a model, or one of its aliases")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="so many changes (%(default)s)")
    parser.add_argument("--before", type=int, metavar="REVISION", help="only older ones than this")


def _diff(commands: Any) -> None:
    parser = _command(commands, "diff", "what differs between two versions: files, signature, metrics")
    parser.add_argument("a", help="NAME:VERSION or NAME@ALIAS")
    parser.add_argument("b", help="NAME:VERSION or NAME@ALIAS")


def _alias(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "alias", help="names for versions that may move", description="names for versions that may move"
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    set_ = _command(actions, "set", "point an alias at a version", "example: pelton alias set fraud@champion 3f9a")
    set_.add_argument("alias", metavar="NAME@ALIAS", help="for example fraud@champion")
    set_.add_argument("to", metavar="VERSION", help="first digits of a version, NAME:VERSION, or another @ALIAS")
    _change(set_, waits=False)
    remove = _command(actions, "remove", "take an alias away")
    remove.add_argument("alias", metavar="NAME@ALIAS", help="for example fraud@champion")
    _change(remove, waits=False)
    list_ = _command(actions, "list", "show where the aliases of a model point")
    list_.add_argument("name", help="a model")


def _deploy(commands: Any) -> None:
    parser = _command(
        commands, "deploy", "make a version the one that answers", "example: pelton deploy fraud@champion"
    )
    parser.add_argument("model", metavar="NAME[:VERSION|@ALIAS]", help="default: the newest version")
    parser.add_argument(
        "--slow-ms", type=float, metavar="MS", help="calls that take longer count as slow; 0: the model's own target"
    )
    _change(parser)


def _undeploy(commands: Any) -> None:
    parser = _command(commands, "undeploy", "take a model out of service")
    parser.add_argument("name", help="a model")
    _change(parser)


def _rollout(commands: Any) -> None:
    parser = _command(
        commands,
        "rollout",
        "give a version rising shares of the calls, until its evidence promotes it or rolls it back",
        """forms:
  pelton rollout fraud:3f9a           show the plan, ask, start
  pelton rollout status fraud         how it stands
  pelton rollout pause|resume|abort|promote fraud""",
    )
    parser.add_argument("what", nargs="+", metavar="[ACTION] NAME[:VERSION]", help="see below")
    parser.add_argument("--steps", default="1,5,25,50,100", metavar="P,P", help="percents of the calls (%(default)s)")
    parser.add_argument(
        "--max-error-increase", type=share, default=0.01, metavar="SHARE",
        help="how much larger its share of errors may be (0.01, or 1%%)",
    )  # fmt: skip
    parser.add_argument(
        "--max-slow-increase", type=share, default=0.02, metavar="SHARE",
        help="how much larger its share of slow calls may be (0.02)",
    )  # fmt: skip
    parser.add_argument(
        "--max-latency", type=float, default=0.0, metavar="MS", help="a call is slow above this; 0: the model's target"
    )
    parser.add_argument(
        "--max-disagreement", type=share, metavar="SHARE",
        help="share of copied calls that it may answer otherwise; default: answers are not compared",
    )  # fmt: skip
    parser.add_argument(
        "--shadow-share", type=share, default=0.1, metavar="SHARE", help="of calls to copy for that (%(default)s)"
    )
    parser.add_argument(
        "--alpha", type=float, default=0.05, metavar="P", help="chance to roll back an equal version (%(default)s)"
    )
    parser.add_argument(
        "--min-calls", type=int, default=100, metavar="N", help="of the candidate, at each step (%(default)s)"
    )
    parser.add_argument("--min-seconds", type=float, default=0.0, metavar="S", help="at each step (%(default)g)")
    parser.add_argument(
        "--max-hours", type=float, default=24.0, metavar="H", help="without a verdict; then it is held (%(default)g)"
    )
    parser.add_argument("--force", action="store_true", help="also where callers of the deployed version would break")
    parser.add_argument("--dry-run", action="store_true", help="show the plan only")
    parser.add_argument("--yes", action="store_true", help="start without asking")
    _change(parser)


def _rollback(commands: Any) -> None:
    parser = _command(commands, "rollback", "go back to the version that served before, and abort an open rollout")
    parser.add_argument("name", help="a model")
    parser.add_argument("--to", metavar="VERSION", help="to this version instead")
    _change(parser)


def _shadow(commands: Any) -> None:
    parser = _command(
        commands,
        "shadow",
        "have a version answer copies of live calls, and compare",
        "examples: pelton shadow fraud@challenger --share 10%; pelton shadow fraud --off",
    )
    parser.add_argument("model", metavar="NAME[:VERSION|@ALIAS]", help="the version that answers copies")
    parser.add_argument("--share", type=share, default=0.1, metavar="SHARE", help="of calls to copy (%(default)s)")
    parser.add_argument(
        "--tolerance", type=float, default=0.01, metavar="X", help="numbers this close, relatively, agree (%(default)s)"
    )
    parser.add_argument("--segment", default="", metavar="FIELD", help="count disagreements by the value of this input")
    parser.add_argument("--off", action="store_true", help="no shadow any more")
    _change(parser)


def _status(commands: Any) -> None:
    parser = _command(commands, "status", "what should run, what runs where, and how rollouts stand")
    parser.add_argument("name", nargs="?", help="only this model")
    parser.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")


def _apply(commands: Any) -> None:
    parser = _command(commands, "apply", "bring models to the state that a file declares")
    parser.add_argument("file", nargs="?", default="deploy.toml", help="default: %(default)s")
    parser.add_argument("--diff", action="store_true", help="show what would change only")
    _change(parser, expect=False)


def _gc(commands: Any) -> None:
    parser = _command(
        commands, "gc", "remove versions that nothing needs: not deployed, loaded, aliased, the newest or an ancestor"
    )
    parser.add_argument(
        "--older-than", type=age, default="30d", metavar="AGE", help="only those added before this (%(default)s)"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be removed only")


def _audit(commands: Any) -> None:
    parser = _command(commands, "audit", "everything that was changed, by whom and why")
    parser.add_argument("name", nargs="?", help="only about this model")
    parser.add_argument("--action", metavar="WORD", help="only these: deploy, rollback, alias, ...")
    parser.add_argument("--after", type=int, metavar="ID", help="only later ones than this")
    parser.add_argument("--limit", type=int, default=100, metavar="N", help="so many events (%(default)s)")


def _webhook(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "webhook", help="tell other programs of changes", description="tell other programs of changes"
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = _command(actions, "add", "tell an address of changes from now on, with signed bodies")
    add.add_argument("address", metavar="URL", help="where events are posted")
    add.add_argument("--actions", default="", metavar="A,B", help="only these events; default: all")
    remove = _command(actions, "remove", "tell an address no more")
    remove.add_argument("id", help="as `pelton webhook list` shows it")
    _command(actions, "list", "show who is told, and how far")
