"""Settings of fine-tuning, and their way from and to JSON."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ecgfast._suggest import did_you_mean
from ecgfast.errors import EcgfastError
from ecgfast.finetuning.classifier import FREEZES
from ecgfast.nn import EncoderConfig
from ecgfast.nn.config import check_integers, check_numbers, config_from_dict
from ecgfast.training import OptimConfig
from ecgfast.training.config import LoopConfig

TASK = "finetune"


def _encoder() -> EncoderConfig:
    return EncoderConfig(dropout=0.0, attention_dropout=0.0, activation_dropout=0.1, dropout_input=0.0)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(LoopConfig):
    """Fine-tuning on a store's labels or numbers. The defaults are those of the paper's code.

    (Oh et al., CHIL 2022; fairseq-signals, `diagnosis.yaml`.)
    """

    encoder: EncoderConfig = field(default_factory=_encoder)
    """The encoder of MODEL random; of a model, the dropouts alone, as the rest is the model's own. The
    gradient into the stem follows from freeze."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(eps=1e-8, weight_decay=0.0))
    accumulation: int = 1
    """Micro-batches per update."""
    epochs: int = 100
    """Passes over the training recordings."""
    target: str = "labels"
    """What to predict: labels (of the store, a probability each) or age (years)."""
    classes: tuple[str, ...] = ()
    """Labels to learn, in this order; none: all of the store's, in alphabetical order."""
    task: Literal["auto", "classification", "regression"] = "auto"
    """auto: classification of labels and of targets that are 0 or 1, else regression."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a class that is present weighs as much as it is absent in the training part."""
    freeze: Literal["stem", "encoder", "none"] = "stem"
    """What is not trained: the stem's convolutions as in the paper, the whole encoder, or nothing."""
    layer_decay: float = 1.0
    """Factor on the learning rate from one layer to the one before it, from the head down."""
    leads: tuple[str, ...] = ()
    """Leads to use; the encoder's others count as zero; none: all of the encoder's."""
    batch_size: int = 128
    """Recordings per process and micro-batch."""
    segment_samples: int = 2500
    """Length of a segment in samples at 500 Hz (2500: 5 s)."""
    offsets: Literal["fixed", "random"] = "random"
    """Where a recording's segment starts in training: with the recording, or drawn each epoch."""
    loader: Literal["stream", "resident"] = "stream"
    """Where batches come from, as in pre-training."""
    validate_every: int = 0
    """Updates from one validation to the next; 0: one each epoch. The best state is kept."""
    validation_folds: tuple[int, ...] = ()
    """Folds of the store's source to validate with; none: a random part of the patients."""
    test_folds: tuple[int, ...] = ()
    """Folds that are left alone."""
    validation_fraction: float = 0.1
    """Part of the patients to validate with, where there are no validation folds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.encoder, EncoderConfig):
            object.__setattr__(self, "encoder", config_from_dict(EncoderConfig, self.encoder, "encoder"))
        for name in ("classes", "leads", "validation_folds", "test_folds"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_integers(self, 1, "batch_size")
        check_integers(self, 1 << self.encoder.stem_layers, "segment_samples")
        check_integers(self, 0, "validate_every")
        check_numbers(self, 0, 1, "layer_decay", "validation_fraction")
        choices = {
            "task": ("auto", "classification", "regression"),
            "class_weights": ("none", "balanced"),
            "freeze": FREEZES,
            "offsets": ("fixed", "random"),
            "loader": ("stream", "resident"),
        }
        for name, taken in choices.items():
            if getattr(self, name) not in taken:
                raise EcgfastError(f"{name}: must be {' or '.join(taken)}, got {getattr(self, name)!r}")
        for name in ("layer_decay", "validation_fraction"):
            if getattr(self, name) == 0:
                raise EcgfastError(f"{name}: must be more than 0, got 0")
        if self.test_folds and not self.validation_folds:
            raise EcgfastError("test_folds: must have validation_folds beside them, got none")
        if self.target != "labels" and self.classes:
            raise EcgfastError(f"classes: must be without a target of numbers, got target {self.target!r}")


def read_config(path: Path) -> FinetuneConfig:
    """The configuration in a run's config.json, or in a file that holds its `config` part.

    Raises:
        EcgfastError: the file can't be read, is of another task, or holds unknown settings or bad values.
    """
    source = f"config: {str(path)!r}"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EcgfastError(f"{source}: can't be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise EcgfastError(f"{source}: holds no JSON") from None
    if isinstance(data, Mapping) and isinstance(data.get("config"), Mapping):
        if (task := data.get("task")) != TASK:
            raise EcgfastError(f"{source}: must be of a run of ecgfast finetune, got one of {task}")
        data = data["config"]
    if not isinstance(data, Mapping):
        raise EcgfastError(f"{source}: must hold a JSON object, got {type(data).__name__}")
    known = [entry.name for entry in dataclasses.fields(FinetuneConfig)]
    for name in data:
        if name not in known:
            raise EcgfastError(f"{source}: has an unknown setting {name!r}{did_you_mean(name, known)}")
    return config_from_dict(FinetuneConfig, completed(data), source)


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `config` part of a run's config.json, with defaults for settings newer than the run."""
    default = json.loads(json.dumps(dataclasses.asdict(FinetuneConfig())))
    whole = default | dict(config)
    for name in ("encoder", "optim"):
        if isinstance(whole[name], Mapping):
            whole[name] = default[name] | whole[name]
    return whole
