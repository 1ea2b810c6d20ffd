"""Contrastive random lead coding: two disjoint sets of leads of a segment attract each other."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ecgfast import ops
from ecgfast.errors import EcgfastError
from ecgfast.objectives.augment import present_leads
from ecgfast.objectives.base import Losses, Views, check_rng, check_views
from ecgfast.objectives.contrast import Projected, ProjectedConfig, agreement
from ecgfast.objectives.lead_by_lead import encode_each_lead
from ecgfast.ops.random import Purpose, bounded, words

Readout = Literal["mean", "sum", "encoder"]

_FEWEST_LEADS = 4


@dataclass
class CRLCConfig(ProjectedConfig):
    """Contrast of sets of leads.

    Attributes:
        global_temperature: divides the cosines.
        readout: how the leads of a view become one embedding. "mean": each is encoded alone, and they are
            averaged; "sum": their sum, as the public code has it, which drops the division by their number;
            "encoder": the encoder sees the view's leads together.
        projection_dim: width of the head's output; 0: no head.
    """

    global_temperature: float = 0.5
    readout: Readout = "mean"
    projection_dim: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.readout not in get_args(Readout):
            raise EcgfastError(f"readout takes {', '.join(get_args(Readout))}, got {self.readout!r}")
        _check_leads("encoder.leads", self.encoder.n_leads)


class CRLC(Projected):
    """NT-Xent: each of 2B views, disjoint sets of leads, finds the other one of its segment among 2B - 1.

    For each batch k is drawn from 2..C - 2 and the C leads are split into k and C - k at random, the same for
    all its segments; a view is a segment's leads of one part. With y_i the readout over a view's leads,
    z_i = head(y_i), s_ij = cos(z_i, z_j) / tau and p(i) the other view of i's segment::

        loss = -1 / 2B sum_i log(exp(s_ip(i)) / sum_{j != i} exp(s_ij))

    Theirs: the split, an encoder that sees each lead alone, the readout as the mean over the leads followed
    by linear, ReLU, linear, the projection to 32, tau = 0.5. Ours: the encoder, whose stem has weights for
    each lead; the mean over tokens comes before the readout, where theirs keeps four parts of the time; no
    message passing between the leads, as it would be left away after pre-training; the readout's last linear
    layer and the projection, which are one linear map, are one layer. Leads that are absent or masked take no
    part; a view without leads is no row.

    Source: Bruesch et al., Contrastive random lead coding for channel-agnostic self-supervision of
    biosignals, 2024, arXiv 2410.19842; theabrusch/Multiview_TS_SSL.
    """

    Config = CRLCConfig
    model_type = "ecgfast_crlc"
    plan = "single_segments"
    title = "CRLC"

    config: CRLCConfig

    def split(self, n_leads: int, rng: Tensor) -> Tensor:
        """[L] bool, the leads of the first view; drawn for the step, the same on all ranks."""
        drawn = words(rng, rng.new_zeros(1), Purpose.LEAD_SPLIT, n_leads + 1)[0]
        k = 2 + bounded(drawn[-1], n_leads - 3)
        place = drawn[:-1].argsort(stable=True).argsort()
        return place < k

    def readout(self, views: Views, parts: Tensor) -> Tensor:
        """Embeddings [2, B, E] of the leads `parts` [2, B, L] of each segment."""
        if self.config.readout == "encoder":
            twice = views.signal.repeat(2, 1, 1)
            lengths = None if views.lengths is None else views.lengths.repeat(2)
            encoded = self.encoder(twice, views.leads, lengths=lengths, keep=parts.flatten(0, 1))
            return self.embedding(encoded).unflatten(0, (2, -1))
        z = encode_each_lead(self.encoder, views, nonzero=self.config.official_token_mean)
        weights = parts.to(z.dtype)
        if self.config.readout == "mean":
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=1)
        return torch.einsum("vbl,lbe->vbe", weights, z)

    def forward(self, views: Views, rng: Tensor, *, process_group: ProcessGroup | None = None) -> Losses:
        """The loss of B segments, see `Objective.forward`."""
        check_views(views, self.config.encoder, pairs=False)
        check_rng(rng, views.signal)
        size, n_leads = views.signal.shape[:2]
        _check_leads("signal", n_leads)
        there, keep = present_leads(views.signal, views.lengths), self.lead_keep(views, rng)
        there = there if keep is None else there & keep
        first = self.split(n_leads, rng)
        parts = torch.stack([there & first, there & ~first])
        present = parts.any(-1)
        z = self.head(self.readout(views, parts))
        loss = ops.global_contrastive(
            z.flatten(0, 1),
            None,
            views.sample_ids.repeat(2),
            temperature=self.config.global_temperature,
            process_group=process_group,
            present_a=present.flatten(),
        )
        total = loss * size
        counts = agreement(z[:1], z[1:], views.sample_ids, present[:1], present[1:])
        return Losses(total, size, {"global": total}, counts)

    @classmethod
    def candidates(cls, n_rows: int) -> int:
        return 2 * n_rows - 1


def _check_leads(name: str, n_leads: int) -> None:
    if n_leads < _FEWEST_LEADS:
        raise EcgfastError(
            f"{name}: must be {_FEWEST_LEADS} leads or more, which crlc splits into two parts of 2 or more, "
            f"got {n_leads}"
        )
