"""What may stand in a request: every field that OpenAI publishes is taken, refused with why, or told to be without effect.

A field of a struct is taken. `REFUSED` and `SAID` (accepted, cannot change an answer, told in a header) name the rest;
a test holds these tables against OpenAI's published schema.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

MAX_N: Final = 128
MAX_STOPS: Final = 4
MAX_STOP: Final = 1024  # characters
MAX_TOP_LOGPROBS: Final = 20
SEED_LIMIT: Final = 2**63
MANY: Final = 2048  # prompts or inputs in one request

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
TopP = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Choices = Annotated[int, Meta(ge=1, le=MAX_N)]
Tokens = Annotated[int, Meta(ge=1, le=2**31)]
TopLogprobs = Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)]
Bias = dict[str, Annotated[float, Meta(ge=-100, le=100)]]
Seed = Annotated[int, Meta(ge=-SEED_LIMIT, le=SEED_LIMIT - 1)]
Stop = str | Annotated[list[str], Meta(max_length=MAX_STOPS)]
TokenId = Annotated[int, Meta(ge=0, le=2**31)]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool = False
    include_obfuscation: bool | None = None


class SamplingAsk(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What all endpoints that generate have in common. `top_k` to `ignore_eos` are ours.

    None: what the model's makers advise, else OpenAI's default."""

    model: Name
    temperature: Temperature | None = None
    top_p: TopP | None = None
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    seed: Seed | None = None
    stop: Stop = ""
    logit_bias: Bias = {}
    n: Choices = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    ignore_eos: bool = False


class ChatAsk(SamplingAsk, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=10_000)]
    max_completion_tokens: Tokens | None = None
    max_tokens: Tokens | None = None
    logprobs: bool = False
    top_logprobs: TopLogprobs | None = None
    response_format: dict[str, Any] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=128)] = []
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    modalities: tuple[str, ...] = ("text",)
    reasoning_effort: str | None = None
    verbosity: str | None = None
    chat_template_kwargs: dict[str, Any] = {}


class CompletionAsk(SamplingAsk, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/completions."""

    prompt: str | list[Any]
    max_tokens: Annotated[int, Meta(ge=0, le=2**31)] = 16
    logprobs: TopLogprobs | None = None
    echo: bool = False
    best_of: Choices | None = None
    suffix: str = ""


class ResponseAsk(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/responses."""

    model: Name
    input: str | Annotated[list[dict[str, Any]], Meta(max_length=10_000)] = ""
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_logprobs: TopLogprobs | None = None
    include: Annotated[list[str], Meta(max_length=20)] = []
    metadata: Annotated[dict[str, Annotated[str, Meta(max_length=512)]], Meta(max_length=16)] = {}
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    reasoning: dict[str, Any] = {}
    store: bool = True
    stream: bool = False
    stream_options: dict[str, Any] = {}
    text: dict[str, Any] = {}
    tools: Annotated[list[dict[str, Any]], Meta(max_length=128)] = []
    tool_choice: str | dict[str, Any] | None = None
    truncation: str = "disabled"
    background: bool = False
    seed: Seed | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    ignore_eos: bool = False
    chat_template_kwargs: dict[str, Any] = {}


class EmbeddingAsk(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/embeddings."""

    model: Name
    input: str | list[Any]
    encoding_format: str = "float"
    dimensions: Tokens | None = None


_TEXT_ONLY: Final = "This server gives text only."
_NO_SEARCH: Final = "This server searches nothing."

CHAT_REFUSED: Final = {
    "audio": _TEXT_ONLY,
    "web_search_options": _NO_SEARCH,
    "functions": "Use 'tools' instead.",
    "function_call": "Use 'tool_choice' instead.",
}
RESPONSE_REFUSED: Final = {
    "conversation": "Conversations are not kept; use 'previous_response_id'.",
    "prompt": "Prompts are not kept; send 'instructions' and 'input'.",
    "context_management": "Nothing is ever cut out of a context.",
}
COMPLETION_REFUSED: Final[dict[str, str]] = {}
EMBEDDING_REFUSED: Final[dict[str, str]] = {}

_ACCOUNT: Final = {"user": "", "safety_identifier": "", "prompt_cache_key": "", "prompt_cache_retention": ""}
CHAT_SAID: Final = {
    **_ACCOUNT,
    "metadata": "answers are not kept",
    "store": "answers are not kept",
    "service_tier": "there is one",
    "prediction": "it could only save time",
}
RESPONSE_SAID: Final = {**_ACCOUNT, "service_tier": "there is one", "max_tool_calls": "there are no built-in tools"}
COMPLETION_SAID: Final = {"user": ""}
EMBEDDING_SAID: Final = {"user": ""}
