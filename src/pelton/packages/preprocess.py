"""What a package declares about turning callers' inputs into tensors, and tensors into answers.

Declarations only: `pelton.transforms` carries them out. One block fills one or several inputs of the model from
one or several fields that callers send; inputs that no block fills are sent by the callers as tensors.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from pelton.errors import PackageInvalid


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A part of a declaration."""


class Base(Part, frozen=True, tag_field="kind"):
    """Common to all declarations."""


class Resize(Part, frozen=True):
    """`height` x `width` in pixels. `fit`: "stretch" ignores the aspect ratio; "shorter" keeps it and covers the whole of
    `height` x `width` (for a square: the shorter side gets that length; crop afterwards); "pad" keeps it, fits inside
    and fills the right and lower rest with `fill` (0 to 255). Shrinking is antialiased except with "nearest"."""

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

    Order of work: decode (first frame), EXIF orientation, transparency on white, 16 bits to 8 -> `mode` -> resize ->
    crop -> (x * scale - mean) / std with x in 0 to 255 -> `layout`. `mean` and `std` have one number per channel of
    `mode`, or one for all. A grey picture may also fill an input [height, width], any picture one of rank 1.
    Pictures over `max_bytes`, or over `max_pixels` before or after the resize, are refused before they are decoded.
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
    max_pixels: int = 50_000_000
    max_bytes: int = 32 * 1024 * 1024


class Audio(Base, frozen=True, tag="audio"):
    """A sound file (WAV, FLAC, OGG, MP3) -> mono float samples in [-1, 1] * `scale` at `sample_rate` -> windows.

    With `window` (samples) each window is one row, every `hop` samples (default: `window`), the last one filled with
    zeros; one sound has as many rows as windows, at most `max_windows`. Without `window` the sound is one row.
    Channels are averaged. Inputs of other blocks are repeated for each window of their instance.
    """

    field: str
    fills: str
    sample_rate: int
    window: int | None = None
    hop: int | None = None
    scale: float = 1.0
    max_seconds: float = 600.0
    max_windows: int = 1024
    max_bytes: int = 128 * 1024 * 1024


class Text(Base, frozen=True, tag="text"):
    """Text -> token ids by a `tokenizer.json` of the package (the `tokenizers` format), or by its UTF-8 bytes.

    `ids`, `mask`, `types` name the inputs of the model that receive them (empty: the model has no such input).
    `tokenizer = "bytes"` needs no file: ids are bytes + `byte_offset`, filled with `pad_id`.
    Rows are cut at `max_tokens` only where `truncate` is set; otherwise a longer text is refused.
    Rows are padded to a multiple of `pad_to` (never beyond `max_tokens`), or to exactly `max_tokens` with `pad_to = 0`.
    `prefix` is put before every text. Texts over `max_characters` are refused before they are tokenized.
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
    max_characters: int = 100_000


SPEECH_FIELDS: Final = ("language", "prompt", "temperature", "task", "words")  # that callers may send beside a sound


class Speech(Base, frozen=True, tag="speech"):
    """A sound file -> windows of speech for a Whisper model: log-mel features, and an order for each window (JSON).

    `fills` names the input [mels, 3000], `order` the BYTES input. Callers may send `language`, `prompt`, `temperature`,
    `task` and `words` beside the sound (`pelton.runtimes.whisper` says what they mean). `languages` are the codes that
    the model knows; a model with one language cannot translate.
    """

    field: str
    fills: str = "features"
    order: str = "order"
    languages: tuple[str, ...] = ("en",)
    max_seconds: float = 7200.0
    max_bytes: int = 128 * 1024 * 1024


class Column(Part, frozen=True):
    """One named column of a table row.

    "number"; "integer" (3.0 counts as 3); "boolean"; "string" with `values`: the model sees the index in `values` (an
    unknown value is refused, or becomes `unknown` where that is set), with `one_hot` one 0/1 element for each of
    `values` (all 0 where `unknown` is set and the value is not known), and the text itself where its input is BYTES;
    "string" without `values`: the text itself.
    Left out, or null: `default` where there is one. Without a default, null is a missing value: `unknown` of a string
    with `values`, else NaN where the input's `nan` allows it, else refused; and the column may be left out altogether
    only where `required` is false. `minimum`, `maximum`: the range that is accepted of numbers and integers.
    `description`: for people, one line.
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
    description: str = ""


class Table(Base, frozen=True, tag="table"):
    """Named, typed columns -> the row vector of input `fills`, in this order; or, with `fills = ""`, each column is
    the input of the same name (shape [] or [1])."""

    columns: tuple[Column, ...]
    fills: str = ""


Preprocess = Image | Audio | Text | Speech | Table


class Labels(Base, frozen=True, tag="labels"):
    """Scores [n] -> the `top` best labels with their scores, best first: [{"label": ..., "score": ...}, ...].

    `labels_file`: a text file, one a line; with neither labels nor file a label is the index. `softmax`: the output
    holds logits. A binary score [1] or scalar: two labels, the score belongs to the second (a logit: its sigmoid).
    `over_rows` joins the scores of an instance's windows; with "none" the answer is a list, one item per window.
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
    symbol 0 is the blank. `symbols_file`: UTF-8, one symbol a line (a space is a symbol), for index 1, 2, ..."""

    output: str
    symbols_file: str
    field: str = "text"


class Value(Base, frozen=True, tag="value"):
    """The output as it is, under another name; `index` picks one element of the flattened row (the probability of the
    positive class)."""

    output: str
    field: str
    index: int | None = None


class Embedding(Base, frozen=True, tag="embedding"):
    """The output [n] of a text model is an embedding: `/v1/embeddings` serves such packages.

    `dimensions`: shorter lengths that the model was trained to be cut to (Matryoshka, Kusupati 2022); a cut vector is
    brought back to length 1 where `normalized`. Empty: only the whole vector."""

    output: str
    field: str = "embedding"
    dimensions: tuple[int, ...] = ()
    normalized: bool = True


class Transcript(Base, frozen=True, tag="transcript"):
    """What a Whisper model says of each window -> one part of the transcript of the whole sound."""

    output: str
    field: str
    part: Literal["text", "language", "duration", "segments"] = "text"


Postprocess = Labels | Ctc | Value | Embedding | Transcript


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
    if isinstance(block, Speech):
        return (block.fills, block.order)
    if isinstance(block, Table):
        return (block.fills,) if block.fills else tuple(column.name for column in block.columns)
    return (block.fills,)


def field_names(block: Preprocess) -> tuple[str, ...]:
    """What callers send for a block."""
    if isinstance(block, Table):
        return tuple(column.name for column in block.columns)
    if isinstance(block, Speech):
        return (block.field, *SPEECH_FIELDS)
    return (block.field,)
