"""What an objective is: its settings, what it sees of a batch, its losses, and what it tells of itself."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.utils._pytree import _register_namedtuple
from typing_extensions import Self

from ecgfast.errors import EcgfastError
from ecgfast.nn.config import EncoderConfig, config_from_dict
from ecgfast.nn.encoder import Encoder
from ecgfast.nn.pretrained import PREPROCESSING, load_tensors, read_model, write_model
from ecgfast.ops._dispatch import INTS

Pairing = Literal["adjacent_pairs", "single_segments", "two_views"]
"""How the rows of a batch belong together: rows i and P + i are adjacent segments of a recording, each row
is a segment of its own, or rows i and P + i are the same segment twice."""

Size = Literal["demo", "small", "paper"]
"""How large a preset's encoder is."""


class Views(NamedTuple):
    """What an objective sees of a batch of B rows, in which `Pairing` says how rows belong together.

    Attributes:
        signal: [B, L, T], float millivolts or int16 microvolts.
        patients: [B] integer, patient numbers.
        sample_ids: [B] integer, a number for each row that its random choices follow from.
        lengths: [B] integer, samples of each row before padding; None: all T.
        leads: names of the L leads; None: the encoder's own.
        segment: [B], 0 for the first and 1 for the second rows of pairs, as many of each (checked on the CPU
            alone, where that waits for no device), in place of the order by halves.
    """

    signal: Tensor
    patients: Tensor
    sample_ids: Tensor
    lengths: Tensor | None = None
    leads: Sequence[str] | None = None
    segment: Tensor | None = None


class Losses(NamedTuple):
    """Losses of a batch, as sums: `total / size` is what an update descends.

    Attributes:
        total: 0-dim, the sum of the terms.
        size: what to divide by, the same for every term: masked tokens, or rows.
        terms: 0-dim each, by name, with their weights.
        counts: what the metrics are made from besides, by name; 0-dim tensors or numbers.
        details: what the losses were made from, for those who look into a model; None in training.
    """

    total: Tensor
    size: int | Tensor
    terms: dict[str, Tensor]
    counts: dict[str, Tensor | float]
    details: Any = None


_register_namedtuple(Views, serialized_type_name="ecgfast.objectives.Views")
_register_namedtuple(Losses, serialized_type_name="ecgfast.objectives.Losses")


class Panel(NamedTuple):
    """A panel of the picture of a run: its metrics are drawn together."""

    title: str
    unit: str


class Metric(NamedTuple):
    """A number of a log point: a sum over batches divided by another one.

    Attributes:
        name: in `metrics.jsonl`, in TensorBoard and in the summary.
        panel: where it is drawn.
        of: what is summed: "total", or the name of a term or a count; empty: it is no sum.
        per: what that is divided by: "size", "batches", or the name of a count.
        term: whether it is the loss or one of its terms.
        legend: its name in a panel of several.
        bar: how the progress bar shows it, such as "local {:.3f}"; empty: it doesn't.
        row: format in the summary at the end, such as ".4f"; empty: it is not in it.
        note: what the summary says of its unit.
        chance: what guessing would reach, with the words for the legend.
        beside: the metric that it is of the validation part; drawn dashed, in that one's colour.
    """

    name: str
    panel: Panel
    of: str
    per: str = "size"
    term: bool = False
    legend: str = ""
    bar: str = ""
    row: str = ""
    note: str = ""
    chance: tuple[float, str] | None = None
    beside: str = ""


