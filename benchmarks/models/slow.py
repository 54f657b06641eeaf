"""A model that takes as long as its input says: x[0] milliseconds above 1,000, and nothing below.

What it was measured with when it was loaded is fast, so the server expects a fast model: the worst case for it.
"""

import time


class Slow:
    inputs = {"x": "FP32[1]"}  # noqa: RUF012 - read by Pelton, never changed
    outputs = {"y": "FP32[1]"}  # noqa: RUF012
    batch = True

    def predict(self, x):
        time.sleep(max(0.0, float(x.max()) - 1000) / 1000)
        return x * 2
