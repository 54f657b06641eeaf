"""The OpenAI client for JavaScript and the Vercel AI SDK, on Node."""

from __future__ import annotations

import shutil
import struct
import subprocess
import wave
from pathlib import Path

import pytest

FILES = Path(__file__).parent / "js"
NODE, NPM = shutil.which("node"), shutil.which("npm")
pytestmark = [
    pytest.mark.skipif(not NODE or not NPM, reason="needs node and npm"),
    pytest.mark.timeout(180),  # npm installs
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts beside their packages."""
    folder = tmp_path_factory.mktemp("js")
    shutil.copytree(FILES, folder, dirs_exist_ok=True)
    flags = ["--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--silent"]
    subprocess.run([str(NPM), "install", *flags], cwd=folder, check=True, timeout=170)
    return folder


def run(folder: Path, script: str, *arguments: str) -> str:
    done = subprocess.run(
        [str(NODE), script, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_openai_client(folder: Path, base: str):
    sound = folder / "a.wav"
    with wave.open(str(sound), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(struct.pack("<16000h", *(8000 if i // 40 % 2 else -8000 for i in range(16_000))))
    assert run(folder, "openai.mjs", base, str(sound)).count("ok ") == 11


def test_the_vercel_sdk(folder: Path, base: str):
    assert run(folder, "vercel.mjs", base).count("ok ") == 14
