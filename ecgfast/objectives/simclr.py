"""SimCLR: two noisy views of a segment attract each other."""

from dataclasses import dataclass

from torch import Tensor
from torch.distributed import ProcessGroup

from ecgfast import ops
from ecgfast.nn.config import check_flags, check_numbers
from ecgfast.objectives.augment import (
    NoiseConfig,
    add_noise,
    draw_noise,
    in_millivolts,
    lead_system,
    present_leads,
)
from ecgfast.objectives.base import Losses, Views, check_rng, check_views
from ecgfast.objectives.contrast import Projected, ProjectedConfig, agreement, in_pairs


@dataclass
class SimCLRConfig(ProjectedConfig):
    """Contrast of noisy views; the defaults are those of FS's `simclr_augs`.

    Attributes:
        lead_mask_prob: probability that a lead of a view is masked.
        noise_amplitude: largest amplitude of each noise, millivolts.
        powerline_prob: probability of mains hum in a view.
        emg_prob: of muscle noise.
        baseline_wander_prob: of slow drift.
        baseline_shift_prob: of a step of the baseline.
        official_baseline_shift: draw the step as FS does, +-1 mV minus the amplitude rather than times it.
    """

    lead_mask_prob: float = 0.5
    noise_amplitude: float = 0.1
    powerline_prob: float = 1.0
    emg_prob: float = 1.0
    baseline_wander_prob: float = 1.0
    baseline_shift_prob: float = 1.0
    official_baseline_shift: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, 0, 1e3, "noise_amplitude")
        check_numbers(self, 0, 1, "powerline_prob", "emg_prob", "baseline_wander_prob", "baseline_shift_prob")
        check_flags(self, "official_baseline_shift")

    @property
    def noise(self) -> NoiseConfig:
        """What noise is drawn."""
        return NoiseConfig(
            self.noise_amplitude,
            self.powerline_prob,
            self.emg_prob,
            self.baseline_wander_prob,
            self.baseline_shift_prob,
            self.official_baseline_shift,
        )


class SimCLR(Projected):
    """NT-Xent: each of 2B noisy views finds the other one of its segment among 2B - 1.

    With z_i the mean token of view i (after the head, if there is one), s_ij = cos(z_i, z_j) / tau and p(i)
    the other view of i's segment::

        loss = -1 / 2B sum_i log(exp(s_ip(i)) / sum_{j != i} exp(s_ij))

    A view is the segment with mains hum, muscle noise, baseline wander and shift, of which some leads are
    masked. Other segments of the patient are negatives. An absent lead stays absent.

    Source: Chen et al., A simple framework for contrastive learning of visual representations, ICML 2020,
    equation 1; noises and tau = 0.1 as in FS, `simclr_criterion.py` and `augmentations.py`, which has no head
    (`projection_dim`).
    """

    Config = SimCLRConfig
    model_type = "ecgfast_simclr"
    plan = "two_views"
    title = "SimCLR"

    config: SimCLRConfig

    def augmented(self, views: Views, rng: Tensor) -> Tensor:
        """The signal of the views, [2B, L, T] in millivolts."""
        signal = in_millivolts(views.signal)
        system = lead_system(self.config.encoder.leads if views.leads is None else views.leads)
        draws = draw_noise(rng, views.sample_ids, signal.shape[2], self.config.noise, views.lengths)
        noisy = add_noise(signal, draws, system.mix(signal))
        return noisy * present_leads(views.signal, views.lengths)[..., None]

    def forward(self, views: Views, rng: Tensor, *, process_group: ProcessGroup | None = None) -> Losses:
        """The loss of 2B views, see `Objective.forward`."""
        check_views(views, self.config.encoder, pairs=True)
        check_rng(rng, views.signal)
        keep = self.lead_keep(views, rng)
        encoded = self.encoder(self.augmented(views, rng), views.leads, lengths=views.lengths, keep=keep)
        z, pairs = self.head(self.embedding(encoded)), in_pairs(views)
        loss = ops.global_contrastive(
            z if pairs.order is None else z[pairs.order],
            None,
            pairs.first.repeat(2),
            temperature=self.config.global_temperature,
            process_group=process_group,
        )
        size = z.shape[0]
        first, second = pairs.halves(z)
        total = loss * size
        return Losses(total, size, {"global": total}, agreement(first[None], second[None], pairs.first))

    @classmethod
    def candidates(cls, n_rows: int) -> int:
        return n_rows - 1
