"""Tensor parallelism: which part of the model this process holds, and how parts are put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among `size`. With one process every operation is the identity.

    `group` carries tensors (NCCL on CUDA, Gloo on CPU); `control` carries plans and always is Gloo, so that the
    host does not wait for the device. None is torch's own group of all: nothing here holds it, so that `leave` ends its
    threads. One that is alive when the interpreter ends takes the process down.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    control: dist.ProcessGroup | None = None

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Add the processes' partial results, in place."""
        if self.size > 1:
            dist.all_reduce(x, group=self.group)
        return x

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Put the processes' columns side by side: [rows, n] to [rows, n * size]."""
        if self.size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return torch.cat(parts, -1)

    def share(self, message: Any) -> Any:
        """Give rank 0's message to all; the others pass None."""
        if self.size == 1:
            return message
        box = [message]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def least(self, value: int) -> int:
        """The smallest of all processes' numbers."""
        if self.size == 1:
            return value
        box = torch.tensor([value])
        dist.all_reduce(box, op=dist.ReduceOp.MIN, group=self.control)
        return int(box)

    def cut(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """This process's part of a dimension."""
        if x.shape[dim] % self.size:
            raise ValueError(f"a dimension of {x.shape[dim]} does not divide among {self.size} processes")
        return x.chunk(self.size, dim)[self.rank].contiguous()


ALONE = Ranks()


def join(rank: int, size: int, address: str, device: torch.device) -> Ranks:
    """Meet the other processes at `address`, such as "tcp://127.0.0.1:29500" or "file:///tmp/meet"."""
    if size == 1:
        return ALONE
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=address, rank=rank, world_size=size)
    return Ranks(rank, size, None, dist.new_group(backend="gloo") if backend == "nccl" else None)


def leave() -> None:
    """Part from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()
