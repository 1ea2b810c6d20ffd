"""The global contrastive loss (CMSC): two segments of one patient attract, other patients repel."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from ecgfast.ops._autograd import eager_call, register_gradient
from ecgfast.ops._dispatch import (
    FLOATS,
    autocasts,
    check,
    check_tensor,
    full_precision,
    fused,
    tf32,
    wide,
)

_OP = "global_contrastive"
_EPS = 1e-8


def _validate(a: Tensor, b: Tensor, group_a: Tensor, group_b: Tensor, temperature: float) -> None:
    check_tensor(_OP, "a", a, (None, None), FLOATS, None, "N, D")
    check_tensor(_OP, "b", b, (None, a.shape[1]), (a.dtype,), a)
    check_tensor(_OP, "group_a", group_a, (a.shape[0],), (torch.int64,), a)
    check_tensor(_OP, "group_b", group_b, (b.shape[0],), (torch.int64,), a)
    check(0 < temperature < torch.inf, _OP, f"temperature must be positive, got {temperature}")


class _AllRows(torch.autograd.Function):
    """All ranks' rows. Gradients return to the rank that they belong to, summed over the ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x, group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total.chunk(dist.get_world_size(ctx.group))[dist.get_rank(ctx.group)], None


def _gather(
    a: Tensor, b: Tensor, group_a: Tensor, group_b: Tensor, group: ProcessGroup
) -> tuple[Tensor, ...]:
    return tuple(_AllRows.apply(x.contiguous(), group) for x in (a, b, group_a, group_b))


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

    with full_precision(a):
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

    On CUDA fp32 is multiplied as :func:`torch.get_float32_matmul_precision` says when the forward pass runs:
    to fp32 precision where it is "highest", in TF32 otherwise (cosines within 1e-3). The CPU kernels always
    multiply to fp32 precision.

    Raises:
        ValueError, TypeError: naming the argument, what came and what is taken.

    Source: Kiyasseh et al., CLOCS, ICML 2021, equation 2; Oh et al., CHIL 2022, section 3.2.
    """
    if isinstance(a, Tensor) and autocasts(a) and a.dtype != b.dtype:
        common = torch.promote_types(a.dtype, b.dtype)
        a, b = a.to(common), b.to(common)
    if not fused(_OP, a):
        return global_contrastive_reference(
            a,
            b,
            group_a,
            group_b,
            temperature=temperature,
            detach_norm=detach_norm,
            process_group=process_group,
        )
    _validate(a, b, group_a, group_b, temperature)
    if process_group is not None:
        a, b, group_a, group_b = _gather(a, b, group_a, group_b, process_group)
    return _call(a, b, group_a, group_b, temperature, detach_norm, tf32(a))[0]


@torch.library.register_fake("ecgfast::global_contrastive")
def _(a: Tensor, b: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype, n, n_b = wide(a.dtype), a.shape[0], b.shape[0]
    # On CUDA the numbers of positives and two scalars follow the inverse norms.
    saved = 2 * (n + n_b) + 2 if a.is_cuda else n + n_b
    shapes = ((), (n,), (n_b,), (saved,))
    return tuple(a.new_empty(shape, dtype=dtype) for shape in shapes)


@torch.library.register_fake("ecgfast::global_contrastive_backward")
def _(grad_loss: Tensor, a: Tensor, b: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(a, memory_format=torch.contiguous_format),
        torch.empty_like(b, memory_format=torch.contiguous_format),
    )


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, ctx.temperature, ctx.detach_norm, ctx.tf32 = inputs
    _, *statistics = output
    ctx.save_for_backward(*tensors, *statistics)
    ctx.mark_non_differentiable(*statistics)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 7
    grads = torch.ops.ecgfast.global_contrastive_backward(
        grad_loss, *ctx.saved_tensors, ctx.temperature, ctx.detach_norm, ctx.tf32
    )
    return (*grads, *(None,) * 5)


register_gradient(_OP, _setup, _backward)
_call = eager_call(_OP, _setup, _backward)
