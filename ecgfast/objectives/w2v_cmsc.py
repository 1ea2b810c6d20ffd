"""W2V + CMSC + RLM: local and global contrastive learning with random lead masking.

Oh, Chung, Kwon, Hong, Choi, "Lead-agnostic Self-supervised Learning for Local and Global
Representations of Electrocardiogram", CHIL 2022 (arXiv 2203.06889).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.utils._pytree import _register_namedtuple
from typing_extensions import Self

from ecgfast import ops
from ecgfast.errors import EcgfastError
from ecgfast.nn.config import (
    EncoderConfig,
    check_flags,
    check_integers,
    check_numbers,
    config_from_dict,
)
from ecgfast.nn.encoder import Encoder, EncoderOutput, mean_tokens
from ecgfast.nn.pretrained import load_tensors, read_model, write_model
from ecgfast.nn.quantizer import Quantizer, QuantizerOutput, perplexity
from ecgfast.ops._dispatch import INTS, scalar

MODEL_TYPE = "ecgfast_w2v_cmsc"


@dataclass
class W2VCMSCConfig:
    """The pre-training model and its losses; the defaults are the paper's.

    Attributes:
        encoder: the encoder's architecture.
        final_dim: width D of predictions and targets.
        groups: codebook groups G.
        entries: entries V of each group.
        latent_dim: width of the quantised vectors, a multiple of `groups`.
        n_negatives: negatives K drawn for each masked token.
        mask_prob: share of tokens to mask, before overlaps.
        mask_length: tokens of a masked span.
        n_masked: masked tokens M of each segment; None: the fewest of the batch, as in the official
            code, which makes the shape depend on the draw and waits for the device.
        lead_mask_prob: probability that a lead is masked.
        keep_one_lead: never mask all leads of a segment.
        local_temperature: of the local loss.
        global_temperature: of the global loss.
        temperature: of the Gumbel-softmax: start, end, decay per step.
        diversity_weight: weight of the diversity loss.
        feature_penalty_weight: weight of the feature penalty.
        dropout_features: on the features that targets are made from.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    final_dim: int = 256
    groups: int = 2
    entries: int = 320
    latent_dim: int = 256
    n_negatives: int = 100
    mask_prob: float = 0.65
    mask_length: int = 10
    n_masked: int | None = None
    lead_mask_prob: float = 0.5
    keep_one_lead: bool = False
    local_temperature: float = 0.1
    global_temperature: float = 0.1
    temperature: tuple[float, float, float] = (2.0, 0.5, 0.999995)
    diversity_weight: float = 0.1
    feature_penalty_weight: float = 10.0
    dropout_features: float = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.encoder, EncoderConfig):
            self.encoder = config_from_dict(EncoderConfig, self.encoder, "encoder")
        check_integers(self, 1, "final_dim", "groups", "entries", "latent_dim", "n_negatives")
        check_integers(self, 1, "mask_length")
        if self.n_masked is not None:
            check_integers(self, 1, "n_masked")
        check_numbers(self, 0, 1, "mask_prob", "lead_mask_prob", "dropout_features")
        check_numbers(self, 1e-6, 1e6, "local_temperature", "global_temperature")
        check_numbers(self, 0, float("inf"), "diversity_weight", "feature_penalty_weight")
        check_flags(self, "keep_one_lead")
        if self.latent_dim % self.groups:
            raise EcgfastError(f"latent_dim {self.latent_dim} is no multiple of groups {self.groups}")
        try:
            start, end, decay = map(float, self.temperature)
        except (TypeError, ValueError):
            start = end = decay = math.nan
        if not (start >= end > 0 and 0 < decay <= 1):
            raise EcgfastError(
                f"temperature takes start >= end > 0 and a decay in (0, 1], got {self.temperature!r}"
            )
        self.temperature = (start, end, decay)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data for JSON."""
        return asdict(self)


@dataclass
class Draws:
    """Random choices of a step given from outside; what is None is drawn.

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


class Intermediates(NamedTuple):
    """What the losses were made from.

    Attributes:
        encoder: the encoder's output, of the masked segments.
        quantizer: the quantizer's output at the masked tokens.
        mask_index: [B, M], the masked tokens.
        predictions: [B, M, D].
        targets: [B, M, D].
        local: [B, M], the local loss of each token.
    """

    encoder: EncoderOutput
    quantizer: QuantizerOutput
    mask_index: Tensor
    predictions: Tensor
    targets: Tensor
    local: Tensor


