"""Random lead masking (RLM): which leads of which segment are kept."""

import torch
from torch import Tensor

from ecgfast.ops._autograd import register_vmap
from ecgfast.ops._dispatch import as_int64, check, check_rng, flag, fused, host_number, integer, real
from ecgfast.ops.random import Purpose, bounded, words

_OP = "lead_mask"
_TOO_MANY = 2**30  # of the kernels' counters


def _validate(
    sample_ids: Tensor, n_leads: int, p: float, rng: Tensor, keep_one: bool
) -> tuple[int, float, bool]:
    check_rng(_OP, rng, sample_ids, sample_ids)
    n_leads, p = integer(_OP, "n_leads", n_leads), real(_OP, "p", p)
    check(n_leads >= 1, _OP, "n_leads must be at least 1, got {}", n_leads)
    check(n_leads < _TOO_MANY, _OP, "n_leads must be below 2^30, got {}", n_leads)
    check(0.0 <= p <= 1.0, _OP, "p must lie in [0, 1], got {}", p)
    return n_leads, p, flag(_OP, "keep_one", keep_one)


def lead_mask_reference(
    sample_ids: Tensor, n_leads: int, p: float, rng: Tensor, *, keep_one: bool = False
) -> Tensor:
    """Plain PyTorch form of :func:`lead_mask`: the same arguments, the same bits."""
    n_leads, p, keep_one = _validate(sample_ids, n_leads, p, rng, keep_one)
    drawn = words(rng, sample_ids, Purpose.LEAD_MASK, n_leads + 1)
    number, tensor = host_number(p)
    threshold = int(number * 2**32) if tensor is None else (tensor * 2.0**32).long()
    keep = drawn[:, :n_leads] >= threshold
    if keep_one:
        saved = bounded(drawn[:, n_leads:], n_leads)
        leads = torch.arange(n_leads, device=keep.device)
        keep = keep | (~keep.any(dim=1, keepdim=True) & (leads == saved))
    return keep


def lead_mask(sample_ids: Tensor, n_leads: int, p: float, rng: Tensor, *, keep_one: bool = False) -> Tensor:
    """Draw which leads are kept: each is masked independently with probability ``p``.

    Args:
        sample_ids: integer ``[B]``, one number per segment; equal numbers draw equally.
        n_leads: number of leads L.
        p: probability in [0, 1] that a lead is masked (the paper's is 0.5).
        rng: int64 ``[2]`` of (seed, step), see :func:`make_rng`.
        keep_one: where all leads were masked, keep one drawn uniformly. The official code masks all.

    Returns:
        bool ``[B, L]``, True where the lead is kept.

    Raises:
        ValueError, TypeError: naming the argument, what came and what is taken.

    Source: Oh et al., CHIL 2022, section 3.3 (random lead masking).
    """
    if not fused(_OP, sample_ids):
        return lead_mask_reference(sample_ids, n_leads, p, rng, keep_one=keep_one)
    n_leads, p, keep_one = _validate(sample_ids, n_leads, p, rng, keep_one)
    p, tensor = host_number(p)
    changing = () if tensor is None else (tensor,)
    return torch.ops.ecgfast.lead_mask(as_int64(sample_ids), n_leads, p, rng, keep_one, *changing)


@torch.library.register_fake("ecgfast::lead_mask")
def _(
    sample_ids: Tensor,
    n_leads: int,
    p: float,
    rng: Tensor,
    keep_one: bool,
    p_tensor: Tensor | None = None,
) -> Tensor:
    return sample_ids.new_empty((sample_ids.shape[0], n_leads), dtype=torch.bool)


register_vmap(_OP)
