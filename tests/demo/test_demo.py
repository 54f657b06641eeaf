"""`make demo` as a stranger runs it, less the virtual environment. Needs the package index: two models come from there."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(180)
def test_the_demo_adds_five_models_asks_each_and_ends(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "demo/run.py", "--home", str(tmp_path / "home"), "--port", str(port), "--stop"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"label": "phishing"' in done.stdout
    assert '"label": "spam"' in done.stdout
    assert "Invoice 4711: 128.50 EUR" in done.stdout
    assert '"label": "A4"' in done.stdout
    assert len(re.findall(r"[\d.]+ ms, batch of \d+ row", done.stdout)) == 4
    assert f"http://127.0.0.1:{port}/v1/models/spam:predict" in done.stdout
