"""What objectives are combined from: masks of leads and tokens, the local loss, the global loss.

A part is a base class of objectives. It brings its settings, its modules, which lie in the objective under
the names that model folders and converted checkpoints know, and methods that draw or compute its terms.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.utils._pytree import _register_namedtuple
from typing_extensions import Self

from ecgfast import ops
from ecgfast.errors import EcgfastError
from ecgfast.nn.config import EncoderConfig, check_flags, check_integers, check_numbers
from ecgfast.nn.encoder import EncoderOutput, mean_tokens
from ecgfast.nn.quantizer import Quantizer, QuantizerOutput, perplexity
from ecgfast.objectives.base import Losses, Metric, Objective, ObjectiveConfig, Panel, Size, Views, chance_of
from ecgfast.ops._dispatch import wide

LOSS = Metric("loss", Panel("Total loss", "sum of the terms"), "total", term=True, row=".4f")

# About what the paper's spans leave of 156 tokens at its batch size; fixed, so that shapes are static.
_N_MASKED = 64
_COLLAPSED = 1.5
"""Perplexity per codebook group below which targets count as collapsed; 1 is one code for all."""


@dataclass
class LeadMaskingConfig(ObjectiveConfig):
    """Random lead masking (RLM).

    Attributes:
        lead_mask_prob: probability that a lead is masked.
        keep_one_lead: never mask all leads of a segment.
    """

    lead_mask_prob: float = 0.0
    keep_one_lead: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, 0, 1, "lead_mask_prob")
        check_flags(self, "keep_one_lead")


class LeadMasking(Objective):
    """Masks each lead of a segment at random (Oh et al., CHIL 2022, section 3.3)."""

    config: LeadMaskingConfig

    def lead_keep(self, views: Views, rng: Tensor) -> Tensor | None:
        """The leads to keep, [B, L] bool; None: all."""
        config = self.config
        if config.lead_mask_prob == 0:
            return None
        n_leads = views.signal.shape[1]
        return ops.lead_mask(
            views.sample_ids, n_leads, config.lead_mask_prob, rng, keep_one=config.keep_one_lead
        )


@dataclass
class LocalConfig(LeadMaskingConfig):
    """The local loss of wav2vec 2.0; the defaults are the paper's.

    Attributes:
        final_dim: width D of predictions and targets.
        codebook_groups: groups G of the codebook.
        entries: entries V of each group.
        latent_dim: width of the quantised vectors, a multiple of `codebook_groups`.
        n_negatives: negatives K drawn for each masked token.
        mask_prob: share of tokens to mask, before overlaps.
        mask_length: tokens of a masked span.
        n_masked: masked tokens M of each segment; None: the fewest of the batch, as in the official
            code, which makes the shape depend on the draw and waits for the device.
        local_temperature: of the local loss.
        gumbel_temperature: of the Gumbel-softmax: start, end, decay per step.
        diversity_weight: weight of the diversity loss.
        feature_penalty_weight: weight of the feature penalty.
        dropout_features: on the features that targets are made from.
    """

    RENAMED: ClassVar[Mapping[str, str]] = {
        "groups": "codebook_groups",
        "temperature": "gumbel_temperature",
    }

    final_dim: int = 256
    codebook_groups: int = 2
    entries: int = 320
    latent_dim: int = 256
    n_negatives: int = 100
    mask_prob: float = 0.65
    mask_length: int = 10
    n_masked: int | None = None
    local_temperature: float = 0.1
    gumbel_temperature: tuple[float, float, float] = (2.0, 0.5, 0.999995)
    diversity_weight: float = 0.1
    feature_penalty_weight: float = 10.0
    dropout_features: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integers(self, 1, "final_dim", "codebook_groups", "entries", "latent_dim", "n_negatives")
        check_integers(self, 1, "mask_length")
        if self.n_masked is not None:
            check_integers(self, 1, "n_masked")
        check_numbers(self, 0, 1, "mask_prob", "dropout_features")
        check_numbers(self, 1e-6, 1e6, "local_temperature")
        check_numbers(self, 0, float("inf"), "diversity_weight", "feature_penalty_weight")
        if self.latent_dim % self.codebook_groups:
            raise EcgfastError(
                f"latent_dim {self.latent_dim} is no multiple of codebook_groups {self.codebook_groups}"
            )
        try:
            start, end, decay = map(float, self.gumbel_temperature)
        except (TypeError, ValueError):
            start = end = decay = math.nan
        if not (start >= end > 0 and 0 < decay <= 1):
            raise EcgfastError(
                "gumbel_temperature takes start >= end > 0 and a decay in (0, 1], "
                f"got {self.gumbel_temperature!r}"
            )
        self.gumbel_temperature = (start, end, decay)

    @classmethod
    def sized(cls, size: Size, encoder: EncoderConfig) -> Self:
        if size == "paper":
            return cls(encoder=encoder)
        if size == "small":
            return cls(encoder=encoder, n_masked=_N_MASKED)
        # Few codes and no dropout learn faster in the first minutes.
        return cls(
            encoder=encoder,
            final_dim=64,
            latent_dim=64,
            entries=16,
            n_masked=_N_MASKED,
            dropout_features=0.0,
        )

    def check_segment(self, n_samples: int) -> None:
        """Masks must leave tokens as context, and give a masked one others as negatives."""
        super().check_segment(n_samples)
        tokens = self.encoder.n_tokens(n_samples)
        if tokens < (self.n_masked or 1):
            raise EcgfastError(
                f"segment_samples: got {n_samples}, which make {tokens} tokens; at least "
                f"{self.n_masked} are taken (model.n_masked)"
            )
        if self.n_masked == 1:
            raise EcgfastError(
                "model.n_masked: got 1; a masked token alone has no negatives, so at least 2 are taken"
            )
        if self.n_masked == tokens:
            raise EcgfastError(
                f"model.n_masked: got {self.n_masked}, all tokens of {n_samples} samples; fewer are "
                "taken, which leave some as context"
            )
        if self.n_masked is None and self.mask_length >= tokens:
            raise EcgfastError(
                f"model.mask_length: got {self.mask_length}; fewer than {tokens} are taken (the tokens of "
                f"{n_samples} samples), or model.n_masked beside it"
            )


class LocalDetails(NamedTuple):
    """What the local loss was made from.

    Attributes:
        encoder: the encoder's output, of the masked segments.
        quantizer: the quantizer's output at the masked tokens.
        mask_index: [B, M], the masked tokens.
        predictions: [B, M, D].
        targets: [B, M, D].
        each: [B, M], the local loss of each token.
    """

    encoder: EncoderOutput
    quantizer: QuantizerOutput
    mask_index: Tensor
    predictions: Tensor
    targets: Tensor
    each: Tensor


class LocalLosses(NamedTuple):
    """Terms and counts of the local loss of M masked tokens in each of B segments, as sums over them.

    Attributes:
        size: B * M.
        terms: `local`, `diversity`, `feature_penalty`, 0-dim each, with their weights.
        counts: `n_correct`, masked tokens whose own target is nearest; `n_strict`, those whose own target
            is nearer than every negative, where a token of other codes is there to be one (with collapsed
            targets `n_correct` counts all tokens, this one none); `strict_size`, B * M; `code_perplexity`,
            effective number of codes chosen without noise, all groups together; `prob_perplexity`, the same
            of the mean softmax; `temperature` of the Gumbel-softmax.
        details: what they were made from.
    """

    size: int
    terms: dict[str, Tensor]
    counts: dict[str, Tensor | float]
    details: LocalDetails


for _kind in (LocalDetails, LocalLosses):
    _register_namedtuple(_kind, serialized_type_name=f"ecgfast.objectives.{_kind.__name__}")


def temperature_at(schedule: tuple[float, float, float], rng: Tensor) -> Tensor:
    """max(start * decay ** step, end) for the step in `rng`, computed on its device."""
    start, end, decay = schedule
    # In double precision: the decay is so near 1 that float32 loses its effect within an epoch.
    temperature = start * torch.exp(rng[1].double() * math.log(decay))
    return temperature.clamp(min=end).float()


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Tokens [B, M, C] of x [B, N, C] at index [B, M]."""
    return x.gather(1, index.long()[..., None].expand(-1, -1, x.shape[-1]))


