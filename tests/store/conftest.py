from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pelton.store import Store

BOUND = 30.0  # seconds that a test waits for something at most


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    store = Store.open(store_url)
    yield store
    store.close()


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Any]:
    """Waits for a condition and returns what made it true."""

    def wait(true: Callable[[], Any]) -> Any:
        end = time.monotonic() + BOUND
        while not (found := true()):
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.01)
        return found

    return wait


@pytest.fixture
def child() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts Python code with arguments in a process of its own, which does not outlive the test."""
    started = []

    def start(code: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
