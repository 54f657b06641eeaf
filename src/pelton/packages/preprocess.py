"""What a package declares about turning callers' inputs into tensors, and tensors into answers.

Declarations only: `pelton.transforms` carries them out. One block fills one or several inputs of the model from
one or several fields that callers send; inputs that no block fills are sent by the callers as tensors.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from pelton.errors import PackageInvalid


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A part of a declaration."""


class Base(Part, frozen=True, tag_field="kind"):
    """Common to all declarations."""


class Resize(Part, frozen=True):
    """`height` x `width` in pixels. `fit`: "stretch" ignores the aspect ratio; "shorter" scales the shorter side and
    keeps the ratio (crop afterwards); "pad" scales to fit inside and fills the right and lower rest with `fill`."""

    height: int
    width: int
    fit: Literal["stretch", "shorter", "pad"] = "stretch"
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    fill: int = 0


class Crop(Part, frozen=True):
    """The centre, `height` x `width` pixels."""

    height: int
    width: int


class Image(Base, frozen=True, tag="image"):
    """A picture file (PNG, JPEG, WebP, GIF, BMP, TIFF) -> one row.

    Order of work: decode with EXIF orientation -> `mode` -> resize -> crop -> (x * scale - mean) / std -> `layout`.
    `mean` and `std` have one number per channel, or one for all.
    """

    field: str
    fills: str
    mode: Literal["RGB", "BGR", "L"] = "RGB"
    resize: Resize | None = None
    crop: Crop | None = None
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Literal["CHW", "HWC"] = "CHW"


class Audio(Base, frozen=True, tag="audio"):
    """A sound file (WAV, FLAC, OGG, MP3) -> mono float samples in [-1, 1] * `scale` at `sample_rate` -> windows.

    With `window` (samples) each window is one row, every `hop` samples (default: `window`), the last one filled with
    zeros; one call has as many rows as windows, at most `max_windows`. Without `window` the sound is one row.
    """

    field: str
    fills: str
    sample_rate: int
    window: int | None = None
    hop: int | None = None
    scale: float = 1.0
    max_seconds: float = 600.0
    max_windows: int = 1024


class Text(Base, frozen=True, tag="text"):
    """Text -> token ids by a `tokenizer.json` of the package (the `tokenizers` format), or by its UTF-8 bytes.

    `ids`, `mask`, `types` name the inputs of the model that receive them (empty: the model has no such input).
    `tokenizer = "bytes"` needs no file: ids are bytes + `byte_offset`, filled with `pad_id`.
    Rows are cut at `max_tokens` only where `truncate` is set; otherwise a longer text is refused.
    Rows are padded to a multiple of `pad_to`, or to exactly `max_tokens` with `pad_to = 0`.
    """

    field: str
    ids: str
    tokenizer: str = "tokenizer.json"
    mask: str = ""
    types: str = ""
    max_tokens: int = 512
    truncate: bool = False
    pad_to: int = 8
    pad_id: int = 0
    byte_offset: int = 0
    prefix: str = ""


class Column(Part, frozen=True):
    """One named column of a table row.

    "number": a number or null (missing); "boolean"; "string" with `values`: the model sees the index in `values`
    (an unknown value is refused, or becomes `unknown` where that is set); "string" without `values`: the text itself.
    `default`: used where the caller leaves the column out; without it the column must be given.
    `minimum`, `maximum`: the range that is accepted.
    """

    name: str
    type: Literal["number", "integer", "boolean", "string"] = "number"
    values: tuple[str, ...] = ()
    one_hot: bool = False
    unknown: float | None = None
    default: float | str | bool | None = None
    required: bool = True
    minimum: float | None = None
    maximum: float | None = None


class Table(Base, frozen=True, tag="table"):
    """Named, typed columns -> the row vector of input `fills`, in this order; or, with `fills = ""`, each column is
    the input of the same name (a scalar per row)."""

    columns: tuple[Column, ...]
    fills: str = ""


Preprocess = Image | Audio | Text | Table


class Labels(Base, frozen=True, tag="labels"):
    """Scores [n] -> the `top` best labels with their scores, best first. `labels_file`: a text file, one a line.

    `softmax`: the output holds logits. A binary score [1] or scalar: two labels, the score belongs to the second.
    """

    output: str
    field: str = "labels"
    labels: tuple[str, ...] = ()
    labels_file: str = ""
    top: int = 5
    softmax: bool = False
    over_rows: Literal["none", "mean", "max"] = "none"  # sounds: one answer for all windows


class Ctc(Base, frozen=True, tag="ctc"):
    """Scores [t, symbols] -> text by greedy CTC decoding (Graves 2006): best symbol each step, repeats merged,
    symbol 0 is the blank. `symbols_file`: one symbol a line, for index 1, 2, ..."""

    output: str
    symbols_file: str
    field: str = "text"


class Value(Base, frozen=True, tag="value"):
    """The output as it is, under another name; `index` picks one element (the probability of the positive class)."""

    output: str
    field: str
    index: int | None = None


Postprocess = Labels | Ctc | Value


def check_names(preprocess: tuple[Preprocess, ...], inputs: set[str]) -> None:
    """Every input is filled at most once and exists; every public field stands in one block only."""
    filled: set[str] = set()
    fields: set[str] = set()
    for block in preprocess:
        for name in fills(block):
            if name not in inputs:
                raise PackageInvalid(f"preprocess fills {name!r}, but the model's inputs are {sorted(inputs)}")
            if name in filled:
                raise PackageInvalid(f"two preprocess blocks fill the input {name!r}")
            filled.add(name)
        for field in field_names(block):
            if field in fields:
                raise PackageInvalid(f"two preprocess blocks read the field {field!r}")
            fields.add(field)


def fills(block: Preprocess) -> tuple[str, ...]:
    """The model's inputs that a block fills."""
    if isinstance(block, Text):
        return tuple(name for name in (block.ids, block.mask, block.types) if name)
    if isinstance(block, Table):
        return (block.fills,) if block.fills else tuple(column.name for column in block.columns)
    return (block.fills,)


def field_names(block: Preprocess) -> tuple[str, ...]:
    """What callers send for a block."""
    if isinstance(block, Table):
        return tuple(column.name for column in block.columns)
    return (block.field,)
