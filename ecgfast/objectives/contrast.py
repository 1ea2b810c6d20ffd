"""What objectives share that contrast whole segments and mask no tokens."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ecgfast.nn.config import check_integers
from ecgfast.objectives.base import Metric, Panel, Views, chance_of
from ecgfast.objectives.parts import LOSS, Global, GlobalConfig
from ecgfast.ops._dispatch import wide

_COLLAPSED = 0.05
"""Spread of the embeddings below which they count as collapsed: 1 is as on a sphere, 0 all alike."""


@dataclass
class ContrastConfig(GlobalConfig):
    """The settings of an objective that contrasts segments."""


class Contrast(Global):
    """An objective of one term, `global`, and of two views of each segment or patient."""

    config: ContrastConfig

    title: ClassVar[str]
    """What the loss is called in the picture of a run."""

    def __init__(self, config: ContrastConfig | None = None) -> None:
        super().__init__(config)
        # Nothing is masked, so it has no gradient, for which DDP would wait.
        self.encoder.mask_token.requires_grad_(False)

    @classmethod
    @abstractmethod
    def candidates(cls, n_rows: int) -> int:
        """Among how many embeddings each is to find its positive, in a batch of `n_rows`."""

    @classmethod
    def metrics(cls, config: ContrastConfig, n_rows: int | None = None) -> tuple[Metric, ...]:
        chance = chance_of(None if n_rows is None else max(cls.candidates(n_rows), 1))
        loss, both = Panel(f"Global loss ({cls.title})", "nats"), Panel("Embeddings", "")
        return (
            LOSS,
            Metric("global", loss, "global", term=True, bar="global {:.3f}", row=".4f", chance=chance),
            Metric(
                "retrieval",
                Panel("Views that are nearest to another of their own", "share"),
                "found",
                "searched",
                bar="found {:.0%}",
                row=".1%",
                note="of first views, among second ones of the same process",
            ),
            Metric("alignment", both, "alignment", "searched", legend="cosine of a segment's two views"),
            Metric("spread", both, "spread", "batches", legend="spread (0: collapsed, 1: as on a sphere)"),
        )

    @classmethod
    def weaknesses(cls, config: ContrastConfig, n_rows: int) -> list[str]:
        """Batches without negatives: see `Objective.weaknesses`."""
        if cls.candidates(n_rows) > 1:
            return []
        return [
            "batch_pairs is 1: without another segment there are no negatives, so the loss is 0 and teaches "
            "nothing; take batch_pairs of at least 2 (or several processes and global_batch)"
        ]

    @classmethod
    def troubles(cls, config: ContrastConfig, point: Mapping[str, float], *, settled: bool) -> dict[str, str]:
        """Embeddings that collapse: see `Objective.troubles`."""
        if not settled or point["spread"] >= _COLLAPSED:
            return {}
        return {
            "collapse": f"the embeddings collapse: their spread is {point['spread']:.3f} (0: all are alike, "
            "1: as on a sphere); a lower optim.lr, more optim.warmup_steps or larger batches may help, in a "
            "new run folder"
        }


class InPairs(NamedTuple):
    """Rows of pairs in the order of their halves.

    Attributes:
        order: [2P] int64, row of each; None: as they are.
        first: [P] int64, sample ids of the first rows, which tell pairs apart.
        patients: [2P] int64.
    """

    order: Tensor | None
    first: Tensor
    patients: Tensor

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """First and second rows of x [2P, ...]."""
        first, second = (x if self.order is None else x[self.order]).chunk(2)
        return first, second


def in_pairs(views: Views) -> InPairs:
    """How the rows of `views` make pairs."""
    if views.segment is None:
        return InPairs(None, views.sample_ids.chunk(2)[0].long(), views.patients.long())
    # A stable sort puts first rows before second ones without a dynamic shape.
    order = views.segment.argsort(stable=True)
    return InPairs(order, views.sample_ids[order].chunk(2)[0].long(), views.patients[order].long())


@torch.no_grad()
def agreement(
    a: Tensor,
    b: Tensor,
    group: Tensor,
    present_a: Tensor | None = None,
    present_b: Tensor | None = None,
) -> dict[str, Tensor]:
    """How well second views are told from first ones; sums and means over Q pairings of N samples' views.

    Args:
        a, b: [Q, N, D].
        group: [N], what a nearest view must share to be right.
        present_a, present_b: [Q, N] bool, which are there; None: all.

    Returns:
        `found`, views of a whose nearest view in b is of their group; `searched`, views of a that have their
        partner in b; `alignment`, sum of the cosines of partners; `spread`, the mean standard deviation of
        the unit embeddings' components times sqrt(D) (Chen & He, SimSiam, CVPR 2021, figure 2).
    """
    dtype = wide(a.dtype)
    u, v = (F.normalize(x.to(dtype), dim=-1, eps=1e-8) for x in (a, b))
    there_a = u.new_ones(u.shape[:2], dtype=torch.bool) if present_a is None else present_a
    there_b = u.new_ones(u.shape[:2], dtype=torch.bool) if present_b is None else present_b
    cosine = (u @ v.mT).masked_fill(~there_b[:, None], -2)
    both = there_a & there_b
    nearest = group[cosine.argmax(-1)]
    either = torch.cat([u, v], 1), torch.cat([there_a, there_b], 1)[..., None].to(dtype)
    n = either[1].sum(1).clamp(min=1)
    mean = (either[0] * either[1]).sum(1) / n
    variance = ((either[0] - mean[:, None]).square() * either[1]).sum(1) / n
    return {
        "found": ((nearest == group) & both).sum(),
        "searched": both.sum(),
        "alignment": ((u * v).sum(-1) * both).sum(),
        "spread": variance.sqrt().mean() * u.shape[-1] ** 0.5,
    }


@dataclass
class ProjectedConfig(ContrastConfig):
    """The settings of an objective with a head between encoder and loss.

    Attributes:
        projection_dim: width of what the head gives (linear, ReLU, linear); 0: no head.
    """

    projection_dim: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integers(self, 0, "projection_dim")


class Projected(Contrast):
    """With a head that is left away after pre-training."""

    config: ProjectedConfig

    def __init__(self, config: ProjectedConfig | None = None) -> None:
        super().__init__(config)
        width, out = self.config.encoder.width, self.config.projection_dim
        self.head = (
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out)) if out else nn.Identity()
        )
