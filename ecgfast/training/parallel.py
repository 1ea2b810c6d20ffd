"""One process or several: their place in the run, and everything that is done over all of them."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ecgfast.errors import EcgfastError
from ecgfast.nn.pretrained import load_tensors


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

    def sum_(self, tensor: Tensor) -> Tensor:
        """`tensor` summed over all processes, in place, without waiting for the device."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def max_(self, tensor: Tensor) -> Tensor:
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


class Replica:
    """A model in training over all processes.

    Each process holds the whole model, at first with rank 0's weights. In the last micro-batch of an update,
    gradients are averaged over processes.

    Attributes:
        model: the module itself, with its own names.
        forward: what to call in its place.
        parameters: those that are trained.
    """

    def __init__(self, model: nn.Module, world: World, *, compiled: bool = False) -> None:
        self.world = world
        self.model = model.to(world.device).train()
        wrapped: nn.Module = self.model
        if world.size > 1:
            wrapped = nn.parallel.DistributedDataParallel(wrapped, gradient_as_bucket_view=True)
        self._wrapped = wrapped
        self.forward = torch.compile(wrapped) if compiled else wrapped
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]

    def accumulating(self) -> AbstractContextManager[None]:
        """Where gradients are to stay within each process: in every micro-batch of an update but the last."""
        return self._wrapped.no_sync() if self.world.size > 1 else nullcontext()

    def full_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """States of `model` and `optimizer` as whole tensors; every process must call it."""
        return {"model": self.model.state_dict(), "optimizer": optimizer.state_dict()}

    def load_full_state(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Take up what `full_state` gave; every process must call it.

        Raises:
            EcgfastError: the model's tensors are not those of `model`.
        """
        load_tensors(self.model, state["model"], "its model", assign=False)
        optimizer.load_state_dict(state["optimizer"])

    def full_model(self) -> nn.Module | None:
        """The model with whole tensors on the main process, None elsewhere; every process must call it."""
        return self.model if self.world.is_main else None


def total_norm(tensors: Sequence[Tensor], order: float = 2.0) -> Tensor:
    """Norm of all entries of gradients, parameters or moments, over every process; 0-dim, nothing waits.

    Each process holds them whole, so its own norm is that of all.
    """
    return nn.utils.get_total_norm(tensors, order)


def largest(tensors: Sequence[Tensor]) -> float:
    """The largest absolute value in any of the tensors, over every process; waits for the device."""
    return float(total_norm(tensors, math.inf))


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
    """Join the process group that torchrun describes, if there is one: gloo and, for CUDA tensors, NCCL."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    resolved = resolve_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if resolved.type == "cuda":
        torch.cuda.set_device(resolved)
    if size == 1:
        yield World(0, 1, resolved)
        return
    # The losses exchange sizes on the host, where NCCL can't.
    backend = "cpu:gloo,cuda:nccl" if resolved.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=30))
    try:
        yield World(dist.get_rank(), size, resolved)
    finally:
        dist.destroy_process_group()
