"""Product quantisation through a hard Gumbel-softmax with straight-through gradients."""

from typing import Any

import torch
from torch import Tensor

from ecgfast.ops._autograd import eager_call, register_gradient, wants_gradient
from ecgfast.ops._dispatch import (
    FLOATS,
    as_int64,
    check,
    check_rng,
    check_state,
    check_tensor,
    flag,
    full_precision,
    fused,
    scalar,
    temperature_of,
    tf32,
    wide,
)
from ecgfast.ops.random import Purpose, gumbel_from_words, words

_OP = "gumbel_quantize"
_MAX_CUDA_ENTRIES = 8192  # what the kernel's shared memory holds


def _validate(
    logits: Tensor,
    codebook: Tensor,
    temperature: float | Tensor,
    rng: Tensor | None,
    sample_ids: Tensor | None,
    noise: Tensor | None,
    hard: bool,
) -> tuple[float | Tensor, bool]:
    check_tensor(_OP, "codebook", codebook, (None, None, None), FLOATS, None, "G, V, D/G")
    g, v, width = codebook.shape
    check(g >= 1 and v >= 1, _OP, "codebook must have entries, got [{}, {}, {}]", g, v, width)
    check_tensor(_OP, "logits", logits, (None, g * v), FLOATS, codebook, "R, {1} (G*V)")
    temperature, hard = temperature_of(_OP, temperature, codebook), flag(_OP, "hard", hard)
    if isinstance(temperature, Tensor):
        check(not temperature.requires_grad, _OP, "temperature takes no gradient, got one that requires it")
    check(noise is None or rng is None, _OP, "takes noise or rng, got both")
    if noise is not None:
        check_tensor(_OP, "noise", noise, tuple(logits.shape), FLOATS, codebook)
        check(not noise.requires_grad, _OP, "noise takes no gradient, got noise that requires it")
    if rng is None:
        return temperature, hard
    rows, samples = logits.shape[0], 1
    if sample_ids is None:
        check_state(_OP, rng, codebook)
    else:
        check_rng(_OP, rng, sample_ids, codebook)
        samples = sample_ids.shape[0]
    fits = rows % samples == 0 if samples else rows == 0
    check(fits, _OP, "logits must have equally many rows per sample, got {} for {}", rows, samples)
    return temperature, hard


def draw_gumbel(
    rng: Tensor, sample_ids: Tensor | None, n_rows: int, n_columns: int, dtype: torch.dtype
) -> Tensor:
    """The noise that :func:`gumbel_quantize` draws: ``[R, G*V]``.

    Row r belongs to sample ``r // (R / B)``; element ``(row within its sample) * G*V + column``.
    """
    if sample_ids is None:
        sample_ids = torch.zeros(1, dtype=torch.int64, device=rng.device)
    if n_rows == 0:
        return torch.zeros((0, n_columns), dtype=dtype, device=rng.device)
    per_sample = n_rows // sample_ids.shape[0]
    drawn = words(rng, sample_ids, Purpose.GUMBEL, per_sample * n_columns)
    return gumbel_from_words(drawn, dtype).view(n_rows, n_columns)