class PretrainOutput(NamedTuple):
    """Losses of a batch, as sums over its masked tokens; divide by `sample_size` for a mean.

    Attributes:
        loss: 0-dim, the sum of the four terms below, each with its weight.
        local: local contrastive loss.
        diversity: diversity loss.
        feature_penalty: penalty on the size of the stem's output, padding left out unless
            `norm_padding`.
        global_: global contrastive loss.
        sample_size: number B * M of masked tokens.
        n_correct: 0-dim, masked tokens whose own target is nearest.
        code_perplexity: 0-dim, effective number of codes chosen without noise, all groups together.
        prob_perplexity: 0-dim, the same of the mean softmax.
        temperature: 0-dim, of the Gumbel-softmax.
        intermediates: None unless asked for.
        n_strict: 0-dim, masked tokens whose own target is nearer than every negative, where a token of
            other codes is there to be one: with collapsed targets `n_correct` counts all tokens, this
            one none.
    """

    loss: Tensor
    local: Tensor
    diversity: Tensor
    feature_penalty: Tensor
    global_: Tensor
    sample_size: int
    n_correct: Tensor
    code_perplexity: Tensor
    prob_perplexity: Tensor
    temperature: Tensor
    intermediates: Intermediates | None = None
    n_strict: Tensor | None = None


for _kind in (Intermediates, PretrainOutput):
    _register_namedtuple(_kind, serialized_type_name=f"ecgfast.objectives.{_kind.__name__}")


def gumbel_temperature(schedule: tuple[float, float, float], rng: Tensor) -> Tensor:
    """max(start * decay ** step, end) for the step in `rng`, computed on its device."""
    start, end, decay = schedule
    # In double precision: the decay is so near 1 that float32 loses its effect within an epoch.
    temperature = start * torch.exp(rng[1].double() * math.log(decay))
    return temperature.clamp(min=end).float()


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Tokens [B, M, C] of x [B, N, C] at index [B, M]."""
    return x.gather(1, index.long()[..., None].expand(-1, -1, x.shape[-1]))


def wide(x: Tensor) -> Tensor:
    """X in float32, or as it is in float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


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
    entry_sums = (wide(codebook) * weights).sum(-1)
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


