"""What GGUF metadata, or the configuration files of a Hugging Face folder, say of a language model -> its card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from pelton.errors import SourceInvalid, Unsupported
from pelton.importers.language_vocabulary import ENDS, ends_of
from pelton.language import Card, Tokenizer
from pelton.language.gguf import Gguf
from pelton.language.tools import style_of, uses_tools

# generate text one token after the other; what else there is, encodes, or reads pictures or sound
_KNOWN: Final = """
llama llama4 mistral3 mistral4 qwen qwen2 qwen2moe qwen3 qwen3moe qwen3next qwen35 qwen35moe gemma gemma2 gemma3
gemma3n gemma4 phi2 phi3 phimoe starcoder starcoder2 stablelm falcon falcon-h1 gpt2 gptj gptneox gpt-oss mpt bloom
command-r cohere2 olmo olmo2 olmoe granite granitemoe granitehybrid deepseek deepseek2 internlm2 minicpm minicpm3
exaone exaone4 glm4 glm4moe chatglm smollm3 mamba mamba2 jamba nemotron nemotron_h baichuan orion xverse jais lfm2
lfm2moe hunyuan-dense hunyuan-moe ernie4_5 ernie4_5-moe seed_oss apertus arcee bitnet dbrx grok plamo plamo2 rwkv6
rwkv7 openelm arctic afmoe bailingmoe bailingmoe2 dots1 minimax-m2"""
ARCHITECTURES: Final = frozenset(_KNOWN.split())
CONFIG_LIMIT: Final = 64 * 1024**2
_ADVISED: Final = {  # name in generation_config.json -> in the card
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
}

Json = dict[str, Any]


def card_of_gguf(file: Gguf) -> Card:
    """Raises Unsupported (no language model, or none of the known architectures), SourceInvalid."""
    architecture = check_gguf(file)
    tokens: list[str] = file.get("tokenizer.ggml.tokens", list, [])
    table = file.by_name.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise SourceInvalid(f"{file.path}: it has no table of tokens (token_embd.weight)")
    template, for_tools = _templates_of_gguf(file)
    bpe = file.get("tokenizer.ggml.model", str, "") == "gpt2"
    cut = file.get("tokenizer.ggml.pre", str, "")
    return _with_tools(
        Card(
            vocab_size=max(len(tokens), table.shape[1]),
            context=file.get(f"{architecture}.context_length", int, 4096),
            name=file.get("general.name", str, file.path.stem),
            architecture=architecture,
            parameters=sum(tensor.elements for tensor in file.tensors),
            quantization=quantization_of(file),
            bos=_token(file, "bos", tokens),
            eos=_token(file, "eos", tokens),
            pad=_token(file, "padding", tokens),
            stop_tokens=tuple(ends_of(file, tokens)),
            add_bos=file.get("tokenizer.ggml.add_bos_token", bool, not bpe or cut == "llama-bpe"),
            chat_template=template,
            tool_template=for_tools,
            defaults=_numbers(file, "general.sampling."),
        )
    )


def check_gguf(file: Gguf) -> str:
    """The architecture of a file that holds a whole language model. Raises Unsupported with what it is instead."""
    kind = file.get("general.type", str, "model")
    if kind != "model":
        raise Unsupported(f"{file.path}: this is no model but {kind!r}; add the model that it belongs to")
    if file.get("split.count", int, 1) > 1:
        raise Unsupported(
            f"{file.path}: this is one part of several; join them first: llama-gguf-split --merge FIRST WHOLE.gguf"
        )
    architecture = file.get("general.architecture", str, "")
    if architecture in ARCHITECTURES:
        return architecture
    if "bert" in architecture or "encoder" in architecture or "embedding" in architecture:
        raise Unsupported(
            f"{file.path}: {architecture!r} is an encoder, which writes no text; export it to ONNX and add that"
        )
    raise Unsupported(
        f"{file.path}: the architecture {architecture!r} is not known; known are {', '.join(sorted(ARCHITECTURES))}"
    )


def quantization_of(file: Gguf) -> str:
    """The type that most weights have."""
    counted: Counter[str] = Counter()
    for tensor in file.tensors:
        if len(tensor.shape) > 1 and tensor.name != "token_embd.weight":
            counted[tensor.type] += tensor.elements
    return counted.most_common(1)[0][0] if counted else ""


def _templates_of_gguf(file: Gguf) -> tuple[str, str]:
    template = file.get("tokenizer.chat_template", str, "")
    return template, file.get("tokenizer.chat_template.tool_use", str, "")


def _token(file: Gguf, name: str, tokens: list[str]) -> int:
    token = file.get(f"tokenizer.ggml.{name}_token_id", int, -1)
    return token if 0 <= token < len(tokens) else -1


def _numbers(file: Gguf, prefix: str) -> dict[str, float]:
    names = {"temp": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}
    found = {name: file.meta.get(prefix + key) for key, name in names.items()}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def _with_tools(card: Card) -> Card:
    template = card.tool_template or card.chat_template
    return msgspec.structs.replace(card, tool_style=style_of(template), tools_in_template=uses_tools(template))


def card_of_folder(name: str, find: Callable[[str], Path | None], tokenizer: Tokenizer) -> Card:
    """From config.json, tokenizer_config.json, generation_config.json and chat_template.jinja (`find`: name -> path).

    Raises SourceInvalid where they cannot be read, or do not say what is needed."""
    config, tokens = read_json(find("config.json")), read_json(find("tokenizer_config.json"))
    config = config | config["text_config"] if isinstance(config.get("text_config"), dict) else config
    generation = read_json(find("generation_config.json"))
    vocab = config.get("vocab_size", tokenizer.vocab_size)
    context = config.get("max_position_embeddings") or config.get("n_positions") or config.get("seq_length")
    if not isinstance(vocab, int) or not isinstance(context, int):
        raise SourceInvalid(f"{name}: config.json says no max_position_embeddings, the tokens that the model takes")
    template, for_tools = _templates_of_folder(find, tokens)
    named = {what: _named(tokens.get(f"{what}_token"), tokenizer) for what in ("bos", "eos", "pad")}
    ends = [*_ids(generation.get("eos_token_id")), *_ids(config.get("eos_token_id")), named["eos"]]
    ends += [special.id for special in tokenizer.specials if special.text in ENDS]
    first = tokenizer.first_token()
    return _with_tools(
        Card(
            vocab_size=max(vocab, tokenizer.vocab_size),
            context=context,
            name=name,
            architecture=str(config.get("model_type", "")),
            bos=named["bos"] if named["bos"] >= 0 else first,
            eos=named["eos"] if named["eos"] >= 0 else max(ends[:1], default=-1),
            pad=named["pad"],
            stop_tokens=tuple(sorted({token for token in ends if 0 <= token < vocab})),
            add_bos=first >= 0,
            chat_template=template,
            tool_template=for_tools,
            defaults=_advised(generation),
        )
    )


def _templates_of_folder(find: Callable[[str], Path | None], tokens: Json) -> tuple[str, str]:
    """The template, and the one for tools where there are two."""
    if (path := find("chat_template.jinja")) is not None:
        tool = find("additional_chat_templates/tool_use.jinja")
        return _text(path), _text(tool) if tool else ""
    found = read_json(find("chat_template.json")).get("chat_template") or tokens.get("chat_template") or ""
    if isinstance(found, list):
        named = {str(item.get("name")): str(item.get("template", "")) for item in found if isinstance(item, dict)}
        return named.get("default", ""), named.get("tool_use", "")
    if not isinstance(found, str):
        raise SourceInvalid("tokenizer_config.json: chat_template is neither a text nor a list of templates")
    return found, ""


def _text(path: Path) -> str:
    if path.stat().st_size > CONFIG_LIMIT:
        raise SourceInvalid(f"{path.name} is larger than {CONFIG_LIMIT} bytes")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SourceInvalid(f"{path.name}: {error}") from None


def read_json(path: Path | None) -> Json:
    """An object in a file; {} where there is no file. Raises SourceInvalid."""
    if path is None:
        return {}
    try:
        found = msgspec.json.decode(_text(path))
    except (msgspec.DecodeError, RecursionError) as error:
        raise SourceInvalid(f"{path.name}: {error}") from None
    if not isinstance(found, dict):
        raise SourceInvalid(f"{path.name} is no JSON object")
    return found


def _named(value: Any, tokenizer: Tokenizer) -> int:
    name = value.get("content") if isinstance(value, Mapping) else value
    token = tokenizer.id_of(name) if isinstance(name, str) else None
    return -1 if token is None else token


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [token for token in values if isinstance(token, int) and not isinstance(token, bool)]


def _advised(generation: Json) -> dict[str, float]:
    if not generation.get("do_sample", False):
        return {}
    found = {name: generation.get(key) for key, name in _ADVISED.items()}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}
