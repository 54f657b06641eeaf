"""Programmatic dependent launch: a kernel's blocks are placed while the kernel before it still drains.

Every kernel waits (`gdc_wait`) before it touches what the kernel before it wrote, so the order of memory is that of
the stream; what is saved is the gap between kernels, which is most of the time of a small decode step. Hopper and
newer. What is older than the kernel before may be read ahead of the wait: that kernel let this one start only once
it had waited itself, and then all before it had ended. So weights and a step's positions, slots and block tables are
read early, in every kernel but a step's first.
"""

from __future__ import annotations

import functools

import torch


class Chaining:
    """Whether kernels are launched this way; a switch for the benchmark to compare."""

    enabled = True


@functools.cache
def _capable(index: int) -> bool:
    return bool(torch.cuda.get_device_capability(index)[0] >= 9)


def chained(x: torch.Tensor) -> dict[str, bool]:
    """Launch arguments for a kernel on the device of `x`."""
    on = x.is_cuda and Chaining.enabled and _capable(x.device.index)
    return {"CHAINED": True, "launch_pdl": True} if on else {"CHAINED": False}
