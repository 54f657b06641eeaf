"""Open Inference Protocol v2 over REST: `POST /v2/models/{model}[/versions/{version}]/infer`, with binary tensors.

Specification: github.com/kserve/open-inference-protocol (inference_rest.md) and Triton's binary tensor data extension.
Content-Type is ignored, as clients do not agree on one; unknown keys are tolerated, as some clients send them.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from pelton.engine import Served
from pelton.errors import InvalidInput, Unsupported
from pelton.server.protocols.codec import BAD_JSON, Answer, Asked, bad_json, check_json_size, encode
from pelton.server.protocols.quick import ELEMENT, Quick, giver, only_input, taker, vector
from pelton.server.protocols.tensors import (
    PACK_LIMIT,
    array_of,
    check_shape,
    count_of,
    from_binary,
    from_json,
    known_datatype,
    to_binary,
    to_list,
)
from pelton.server.wire.limits import Limits
from pelton.server.wire.request import Request
from pelton.types import Array, Call, TensorSpec

LENGTH_HEADER: Final = b"inference-header-content-length"
BINARY_TYPE: Final = b"application/octet-stream"
MAX_TENSORS: Final = 1024
FILES: Final = ("image", "audio")  # kinds of fields

Parameters = dict[str, str | int | float | bool]
KEPT_HEADS: Final = 256  # JSON parts of binary requests that are remembered...
LONGEST_HEAD: Final = 2048  # ... and their bytes, at most


class JsonInput(msgspec.Struct):
    """An input as it stands in the JSON; `data` is absent where binary data follows."""

    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw = msgspec.Raw()  # empty where absent: msgspec reads `Raw | None` as null only
    parameters: Parameters | None = None


class JsonOutput(msgspec.Struct):
    """A requested output."""

    name: str
    parameters: Parameters | None = None


class JsonRequest(msgspec.Struct):
    """The JSON of a request."""

    inputs: list[JsonInput]
    id: str | None = None  # clients made with pydantic send null for what is not there
    outputs: list[JsonOutput] | None = None
    parameters: Parameters | None = None


class Wanted(msgspec.Struct):
    """What the answer must look like: the request's id, and (output index, binary?) in the order asked for."""

    id: str = ""
    outputs: tuple[tuple[int, bool], ...] = ()


class BinaryHead(msgspec.Struct, frozen=True):
    """JSON that was read before: where in the `size` binary bytes each input lies, and what else was asked."""

    inputs: tuple[tuple[int, int, tuple[int, ...], TensorSpec], ...]  # start, stop, shape
    size: int
    rows: int
    context: Wanted
    timeout: float
    priority: int

    def read(self, binary: memoryview) -> Asked:
        """The request with these bytes. Raises InvalidInput for what a tensor may not hold."""
        inputs = [from_binary(binary[start:stop], shape, spec) for start, stop, shape, spec in self.inputs]
        return Asked(inputs, self.rows, None, self.context, self.timeout, self.priority)


_request: Final = msgspec.json.Decoder(JsonRequest)
PLAIN: Final = Wanted()