@dataclass
class ObjectiveConfig:
    """The settings that every objective has; `encoder` is the encoder's architecture."""

    RENAMED: ClassVar[Mapping[str, str]] = {}
    """Fields by the names that earlier versions wrote them under."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    def __post_init__(self) -> None:
        if not isinstance(self.encoder, EncoderConfig):
            self.encoder = config_from_dict(EncoderConfig, self.encoder, "encoder")

    @classmethod
    def sized(cls, size: Size, encoder: EncoderConfig) -> Self:
        """The settings for a preset's encoder."""
        return cls(encoder=encoder)

    def check_segment(self, n_samples: int) -> None:
        """Raise `EcgfastError`, naming the field, where segments of so many samples can't be trained on."""
        if self.encoder.n_tokens(n_samples) == 0:
            least = 1 << self.encoder.stem_layers
            raise EcgfastError(f"segment_samples: must be at least {least}, one token, got {n_samples}")

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data for JSON."""
        return asdict(self)


class Objective(nn.Module, ABC):
    """A pre-training model: an encoder, what its losses need besides, and the losses.

    A new objective is a subclass in a file of its own and a line in `ecgfast.objectives.registry`.
    Parameters that get no gradient must not require one: several processes would wait for it.

    Attributes:
        encoder: what is kept after pre-training.
        config: the settings.
        preprocessing: how the stores that it was trained on were made, see
            `ecgfast.nn.pretrained.write_model`; it goes into the model's folder. None: it doesn't tell.
    """

    Config: ClassVar[type[ObjectiveConfig]]
    model_type: ClassVar[str]
    """Kind of the model, in the `config.json` of its folder."""
    plan: ClassVar[Pairing]
    """How the rows of its batches belong together."""

    encoder: Encoder

    def __init__(self, config: ObjectiveConfig | None = None) -> None:
        super().__init__()
        self.config = self.Config() if config is None else config
        if not isinstance(self.config, self.Config):
            got = type(self.config).__name__
            raise EcgfastError(f"config: must be {self.Config.__name__}, got {got}")
        self.encoder = Encoder(self.config.encoder)
        self.preprocessing: Any = None

    @abstractmethod
    def forward(self, views: Views, rng: Tensor, *, process_group: ProcessGroup | None = None) -> Losses:
        """The losses of a batch; in evaluation mode, for a validation part, it changes no state.

        Args:
            views: the batch, as `plan` says.
            rng: [2] int64 of seed and step, on the signal's device (`ecgfast.ops.make_rng`).
            process_group: contrast rows with those of all its ranks; None: within this process.
        """

    @classmethod
    @abstractmethod
    def metrics(cls, config: ObjectiveConfig, n_rows: int | None = None) -> tuple[Metric, ...]:
        """The metrics of a log point, "loss" first.

        Args:
            config: settings.
            n_rows: rows B among which a loss contrasts, of all ranks if it does so over them; None: unknown.
        """

    def after_update(self, rng: Tensor) -> None:
        """What follows an update, such as that of a teacher: without gradients; `rng` is the update's."""

    def shardable(self) -> list[nn.Module]:
        """Modules that a sharded wrapper may wrap each by itself, innermost first."""
        return list(self.encoder.transformer.layers)

    @classmethod
    def weaknesses(cls, config: ObjectiveConfig, n_rows: int) -> list[str]:
        """Settings under which a loss can't fall, for people; `n_rows` as in `metrics`."""
        return []

    @classmethod
    def troubles(
        cls, config: ObjectiveConfig, point: Mapping[str, float], *, settled: bool
    ) -> dict[str, str]:
        """What goes wrong at a log point, for people, under a name for which it is told once.

        Args:
            config: settings.
            point: the log point.
            settled: whether the warm-up is over.
        """
        return {}

    @classmethod
    def batch_troubles(
        cls, config: ObjectiveConfig, losses: Losses, n_rows: int, n_samples: int
    ) -> dict[str, str]:
        """What goes wrong with a batch of `n_rows` rows of `n_samples`, see `troubles`; never waits."""
        return {}

    def save_pretrained(self, folder: Path | str, *, origin: Mapping[str, Any] | None = None) -> None:
        """Write `model.safetensors` and `config.json` into a folder, made if need be.

        Args:
            folder: where to.
            origin: where the model is from, kept in `config.json` for people.
        """
        write_model(
            folder,
            self.model_type,
            self.config.to_dict(),
            self,
            encoder_prefix="encoder.",
            origin=origin,
            preprocessing=self.preprocessing,
        )

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Self:
        """The model of a folder, in evaluation mode.

        Raises:
            EcgfastError: the folder is absent, of another kind, or not consistent.
        """
        model_type, config, tensors, _ = read_model(folder)
        if model_type != cls.model_type:
            raise EcgfastError(f"{folder}: model_type must be {cls.model_type}, got {model_type!r}")
        preprocessing = config.pop(PREPROCESSING, None)
        with torch.device("meta"):
            model = cls(config_from_dict(cls.Config, config, f"{folder}/config.json"))
        load_tensors(model, tensors, folder)
        model.preprocessing = preprocessing
        return model.eval()


def check_views(views: Views, config: EncoderConfig, *, pairs: bool) -> None:
    """Raise `EcgfastError` unless the tensors of `views` go together; `pairs`: as rows of pairs do."""
    signal = views.signal
    rows = "2P" if pairs else "B"
    if signal.ndim != 3 or config.n_tokens(signal.shape[2]) == 0:
        least = 1 << config.stem_layers
        raise EcgfastError(f"signal: takes [{rows}, L, T] with T >= {least}, got {list(signal.shape)}")
    batch = signal.shape[0]
    if pairs and batch % 2:
        raise EcgfastError(f"signal: takes pairs of segments, got {batch} segments")
    for name, x in (("patients", views.patients), ("sample_ids", views.sample_ids)):
        if tuple(x.shape) != (batch,) or x.dtype not in INTS:
            got = f"{list(x.shape)} {x.dtype}"
            raise EcgfastError(f"{name} must be [{batch}] of integers, got {got}")
        if x.device != signal.device:
            raise EcgfastError(f"{name}: is on {x.device}, the signal on {signal.device}")
    if pairs and views.segment is not None:
        _check_segment(views.segment, signal)


def check_rng(rng: Tensor, signal: Tensor) -> None:
    """Raise `EcgfastError` unless `rng` is that of `ecgfast.ops.make_rng`, on the signal's device."""
    if not isinstance(rng, Tensor):
        raise EcgfastError(f"rng: takes a tensor (ecgfast.ops.make_rng), got {type(rng).__name__}")
    if tuple(rng.shape) != (2,) or rng.dtype != torch.int64:
        raise EcgfastError(f"rng: takes [2] torch.int64, got {list(rng.shape)} {rng.dtype}")
    if rng.device != signal.device:
        raise EcgfastError(f"rng: is on {rng.device}, the signal on {signal.device}")


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


def chance_of(n: int | None) -> tuple[float, str] | None:
    """The loss ln(n) of choosing among n alike; None where n is unknown."""
    return None if n is None else (math.log(n), f"ln {n} = {math.log(n):.2f}")
