"""The stem: masked leads to tokens through convolutions whose kernel is their stride."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ecgfast.ops._autograd import over_batched_gradients, register_gradient, wants_gradient
from ecgfast.ops._dispatch import (
    FLOATS,
    INTS,
    as_int64,
    autocast,
    check,
    check_tensor,
    describe,
    full_precision,
    fused,
    host_number,
    readable,
    real,
    tf32,
    wide,
)
from ecgfast.units import MILLIVOLTS_PER_UNIT

_OP = "patch_embed"


def _list(name: str, tensors: Iterable[Tensor]) -> list[Tensor]:
    if isinstance(tensors, Tensor) or not isinstance(tensors, Iterable):
        raise TypeError(f"{_OP}: {name} must be a list of tensors, got {describe(tensors)}")
    return list(tensors)


def _validate(
    signal: Tensor,
    keep: Tensor | None,
    weights: Sequence[Tensor],
    gn_weight: Tensor,
    gn_bias: Tensor,
    biases: Sequence[Tensor] | None,
    eps: float,
    lengths: Tensor | None,
) -> float:
    check(len(weights) >= 1, _OP, "weights must hold at least one layer, got none")
    first = weights[0]
    check_tensor(_OP, "weights[0]", first, (None, None, 2), FLOATS, None, "C, L, 2")
    c, n_leads, _ = first.shape
    check(
        c >= 1 and n_leads >= 1, _OP, "weights[0] must have channels and leads, got [{}, {}, 2]", c, n_leads
    )
    shape = (None, n_leads, None)
    check_tensor(_OP, "signal", signal, shape, (torch.int16, first.dtype), first, "B, {1}, T")
    if keep is not None:
        check_tensor(_OP, "keep", keep, (signal.shape[0], n_leads), (torch.bool,), first)
    for i, w in enumerate(weights[1:], start=1):
        check_tensor(_OP, f"weights[{i}]", w, (c, c, 2), (first.dtype,), first)
    check_tensor(_OP, "gn_weight", gn_weight, (c,), (first.dtype,), first)
    check_tensor(_OP, "gn_bias", gn_bias, (c,), (first.dtype,), first)
    if biases is not None:
        check(len(biases) == len(weights), _OP, "biases must be {}, got {}", len(weights), len(biases))
        for i, bias in enumerate(biases):
            check_tensor(_OP, f"biases[{i}]", bias, (c,), (first.dtype,), first)
    if lengths is not None:
        _check_lengths(lengths, signal)
    eps = real(_OP, "eps", eps)
    check(0 <= eps < torch.inf, _OP, "eps must be at least 0, got {}", eps)
    return eps


def _check_lengths(lengths: Tensor, signal: Tensor) -> None:
    check_tensor(_OP, "lengths", lengths, (signal.shape[0],), INTS, signal)
    if not readable(lengths) or lengths.numel() == 0:
        return
    samples, least, most = signal.shape[2], int(lengths.min()), int(lengths.max())
    good = least >= 1 and most <= samples
    check(good, _OP, "lengths must be in 1..{}, got {}", samples, least if least < 1 else most)


def _norm_of_valid(x: Tensor, valid: Tensor, weight: Tensor, bias: Tensor, eps: float | Tensor) -> Tensor:
    """GroupNorm of one channel per group, of statistics over the first ``valid`` [B] places of each row."""
    within = (torch.arange(x.shape[2], device=x.device) < valid[:, None])[:, None]
    count = valid.clamp(min=1)[:, None, None]
    with full_precision(x):
        y = x.to(wide(x.dtype))
        y = y - torch.where(within, y, 0.0).sum(2, keepdim=True) / count
        variance = torch.where(within, y, 0.0).square().sum(2, keepdim=True) / count
        y = y * torch.rsqrt(variance + eps)
        return (y * weight[:, None].to(y.dtype) + bias[:, None].to(y.dtype)).to(x.dtype)


def patch_embed_reference(
    signal: Tensor,
    keep: Tensor | None,
    weights: Iterable[Tensor],
    gn_weight: Tensor,
    gn_bias: Tensor,
    *,
    biases: Iterable[Tensor] | None = None,
    eps: float = 1e-5,
    lengths: Tensor | None = None,
) -> Tensor:
    """Plain PyTorch form of :func:`patch_embed`: conv1d, group_norm, gelu."""
    weights = _list("weights", weights)
    biases = None if biases is None else _list("biases", biases)
    eps = _validate(signal, keep, weights, gn_weight, gn_bias, biases, eps, lengths)
    dtype, channels = weights[0].dtype, weights[0].shape[0]
    x = signal.to(dtype)
    if signal.dtype == torch.int16:
        x = x * MILLIVOLTS_PER_UNIT
    if keep is not None:
        x = x.masked_fill(~keep[:, :, None], 0.0)
    if lengths is not None:
        lengths = as_int64(lengths)
        x = x.masked_fill(torch.arange(x.shape[2], device=x.device) >= lengths[:, None, None], 0.0)
    if signal.shape[0] == 0 or signal.shape[2] >> len(weights) == 0:
        tokens = signal.shape[2] >> len(weights)
        return x.new_zeros((signal.shape[0], tokens, channels)) + 0.0 * x.sum()
    number, tensor = host_number(eps)
    for i, w in enumerate(weights):
        x = F.conv1d(x, w, biases[i] if biases is not None else None, stride=2)
        if i == 0 and lengths is None and tensor is None:
            x = torch.group_norm(x, channels, gn_weight, gn_bias, number)
        elif i == 0:
            whole = torch.full((x.shape[0],), x.shape[2], device=x.device)
            valid = whole if lengths is None else lengths // 2
            x = _norm_of_valid(x, valid, gn_weight, gn_bias, number if tensor is None else tensor)
        x = F.gelu(x)
    return x.transpose(1, 2)


def patch_embed(
    signal: Tensor,
    keep: Tensor | None,
    weights: Iterable[Tensor],
    gn_weight: Tensor,
    gn_bias: Tensor,
    *,
    biases: Iterable[Tensor] | None = None,
    eps: float = 1e-5,
    lengths: Tensor | None = None,
) -> Tensor:
    """Mask leads and embed patches of 2^layers samples (16 with four layers) as tokens.

    Each layer is a convolution of kernel 2 and stride 2 and a GELU (erf); after the first convolution a
    GroupNorm with one channel per group, over time. A masked lead reads as zero. The CPU kernels leave it
    out of layer 0, forward and backward, and so a lead of zeros where no gradient of the signal is asked for:
    both cost and change nothing, whatever the lead's samples and weights are. On CUDA the statistics are of
    the leads kept, and products have a fixed depth, of 8 leads where no other is kept, else of 16.

    With ``lengths`` a segment's first tokens do not depend on how it is padded: samples from its length on
    read as zero, whatever they hold, and the norm's statistics are of the ``length // 2`` patches before. The
    first ``length >> layers`` tokens are those of the segment cut to its length. The tokens after them are
    made from zeros in part or whole, normalised by the segment's statistics, so that they grow with the
    signal's offset over its deviation. Leave them out of losses and means, and send them no gradient
    (``masked_fill`` them): it would grow by that ratio too, and cost the weights' gradients accuracy.

    Args:
        signal: ``[B, L, T]``, millivolts in the weights' dtype, or int16 microvolts.
        keep: bool ``[B, L]``, False where a lead is masked; None: all are kept.
        weights: ``[C, L, 2]``, then ``[C, C, 2]`` for every further layer (fp32, bf16, fp16 or fp64):
            a list, an ``nn.ParameterList`` or any other iterable.
        gn_weight, gn_bias: ``[C]``, the GroupNorm's affine.
        biases: likewise, ``[C]`` for every layer, or None: convolutions without bias, as in the paper.
        eps: the GroupNorm's, at least 0.
        lengths: integer ``[B]``, the samples of each segment, in 1..T (checked on the CPU, where that
            waits for no device; elsewhere the kernels clip it to 0..T). None: all T, and the norm's
            statistics are of every patch.

    Returns:
        Tokens ``[B, N, C]``, N = T halved and rounded down once per layer.

    Raises:
        ValueError, TypeError: naming the argument, what came and what is taken.

    On CUDA the kernels take 2 layers or more and up to 15 leads; other stems run the reference. They multiply
    fp32 as :func:`torch.get_float32_matmul_precision` says when the forward pass runs: to fp32 precision
    where it is "highest", in TF32 otherwise. The CPU kernels always multiply to fp32 precision. The norm's
    statistics are always made in higher precision than fp32's, so that leads that are nearly one, offsets
    and steps into padding cost no accuracy.

    Source: Oh et al., CHIL 2022, section 3.1 and 3.3; Baevski et al., wav2vec 2.0, section 2.
    """
    weights = _list("weights", weights)
    biases = None if biases is None else _list("biases", biases)
    if isinstance(signal, Tensor) and signal.dtype != torch.int16:
        signal = autocast(signal)[0]
    cast = autocast(gn_weight, gn_bias, *weights, *(biases or ()))
    gn_weight, gn_bias, rest = cast[0], cast[1], cast[2:]
    weights = list(rest[: len(weights)])
    biases = list(rest[len(weights) :]) if biases is not None else None
    if not weights or not fused(_OP, weights[0]) or not _fits(weights):
        return patch_embed_reference(
            signal, keep, weights, gn_weight, gn_bias, biases=biases, eps=eps, lengths=lengths
        )
    eps = _validate(signal, keep, weights, gn_weight, gn_bias, biases, eps, lengths)
    parameters = [gn_weight, gn_bias, *weights, *(biases or ())]
    for_backward = wants_gradient(signal, *parameters)
    eps, tensor = host_number(eps)
    tokens, _ = torch.ops.ecgfast.patch_embed(
        signal,
        keep,
        weights,
        gn_weight,
        gn_bias,
        biases or [],
        eps,
        None if lengths is None else as_int64(lengths),
        for_backward,
        tf32(gn_weight),
        *(() if tensor is None else (tensor,)),
    )
    return tokens


def _fits(weights: Sequence[Tensor]) -> bool:
    """Whether the kernels of the weights' device take a stem of this many layers and leads."""
    first = weights[0]
    return not first.is_cuda or (len(weights) >= 2 and first.dim() == 3 and first.shape[1] <= 15)


