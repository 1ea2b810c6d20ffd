"""Local and global contrastive learning with random lead masking, together and each alone.

Oh, Chung, Kwon, Hong, Choi, "Lead-agnostic Self-supervised Learning for Local and Global
Representations of Electrocardiogram", CHIL 2022 (arXiv 2203.06889).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.distributed import ProcessGroup

from ecgfast.objectives.base import Losses, Metric, Views, check_rng, check_views
from ecgfast.objectives.parts import LOSS, Global, GlobalConfig, Local, LocalConfig

_PER_TOKEN = LOSS._replace(note="per masked token")


@dataclass
class W2VConfig(LocalConfig):
    """Local contrastive learning."""


class W2V(Local):
    """The local loss alone, of single segments."""

    Config = W2VConfig
    model_type = "ecgfast_w2v"
    plan = "single_segments"

    config: W2VConfig

    def forward(
        self,
        views: Views,
        rng: Tensor,
        *,
        process_group: ProcessGroup | None = None,
        details: bool = False,
    ) -> Losses:
        """The losses of B segments, see `Objective.forward`; `details`: return what they were made from."""
        check_views(views, self.config.encoder, pairs=False)
        check_rng(rng, views.signal)
        keep = self.lead_keep(views, rng)
        index, mask = self.span_mask(views, rng)
        encoded = self.encoder(views.signal, views.leads, lengths=views.lengths, keep=keep, mask=mask)
        local = self.local_losses(encoded, index, views, rng)
        total = sum_terms(local.terms)
        return Losses(total, local.size, local.terms, local.counts, local.details if details else None)

    @classmethod
    def metrics(cls, config: W2VConfig, n_rows: int | None = None) -> tuple[Metric, ...]:
        terms, others = cls.local_metrics(config)
        return (_PER_TOKEN, *terms, *others)

    @classmethod
    def troubles(cls, config: W2VConfig, point: Mapping[str, float], *, settled: bool) -> dict[str, str]:
        return cls.local_troubles(config, point, settled=settled)


@dataclass
class CMSCConfig(GlobalConfig):
    """Global contrastive learning."""


class CMSC(Global):
    """The global loss alone: contrastive multi-segment coding (Kiyasseh et al., CLOCS, ICML 2021)."""

    Config = CMSCConfig
    model_type = "ecgfast_cmsc"
    plan = "adjacent_pairs"

    config: CMSCConfig

    def __init__(self, config: CMSCConfig | None = None) -> None:
        super().__init__(config)
        # Nothing is masked, so it has no gradient, for which DDP would wait.
        self.encoder.mask_token.requires_grad_(False)

    def forward(self, views: Views, rng: Tensor, *, process_group: ProcessGroup | None = None) -> Losses:
        """The loss of 2P segments, see `Objective.forward`."""
        check_views(views, self.config.encoder, pairs=True)
        check_rng(rng, views.signal)
        keep = self.lead_keep(views, rng)
        encoded = self.encoder(views.signal, views.leads, lengths=views.lengths, keep=keep)
        size = views.signal.shape[0]
        total = self.global_loss(encoded, views, process_group) * size
        return Losses(total, size, {"global": total}, {})

    @classmethod
    def metrics(cls, config: CMSCConfig, n_rows: int | None = None) -> tuple[Metric, ...]:
        return (LOSS, *cls.global_metrics(n_rows))

    @classmethod
    def weaknesses(cls, config: CMSCConfig, n_rows: int) -> list[str]:
        return cls.global_weaknesses(n_rows)


@dataclass
class W2VCMSCConfig(LocalConfig, GlobalConfig):
    """Local and global contrastive learning with random lead masking; the defaults are the paper's."""

    lead_mask_prob: float = 0.5


class W2VCMSC(Local, Global):
    """The sum of the local and the global loss."""

    Config = W2VCMSCConfig
    model_type = "ecgfast_w2v_cmsc"
    plan = "adjacent_pairs"

    config: W2VCMSCConfig

    def forward(
        self,
        views: Views,
        rng: Tensor,
        *,
        process_group: ProcessGroup | None = None,
        details: bool = False,
    ) -> Losses:
        """The losses of 2P segments, see `Objective.forward`; `details`: return what they were made from."""
        check_views(views, self.config.encoder, pairs=True)
        check_rng(rng, views.signal)
        keep = self.lead_keep(views, rng)
        index, mask = self.span_mask(views, rng)
        encoded = self.encoder(views.signal, views.leads, lengths=views.lengths, keep=keep, mask=mask)
        local = self.local_losses(encoded, index, views, rng)
        terms = local.terms | {"global": self.global_loss(encoded, views, process_group) * local.size}
        return Losses(sum_terms(terms), local.size, terms, local.counts, local.details if details else None)

    @classmethod
    def metrics(cls, config: W2VCMSCConfig, n_rows: int | None = None) -> tuple[Metric, ...]:
        terms, others = cls.local_metrics(config)
        local, *others_of_it = terms
        return (_PER_TOKEN, local, *cls.global_metrics(n_rows), *others_of_it, *others)

    @classmethod
    def weaknesses(cls, config: W2VCMSCConfig, n_rows: int) -> list[str]:
        return cls.global_weaknesses(n_rows)

    @classmethod
    def troubles(cls, config: W2VCMSCConfig, point: Mapping[str, float], *, settled: bool) -> dict[str, str]:
        return cls.local_troubles(config, point, settled=settled)


def sum_terms(terms: Mapping[str, Any]) -> Tensor:
    """The sum of the terms, in their order."""
    first, *rest = terms.values()
    for term in rest:
        first = first + term
    return first