class W2VCMSC(nn.Module):
    """The pre-training model: encoder, quantizer and the two projections of the local loss."""

    def __init__(self, config: W2VCMSCConfig | None = None) -> None:
        super().__init__()
        self.config = config = W2VCMSCConfig() if config is None else config
        self.encoder = Encoder(config.encoder)
        self.dropout_features = nn.Dropout(config.dropout_features)
        self.quantizer = Quantizer(
            config.encoder.stem_channels, config.groups, config.entries, config.latent_dim
        )
        self.project_q = nn.Linear(config.latent_dim, config.final_dim)
        self.final_proj = nn.Linear(config.encoder.width, config.final_dim)

    def forward(
        self,
        signal: Tensor,
        groups: Tensor,
        sample_ids: Tensor,
        rng: Tensor,
        *,
        lengths: Tensor | None = None,
        leads: Sequence[str] | None = None,
        segment: Tensor | None = None,
        draws: Draws | None = None,
        temperature: float | Tensor | None = None,
        intermediates: bool = False,
        process_group: ProcessGroup | None = None,
    ) -> PretrainOutput:
        """The losses of 2P segments.

        In evaluation mode targets are chosen without noise and nothing is dropped out; leads and
        tokens are masked as in training.

        Args:
            signal: [2P, L, T], float millivolts or int16 microvolts: rows 0..P-1 are the first
                segments of pairs, rows P..2P-1 the second.
            groups: [2P] integer, patient numbers: segments of one patient are positives.
            sample_ids: [2P] integer, a number for each segment that its random choices follow from.
            rng: [2] int64 of seed and step, on the signal's device (`ecgfast.ops.make_rng`).
            lengths: [2P] integer, samples of each segment before padding; None: all T.
            leads: names of the L leads; None: the encoder's own.
            segment: [2P], 0 for first and 1 for second segments, as many of each (not checked on
                a GPU, where it would wait for the device), in place of the order by halves.
            draws: random choices given from outside.
            temperature: of the Gumbel-softmax, positive; None: by the schedule from rng's step.
            intermediates: return what the losses were made from as well.
            process_group: contrast segments with those of all ranks of this group in the global
                loss (as many on each); None: within this process, as the official code does.

        Raises:
            EcgfastError: an argument of another shape, dtype or device than the one taken.
        """
        config = self.config
        draws = Draws() if draws is None else draws
        _check_batch(signal, groups, sample_ids, config.encoder)
        _check_step(signal, rng, segment, temperature)
        if temperature is None:
            temperature = gumbel_temperature(config.temperature, rng)
        elif not isinstance(temperature, Tensor):
            temperature = scalar(temperature, torch.float32, signal.device)

        keep = self._lead_keep(signal, sample_ids, rng, draws)
        index, mask = self._span_mask(signal, sample_ids, rng, lengths, draws)
        encoded = self.encoder(signal, leads, lengths=lengths, keep=keep, mask=mask)

        quantized = self.quantizer(
            self.dropout_features(gather_tokens(encoded.features, index)),
            temperature,
            rng=rng,
            sample_ids=sample_ids,
            noise=draws.gumbel_noise,
        )
        targets = self.project_q(quantized.quantized)
        predictions = self.final_proj(gather_tokens(encoded.tokens, index))
        drawn = draws.negative_index is None
        local, correct = ops.local_contrastive(
            predictions,
            targets,
            codes=quantized.codes,
            n_negatives=config.n_negatives,
            temperature=config.local_temperature,
            rng=rng if drawn else None,
            sample_ids=sample_ids if drawn else None,
            negative_index=draws.negative_index,
        )
        sample_size = index.shape[0] * index.shape[1]
        prob_perplexity = perplexity(quantized.mean_probs)
        n_codes = config.groups * config.entries
        diversity = config.diversity_weight * (n_codes - prob_perplexity) / n_codes
        penalty = config.feature_penalty_weight * self._mean_square(encoded)
        terms = (
            local.sum(),
            diversity * sample_size,
            penalty * sample_size,
            self._global_loss(encoded, groups, segment, process_group) * sample_size,
        )
        details = None
        if intermediates:
            details = Intermediates(encoded, quantized, index, predictions, targets, local)
        return PretrainOutput(
            terms[0] + terms[1] + terms[2] + terms[3],
            *terms,
            sample_size,
            correct.sum(),
            perplexity(quantized.usage),
            prob_perplexity,
            temperature,
            details,
            (correct & _told_apart(quantized.codes, self.quantizer.codebook, draws.negative_index)).sum(),
        )

    def _mean_square(self, encoded: EncoderOutput) -> Tensor:
        """Mean square of the stem's output; without padding where the encoder zeroes it."""
        squares = wide(encoded.stem).pow(2)
        if encoded.padding is None or self.config.encoder.norm_padding:
            return squares.mean()
        return squares.sum() / ((~encoded.padding).sum().clamp(min=1) * squares.shape[-1])

    def _lead_keep(self, signal: Tensor, sample_ids: Tensor, rng: Tensor, draws: Draws) -> Tensor | None:
        if draws.lead_keep is not None or self.config.lead_mask_prob == 0:
            return draws.lead_keep
        config = self.config
        return ops.lead_mask(
            sample_ids, signal.shape[1], config.lead_mask_prob, rng, keep_one=config.keep_one_lead
        )

    def _span_mask(
        self, signal: Tensor, sample_ids: Tensor, rng: Tensor, lengths: Tensor | None, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        config = self.config
        n = config.encoder.n_tokens(signal.shape[2])
        index = draws.mask_index
        if index is not None:
            if index.ndim != 2 or index.shape[0] != signal.shape[0]:
                raise EcgfastError(f"draws.mask_index: takes [{signal.shape[0]}, M], got {list(index.shape)}")
            mask = torch.zeros(signal.shape[0], n, dtype=torch.bool, device=signal.device)
            return index, mask.scatter(1, index.long(), True)
        if config.n_masked is not None and config.n_masked > n:
            raise EcgfastError(
                f"signal: {signal.shape[2]} samples make {n} tokens, n_masked is {config.n_masked}"
            )
        if lengths is not None:
            lengths = lengths.long() >> config.encoder.stem_layers
        return ops.span_mask(
            sample_ids,
            n,
            config.mask_prob,
            config.mask_length,
            rng,
            lengths=lengths,
            n_masked=config.n_masked,
        )

    def _global_loss(
        self,
        encoded: EncoderOutput,
        groups: Tensor,
        segment: Tensor | None,
        process_group: ProcessGroup | None,
    ) -> Tensor:
        z = wide(mean_tokens(encoded.tokens, encoded.padding))
        if segment is not None:
            # A stable sort puts first segments before second ones without a dynamic shape.
            order = segment.argsort(stable=True)
            z, groups = z[order], groups[order]
        pairs = z.shape[0] // 2
        return ops.global_contrastive(
            z[:pairs],
            z[pairs:],
            groups[:pairs],
            groups[pairs:],
            temperature=self.config.global_temperature,
            process_group=process_group,
        )

    def save_pretrained(self, folder: Path | str) -> None:
        """Write `model.safetensors` and `config.json` into a folder, made if need be."""
        write_model(folder, MODEL_TYPE, self.config.to_dict(), self)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Self:
        """The model of a folder, in evaluation mode.

        Raises:
            EcgfastError: the folder is absent, of another kind, or not consistent.
        """
        model_type, config, tensors = read_model(folder)
        if model_type != MODEL_TYPE:
            raise EcgfastError(f"{folder}: has model_type {model_type!r}, takes {MODEL_TYPE}")
        with torch.device("meta"):
            model = cls(config_from_dict(W2VCMSCConfig, config, f"{folder}/config.json"))
        load_tensors(model, tensors, folder)
        return model.eval()


def _check_batch(signal: Tensor, groups: Tensor, sample_ids: Tensor, config: EncoderConfig) -> None:
    if signal.ndim != 3 or config.n_tokens(signal.shape[2]) == 0:
        least = 1 << config.stem_layers
        raise EcgfastError(f"signal: takes [2P, L, T] with T >= {least}, got {list(signal.shape)}")
    batch = signal.shape[0]
    if batch % 2:
        raise EcgfastError(f"signal: takes pairs of segments, got {batch} segments")
    for name, x in (("groups", groups), ("sample_ids", sample_ids)):
        if tuple(x.shape) != (batch,) or x.dtype not in INTS:
            got = f"{list(x.shape)} {x.dtype}"
            raise EcgfastError(f"{name} must be [{batch}] of integers, got {got}")
        if x.device != signal.device:
            raise EcgfastError(f"{name}: is on {x.device}, the signal on {signal.device}")


def _check_step(
    signal: Tensor, rng: Tensor, segment: Tensor | None, temperature: float | Tensor | None
) -> None:
    if not isinstance(rng, Tensor):
        raise EcgfastError(f"rng: takes a tensor (ecgfast.ops.make_rng), got {type(rng).__name__}")
    if tuple(rng.shape) != (2,) or rng.dtype != torch.int64:
        raise EcgfastError(f"rng: takes [2] torch.int64, got {list(rng.shape)} {rng.dtype}")
    if rng.device != signal.device:
        raise EcgfastError(f"rng: is on {rng.device}, the signal on {signal.device}")
    if isinstance(temperature, Tensor):
        if temperature.ndim:
            raise EcgfastError(f"temperature: takes a 0-dim tensor, got {list(temperature.shape)}")
    elif temperature is not None and not 0 < temperature < math.inf:
        raise EcgfastError(f"temperature: takes a positive number, got {temperature}")
    if segment is not None:
        _check_segment(segment, signal)


def _check_segment(segment: Tensor, signal: Tensor) -> None:
    batch = signal.shape[0]
    if tuple(segment.shape) != (batch,):
        raise EcgfastError(f"segment: takes [{batch}], got {list(segment.shape)}")
    if segment.device != signal.device:
        raise EcgfastError(f"segment: is on {segment.device}, the signal on {signal.device}")
    # The values are read where that waits for no device and breaks no graph.
    if segment.device.type == "cpu" and not torch.compiler.is_compiling():
        counts = [int((segment == value).sum()) for value in (0, 1)]
        if counts != [batch // 2] * 2:
            raise EcgfastError(
                f"segment: takes {batch // 2} zeros and as many ones, got {counts[0]} and {counts[1]}"
            )
