"""Text <-> token ids. The only file of this room that imports tokenizers (extra "text").

What a caller writes never becomes a control token: special tokens are honoured only where `encode_special`, or a
template, says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from pelton.errors import ExtraMissing, InvalidInput, PackageInvalid
from pelton.language.card import TOKENIZER

FILE_LIMIT: Final = 256 * 1024**2
_SPACE: Final = "▁"
_BYTE: Final = re.compile(r"<0x([0-9A-F]{2})>")


class Special(msgspec.Struct, frozen=True):
    """A control token. `lstrip`, `rstrip`: it swallows the white space beside it."""

    id: int
    text: str
    lstrip: bool = False
    rstrip: bool = False


class _Model(msgspec.Struct):
    type: str = ""
    unk_token: str | None = None
    unk_id: int | None = None


class _File(msgspec.Struct):
    """What is read of `tokenizer.json` beside what the library reads."""

    decoder: Any = None
    pre_tokenizer: Any = None
    model: _Model = msgspec.field(default_factory=_Model)


class Tokenizer:
    """A `tokenizer.json`. Reading only: safe from several threads."""

    def __init__(self, text: bytes, name: str = TOKENIZER) -> None:
        try:
            self._config = msgspec.json.decode(text, type=_File)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PackageInvalid(f"{name}: this is not a tokenizer file: {error}") from None
        self._tokenizer = _library_tokenizer(text, name)
        self._rest = _continuing(text, self._config, name) or self._tokenizer
        added: dict[int, Any] = self._tokenizer.get_added_tokens_decoder()
        model = self._config.model
        self.specials: tuple[Special, ...] = tuple(
            Special(token, entry.content, entry.lstrip, entry.rstrip)
            for token, entry in sorted(added.items())
            if entry.special and entry.content
        )
        self.special_ids: Final = frozenset(special.id for special in self.specials)
        self._forbidden = frozenset(x.id for x in self.specials if x.text != model.unk_token and x.id != model.unk_id)
        self._by_text = {special.text: special for special in self.specials}
        self._pattern = _alternatives(self._by_text)
        self._added = {token: str(entry.content) for token, entry in added.items()}
        self._bytes_of_chars = _byte_alphabet() if "ByteLevel" in _types(self._config.decoder) else None
        self._byte_fallback = "ByteFallback" in _types(self._config.decoder)
        # SentencePiece puts a space before every text; the whole text's decoder takes it away again
        self.leading_space: Final = bool({"Strip", "Metaspace"} & _types(self._config.decoder))
        # ids may have holes below an added token
        self.vocab_size: Final = max(self._tokenizer.get_vocab_size(with_added_tokens=True), 1 + max(added, default=-1))
        self._cache: dict[int, bytes] = {}

    @classmethod
    def read(cls, path: Path) -> Tokenizer:
        """Raises PackageInvalid for a file that is none, ExtraMissing without the library."""
        try:
            if path.stat().st_size > FILE_LIMIT:
                raise PackageInvalid(f"{path} is larger than {FILE_LIMIT} bytes")
            text = path.read_bytes()
        except OSError as error:
            raise PackageInvalid(
                f"{path.parent} holds no readable {path.name} ({error.strerror}): add the model again"
            ) from None
        return cls(text, str(path))

    def encode(self, text: str, special: bool = False) -> list[int]:
        """The ids of a text. `special`: names of control tokens in it become those tokens; otherwise they stay text.

        Raises InvalidInput for what is not text (a lone surrogate)."""
        return self.encode_parts(self.split(text)) if special else self._plain(self._tokenizer, text)

    def split(self, text: str) -> list[str | Special]:
        """Cuts a text at the names of its control tokens."""
        if self._pattern is None:
            return [text]
        return [self._by_text.get(part, part) for part in self._pattern.split(text) if part]

    def encode_parts(self, parts: Sequence[str | Special]) -> list[int]:
        """The ids of texts and control tokens in turn; the texts stay text whatever they spell."""
        ids: list[int] = []
        for i, part in enumerate(parts):
            if isinstance(part, Special):
                ids.append(part.id)
                continue
            before = parts[i - 1] if i else None
            after = parts[i + 1] if i + 1 < len(parts) else None
            if isinstance(before, Special) and before.rstrip:
                part = part.lstrip()
            if isinstance(after, Special) and after.lstrip:
                part = part.rstrip()
            if part:
                ids += self._plain(self._rest if i else self._tokenizer, part)
        return ids

    def _plain(self, tokenizer: Any, text: str) -> list[int]:
        try:
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:  # noqa: BLE001 - the library raises TypeError and bare Exception
            raise InvalidInput(f"the text cannot be read: {error}") from None
        if not self._forbidden.isdisjoint(ids):
            named = next(self._added[token] for token in ids if token in self._forbidden)
            raise InvalidInput(
                f"the text spells the control token {named!r}, which this tokenizer cannot write as text"
            )
        return ids

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """The text of a whole sequence; bytes that are no UTF-8 become U+FFFD. `special`: with the control tokens."""
        raw = b"".join(self.token_bytes(token) for token in ids if special or token not in self.special_ids)
        text = raw.decode("utf-8", "replace")
        return text[1:] if self.leading_space and text.startswith(" ") else text

    def token_bytes(self, token: int) -> bytes:
        """What a token stands for; a control token for its name, padding of the vocabulary for nothing."""
        found = self._cache.get(token)
        if found is None:
            found = self._cache[token] = self._spelled(token)
        return found

    def _spelled(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        name: str | None = self._tokenizer.id_to_token(token) if token >= 0 else None
        if name is None:
            return b""
        if self._bytes_of_chars is not None:
            try:
                return bytes(map(self._bytes_of_chars.__getitem__, name))
            except KeyError:
                return name.encode()
        if self._byte_fallback and (match := _BYTE.fullmatch(name)):
            return bytes([int(match[1], 16)])
        return name.replace(_SPACE, " ").encode()

    def token_text(self, token: int) -> str:
        r"""The token as protocols show it: its text, or `bytes:\xe2\x80` where it is a piece of a character."""
        raw = self.token_bytes(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def first_token(self) -> int:
        """The control token that the file wants before every text; -1 for none."""
        ids: list[int] = self._tokenizer.encode("a", add_special_tokens=True).ids
        return ids[0] if ids and ids[0] in self.special_ids else -1

    def id_of(self, name: str) -> int | None:
        """The id of a token by its name in the vocabulary; None where there is none."""
        found: int | None = self._tokenizer.token_to_id(name)
        return found


def _library_tokenizer(text: bytes, name: str) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ExtraMissing("a language model's tokenizer", "text") from None
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(text)
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception on a file it cannot read
        raise PackageInvalid(f"{name}: this is not a tokenizer file: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # names of control tokens are plain text; `encode_parts` knows where not
    return tokenizer


def _continuing(text: bytes, config: _File, name: str) -> Any | None:
    """A tokenizer for text that follows other text, where the first text gets a space of its own."""
    blocks = [config.pre_tokenizer, *((config.pre_tokenizer or {}).get("pretokenizers") or ())]
    first = [block for block in blocks if block and block.get("prepend_scheme") == "first"]
    if not first:
        return None
    whole = msgspec.json.decode(text)
    for block in (whole["pre_tokenizer"], *(whole["pre_tokenizer"].get("pretokenizers") or ())):
        if block.get("prepend_scheme") == "first":
            block["prepend_scheme"] = "never"
            block.pop("add_prefix_space", None)
    return _library_tokenizer(msgspec.json.encode(whole), name)


def _types(decoder: Any) -> set[str]:
    """Names of a decoder and of those that it is made of."""
    if not isinstance(decoder, dict):
        return set()
    inner = (_types(part) for part in decoder.get("decoders") or ())
    return {str(decoder.get("type"))}.union(*inner)


def _alternatives(names: Iterable[str]) -> re.Pattern[str] | None:
    ordered = sorted(names, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, ordered))})") if ordered else None


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in of every byte -> the byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(hidden)}
