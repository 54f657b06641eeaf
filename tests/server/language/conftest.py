"""Real servers with language models that have no weights, in engine processes of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "openai"))  # echo_api and echo_model live there
sys.path.insert(0, str(Path(__file__).parent))  # for engine_room, which the tests share

from echo_api import serving, until


@pytest.fixture(name="serving")
def _serving():
    return serving


@pytest.fixture(name="until")
def _until():
    return until
