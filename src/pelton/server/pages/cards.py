"""A card: what pages and documents need to know of a served version. Plain data, so that workers can show each other's."""

from __future__ import annotations

from typing import Any, Final
from weakref import WeakKeyDictionary

import msgspec

from pelton.engine import Served
from pelton.packages import preprocess as pre
from pelton.server.pages import examples
from pelton.server.pages.metadata import inputs
from pelton.server.pages.schemas import answer_schema, row_schema

EXAMPLE_LIMIT: Final = 4096  # bytes of an example that stands in documents; larger ones are linked


class Field(msgspec.Struct, frozen=True):
    """One field as a form needs it. `least`, `most`: the range of a number; `open`: other texts than `values` are
    taken too; `default` is what the model takes where the field is left out."""

    name: str
    kind: str
    required: bool
    description: str = ""
    values: tuple[str, ...] = ()
    open: bool = False
    least: float | None = None
    most: float | None = None
    default: float | str | bool | None = None
    datatype: str = ""
    shape: tuple[int, ...] = ()


class LanguageCard(msgspec.Struct, frozen=True):
    """What people ask first of a language model. `chat`: it has a template for conversations."""

    engine: str
    why: str
    context: int
    streams: int
    chat: bool
    architecture: str = ""
    parameters: int = 0
    quantization: str = ""


class Card(msgspec.Struct, frozen=True):
    """`tensors`: what an OIP request holds, (name, datatype, shape with the row dimension). `example`: one row, where it
    is short. `row` and `answer` are JSON Schemas."""

    name: str
    version: str
    runtime: str
    description: str
    source: str
    license: str
    stated_ms: float | None
    row_ms: float
    batched: bool
    fields: list[Field]
    tensors: list[tuple[str, str, list[int]]]
    outputs: list[str]
    example: dict[str, Any] | None
    row: dict[str, Any]
    answer: dict[str, Any]
    language: LanguageCard | None = None


_known: WeakKeyDictionary[Served, bytes] = WeakKeyDictionary()  # must not keep a model that was unloaded


def card_of(served: Served) -> bytes:
    """The card of a version, encoded; made once."""
    card = _known.get(served)
    if card is None:
        card = _known[served] = _made(served)
    return card


def _made(served: Served) -> bytes:
    replica = served.replica
    manifest = replica.package.manifest
    example = examples.quick(served)
    short = len(msgspec.json.encode(example)) <= EXAMPLE_LIMIT
    fields = fields_of(served)
    return msgspec.json.encode(
        Card(
            name=served.name,
            version=served.short_version,
            runtime=manifest.runtime,
            description=manifest.description,
            source=manifest.source,
            license=manifest.license,
            stated_ms=manifest.slo.p99_ms,
            row_ms=served.scheduler.batcher.latency.predict(1) * 1e3,
            batched=replica.signature.batched or bool(manifest.preprocess),
            fields=fields,
            tensors=inputs(served),
            outputs=list(replica.finish.fields),
            example=example if short else None,
            row=row_schema(fields),
            answer=answer_schema(manifest),
            language=_language(served),
        )
    )


def _language(served: Served) -> LanguageCard | None:
    facts, language = served.engine_facts, served.language
    if facts is None or language is None:
        return None
    card = language.card
    return LanguageCard(
        facts.engine, facts.why, facts.context, facts.streams, language.template is not None,
        card.architecture, card.parameters, card.quantization,
    )  # fmt: skip


def read(data: bytes) -> Card:
    """What `card_of` made, perhaps in another worker."""
    return msgspec.json.decode(data, type=Card)


def fields_of(served: Served) -> list[Field]:
    """What callers send, in the package's order."""
    columns = {
        column.name: column
        for block in served.replica.package.manifest.preprocess
        if isinstance(block, pre.Table)
        for column in block.columns
    }
    fields = []
    for spec in served.replica.prepare.fields:
        column = columns.get(spec.name, pre.Column(spec.name))
        fields.append(
            Field(
                spec.name, spec.kind, spec.required, spec.description, spec.values, column.unknown is not None,
                column.minimum, column.maximum, column.default, spec.datatype, spec.shape,
            )
        )  # fmt: skip
    return fields
