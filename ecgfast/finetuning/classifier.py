"""An encoder with a linear head: what is fine-tuned, and what predicts."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F
from typing_extensions import Self

from ecgfast.errors import EcgfastError
from ecgfast.finetuning.arcface import arcface_logits, check_arcface, unit_vectors
from ecgfast.leads import lead_indices
from ecgfast.nn import Encoder, EncoderConfig, mean_tokens
from ecgfast.nn.config import check_integers, check_numbers, config_from_dict
from ecgfast.nn.pretrained import WEIGHTS, load_tensors, read_model, write_model
from ecgfast.objectives.base import Losses, Metric, Panel
from ecgfast.ops import lead_mask

MODEL_TYPE = "ecgfast_classifier"
FREEZES = ("stem", "encoder", "none")
TASKS = ("classification", "regression", "identification")

_LOSS = Panel("Loss", "per known target")


class LabelledBatch(NamedTuple):
    """B segments with their targets.

    Attributes:
        signal: [B, L, T], int16 microvolts or float millivolts, leads as in `ClassifierConfig.leads`.
        targets: float [B, K]; NaN: unknown, it counts in no sum. Of identification int64 [B], numbers of
            identities.
        lengths: int64 [B], samples of each row; None: all T.
        sample_ids: int64 [B], what each row's random leads follow from; None: no lead is masked.
    """

    signal: Tensor
    targets: Tensor
    lengths: Tensor | None = None
    sample_ids: Tensor | None = None


@dataclass
class ClassifierConfig:
    """What a classifier is, besides its weights.

    Attributes:
        encoder: its encoder.
        names: of the K classes or quantities; none for identification.
        task: "classification", a probability for each class, "regression", numbers, or "identification", unit
            embeddings that are alike for recordings of one person.
        leads: that it takes, in this order; the encoder's others count as zero.
        segment_samples: T, samples of a window at 500 Hz; longer recordings are averaged over theirs.
        freeze: what is not trained: "stem" (the convolutions, as in the paper), "encoder" or "none".
        mean: [K], of the targets of regression, in their unit; the head gives (target - mean) / std.
        std: [K], likewise.
        positive_weights: [K], factors on the loss where a class is present; empty: 1.
        identities: that identification was trained to tell apart; 0 for other tasks.
        arcface_scale: factor on the cosines of identification.
        arcface_margin: angle that it adds to that of the own identity, in radians.
        lead_mask_prob: probability with which a lead of a segment is masked in training.
        preprocessing: of the store that it was trained on, as `store.json` has it.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    names: tuple[str, ...] = ("target",)
    task: Literal["classification", "regression", "identification"] = "classification"
    leads: tuple[str, ...] = ()
    segment_samples: int = 2500
    freeze: Literal["stem", "encoder", "none"] = "stem"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    positive_weights: tuple[float, ...] = ()
    identities: int = 0
    arcface_scale: float = 192.0
    arcface_margin: float = 1.0
    lead_mask_prob: float = 0.0
    preprocessing: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.encoder, EncoderConfig):
            self.encoder = config_from_dict(EncoderConfig, self.encoder, "encoder")
        self.names = tuple(self.names)
        if self.task not in TASKS:
            raise EcgfastError(f"task: must be {' or '.join(TASKS)}, got {self.task!r}")
        self._check_outputs()
        if self.freeze not in FREEZES:
            raise EcgfastError(f"freeze: must be {', '.join(FREEZES)}, got {self.freeze!r}")
        self.leads = check_leads(tuple(self.leads) or self.encoder.leads, self.encoder)
        check_integers(self, 1 << self.encoder.stem_layers, "segment_samples")
        check_numbers(self, 0, 1, "lead_mask_prob")
        regression = self.task == "regression"
        for name, least in (("mean", -math.inf), ("std", 0.0), ("positive_weights", 0.0)):
            values = tuple(getattr(self, name))
            setattr(self, name, values)
            weighted = bool(values) and self.task == "classification"
            wanted = weighted if name == "positive_weights" else regression
            good = all(
                isinstance(v, int | float) and math.isfinite(v) and (v > least or name == "mean")
                for v in values
            )
            if len(values) != (len(self.names) if wanted else 0) or not good:
                what = f"{len(self.names)} numbers" if wanted else "empty"
                raise EcgfastError(f"{name}: must be {what} for {self.task}, got {list(values)}")

    def _check_outputs(self) -> None:
        """Refuse names or identities that are not the task's."""
        identification = self.task == "identification"
        check_integers(self, 2 if identification else 0, "identities")
        check_arcface(self.arcface_scale, self.arcface_margin)
        if identification:
            if self.names:
                raise EcgfastError(f"names: must be none for identification, got {list(self.names)}")
            return
        if not self.names or len(set(self.names)) < len(self.names):
            raise EcgfastError(f"names: must be one or more, each once, got {list(self.names)}")
        if self.identities:
            raise EcgfastError(f"identities: must be 0 for {self.task}, got {self.identities}")

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data for JSON."""
        return asdict(self)


def check_leads(leads: Sequence[str], encoder: EncoderConfig) -> tuple[str, ...]:
    """The encoder's own names of some of its leads.

    Raises:
        EcgfastError: an unknown lead, one named twice, or none of the encoder's.
    """
    own = lead_indices(encoder.leads)
    for name, lead in zip(leads, lead_indices(leads), strict=True):
        if lead not in own:
            raise EcgfastError(f"leads: must be of the encoder's, {', '.join(encoder.leads)}, got {name!r}")
    return tuple(encoder.leads[own.index(lead)] for lead in lead_indices(leads))


class Classifier(nn.Module):
    """An encoder, the mean over its tokens, and a linear head.

    As in Oh et al., CHIL 2022, section 4: the head is Xavier-initialised with zero bias, its loss is the
    binary cross-entropy of each class; for regression it is the squared error of the standardised target. For
    identification the head is a direction for each identity, and the loss the cross-entropy of ArcFace.

    Args:
        config: what it is.
        encoder: the weights to start from; None: random ones.
    """

    def __init__(self, config: ClassifierConfig, encoder: Encoder | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder)
        if encoder is not None:
            load_tensors(self.encoder, encoder.state_dict(), "encoder", assign=False)
        identification = config.task == "identification"
        n_outputs = config.identities if identification else len(config.names)
        self.head = nn.Linear(config.encoder.width, n_outputs, bias=not identification)
        nn.init.xavier_uniform_(self.head.weight)
        if not identification:
            nn.init.zeros_(self.head.bias)
        for name in ("mean", "std", "positive_weights"):
            values = getattr(config, name)
            constant = torch.tensor(values, dtype=torch.float32, device="cpu") if values else None
            self.register_buffer(name, constant, persistent=False)
        # DDP would wait for gradients that never come.
        self.encoder.mask_token.requires_grad_(False)
        frozen = {"stem": self.encoder.stem, "encoder": self.encoder}.get(config.freeze)
        if frozen is not None:
            frozen.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """As of any module; a frozen encoder has no dropout."""
        super().train(mode)
        if self.config.freeze == "encoder":
            self.encoder.eval()
        return self

    def pooled(
        self,
        signal: Tensor,
        lengths: Tensor | None = None,
        leads: Sequence[str] | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """The mean over the tokens of segments [B, L, T]: [B, E].

        `leads` names those of the signal, of the encoder's; None: the classifier's. Those that `keep` [B, L]
        does not keep count as zero.
        """
        leads = self.config.leads if leads is None else tuple(leads)
        with torch.no_grad() if self.config.freeze == "encoder" else nullcontext():
            output = self.encoder(signal, leads, lengths=lengths, keep=keep)
            return mean_tokens(output.tokens, output.padding)

    def logits(
        self, signal: Tensor, lengths: Tensor | None = None, leads: Sequence[str] | None = None
    ) -> Tensor:
        """What the head gives for segments [B, L, T]: [B, K], before any sigmoid or scaling.

        `leads` are as for `pooled`.
        """
        return self.head(self.pooled(signal, lengths, leads))

    def check_tells(self) -> None:
        """Raise `EcgfastError` if it tells neither classes nor numbers, but whose a recording is."""
        if self.config.task == "identification":
            raise EcgfastError(
                "MODEL: must tell classes or numbers to predict, got one of identification: `embed` gives "
                "its unit embeddings"
            )

    def outputs(self, logits: Tensor) -> Tensor:
        """Probabilities, or quantities in the targets' unit."""
        logits = logits.float()
        if self.config.task == "classification":
            return logits.sigmoid()
        return logits * self.std + self.mean

    def forward(
        self, batch: LabelledBatch, rng: Tensor, *, process_group: ProcessGroup | None = None
    ) -> Losses:
        """The losses of a batch, as sums over the targets that are known.

        Args:
            batch: segments and targets.
            rng: of the update, which the masked leads follow from.
            process_group: unused: no loss compares rows.
        """
        keep, p = None, self.config.lead_mask_prob
        if self.training and p > 0 and batch.sample_ids is not None:
            keep = lead_mask(batch.sample_ids, batch.signal.shape[1], p, rng, keep_one=True)
        pooled = self.pooled(batch.signal, batch.lengths, keep=keep)
        if self.config.task == "identification":
            return self._identity_losses(pooled, batch.targets)
        logits = self.head(pooled).float()
        known = ~batch.targets.isnan()
        # Not multiplied by zero: 0 * NaN would be NaN.
        targets = torch.where(known, batch.targets, 0.0).to(logits.dtype)
        if self.config.task == "classification":
            each = F.binary_cross_entropy_with_logits(
                logits, targets, reduction="none", pos_weight=self.positive_weights
            )
            right = (logits > 0) == (targets > 0.5)
            counts = {"n_correct": (right & known).sum()}
        else:
            each = (logits - (targets - self.mean) / self.std) ** 2
            error = (logits * self.std + self.mean - targets).abs()
            counts = {"absolute_error": torch.where(known, error, 0.0).detach().sum()}
        total = torch.where(known, each, 0.0).sum()
        return Losses(total, known.sum(), {}, counts)

    def _identity_losses(self, pooled: Tensor, identities: Tensor) -> Losses:
        logits, cosines = arcface_logits(
            pooled,
            self.head.weight,
            identities,
            scale=self.config.arcface_scale,
            margin=self.config.arcface_margin,
        )
        total = F.cross_entropy(logits, identities, reduction="sum")
        right = cosines.detach().argmax(dim=1) == identities
        return Losses(total, len(identities), {}, {"n_correct": right.sum()})

    def after_update(self, rng: Tensor) -> None:
        """Nothing follows an update."""

    @classmethod
    def metrics(cls, config: ClassifierConfig) -> tuple[Metric, ...]:
        """The metrics of a log point, "loss" first."""
        loss = Metric("loss", _LOSS, "total", term=True, legend="training", bar="loss {:.3f}", row=".4f")
        if config.task == "identification":
            loss = loss._replace(panel=Panel("Loss", "per segment"))
            right = Panel("Accuracy", "share of segments nearest to their own identity")
            return loss, Metric("accuracy", right, "n_correct", legend="training", row=".4f")
        if config.task == "classification":
            right = Panel("Accuracy", "share of known labels")
            return loss, Metric("accuracy", right, "n_correct", legend="training", row=".4f")
        error = Panel("Mean absolute error", "in the target's unit")
        return loss, Metric("mae", error, "absolute_error", legend="training", bar="MAE {:.3g}", row=".4f")

    def learning_rate_scales(self, decay: float) -> dict[str, float]:
        """A factor on the learning rate for each parameter, by name.

        The head has 1, the last transformer layer `decay`, the one before it `decay` squared, and so on;
        what comes before the layers, once more. (Clark et al., ELECTRA, ICLR 2020, appendix.)
        """
        n = self.config.encoder.layers
        scales = {}
        for name, _ in self.named_parameters():
            parts = name.split(".")
            if parts[0] == "head":
                depth = 0
            elif parts[1:3] == ["transformer", "layers"]:
                depth = n - int(parts[3])
            else:
                # A norm after the layers goes with the last one.
                last = self.config.encoder.norm_first and parts[1:3] == ["transformer", "norm"]
                depth = 1 if last else n + 1
            scales[name] = decay**depth
        return scales

    def predict(
        self, signal: np.ndarray | Tensor, leads: Sequence[str] | None = None, *, batch_size: int = 64
    ) -> np.ndarray:
        """Probabilities, or quantities in the targets' unit, averaged over a recording's windows.

        Args:
            signal: [n, L, T] or [L, T], int16 microvolts or float millivolts, at 500 Hz.
            leads: names of the L leads in the signal's order; those that the classifier was not trained on
                are left out; its others count as zero. None: the classifier's own.
            batch_size: windows at a time.

        Returns:
            float32 [n, K]; n is 1 for [L, T].

        Raises:
            EcgfastError: a signal of another shape or dtype, none of the leads is the classifier's, or a
                model of identification, which gives embeddings.
        """
        self.check_tells()
        mean = self._mean_over_windows(
            signal, leads, batch_size, lambda *window: self.outputs(self.logits(*window))
        )
        return mean.float().numpy()

    def embed(
        self, signal: np.ndarray | Tensor, leads: Sequence[str] | None = None, *, batch_size: int = 64
    ) -> np.ndarray:
        """Unit embeddings, whose products are cosines: of one person's recordings they are near 1.

        That of a recording is the mean of its windows' unit vectors, brought to norm 1.

        Args:
            signal, leads, batch_size: as for `predict`.

        Returns:
            float32 [n, E]; n is 1 for [L, T].

        Raises:
            EcgfastError: as `predict`, but any model embeds.
        """
        mean = self._mean_over_windows(
            signal, leads, batch_size, lambda *window: unit_vectors(self.pooled(*window))
        )
        return unit_vectors(mean).float().numpy()

    @torch.no_grad()
    def _mean_over_windows(
        self,
        signal: np.ndarray | Tensor,
        leads: Sequence[str] | None,
        batch_size: int,
        compute: Callable[[Tensor, Tensor | None, Sequence[str]], Tensor],
    ) -> Tensor:
        """The mean of what is computed from windows, their lengths and leads: float64 [n, ...]."""
        whole, names = self._chosen(signal, leads)
        window, device = self.config.segment_samples, self.head.weight.device
        starts, lengths = window_bounds(whole.shape[2], window)
        was_training = self.training
        self.eval()
        sums = []
        try:
            for i in range(0, len(whole), batch_size):
                total = torch.zeros((), dtype=torch.float64)
                for start, length in zip(starts, lengths, strict=True):
                    part = whole[i : i + batch_size, :, start : start + length].to(device)
                    padded = F.pad(part, (0, window - length)) if length < window else part
                    told = torch.full((len(part),), length, device=device) if length < window else None
                    total = total + compute(padded, told, names).double().cpu()
                sums.append(total)
        finally:
            self.train(was_training)
        return torch.cat(sums) / len(starts)

    def _chosen(self, signal: np.ndarray | Tensor, leads: Sequence[str] | None) -> tuple[Tensor, list[str]]:
        """The leads of a signal that are the classifier's, [n, L, T], and their names."""
        signal = torch.as_tensor(signal)
        signal = signal[None] if signal.ndim == 2 else signal
        own = lead_indices(self.config.leads)
        named = own if leads is None else lead_indices(leads)
        if signal.ndim != 3 or signal.shape[1] != len(named) or 0 in signal.shape:
            raise EcgfastError(f"signal: must be [n, {len(named)}, T], got {list(signal.shape)}")
        if signal.dtype != torch.int16 and not signal.is_floating_point():
            raise EcgfastError(f"signal: must be int16 microvolts or float millivolts, got {signal.dtype}")
        if signal.is_floating_point() and not signal.isfinite().all():
            raise EcgfastError("signal: must be finite, got NaN or infinity")
        shared = [lead for lead in own if lead in named]
        if not shared:
            raise EcgfastError(f"leads: must have one of {', '.join(self.config.leads)}, got {list(leads)}")
        return signal[:, [named.index(lead) for lead in shared]], [
            self.config.leads[own.index(lead)] for lead in shared
        ]

    def save_pretrained(self, folder: Path | str, *, origin: Mapping[str, Any] | None = None) -> None:
        """Write `model.safetensors` and `config.json` into a folder, made if need be.

        Args:
            folder: where to.
            origin: where the model is from, kept in `config.json` for people.
        """
        config = self.config.to_dict()
        write_model(folder, MODEL_TYPE, config, self, encoder_prefix="encoder.", origin=origin)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Self:
        """The classifier of a model folder, or of a finished run, in evaluation mode.

        Raises:
            EcgfastError: the folder is absent, of another kind, not consistent, or a run without a model yet.
        """
        folder = Path(folder)
        if not (folder / WEIGHTS).is_file() and (folder / "checkpoint").is_dir():
            if not (folder / "model").is_dir():
                raise EcgfastError(f"{folder}: must be a finished run, got one without a model yet")
            folder = folder / "model"
        model_type, config, tensors, _ = read_model(folder)
        if model_type != MODEL_TYPE:
            raise EcgfastError(f"{folder}: model_type must be {MODEL_TYPE}, got {model_type!r}")
        model = cls(config_from_dict(ClassifierConfig, config, f"{folder}/config.json"))
        load_tensors(model, tensors, folder, assign=False)
        return model.eval()


def shortest_window(segment_samples: int) -> int:
    """Samples that a recording's last window must have to count; shorter ones tell too little."""
    return max(1, segment_samples // 2)


def window_bounds(n_samples: int, segment_samples: int) -> tuple[list[int], list[int]]:
    """Starts and lengths of a recording's windows: side by side, a last one of at least half a window."""
    starts = list(range(0, n_samples, segment_samples))
    lengths = [min(segment_samples, n_samples - start) for start in starts]
    if len(starts) > 1 and lengths[-1] < shortest_window(segment_samples):
        starts, lengths = starts[:-1], lengths[:-1]
    return starts, lengths
