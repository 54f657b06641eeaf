"""The model's own process: `python -P -m pelton.runtimes.python_worker CHANNEL MODEL`. Started by `python_process`.

Standard output and error are pipes to the server's log, the channel is another file: what the user's code prints never
mixes with answers. The process ends when the server closes the channel, also when the server was killed.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import threading
import weakref
from types import FrameType

import msgspec
import numpy as np

from pelton.errors import ModelFailed, PackageInvalid
from pelton.runtimes.child_process import die_first, die_with_server, end_with_server, print_line_by_line
from pelton.runtimes.python_class import UserClass, UserFailed, UserModel, failure, load_class
from pelton.runtimes.python_wire import ANSWER, CALL, FAILED, READY, START, Broken, Channel, Header, pack, unpack
from pelton.types import Array


def main(arguments: list[str]) -> int:
    print_line_by_line()
    die_first()
    die_with_server()
    faulthandler.enable()  # a crash in native code shows in the log where the user's code was
    channel = Channel(socket.socket(fileno=int(arguments[0])), views=True)
    signal.signal(signal.SIGTERM, _Patience(channel))
    threading.Thread(target=end_with_server, args=(channel.fileno(),), name="pelton-parent", daemon=True).start()
    try:
        header, _ = channel.receive()
        if header.kind != START:
            raise Broken("the first frame must be START")
        spec = msgspec.msgpack.decode(header.extra, type=UserClass)
        model = _load(channel, spec)
        while model is not None and _answer(channel, spec, model):
            pass
    except OSError as error:
        if isinstance(error, Broken | ConnectionError):
            return 0  # the server is gone
        raise
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # from here the server may ask less politely
    return 0


def _load(channel: Channel, spec: UserClass) -> UserModel | None:
    sys.argv = [spec.file]
    try:
        model = load_class(spec)
        extra = msgspec.msgpack.encode(model.declared, enc_hook=repr)
    except (UserFailed, PackageInvalid) as error:
        channel.send(Header(FAILED, fault=failure(error), trace=getattr(error, "trace", "")))
        return None
    channel.send(Header(READY, extra=extra))
    return model


def _answer(channel: Channel, spec: UserClass, model: UserModel) -> bool:
    """One request; False after STOP."""
    header, body = channel.receive()
    if header.kind != CALL:
        return False
    if header.held:
        channel.forget()
    inputs = unpack(header, body, spec.signature.inputs)
    alive = weakref.ref(body) if header.shared else None
    answer = Header(ANSWER)
    outputs: list[Array] = []
    _busy.set()
    try:
        outputs = model.run(inputs)
        if alive is not None:
            outputs = [array.copy() if np.may_share_memory(array, body) else array for array in outputs]
    except (UserFailed, ModelFailed) as error:
        answer = Header(FAILED, fault=failure(error), trace=getattr(error, "trace", ""))
    finally:
        _busy.clear()
    del inputs, body
    if alive is not None and alive() is not None:  # the class keeps an input: this memory must not be written again
        answer.held = True
        channel.abandon()
    channel.release()
    answer.shapes = [list(array.shape) for array in outputs]
    channel.send(answer, [pack(array, tensor) for array, tensor in zip(outputs, spec.signature.outputs, strict=False)])
    return True


class _Patience:
    """Answers SIGTERM: a service manager signals all processes of a service at once, but the server decides when this
    one has finished. It obeys once the server has said STOP, which a running `predict` has not read yet.

    A handler, not SIG_IGN, which programs that the user's code starts would inherit. Forked children do obey.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._process = os.getpid()

    def __call__(self, number: int, _: FrameType | None) -> None:
        if os.getpid() == self._process and not (self._channel.waiting() and _busy.is_set()):
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


_busy = threading.Event()  # between a request and its answer nothing but STOP can arrive

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
