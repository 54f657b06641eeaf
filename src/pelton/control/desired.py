"""`deploy.toml`: the desired state of models in a file, and what is to be changed to reach it. Pure.

    [models.fraud]
    alias = "champion"          # or version = "3f9a...", whole or its first digits; or serve = false
    slow_ms = 50

    [models.fraud.shadow]
    alias = "challenger"        # or version
    share = 0.1

Models that the file does not name are left as they are; so is the shadow of a model without such a table.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from typing import Any

import msgspec

from pelton.deployments import Deployment, Shadow
from pelton.errors import InvalidInput


class DesiredShadow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where copies of calls go. Neither version nor alias: nowhere."""

    version: str = ""
    alias: str = ""
    share: float = 0.1
    tolerance: float = 0.01
    segment: str = ""


class DesiredModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What should answer for one model."""

    version: str = ""
    alias: str = ""
    serve: bool = True
    slow_ms: float = 0.0
    shadow: DesiredShadow | None = None


class Desired(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    models: dict[str, DesiredModel] = {}


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is to be done about one model: "deploy", "undeploy", "change", "nothing", or "blocked" (by an open rollout).

    `lines` say what differs, one each, for people."""

    name: str
    action: str
    revision: int
    target: Deployment
    lines: list[str] = []


def parse(text: str, source: str) -> Desired:
    """Reads a deploy.toml. Raises InvalidInput, naming the key and for an unknown one its nearest."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{source}: {error}") from None
    return from_values(values, source)


def from_values(values: Mapping[str, Any], source: str) -> Desired:
    """The same of values that were decoded already."""
    _check_keys(values, Desired, source, "")
    models = values.get("models", {})
    if not isinstance(models, dict):
        raise InvalidInput(f"{source}: models must be tables: [models.NAME]")
    for name, model in models.items():
        if isinstance(model, dict):
            _check_keys(model, DesiredModel, source, f"models.{name}.")
            if isinstance(model.get("shadow"), dict):
                _check_keys(model["shadow"], DesiredShadow, source, f"models.{name}.shadow.")
    try:
        desired = msgspec.convert(values, Desired)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{source}: {error}") from None
    for name, model in desired.models.items():
        _check_model(name, model, source)
    return desired


def step(current: Deployment, desired: DesiredModel, version: str, shadow_version: str) -> Step:
    """What leads from `current` to `desired`, whose references mean `version` and `shadow_version` ("": none)."""
    name = current.name
    wanted = version if desired.serve else ""
    shadow = current.shadow
    if not wanted:
        shadow = None
    elif desired.shadow is not None:
        given = desired.shadow
        shadow = Shadow(shadow_version, given.share, given.tolerance, given.segment) if shadow_version else None
    if shadow is not None and shadow.version == wanted:
        if desired.shadow is not None:
            raise InvalidInput(f"models.{name}.shadow is the version that answers; a shadow is another one")
        shadow = None
    previous = current.previous
    if current.version and current.version != wanted:
        previous = current.version
    elif previous == wanted:
        previous = ""
    target = Deployment(name, current.revision, wanted, previous, shadow=shadow, slow_ms=desired.slow_ms)
    lines = _differences(current, target)
    if not lines:
        return Step(name, "nothing", current.revision, current)
    if current.rollout:
        lines.append(f"the rollout of {current.candidate[:12]} is open: promote or abort it first")
        return Step(name, "blocked", current.revision, target, lines)
    action = "change" if wanted == current.version else "deploy" if wanted else "undeploy"
    return Step(name, action, current.revision, target, lines)


def _differences(now: Deployment, target: Deployment) -> list[str]:
    lines = []
    if now.version != target.version:
        lines.append(f"version: {_short(now.version)} -> {_short(target.version)}")
    if now.slow_ms != target.slow_ms:
        lines.append(f"slow_ms: {now.slow_ms:g} -> {target.slow_ms:g}")
    if now.shadow != target.shadow:
        lines.append(f"shadow: {_shadow(now.shadow)} -> {_shadow(target.shadow)}")
    return lines


def _short(version: str) -> str:
    return version[:12] or "none"


def _shadow(shadow: Shadow | None) -> str:
    if shadow is None:
        return "none"
    segment = f", by {shadow.segment}" if shadow.segment else ""
    return f"{shadow.version[:12]} ({shadow.share * 100:g} % of calls, tolerance {shadow.tolerance:g}{segment})"


def _check_model(name: str, model: DesiredModel, source: str) -> None:
    place = f"{source}: models.{name}"
    given = bool(model.version) + bool(model.alias)
    if model.serve and given != 1:
        raise InvalidInput(f"{place} needs a version or an alias, and not both (serve = false takes it out of service)")
    if not model.serve and (given or model.shadow is not None):
        raise InvalidInput(f"{place} has serve = false, so it takes no version, alias or shadow")
    if not 0 <= model.slow_ms < float("inf"):
        raise InvalidInput(f"{place}.slow_ms is a time in milliseconds, not {model.slow_ms:g}")
    shadow = model.shadow
    if shadow is None:
        return
    if shadow.version and shadow.alias:
        raise InvalidInput(f"{place}.shadow takes a version or an alias, not both")
    if not 0 < shadow.share <= 1:
        raise InvalidInput(f"{place}.shadow.share is above 0 and at most 1, not {shadow.share:g}")
    if not 0 <= shadow.tolerance < float("inf"):
        raise InvalidInput(f"{place}.shadow.tolerance is 0 or more, not {shadow.tolerance:g}")


def _check_keys(values: Mapping[str, Any], kind: type[msgspec.Struct], source: str, prefix: str) -> None:
    known = kind.__struct_fields__
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(known)}"
            raise InvalidInput(f"{source} has the unknown key {prefix}{key}; {hint}")
