"""The global contrastive loss (CMSC): two segments of one patient attract, other patients repel."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ecgfast.ops._autograd import eager_call, register_gradient
from ecgfast.ops._cosines import split_temperature, temperature_gradient, unit
from ecgfast.ops._dispatch import (
    FLOATS,
    INTS,
    as_int64,
    autocasts,
    check_tensor,
    flag,
    full_precision,
    fused,
    temperature_of,
    tf32,
    wide,
)
from ecgfast.ops._gather import gather_rows

_OP = "global_contrastive"


def _validate(
    a: Tensor, b: Tensor, group_a: Tensor, group_b: Tensor, temperature: float | Tensor, detach_norm: bool
) -> tuple[float | Tensor, bool]:
    check_tensor(_OP, "a", a, (None, None), FLOATS, None, "N, D")
    check_tensor(_OP, "b", b, (None, a.shape[1]), (a.dtype,), a)
    check_tensor(_OP, "group_a", group_a, (a.shape[0],), INTS, a)
    check_tensor(_OP, "group_b", group_b, (b.shape[0],), INTS, a)
    return temperature_of(_OP, temperature, a), flag(_OP, "detach_norm", detach_norm)


def _checked(
    a: Tensor,
    b: Tensor,
    group_a: Tensor,
    group_b: Tensor,
    temperature: float | Tensor,
    detach_norm: bool,
    process_group: ProcessGroup | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, float | Tensor, bool]:
    """The arguments after the checks; the rows are those of all ranks where there is a group."""

    def validate() -> tuple[float | Tensor, bool]:
        return _validate(a, b, group_a, group_b, temperature, detach_norm)

    if process_group is None:
        settings = validate()
        return a, b, as_int64(group_a), as_int64(group_b), *settings
    return gather_rows(_OP, validate, (a, b), (group_a, group_b), process_group)


def global_contrastive_reference(
    a: Tensor,
    b: Tensor,
    group_a: Tensor,
    group_b: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    detach_norm: bool = True,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Plain PyTorch form of :func:`global_contrastive`: the whole N x N matrix."""
    a, b, group_a, group_b, temperature, detach_norm = _checked(
        a, b, group_a, group_b, temperature, detach_norm, process_group
    )
    dtype = wide(a.dtype)
    if isinstance(temperature, Tensor):
        temperature = temperature.to(dtype)
    with full_precision(a):
        u, v = (unit(z.to(dtype), detach_norm=detach_norm) for z in (a, b))
        logits = u @ v.T / temperature
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
    temperature: float | Tensor = 0.1,
    detach_norm: bool = True,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """InfoNCE between two batches of embeddings, both directions, with groups of positives.

    With ``s = unit(a) unit(b)^T / temperature``, the mean over all pairs of one group of
    ``-log softmax(s)`` along the rows, the same along the columns, halved.

    Args:
        a, b: ``[N, D]`` and ``[N', D]`` of one dtype (fp32, bf16, fp16 or fp64).
        group_a, group_b: integer ``[N]`` and ``[N']``: rows of equal numbers are positives (the patient).
        temperature: divides the cosines (the paper's is 0.1): a positive number, or a floating-point tensor
            of shape [] on the same device, which gets a gradient if it requires one. On CUDA a
            tensor's value is not looked at: the loss is NaN where it is not positive.
        detach_norm: no gradient through the norms, as the official code does.
        process_group: contrast with the rows of all ranks of this group, as many as each has. Each rank
            then returns the loss over all rows; averaging gradients over ranks, as DDP does, gives its
            gradient (that of the temperature is whole on each rank).

    A row no longer than 1e-8 has cosine 0 with all or nearly so, and gets no gradient. Where the product of
    two rows' norms passes what fp32 holds, bf16 inputs on any device, and others on CUDA, give NaN.

    Returns:
        0-dim fp32 (fp64 for fp64 inputs); 0 where no pair is positive.

    Gradients that are small differences of large terms (rows that are nearly equal, pairs nearly aligned)
    are as precise as the reference's on the CPU, and in fp32 on CUDA. With 16-bit inputs the CUDA kernels
    round the terms to that dtype; the CPU kernels do so with bf16 where it does no harm, and otherwise
    make the gradients once more in fp32, in about three times the time.

    On CUDA fp32 is multiplied as :func:`torch.get_float32_matmul_precision` says when the forward pass runs:
    to fp32 precision where it is "highest", in TF32 otherwise (cosines within 1e-3). The CPU kernels always
    multiply to fp32 precision.

    Raises:
        ValueError, TypeError: naming the argument, what came and what is taken.

    Source: Kiyasseh et al., CLOCS, ICML 2021, equation 2; Oh et al., CHIL 2022, section 3.2.
    """
    if isinstance(a, Tensor) and isinstance(b, Tensor) and autocasts(a) and a.dtype != b.dtype:
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
    a, b, group_a, group_b, temperature, detach_norm = _checked(
        a, b, group_a, group_b, temperature, detach_norm, process_group
    )
    number, tensor = split_temperature(temperature, a)
    scalars = (number, detach_norm, tf32(a))
    return _call(a, b, group_a, group_b, *scalars, *(() if tensor is None else (tensor,)))[0]


@torch.library.register_fake("ecgfast::global_contrastive")
def _(a: Tensor, b: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype, n, n_b = wide(a.dtype), a.shape[0], b.shape[0]
    # On CUDA the numbers of positives and two scalars follow the inverse norms.
    saved = 2 * (n + n_b) + 2 if a.is_cuda else n + n_b
    lse = dtype if a.is_cuda else torch.float64
    shapes = (((), dtype), ((n,), lse), ((n_b,), lse), ((saved,), dtype))
    return tuple(a.new_empty(shape, dtype=kind) for shape, kind in shapes)


@torch.library.register_fake("ecgfast::global_contrastive_backward")
def _(grad_loss: Tensor, a: Tensor, b: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    with_moments = len(rest) > 8 and rest[8] is not None
    return (
        torch.empty_like(a, memory_format=torch.contiguous_format),
        torch.empty_like(b, memory_format=torch.contiguous_format),
        grad_loss.new_empty(1 if with_moments else 0, dtype=torch.float64),
    )


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    _, *statistics = output
    # A temperature that is a number is left away, in all calls alike.
    ctx.save_for_backward(*inputs[:4], *statistics, *inputs[7:])
    ctx.scalars, ctx.n_inputs = inputs[4:7], len(inputs)
    ctx.mark_non_differentiable(*statistics)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * ctx.n_inputs
    tensors = ctx.saved_tensors
    saved, temperature = tensors[:7], tensors[7:]
    *grads, moments = torch.ops.ecgfast.global_contrastive_backward(
        grad_loss, *saved, *ctx.scalars, *temperature
    )
    return (*grads, *(None,) * 5, *(temperature_gradient(moments, t) for t in temperature))


register_gradient(_OP, _setup, _backward)
_call = eager_call(_OP, _setup, _backward)
