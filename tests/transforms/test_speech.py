"""Sounds become windows of log-mel features, cut at quiet places; what was heard becomes one transcript."""

from __future__ import annotations

import base64
import io
import wave
from typing import Any

import numpy as np
import pytest

from pelton.errors import InvalidInput, ModelFailed, PackageInvalid, TooLarge
from pelton.packages import speech
from pelton.packages.preprocess import Speech, Transcript
from pelton.packages.speech import FRAMES, Heard, Segment
from pelton.transforms import compile_finish, compile_prepare
from pelton.transforms.mel import filters, log_mel
from pelton.transforms.speech import cuts
from pelton.types import TensorSpec

RATE = 16_000
INPUTS = [TensorSpec("features", "FP32", (80, FRAMES)), TensorSpec("order", "BYTES")]


def wav(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((samples * 32767).astype(np.int16).tobytes())
    return buffer.getvalue()


def tone(seconds: float, hertz: float = 440.0, loud: float = 0.5) -> np.ndarray:
    return (loud * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


@pytest.fixture
def prepare(make: Any) -> Any:
    return compile_prepare(make(INPUTS, [Speech("audio", languages=("en", "de"))]))


def orders(prepared: Any) -> list[speech.Order]:
    return [speech.order_of(data) for data in prepared.inputs[1]]


def test_the_features_are_those_of_the_formula():
    """Against the plain sums of the definition, for a few frames."""
    samples = np.random.default_rng(1).normal(0, 0.1, 4000).astype(np.float32)
    mirrored = np.concatenate([samples[200:0:-1], samples, samples[-2:-202:-1]]).astype(np.float64)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    turns = np.exp(-2j * np.pi * np.outer(np.arange(201), np.arange(400)) / 400)
    frames = [np.abs(turns @ (mirrored[160 * i : 160 * i + 400] * hann)) ** 2 for i in range(25)]
    logs = np.log10(np.maximum(np.array(frames) @ filters(80).T.astype(np.float64), 1e-10)).T
    expected = (np.maximum(logs, logs.max() - 8) + 4) / 4
    found = log_mel(samples, 80)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-4


def test_mel_filters_are_triangles_of_equal_area_on_slaneys_scale():
    weights = filters(80)
    assert weights.shape == (80, 201)
    middles = weights.argmax(axis=1) * 40.0  # Hz
    assert (np.diff(middles) >= 0).all()
    assert np.abs(middles[:20] - (np.arange(20) + 1) * 36.9).max() < 40  # linear below 1 kHz...
    assert middles[-1] / middles[-11] == pytest.approx((middles[-11] / middles[-21]), rel=0.05)  # ... then in ratios
    assert filters(128).shape == (128, 201)
    assert weights[0, 1] == pytest.approx(0.02486, abs=1e-5)  # the first number of the authors' table
    wide = filters(80)[40:].sum(axis=1) * 40.0  # of many bins: their sum is close to the area
    assert wide == pytest.approx(1.0, abs=0.1)


def test_a_tone_is_loudest_where_its_mel_is():
    features = log_mel(tone(1.0, 1000.0), 80)
    assert features.shape == (80, 100)
    assert filters(80)[:, 25].argmax() == features[:, 50].argmax()
    assert log_mel(np.zeros(10, np.float32), 80).shape == (80, 1)


def test_a_short_sound_is_one_window_and_the_rest_is_filled(prepare: Any):
    prepared = prepare({"audio": [wav(tone(2.5))]})
    assert prepared.counts == (1,)
    assert prepared.inputs[0].shape == (1, 80, FRAMES)
    assert not prepared.inputs[0][0, :, 250:].any()
    assert orders(prepared) == [speech.Order(0, 250)]


def test_a_long_sound_is_cut_where_it_is_quiet(prepare: Any):
    pauses = [(26.0, 26.5), (49.0, 49.4)]
    samples = tone(70.0)
    for start, stop in pauses:
        samples[int(start * RATE) : int(stop * RATE)] *= 0.01
    found = orders(prepare({"audio": [wav(samples)]}))
    assert [26.0 <= order.start / 100 <= 26.5 for order in found][1]
    assert 49.0 <= found[2].start / 100 <= 49.4
    assert [order.start + order.frames for order in found] == [*(order.start for order in found[1:]), 7000]
    assert len({order.sound for order in found}) == 1
    assert found[0].sound


@pytest.mark.parametrize("frames", [1, 2999, 3000, 3001, 5000, 50_000])
def test_windows_cover_the_whole_sound_and_none_is_longer_than_thirty_seconds(frames: int):
    features = np.random.default_rng(frames).normal(size=(80, frames)).astype(np.float32)
    bounds = cuts(features)
    assert bounds[0] == 0
    assert bounds[-1] == frames
    lengths = np.diff(bounds)
    assert (lengths > 0).all()
    assert lengths.max() <= FRAMES
    assert (lengths[:-1] >= 2000).all()


def test_what_callers_want_goes_into_every_order(prepare: Any):
    given = {
        "audio": [base64.b64encode(wav(tone(40))).decode(), {"b64": base64.b64encode(wav(tone(1))).decode()}],
        "language": ["DE", None], "prompt": ["Peltonrad", None], "temperature": [0.5, 0],
        "task": ["translate", None], "words": [True, False],
    }  # fmt: skip
    prepared = prepare(given)
    assert prepared.counts == (2, 1)
    first, second, third = orders(prepared)
    for order in (first, second):
        assert (order.language, order.prompt, order.temperature, order.task, order.words) == (
            "de", "Peltonrad", 0.5, "translate", True,
        )  # fmt: skip
    assert third == speech.Order(0, 100)


def test_windows_without_any_sound_are_marked(prepare: Any):
    samples = np.concatenate([tone(25), np.zeros(40 * RATE, np.float32)])
    found = orders(prepare({"audio": [wav(samples)]}))
    assert not found[0].silent
    assert found[-1].silent


def test_a_block_that_contradicts_the_signature_is_an_invalid_package(make: Any):
    for inputs in (
        [TensorSpec("features", "FP32", (80, 100)), INPUTS[1]],
        [TensorSpec("features", "INT8", (80, FRAMES)), INPUTS[1]],
        [INPUTS[0], TensorSpec("order", "INT64")],
    ):
        with pytest.raises(PackageInvalid, match="speech block"):
            compile_prepare(make(inputs, [Speech("audio")]))
    with pytest.raises(PackageInvalid, match="languages"):
        compile_prepare(make(INPUTS, [Speech("audio", languages=())]))
    limited = compile_prepare(make(INPUTS, [Speech("audio", max_seconds=1.0)]))
    with pytest.raises(TooLarge, match="at most 1 s"):
        limited({"audio": [wav(tone(2))]})
    with pytest.raises(InvalidInput, match=r"'audio', row 1: .* empty"):
        limited({"audio": [wav(tone(0.5)), b""]})


# ---- what was heard


def heard(start: int, language: str, *texts: str) -> bytes:
    segments = [
        Segment(0, start, start / 100 + i, start / 100 + i + 1, text, [i], 0.0, -0.1, 1.0, 0.0)
        for i, text in enumerate(texts)
    ]
    return speech.encode(Heard(start, 1000, language, segments))


@pytest.fixture
def finish(make: Any) -> Any:
    blocks = [Transcript("heard", part, part) for part in ("text", "language", "duration", "segments")]
    return compile_finish(make(outputs=[TensorSpec("heard", "BYTES")], postprocess=blocks))


def test_windows_become_one_transcript_for_each_sound(finish: Any):
    windows = np.array([heard(0, "de", " Guten Tag.", " Ja."), heard(1000, "en", " Well."), heard(0, "en")], object)
    first, second = finish([windows], (2, 1))
    assert first["text"] == "Guten Tag. Ja. Well."
    assert first["language"] == "de"  # spoken longest
    assert first["duration"] == 20.0
    assert [segment["id"] for segment in first["segments"]] == [0, 1, 2]
    assert [segment["seek"] for segment in first["segments"]] == [0, 0, 1000]
    assert "words" not in first["segments"][0]
    assert second == {"text": "", "language": "en", "duration": 10.0, "segments": []}


def test_answers_that_are_no_transcript_fail(finish: Any, make: Any):
    with pytest.raises(ModelFailed, match="no transcript"):
        finish([np.array([b"?"], object)], None)
    with pytest.raises(ModelFailed, match="1 windows for 2"):
        finish([np.array([heard(0, "en")], object)], (2,))
    with pytest.raises(PackageInvalid, match="BYTES"):
        compile_finish(make(postprocess=[Transcript("y", "text")]))
