"""The global contrastive loss (CMSC): two segments of one patient attract, other patients repel."""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ecgfast.ops._dispatch import FLOATS, check, check_tensor, wide

_OP = "global_contrastive"
_EPS = 1e-8


def _validate(a: Tensor, b: Tensor, group_a: Tensor, group_b: Tensor, temperature: float) -> None:
    check_tensor(_OP, "a", a, (None, None), FLOATS, None, "N, D")
    check_tensor(_OP, "b", b, (None, a.shape[1]), (a.dtype,), a)
    check_tensor(_OP, "group_a", group_a, (a.shape[0],), (torch.int64,), a)
    check_tensor(_OP, "group_b", group_b, (b.shape[0],), (torch.int64,), a)
    check(temperature > 0, _OP, f"temperature must be positive, got {temperature}")


def _gather(
    a: Tensor, b: Tensor, group_a: Tensor, group_b: Tensor, group: ProcessGroup
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All ranks' rows. Gradients return to the rank that they belong to, summed over the ranks."""
    from torch.distributed._functional_collectives import (
        all_gather_tensor,
        all_gather_tensor_autograd,
    )

    def floats(x: Tensor) -> Tensor:
        return all_gather_tensor_autograd(x.contiguous(), 0, group)

    def ints(x: Tensor) -> Tensor:
        return all_gather_tensor(x.contiguous(), 0, group)

    return floats(a), floats(b), ints(group_a), ints(group_b)


def global_contrastive_reference(
    a: Tensor,
    b: Tensor,
    group_a: Tensor,
    group_b: Tensor,
    *,
    temperature: float = 0.1,
    detach_norm: bool = True,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Plain PyTorch form of :func:`global_contrastive`: the whole N x N matrix."""
    _validate(a, b, group_a, group_b, temperature)
    if process_group is not None:
        a, b, group_a, group_b = _gather(a, b, group_a, group_b, process_group)

    def unit(z: Tensor) -> Tensor:
        z = z.to(wide(z.dtype))
        norm = z.norm(dim=1, keepdim=True).clamp(min=_EPS)
        return z / (norm.detach() if detach_norm else norm)

    logits = unit(a) @ unit(b).T / temperature
    positive = group_a[:, None] == group_b[None, :]
    n_positive = positive.sum().clamp(min=1)
    forward = torch.logsumexp(logits, dim=1, keepdim=True) - logits
    backward = torch.logsumexp(logits, dim=0, keepdim=True) - logits
    return torch.where(positive, forward + backward, 0.0).sum() / (2 * n_positive)


def global_contrastive(
    a: Tensor,
    b: Tensor,
    group_a: Tensor,
    group_b: Tensor,
    *,
    temperature: float = 0.1,
    detach_norm: bool = True,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """InfoNCE between two batches of embeddings, both directions, with groups of positives.

    With ``s = unit(a) unit(b)^T / temperature``, the mean over all pairs of one group of
    ``-log softmax(s)`` along the rows, the same along the columns, halved.

    Args:
        a, b: ``[N, D]`` and ``[N', D]`` of one dtype (fp32, bf16, fp16 or fp64).
        group_a, group_b: int64 ``[N]`` and ``[N']``: rows of equal numbers are positives (the patient).
        temperature: divides the cosines (the paper's is 0.1).
        detach_norm: no gradient through the norms, as the official code does.
        process_group: contrast with the rows of all ranks of this group. Each rank then returns the
            loss over all rows; averaging gradients over ranks, as DDP does, gives its gradient.

    Returns:
        0-dim fp32 (fp64 for fp64 inputs); 0 where no pair is positive.

    Raises:
        ValueError, TypeError: naming the argument, what came and what is taken.

    Source: Kiyasseh et al., CLOCS, ICML 2021, equation 2; Oh et al., CHIL 2022, section 3.2.
    """
    return global_contrastive_reference(
        a,
        b,
        group_a,
        group_b,
        temperature=temperature,
        detach_norm=detach_norm,
        process_group=process_group,
    )
