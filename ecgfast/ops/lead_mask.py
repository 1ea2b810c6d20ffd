"""Random lead masking (RLM): which leads of which segment are kept."""

import torch
from torch import Tensor

from ecgfast.ops._dispatch import check, check_rng, fused
from ecgfast.ops.random import Purpose, bounded, words


def _validate(sample_ids: Tensor, n_leads: int, p: float, rng: Tensor) -> None:
    check_rng("lead_mask", rng, sample_ids, sample_ids)
    check(n_leads >= 1, "lead_mask", f"n_leads must be at least 1, got {n_leads}")
    check(0.0 <= p <= 1.0, "lead_mask", f"p must lie in [0, 1], got {p}")


def lead_mask_reference(
    sample_ids: Tensor, n_leads: int, p: float, rng: Tensor, *, keep_one: bool = False
) -> Tensor:
    """Plain PyTorch form of :func:`lead_mask`: the same arguments, the same bits."""
    _validate(sample_ids, n_leads, p, rng)
    drawn = words(rng, sample_ids, Purpose.LEAD_MASK, n_leads + 1)
    keep = drawn[:, :n_leads] >= int(p * 2**32)
    if keep_one:
        saved = bounded(drawn[:, n_leads:], n_leads)
        leads = torch.arange(n_leads, device=keep.device)
        keep = keep | (~keep.any(dim=1, keepdim=True) & (leads == saved))
    return keep


def lead_mask(sample_ids: Tensor, n_leads: int, p: float, rng: Tensor, *, keep_one: bool = False) -> Tensor:
    """Draw which leads are kept: each is masked independently with probability ``p``.

    Args:
        sample_ids: int64 ``[B]``, one number per segment; equal numbers draw equally.
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
    if not fused("lead_mask", sample_ids):
        return lead_mask_reference(sample_ids, n_leads, p, rng, keep_one=keep_one)
    _validate(sample_ids, n_leads, p, rng)
    return torch.ops.ecgfast.lead_mask(sample_ids, n_leads, p, rng, keep_one)


@torch.library.register_fake("ecgfast::lead_mask")
def _(sample_ids: Tensor, n_leads: int, p: float, rng: Tensor, keep_one: bool) -> Tensor:
    return sample_ids.new_empty((sample_ids.shape[0], n_leads), dtype=torch.bool)
