"""Objectives that encode every lead alone: CMLC and CMSMLC."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ecgfast import ops
from ecgfast.errors import EcgfastError
from ecgfast.nn.config import check_flags
from ecgfast.nn.encoder import Encoder, mean_tokens
from ecgfast.objectives.augment import present_leads
from ecgfast.objectives.base import Losses, Views, check_rng, check_views
from ecgfast.objectives.contrast import Contrast, ContrastConfig, agreement, in_pairs
from ecgfast.ops._dispatch import wide


def encode_each_lead(encoder: Encoder, views: Views, *, nonzero: bool = False) -> Tensor:
    """The mean token of each lead alone, [L, B, E]: the stem costs what one lead costs for each.

    Rows of one call of the stem share their lead, so it is called for each; the transformer sees all of them
    at once.
    """
    names: Sequence[str] = encoder.config.leads if views.leads is None else views.leads
    parts = [
        encoder.features(views.signal[:, lead : lead + 1], [name], lengths=views.lengths)
        for lead, name in enumerate(names)
    ]
    padding = None if parts[0].padding is None else torch.cat([part.padding for part in parts])
    tokens = encoder.contextualize(torch.cat([part.features for part in parts]), padding=padding)
    z = mean_tokens(tokens, padding, nonzero=nonzero)
    return z.to(wide(z.dtype)).unflatten(0, (len(names), -1))


@dataclass
class LeadByLeadConfig(ContrastConfig):
    """Contrast of leads.

    Attributes:
        official_pairs: train on the last pair of leads alone and divide by the number of pairs, which is what
            CLOCS' own code does: it assigns each pair's loss instead of adding it.
    """

    official_pairs: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flags(self, "official_pairs")
        if self.encoder.n_leads < 2:
            raise EcgfastError("encoder.leads: must be 2 or more, as leads are contrasted, got 1")


class LeadByLead(Contrast):
    """Leads of a patient attract each other, each encoded alone."""

    config: LeadByLeadConfig

    two_segments: ClassVar[bool]
    """Whether leads of one segment meet those of the next one, rather than others of their own."""

    def forward(self, views: Views, rng: Tensor, *, process_group: ProcessGroup | None = None) -> Losses:
        """The loss of a batch, see `Objective.forward`; absent and masked leads take no part in it."""
        config = self.config
        check_views(views, config.encoder, pairs=self.two_segments)
        check_rng(rng, views.signal)
        size, n_leads = views.signal.shape[:2]
        if n_leads < 2:
            raise EcgfastError(f"signal: takes 2 leads or more, got {n_leads}")
        present = present_leads(views.signal, views.lengths)
        keep = self.lead_keep(views, rng)
        present = (present if keep is None else present & keep).T
        z = encode_each_lead(self.encoder, views, nonzero=config.official_token_mean)
        if self.two_segments:
            both = in_pairs(views)
            a, b = (half.transpose(0, 1) for half in both.halves(z.transpose(0, 1)))
            there_a, there_b = (half.T for half in both.halves(present.T))
            group_a, group_b = both.patients.chunk(2)
        else:
            a, there_a, group_a = z, present, views.patients
            b = there_b = group_b = None
        pairs = torch.triu_indices(n_leads, n_leads, 1, device=z.device).T
        used = pairs[-1:] if config.official_pairs else pairs
        loss = ops.global_contrastive(
            a,
            b,
            group_a,
            group_b,
            temperature=config.global_temperature,
            process_group=process_group,
            pairs=used,
            present_a=there_a,
            present_b=there_b,
        )
        total = loss * (size * used.shape[0] / pairs.shape[0])
        second, there_b = (a, there_a) if b is None else (b, there_b)
        counts = agreement(a[:-1], second[1:], group_a, there_a[:-1], there_b[1:])
        return Losses(total, size, {"global": total}, counts)


@dataclass
class CMLCConfig(LeadByLeadConfig):
    """Contrastive multi-lead coding."""


class CMLC(LeadByLead):
    """Contrastive multi-lead coding: the leads of a segment attract each other, each encoded alone.

    With z_i^a the mean token of lead a of segment i, S^ab_ij = cos(z_i^a, z_j^b) / tau and P the pairs (i, j)
    of one patient, i = j among them::

        loss = mean over leads a < b of
               1/2 (mean over P of -log softmax_j(S^ab)_ij + mean over P of -log softmax_i(S^ab)_ij)

    Absent and masked leads are neither positives nor negatives; a pair of leads without a positive doesn't
    count.

    Source: Kiyasseh et al., CLOCS, ICML 2021, section 4.3 and equation 2; FS, `clocs_criterion.py`.
    """

    Config = CMLCConfig
    model_type = "ecgfast_cmlc"
    plan = "single_segments"
    title = "CMLC"
    two_segments = False

    @classmethod
    def candidates(cls, n_rows: int) -> int:
        return n_rows


@dataclass
class CMSMLCConfig(LeadByLeadConfig):
    """Contrastive multi-segment multi-lead coding."""


class CMSMLC(LeadByLead):
    """Contrastive multi-segment multi-lead coding: one lead meets another one in the next segment.

    As `CMLC`, with S^ab_ij = cos(z_i0^a, z_j1^b) / tau of lead a of the first segment of pair i and lead b of
    the second one of pair j, for a < b: no lead meets itself, and none another one of its own segment. (CLOCS
    takes all 276 pairs of 24 views.)

    Source: Kiyasseh et al., CLOCS, ICML 2021, section 4.4 and equation 2; FS, `clocs_criterion.py`.
    """

    Config = CMSMLCConfig
    model_type = "ecgfast_cmsmlc"
    plan = "adjacent_pairs"
    title = "CMSMLC"
    two_segments = True

    @classmethod
    def candidates(cls, n_rows: int) -> int:
        return n_rows // 2
