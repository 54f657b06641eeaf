"""Sounds: files of several kinds, resampling against known sines, windows."""

from __future__ import annotations

import base64
import io
import struct
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from pelton.errors import InvalidInput, PackageInvalid, TooLarge
from pelton.packages.preprocess import Audio
from pelton.transforms import compile_prepare
from pelton.transforms.audio import Sounds, read
from pelton.transforms.resample import ratio, resample
from pelton.types import TensorSpec

RATE = 16_000


def sine(frequency: float, rate: int, seconds: float = 1.0, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def encoded(samples: np.ndarray, rate: int = RATE, format: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def sounds(shape: tuple[int, ...] = (-1,), datatype: str = "FP32", pad: float | None = None, **block: Any) -> Sounds:
    block.setdefault("sample_rate", RATE)
    return Sounds(Audio("voice", "x", **block), TensorSpec("x", datatype, shape, pad=pad))


def decoded(data: Any, **block: Any) -> np.ndarray:
    return sounds(**block)({"voice": [data]}).inputs[0][0]


def refused(data: Any, kind: type[InvalidInput] = InvalidInput, **block: Any) -> str:
    with pytest.raises(kind) as caught:
        decoded(data, **block)
    assert "'voice'" in str(caught.value)
    return str(caught.value)


def decibels(signal: np.ndarray, amplitude: float = 0.5) -> float:
    """Root mean square against that of a sine of this amplitude; the filter's run-in at both ends is left out."""
    middle = signal[len(signal) // 8 : -len(signal) // 8].astype(np.float64)
    return float(20 * np.log10(max(np.sqrt(np.mean(middle**2)), 1e-12) / (amplitude / np.sqrt(2))))


PAIRS = [
    (44_100, 16_000),
    (48_000, 16_000),
    (22_050, 16_000),
    (8_000, 16_000),
    (16_000, 44_100),
    (96_000, 8_000),
    (11_025, 48_000),
]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_sine_below_the_cut_off_comes_out_as_the_same_sine(source: int, target: int) -> None:
    for part in (0.02, 0.3, 0.85):
        frequency = part * min(source, target) / 2
        out = resample(sine(frequency, source), source, target)
        expected = sine(frequency, target)
        assert len(out) == target
        assert decibels(out - expected) < -75  # amplitude, frequency and phase at once


@pytest.mark.parametrize(("source", "target"), [pair for pair in PAIRS if pair[0] > pair[1]])
def test_what_the_lower_rate_cannot_hold_does_not_come_back_as_an_alias(source: int, target: int) -> None:
    for frequency in np.linspace(target / 2 * 1.005, source / 2 * 0.99, 7):
        assert decibels(resample(sine(float(frequency), source), source, target)) < -80


@pytest.mark.parametrize(("source", "target"), [pair for pair in PAIRS if pair[0] < pair[1]])
def test_raising_the_rate_adds_no_images(source: int, target: int) -> None:
    out = resample(sine(0.4 * source, source), source, target)
    spectrum = np.abs(np.fft.rfft(out * np.blackman(len(out))))
    images = spectrum[int(len(spectrum) * source / target) :]
    assert 20 * np.log10(images.max() / spectrum.max()) < -80


def test_silence_constants_and_single_samples_survive() -> None:
    assert not resample(np.zeros(1000, np.float32), 44_100, 16_000).any()
    constant = resample(np.ones(44_100, np.float32), 44_100, 16_000)
    np.testing.assert_allclose(constant[200:-200], 1, atol=1e-5)
    assert len(resample(np.ones(1, np.float32), 44_100, 16_000)) == 1
    same = np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(resample(same, 16_000, 16_000), same)


@given(st.integers(1_000, 192_000), st.integers(1_000, 192_000), st.integers(1, 300))
@settings(deadline=None, max_examples=25)
def test_any_pair_of_rates_gives_the_right_length_within_bounded_filters(source: int, target: int, count: int) -> None:
    factor = ratio(source, target)
    assert max(factor.numerator, factor.denominator) <= 192_000
    assert factor.numerator <= 1000
    assert float(factor) == pytest.approx(target / source, rel=1e-3)
    out = resample(np.ones(count, np.float32), source, target)
    assert len(out) == -(-count * factor.numerator // factor.denominator)
    assert np.isfinite(out).all()


def test_long_sounds_are_resampled_in_pieces_without_seams() -> None:
    out = resample(sine(1000, 48_000, 100), 48_000, 16_000)
    assert decibels(out - sine(1000, 16_000, 100)) < -75


@pytest.mark.parametrize(
    ("subtype", "error"),
    [
        ("PCM_U8", 2**-7),
        ("PCM_16", 2**-15),
        ("PCM_24", 2**-23),
        ("PCM_32", 1e-7),
        ("FLOAT", 0),
        ("DOUBLE", 0),
        ("ULAW", 0.02),
        ("MS_ADPCM", 0.05),
    ],
)
def test_every_coding_of_wav_is_read(subtype: str, error: float) -> None:
    tone = sine(440, RATE, 0.1)
    out = decoded(encoded(tone, subtype=subtype))
    np.testing.assert_allclose(out[: len(tone)], tone, atol=error)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_our_wav_reader_agrees_with_libsndfile(subtype: str) -> None:
    data = encoded(np.stack([sine(440, RATE, 0.1), sine(700, RATE, 0.1)], 1), format="WAVEX", subtype=subtype)
    ours, rate = read(memoryview(data), "x", 10)
    theirs, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    assert rate == RATE
    np.testing.assert_allclose(ours, theirs.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize(("format", "error"), [("FLAC", 2**-15), ("OGG", 0.05), ("MP3", 0.05)])
def test_flac_ogg_and_mp3_are_read(format: str, error: float) -> None:
    tone = sine(440, RATE, 1)
    out = decoded(encoded(tone, format=format))
    assert abs(len(out) - len(tone)) < 3000
    assert abs(decibels(out)) < 0.5
    if format == "FLAC":
        np.testing.assert_allclose(out, tone, atol=error)


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("part", [0.01, 0.3, 0.9])
def test_a_truncated_file_is_refused(format: str, part: float) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 5 * RATE).astype(np.float32)
    data = encoded(noise, format=format)
    assert decoded(data).size >= noise.size - 3000
    refused(data[: int(len(data) * part)])


def test_a_flac_file_cut_between_two_frames_is_refused() -> None:
    data = encoded(np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32), format="FLAC")
    refused(data[: data.rfind(b"\xff\xf8")])


def test_a_wav_written_to_a_pipe_has_no_length_and_is_read_to_its_end() -> None:
    data = bytearray(encoded(sine(440, RATE, 0.1), subtype="PCM_16"))
    at = data.index(b"data") + 4
    for size in (0xFFFFFFFF, 0):
        struct.pack_into("<I", data, at, size)
        assert len(decoded(bytes(data))) == RATE // 10


def wav(
    tag: int = 1, channels: int = 1, rate: int = RATE, bits: int = 16, align: int = 2, body: bytes = b"\0\0" * 8
) -> bytes:
    form = struct.pack("<HHIIHH", tag, channels, rate, 0, align, bits)
    chunks = b"fmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


@pytest.mark.parametrize(
    "data",
    [
        wav(channels=0), wav(rate=0), wav(rate=10), wav(rate=4_000_000_000), wav(align=3), wav(tag=77), wav(body=b""),
        wav(tag=3, bits=32, align=4, body=struct.pack("<f", float("nan")) * 9),
        wav(tag=3, bits=32, align=4, body=struct.pack("<f", 3e38) * 9),
        wav(tag=3, bits=64, align=8, body=struct.pack("<d", 1e300) * 9),
        wav()[:12], wav()[:30], b"RIFF\0\0\0\0WAVEdata\4\0\0\0abcd", b"RIFF", b"", b"ID3", b"\xff\xfb\x90\0" * 20, b"fLaC" * 20,
        b"OggS" + b"\0" * 40, b"hello", "hello", None, 5, [], encoded(sine(440, RATE, 0.1), format="AIFF"),
    ],
)  # fmt: skip
def test_what_is_no_usable_sound_is_refused(data: Any) -> None:
    refused(data)


@given(st.binary(max_size=40), st.integers(0, 10_000), st.sampled_from(["WAV", "FLAC", "OGG", "MP3"]))
@settings(deadline=None, max_examples=60)
def test_damaged_files_give_a_sound_or_an_invalid_input(noise: bytes, at: int, format: str) -> None:
    data = encoded(sine(440, RATE, 0.1), format=format)
    at %= len(data)
    try:
        out = decoded(data[:at] + noise + data[at + len(noise) :])
    except InvalidInput as error:
        assert "'voice'" in str(error)  # noqa: PT017
    else:
        assert np.isfinite(out).all()


def test_channels_are_averaged_and_base64_is_read() -> None:
    stereo = np.stack([sine(440, RATE, 0.1), np.zeros(RATE // 10, np.float32)], 1)
    out = decoded(base64.b64encode(encoded(stereo, subtype="FLOAT")).decode(), scale=32767)
    np.testing.assert_allclose(out, sine(440, RATE, 0.1) / 2 * 32767, rtol=1e-5, atol=1e-3)


def test_limits_of_seconds_bytes_and_windows_hold() -> None:
    for format in ("WAV", "FLAC", "OGG", "MP3"):
        data = encoded(sine(440, RATE, 2), format=format)
        assert "at most 1.5 s" in refused(data, TooLarge, max_seconds=1.5)
        refused(data, TooLarge, max_bytes=len(data) - 1)
    data = encoded(sine(440, RATE, 1))
    refused(data, TooLarge, shape=(1000,), window=1000, max_windows=15)
    assert sounds((1000,), window=1000, max_windows=16)({"voice": [data]}).counts == (16,)


def test_windows_overlap_by_the_hop_and_the_last_is_filled_with_zeros() -> None:
    samples = np.arange(1, 11, dtype=np.float32) / 16
    prepared = sounds((4,), window=4, hop=3)(
        {"voice": [encoded(samples, subtype="FLOAT"), encoded(samples[:2], subtype="FLOAT")]}
    )
    assert prepared.counts == (3, 1)
    assert (prepared.inputs[0] * 16).tolist() == [[1, 2, 3, 4], [4, 5, 6, 7], [7, 8, 9, 10], [1, 2, 0, 0]]
    last = sounds((4,), window=4)({"voice": [encoded(samples, subtype="FLOAT")]}).inputs[0]
    assert (last * 16).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 0, 0]]


def test_other_inputs_are_repeated_for_each_window(make: Any) -> None:
    specs = [TensorSpec("rate", "INT64", ()), TensorSpec("x", "FP32", (4, 1))]
    prepare = compile_prepare(make(specs, [Audio("voice", "x", RATE, window=4)]))
    assert prepare.heavy
    data = [encoded(np.ones(count, np.float32) / 2, subtype="FLOAT") for count in (5, 3)]
    prepared = prepare({"voice": data, "rate": [7, 9]})
    assert prepared.counts == (2, 1)
    assert prepared.inputs[0].tolist() == [7, 7, 9]
    assert prepared.inputs[1].shape == (3, 4, 1)


def test_two_sounds_of_one_call_must_agree_in_windows(make: Any) -> None:
    blocks = [Audio("a", "x", RATE, window=4), Audio("b", "y", RATE, window=4)]
    prepare = compile_prepare(make([TensorSpec("x", "FP32", (4,)), TensorSpec("y", "FP32", (4,))], blocks))
    short, long = (encoded(np.ones(count, np.float32) / 2) for count in (4, 8))
    assert prepare({"a": [long], "b": [long]}).counts == (2,)
    with pytest.raises(InvalidInput, match="windows"):
        prepare({"a": [short], "b": [long]})


def test_whole_sounds_of_unlike_length_are_padded_only_where_the_input_says_with_what() -> None:
    data = [encoded(np.ones(count, np.float32) / 2, subtype="FLOAT") for count in (3, 5)]
    with pytest.raises(InvalidInput, match="different shapes"):
        sounds()({"voice": data})
    assert sounds((1, -1), pad=0)({"voice": data}).inputs[0].tolist() == [[[0.5, 0.5, 0.5, 0, 0]], [[0.5] * 5]]


def test_half_precision_overflow_is_refused() -> None:
    data = encoded(sine(440, RATE, 0.1))
    assert decoded(data, datatype="FP16").dtype == np.float16
    assert "FP16" in refused(data, datatype="FP16", scale=1e6)


@pytest.mark.parametrize(
    ("shape", "datatype", "block"),
    [
        ((1000,), "FP32", {}),
        ((1000,), "FP32", {"window": 999}),
        ((-1, -1), "FP32", {}),
        ((-1,), "INT16", {}),
        ((-1,), "FP32", {"sample_rate": 1}),
        ((-1,), "FP32", {"hop": 5}),
        ((10,), "FP32", {"window": 10, "hop": 11}),
        ((10,), "FP32", {"window": 10, "hop": 0}),
        ((10,), "FP32", {"window": 10, "max_windows": 0}),
    ],
)
def test_a_block_that_contradicts_its_input_is_an_invalid_package(
    shape: Any, datatype: str, block: dict[str, Any]
) -> None:
    with pytest.raises(PackageInvalid):
        sounds(shape, datatype, **block)
