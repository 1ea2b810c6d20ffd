"""One process or several: rank, world size and device from the environment of torchrun."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from ecgfast.errors import EcgfastError


@dataclass(frozen=True)
class World:
    """The place of this process among the processes of a run."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def group(self) -> dist.ProcessGroup | None:
        """All processes; None for one alone."""
        return dist.group.WORLD if self.size > 1 else None

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` summed over all processes, in place, without waiting for the device."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def max_(self, tensor: torch.Tensor) -> torch.Tensor:
        """The largest `tensor` of all processes, in place, without waiting for the device."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def gather(self, item: object) -> list | None:
        """Every process's `item` in rank order on the main process, None elsewhere."""
        if self.size == 1:
            return [item]
        items = [None] * self.size if self.is_main else None
        dist.gather_object(item, items)
        return items


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """The device called `name`: `auto`, `cpu`, `cuda` (the one of `local_rank`) or `cuda:N`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise EcgfastError(f"device: got {name!r}; auto, cpu, cuda or cuda:N is taken")
    if device.type == "cpu":
        return device
    index = local_rank if device.index is None else device.index
    n_devices = torch.cuda.device_count()
    if index >= n_devices:
        raise EcgfastError(f"device: got {name!r} (number {index}); {n_devices} CUDA devices found")
    return torch.device("cuda", index)


@contextmanager
def open_world(device: str) -> Iterator[World]:
    """Join the process group that torchrun describes, if there is one: NCCL or, on CPU, gloo."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    resolved = resolve_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if resolved.type == "cuda":
        torch.cuda.set_device(resolved)
    if size == 1:
        yield World(0, 1, resolved)
        return
    backend = "nccl" if resolved.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=30))
    try:
        yield World(dist.get_rank(), size, resolved)
    finally:
        dist.destroy_process_group()