class OipCodec:
    """Compiled for one version."""

    protocol = "oip_v2"

    def __init__(self, served: Served, limits: Limits) -> None:
        replica = served.replica
        self._limits = limits
        self._signature = replica.signature
        self._inputs = {spec.name: spec for spec in replica.signature.inputs}
        self._outputs = {spec.name: i for i, spec in enumerate(replica.signature.outputs)}
        self._fields = {field.name: field for field in replica.prepare.fields}
        self._preprocessed = bool(replica.package.manifest.preprocess)
        self._typed = self._typed_decoder()
        self._head = b'{"model_name":%b,"model_version":%b' % (encode(served.name), encode(served.short_version))
        self._output_heads = tuple(
            b'{"name":%b,"datatype":"%b","shape":' % (encode(spec.name), spec.datatype.encode())
            for spec in replica.signature.outputs
        )
        self._everything = tuple((i, False) for i in range(len(self._output_heads)))
        self._row = self._row_spec()
        self._row_shape = [1, *self._row.shape] if self._row is not None else []
        self._answer_shape, self._answer_head = self._row_answer()
        self.quick = self._quick(served)
        self._binary_heads: dict[bytes, BinaryHead] = {}

    def _row_spec(self) -> TensorSpec | None:
        """The only input, where it is a fixed vector: most calls are one row of it, and are decoded in a few steps."""
        specs = self._signature.inputs
        if self._typed is None or len(specs) != 1 or not self._signature.batched:
            return None
        spec = specs[0]
        return spec if spec.fixed and len(spec.shape) == 1 and spec.elements <= PACK_LIMIT else None

    def _row_answer(self) -> tuple[tuple[int, ...], bytes]:
        """Shape and beginning of the answer to one row, where the only output is fixed numbers."""
        specs = self._signature.outputs
        if len(specs) != 1 or not specs[0].fixed or not specs[0].type.code or not self._signature.batched:
            return (), b""
        shape = (1, *specs[0].shape)
        return shape, b"".join((self._head, b',"outputs":[', self._output_heads[0], encode(shape), b',"data":'))

    def _quick(self, served: Served) -> Quick | None:
        """One row of the only input, with nothing else in the request."""
        spec = only_input(served)
        give = giver(served, self._answer_head, b"}]}", one_row=False)
        if spec is None or give is None or not self._answer_head:
            return None
        # types made from the signature: msgspec checks names and shape while it parses
        one: Any = Literal
        fields = [
            ("name", one[spec.name]),
            ("shape", tuple[one[1], one[spec.elements]]),
            ("datatype", one[spec.datatype]),
        ]
        tensor = msgspec.defstruct("Input", [*fields, ("data", vector(spec))], forbid_unknown_fields=True)
        form = msgspec.defstruct("Request", [("inputs", tuple[tensor])], forbid_unknown_fields=True)  # type: ignore[valid-type]
        return Quick(taker(spec, form, lambda request: request.inputs[0].data), give)

    def _typed_decoder(self) -> msgspec.json.Decoder[Any] | None:
        """Checks flat data while it is parsed, where all inputs take the same kind of numbers."""
        kinds = {spec.type.kind for spec in self._inputs.values()}
        if self._preprocessed or len(kinds) != 1 or not all(spec.type.code for spec in self._inputs.values()):
            return None
        element: Any = ELEMENT[kinds.pop()]
        fields = [("name", str), ("shape", list[int]), ("datatype", str), ("data", list[element])]
        optional = ("parameters", Parameters | None, None)
        typed = msgspec.defstruct("Input", [*fields, optional])
        return msgspec.json.Decoder(msgspec.defstruct("Request", [("inputs", list[typed])], bases=(_Rest,)))  # type: ignore[valid-type]

    # ---- requests

    def decode(self, request: Request, body: bytes) -> Asked:
        length = request.header(LENGTH_HEADER) if request.special else None
        if length is not None:
            return self._with_binary(body, length)
        check_json_size(body, self._limits)
        if self._typed is not None:
            try:
                decoded = self._typed.decode(body)
                return self._typed_row(decoded) or self._typed_tensors(decoded)
            except msgspec.ValidationError:
                pass  # nested data, or wrong: the general way tells
            except BAD_JSON as error:
                raise bad_json(error) from None
        return self._general(_decode(body), memoryview(b""))

    def _typed_row(self, decoded: Any) -> Asked | None:
        """One row of the only input, asked for without further wishes; None: anything else."""
        spec = self._row
        if spec is None or len(decoded.inputs) != 1 or decoded.parameters is not None or decoded.outputs is not None:
            return None
        tensor = decoded.inputs[0]
        data = tensor.data
        if tensor.shape != self._row_shape or len(data) != spec.shape[0] or tensor.name != spec.name:
            return None
        if tensor.datatype != spec.datatype:
            return None
        array = array_of(data, (1, *spec.shape), spec)
        return Asked([array], 1, context=Wanted(decoded.id) if decoded.id else PLAIN)

    def _typed_tensors(self, decoded: Any) -> Asked:
        given: dict[str, Array] = {}
        rows = 0
        for tensor in decoded.inputs:
            spec = self._spec_of(tensor.name, tensor.datatype)
            if spec.name in given:
                raise InvalidInput(f"input {spec.name!r} is given twice")
            shape = tensor.shape
            rows = _same_rows(rows, check_shape(shape, spec, self._signature.batched), spec)
            data = tensor.data
            if len(data) != count_of(shape):
                raise InvalidInput(
                    f"input {spec.name!r}: shape {shape} needs {count_of(shape)} values, data has {len(data)}"
                )
            given[spec.name] = array_of(data, tuple(shape), spec)
        return self._asked(given, rows, decoded)

    def _with_binary(self, body: bytes, length: bytes) -> Asked:
        if not length.isdigit() or len(length) > 12:
            raise InvalidInput("the header Inference-Header-Content-Length must be a whole number of bytes")
        size = int(length)
        if size == 0:
            return self._raw(memoryview(body))
        if size > len(body):
            raise InvalidInput(
                f"Inference-Header-Content-Length is {size}, but the whole body has only {len(body)} bytes"
            )
        view = memoryview(body)
        head = body[:size]
        known = self._binary_heads.get(head)
        if known is not None and len(body) - size == known.size:
            return known.read(view[size:])
        check_json_size(head, self._limits)
        decoded = _decode(head)
        asked = self._general(decoded, view[size:])
        if asked.fields is None and not decoded.id and size <= LONGEST_HEAD:
            self._remember(head, decoded, asked)
        return asked

    def _remember(self, head: bytes, decoded: JsonRequest, asked: Asked) -> None:
        """Most clients send the same JSON before every binary tensor. It is kept where all inputs are binary."""
        places, start = {}, 0
        for tensor in decoded.inputs:
            size = (tensor.parameters or {}).get("binary_data_size")
            if not isinstance(size, int):
                return
            places[tensor.name] = (start, start + size, tuple(tensor.shape), self._inputs[tensor.name])
            start += size
        if len(self._binary_heads) >= KEPT_HEADS:
            self._binary_heads.clear()
        inputs = tuple(places[spec.name] for spec in self._signature.inputs)
        self._binary_heads[head] = BinaryHead(inputs, start, asked.rows, asked.context, asked.timeout, asked.priority)

    def _raw(self, data: memoryview) -> Asked:
        """The whole body is one tensor: models with one input and at most one variable dimension."""
        specs = self._signature.inputs
        if len(specs) != 1 or specs[0].shape.count(-1) > 1:
            raise InvalidInput("Inference-Header-Content-Length 0 needs a model with one input of known shape")
        spec = specs[0]
        shape = (1, *spec.shape) if self._signature.batched else spec.shape
        if spec.datatype == "BYTES":
            data = memoryview(len(data).to_bytes(4, "little") + data)
        elif -1 in shape:
            known = -count_of(shape) * spec.type.size
            shape = tuple(len(data) // known if dim == -1 else dim for dim in shape) if known else shape
        array = from_binary(data, tuple(1 if dim == -1 else dim for dim in shape), spec)
        return Asked([array], 1, context=Wanted("", tuple((i, True) for i in range(len(self._output_heads)))))

    def _general(self, decoded: JsonRequest, binary: memoryview) -> Asked:
        if not decoded.inputs or len(decoded.inputs) > MAX_TENSORS:
            raise InvalidInput(f"a request needs 1 to {MAX_TENSORS} inputs, this one has {len(decoded.inputs)}")
        by_fields = self._preprocessed and any(tensor.name not in self._inputs for tensor in decoded.inputs)
        given: dict[str, Array] = {}
        rows = 0
        for tensor in decoded.inputs:
            spec = self._field_spec(tensor) if by_fields else self._spec_of(tensor.name, tensor.datatype)
            data, binary = _cut(tensor, binary)
            shape = tuple(tensor.shape)
            if by_fields:
                tensor_rows = self._field_rows(shape, spec)
            else:
                tensor_rows = check_shape(shape, spec, self._signature.batched)
            rows = _same_rows(rows, tensor_rows, spec)
            if tensor.name in given:
                raise InvalidInput(f"input {tensor.name!r} is given twice")
            given[tensor.name] = (
                from_binary(data, shape, spec) if data is not None else from_json(tensor.data, shape, spec)
            )
        if len(binary):
            raise InvalidInput(f"{len(binary)} bytes of the body belong to no input: check binary_data_size")
        return self._asked_fields(given, rows, decoded) if by_fields else self._asked(given, rows, decoded)

    def _spec_of(self, name: str, datatype: str) -> TensorSpec:
        spec = self._inputs.get(name)
        if spec is None:
            known = list(self._fields) if self._preprocessed else list(self._inputs)
            raise InvalidInput(f"unknown input {name[:60]!r}; this model has {', '.join(map(repr, known))}")
        if datatype != spec.datatype:
            known_datatype(datatype, f"input {name!r}")
            raise InvalidInput(f"input {name!r}: datatype is {datatype}, the model takes {spec.datatype}")
        return spec

    def _field_spec(self, tensor: JsonInput) -> TensorSpec:
        """A field of the preprocessing, seen as a tensor with one element per instance."""
        field = self._fields.get(tensor.name)
        if field is None:
            known = ", ".join(map(repr, self._fields))
            raise InvalidInput(f"unknown input {tensor.name[:60]!r}; this model takes {known}")
        if field.kind == "tensor":
            return self._spec_of(tensor.name, tensor.datatype)
        known_datatype(tensor.datatype, f"input {tensor.name!r}")
        return TensorSpec(tensor.name, tensor.datatype, (), nan=True)

    def _field_rows(self, shape: tuple[int, ...], spec: TensorSpec) -> int:
        if spec.shape:
            return check_shape(shape, spec, True)
        if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1):
            raise InvalidInput(f"input {spec.name!r}: its shape must be [n] or [n, 1], one value per row")
        return check_shape(shape[:1], spec, True)

    def _asked(self, given: dict[str, Array], rows: int, decoded: Any) -> Asked:
        specs = self._signature.inputs
        if len(given) != len(specs):
            missing = [name for name in self._inputs if name not in given]
            raise InvalidInput(f"the request lacks the input {missing[0]!r}")
        inputs = [given[spec.name] for spec in specs]
        if decoded.parameters is None and decoded.outputs is None:
            return Asked(inputs, rows, context=Wanted(decoded.id) if decoded.id else PLAIN)
        return self._with_parameters(Asked(inputs, rows), decoded)

    def _asked_fields(self, given: dict[str, Array], rows: int, decoded: JsonRequest) -> Asked:
        in_json = {tensor.name for tensor in decoded.inputs if len(tensor.data)}
        fields = {name: self._values(name, array, rows, name in in_json) for name, array in given.items()}
        return self._with_parameters(Asked([], rows, fields), decoded)

    def _values(self, name: str, array: Array, rows: int, in_json: bool) -> list[Any]:
        """One value per row, as the other protocols give it: text is `str`, a file is base64 `str` or its `bytes`."""
        kind = self._fields[name].kind
        if kind == "tensor":
            return list(array)
        values: list[Any] = array.reshape(rows).tolist()
        if array.dtype != object or (kind in FILES and not in_json):
            return values
        try:
            return [value.decode() for value in values]
        except UnicodeDecodeError:
            raise InvalidInput(f"input {name!r}: it takes text, and this is not UTF-8") from None

    def _with_parameters(self, asked: Asked, decoded: Any) -> Asked:
        parameters = decoded.parameters or {}
        asked.timeout = _number(parameters, "timeout") / 1e6
        priority = int(_number(parameters, "priority"))
        asked.priority = 0 if priority == 0 else max(-8, 2 - priority)
        for name in ("sequence_id", "sequence_start", "sequence_end"):
            if parameters.get(name):
                raise Unsupported(f"parameter {name!r}: models that keep state between calls are not served here")
        binary = _flag(parameters, "binary_data_output", False)
        asked.context = Wanted(decoded.id or "", self._wanted(decoded.outputs, binary))
        return asked

    def _wanted(self, outputs: list[JsonOutput] | None, binary: bool) -> tuple[tuple[int, bool], ...]:
        if not outputs:
            return tuple((i, binary) for i in range(len(self._output_heads)))
        if len(outputs) > len(self._outputs):
            raise InvalidInput(f"{len(outputs)} outputs are asked for; this model has {len(self._outputs)}")
        wanted = []
        for output in outputs:
            index = self._outputs.get(output.name)
            if index is None:
                known = ", ".join(map(repr, self._outputs))
                raise InvalidInput(f"unknown output {output.name[:60]!r}; this model has {known}")
            parameters = output.parameters or {}
            if parameters.get("classification"):
                raise Unsupported("the classification extension is not served: declare labels in the package instead")
            wanted.append((index, _flag(parameters, "binary_data", binary)))
        return tuple(wanted)

    # ---- answers

    def encode(self, call: Call, outputs: list[Array], context: Any) -> Answer:
        wanted: Wanted = context or PLAIN
        if wanted is PLAIN and self._answer_head and outputs[0].shape == self._answer_shape:
            return Answer(self._answer_head + encode(outputs[0].ravel().tolist()) + b"}]}")
        parts = [self._head]
        if wanted.id:
            parts.append(b',"id":' + encode(wanted.id))
        tensors, binary = [], []
        for index, as_binary in wanted.outputs or self._everything:
            array = outputs[index]
            head = self._output_heads[index] + encode(array.shape)
            if as_binary:
                data = to_binary(array)
                binary.append(data)
                tensors.append(head + b',"parameters":{"binary_data_size":%d}}' % len(data))
            else:
                tensors.append(head + b',"data":' + encode(to_list(array, self._signature.outputs[index])) + b"}")
        parts.append(b',"outputs":[' + b",".join(tensors) + b"]}")
        body = b"".join(parts)
        if not binary:
            return Answer(body)
        headers = b"inference-header-content-length: %d\r\n" % len(body)
        return Answer(b"".join((body, *binary)), BINARY_TYPE, headers)


