"""Fields that other servers of this API take beside OpenAI's: what stands here for them, or why there is nothing.

Those that are served are fields of the request structs (`pelton.server.openai.asks`).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple


class Foreign(NamedTuple):
    """`neutral`: values that change nothing here, told as ignored; any other is refused with `why`."""

    why: str
    neutral: tuple[Any, ...] = ()


_TEMPLATE: Final = "The chat template comes from the model; its variables go into 'chat_template_kwargs'."
_SAMPLERS: Final = "The samplers are 'temperature', 'top_p', 'top_k', 'min_p' and the penalties."
_LATER: Final = "Tokens are told by 'logprobs'."
_MODEL: Final = "It is set when the model is added (pelton add --option)."

FOREIGN: Final[dict[str, Foreign]] = {
    # vLLM
    "min_tokens": Foreign("Use 'ignore_eos' and 'max_tokens' for outputs of a fixed length.", (0,)),
    "skip_special_tokens": Foreign("Control tokens are never text here.", (True,)),
    "spaces_between_special_tokens": Foreign("", (True, False)),  # there are no such tokens in a text
    "add_generation_prompt": Foreign(_TEMPLATE, (True,)),
    "continue_final_message": Foreign("Use /v1/completions to continue a text.", (False,)),
    "add_special_tokens": Foreign("The model's card says whether a prompt begins with a control token.", (True, False)),
    "chat_template": Foreign(_TEMPLATE),
    "documents": Foreign("Put them into a message."),
    "use_beam_search": Foreign("Use 'best_of' of /v1/completions.", (False,)),
    "length_penalty": Foreign("There is no search by beams.", (1,)),
    "early_stopping": Foreign("There is no search by beams.", (False,)),
    "truncate_prompt_tokens": Foreign("Nothing is ever cut; send a shorter prompt."),
    "prompt_logprobs": Foreign("Use 'echo' with 'logprobs' of /v1/completions."),
    "return_tokens_as_token_ids": Foreign(_LATER, (False,)),
    "return_token_ids": Foreign(_LATER, (False,)),
    "allowed_token_ids": Foreign("Use 'logit_bias' or 'structured_outputs'."),
    "bad_words": Foreign("Use 'logit_bias'.", ([],)),
    "logits_processors": Foreign("Requests bring no code."),
    "priority": Foreign("Use the header pelton-priority.", (0,)),
    "request_id": Foreign("Use the header x-request-id."),
    "cache_salt": Foreign("Caches are apart for each API key already; use another key."),
    "mm_processor_kwargs": Foreign("This server reads text only.", ({},)),
    "guided_decoding_backend": Foreign("", ("auto", "guidance", "xgrammar", "outlines", "lm-format-enforcer")),
    "guided_whitespace_pattern": Foreign("White space is bounded here."),
    "best_of": Foreign("Use 'n', or 'best_of' of /v1/completions.", (1,)),
    "echo": Foreign("Use 'echo' of /v1/completions.", (False,)),
    "response_format": Foreign("Use 'structured_outputs'.", ({"type": "text"},)),
    # llama.cpp, Ollama and others
    "n_predict": Foreign("Use 'max_tokens'.", (-1,)),
    "cache_prompt": Foreign(_MODEL, (True,)),
    "id_slot": Foreign("Places are given by fair share.", (-1,)),
    "json_schema": Foreign("Use 'response_format' or 'structured_outputs'.", ({},)),
    "grammar": Foreign("Use 'structured_outputs' with a 'grammar'.", ("",)),
    "reasoning_format": Foreign("Thoughts stand in 'reasoning_content'.", ("auto", "deepseek")),
    "parse_tool_calls": Foreign("Calls of tools are always read.", (True,)),
    "repeat_penalty": Foreign("Use 'repetition_penalty'.", (1,)),
    "mirostat": Foreign(_SAMPLERS, (0,)),
    "mirostat_tau": Foreign(_SAMPLERS),
    "mirostat_eta": Foreign(_SAMPLERS),
    "typical_p": Foreign(_SAMPLERS, (1,)),
    "tfs_z": Foreign(_SAMPLERS, (1,)),
    "top_a": Foreign(_SAMPLERS, (0,)),
    "xtc_probability": Foreign(_SAMPLERS, (0,)),
    "dry_multiplier": Foreign(_SAMPLERS, (0,)),
    "dynatemp_range": Foreign(_SAMPLERS, (0,)),
    "samplers": Foreign(_SAMPLERS, ([],)),
    "options": Foreign("Its fields stand in the body itself.", ({},)),
    "num_ctx": Foreign(_MODEL),
    "keep_alive": Foreign("What serves is declared by deployments."),
    "enable_thinking": Foreign("Put it into 'chat_template_kwargs'."),
    "thinking": Foreign("Use 'reasoning_effort' or 'chat_template_kwargs'."),
    "extra_body": Foreign("Clients put its fields into the body itself.", ({},)),
}


def neutral(name: str, value: Any) -> bool:
    """Whether this value of a foreign field changes nothing. True is not 1 here."""
    return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in FOREIGN[name].neutral)
