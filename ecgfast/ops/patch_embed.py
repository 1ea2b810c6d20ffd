"""The stem: masked leads to tokens through convolutions whose kernel is their stride."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ecgfast.ops._autograd import register_gradient, wants_gradient
from ecgfast.ops._dispatch import FLOATS, autocast, check, check_tensor, fused, tf32

_OP = "patch_embed"
MILLIVOLTS_PER_UNIT = 1e-3


def _validate(
    signal: Tensor,
    keep: Tensor | None,
    weights: Sequence[Tensor],
    gn_weight: Tensor,
    gn_bias: Tensor,
    biases: Sequence[Tensor] | None,
) -> None:
    check(len(weights) >= 1, _OP, "weights must hold at least one layer, got none")
    first = weights[0]
    check_tensor(_OP, "weights[0]", first, (None, None, 2), FLOATS, None, "C, L, 2")
    c, n_leads, _ = first.shape
    check_tensor(
        _OP,
        "signal",
        signal,
        (None, n_leads, None),
        (torch.int16, first.dtype),
        first,
        f"B, {n_leads}, T",
    )
    if keep is not None:
        check_tensor(_OP, "keep", keep, (signal.shape[0], n_leads), (torch.bool,), first)
    for i, w in enumerate(weights[1:], start=1):
        check_tensor(_OP, f"weights[{i}]", w, (c, c, 2), (first.dtype,), first)
    check_tensor(_OP, "gn_weight", gn_weight, (c,), (first.dtype,), first)
    check_tensor(_OP, "gn_bias", gn_bias, (c,), (first.dtype,), first)
    if biases is not None:
        check(len(biases) == len(weights), _OP, f"biases must be {len(weights)}, got {len(biases)}")
        for i, bias in enumerate(biases):
            check_tensor(_OP, f"biases[{i}]", bias, (c,), (first.dtype,), first)


def patch_embed_reference(
    signal: Tensor,
    keep: Tensor | None,
    weights: Sequence[Tensor],
    gn_weight: Tensor,
    gn_bias: Tensor,
    *,
    biases: Sequence[Tensor] | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Plain PyTorch form of :func:`patch_embed`: conv1d, group_norm, gelu."""
    _validate(signal, keep, weights, gn_weight, gn_bias, biases)
    dtype, channels = weights[0].dtype, weights[0].shape[0]
    x = signal.to(dtype)
    if signal.dtype == torch.int16:
        x = x * MILLIVOLTS_PER_UNIT
    if keep is not None:
        x = x.masked_fill(~keep[:, :, None], 0.0)
    if signal.shape[0] == 0 or signal.shape[2] >> len(weights) == 0:
        tokens = signal.shape[2] >> len(weights)
        return x.new_zeros((signal.shape[0], tokens, channels)) + 0.0 * x.sum()
    for i, w in enumerate(weights):
        x = F.conv1d(x, w, biases[i] if biases is not None else None, stride=2)
        if i == 0:
            x = torch.group_norm(x, channels, gn_weight, gn_bias, eps)
        x = F.gelu(x)
    return x.transpose(1, 2)


