"""The `openai` package for Python, with its own check that every answer fits its types."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import wave
from typing import Any, Literal

import pytest

openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")

SAID = "user\nhello"
HELLO: Any = [{"role": "user", "content": "hello"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


class Answer(pydantic.BaseModel):
    city: Literal["Oslo"]
    number: Literal[7]


@pytest.fixture(scope="module")
def client(base: str) -> Any:
    with openai.OpenAI(base_url=base, api_key="sk-test", _strict_response_validation=True, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def lenient(base: str) -> Any:
    """As people use it. The types of the package know of no null as finish_reason of a completion's chunk, nor of base64
    as an embedding, though OpenAI sends both."""
    with openai.OpenAI(base_url=base, api_key="sk-test", max_retries=0) as client:
        yield client


def sound() -> io.BytesIO:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(struct.pack("<16000h", *(8000 if i // 40 % 2 else -8000 for i in range(16_000))))
    file.seek(0)
    file.name = "a.wav"
    return file


def test_chat(client: Any):
    told = client.chat.completions.create(model="echo", messages=HELLO, temperature=0)
    assert told.choices[0].message.content == SAID
    assert told.choices[0].finish_reason == "stop"
    assert told.usage.completion_tokens == 12
    raw = client.chat.completions.with_raw_response.create(model="echo", messages=HELLO, max_completion_tokens=2)
    assert raw.headers["pelton-engine"] == "echo"
    assert raw.parse().choices[0].finish_reason == "length"


def test_chat_streams(client: Any):
    stream = client.chat.completions.create(
        model="echo", messages=HELLO, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == SAID
    assert chunks[-1].usage.completion_tokens == 12
    with client.chat.completions.stream(model="echo", messages=HELLO, temperature=0) as helper:
        for _ in helper:
            pass
        assert helper.get_final_completion().choices[0].message.content == SAID


def test_a_stream_can_be_left(client: Any):
    for _ in range(3):
        stream = client.chat.completions.create(
            model="echo", messages=HELLO, max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        stream.close()
    assert client.chat.completions.create(model="echo", messages=HELLO, max_tokens=1).choices


def test_many_at_once(base: str):
    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=base, api_key="sk-test", max_retries=0) as client:

            async def one(number: int) -> str:
                messages: Any = [{"role": "user", "content": f"number {number}"}]
                stream = await client.chat.completions.create(
                    model="echo", messages=messages, temperature=0, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(one(number) for number in range(24)))

    assert asyncio.run(all_of_them()) == [f"user\nnumber {number}" for number in range(24)]


def test_parse(client: Any):
    told = client.chat.completions.parse(model="echo", messages=HELLO, temperature=0, response_format=Answer)
    assert told.choices[0].message.parsed == Answer(city="Oslo", number=7)
    told = client.responses.parse(model="echo", input="hello", temperature=0, text_format=Answer)
    assert told.output_parsed == Answer(city="Oslo", number=7)


def test_tools(client: Any):
    ask: Any = {"model": "echo", "messages": HELLO, "temperature": 0, "tools": [TOOL], "parallel_tool_calls": False}
    [call] = client.chat.completions.create(**ask, tool_choice="required").choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Oslo"})
    with client.chat.completions.stream(**ask, tool_choice="required") as stream:
        kinds = {event.type for event in stream}
        choice = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.done" in kinds
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls[0].function.parsed_arguments == {"city": "Oslo"}
    again = [
        *HELLO,
        choice.message.model_dump(exclude_none=True, exclude={"parsed": True, "tool_calls": {"__all__": {"function": {"parsed_arguments": True}}}}),
        {"role": "tool", "tool_call_id": choice.message.tool_calls[0].id, "content": "rain"},
    ]  # fmt: skip
    assert client.chat.completions.create(model="echo", messages=again, max_tokens=1).choices


def test_functions_of_old(client: Any):
    ask: Any = {"model": "echo", "messages": HELLO, "functions": [TOOL["function"]], "temperature": 0}
    choice = client.chat.completions.create(**ask, function_call={"name": "weather"}).choices[0]
    assert (choice.finish_reason, choice.message.function_call.name) == ("function_call", "weather")
    assert json.loads(choice.message.function_call.arguments) == {"city": "Oslo"}
    stream = client.chat.completions.create(**ask, function_call={"name": "weather"}, stream=True)
    pieces = [delta.function_call for chunk in stream if (delta := chunk.choices[0].delta).function_call]
    assert json.loads("".join(piece.arguments for piece in pieces)) == {"city": "Oslo"}


def test_thoughts(client: Any):
    asked: Any = [{"role": "user", "content": "<think>Let me see.</think>Yes."}]
    told = client.chat.completions.create(model="thinker", messages=asked, temperature=0)
    assert (told.choices[0].message.reasoning_content, told.choices[0].message.content) == ("Let me see.", "Yes.")
    assert told.usage.completion_tokens_details.reasoning_tokens == 26
    deltas = [
        chunk.choices[0].delta
        for chunk in client.chat.completions.create(model="thinker", messages=asked, temperature=0, stream=True)
    ]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "Let me see."
    assert "".join(delta.content or "" for delta in deltas) == "Yes."
    with client.responses.stream(model="thinker", input=asked[0]["content"], temperature=0) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert "response.reasoning_text.delta" in kinds
    assert [item.type for item in final.output] == ["reasoning", "message"]
    assert (final.output[0].content[0].text, final.output_text) == ("Let me see.", "Yes.")
    again: Any = [*final.output, {"role": "user", "content": "x"}]
    assert client.responses.create(model="thinker", input=again, max_output_tokens=16).output


def test_fields_of_vllm(client: Any):
    told = client.chat.completions.create(
        model="echo", messages=HELLO, temperature=0, extra_body={"guided_choice": ["yes", "no"], "top_k": 5}
    )
    assert told.choices[0].message.content in ("yes", "no")
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="echo", messages=HELLO, extra_body={"min_tokens": 5})
    assert (wrong.value.param, wrong.value.code) == ("min_tokens", "unsupported_parameter")


def test_logprobs(client: Any):
    told = client.chat.completions.create(model="echo", messages=HELLO, temperature=0, logprobs=True, top_logprobs=2)
    content = told.choices[0].logprobs.content
    assert "".join(entry.token for entry in content[1:]) == SAID
    assert len(content[0].top_logprobs) == 2


def test_completions(client: Any, lenient: Any):
    told = client.completions.create(model="echo", prompt=["ab", "c"], max_tokens=4, temperature=0, logprobs=1, n=2)
    assert [choice.text for choice in told.choices] == ["abab", "abab", "cccc", "cccc"]
    assert told.choices[0].logprobs.tokens == ["a", "b", "a", "b"]
    stream = lenient.completions.create(model="echo", prompt=[97, 98], max_tokens=4, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "abab"


def test_embeddings(client: Any, lenient: Any):
    told = lenient.embeddings.create(model="vectors", input=["hello", "a"])  # the client asks for base64 by itself
    assert told.data[0].embedding == [5.0, 532.0, 104.0, 111.0]
    assert told.usage.prompt_tokens == 6
    assert lenient.embeddings.create(model="vectors", input="hello", dimensions=2).data[0].embedding == [5.0, 532.0]
    floats = client.embeddings.create(model="vectors", input=[97, 98], encoding_format="float")
    assert floats.data[0].embedding == [2.0, 195.0, 97.0, 98.0]


def test_responses(client: Any):
    first = client.responses.create(model="echo", input="hello", instructions="Be brief.", temperature=0)
    assert first.output_text == "system\nBe brief."
    second = client.responses.create(model="echo", input="more", previous_response_id=first.id, temperature=0)
    assert second.output_text == "user\nhello"
    assert client.responses.retrieve(first.id).output_text == first.output_text
    assert [item.type for item in client.responses.input_items.list(first.id)] == ["message"]
    counted = client.responses.input_tokens.count(model="echo", input="hello", instructions="Be brief.")
    assert counted.input_tokens == first.usage.input_tokens
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_responses_stream(client: Any):
    events = list(client.responses.create(model="echo", input="hello", temperature=0, stream=True))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == SAID
    tool = {"type": "function", **TOOL["function"]}
    with client.responses.stream(
        model="echo", input="hello", temperature=0, tools=[tool], tool_choice="required", parallel_tool_calls=False
    ) as stream:
        for _ in stream:
            pass
        final = stream.get_final_response()
    assert json.loads(final.output[0].arguments) == {"city": "Oslo"}


def test_transcriptions(client: Any):
    told = client.audio.transcriptions.create(model="ears", file=sound(), language="de")
    assert told.text == "hello transcribe de"
    verbose = client.audio.transcriptions.create(
        model="ears", file=sound(), response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    assert [word.word for word in verbose.words] == ["hello", "transcribe", "en"]
    assert verbose.segments[0].text == " hello transcribe en"
    assert "-->" in client.audio.transcriptions.create(model="ears", file=sound(), response_format="srt")
    events = list(client.audio.transcriptions.create(model="ears", file=sound(), stream=True))
    assert [event.type for event in events] == ["transcript.text.delta", "transcript.text.done"]
    assert "translate" in client.audio.translations.create(model="ears", file=sound()).text


def test_models(client: Any):
    assert [model.id for model in client.models.list()] == ["ears", "echo", "thinker", "vectors"]
    assert client.models.retrieve("echo").owned_by == "pelton"


def test_errors_have_their_classes(client: Any, base: str):
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="echo", messages=HELLO, temperature=3)
    assert (wrong.value.param, wrong.value.code) == ("temperature", "invalid_value")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="echo", prompt="x" * 9000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")
