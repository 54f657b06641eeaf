"""The fakes that ship with Pelton."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from pelton.runtimes.contract import LoadedModel
from pelton.testing import EchoModel, FaultyModel, ManualClock, SleepyModel
from pelton.types import Signature, TensorSpec


def rows(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(-1, 1)


def test_an_echo_answers_a_copy_and_refuses_after_close():
    model: LoadedModel = EchoModel()
    sent = rows(1, 2)
    (got,) = model.run([sent])
    np.testing.assert_array_equal(got, sent)
    assert not np.shares_memory(got, sent)
    model.close()
    with pytest.raises(RuntimeError, match="closed"):
        model.run([sent])


def test_an_echo_of_unequal_signature_is_refused():
    with pytest.raises(ValueError, match="same types"):
        EchoModel(Signature((TensorSpec("x", "FP32"),), (TensorSpec("y", "FP64"),)))


def test_a_faulty_model_raises_for_poisoned_batches_only_and_remembers_all():
    model = FaultyModel({13}, error=ValueError)
    assert model.run([rows(1, 2)])[0].tolist() == [[1], [2]]
    with pytest.raises(ValueError, match="13"):
        model.run([rows(1, 13)])
    assert model.run([rows()])[0].shape == (0, 1)
    assert [batch.ravel().tolist() for batch in model.batches] == [[1, 2], [1, 13], []]


def test_poison_may_be_bytes():
    text = Signature((TensorSpec("t", "BYTES"),), (TensorSpec("u", "BYTES"),))
    with pytest.raises(RuntimeError, match="bad"):
        FaultyModel({b"bad"}, text).run([np.array([b"good", b"bad"], object)])


def test_a_sleepy_model_moves_the_clock_by_its_service_time():
    clock = ManualClock(100.0)
    model = SleepyModel(0.5, 0.25, clock)
    model.run([rows(1, 2)])
    assert clock() == 101.0
    assert model.busy_seconds == model.seconds(2) == 1.0


def test_time_never_runs_backwards():
    clock = ManualClock()
    assert clock.advance(2.5) == clock() == 2.5
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="backwards"):
            clock.advance(wrong)


def test_the_fakes_need_no_test_framework():
    code = "import sys, pelton.testing; sys.exit('pytest' in sys.modules or 'onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
