"""Span masking: which tokens of a segment the encoder has to predict."""

import torch
from torch import Tensor

from ecgfast.ops._autograd import register_vmap
from ecgfast.ops._dispatch import (
    INTS,
    as_int64,
    check,
    check_rng,
    check_tensor,
    fused,
    host_number,
    integer,
    real,
)
from ecgfast.ops.random import Purpose, words

_OP = "span_mask"
_NEVER = 2**62
_TOO_MANY = 2**30  # of the kernels' counters
_MAX_CUDA_TOKENS = 4096  # what the kernel's shared memory holds


def _validate(
    sample_ids: Tensor,
    n_tokens: int,
    prob: float,
    length: int,
    rng: Tensor,
    lengths: Tensor | None,
    n_masked: int | None,
) -> tuple[int, float, int, int | None]:
    check_rng(_OP, rng, sample_ids, sample_ids)
    n_tokens, length = integer(_OP, "n_tokens", n_tokens), integer(_OP, "length", length)
    prob = real(_OP, "prob", prob)
    check(n_tokens >= 1, _OP, "n_tokens must be at least 1, got {}", n_tokens)
    check(n_tokens < _TOO_MANY, _OP, "n_tokens must be below 2^30, got {}", n_tokens)
    check(0.0 <= prob <= 1.0, _OP, "prob must lie in [0, 1], got {}", prob)
    check(length >= 1, _OP, "length must be at least 1, got {}", length)
    if n_masked is not None:
        n_masked = integer(_OP, "n_masked", n_masked)
        wanted = "n_masked must lie in 1..{} (n_tokens) or be None, got {}"
        check(1 <= n_masked <= n_tokens, _OP, wanted, n_tokens, n_masked)
    elif sample_ids.is_meta or _examples_apart():
        where = "on meta tensors" if sample_ids.is_meta else "under torch.vmap"
        raise ValueError(
            f"{_OP}: n_masked must be an integer {where}, where no size can depend on a draw, got None"
        )
    if lengths is not None:
        check_tensor(_OP, "lengths", lengths, (sample_ids.shape[0],), INTS, sample_ids, "B")
    return n_tokens, prob, length, n_masked


def _examples_apart() -> bool:
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def _first_rank(ranks: Tensor, n_tokens: int, length: int) -> Tensor:
    """For each token, the smallest rank of a start whose span covers it; ``[B, N]``."""
    padded = torch.nn.functional.pad(ranks, (length - 1, n_tokens), value=_NEVER)
    return padded.unfold(1, length, 1).amin(dim=2)[:, :n_tokens]


def _ranks(order_by: Tensor) -> Tensor:
    return order_by.argsort(dim=1, stable=True).argsort(dim=1, stable=True)