def patch_embed(
    signal: Tensor,
    keep: Tensor | None,
    weights: Sequence[Tensor],
    gn_weight: Tensor,
    gn_bias: Tensor,
    *,
    biases: Sequence[Tensor] | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Mask leads and embed patches of 2^layers samples (16 with four layers) as tokens.

    Each layer is a convolution of kernel 2 and stride 2 and a GELU (erf); after the first convolution a
    GroupNorm with one channel per group, over time. A masked lead reads as zero.

    Args:
        signal: ``[B, L, T]``, millivolts in the weights' dtype, or int16 microvolts.
        keep: bool ``[B, L]``, False where a lead is masked; None: all are kept.
        weights: ``[C, L, 2]``, then ``[C, C, 2]`` for every further layer (fp32, bf16, fp16 or fp64).
        gn_weight, gn_bias: ``[C]``, the GroupNorm's affine.
        biases: ``[C]`` for every layer, or None: convolutions without bias, as in the paper.
        eps: the GroupNorm's.

    Returns:
        Tokens ``[B, N, C]``, N = T halved and rounded down once per layer.

    Raises:
        ValueError, TypeError: naming the argument, what came and what is taken.

    On CUDA the kernels take 2 layers or more and up to 15 leads; other stems run the reference. They multiply
    fp32 as :func:`torch.get_float32_matmul_precision` says when the forward pass runs: to fp32 precision
    where it is "highest", in TF32 otherwise; the norm's statistics are always of fp32 precision. The CPU
    kernels always multiply to fp32 precision.

    Source: Oh et al., CHIL 2022, section 3.1 and 3.3; Baevski et al., wav2vec 2.0, section 2.
    """
    if signal.dtype != torch.int16:
        signal = autocast(signal)[0]
    cast = autocast(gn_weight, gn_bias, *weights, *(biases or ()))
    gn_weight, gn_bias, rest = cast[0], cast[1], cast[2:]
    weights = rest[: len(weights)]
    biases = rest[len(weights) :] if biases is not None else None
    if not weights or not fused(_OP, weights[0]) or not _fits(signal, weights):
        return patch_embed_reference(signal, keep, weights, gn_weight, gn_bias, biases=biases, eps=eps)
    _validate(signal, keep, weights, gn_weight, gn_bias, biases)
    parameters = [gn_weight, gn_bias, *weights, *(biases or ())]
    for_backward = wants_gradient(signal, *parameters)
    tokens, _ = torch.ops.ecgfast.patch_embed(
        signal,
        keep,
        list(weights),
        gn_weight,
        gn_bias,
        list(biases or ()),
        eps,
        for_backward,
        tf32(gn_weight),
    )
    return tokens


def _fits(signal: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether the kernels of the signal's device take a stem of this many layers and leads."""
    return not signal.is_cuda or (len(weights) >= 2 and weights[0].dim() == 3 and weights[0].shape[1] <= 15)


def _channels(channels: int, dtype: torch.dtype) -> int:
    """Channels as the CPU kernels pad them."""
    columns = torch.ops.ecgfast.patch_embed_columns(dtype == torch.float64)
    return (channels + columns - 1) // columns * columns


def _saved_on_cuda(signal: Tensor, weights: list[Tensor]) -> int:
    """Elements that the CUDA kernels keep: see ``stem_state_elements`` in csrc/cuda/patch_embed.cu."""
    batch, _, samples = signal.shape
    channels, layers, n = weights[0].shape[0], len(weights), samples >> len(weights)
    width, per_float = (channels + 7) // 8 * 8, 4 // weights[0].element_size()
    patches_and_statistics = batch * (samples // 2 * 32 + per_float * (32 * 32 + 3 * width))
    packed_weights = width * (32 + (layers - 1) * 2 * channels)
    activations_and_slopes = batch * width * n * (2**layers - 3)
    return patches_and_statistics + packed_weights + activations_and_slopes


@torch.library.register_fake("ecgfast::patch_embed")
def _(
    signal: Tensor,
    keep: Tensor | None,
    weights: list[Tensor],
    gn_weight: Tensor,
    gn_bias: Tensor,
    biases: list[Tensor],
    eps: float,
    for_backward: bool,
    tf32: bool,
) -> tuple[Tensor, Tensor]:
    batch, _, samples = signal.shape
    channels, layers = weights[0].shape[0], len(weights)
    n = samples >> layers
    if signal.is_cuda:
        saved = (_saved_on_cuda(signal, weights) if for_backward else 0,)
    else:
        rows = n * (2 ** (layers - 1) - 1)
        saved = (batch if for_backward else 0, rows, _channels(channels, gn_weight.dtype))
    return gn_weight.new_empty((batch, n, channels)), gn_weight.new_empty(saved)


@torch.library.register_fake("ecgfast::patch_embed_backward")
def _(
    grad_tokens: Tensor,
    signal: Tensor,
    keep: Tensor | None,
    weights: list[Tensor],
    gn_weight: Tensor,
    gn_bias: Tensor,
    biases: list[Tensor],
    eps: float,
    saved: Tensor,
    for_signal: bool,
    tf32: bool,
) -> list[Tensor]:
    inputs = [signal] if for_signal else []
    like = [*inputs, *weights, gn_weight, gn_bias, *biases]
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in like]


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    signal, keep, weights, gn_weight, gn_bias, biases, ctx.eps, for_backward, ctx.tf32 = inputs
    _, saved = output
    if not for_backward:
        return
    ctx.save_for_backward(signal, keep, gn_weight, gn_bias, saved, *weights, *biases)
    ctx.n_weights, ctx.n_biases = len(weights), len(biases)
    ctx.mark_non_differentiable(saved)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_tokens: Tensor | None, _: Any) -> tuple:
    if not ctx.saved_tensors:
        raise RuntimeError("patch_embed: the forward pass ran with for_backward=False")
    if grad_tokens is None:
        return (None, None, [None] * ctx.n_weights, None, None, [None] * ctx.n_biases, None, None, None)
    signal, keep, gn_weight, gn_bias, saved, *rest = ctx.saved_tensors
    weights, biases = rest[: ctx.n_weights], rest[ctx.n_weights :]
    for_signal = ctx.needs_input_grad[0]
    grads = torch.ops.ecgfast.patch_embed_backward(
        grad_tokens, signal, keep, weights, gn_weight, gn_bias, biases, ctx.eps, saved, for_signal, ctx.tf32
    )
    grad_signal = grads.pop(0) if for_signal else None
    n = ctx.n_weights
    return grad_signal, None, grads[:n], grads[n], grads[n + 1], grads[n + 2 :], None, None, None


register_gradient(_OP, _setup, _backward)
