"""Which version answers: the deployed one, one that is named, one that an alias points at, or a candidate's share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from echo_api import Api, serving, until, user
from echo_model import add

from pelton.control import Control
from pelton.registry import Registry
from pelton.rollout import Limits


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Api, Control, Registry, str, str]]:
    """A server whose model "echo" has a deployed version and a newer one."""
    home: Path = tmp_path_factory.mktemp("versions")
    old, new = add(home, context=4096), add(home, context=2048)
    registry = Registry(home)
    control = Control(registry.store, registry)
    control.deploy(f"echo:{old}")
    registry.set_alias("echo", "newest", new, expect=None)
    registry.set_alias("echo", "stable", old, expect=None)
    with serving(home) as api:
        yield api, control, registry, old, new
    registry.close()


def version(api: Api, model: str = "echo", **headers: str) -> str:
    body = {"model": model, "messages": user("x"), "max_tokens": 1}
    reply = api.ask("/v1/chat/completions", body, **headers)
    return reply.headers["pelton-version"] if reply.status == 200 else str(reply.error["code"])


def test_the_deployed_version_answers_and_others_can_be_named(house: Any):
    api, _control, _registry, old, new = house
    assert version(api) == old[:12]
    assert version(api, f"echo:{old[:8]}") == old[:12]
    assert version(api, "echo@stable") == old[:12]
    assert version(api, "echo@newest") == "model_not_found"  # it is not loaded here
    assert version(api, "echo@nothing") == "model_not_found"
    assert version(api, f"echo:{new}") == "model_not_found"


def test_a_candidate_gets_its_share_and_callers_with_a_key_stay(house: Any):
    api, control, _registry, old, new = house
    control.start_rollout(f"echo:{new}", steps=(0.5, 1.0), limits=Limits(min_calls=10**6))
    until(lambda: {version(api) for _ in range(20)} == {old[:12], new[:12]}, "both versions answer")
    assert version(api, f"echo:{new}") == new[:12]
    assert version(api, "echo@newest") == new[:12]
    for number in range(8):
        assert len({version(api, pelton_key=f"caller-{number}") for _ in range(4)}) == 1
