"""langchain-openai."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest

langchain = pytest.importorskip("langchain_openai")
pydantic = pytest.importorskip("pydantic")

SAID = "user\nhello"


class Weather(pydantic.BaseModel):
    """The weather in a city."""

    model_config = pydantic.ConfigDict(extra="forbid")
    city: Literal["Oslo"]


@pytest.fixture(scope="module")
def chat(base: str) -> Any:
    return langchain.ChatOpenAI(model="echo", base_url=base, api_key="sk-test", temperature=0, max_retries=0)


def test_chat(chat: Any):
    told = chat.invoke([("user", "hello")])
    assert told.content == SAID
    assert told.usage_metadata["output_tokens"] == 12
    assert told.response_metadata["finish_reason"] == "stop"


def test_streams(chat: Any):
    chunks = list(chat.stream("hello"))
    assert "".join(chunk.content for chunk in chunks) == SAID

    async def gather() -> str:
        return "".join([str(chunk.content) async for chunk in chat.astream("hello")])

    assert asyncio.run(gather()) == SAID


def test_tools_and_structured_output(chat: Any):
    [call] = chat.bind_tools([Weather], tool_choice="required", parallel_tool_calls=False).invoke("hello").tool_calls
    assert (call["name"], call["args"]) == ("Weather", {"city": "Oslo"})
    for method in ("json_schema", "function_calling"):
        assert chat.with_structured_output(Weather, method=method).invoke("hello") == Weather(city="Oslo")


def test_responses_api(base: str):
    chat = langchain.ChatOpenAI(
        model="echo", base_url=base, api_key="sk-test", temperature=0, use_responses_api=True, max_retries=0
    )
    told = chat.invoke("hello")
    assert told.text == SAID
    assert "".join(chunk.text for chunk in chat.stream("hello")) == SAID


def test_completions_and_embeddings(base: str):
    model = langchain.OpenAI(model="echo", base_url=base, api_key="sk-test", temperature=0, max_tokens=4, max_retries=0)
    assert model.invoke("ab") == "abab"
    vectors = langchain.OpenAIEmbeddings(
        model="vectors", base_url=base, api_key="sk-test", check_embedding_ctx_length=False, max_retries=0
    )
    assert vectors.embed_documents(["hello", "a"]) == [[5.0, 532.0, 104.0, 111.0], [1.0, 97.0, 97.0, 97.0]]