def _channels(channels: int, dtype: torch.dtype) -> int:
    """Channels as the CPU kernels pad them."""
    columns = torch.ops.ecgfast.patch_embed_columns(dtype == torch.float64)
    return (channels + columns - 1) // columns * columns


def _saved_on_cuda(signal: Tensor, weights: list[Tensor]) -> int:
    """Elements that the CUDA kernels keep: see ``stem_state_elements`` in csrc/cuda/patch_embed.cu."""
    batch, _, samples = signal.shape
    channels, layers, n = weights[0].shape[0], len(weights), samples >> len(weights)
    width, per_float = (channels + 7) // 8 * 8, 4 // weights[0].element_size()
    held = (batch + 3) // 4 * 4 * per_float
    patches_and_statistics = batch * (samples // 2 * 32 + per_float * (32 + (32 + 3) * width)) + held
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
    lengths: Tensor | None,
    for_backward: bool,
    tf32: bool,
    eps_tensor: Tensor | None = None,
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
    lengths: Tensor | None,
    saved: Tensor,
    for_signal: bool,
    tf32: bool,
    eps_tensor: Tensor | None = None,
) -> list[Tensor]:
    inputs = [signal] if for_signal else []
    like = [*inputs, *weights, gn_weight, gn_bias, *biases]
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in like]


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    signal, keep, weights, gn_weight, gn_bias, biases, ctx.eps, lengths, for_backward, ctx.tf32 = inputs[:10]
    _, saved = output
    ctx.for_backward, ctx.n_weights, ctx.n_biases = for_backward, len(weights), len(biases)
    if not for_backward:
        return
    ctx.save_for_backward(signal, keep, gn_weight, gn_bias, lengths, saved, *weights, *biases, *inputs[10:])
    ctx.mark_non_differentiable(saved)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_tokens: Tensor | None, _: Any) -> tuple:
    if not ctx.for_backward:
        raise RuntimeError("patch_embed: the forward pass ran with for_backward=False")
    n, n_all = ctx.n_weights, ctx.n_weights + ctx.n_biases
    unused = (None,) * (len(ctx.needs_input_grad) - 6)  # eps_tensor is among the inputs where it was given
    if grad_tokens is None:
        return None, None, [None] * n, None, None, [None] * ctx.n_biases, *unused
    # Read once: activation checkpointing gives its tensors out once.
    signal, keep, gn_weight, gn_bias, lengths, saved, *rest = ctx.saved_tensors
    for_signal = ctx.needs_input_grad[0]
    grads = over_batched_gradients(
        torch.ops.ecgfast.patch_embed_backward,
        grad_tokens,
        signal,
        keep,
        rest[:n],
        gn_weight,
        gn_bias,
        rest[n:n_all],
        ctx.eps,
        lengths,
        saved,
        for_signal,
        ctx.tf32,
        *rest[n_all:],
    )
    grad_signal = grads.pop(0) if for_signal else None
    return grad_signal, None, grads[:n], grads[n], grads[n + 1], grads[n + 2 :], *unused


register_gradient(_OP, _setup, _backward)