class _Rest(msgspec.Struct, kw_only=True):
    """What a request has beside its inputs."""

    id: str | None = None  # clients made with pydantic send null for what is not there
    outputs: list[JsonOutput] | None = None
    parameters: Parameters | None = None


def _decode(body: bytes | memoryview) -> JsonRequest:
    try:
        return _request.decode(body)
    except BAD_JSON as error:
        raise bad_json(error) from None


def _same_rows(rows: int, more: int, spec: TensorSpec) -> int:
    if rows and rows != more:
        raise InvalidInput(f"input {spec.name!r} has {more} rows, the inputs before it have {rows}")
    return more


def _cut(tensor: JsonInput, binary: memoryview) -> tuple[memoryview | None, memoryview]:
    """The binary data of a tensor, if it has any, and what is left for the next ones."""
    size = (tensor.parameters or {}).get("binary_data_size")
    if size is None:
        if not len(tensor.data):
            raise InvalidInput(f"input {tensor.name[:60]!r} has neither data nor binary_data_size")
        return None, binary
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise InvalidInput(f"input {tensor.name[:60]!r}: binary_data_size must be a whole number of bytes")
    if len(tensor.data):
        raise InvalidInput(f"input {tensor.name[:60]!r} has both data and binary_data_size")
    if size > len(binary):
        raise InvalidInput(
            f"input {tensor.name[:60]!r}: binary_data_size is {size}, but only {len(binary)} bytes are left in the body"
        )
    return binary[:size], binary[size:]


def _number(parameters: Parameters, name: str) -> float:
    value = parameters.get(name, 0)
    if isinstance(value, bool | str) or not 0 <= value < 2**53:
        raise InvalidInput(f"parameter {name!r} must be a number from 0 up")
    return value


def _flag(parameters: Parameters, name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidInput(f"parameter {name!r} must be true or false")
    return value