class Local(LeadMasking):
    """The local loss: masked tokens are told from others by their quantised targets.

    In evaluation mode targets are chosen without noise and nothing is dropped out; tokens are masked as in
    training. Source: Baevski et al., wav2vec 2.0, section 2; Oh et al., CHIL 2022, section 3.1.
    """

    config: LocalConfig

    def __init__(self, config: LocalConfig | None = None) -> None:
        super().__init__(config)
        config = self.config
        self.dropout_features = nn.Dropout(config.dropout_features)
        self.quantizer = Quantizer(
            config.encoder.stem_channels, config.codebook_groups, config.entries, config.latent_dim
        )
        self.project_q = nn.Linear(config.latent_dim, config.final_dim)
        self.final_proj = nn.Linear(config.encoder.width, config.final_dim)

    def span_mask(self, views: Views, rng: Tensor) -> tuple[Tensor, Tensor]:
        """The masked tokens of each segment, [B, M] in ascending order, and the same as bool [B, N]."""
        config, signal, lengths = self.config, views.signal, views.lengths
        n = config.encoder.n_tokens(signal.shape[2])
        if config.n_masked is not None and config.n_masked > n:
            raise EcgfastError(
                f"signal: {signal.shape[2]} samples make {n} tokens, n_masked is {config.n_masked}"
            )
        if lengths is not None:
            lengths = lengths.long() >> config.encoder.stem_layers
        return ops.span_mask(
            views.sample_ids,
            n,
            config.mask_prob,
            config.mask_length,
            rng,
            lengths=lengths,
            n_masked=config.n_masked,
        )

    def gumbel_draws(self, views: Views, rng: Tensor) -> dict[str, Tensor]:
        """What `Quantizer.forward` takes its noise from."""
        return {"rng": rng, "sample_ids": views.sample_ids}

    def negative_draws(self, views: Views, rng: Tensor) -> dict[str, Tensor]:
        """What `ecgfast.ops.local_contrastive` takes its negatives from."""
        return {"rng": rng, "sample_ids": views.sample_ids}

    def local_losses(
        self, encoded: EncoderOutput, mask_index: Tensor, views: Views, rng: Tensor
    ) -> LocalLosses:
        """The terms of segments that were encoded with the tokens at `mask_index` [B, M] masked."""
        config = self.config
        temperature = temperature_at(config.gumbel_temperature, rng)
        quantized = self.quantizer(
            self.dropout_features(gather_tokens(encoded.features, mask_index)),
            temperature,
            **self.gumbel_draws(views, rng),
        )
        targets = self.project_q(quantized.quantized)
        predictions = self.final_proj(gather_tokens(encoded.tokens, mask_index))
        negatives = self.negative_draws(views, rng)
        each, correct = ops.local_contrastive(
            predictions,
            targets,
            codes=quantized.codes,
            n_negatives=config.n_negatives,
            temperature=config.local_temperature,
            **negatives,
        )
        size = mask_index.shape[0] * mask_index.shape[1]
        prob_perplexity = perplexity(quantized.mean_probs)
        n_codes = config.codebook_groups * config.entries
        diversity = config.diversity_weight * (n_codes - prob_perplexity) / n_codes
        penalty = config.feature_penalty_weight * self._mean_square(encoded)
        strict = correct & _told_apart(
            quantized.codes, self.quantizer.codebook, negatives.get("negative_index")
        )
        return LocalLosses(
            size,
            {"local": each.sum(), "diversity": diversity * size, "feature_penalty": penalty * size},
            {
                "n_correct": correct.sum(),
                "n_strict": strict.sum(),
                "strict_size": size,
                "code_perplexity": perplexity(quantized.usage),
                "prob_perplexity": prob_perplexity,
                "temperature": temperature,
            },
            LocalDetails(encoded, quantized, mask_index, predictions, targets, each),
        )

    def _mean_square(self, encoded: EncoderOutput) -> Tensor:
        """Mean square of the stem's output; without padding where the encoder zeroes it."""
        stem = encoded.stem
        squares = stem.to(wide(stem.dtype)).pow(2)
        if encoded.padding is None or self.config.encoder.norm_padding:
            return squares.mean()
        return squares.sum() / ((~encoded.padding).sum().clamp(min=1) * squares.shape[-1])

    @classmethod
    def local_metrics(cls, config: LocalConfig) -> tuple[tuple[Metric, ...], tuple[Metric, ...]]:
        """The metrics of the terms, and the others."""
        k = config.n_negatives
        n_codes = config.codebook_groups * config.entries
        found = Panel("Masked tokens found among negatives", "share")
        guess = (1 / (k + 1), f"1/{k + 1}")
        codes = Panel("Codebook perplexity", "entries in use, all groups")
        terms = (
            Metric(
                "local",
                Panel("Local loss (W2V)", "nats per masked token"),
                "local",
                term=True,
                bar="local {:.3f}",
                row=".4f",
                chance=chance_of(k + 1),
            ),
            Metric(
                "diversity",
                Panel("Diversity loss", "with its weight"),
                "diversity",
                term=True,
                bar="diversity {:.4f}",
                row=".4f",
            ),
            Metric(
                "feature_penalty",
                Panel("Feature penalty", "with its weight"),
                "feature_penalty",
                term=True,
                bar="penalty {:.3f}",
                row=".4f",
            ),
        )
        others = (
            Metric(
                "accuracy",
                found,
                "n_correct",
                legend="official count",
                row=".1%",
                note="of masked tokens told from their negatives",
                chance=guess,
            ),
            Metric(
                "accuracy_strict",
                found,
                "n_strict",
                "strict_size",
                legend="ties are no success",
                bar="accuracy {:.1%}",
                row=".1%",
                note="without ties, of those with a negative",
            ),
            Metric(
                "code_perplexity",
                codes,
                "code_perplexity",
                "batches",
                legend="chosen codes",
                bar=f"perplexity {{:.1f}} of {n_codes}",
            ),
            Metric("prob_perplexity", codes, "prob_perplexity", "batches", legend="mean probabilities"),
            Metric(
                "temperature",
                Panel("Gumbel-softmax temperature", "mean of the batches"),
                "temperature",
                "batches",
            ),
        )
        return terms, others

    @classmethod
    def local_troubles(
        cls, config: LocalConfig, point: Mapping[str, float], *, settled: bool
    ) -> dict[str, str]:
        """Targets that collapse, and a local loss without negatives: see `Objective.troubles`."""
        told = {}
        if point["local"] == 0 and point["accuracy_strict"] == 0:
            told["negatives"] = (
                "no masked token has a negative that differs from its target, so the local loss is 0 and "
                "can't fall: all targets of a segment have the same codes (the accuracy of 100 % is the "
                "official count)"
            )
        per_group = point["code_perplexity"] / config.codebook_groups
        if settled and per_group < _COLLAPSED:
            told["collapse"] = (
                f"the targets collapse: their perplexity is {per_group:.2f} of {config.entries} codes per "
                "group (1: one code for all); a higher model.diversity_weight, a lower optim.lr or more "
                "optim.warmup_steps may help, in a new run folder"
            )
        return told

    @classmethod
    def batch_troubles(
        cls, config: LocalConfig, losses: Losses, n_rows: int, n_samples: int
    ) -> dict[str, str]:
        """Masks that leave no context or no negatives: see `Objective.batch_troubles`."""
        n_tokens, n_masked = config.encoder.n_tokens(n_samples), int(losses.size) // n_rows
        if n_masked >= n_tokens:
            what = f"all {n_tokens} tokens of a batch's segments are masked: there is no context left"
            return {"masks": f"{what}; take a lower model.mask_prob or set model.n_masked"}
        if n_masked < 2:
            what = f"{n_masked} tokens of each segment of a batch are masked: they have no negatives"
            return {"masks": f"{what}; take a higher model.mask_prob or set model.n_masked"}
        return {}


