"""The only file that imports xllamacpp: starts llama.cpp's server in this process, on a Unix socket.

The socket lies in a folder that only this user can enter, and asks for a random key. Nothing listens on a port.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from pelton.errors import ExtraMissing, ModelFailed, PackageInvalid

# How many rounds a thread of OpenMP looks for the others before it sleeps. A thread that looks holds a core that another
# process may want, perhaps the very one that it waits for. Measured with two threads on two cores (SmolLM2-135M Q4_1, one
# stream, share of the engine without a server): 1,000 rounds 0.74, 3,000 0.86, 20,000 to the default of 300,000 between
# 0.84 and 0.97, not told apart. Beside six busy processes the default gave 3 and 12 tok/s, 3,000 gave 5 to 25.
SPIN: Final = 30_000
PREFIX: Final = "pelton-llama-"
# Tokens of prompts between two tokens of running streams. Twice as many are computed somewhat faster, and let the others
# wait twice as long: for where there are few others.
BATCH, BATCH_FEW, FEW = 128, 256, 4


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server listens, and what it asks for."""

    path: str
    key: str


def release() -> str:
    """Of xllamacpp; "" where it is not installed."""
    try:
        return version("xllamacpp")
    except PackageNotFoundError:
        return ""


class Library:
    """A running server. It lives until the process ends: llama.cpp's threads are not stopped in good order."""

    def __init__(self, weights: Path, streams: int, kv_tokens: int, threads: int) -> None:
        """Loads the weights. Raises ExtraMissing; PackageInvalid where llama.cpp cannot read them."""
        xllamacpp = _import()
        self._folder = _folder()
        self.place = Place(str(self._folder / "llama.sock"), secrets.token_urlsafe(32))
        params = _params(xllamacpp, weights, streams, kv_tokens, threads)
        params.hostnames = [self.place.path]
        params.api_keys = [self.place.key]
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            self.close()
            raise PackageInvalid(f"{weights.name}: llama.cpp cannot load it: {error}") from None
        if not str(self._server.listening_address).startswith("unix:"):
            raise ModelFailed(f"llama.cpp listens on {self._server.listening_address}, not on its Unix socket")

    def close(self) -> None:
        """Takes the socket away: nobody connects any more."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _folder() -> Path:
    """That only this user can enter. Those of processes that were killed are removed."""
    for old in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid = old.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))


def _import() -> Any:
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN))  # read once, when OpenMP's library is loaded
    try:
        import xllamacpp
    except ModuleNotFoundError:
        raise ExtraMissing("the engine llama.cpp", "chat") from None
    except ImportError as error:
        hint = ": install your system's libgomp (Debian: libgomp1)" if "libgomp" in str(error) else ""
        raise ModelFailed(f"xllamacpp is installed but cannot be loaded: {error}{hint}") from None
    return xllamacpp


def _params(xllamacpp: Any, weights: Path, streams: int, kv_tokens: int, threads: int) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.n_parallel = streams
    params.n_ctx = kv_tokens
    params.kv_unified = True  # one store for all streams: one of them may have it all
    params.fit_params = False  # what is asked for is what there is
    params.ctx_shift = False  # too long is an error, never cut
    params.n_batch = params.n_ubatch = BATCH_FEW if streams <= FEW else BATCH
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_threads_http = streams + 4
    params.cache_ram_mib = 0  # nothing is kept beside the slots: which prompts may be shared is our decision
    params.cache_idle_slots = False
    params.slot_prompt_similarity = 0.0
    params.endpoint_slots = params.endpoint_metrics = params.endpoint_props = False
    params.ui = False
    params.warmup = False
    params.verbosity = 1  # errors
    return params
