"""Real clients of the OpenAI API against a real server, whose model says its prompt again.

They run in an environment of their own (`make test-clients`): the server's is `SERVER_PYTHON`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # nothing is fetched
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DO_NOT_TRACK"] = "1"
for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
    os.environ.pop(name, None)

SERVER = Path(__file__).parent.parent / "server" / "openai"
sys.path.insert(0, str(SERVER))  # for echo_api

from echo_api import PYTHON, Api, serving  # noqa: E402


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A server with "echo" (chats), "thinker" (thinks first), "vectors" (embeds) and "ears" (hears)."""
    home = tmp_path_factory.mktemp("clients")
    subprocess.run([PYTHON, str(SERVER / "echo_model.py"), str(home)], check=True)
    with serving(home, "echo", "thinker", "vectors", "ears", trust="*") as api:
        yield api


@pytest.fixture(scope="session")
def base(api: Api) -> str:
    return f"http://127.0.0.1:{api.port}/v1"