@torch.no_grad()
def _told_apart(codes: Tensor, codebook: Tensor, negative_index: Tensor | None) -> Tensor:
    """Masked tokens that have a negative, and whose own vector is no negative's: bool [B, M].

    A negative is a token with other codes [B, M, G], as equal ones are left out of the loss: of those at
    `negative_index` [B, M, K] or, where they are drawn within the loss, of the whole segment. The loss can't
    tell: it is 0 without negatives, but also where the predictions are so good that it underflows. Equal
    entries of the codebook [G, V, D] make equal vectors; the targets, which are projections, may differ by
    rounding.
    """
    groups, entries, width = codebook.shape
    # Equal entries have equal sums; other ones practically never.
    weights = torch.sin(torch.arange(1, width + 1, device=codebook.device) ** 2 * 0.7)
    entry_sums = (codebook.to(wide(codebook.dtype)) * weights).sum(-1)
    sums = code = torch.zeros_like(codes[..., 0], dtype=torch.int64)
    for group in range(groups):
        chosen = codes[..., group].long()
        sums = sums + (group + 1) * entry_sums[group][chosen]
        code = code * entries + chosen

    def of_negatives(x: Tensor) -> Tensor:
        if negative_index is None:
            return x[:, None]
        return x.gather(1, negative_index.long().flatten(1)).view(negative_index.shape)

    other = of_negatives(code) != code[..., None]
    ties = other & (of_negatives(sums) == sums[..., None])
    return other.any(-1) & ~ties.any(-1)


