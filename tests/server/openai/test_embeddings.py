"""Embeddings over real HTTP, from a model whose "vector" tells what it got: count, sum, first and last of its tokens."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from echo_api import Api, Reply

PATH = "/v1/embeddings"


def embed(api: Api, given: Any, **more: Any) -> Reply:
    return api.ask(PATH, {"model": "vectors", "input": given, **more})


def test_a_text_has_one_vector(senses: Api):
    told = embed(senses, "hello").json
    assert told["object"] == "list"
    assert told["model"] == "vectors"
    assert told["data"] == [{"object": "embedding", "index": 0, "embedding": [5.0, 532.0, 104.0, 111.0]}]
    assert told["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


def test_vectors_come_in_the_order_of_the_texts(senses: Api):
    data = embed(senses, ["a", "ab", "abc", "b" * 40]).json["data"]
    assert [one["index"] for one in data] == [0, 1, 2, 3]
    assert [one["embedding"][0] for one in data] == [1.0, 2.0, 3.0, 40.0]


@pytest.mark.parametrize("given", [[97, 98], [[97, 98]]])
def test_tokens_are_taken_as_they_are(senses: Api, given: Any):
    assert embed(senses, given).json["data"][0]["embedding"] == [2.0, 195.0, 97.0, 98.0]


def test_base64_is_the_same_in_fewer_bytes(senses: Api):
    told = embed(senses, ["hello", "a"], encoding_format="base64").json["data"]
    vectors = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4").tolist() for one in told]
    assert vectors == [[5.0, 532.0, 104.0, 111.0], [1.0, 97.0, 97.0, 97.0]]


def test_dimensions_that_the_model_allows_are_given(senses: Api):
    assert embed(senses, "hello", dimensions=2).json["data"][0]["embedding"] == [5.0, 532.0]
    assert len(embed(senses, "hello", dimensions=4).json["data"][0]["embedding"]) == 4


@pytest.mark.parametrize(
    ("given", "more", "param"),
    [
        ("hello", {"dimensions": 3}, "dimensions"),
        ("hello", {"encoding_format": "int8"}, "encoding_format"),
        ("", {}, "input"),
        ([], {}, "input"),
        ([[]], {}, "input"),
        (["a", ""], {}, "input"),
        ([1.5], {}, "input"),
        (["a", [1]], {}, "input[1]"),
        ("x" * 100, {}, "input"),
        ([99_999], {}, "input"),
        ("hello", {"dimension": 2}, "dimension"),
    ],
)
def test_what_cannot_be_is_refused(senses: Api, given: Any, more: dict[str, Any], param: str):
    reply = embed(senses, given, **more)
    assert reply.status in (400, 413), reply.body
    assert reply.error["param"] == param
    assert reply.error["type"] == "invalid_request_error"


def test_a_model_that_embeds_nothing_says_so(senses: Api):
    reply = senses.ask(PATH, {"model": "echo", "input": "x"})
    assert (reply.status, reply.error["code"]) == (400, "model_not_supported")
    assert senses.ask(
        "/v1/chat/completions", {"model": "vectors", "messages": [{"role": "user", "content": "x"}]}
    ).error["code"] == ("model_not_supported")


def test_models_say_what_they_are_for(senses: Api):
    kinds = {model["id"]: model["kind"] for model in senses.get("/v1/models").json["data"]}
    assert kinds == {"vectors": "embedding", "ears": "speech", "echo": "language"}


def test_headers_tell_the_times(senses: Api):
    headers = embed(senses, "hello", user="u").headers
    assert "run;dur=" in headers["server-timing"]
    assert headers["pelton-tokens"] == "prompt=5"
    assert headers["pelton-ignored"] == "user"
