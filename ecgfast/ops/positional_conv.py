"""The convolutional position embedding of wav2vec 2.0, with its activation and residual."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ecgfast.ops._autograd import eager_call, register_gradient, wants_gradient
from ecgfast.ops._dispatch import (
    FLOATS,
    autocast,
    check,
    check_tensor,
    full_precision,
    fused,
    integer,
    tf32,
    wide,
)

_OP = "positional_conv"
# The CUDA kernels work on tiles of 48 channels: fewer than this of a group would be mostly padding.
_LEAST_CHANNELS_ON_CUDA = 8


def _validate(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> int:
    check_tensor(_OP, "x", x, (None, None, None), FLOATS, None, "B, N, E")
    width = x.shape[2]
    groups = integer(_OP, "groups", groups)
    check(groups >= 1, _OP, "groups must be at least 1, got {}", groups)
    check(width % groups == 0, _OP, "groups must divide E = {}, got {}", width, groups)
    shape = (width, width // groups, None)
    check_tensor(_OP, "weight", weight, shape, (x.dtype,), x, "E = {0}, E / groups = {1}, K")
    check(weight.shape[2] >= 1, _OP, "weight must have at least one tap, got K = 0")
    check_tensor(_OP, "bias", bias, (width,), (x.dtype,), x)
    return groups


def positional_conv_reference(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """Plain PyTorch form of :func:`positional_conv`: a direct convolution of the transposed tokens."""
    groups = _validate(x, weight, bias, groups)
    dtype = wide(x.dtype)
    taps = weight.shape[2]
    tokens = x.to(dtype)
    if x.numel() == 0:
        return x + 0 * (weight.sum() + bias.sum())
    wide_weight, wide_bias = weight.to(dtype), bias.to(dtype)
    with full_precision(x):
        y = F.conv1d(tokens.transpose(1, 2), wide_weight, wide_bias, padding=taps // 2, groups=groups)
    return (tokens + F.gelu(y[..., : x.shape[1]].transpose(1, 2))).to(x.dtype)


def positional_conv(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """``x + GELU(conv(x))`` over the tokens: a grouped convolution of the same length, erf GELU, residual.

    The CPU kernel works in the frequency domain, where an output's error is relative to the largest values of
    a segment; outputs of much weaker tokens than the segment's mean, such as those beside padding, are
    summed directly. A NaN spreads over its segment and group. Where a
    gradient is wanted it keeps the convolution's output, ``[B, N, E]``, beside the inputs. The CUDA kernels
    multiply on tensor cores: where :func:`torch.get_float32_matmul_precision` is "highest" when the forward
    pass runs, fp32 in three bf16 pieces, as exact as fp32 arithmetic; otherwise in two, at half the cost,
    each product within 2^-13, where TF32 would be within 2^-10. The CPU kernel always has fp32 precision.
    On CUDA a group of fewer than 8 channels runs the reference.

    Args:
        x: ``[B, N, E]`` of fp32, bf16, fp16 or fp64.
        weight: ``[E, E / groups, K]`` of the same dtype; K // 2 zeros are put at each end of the tokens,
            and for an even K the last output is cut.
        bias: ``[E]`` of the same dtype.
        groups: groups of the convolution.

    Returns:
        ``[B, N, E]`` of the same dtype; gradients flow into x, weight and bias.

    Raises:
        ValueError, TypeError: naming the argument, what came and what is taken.

    Source: Baevski et al., wav2vec 2.0, section 2; Oh et al., CHIL 2022, section 3.1.
    """
    x, weight, bias = autocast(x, weight, bias)
    if not fused(_OP, x):
        return positional_conv_reference(x, weight, bias, groups)
    groups = _validate(x, weight, bias, groups)
    if x.is_cuda and weight.shape[1] < _LEAST_CHANNELS_ON_CUDA:
        return positional_conv_reference(x, weight, bias, groups)
    return _call(x, weight, bias, groups, wants_gradient(x, weight, bias), tf32(x))[0]


@torch.library.register_fake("ecgfast::positional_conv")
def _(x: Tensor, weight: Tensor, bias: Tensor, groups: int, save: bool, tf32: bool) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    return out, torch.empty_like(out) if save else x.new_empty(0)


@torch.library.register_fake("ecgfast::positional_conv_backward")
def _(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    conv: Tensor,
    groups: int,
    need_x: bool,
    need_parameters: bool,
    tf32: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dense = torch.contiguous_format
    return (
        torch.empty_like(x, memory_format=dense) if need_x else x.new_empty(0),
        torch.empty_like(weight, memory_format=dense) if need_parameters else x.new_empty(0),
        x.new_empty(x.shape[2] if need_parameters else 0),
    )


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, weight, _bias, ctx.groups, _save, ctx.tf32 = inputs
    _, conv = output
    ctx.save_for_backward(x, weight, conv)
    ctx.mark_non_differentiable(conv)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 6
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    grads = torch.ops.ecgfast.positional_conv_backward(
        grad_out, *ctx.saved_tensors, ctx.groups, need_x, need_weight or need_bias, ctx.tf32
    )
    needed = (need_x, need_weight, need_bias)
    return (*(g if n else None for g, n in zip(grads, needed, strict=True)), None, None, None)


register_gradient(_OP, _setup, _backward)
_call = eager_call(_OP, _setup, _backward)
