"""A tiny Llama with random weights as a stateful OpenVINO graph, built as conversions build real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

VOCAB, WIDTH, HEADS, KV_HEADS, HEAD, LAYERS, INNER = 160, 64, 4, 2, 32, 2, 96
GROUPS = HEADS // KV_HEADS
LAST = 2**63 - 1


def const(value: Any, dtype: Any = np.float32) -> Any:
    return op.constant(np.asarray(value, dtype))


def ints(*values: int) -> Any:
    return const(values, np.int64)


def one(value: int) -> Any:
    return const(value, np.int64)


class Builder:
    """Holds what all layers share."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.sinks: list[Any] = []
        self.ids, self.mask, self.positions = (op.parameter([-1, -1], np.int64) for _ in range(3))
        self.beams = op.parameter([-1], np.int32)
        self.parameters = [self.ids, self.mask, self.positions, self.beams]
        for parameter, name in zip(
            self.parameters, ("input_ids", "attention_mask", "position_ids", "beam_idx"), strict=True
        ):
            parameter.set_friendly_name(name)
            parameter.output(0).get_tensor().set_names({name})
        self.batch = op.gather(op.shape_of(self.ids), ints(0), one(0))
        self.turn = self._turn()
        self.seen = self._seen()

    def model(self) -> ov.Model:
        table = self.weight(VOCAB, WIDTH)
        x = op.gather(table, op.convert(self.ids, np.int32), one(0))
        for index in range(LAYERS):
            x = self.layer(x, index)
        logits = op.matmul(self.norm(x), self.weight(VOCAB, WIDTH), False, True)
        logits.output(0).get_tensor().set_names({"logits"})
        return ov.Model([op.result(logits)], self.sinks, self.parameters, "tiny")

    def weight(self, outputs: int, inputs: int) -> Any:
        return const(self.random.normal(0.0, 1.5 * inputs**-0.5, (outputs, inputs)))

    def linear(self, x: Any, outputs: int, inputs: int) -> Any:
        return op.matmul(x, self.weight(outputs, inputs), False, True)

    def norm(self, x: Any) -> Any:
        mean = op.reduce_mean(op.power(x, const([[[2.0]]])), ints(-1), True)
        scaled = op.multiply(x, op.divide(const([[[1.0]]]), op.sqrt(op.add(mean, const([[[1e-5]]])))))
        return op.multiply(scaled, const(np.ones((1, 1, WIDTH))))

    def heads(self, x: Any, count: int) -> Any:
        return op.transpose(op.reshape(x, ints(0, 0, count, HEAD), True), ints(0, 2, 1, 3))

    def _turn(self) -> tuple[Any, Any]:
        inverse = const((10000.0 ** -(np.arange(0, HEAD, 2) / HEAD)).reshape(1, -1, 1))
        wide = op.broadcast(inverse, op.concat([self.batch, ints(1), ints(1)], 0), broadcast_spec="BIDIRECTIONAL")
        angles = op.matmul(wide, op.convert(op.unsqueeze(self.positions, one(1)), np.float32), False, False)
        angles = op.transpose(angles, ints(0, 2, 1))
        angles = op.concat([angles, angles], -1)
        return op.unsqueeze(op.cos(angles), one(1)), op.unsqueeze(op.sin(angles), one(1))

    def rope(self, x: Any) -> Any:
        half = HEAD // 2
        high = op.slice(x, ints(half), ints(LAST), ints(1), ints(3))
        low = op.slice(x, ints(0), ints(half), ints(1), ints(3))
        turned = op.concat([op.multiply(high, const([[[[-1.0]]]])), low], -1)
        return op.add(op.multiply(x, self.turn[0]), op.multiply(turned, self.turn[1]))

    def _seen(self) -> Any:
        """0 where a position may look, minus infinity where not: [rows, 1, new, all]."""
        count = op.squeeze(op.gather(op.shape_of(self.mask), ints(1), one(0)), ints(0))
        keys = op.unsqueeze(op.range(one(0), count, one(1), "i64"), ints(0, 1, 2))
        queries = op.unsqueeze(self.positions, ints(1, 3))
        return op.select(op.less_equal(keys, queries), const(0.0), const(-np.inf))

    def past(self, new: Any, name: str) -> Any:
        """What came before and what is new, which becomes the state; once for each query head."""
        empty = op.broadcast(const(0.0), op.concat([self.batch, ints(KV_HEADS), ints(0), ints(HEAD)], 0))
        state = op.read_value(empty, name, np.float32, ov.PartialShape([-1, KV_HEADS, -1, HEAD]))
        full = op.concat([op.gather(state, self.beams, one(0)), new], 2)
        self.sinks.append(op.assign(full, name))
        target = op.concat([self.batch, ints(KV_HEADS), ints(GROUPS), ints(1), ints(HEAD)], 0)
        wide = op.broadcast(op.unsqueeze(full, one(2)), target, broadcast_spec="BIDIRECTIONAL")
        return op.reshape(wide, ints(0, HEADS, -1, HEAD), True)

    def layer(self, x: Any, index: int) -> Any:
        h = self.norm(x)
        q = self.rope(self.heads(self.linear(h, HEADS * HEAD, WIDTH), HEADS))
        k = self.rope(self.heads(self.linear(h, KV_HEADS * HEAD, WIDTH), KV_HEADS))
        v = self.heads(self.linear(h, KV_HEADS * HEAD, WIDTH), KV_HEADS)
        k = self.past(k, f"past_key_values.{index}.keypresent.{index}.key")
        v = self.past(v, f"past_key_values.{index}.valuepresent.{index}.value")
        found = op.scaled_dot_product_attention(q, k, v, self.seen)
        found = op.reshape(op.transpose(found, ints(0, 2, 1, 3)), ints(0, 0, HEADS * HEAD), True)
        x = op.add(x, self.linear(found, WIDTH, HEADS * HEAD))
        h = self.norm(x)
        inner = op.multiply(op.swish(self.linear(h, INNER, WIDTH)), self.linear(h, INNER, WIDTH))
        return op.add(x, self.linear(inner, WIDTH, INNER))


def write(folder: Path, seed: int = 1) -> Path:
    """Writes openvino_model.xml and .bin."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "openvino_model.xml"
    ov.save_model(Builder(seed).model(), path, compress_to_fp16=False)
    return path


class Plain:
    """The graph as it is written, without paging: what the engine must agree with."""

    def __init__(self, path: Path) -> None:
        config = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "INFERENCE_NUM_THREADS": 1}
        self._request = ov.Core().compile_model(path, "CPU", config).create_infer_request()

    def logits(self, tokens: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Of every position: [tokens, vocabulary]."""
        self._request.reset_state()
        count = len(tokens)
        feed = {
            "input_ids": np.array([tokens]),
            "attention_mask": np.ones((1, count), np.int64),
            "position_ids": np.arange(count)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        return np.array(self._request.infer(feed)["logits"][0])