def gumbel_quantize_reference(
    logits: Tensor,
    codebook: Tensor,
    temperature: float | Tensor,
    *,
    rng: Tensor | None = None,
    sample_ids: Tensor | None = None,
    noise: Tensor | None = None,
    hard: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain PyTorch form of :func:`gumbel_quantize`: one-hot rows times the codebook."""
    temperature, hard = _validate(logits, codebook, temperature, rng, sample_ids, noise, hard)
    g, v, width = codebook.shape
    rows, dtype = logits.shape[0], wide(logits.dtype)
    if rng is not None:
        noise = draw_gumbel(rng, sample_ids, rows, g * v, dtype)
    x = logits.to(dtype).view(rows, g, v)
    noisy = x if noise is None else x + noise.to(dtype).view(rows, g, v)
    codes = noisy.argmax(-1)
    soft = torch.softmax(noisy / temperature, dim=-1)
    if hard:
        # Not F.one_hot, which looks at the codes: vmap has none to look at.
        one_hot = (codes[..., None] == torch.arange(v, device=codes.device)).to(dtype)
        soft = one_hot + (soft - soft.detach())
    with full_precision(logits):
        quantized = torch.einsum("rgv,gvd->rgd", soft, codebook.to(dtype)).reshape(rows, g * width)
    mean_probs = torch.softmax(x, dim=-1).sum(0) / max(rows, 1)
    return quantized.to(codebook.dtype), codes.to(torch.int32), mean_probs


def _has_kernel(logits: Tensor, codebook: Tensor, hard: bool) -> bool:
    if not (fused(_OP, logits) and fused(_OP, codebook)):
        return False
    entries = codebook.shape[1] if codebook.dim() == 3 else 0
    return not logits.is_cuda or (hard and entries % 4 == 0 and entries <= _MAX_CUDA_ENTRIES)


def gumbel_quantize(
    logits: Tensor,
    codebook: Tensor,
    temperature: float | Tensor,
    *,
    rng: Tensor | None = None,
    sample_ids: Tensor | None = None,
    noise: Tensor | None = None,
    hard: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose one codebook entry per row and group; gradients as of the soft choice.

    Forward: the entry with the largest ``logits + noise`` (``hard``), or the softmax mixture of
    entries. Backward: the Jacobian of ``softmax((logits + noise) / temperature)``.

    Args:
        logits: ``[R, G*V]`` of fp32, bf16, fp16 or fp64.
        codebook: ``[G, V, D/G]``: V entries of each of G groups.
        temperature: positive; a 0-dim tensor on the same device keeps a captured graph valid while it
            changes. It takes no gradient.
        rng: int64 ``[2]`` of (seed, step): draw Gumbel noise; must not be changed before the backward
            pass has run.
        sample_ids: integer ``[B]`` for ``rng``; R must be a multiple of B, row r is of sample
            ``r // (R / B)``. None: all rows are of sample 0.
        noise: ``[R, G*V]``, instead of drawing; takes no gradient. With neither ``rng`` nor ``noise``:
            none (evaluation).
        hard: straight-through one-hot choice; False: the soft mixture.

    Returns:
        ``quantized`` ``[R, D]`` in the codebook's dtype, groups concatenated; ``codes`` int32 ``[R, G]``;
        ``mean_probs`` ``[G, V]`` fp32 (fp64 for fp64), the mean over rows of ``softmax(logits)`` without
        noise and temperature, differentiable (for the diversity loss).

    On CUDA, the soft mixture, and a V that is no multiple of 4 or above 8192, run the plain PyTorch form. The
    kernels there have one product, the gradient's with the codebook: fp32 entries are multiplied to fp32
    precision where :func:`torch.get_float32_matmul_precision` is "highest" when the forward pass runs, in
    TF32 otherwise. The CPU kernels always multiply to fp32 precision.

    Raises:
        ValueError, TypeError: naming the argument, what came and what is taken.

    Source: Baevski et al., wav2vec 2.0, section 2 (quantization module), equations 1 and 4.
    """
    if not _has_kernel(logits, codebook, hard):
        return gumbel_quantize_reference(
            logits,
            codebook,
            temperature,
            rng=rng,
            sample_ids=sample_ids,
            noise=noise,
            hard=hard,
        )
    temperature, hard = _validate(logits, codebook, temperature, rng, sample_ids, noise, hard)
    dtype = wide(logits.dtype)
    if isinstance(temperature, Tensor):
        temperature = temperature.to(dtype)
    else:
        temperature = scalar(temperature, dtype, logits.device)
    if noise is not None:
        noise = noise.to(dtype)
    if rng is None:
        sample_ids = None
    elif sample_ids is not None:
        sample_ids = as_int64(sample_ids)
    # On a CPU the exponentials of the choice are kept for the backward pass: drawing the noise again would
    # cost more than reading them.
    keep = wants_gradient(logits, codebook) and logits.device.type == "cpu"
    outputs = _call(logits, codebook, temperature, noise, rng, sample_ids, hard, keep, tf32(codebook))
    return outputs[:3]


@torch.library.register_fake("ecgfast::gumbel_quantize")
def _(
    logits: Tensor,
    codebook: Tensor,
    temperature: Tensor,
    noise: Tensor | None,
    rng: Tensor | None,
    sample_ids: Tensor | None,
    hard: bool,
    keep: bool,
    tf32: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g, v, width = codebook.shape
    rows, dtype = logits.shape[0], wide(logits.dtype)
    quantized = codebook.new_empty((rows, g * width))
    codes = logits.new_empty((rows, g), dtype=torch.int32)
    mean_probs = logits.new_empty((g, v), dtype=dtype)
    return quantized, codes, mean_probs, logits.new_empty((rows if keep else 0, g * v), dtype=dtype)


@torch.library.register_fake("ecgfast::gumbel_quantize_backward")
def _(
    grad_quantized: Tensor | None,
    grad_mean_probs: Tensor | None,
    logits: Tensor,
    codebook: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(logits, memory_format=torch.contiguous_format),
        torch.empty_like(codebook, memory_format=torch.contiguous_format),
    )


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    logits, codebook, temperature, noise, rng, sample_ids, ctx.hard, _, ctx.tf32 = inputs
    _, codes, _, choice = output
    ctx.save_for_backward(logits, codebook, temperature, codes, noise, rng, sample_ids, choice)
    ctx.mark_non_differentiable(codes, choice)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_quantized: Tensor | None, _codes: None, grad_mean_probs: Tensor | None, _choice: None
) -> tuple[Tensor | None, ...]:
    if grad_quantized is None and grad_mean_probs is None:
        return (None,) * 9
    grads = torch.ops.ecgfast.gumbel_quantize_backward(
        grad_quantized, grad_mean_probs, *ctx.saved_tensors, ctx.hard, ctx.tf32
    )
    return (*grads, *(None,) * 7)


register_gradient(_OP, _setup, _backward)
_call = eager_call(_OP, _setup, _backward)