def span_mask_reference(
    sample_ids: Tensor,
    n_tokens: int,
    prob: float,
    length: int,
    rng: Tensor,
    *,
    lengths: Tensor | None = None,
    n_masked: int | None,
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch form of :func:`span_mask`: the same arguments, the same bits."""
    n_tokens, prob, length, n_masked = _validate(sample_ids, n_tokens, prob, length, rng, lengths, n_masked)
    sample_ids = as_int64(sample_ids)
    batch, device = sample_ids.shape[0], sample_ids.device
    tokens = torch.arange(n_tokens, device=device)
    valid_len = (lengths.clamp(0, n_tokens) if lengths is not None else n_tokens) + torch.zeros_like(
        sample_ids
    )
    u = words(rng, sample_ids, Purpose.SPAN_COUNT, 1)[:, 0].double() * 2.0**-32
    number, tensor = host_number(prob)
    n_spans = (
        ((number if tensor is None else tensor) * valid_len.double() / length + u).floor().long().clamp(min=2)
    )
    n_starts = torch.maximum(valid_len - length, n_spans + 1)

    # Ordering the starts by a random key draws them without replacement: the first n_spans are taken.
    # As many as any `prob` takes, so that no size depends on it; further draws change none before.
    most = max(n_tokens - length, n_tokens // length + 2, 3)
    keys = words(rng, sample_ids, Purpose.SPAN_START, most)
    usable = torch.arange(most, device=device) < n_starts[:, None]
    ranks = torch.where(usable, _ranks(torch.where(usable, keys, _NEVER)), _NEVER)

    valid = tokens < valid_len[:, None]
    first = torch.where(valid, _first_rank(ranks, n_tokens, length), _NEVER)
    taken = n_spans[:, None]
    if n_masked is not None:
        # A row whose spans cover too few tokens takes further starts, in the same order.
        enough = first.sort(dim=1).values[:, n_masked - 1 : n_masked]
        taken = torch.maximum(taken, torch.where(enough == _NEVER, taken, enough + 1))
        taken = torch.where(enough == _NEVER, _NEVER, taken)
    masked = first < taken

    if n_masked is None:
        n_masked = int(masked.sum(dim=1).min()) if batch else 0
    # The cut: masked tokens first, then (rows too short for n_masked) other valid ones, then padding.
    cut = words(rng, sample_ids, Purpose.SPAN_CUT, n_tokens)
    group = torch.where(masked, 0, torch.where(valid, 1, 2))
    cut = torch.where(group == 2, tokens, cut) + (group << 33)
    index = cut.argsort(dim=1, stable=True)[:, :n_masked].sort(dim=1).values
    mask = torch.zeros((batch, n_tokens), dtype=torch.bool, device=device).scatter_(1, index, True)
    return index.to(torch.int32), mask


def span_mask(
    sample_ids: Tensor,
    n_tokens: int,
    prob: float,
    length: int,
    rng: Tensor,
    *,
    lengths: Tensor | None = None,
    n_masked: int | None,
) -> tuple[Tensor, Tensor]:
    """Draw the masked tokens of each segment: a union of spans, cut at random to a common count.

    A segment of n tokens takes max(2, floor(prob * n / length + u)) spans, u uniform on [0, 1). Their
    starts are drawn without replacement from the first n - length tokens.

    Args:
        sample_ids: integer ``[B]``, one number per segment; equal numbers draw equally.
        n_tokens: tokens per segment N.
        prob: share of tokens that the spans would cover if none overlapped (the paper's is 0.65).
        length: tokens per span (the paper's is 10).
        rng: int64 ``[2]`` of (seed, step), see :func:`make_rng`.
        lengths: integer ``[B]``, valid tokens of each segment; None: all N.
        n_masked: masked tokens M of every segment: a fixed count keeps shapes static and the mask rate
            independent of the batch. A row whose spans cover fewer takes more spans; a row of fewer than
            M valid tokens is masked whole and padding fills the rest. None: the smallest union of the
            batch, as the official code does; the shape then depends on the draw, and reading it
            synchronises a CUDA device.

    Returns:
        ``index``, int32 ``[B, M]``, ascending, and ``mask``, bool ``[B, N]``.

    On CUDA, segments of more than 4096 tokens run the plain PyTorch form.

    Raises:
        ValueError, TypeError: naming the argument, what came and what is taken.

    Source: Baevski et al., wav2vec 2.0, section 3.1; Oh et al., CHIL 2022, section 3.1.
    """
    if not fused(_OP, sample_ids) or (
        sample_ids.is_cuda and integer(_OP, "n_tokens", n_tokens) > _MAX_CUDA_TOKENS
    ):
        return span_mask_reference(
            sample_ids, n_tokens, prob, length, rng, lengths=lengths, n_masked=n_masked
        )
    n_tokens, prob, length, n_masked = _validate(sample_ids, n_tokens, prob, length, rng, lengths, n_masked)
    if lengths is not None:
        lengths = as_int64(lengths)
    prob, tensor = host_number(prob)
    changing = () if tensor is None else (tensor,)
    return torch.ops.ecgfast.span_mask(
        as_int64(sample_ids), n_tokens, prob, length, rng, lengths, n_masked, *changing
    )


@torch.library.register_fake("ecgfast::span_mask")
def _(
    sample_ids: Tensor,
    n_tokens: int,
    prob: float,
    length: int,
    rng: Tensor,
    lengths: Tensor | None,
    n_masked: int | None,
    prob_tensor: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    batch = sample_ids.shape[0]
    if n_masked is None:
        n_masked = torch.library.get_ctx().new_dynamic_size()
    return (
        sample_ids.new_empty((batch, n_masked), dtype=torch.int32),
        sample_ids.new_empty((batch, n_tokens), dtype=torch.bool),
    )


register_vmap(_OP)
