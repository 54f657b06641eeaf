"""litellm, as it talks to any server that speaks the OpenAI API."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

litellm = pytest.importorskip("litellm")
pytestmark = pytest.mark.filterwarnings("ignore")  # its own

HELLO = [{"role": "user", "content": "hello"}]
SAID = "user\nhello"
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"], "additionalProperties": False}},
}  # fmt: skip


@pytest.fixture(scope="module")
def ask(base: str) -> dict[str, Any]:
    return {"api_base": base, "api_key": "sk-test", "num_retries": 0}


def test_chat(ask: dict[str, Any]):
    told = litellm.completion(model="openai/echo", messages=HELLO, temperature=0, **ask)
    assert told.choices[0].message.content == SAID
    assert told.usage.completion_tokens == 12


def test_streams(ask: dict[str, Any]):
    chunks = list(litellm.completion(model="openai/echo", messages=HELLO, temperature=0, stream=True, **ask))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == SAID

    async def gather() -> str:
        stream = await litellm.acompletion(model="openai/echo", messages=HELLO, temperature=0, stream=True, **ask)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(gather()) == SAID


def test_thoughts(ask: dict[str, Any]):
    asked = [{"role": "user", "content": "<think>Hm.</think>Yes."}]
    told = litellm.completion(model="openai/thinker", messages=asked, temperature=0, **ask).choices[0].message
    assert (told.reasoning_content, told.content) == ("Hm.", "Yes.")


def test_tools(ask: dict[str, Any]):
    told = litellm.completion(
        model="openai/echo", messages=HELLO, temperature=0, tools=[TOOL], tool_choice="required",
        parallel_tool_calls=False, **ask,
    )  # fmt: skip
    [call] = told.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Oslo"}


def test_completions_embeddings_and_responses(ask: dict[str, Any]):
    told = litellm.text_completion(model="text-completion-openai/echo", prompt="ab", max_tokens=4, temperature=0, **ask)
    assert told.choices[0].text == "abab"
    told = litellm.embedding(model="openai/vectors", input=["hello"], **ask)
    assert told.data[0]["embedding"] == [5.0, 532.0, 104.0, 111.0]
    told = litellm.responses(
        model="openai/echo", input="hello", temperature=0, api_base=ask["api_base"], api_key="sk-test"
    )
    assert told.output[0].content[0].text == SAID


def test_errors(ask: dict[str, Any]):
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(model="openai/echo", messages=HELLO, temperature=3, **ask)
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="openai/gpt-4o", messages=HELLO, **ask)
