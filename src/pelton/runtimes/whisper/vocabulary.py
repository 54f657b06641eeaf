"""The words of a Whisper model: token ids <-> text, and the ids that steer it.

The text of a token is written with one character for each byte (Radford et al. 2019, byte-level BPE); joining the bytes
of tokens gives UTF-8. Prompts are cut into the longest known tokens, word by word: for a hint that is as good as the
merges of the model's own tokenizer, and it needs no library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pelton.errors import PackageInvalid

FILES: Final = ("vocabulary.json", "vocabulary.txt")
FILE_LIMIT: Final = 32 * 1024**2
MULTILINGUAL: Final = 51_865  # tokens: English-only models have one less
SECONDS: Final = 0.02  # between two timestamp tokens
_LANGUAGE: Final = re.compile(r"<\|([a-z]{2,3})\|>")
_UNSPACED: Final = frozenset({"zh", "ja", "th", "lo", "my", "yue"})  # languages that put no spaces between words


def _byte_characters() -> dict[str, int]:
    """Printable bytes stand for themselves, the others for the characters from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {**{chr(byte): byte for byte in plain}, **{chr(256 + i): byte for i, byte in enumerate(rest)}}


_BYTES: Final = _byte_characters()
_CHARACTERS: Final = {byte: character for character, byte in _BYTES.items()}


class Vocabulary:
    """Of one model. `languages`: code -> id; English-only models have the tokens too, and were not taught them."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = tokens
        self._ids = {token: i for i, token in enumerate(tokens)}
        self.end = self._id("<|endoftext|>")
        self.start = self._id("<|startoftranscript|>")
        self.before = self._id("<|startofprev|>")
        self.transcribe = self._id("<|transcribe|>")
        self.translate = self._id("<|translate|>")
        self.first_time = self._id("<|notimestamps|>") + 1
        self.languages = {
            match[1]: i
            for i, token in enumerate(tokens[self.start + 1 : self.translate], self.start + 1)
            if (match := _LANGUAGE.fullmatch(token))
        }
        self.multilingual = len(tokens) >= MULTILINGUAL
        self._longest = max([len(token) for token in tokens[: self.end]])

    @classmethod
    def read(cls, folder: Path) -> Vocabulary:
        """Raises PackageInvalid where there is none."""
        path = next((folder / name for name in FILES if (folder / name).is_file()), None)
        if path is None or path.stat().st_size > FILE_LIMIT:
            raise PackageInvalid(f"{folder.name}: there is no usable {' or '.join(FILES)}")
        try:
            text = path.read_text(encoding="utf-8")
            tokens = json.loads(text) if path.suffix == ".json" else text.removesuffix("\n").split("\n")
        except ValueError as error:
            raise PackageInvalid(f"{path.name}: {error}") from None
        return cls(tokens)

    def _id(self, token: str) -> int:
        found = self._ids.get(token)
        if found is None:
            raise PackageInvalid(f"the vocabulary has no {token}: this is no Whisper model")
        return found

    def raw(self, ids: Sequence[int]) -> bytes:
        """The bytes of the text of some tokens; those that steer have none."""
        return bytes([_BYTES.get(c, 0x3F) for i in ids if i < self.end for c in self._tokens[i]])

    def text(self, ids: Sequence[int]) -> str:
        return self.raw(ids).decode(errors="replace")

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for word in re.findall(r"\s?\S+", " " + " ".join(text.split())):
            characters = "".join([_CHARACTERS[byte] for byte in word.encode(errors="replace")])
            at = 0
            while at < len(characters):
                for size in range(min(self._longest, len(characters) - at), 0, -1):
                    found = self._ids.get(characters[at : at + size])
                    if found is not None and found < self.end:
                        ids.append(found)
                        at += size
                        break
                else:
                    at += 1  # a byte that the model has no token for
        return ids

    def words(self, ids: Sequence[int], language: str) -> list[tuple[str, int]]:
        """Tokens of text -> words and how many tokens each has. Marks stay with the word that they follow."""
        words: list[tuple[bytes, int]] = []
        for token in ids:
            raw = self.raw([token])
            starts = raw[:1] == b" " or not words
            if language in _UNSPACED and words and _complete(words[-1][0]) and not _only_marks(raw):
                starts = True
            if starts:
                words.append((raw, 1))
            else:
                last, count = words[-1]
                words[-1] = (last + raw, count + 1)
        return [(raw.decode(errors="replace"), count) for raw, count in words]


def _complete(raw: bytes) -> bool:
    """Whether the bytes end with a whole character."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _only_marks(raw: bytes) -> bool:
    text = raw.decode(errors="replace")
    return not any(character.isalnum() or character == "\ufffd" for character in text)
