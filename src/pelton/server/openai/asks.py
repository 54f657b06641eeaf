"""What may stand in a request: every field that OpenAI publishes is taken, refused with why, or told to be without effect.

A field of a struct is taken. `REFUSED` and `SAID` (accepted, cannot change an answer, told in a header) name the rest;
a test holds these tables against OpenAI's published schema.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

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


Word = Annotated[str, Meta(max_length=512)]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]
Tier = Literal["auto", "default", "flex", "scale", "priority"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Verbosity = Literal["low", "medium", "high"]
Include = Literal[
    "code_interpreter_call.outputs", "computer_call_output.output.image_url", "file_search_call.results",
    "message.input_image.image_url", "message.output_text.logprobs", "reasoning.encrypted_content",
    "web_search_call.action.sources", "web_search_call.results",
]  # fmt: skip


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool = False
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None  # of vLLM


class SamplingAsk(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What all endpoints that generate have in common. From `top_k` on, fields are not OpenAI's: other servers and their
    clients know them.

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
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=64)] = []
    include_stop_str_in_output: bool = False
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None


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
    functions: Annotated[list[dict[str, Any]], Meta(max_length=128)] = []  # tools, as they were told at first
    function_call: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    modalities: tuple[str, ...] = ("text",)
    reasoning_effort: Effort | None = None
    verbosity: Verbosity | None = None
    chat_template_kwargs: dict[str, Any] = {}
    include_reasoning: bool = True


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
    input: str | Annotated[list[dict[str, Any]], Meta(max_length=10_000)] | None = None
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_logprobs: TopLogprobs | None = None
    include: Annotated[list[Include], Meta(max_length=20)] = []
    metadata: Metadata = {}
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    reasoning: dict[str, Any] = {}
    store: bool = True
    stream: bool = False
    stream_options: dict[str, Any] = {}
    text: dict[str, Any] = {}
    tools: Annotated[list[dict[str, Any]], Meta(max_length=128)] = []
    tool_choice: str | dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] = "disabled"
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
_NO_MODERATION: Final = "This server does not judge texts."
_NO_SEARCH: Final = "This server searches nothing."

CHAT_REFUSED: Final = {
    "moderation": _NO_MODERATION,
    "audio": _TEXT_ONLY,
    "web_search_options": _NO_SEARCH,
}
RESPONSE_REFUSED: Final = {
    "moderation": _NO_MODERATION,
    "conversation": "Conversations are not kept; use 'previous_response_id'.",
    "prompt": "Prompts are not kept; send 'instructions' and 'input'.",
    "context_management": "Nothing is ever cut out of a context.",
}
COMPLETION_REFUSED: Final[dict[str, str]] = {}
EMBEDDING_REFUSED: Final[dict[str, str]] = {}

# fields that are taken and cannot change an answer, with what they must be
Said = dict[str, Any]

_ACCOUNT: Final[Said] = {
    "user": Word,
    "safety_identifier": Word,
    "prompt_cache_key": Word,
    "prompt_cache_retention": Literal["in_memory", "in-memory", "24h"],
    "prompt_cache_options": dict[str, Any],
}
CHAT_SAID: Final[Said] = {
    **_ACCOUNT,
    "metadata": Metadata,  # answers are not kept
    "store": bool,
    "service_tier": Tier,  # there is one
    "prediction": dict[str, Any],  # it could only save time
}
RESPONSE_SAID: Final[Said] = {
    **_ACCOUNT,
    "service_tier": Tier,
    "max_tool_calls": Annotated[int, Meta(ge=1)],  # of built-in tools, and there are none
}
COMPLETION_SAID: Final[Said] = {"user": Word}
EMBEDDING_SAID: Final[Said] = {"user": Word}
