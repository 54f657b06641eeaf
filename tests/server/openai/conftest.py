"""A real server with models that answer at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for echo_api and echo_model, which the tests share

from echo_api import Api, serving
from echo_model import THINKING, add, add_embedding, add_speech


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A server with "echo" (chats), "base" (only completes), "small" (64 tokens of context), "thinker" (thinks first)."""
    home = tmp_path_factory.mktemp("openai")
    add(home)
    add(home, "base", chat=False)
    add(home, "small", context=64)
    add(home, "thinker", template=THINKING)
    with serving(home, "echo", "base", "small", "thinker") as api:
        yield api


@pytest.fixture(scope="session")
def senses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A server with "vectors" (embeds texts), "ears" (hears sounds) and "echo"."""
    home = tmp_path_factory.mktemp("senses")
    add_embedding(home)
    add_speech(home)
    add(home)
    with serving(home, "vectors", "ears", "echo", trust="*") as api:
        yield api
