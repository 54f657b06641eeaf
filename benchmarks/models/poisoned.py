"""A model that fails for a whole batch in which any row is 666, and takes 10 ms, so that calls wait and are batched."""

import time


class Poisoned:
    inputs = {"x": "FP32[1]"}  # noqa: RUF012 - read by Pelton, never changed
    outputs = {"y": "FP32[1]"}  # noqa: RUF012
    batch = True

    def predict(self, x):
        time.sleep(0.01)
        if (x == 666).any():
            raise ValueError("666 is a poisoned value")
        return x * 2
