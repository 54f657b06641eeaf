"""Transcriptions over real HTTP, from a model that hears nothing and tells what it was asked."""

from __future__ import annotations

import io
import json
import struct
import wave
from typing import Any

import pytest
from echo_api import Api, Reply

from pelton.errors import InvalidInput
from pelton.server.openai import multipart
from pelton.server.openai.speech import SpeechAsk, written

PATH = "/v1/audio/transcriptions"


def sound(seconds: float = 1.0, rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        count = int(seconds * rate)
        out.writeframes(struct.pack(f"<{count}h", *(8000 if i // 40 % 2 else -8000 for i in range(count))))
    return file.getvalue()


def form(*fields: tuple[str, Any], boundary: str = "-x-") -> tuple[bytes, str]:
    parts = []
    for name, value in fields:
        more = '; filename="a.wav"\r\ncontent-type: audio/wav' if name == "file" else ""
        data = value if isinstance(value, bytes) else str(value).encode()
        parts.append(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + data)
    return b"\r\n".join([*parts, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"


def transcribe(api: Api, *fields: tuple[str, Any], path: str = PATH) -> Reply:
    body, kind = form(("model", "ears"), ("file", sound()), *fields)
    return api.ask(path, body, content_type=kind)


def test_a_sound_becomes_text(senses: Api):
    told = transcribe(senses).json
    assert told == {"text": "hello transcribe en", "usage": {"type": "duration", "seconds": 1.0}}


def test_fields_reach_the_model(senses: Api):
    told = transcribe(senses, ("language", "de"), ("temperature", 0.5), ("response_format", "verbose_json")).json
    assert told["text"] == "hello transcribe de"
    assert told["language"] == "de"
    assert told["duration"] == 1.0
    assert told["segments"][0]["temperature"] == 0.5
    assert "words" not in told


def test_words_come_where_they_are_asked_for(senses: Api):
    asked = [("response_format", "verbose_json"), ("timestamp_granularities[]", "word")]
    told = transcribe(senses, *asked).json
    assert [word["word"] for word in told["words"]] == ["hello", "transcribe", "en"]
    assert "segments" not in told
    both = transcribe(senses, *asked, ("timestamp_granularities[]", "segment")).json
    assert both["segments"]
    assert both["words"]
    assert "words" not in both["segments"][0]


def test_text_and_subtitles(senses: Api):
    assert transcribe(senses, ("response_format", "text")).body == b"hello transcribe en\n"
    srt = transcribe(senses, ("response_format", "srt"))
    assert srt.body == b"1\n00:00:00,000 --> 00:00:01,000\nhello transcribe en\n\n"
    vtt = transcribe(senses, ("response_format", "vtt"))
    assert vtt.body == b"WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nhello transcribe en\n\n"
    assert vtt.headers["content-type"].startswith("text/vtt")


def test_translations(senses: Api):
    told = transcribe(senses, ("response_format", "verbose_json"), path="/v1/audio/translations").json
    assert (told["task"], told["language"]) == ("translate", "english")
    assert "translate" in told["text"]
    assert transcribe(senses, ("language", "de"), path="/v1/audio/translations").error["param"] == "language"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ([("response_format", "mp3")], "response_format"),
        ([("temperature", "2")], "temperature"),
        ([("temperature", "warm")], "temperature"),
        ([("language", "klingon")], "language"),
        ([("timestamp_granularities[]", "word")], "timestamp_granularities"),
        ([("timestamp_granularities[]", "line"), ("response_format", "verbose_json")], "timestamp_granularities"),
        ([("include[]", "logprobs")], "include"),
        ([("volume", "11")], "volume"),
        ([("file", b"")], "file"),
        ([("file", b"this is no sound")], "file"),
        ([("model", "echo")], "model"),
        ([("model", "nothing")], "model"),
        ([("prompt", b"\xff")], "prompt"),
    ],
)
def test_what_cannot_be_is_refused(senses: Api, fields: list[tuple[str, Any]], param: str):
    reply = transcribe(senses, *fields)
    assert reply.status in (400, 404), reply.body
    assert reply.error["param"] == param


def test_a_stream_that_is_not_wanted_is_not_refused(senses: Api):
    assert transcribe(senses, ("stream", "false")).status == 200


def test_a_body_that_is_no_form_is_told(senses: Api):
    assert senses.ask(PATH, {"model": "ears"}).status == 400
    assert senses.ask(PATH, b"", content_type="multipart/form-data; boundary=x").status == 400
    body, kind = form(("model", "ears"))
    assert senses.ask(PATH, body, content_type=kind).error["param"] == "file"
    assert senses.ask(PATH, body[:-10], content_type=kind).status == 400


# ---- the parts alone


def test_forms_are_read_as_they_are_written():
    body, kind = form(("a", "1"), ("a", "2"), ("file", b"\r\n--not the mark\r\n\x00\xff"), ("ümlaut", "ß"))
    assert multipart.read(kind.encode(), body) == {
        "a": [b"1", b"2"], "file": [b"\r\n--not the mark\r\n\x00\xff"], "ümlaut": ["ß".encode()],
    }  # fmt: skip
    assert multipart.read(b'multipart/form-data; charset=x; boundary="-x-"', b"preamble\r\n" + body)["a"] == [
        b"1",
        b"2",
    ]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"application/json", b"{}"),
        (b"multipart/form-data", b"--x--"),
        (b"multipart/form-data; boundary=x", b"--y--"),
        (b"multipart/form-data; boundary=x", b"--x\r\n\r\nvalue"),
        (b"multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nv'),
        (b"multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\nv\r\n--x--"),
        (
            b"multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nv\r\n' * 65 + b"--x--",
        ),
    ],
)
def test_forms_that_are_none_are_refused(kind: bytes, body: bytes):
    with pytest.raises(InvalidInput):
        multipart.read(kind, body)


def test_times_of_subtitles_are_exact():
    told = {
        "text": " a",
        "language": "en",
        "duration": 4000.0,
        "segments": [{"start": 3599.9996, "end": 3661.5, "text": " a --> b"}],
    }
    ask = SpeechAsk(model="m", file=b"", response_format="srt")
    assert written(told, ask)[1] == b"1\n01:00:00,000 --> 01:01:01,500\na -> b\n\n"


def test_a_transcription_streams_its_segments(senses: Api):
    reply = transcribe(senses, ("stream", "true"), ("chunking_strategy", "auto"))
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(block.partition("data: ")[2]) for block in reply.body.decode().split("\n\n")[:-1]]
    assert [event["type"] for event in events] == ["transcript.text.delta", "transcript.text.done"]
    assert events[0]["delta"].strip() == events[1]["text"] == "hello transcribe en"
    assert transcribe(senses, ("stream", "False")).json["text"] == "hello transcribe en"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ([("stream", "true"), ("response_format", "srt")], "stream"),
        ([("stream", "perhaps")], "stream"),
        ([("keywords[]", "Oslo")], "keywords"),
        ([("chunking_strategy", "other")], "chunking_strategy"),
    ],
)
def test_a_stream_that_cannot_be_is_named(senses: Api, fields: list[tuple[str, str]], param: str):
    reply = transcribe(senses, *fields)
    assert (reply.status, reply.error["param"]) == (400, param)
