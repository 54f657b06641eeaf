"""A folder with a Whisper model in CTranslate2's form (model.bin, config.json, a vocabulary) -> a package."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
import pybase64

from pelton.errors import SourceInvalid
from pelton.importers.draft import Options, draft, finish, name_from, place, rows_of_example
from pelton.packages import Batching, Manifest, Package, Slo, speech
from pelton.packages.preprocess import Speech, Transcript
from pelton.packages.speech import FRAMES
from pelton.registry import Registry
from pelton.runtimes.whisper.vocabulary import FILES, Vocabulary
from pelton.types import Signature, TensorSpec

MODEL: Final = "model.bin"
_KEPT: Final = (MODEL, "config.json", "preprocessor_config.json", *FILES)
_CONFIG_LIMIT: Final = 16 * 1024**2
MAX_WINDOWS: Final = 8  # of a batch: more gain nothing on processors, and each holds 1 MB
P99_MS: Final = 15_000.0
_PARTS: Final[tuple[Literal["text", "language", "duration", "segments"], ...]] = (
    "text",
    "language",
    "duration",
    "segments",
)


def is_whisper(folder: Path) -> bool:
    """Whether a folder looks like such a model: CTranslate2 has other models too, without these keys."""
    if not (folder / MODEL).is_file() or not any((folder / name).is_file() for name in FILES):
        return False
    return {"alignment_heads", "suppress_ids"} <= _json(folder / "config.json").keys()


def add(source: str, registry: Registry, options: Options) -> Package:
    """Adds such a folder. Raises SourceInvalid, PackageInvalid, ExtraMissing."""
    origin = Path(source)
    if not is_whisper(origin):
        raise SourceInvalid(
            f"{source} holds no Whisper model in CTranslate2's form: {', '.join(_KEPT[:2])}, {FILES[1]}"
        )
    with draft() as folder:
        for name in _KEPT:
            if (origin / name).is_file():
                place(origin / name, folder / name)
        manifest = manifest_of(origin)
        rows = rows_of_example(Package(folder, manifest))
        order = speech.order_of(rows["order"][0])
        order.probe = True
        rows["order"][0] = speech.encode(order)
        return finish(folder, manifest, rows, registry, options)


def manifest_of(origin: Path) -> Manifest:
    """What is known of a model from its files, without running it."""
    vocabulary = Vocabulary.read(origin)
    languages = tuple(vocabulary.languages) if vocabulary.multilingual else ("en",)
    return Manifest(
        name_from(origin.resolve().name),
        "whisper",
        MODEL,
        Signature(
            (TensorSpec("features", "FP32", (_mels(origin), FRAMES)), TensorSpec("order", "BYTES", ())),
            (TensorSpec("heard", "BYTES", ()),),
        ),
        description="speech to text" + ("" if len(languages) > 1 else " (English)"),
        source=str(origin.name),
        slo=Slo(p99_ms=P99_MS),
        batching=Batching(max_rows=MAX_WINDOWS),
        preprocess=(Speech("audio", languages=languages),),
        postprocess=tuple(Transcript("heard", part, part) for part in _PARTS),
        example={"audio": beep(), "language": "en"},
    )


def beep() -> str:
    """A quarter of a second of a tone as a WAV file, in base64: something to work on, and small."""
    tone = 128.0 + 40.0 * np.sin(2.0 * np.pi * 440.0 / 8_000 * np.arange(2_000))
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(8_000)
        file.writeframes(tone.astype(np.uint8).tobytes())
    return pybase64.b64encode(buffer.getvalue()).decode()


def _mels(folder: Path) -> int:
    """Large models of the third kind hear 128 mels, all others 80."""
    told = _json(folder / "preprocessor_config.json").get("feature_size", 80)
    if told not in (80, 128):
        raise SourceInvalid(f"preprocessor_config.json: feature_size is {told!r}; Whisper models hear 80 or 128 mels")
    return int(told)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file() or path.stat().st_size > _CONFIG_LIMIT:
        return {}
    try:
        found = msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
