"""The vocabulary: tensors, signatures, calls. Every room speaks it; it imports nothing but msgspec and numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pelton.errors import InvalidInput, PeltonError

Array = NDArray[Any]


class DataType(msgspec.Struct, frozen=True):
    """One element type of the Open Inference Protocol v2.

    `size` is bytes per element (0: variable), `code` the letter of the `struct` module (empty: none exists).
    """

    name: str
    dtype: np.dtype[Any]
    size: int
    code: str
    kind: str  # "float" | "int" | "bool" | "bytes"


def _table(*rows: tuple[str, Any, int, str, str]) -> dict[str, DataType]:
    return {name: DataType(name, np.dtype(dtype), size, code, kind) for name, dtype, size, code, kind in rows}


DATATYPES: Final[dict[str, DataType]] = _table(
    ("BOOL", np.bool_, 1, "?", "bool"),
    ("UINT8", np.uint8, 1, "B", "int"),
    ("UINT16", np.uint16, 2, "H", "int"),
    ("UINT32", np.uint32, 4, "I", "int"),
    ("UINT64", np.uint64, 8, "Q", "int"),
    ("INT8", np.int8, 1, "b", "int"),
    ("INT16", np.int16, 2, "h", "int"),
    ("INT32", np.int32, 4, "i", "int"),
    ("INT64", np.int64, 8, "q", "int"),
    ("FP16", np.float16, 2, "e", "float"),
    ("FP32", np.float32, 4, "f", "float"),
    ("FP64", np.float64, 8, "d", "float"),
    ("BF16", np.uint16, 2, "", "float"),  # the bits; numpy has no bfloat16
    ("BYTES", np.object_, 0, "", "bytes"),  # an array of `bytes`
)


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Name, element type and shape of one input or output.

    `shape` is the shape of ONE row, without the batch dimension; -1 is a dimension that may vary.
    `nan`: whether NaN and infinities are accepted (trees read NaN as "missing"; most networks answer nonsense).
    `pad`: the value that fills rows up to the longest of a batch; without it only rows of equal shape share a batch.
    """

    name: str
    datatype: str
    shape: tuple[int, ...] = ()
    nan: bool = False
    pad: float | None = None

    @property
    def type(self) -> DataType:
        return DATATYPES[self.datatype]

    @property
    def fixed(self) -> bool:
        """Whether every dimension is known."""
        return -1 not in self.shape

    @property
    def elements(self) -> int:
        """Elements of one row; only meaningful where `fixed`."""
        count = 1
        for dim in self.shape:
            count *= dim
        return count


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a model takes and gives. `batched`: the first dimension of every tensor counts rows."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool = True

    def input(self, name: str) -> TensorSpec:
        return _named(self.inputs, name, "input")

    def output(self, name: str) -> TensorSpec:
        return _named(self.outputs, name, "output")


def _named(specs: Sequence[TensorSpec], name: str, what: str) -> TensorSpec:
    for spec in specs:
        if spec.name == name:
            return spec
    known = ", ".join(repr(spec.name) for spec in specs)
    raise InvalidInput(f"unknown {what} {name!r}; this model has {known}")


class ModelRef(msgspec.Struct, frozen=True):
    """`name`, `name:version` or `name@alias`, as people write it. A version may be shortened to a unique prefix."""

    name: str
    version: str = ""
    alias: str = ""

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Raises InvalidInput. `name:` is refused: a script with an empty variable must not mean every version."""
        if text.endswith((":", "@")):
            raise InvalidInput(f"{text[:120]!r} names nothing after {text[-1]!r}: leave that out, or name one")
        name, colon, version = text.partition(":")
        if colon:
            return cls(check_name(name), version=version)
        name, _, alias = text.partition("@")
        return cls(check_name(name), alias=alias)

    def __str__(self) -> str:
        if self.version:
            return f"{self.name}:{self.version}"
        return f"{self.name}@{self.alias}" if self.alias else self.name


_NAME_CHARS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def check_name(name: str) -> str:
    """Model names stand in URLs, file names and metric labels: letters, digits, '.', '_' and '-', at most 100."""
    if not name or len(name) > 100 or not _NAME_CHARS.issuperset(name) or name[0] in ".-":
        raise InvalidInput(
            f"{name!r} cannot be a model name: use 1 to 100 letters, digits, '.', '_' or '-', not starting with '.' or '-'"
        )
    return name


# What a caller gives for one field of one row before it is a tensor: a number, text, bytes of a file, a nested list.
Fields = Mapping[str, Sequence[Any]]

# What becomes of a call: its outputs in the signature's order, each [rows, ...], or its error.
Outcome = list[Array] | PeltonError

NEW, QUEUED, RUNNING, SETTLED = range(4)


class Call(msgspec.Struct, eq=False):
    """One inference on its way through the engine. Times are seconds of the engine's monotonic clock.

    `inputs` holds one array per input of the signature, in its order, each of shape [rows, *spec.shape].
    `fields` is set instead where a package declares preprocessing; the engine turns it into `inputs`.
    `done` is called exactly once, on the event loop, when `outcome` is set; it may be called before
    `Engine.submit` returns, and it is not called for a caller that left.
    """

    inputs: list[Array]
    rows: int
    done: Callable[[Call], None]
    received: float
    deadline: float
    fields: Fields | None = None
    counts: tuple[int, ...] | None = None  # rows per instance, where preprocessing makes several (windows of a sound)
    own_deadline: bool = False  # the caller asked for this deadline, it is not the model's target
    priority: int = 0  # larger is more urgent
    tenant: str = ""
    protocol: str = ""
    request_id: str = ""
    trace: str = ""
    route: int = 0  # of a call whose version a split has picked: the revision of the deployment
    key: int = 0  # what the caller is told apart by in that split; 0: nothing
    bucket: Any = None  # only calls of equal bucket share a batch
    length: int = 0  # tokens of a row as they are now, filled up to the longest; 0: all rows of the model are alike
    lengths: tuple[int, ...] | None = None  # real tokens of each row, where preprocessing counts them...
    tokens: int = 0  # ... and of all rows
    state: int = NEW
    abandoned: bool = False  # the caller left while it was running
    prepared: float = 0.0  # seconds spent on turning `fields` into `inputs`
    queued: float = 0.0
    batch: Batch | None = None
    parent: Call | None = None  # this is a piece of a call that is larger than a batch
    outcome: Outcome | None = None


class Batch(msgspec.Struct, eq=False):
    """What ran together: its calls, rows, why it left the queue, and the seconds that it held the device."""

    calls: list[Call]
    rows: int
    reason: str
    started: float = 0.0
    finished: float = 0.0
    run_seconds: float = 0.0
    load: int = 0  # of rows that differ in length: rows x longest,
    tokens: int = 0  # of those, what was no padding,
    length: int = 0  # and the longest
    head: bytes = b""  # the protocol's own: what the answers of all calls have in common
    usage: Any = None  # tokens, where it was one call of a language model...
    device: float = 0.0  # ... and its share of the engine's steps
