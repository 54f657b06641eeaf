"""The loaded model: rows of several callers through one decoder."""

from __future__ import annotations

import importlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec
import numpy as np

from pelton.errors import ExtraMissing, ModelFailed, PackageInvalid
from pelton.packages import Package, speech
from pelton.packages.speech import FRAMES, Order
from pelton.runtimes.contract import RuntimeOptions
from pelton.runtimes.whisper.decoding import Checks, Decoder, Row
from pelton.runtimes.whisper.vocabulary import Vocabulary
from pelton.types import Array, Signature

REMEMBERED: Final = 1024  # sounds whose language is known, while their windows come one after the other


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`options` of pelton.toml. `compute`: numbers that the library computes with; `threads`: of one batch."""

    compute: Literal["default", "auto", "int8", "int8_float32", "int16", "float32"] = "int8"
    beam: int = 1
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    threads: int | None = None
    parallel: int = 1  # batches at the same time: others keep their slots while speech, which takes seconds, is heard


class WhisperModel:
    """One model in memory. `run` may be called from several threads; the library releases the interpreter lock."""

    def __init__(self, model: Any, decoder: Decoder, signature: Signature, multilingual: bool, parallel: int) -> None:
        self.signature = signature
        self.parallel = parallel
        self._model: Any = model
        self._decoder: Decoder | None = decoder
        self._multilingual = multilingual
        self._languages: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        decoder = self._decoder
        if decoder is None:
            raise ModelFailed("this speech model was released")
        features, orders = inputs
        rows = [decoder.row(window, _order(data)) for window, data in zip(features, orders.ravel(), strict=True)]
        for row in rows:
            row.order.language = row.order.language or ("" if self._multilingual else "en")
        self._find_languages(decoder, [row for row in rows if not row.order.language and not row.order.silent])
        while active := [row for row in rows if not row.done]:
            decoder.round(active)
        answer = np.empty(len(rows), np.object_)
        answer[:] = [speech.encode(row.heard()) for row in rows]
        return [answer]

    def close(self) -> None:
        """The library gives its memory and threads back when nothing refers to the model any more."""
        if self._model is not None:
            self._model.unload_model()
        self._model = self._decoder = None

    def _find_languages(self, decoder: Decoder, rows: Sequence[Row]) -> None:
        """All windows of a sound are in the language of the one that came first."""
        with self._lock:
            for row in rows:
                row.order.language = self._languages.get(row.order.sound, "") if row.order.sound else ""
        unknown = [row for row in rows if not row.order.language]
        if not unknown:
            return
        found = decoder.languages(unknown)
        with self._lock:
            for row, language in zip(unknown, found, strict=True):
                if row.order.sound:
                    language = self._languages.setdefault(row.order.sound, language)
                row.order.language = language
            while len(self._languages) > REMEMBERED:
                self._languages.popitem(last=False)


def _order(data: Any) -> Order:
    try:
        order = speech.order_of(data)
    except (msgspec.DecodeError, TypeError) as error:
        raise ModelFailed(f"a window came without a proper order: {error}") from None
    if not 0 <= order.frames <= FRAMES:
        raise ModelFailed(f"a window has {order.frames} frames; at most {FRAMES} are heard")
    return order


def load(package: Package, options: RuntimeOptions) -> WhisperModel:
    """Raises ExtraMissing, PackageInvalid."""
    name = package.name
    try:
        own = msgspec.convert(package.manifest.options, Options)
    except msgspec.ValidationError as error:
        raise PackageInvalid(f"model {name!r}: options: {error}") from None
    if not 1 <= own.beam <= 16 or not own.temperatures or not 1 <= own.parallel <= 64:
        raise PackageInvalid(f"model {name!r}: options: beam must be 1 to 16, parallel 1 to 64, temperatures not empty")
    signature = package.manifest.signature
    if [spec.datatype for spec in signature.inputs] != ["FP32", "BYTES"] or len(signature.outputs) != 1:
        raise PackageInvalid(f"model {name!r}: a Whisper model takes features and an order, and answers one BYTES")
    try:
        library = importlib.import_module("ctranslate2")
    except ImportError:
        raise ExtraMissing(f"the speech model {name!r}", "speech") from None
    folder = package.file.parent
    vocabulary = Vocabulary.read(folder)
    try:
        model = library.models.Whisper(
            str(folder),
            device="cpu",
            compute_type=own.compute,
            intra_threads=own.threads or options.threads,
            inter_threads=own.parallel,
        )
    except (RuntimeError, ValueError) as error:
        raise PackageInvalid(f"model {name!r}: CTranslate2 cannot load it: {error}") from None
    if model.n_mels != signature.inputs[0].shape[0]:
        raise PackageInvalid(f"model {name!r}: the model hears {model.n_mels} mels; the signature says otherwise")
    checks = Checks(own.beam, own.temperatures)
    decoder = Decoder(library, model, vocabulary, checks)
    return WhisperModel(model, decoder, signature, vocabulary.multilingual, own.parallel)
