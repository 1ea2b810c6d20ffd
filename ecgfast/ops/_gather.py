"""Rows of all ranks of a process group, of which each may have another number, with their gradients."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from ecgfast.ops._dispatch import FLOATS, as_int64

_FAILED = -1


class _AllRows(torch.autograd.Function):
    """All ranks' rows. Gradients return to the rank that they belong to, summed over the ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int], group: ProcessGroup) -> Tensor:
        ctx.counts, ctx.group = counts, group
        most = max(counts)
        mine = x.contiguous()
        if len(mine) < most:  # collectives send equally much from each rank
            mine = torch.cat([mine, mine.new_zeros(most - len(mine), *mine.shape[1:])])
        parts = [torch.empty_like(mine) for _ in counts]
        dist.all_gather(parts, mine, group=group)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        total = grad.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total.split(ctx.counts)[dist.get_rank(ctx.group)], None, None


def _exchange(numbers: list[int], group: ProcessGroup) -> list[list[int]]:
    """Each rank's numbers.

    On the host where the group has a backend for it ("gloo", "cpu:gloo,cuda:nccl"): nothing waits for what is
    queued on a device. With NCCL alone the numbers pass through this process's device, and the host waits
    until what other collectives of the group queued before them is done.
    """
    if torch.device("cpu") in group._device_types:
        return _all_gather(torch.tensor(numbers), group)
    # Whatever device the arguments are on: a rank that has them on the wrong one must answer the others too.
    device = torch.device("cuda", torch.cuda.current_device())
    with torch.cuda.stream(torch.cuda.Stream(device)):
        return _all_gather(torch.tensor(numbers, device=device), group)


def _all_gather(mine: Tensor, group: ProcessGroup) -> list[list[int]]:
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, mine, group=group)
    return torch.stack(parts).tolist()


def gather_rows(
    op: str,
    validate: Callable[[], tuple],
    sides: tuple[Tensor, Tensor],
    groups: tuple[Tensor, Tensor],
    process_group: ProcessGroup,
) -> tuple:
    """The rows of both sides and their groups of all ranks, in the ranks' order, and ``validate``'s result.

    The ranks first tell each other their sizes, and whether their arguments passed ``validate``: what is
    wrong on one raises an error on all, where it would leave the others waiting. While a CUDA graph is
    captured, nothing can be told: the ranks must have equally many rows.
    """
    device = sides[0].device if isinstance(sides[0], Tensor) else torch.device("cpu")
    failure = None
    try:
        result = validate()
        own = [sides[0].shape[0], sides[1].shape[0], sides[0].shape[1], FLOATS.index(sides[0].dtype)]
    except (TypeError, ValueError) as error:
        failure, own = error, [_FAILED] * 4
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        told = [own] * dist.get_world_size(process_group)
    else:
        told = _exchange(own, process_group)
    if failure:
        raise failure
    _check(op, told)
    rows = [_AllRows.apply(x, [t[i] for t in told], process_group) for i, x in enumerate(sides)]
    ids = [_AllRows.apply(as_int64(x), [t[i] for t in told], process_group) for i, x in enumerate(groups)]
    return *rows, *ids, *result


def _check(op: str, told: list[list[int]]) -> None:
    """Raise an error, the same on all ranks, unless their rows go together."""
    for rank, (first, *_) in enumerate(told):
        if first == _FAILED:
            raise ValueError(f"{op}: the arguments on rank {rank} are wrong: see the error there")
    widths, dtypes = ([numbers[i] for numbers in told] for i in (2, 3))
    if len(set(widths)) > 1:
        raise ValueError(f"{op}: a must have the same number of columns D on all ranks, got {widths}")
    if len(set(dtypes)) > 1:
        names = [str(FLOATS[i]).removeprefix("torch.") for i in dtypes]
        raise ValueError(f"{op}: a must have the same dtype on all ranks, got {', '.join(names)}")
