"""3KG: two views of a heart whose dipole was turned and stretched attract each other."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from ecgfast import ops
from ecgfast.errors import EcgfastError
from ecgfast.nn.config import check_flags, check_numbers
from ecgfast.objectives.augment import (
    draw_turn,
    in_millivolts,
    lead_system,
    present_leads,
    turn_dipole,
    turn_matrix,
    zero_parts,
)
from ecgfast.objectives.base import Losses, Views, check_rng, check_views
from ecgfast.objectives.contrast import Projected, ProjectedConfig, agreement, in_pairs


@dataclass
class ThreeKGConfig(ProjectedConfig):
    """Contrast of turned dipoles; the defaults are FS's, but for `official_round_trip`.

    Attributes:
        angle: largest turn about each axis, degrees.
        scale: largest factor along each axis; the least is 1.
        zero_share: part of each lead that is zeroed.
        official_round_trip: keep only what the dipole explains of the leads, as the public code does: then a
            turn by 0 with factors of 1 changes them too.
    """

    angle: float = 45.0
    scale: float = 1.5
    zero_share: float = 0.5
    official_round_trip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, 0, 180, "angle")
        check_numbers(self, 1, 1e3, "scale")
        check_numbers(self, 0, 1, "zero_share")
        check_flags(self, "official_round_trip")
        if self.zero_share == 1:
            raise EcgfastError("zero_share takes a number below 1, got 1: nothing would be left of a segment")
        lead_system(self.encoder.leads, dipole=True)


class ThreeKG(Projected):
    """Each positive of a view is a cross-entropy of its own against the other patients' views.

    With 2B views, z_i the mean token of view i (after the head, if there is one), s_ij = cos(z_i, z_j) / tau,
    P(i) the other views of i's patient and N(i) those of other patients::

        loss = -1 / 2B sum_i sum_{p in P(i)} log(exp(s_ip) / (exp(s_ip) + sum_{n in N(i)} exp(s_in)))

    A view: I, II and V1..V6 give the heart's dipole (x, y, z) by a fixed 3 x 8 matrix, the pseudo-inverse of
    Dower's (the official one, to three digits). It is turned about z, y and x by U(-45, 45) degrees each and
    stretched along each axis by U(1, 1.5). What it then gives replaces its part of the leads, in the limb
    leads by Einthoven's law. Then a contiguous half of each lead is zeroed, from a random start on; it wraps
    at the segment's end. A segment without all of the eight leads is only zeroed in part; an absent lead
    stays absent.

    Source: Gopal et al., 3KG: Contrastive learning of 12-lead electrocardiograms using
    physiologically-inspired augmentations, ML4H 2021; FS, `3kg_criterion.py` and `perturb_ecg_dataset.py`.
    """

    Config = ThreeKGConfig
    model_type = "ecgfast_3kg"
    plan = "two_views"
    title = "3KG"

    config: ThreeKGConfig

    def augmented(self, views: Views, rng: Tensor) -> Tensor:
        """The signal of the views, [2B, L, T] in millivolts."""
        config, signal = self.config, in_millivolts(views.signal)
        names = config.encoder.leads if views.leads is None else views.leads
        system = lead_system(names, dipole=True)
        present = present_leads(views.signal, views.lengths)
        draws = draw_turn(
            rng,
            views.sample_ids,
            *signal.shape[1:],
            angle=config.angle,
            scale=config.scale,
            lengths=views.lengths,
        )
        residual = not config.official_round_trip
        turned = turn_dipole(signal, turn_matrix(draws), system, residual=residual, present=present)
        return zero_parts(turned, draws.start, config.zero_share, views.lengths) * present[..., None]

    def forward(self, views: Views, rng: Tensor, *, process_group: ProcessGroup | None = None) -> Losses:
        """The loss of 2B views, see `Objective.forward`."""
        check_views(views, self.config.encoder, pairs=True)
        check_rng(rng, views.signal)
        keep = self.lead_keep(views, rng)
        encoded = self.encoder(self.augmented(views, rng), views.leads, lengths=views.lengths, keep=keep)
        z, pairs = self.head(self.embedding(encoded)), in_pairs(views)
        mean = ops.global_contrastive(
            z if pairs.order is None else z[pairs.order],
            None,
            pairs.patients,
            temperature=self.config.global_temperature,
            process_group=process_group,
            denominator="negatives",
        )
        size = z.shape[0]
        total = mean * _positives_per_row(pairs.patients, process_group) * size
        first, second = pairs.halves(z)
        group = pairs.patients[: size // 2]
        return Losses(total, size, {"global": total}, agreement(first[None], second[None], group))

    @classmethod
    def candidates(cls, n_rows: int) -> int:
        return n_rows - 1


def _positives_per_row(patients: Tensor, process_group: ProcessGroup | None) -> Tensor:
    """Mean number of positives of a row, among those of all ranks, each with equally many."""
    if process_group is not None:
        parts = [torch.empty_like(patients) for _ in range(dist.get_world_size(process_group))]
        dist.all_gather(parts, patients.contiguous(), group=process_group)
        patients = torch.cat(parts)
    same = patients[:, None] == patients[None]
    return same.sum() / patients.shape[0] - 1
