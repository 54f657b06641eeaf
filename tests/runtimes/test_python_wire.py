"""Frames: what goes in comes out, and what is no frame is refused."""

from __future__ import annotations

import socket
import struct
import threading

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pelton.runtimes import python_wire
from pelton.runtimes.python_wire import ANSWER, CALL, Broken, Channel, Header, pack, unpack
from pelton.types import TensorSpec

X = TensorSpec("x", "FP32", (-1,))
T = TensorSpec("t", "BYTES", (-1,))


@pytest.fixture
def ends():
    left, right = socket.socketpair()
    yield Channel(left, views=False), Channel(right, views=True)
    left.close()
    right.close()


def exchange(left, right, arrays, specs):
    header = Header(CALL, shapes=[list(array.shape) for array in arrays])
    thread = threading.Thread(target=left.send, args=(header, [pack(a, s) for a, s in zip(arrays, specs, strict=True)]))
    thread.start()
    got, body = right.receive()
    thread.join()
    return unpack(got, body, specs)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=30_000), max_size=8), st.integers(0, 40_000))
def test_tensors_arrive_as_they_were_sent(texts, count):
    left, right = socket.socketpair()
    with left, right:
        a, b = Channel(left, views=False), Channel(right, views=True)
        x = np.arange(count, dtype=np.float32).reshape(1, -1)
        t = np.empty((1, len(texts)), object)
        t[0, :] = texts
        for _ in range(2):
            got_t, got_x = exchange(a, b, [t, x], [T, X])
            assert got_t.tolist() == [texts]
            np.testing.assert_array_equal(got_x, x)


@pytest.mark.parametrize("shared", [True, False])
def test_large_bodies_cross_with_and_without_shared_memory(ends, shared, monkeypatch):
    if not shared:
        monkeypatch.setattr(python_wire, "_SEGMENTS", False)
    x = np.arange(3_000_000, dtype=np.float32).reshape(1, -1)
    for part in (x, x[:, :1000], x):
        np.testing.assert_array_equal(exchange(*ends, [part], [X])[0], part)


def test_without_files_to_spare_large_bodies_follow_on_the_socket(ends, monkeypatch):
    def none_left(_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(python_wire, "_segment", none_left)
    x = np.arange(100_000, dtype=np.float32).reshape(1, -1)
    np.testing.assert_array_equal(exchange(*ends, [x], [X])[0], x)


def frame(header: bytes, body: bytes = b"", size: int | None = None) -> bytes:
    return struct.pack("<IQ", len(header), len(body) if size is None else size) + header + body


def encoded(**fields) -> bytes:
    return msgspec.msgpack.encode(Header(ANSWER, **fields))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        frame(b"\xc1"),
        frame(b"{}"),
        frame(b"", size=1 << 60),
        struct.pack("<IQ", 1 << 31, 0),
        frame(encoded(sizes=[4]), bytes(64))[:-10],
        frame(encoded(sizes=[4]), bytes(128)),
        frame(encoded(sizes=[-64, 64]), b""),
        frame(encoded(sizes=[64], shared=True), size=64),
        frame(encoded(sizes=[1])) + bytes(64),
        frame(encoded()) + b"surplus",
    ],
)
def test_what_is_no_frame_is_broken_not_a_hang(data):
    left, right = socket.socketpair()
    with right:
        with left:
            left.sendall(data)
        with pytest.raises(Broken):
            Channel(right, views=False).receive()


@pytest.mark.parametrize(
    ("spec", "shape", "data"),
    [
        (X, [3], bytes(8)),
        (X, [-1], bytes(7)),
        (T, [2], bytes(4)),
        (T, [1], struct.pack("<I", 9) + b"short"),
        (T, [-1], bytes(4)),
        (X, [1, 2], bytes(4)),
    ],
)
def test_shapes_that_do_not_fit_the_bytes_are_broken(spec, shape, data):
    body = np.frombuffer(data + bytes(-len(data) % 64), np.uint8)
    with pytest.raises(Broken):
        unpack(Header(ANSWER, shapes=[shape], sizes=[len(data)]), body, [spec])


def test_memory_that_could_shrink_under_the_reader_is_refused():
    if not python_wire._SEGMENTS:
        pytest.skip("no memfd here")
    import os

    fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    with pytest.raises(Broken, match="sealed"):
        python_wire._mapped(fd)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
