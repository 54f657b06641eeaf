"""One vector for each text out of one vector for each token, where the model's file leaves that to its user.

[options.pooling]
output = "last_hidden_state"        # [tokens, n] a row, of the file
fills = "sentence_embedding"        # [n] a row, of the signature
mode = "mean"                       # "mean" | "cls" | "max" | "last", over the tokens that the mask shows;
                                        # "none": the file has done it
normalize = true                    # to length 1
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from pelton.errors import PackageInvalid
from pelton.packages import Package
from pelton.types import Array, Signature, TensorSpec


class Pooling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`options.pooling` of a package; see above. `mask`: the input that is 1 for tokens and 0 for padding."""

    output: str
    fills: str
    mode: Literal["mean", "cls", "max", "last", "none"] = "mean"
    normalize: bool = True
    mask: str = "attention_mask"


def pool(tokens: Array, mask: Array, mode: str) -> Array:
    """[rows, tokens, n] and a mask [rows, tokens] -> [rows, n], float32. A row without tokens gives zeros."""
    if mode == "none":
        return tokens
    seen = mask.astype(np.float32)
    if mode == "cls":
        first: Array = tokens[:, 0]
        return first
    if mode == "last":
        last = np.maximum(mask.shape[1] - 1 - (mask[:, ::-1] != 0).argmax(axis=1), 0)
        ends: Array = tokens[np.arange(len(tokens)), last]
        return ends
    if mode == "max":
        shown: Array = np.where(seen[..., None] > 0, tokens, -np.inf).max(axis=1)
        return np.where(np.isfinite(shown), shown, np.float32(0))
    # a product of [1, tokens] and [tokens, n] for each row: no copy of all tokens
    summed = np.matmul(seen[:, None, :], tokens)[:, 0]
    mean: Array = summed / np.maximum(seen.sum(axis=1, keepdims=True), np.float32(1e-9))
    return mean


def unit(vectors: Array) -> Array:
    """Every row brought to length 1."""
    lengths: Array = np.linalg.norm(vectors, axis=1, keepdims=True)
    short: Array = vectors / np.maximum(lengths, np.float32(1e-12))
    return short


class Pooler:
    """Outputs of the file -> outputs of the signature. Keeps nothing; safe from several threads."""

    def __init__(self, pooling: Pooling, signature: Signature) -> None:
        self._pooling = pooling
        self.names = [pooling.output if spec.name == pooling.fills else spec.name for spec in signature.outputs]
        self._place = self.names.index(pooling.output)
        self._mask = [spec.name for spec in signature.inputs].index(pooling.mask)

    def __call__(self, outputs: list[Array], inputs: Sequence[Array]) -> list[Array]:
        pooled = pool(outputs[self._place], inputs[self._mask], self._pooling.mode)
        outputs[self._place] = unit(pooled) if self._pooling.normalize else np.ascontiguousarray(pooled)
        return outputs


def pooling_of(package: Package) -> Pooling | None:
    """Raises PackageInvalid where the options contradict the signature."""
    told: Any = package.manifest.options.get("pooling")
    if told is None:
        return None
    signature, where = package.manifest.signature, f"model {package.name!r}: options.pooling"
    try:
        pooling = msgspec.convert(told, Pooling)
    except msgspec.ValidationError as error:
        raise PackageInvalid(f"{where}: {error}") from None
    if pooling.fills not in [spec.name for spec in signature.outputs]:
        raise PackageInvalid(f"{where}: fills {pooling.fills!r}, which is no output of the signature")
    if pooling.mask not in [spec.name for spec in signature.inputs]:
        raise PackageInvalid(f"{where}: the mask {pooling.mask!r} is no input of the signature")
    return pooling


def file_outputs(package: Package, pooling: Pooling | None) -> tuple[TensorSpec, ...]:
    """The outputs that the model's file must have."""
    outputs = package.manifest.signature.outputs
    if pooling is None:
        return outputs
    return tuple(
        msgspec.structs.replace(spec, name=pooling.output) if spec.name == pooling.fills else spec for spec in outputs
    )
