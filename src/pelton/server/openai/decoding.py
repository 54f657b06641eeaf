"""A body as one of the request structs: strict types, ranges, known fields. Every mistake names its field."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec

from pelton.server.openai.errors import ApiError, invalid, unsupported
from pelton.server.openai.foreign import FOREIGN, neutral

T = TypeVar("T")
Struct = TypeVar("Struct", bound=msgspec.Struct)

WHERE: Final = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
MISSING: Final = re.compile(r"Object missing required field `([^`]*)`")
UNKNOWN: Final = re.compile(r"Object contains unknown field `([^`]*)`")
NAMED: Final = 60  # characters of an unknown field that are repeated in its error


def json_object(body: bytes, limit: int) -> dict[str, Any]:
    """The JSON object in a body. Raises ApiError."""
    if len(body) > limit:
        raise ApiError(f"The body has {len(body)} bytes; this server takes {limit}.", None, "request_too_large", 413)
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(f"The body of your request is not valid JSON: {error}.", None, "invalid_json") from None
    if not isinstance(value, dict):
        raise invalid(f"The body must be a JSON object, not {_kind(value)}.", None, "invalid_type")
    return value


def ask(
    raw: Mapping[str, Any], kind: type[Struct], refused: Mapping[str, str], said: Mapping[str, Any]
) -> tuple[Struct, list[str]]:
    """`raw` as a struct, and the names of fields that were accepted without effect. A null is a field that is not set.

    `refused`: fields that exist and are not served, each with why; `said`: those that cannot change an answer, each with
    its type.
    Raises ApiError."""
    known = kind.__struct_fields__
    given: dict[str, Any] = {}
    ignored: list[str] = []
    for name, value in raw.items():
        if value is None:
            continue
        if name in known:
            given[name] = value
        elif name in said:
            convert(value, said[name], name)
            ignored.append(name)
        elif name in refused:
            raise unsupported(f"Unsupported parameter: '{name}'. {refused[name]}", name)
        elif name in FOREIGN:
            if not neutral(name, value):
                raise unsupported(f"Unsupported parameter: '{name}'. {FOREIGN[name].why}".rstrip(), name)
            ignored.append(name)
        else:
            raise unknown_field(name, (*known, *said, *refused))
    return convert(given, kind), ignored


def convert(value: Any, kind: type[T], at: str = "") -> T:
    """A value as a struct, or as any other type. `at`: where it stands in the body. Raises ApiError."""
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        raise _wrong(str(error), at) from None
    except RecursionError:
        raise invalid("The value is nested too deeply.", at or None) from None


def unknown_field(name: str, known: tuple[str, ...], at: str = "") -> ApiError:
    """A field that does not exist; the error names the nearest that does."""
    shown = name[:NAMED]
    near = difflib.get_close_matches(shown, known, 1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    path = f"{at}.{shown}" if at else shown
    return ApiError(f"Unknown parameter: '{path}'.{hint}", path, "unknown_parameter")


def _wrong(text: str, at: str) -> ApiError:
    found = WHERE.match(text)
    what = found["what"] if found else text
    path = _joined(at, (found["path"] or "") if found else "")
    missing, unknown = MISSING.match(what), UNKNOWN.match(what)
    if missing is not None:
        param = _joined(path, f"$.{missing[1]}")
        return ApiError(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
    if unknown is not None:
        param = _joined(path, f"$.{unknown[1][:NAMED]}")
        return ApiError(f"Unknown parameter: '{param}'.", param, "unknown_parameter")
    kind = "invalid_type" if ", got `" in what else "invalid_value"
    return ApiError(f"Invalid value for '{path}': {what[:1].lower()}{what[1:]}.", path or None, kind)


def _joined(at: str, path: str) -> str:
    """`at` and what msgspec calls a path below it, `$.a[0]`."""
    below = path.removeprefix("$").replace("[...]", "")  # a value of an object, which has no name there
    return at + below if at else below.removeprefix(".")


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")