@dataclass
class GlobalConfig(LeadMaskingConfig):
    """The global loss.

    Attributes:
        global_temperature: divides the cosines.
        official_token_mean: average over the tokens in which a component is not zero, as FS does, rather than
            over all tokens of a segment.
    """

    global_temperature: float = 0.1
    official_token_mean: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, 1e-6, 1e6, "global_temperature")
        check_flags(self, "official_token_mean")


class Global(LeadMasking):
    """The global loss (CMSC): adjacent segments of a patient attract, those of other patients repel.

    Source: Kiyasseh et al., CLOCS, ICML 2021, equation 2; Oh et al., CHIL 2022, section 3.2.
    """

    config: GlobalConfig

    def embedding(self, encoded: EncoderOutput) -> Tensor:
        """The mean token of each segment, [B, E]."""
        z = mean_tokens(encoded.tokens, encoded.padding, nonzero=self.config.official_token_mean)
        return z.to(wide(z.dtype))

    def global_loss(self, encoded: EncoderOutput, views: Views, process_group: ProcessGroup | None) -> Tensor:
        """The loss of pairs, 0-dim: a mean over positives."""
        z, patients = self.embedding(encoded), views.patients
        if views.segment is not None:
            # A stable sort puts first segments before second ones without a dynamic shape.
            order = views.segment.argsort(stable=True)
            z, patients = z[order], patients[order]
        pairs = z.shape[0] // 2
        return ops.global_contrastive(
            z[:pairs],
            z[pairs:],
            patients[:pairs],
            patients[pairs:],
            temperature=self.config.global_temperature,
            process_group=process_group,
        )

    @classmethod
    def global_metrics(cls, n_rows: int | None) -> tuple[Metric, ...]:
        """The metric of the loss of n_rows / 2 pairs."""
        chance = chance_of(None if n_rows is None else n_rows // 2)
        panel = Panel("Global loss (CMSC)", "nats")
        bar = "global {:.3f}"
        return (Metric("global", panel, "global", term=True, bar=bar, row=".4f", chance=chance),)

    @classmethod
    def global_weaknesses(cls, n_rows: int) -> list[str]:
        """A pair without others: see `Objective.weaknesses`."""
        if n_rows > 2:
            return []
        return [
            "batch_pairs is 1: a pair alone has no other patient, so the global loss is 0 and teaches "
            "nothing; take batch_pairs of at least 2 (or several processes and global_batch)"
        ]
