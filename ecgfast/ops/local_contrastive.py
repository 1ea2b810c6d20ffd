"""The local contrastive loss of wav2vec 2.0: each masked token against others of its own segment."""

from typing import Any

import torch
from torch import Tensor

from ecgfast.ops._autograd import eager_call, register_gradient
from ecgfast.ops._cosines import split_temperature, temperature_gradient, unit
from ecgfast.ops._dispatch import (
    FLOATS,
    INTS,
    as_int64,
    autocast,
    check,
    check_rng,
    check_tensor,
    describe,
    fused,
    integer,
    readable,
    surely,
    temperature_of,
    tf32,
    wide,
)
from ecgfast.ops.random import Purpose, bounded, words

_OP = "local_contrastive"


def _validate(
    predictions: Tensor,
    targets: Tensor,
    codes: Tensor | None,
    n_negatives: int,
    temperature: float | Tensor,
    rng: Tensor | None,
    sample_ids: Tensor | None,
    negative_index: Tensor | None,
    negatives: str,
) -> tuple[int, float | Tensor]:
    check_tensor(_OP, "predictions", predictions, (None, None, None), FLOATS, None, "B, M, D")
    b, m, d = predictions.shape
    check_tensor(_OP, "targets", targets, (b, m, d), (predictions.dtype,), predictions)
    if codes is not None:
        check_tensor(_OP, "codes", codes, (b, m, None), INTS, predictions)
    temperature = temperature_of(_OP, temperature, predictions)
    n_negatives = integer(_OP, "n_negatives", n_negatives)
    check(
        isinstance(negatives, str) and negatives in ("sampled", "all"),
        _OP,
        "negatives must be 'sampled' or 'all', got {!r:.80}",
        negatives,
    )
    if negatives == "all":
        return n_negatives, temperature
    if negative_index is not None:
        check_tensor(_OP, "negative_index", negative_index, (b, m, None), INTS, predictions)
        if readable(negative_index) and negative_index.numel():
            low, high = (int(x) for x in negative_index.aminmax())
            wanted = "negative_index must hold tokens 0..{} (M - 1), got {}"
            check(low >= 0 and high < m, _OP, wanted, m - 1, low if low < 0 else high)
        return n_negatives, temperature
    check(n_negatives >= 1, _OP, "n_negatives must be at least 1, got {}", n_negatives)
    if rng is None or sample_ids is None:
        got = f"rng {describe(rng)} and sample_ids {describe(sample_ids)}"
        raise ValueError(f"{_OP}: sampled negatives need negative_index, or rng and sample_ids; got {got}")
    check_rng(_OP, rng, sample_ids, predictions)
    n_ids = sample_ids.shape[0]
    check(n_ids == b, _OP, "sample_ids must have {} entries (B), got {}", b, n_ids)
    return n_negatives, temperature


def draw_negatives(rng: Tensor, sample_ids: Tensor, n_tokens: int, n_negatives: int) -> Tensor:
    """The negatives that :func:`local_contrastive` draws: int64 ``[B, M, K]`` of tokens 0..M-1.

    Uniform over the other tokens of the segment, with replacement; K is 0 where M < 2.
    """
    if n_tokens < 2:
        n_negatives = 0
    drawn = words(rng, sample_ids, Purpose.NEGATIVES, n_tokens * n_negatives)
    index = bounded(drawn, max(n_tokens - 1, 1)).view(len(sample_ids), n_tokens, n_negatives)
    own = torch.arange(n_tokens, device=index.device)[:, None]
    return index + (index >= own)


def _all_others(batch: int, n_tokens: int, device: torch.device) -> Tensor:
    own = torch.arange(n_tokens, device=device)[:, None]
    index = torch.arange(max(n_tokens - 1, 0), device=device).expand(n_tokens, -1)
    return (index + (index >= own)).expand(batch, -1, -1)


