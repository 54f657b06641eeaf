"""Which packages embed texts, and what `/v1/embeddings` needs to know of them.

    model = embedding.of(package)                  None: it is no embedding model
    fields = {model.field: texts}                  texts, or lists of token ids (taken as they are)
    ... Engine.submit(served, Call(fields=...)) ...
    vectors = model.cut(outcome[model.position], dimensions)      FP32 [texts, dimensions]
    call.tokens                                    real tokens of all texts together, for `usage.prompt_tokens`

A text with more tokens than the model takes is refused with TooLarge (never cut, unless the package says `truncate`).
"""

from __future__ import annotations

import msgspec
import numpy as np

from pelton.errors import InvalidInput
from pelton.packages import Package
from pelton.packages.preprocess import Embedding, Text
from pelton.types import Array


class EmbeddingModel(msgspec.Struct, frozen=True):
    """`field`: what callers send texts in; `position`: the output that holds the vectors, of length `size`;
    `dimensions`: lengths that a caller may ask for, `size` among them, ascending; `max_tokens`: of one text."""

    field: str
    position: int
    size: int
    dimensions: tuple[int, ...]
    max_tokens: int
    normalized: bool

    def check(self, dimensions: int | None) -> None:
        """Raises InvalidInput where the model has no vectors of that length."""
        if dimensions is not None and dimensions not in self.dimensions:
            known = ", ".join(map(str, self.dimensions))
            raise InvalidInput(f"dimensions: this model gives vectors of {known} numbers, not {dimensions}")

    def cut(self, vectors: Array, dimensions: int | None = None) -> Array:
        """[texts, size] -> float32 [texts, dimensions], of length 1 again where the whole ones are."""
        self.check(dimensions)
        wide = vectors.reshape(len(vectors), -1).astype(np.float32, copy=False)
        if dimensions is None or dimensions == self.size:
            return wide
        short = wide[:, :dimensions]
        if not self.normalized:
            return np.ascontiguousarray(short)
        lengths = np.linalg.norm(short, axis=1, keepdims=True)
        cut: Array = short / np.maximum(lengths, np.float32(1e-12))
        return cut


def of(package: Package) -> EmbeddingModel | None:
    """A text model whose package declares an embedding."""
    manifest = package.manifest
    block = next((block for block in manifest.postprocess if isinstance(block, Embedding)), None)
    texts = [block for block in manifest.preprocess if isinstance(block, Text)]
    if block is None or len(texts) != 1:
        return None
    names = [spec.name for spec in manifest.signature.outputs]
    position = names.index(block.output)
    size = manifest.signature.outputs[position].shape[-1]
    dimensions = tuple(sorted({*block.dimensions, size}))
    return EmbeddingModel(texts[0].field, position, size, dimensions, texts[0].max_tokens, block.normalized)
