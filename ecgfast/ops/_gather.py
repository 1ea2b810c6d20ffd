"""Rows of all ranks of a process group, of which each may have another number, with their gradients."""

from collections.abc import Callable, Sequence
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
    rows: Sequence[Tensor | None],
    pairs: Tensor | None,
    denominator: str,
    process_group: ProcessGroup,
) -> tuple:
    """The rows of all ranks, in the ranks' order, and ``validate``'s result.

    ``rows``: both sides, ``[N, D]`` or ``[L, N, D]``, their groups ``[N]`` and which of them are present,
    ``[N]`` or ``[L, N]``; what is None stays so.

    The ranks first tell each other their sizes, and whether their arguments passed ``validate``: what is
    wrong on one raises an error on all, where it would leave the others waiting. While a CUDA graph is
    captured, nothing can be told: the ranks must have equally many rows.
    """
    device = rows[0].device if isinstance(rows[0], Tensor) else torch.device("cpu")
    failure = None
    try:
        result = validate()
        own = _numbers(rows, pairs, denominator)
    except (TypeError, ValueError) as error:
        failure, own = error, [_FAILED] * (2 + len(_SAME))
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        told = [own] * dist.get_world_size(process_group)
    else:
        told = _exchange(own, process_group)
    if failure:
        raise failure
    _check(op, told)
    gathered = []
    for i, x in enumerate(rows):
        if x is None:
            gathered.append(None)
            continue
        dim = x.dim() - 2 if i < 2 else x.dim() - 1  # of the rows
        sent = x if i < 2 else as_int64(x)
        all_rows = _AllRows.apply(sent.movedim(dim, 0), [t[i % 2] for t in told], process_group)
        gathered.append(all_rows.movedim(0, dim).to(x.dtype))
    return *gathered, result


# What must be the same on all ranks, after the two numbers of rows.
_SAME = (
    "a {} number of columns D",
    "a {} dtype",
    "a {} number of leads",
    "b {} number of leads",
    "b {} dimensions",
    "present_a {} dimensions",
    "present_b {} dimensions",
    "pairs {} length",
    "denominator {} value",
)


def _numbers(rows: Sequence[Tensor | None], pairs: Tensor | None, denominator: str) -> list[int]:
    a, b, _, _, *present = rows
    leads = [0 if x is None or x.dim() == 2 else x.shape[0] for x in (a, b)]
    dimensions = [0 if x is None else x.dim() for x in (b, *present)]
    return [
        *(a.shape[-2], 0 if b is None else b.shape[-2], a.shape[-1], FLOATS.index(a.dtype)),
        *(*leads, *dimensions, 0 if pairs is None else pairs.shape[0], int(denominator == "negatives")),
    ]


def _check(op: str, told: list[list[int]]) -> None:
    """Raise an error, the same on all ranks, unless their rows go together."""
    for rank, (first, *_) in enumerate(told):
        if first == _FAILED:
            raise ValueError(f"{op}: the arguments on rank {rank} are wrong: see the error there")
    for i, name in enumerate(_SAME, start=2):
        values = [numbers[i] for numbers in told]
        if len(set(values)) == 1:
            continue
        got = str(values)
        if name.endswith("dtype"):
            got = ", ".join(str(FLOATS[v]).removeprefix("torch.") for v in values)
        raise ValueError(f"{op}: {name.format('must have the same')} on all ranks, got {got}")
