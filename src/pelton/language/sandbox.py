"""Jinja as chat templates expect it, with bounds: a template comes with the weights and is nobody's trusted code.

The only file that imports jinja2 (extra "chat"). A template cannot reach Python's inside (Jinja's own sandbox), and it
cannot run for ever or fill the memory: loops and calls are counted, strings that it builds are measured.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final, NoReturn, cast

from pelton.errors import ExtraMissing, InvalidInput, PackageInvalid

try:
    import jinja2
    from jinja2 import nodes, sandbox
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension
except ImportError:  # pragma: no cover - the extra is part of the tests
    raise ExtraMissing("a chat template", "chat") from None

STEPS: Final = 500_000  # of loops, and calls
SECONDS: Final = 2.0  # of CPU time, looked at while loops and calls go on
OUTPUT: Final = 32 * 1024**2  # characters
# in a format: a width of five digits, or one that is an argument
_WIDE: Final = re.compile(r"%[-+ #0]*(?:\*|\d{5,})|%[^a-zA-Z%]*\.(?:\*|\d{5,})|\{[^{}]*\d{5,}[^{}]*\}")
_NUMBER: Final = 10_000_000  # larger arguments pad and repeat text to no sane end

Now = Callable[[], datetime]


class TemplateRefuses(InvalidInput):
    """The template called raise_exception, or fails on these messages."""


class TemplateEndless(TemplateRefuses):
    """It took too many steps, or too long."""


class _Over(Exception):
    """The budget is used up. (No error of Jinja's: templates see none of ours.)"""


class _Generation(Extension):
    """`{% generation %}` marks what a model has written, for training; here its contents count."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


class _Budget:
    """What one rendering may still do."""

    def __init__(self) -> None:
        self.steps = STEPS
        self._begun = time.thread_time()

    def spend(self, steps: int = 1) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise _Over(f"{STEPS} steps")
        if self.steps % 64 == 0 and time.thread_time() - self._begun > SECONDS:
            raise _Over(f"{SECONDS:.0f} s")


class _Environment(sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator in "**" and _grows(left, right):
            raise SecurityError(f"{operator} would make something very large")
        if operator == "%" and isinstance(left, str):
            _check_widths(left)
        return _measured(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as jinja2 names them
        __context["_budget"].spend()
        for value in (*args, *kwargs.values()):
            if isinstance(value, int) and abs(value) > _NUMBER:
                raise SecurityError(f"the argument {value} is too large")
        _check_method(getattr(__obj, "__self__", None), getattr(__obj, "__name__", ""), args)
        return _measured(super().call(__context, __obj, *args, **kwargs))


def _grows(left: Any, right: Any) -> bool:
    sizes = [len(x) if isinstance(x, str | bytes | list | tuple) else abs(x) for x in (left, right) if _sized(x)]
    return len(sizes) == 2 and sizes[0] * sizes[1] > _NUMBER


def _check_method(owner: Any, name: str, args: tuple[Any, ...]) -> None:
    """Refuses methods of a text that would make far more of it."""
    if not isinstance(owner, str):
        return
    if name in ("format", "format_map"):
        _check_widths(owner)
    if name == "replace" and len(args) >= 2 and all(isinstance(text, str) for text in args[:2]):
        _check_size(owner.count(args[0]) * len(args[1]))
    if name == "join" and args and hasattr(args[0], "__len__"):
        _check_size(len(owner) * len(args[0]))


def _check_widths(text: str) -> None:
    if _WIDE.search(text):
        raise SecurityError("a format with a width that is too large")


def _check_size(size: int) -> None:
    if size > OUTPUT:
        raise SecurityError(f"it would build a text of more than {OUTPUT} characters")


def _replaced(text: Any, old: str, new: str, count: int | None = None) -> str:
    whole = str(text)
    _check_size(whole.count(str(old)) * len(str(new)))
    return whole.replace(str(old), str(new), -1 if count is None else count)


def _indented(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    if len(width) > 100 if isinstance(width, str) else width > 100:
        raise SecurityError("indent: more than 100 characters")
    return str(jinja2.filters.do_indent(str(text), width, first, blank))


def _joined(values: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    found = list(values)
    if attribute is not None:
        found = [value[attribute] for value in found]
    texts = list(map(str, found))
    _check_size(len(str(d)) * len(texts) + sum(map(len, texts)))
    return str(d).join(texts)


def _sized(x: Any) -> bool:
    return isinstance(x, str | bytes | list | tuple | int | float)


def _measured(value: Any) -> Any:
    if isinstance(value, str | bytes | list | tuple) and len(value) > OUTPUT:
        raise jinja2.TemplateRuntimeError(f"it builds a text of more than {OUTPUT} characters")
    return value


def _raise(message: Any = "") -> NoReturn:
    raise jinja2.TemplateRuntimeError(str(message))


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own escapes HTML; templates are trained on plain JSON."""
    if isinstance(indent, int) and indent > 16:
        raise SecurityError(f"tojson: an indent of {indent}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@jinja2.pass_context
def _counted(context: Any, values: Iterable[Any]) -> Any:
    """Wraps what a loop goes through. What has a length keeps it: `loop.length` must not read all first."""
    budget = context["_budget"]
    if isinstance(values, Mapping | list | tuple | str | range):
        budget.spend(len(values))
        return values
    return _spending(budget, values)


def _spending(budget: _Budget, values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        budget.spend()
        yield value


def _environment(now: Now) -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"], cache_size=0
    )
    environment.filters |= {"tojson": _tojson, "_counted": _counted, "_measured": _measured}
    environment.filters |= {"replace": _replaced, "indent": _indented, "join": _joined}
    for name in ("pprint", "random", "urlize", "xmlattr", "wordwrap", "center", "format", "batch", "slice"):
        environment.filters.pop(name, None)
    environment.globals.pop("lipsum", None)
    environment.globals |= {"raise_exception": _raise, "strftime_now": lambda form: now().strftime(str(form))}
    return environment


class Compiled:
    """A template, ready to be rendered from several threads."""

    def __init__(self, source: str, replace: Callable[[str], str], now: Now) -> None:
        """`replace` rewrites the texts that the template itself holds, not what it is given. Raises PackageInvalid."""
        environment = _environment(now)
        try:
            tree = environment.parse(source)
            _rewrite(tree, replace)
            self._template = environment.from_string(tree)
            self.variables = _loaded(tree)
        except (jinja2.TemplateError, RecursionError) as error:
            raise PackageInvalid(f"the chat template is no valid Jinja: {_told(error)}") from None

    def render(self, variables: Mapping[str, Any]) -> str:
        """Raises TemplateRefuses (an InvalidInput) with what the template says."""
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate({**variables, "_budget": _Budget()}):
                size += len(piece)
                if size > OUTPUT:
                    _raise(f"it writes more than {OUTPUT} characters")
                pieces.append(piece)
        except _Over as over:
            raise TemplateEndless(f"the chat template takes more than {over} for these messages") from None
        except jinja2.UndefinedError as error:
            raise TemplateRefuses(f"the chat template misses something in the messages: {_told(error)}") from None
        except RecursionError:
            raise TemplateRefuses("the chat template is nested too deep for these messages") from None
        except Exception as error:  # noqa: BLE001 - a template may raise anything on what it did not expect
            raise TemplateRefuses(f"the chat template refuses these messages: {_told(error)}") from None
        return "".join(pieces)


def _told(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    line = getattr(error, "lineno", None)
    return f"{text[:500]} (line {line})" if line else text[:500]


def _loaded(tree: nodes.Template) -> frozenset[str]:
    """Names that the template reads."""
    return frozenset(name.name for name in tree.find_all(nodes.Name) if name.ctx == "load")


def _rewrite(tree: nodes.Template, replace: Callable[[str], str]) -> None:
    for const in tree.find_all(nodes.Const):
        if isinstance(const.value, str):
            const.value = replace(const.value)
    for data in tree.find_all(nodes.TemplateData):
        data.data = replace(data.data)
    for loop in tree.find_all(nodes.For):
        loop.iter = _filter(loop.iter, "_counted")
    _measure(tree)


def _measure(node: nodes.Node) -> None:
    """Every `a ~ b` is measured."""
    for name, value in list(node.iter_fields()):
        if isinstance(value, nodes.Node):
            setattr(node, name, _measured_node(value))
        elif isinstance(value, list):
            value[:] = [_measured_node(item) if isinstance(item, nodes.Node) else item for item in value]


def _measured_node(node: nodes.Node) -> nodes.Node:
    _measure(node)
    return _filter(node, "_measured") if isinstance(node, nodes.Concat) else node


def _filter(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(
        cast(nodes.Expr, node), name, [], [], None, None, lineno=node.lineno, environment=node.environment
    )
