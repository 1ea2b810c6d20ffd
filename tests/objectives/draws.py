"""Random choices of a step given from outside, in place of those that an objective draws."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ecgfast.objectives.parts import Local


@dataclass
class Draws:
    """What is None is drawn.

    Attributes:
        lead_keep: [B, L] bool, leads to keep.
        mask_index: [B, M] integer, ascending and without repetition: the masked tokens.
        gumbel_noise: [B * M, G * V].
        negative_index: [B, M, K] integer in 0..M-1, numbers within the segment's masked tokens.
    """

    lead_keep: Tensor | None = None
    mask_index: Tensor | None = None
    gumbel_noise: Tensor | None = None
    negative_index: Tensor | None = None


@contextmanager
def given(model: Local, draws: Draws) -> Iterator[None]:
    """The model with these draws."""

    def span_mask(views, rng):
        index = draws.mask_index
        n = model.config.encoder.n_tokens(views.signal.shape[2])
        mask = torch.zeros(len(index), n, dtype=torch.bool, device=index.device)
        return index, mask.scatter(1, index.long(), True)

    replaced = {
        "lead_keep": (draws.lead_keep, lambda views, rng: draws.lead_keep),
        "span_mask": (draws.mask_index, span_mask),
        "gumbel_draws": (draws.gumbel_noise, lambda views, rng: {"noise": draws.gumbel_noise}),
        "negative_draws": (draws.negative_index, lambda views, rng: {"negative_index": draws.negative_index}),
    }
    names = [name for name, (value, _) in replaced.items() if value is not None]
    for name in names:
        setattr(model, name, replaced[name][1])
    try:
        yield
    finally:
        for name in names:
            delattr(model, name)