def local_contrastive_reference(
    predictions: Tensor,
    targets: Tensor,
    *,
    codes: Tensor | None = None,
    n_negatives: int = 100,
    temperature: float | Tensor = 0.1,
    rng: Tensor | None = None,
    sample_ids: Tensor | None = None,
    negative_index: Tensor | None = None,
    negatives: str = "sampled",
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch form of :func:`local_contrastive`: gathers every negative, ``[B, M, K, D]``."""
    n_negatives, temperature = _validate(
        predictions,
        targets,
        codes,
        n_negatives,
        temperature,
        rng,
        sample_ids,
        negative_index,
        negatives,
    )
    b, m, _d = predictions.shape
    dtype = wide(predictions.dtype)
    if negatives == "all":
        negative_index = _all_others(b, m, predictions.device)
    elif negative_index is None:
        negative_index = draw_negatives(rng, as_int64(sample_ids), m, n_negatives)
    p, t = unit(predictions.to(dtype)), unit(targets.to(dtype))
    if isinstance(temperature, Tensor):
        temperature = temperature.to(dtype)
    index = negative_index.to(torch.int64).flatten(1)
    same_as = targets if codes is None else codes

    def gather(x: Tensor) -> Tensor:
        rows = x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
        return rows.view(b, m, negative_index.shape[-1], x.shape[-1])

    positive = (p * t).sum(-1, keepdim=True) / temperature
    negative = (p[:, :, None] * gather(t)).sum(-1) / temperature
    excluded = (gather(same_as) == same_as[:, :, None]).all(-1)
    negative = negative.masked_fill(excluded, -torch.inf)
    logits = torch.cat([positive, negative], dim=-1)
    loss = torch.logsumexp(logits, dim=-1) - positive[..., 0]
    best = positive[..., 0] >= logits.amax(-1)
    correct = best & ~(positive[..., 0] <= logits.amin(-1))
    return loss, correct


def local_contrastive(
    predictions: Tensor,
    targets: Tensor,
    *,
    codes: Tensor | None = None,
    n_negatives: int = 100,
    temperature: float | Tensor = 0.1,
    rng: Tensor | None = None,
    sample_ids: Tensor | None = None,
    negative_index: Tensor | None = None,
    negatives: str = "sampled",
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each masked token's target among negatives of the same segment.

    ``loss_i = logsumexp(s_ii, s_ij for each drawn j) - s_ii`` with ``s_ij = cos(prediction_i,
    target_j) / temperature``. A draw whose target equals the positive is excluded. The kernel counts how
    often j was drawn for i and adds the logarithm of the count to s_ij, so the ``[B, M, K, D]`` gather of
    the official form never exists.

    Args:
        predictions: ``[B, M, D]`` of fp32, bf16, fp16 or fp64.
        targets: ``[B, M, D]`` of the same dtype; gradients flow into both.
        codes: int ``[B, M, G]``, the targets' codebook entries: equal codes mean equal targets. None:
            target vectors are compared.
        n_negatives: K, draws per token (the paper's is 100).
        temperature: divides the cosines (the paper's is 0.1): a positive number, or a floating-point tensor
            of shape [] on the same device, which gets a gradient if it requires one. On CUDA a
            tensor's value is not looked at: the loss is NaN where it is not positive.
        rng: int64 ``[2]`` of (seed, step); must not be changed before the backward pass has run.
        sample_ids: integer ``[B]``, one number per segment, for ``rng``.
        negative_index: int ``[B, M, K]`` of tokens 0..M-1, instead of drawing.
        negatives: "sampled", or "all": every other token of the segment once.

    A vector no longer than 1e-8 has cosine 0 with all or nearly so, and gets no gradient. Where the product
    of two vectors' norms passes what fp32 holds, the loss is NaN.

    Returns:
        ``loss``, ``[B, M]`` (fp32; fp64 for fp64 inputs), and ``correct``, bool ``[B, M]``: the positive
        is not below any negative and not the smallest of all. A segment of one token has loss 0.

    Raises:
        ValueError, TypeError: naming the argument, what came and what is taken.

    Saved for backward besides the inputs: three numbers per token and, on the CPU where M <= D, the softmax
    ``[B, M, M]`` (fp32; fp64 for fp64 inputs), which is no larger than the predictions in that dtype. Without
    it the backward pass repeats the products and the draws. Nothing is saved where no gradient is needed.

    On CUDA fp32 is multiplied as :func:`torch.get_float32_matmul_precision` says when the forward pass runs:
    to fp32 precision where it is "highest", in TF32 otherwise (cosines within 1e-3). The CPU kernels always
    multiply to fp32 precision.

    Source: Baevski et al., wav2vec 2.0, equation 3; Oh et al., CHIL 2022, section 3.1.
    """
    predictions, targets = autocast(predictions, targets)
    if not fused(_OP, predictions):
        return local_contrastive_reference(
            predictions,
            targets,
            codes=codes,
            n_negatives=n_negatives,
            temperature=temperature,
            rng=rng,
            sample_ids=sample_ids,
            negative_index=negative_index,
            negatives=negatives,
        )
    n_negatives, temperature = _validate(
        predictions,
        targets,
        codes,
        n_negatives,
        temperature,
        rng,
        sample_ids,
        negative_index,
        negatives,
    )
    use_all = negatives == "all"
    if use_all or negative_index is not None:
        rng = sample_ids = None
    else:
        sample_ids = as_int64(sample_ids)
    if negative_index is not None and negative_index.dtype != torch.int32:
        negative_index = as_int64(negative_index)
    differentiable = torch.is_grad_enabled() and (predictions.requires_grad or targets.requires_grad)
    number, temperature_tensor = split_temperature(temperature, predictions)
    loss, correct, _, _, _ = _call(
        predictions,
        targets,
        codes.to(torch.int32) if codes is not None else None,
        None if use_all else negative_index,
        rng,
        sample_ids,
        n_negatives,
        number,
        use_all,
        differentiable and surely(predictions.shape[1] <= predictions.shape[2]),
        tf32(predictions),
        *(() if temperature_tensor is None else (temperature_tensor,)),
    )
    return loss, correct


@torch.library.register_fake("ecgfast::local_contrastive")
def _(predictions: Tensor, targets: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    b, m, _d = predictions.shape
    save_weights = rest[7]
    saved = m if save_weights and predictions.device.type == "cpu" else 0
    loss = predictions.new_empty((b, m), dtype=wide(predictions.dtype))
    correct = predictions.new_empty((b, m), dtype=torch.bool)
    return loss, correct, torch.empty_like(loss), loss.new_empty((2, b, m)), loss.new_empty((b, saved, saved))


@torch.library.register_fake("ecgfast::local_contrastive_backward")
def _(
    grad_loss: Tensor, predictions: Tensor, targets: Tensor, lse: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    with_moments = len(rest) > 10 and rest[10] is not None
    return (
        torch.empty_like(predictions, memory_format=torch.contiguous_format),
        torch.empty_like(targets, memory_format=torch.contiguous_format),
        lse.new_empty(lse.shape if with_moments else (0, 0)),
    )


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    predictions, targets, codes, negative_index, rng, sample_ids, *scalars, _, tf32 = inputs[:11]
    _, correct, *saved = output
    # A temperature that is a number is left away, in all calls alike.
    ctx.save_for_backward(predictions, targets, *saved, codes, negative_index, rng, sample_ids, *inputs[11:])
    ctx.scalars, ctx.n_inputs = (*scalars, tf32), len(inputs)
    ctx.mark_non_differentiable(correct, *saved)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * ctx.n_inputs
    tensors = ctx.saved_tensors
    saved, temperature = tensors[:9], tensors[9:]
    *grads, moments = torch.ops.ecgfast.local_contrastive_backward(
        grad_loss, *saved, *ctx.scalars, *temperature
    )
    return (*grads, *(None,) * 9, *(temperature_gradient(moments, t) for t in temperature))


register_gradient(_OP, _setup, _backward)
_call = eager_call(_OP, _setup, _backward)
