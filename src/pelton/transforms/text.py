"""Text -> token ids. The only file that imports tokenizers, and only for packages that bring a `tokenizer.json`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pelton.errors import ExtraMissing, InvalidInput, PackageInvalid, TooLarge
from pelton.packages import Package
from pelton.packages.preprocess import Text
from pelton.transforms.fields import FieldSpec, Prepared, place, show
from pelton.types import Array, Fields, TensorSpec

# Texts -> the ids of each, and its type ids (None: all 0).
Tokens = tuple[Any, Any]
Tokenize = Callable[[list[str]], list[Tokens]]


class Texts:
    """A compiled text block. `ids`, `mask` and `types` come out in this order, as far as they are declared."""

    def __init__(self, block: Text, specs: Sequence[TensorSpec], package: Package) -> None:
        told = f"text of at most {block.max_characters} characters"
        if block.tokenizer != "bytes":
            told += ", or its token ids"
        self.fields = (FieldSpec(block.field, "text", True, told),)
        self.heavy = block.tokenizer != "bytes"
        self._block = block
        _check(block, specs)
        self._dtypes = [spec.type.dtype for spec in specs]
        self._vocabulary = 0
        if self.heavy:
            self._tokenize, self._vocabulary = _tokenizer(block, package.path(block.tokenizer))
        else:
            self._tokenize = _byte_tokens(block)

    def __call__(self, fields: Fields) -> Prepared:
        block = self._block
        values = fields[block.field]
        rows = len(values)
        tokens = self._tokens(values, [place(block.field, row, rows) for row in range(rows)])
        for row, (ids, _) in enumerate(tokens):
            self._check_count(len(ids), place(block.field, row, rows))
        return Prepared(self._arrays(tokens), lengths=tuple([len(ids) for ids, _ in tokens]))

    def _tokens(self, values: Sequence[Any], places: Sequence[str]) -> Sequence[Tokens]:
        """Texts are tokenized; a list of integers is what a caller has tokenized itself, and is taken as it is."""
        ready = {row: self._ids(value, places[row]) for row, value in enumerate(values) if self._is_ids(value)}
        if len(ready) == len(values):
            return [(ready[row], None) for row in range(len(values))]
        texts = [self._text(value, places[row]) for row, value in enumerate(values) if row not in ready]
        found = iter(self._tokenize(texts))
        if not ready:
            return list(found)
        return [(ready[row], None) if row in ready else next(found) for row in range(len(values))]

    def _is_ids(self, value: Any) -> bool:
        return self.heavy and isinstance(value, list | tuple | np.ndarray) and len(value) > 0

    def _ids(self, value: Any, where: str) -> list[int]:
        if len(value) > self._block.max_tokens:
            self._check_count(len(value), where)
        ids = value.tolist() if isinstance(value, np.ndarray) else list(value)
        for token in ids:
            if type(token) is not int or not 0 <= token < self._vocabulary:
                raise InvalidInput(
                    f"{where}: {show(token)} is no token id of this model; ids are 0 to {self._vocabulary - 1}"
                )
        return ids

    def _text(self, value: Any, where: str) -> str:
        limit = self._block.max_characters
        if isinstance(value, bytes):
            if len(value) > 4 * limit:
                raise TooLarge(f"{where}: the text has {len(value)} bytes; at most {limit} characters are accepted")
            try:
                value = value.decode()
            except UnicodeDecodeError:
                raise InvalidInput(f"{where}: the bytes are not UTF-8 text") from None
        if not isinstance(value, str):
            raise InvalidInput(f"{where}: {show(value)} is not text")
        if len(value) > limit:
            raise TooLarge(f"{where}: the text has {len(value)} characters; at most {limit} are accepted")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidInput(f"{where}: the text has a lone surrogate, which is not text") from None
        return self._block.prefix + value

    def _check_count(self, count: int, where: str) -> None:
        if not count:
            raise InvalidInput(f"{where}: the text is empty")
        if count > self._block.max_tokens:
            raise TooLarge(
                f"{where}: the text has {count} tokens; the model takes at most {self._block.max_tokens}. "
                "Shorten it, or send it in parts"
            )

    def _arrays(self, tokens: Sequence[Tokens]) -> list[Array]:
        block = self._block
        width = self._width(max(len(ids) for ids, _ in tokens))
        shape = (len(tokens), width)
        dtypes = iter(self._dtypes)
        ids = np.full(shape, block.pad_id, next(dtypes))
        arrays = [ids]
        if block.mask:
            arrays.append(np.zeros(shape, next(dtypes)))
        if block.types:
            arrays.append(np.zeros(shape, next(dtypes)))
        for row, (row_ids, row_types) in enumerate(tokens):
            ids[row, : len(row_ids)] = row_ids
            if block.mask:
                arrays[1][row, : len(row_ids)] = 1
            if block.types and row_types is not None:
                arrays[-1][row, : len(row_types)] = row_types
        return arrays

    def _width(self, longest: int) -> int:
        if not self._block.pad_to:
            return self._block.max_tokens
        return min(self._block.max_tokens, -(-longest // self._block.pad_to) * self._block.pad_to)


def _check(block: Text, specs: Sequence[TensorSpec]) -> None:
    what = f"text block {block.field!r}"
    if block.max_tokens < 1 or block.pad_to < 0 or block.max_characters < 1:
        raise PackageInvalid(f"{what}: max_tokens and max_characters must be positive, pad_to at least 0")
    for spec in specs:
        dtype = spec.type.dtype
        floating_mask = spec.type.kind == "float" and spec.name == block.mask and spec.type.code
        if spec.type.kind != "int" and not floating_mask:
            raise PackageInvalid(f"{what}: {spec.name!r} is {spec.datatype}; ids, masks and types are integers")
        if len(spec.shape) != 1 or spec.shape[0] not in (-1, block.max_tokens):
            raise PackageInvalid(f"{what}: {spec.name!r} has the shape {spec.shape}; a row is one list of tokens")
        if spec.name == block.ids and block.tokenizer != "bytes" and spec.type.size < 4:
            raise PackageInvalid(f"{what}: {spec.datatype} does not hold every token id; use INT32 or INT64")
        if spec.shape[0] > 0 and block.pad_to:
            raise PackageInvalid(f"{what}: {spec.name!r} takes exactly {spec.shape[0]} tokens: set pad_to = 0")
        if spec.name == block.ids and block.tokenizer == "bytes":
            _check_range(what, dtype, (block.byte_offset, block.byte_offset + 255, block.pad_id))
        elif spec.name == block.ids:
            _check_range(what, dtype, (block.pad_id,))


def _check_range(what: str, dtype: np.dtype[Any], ids: Sequence[int]) -> None:
    limits = np.iinfo(dtype)
    if min(ids) < limits.min or max(ids) > limits.max:
        raise PackageInvalid(f"{what}: the ids {min(ids)} to {max(ids)} do not fit into {dtype}")


def _byte_tokens(block: Text) -> Tokenize:
    """UTF-8 bytes; `truncate` may cut inside of a character, as such models are trained."""

    def tokenize(texts: list[str]) -> list[Tokens]:
        rows: list[Tokens] = []
        for text in texts:
            raw = text.encode()
            raw = raw[: block.max_tokens] if block.truncate else raw
            rows.append((np.frombuffer(raw, np.uint8).astype(np.int64) + block.byte_offset, None))
        return rows

    return tokenize


def _tokenizer(block: Text, file: Path) -> tuple[Tokenize, int]:
    """What tokenizes, and how many ids there are."""
    try:
        tokenizers = importlib.import_module("tokenizers")
    except ImportError:
        raise ExtraMissing(f"the tokenizer of the field {block.field!r}", "text") from None
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception on a file it cannot read
        raise PackageInvalid(f"{file.name}: this is not a tokenizer file: {error}") from None
    tokenizer.no_padding()  # the file may ask for its own; the block decides
    tokenizer.no_truncation()
    if block.truncate:
        tokenizer.enable_truncation(block.max_tokens)
    encode = tokenizer.encode_batch_fast  # reads the tokenizer only: safe from several threads

    def tokenize(texts: list[str]) -> list[Tokens]:
        return [(encoding.ids, encoding.type_ids) for encoding in encode(texts)]

    return tokenize, tokenizer.get_vocab_size()
