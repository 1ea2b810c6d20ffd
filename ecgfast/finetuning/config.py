"""Settings of fine-tuning, and their way from and to JSON."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ecgfast._suggest import did_you_mean
from ecgfast.errors import EcgfastError
from ecgfast.evaluation import find_protocol
from ecgfast.finetuning.arcface import check_arcface
from ecgfast.finetuning.classifier import FREEZES, TASKS
from ecgfast.nn import EncoderConfig
from ecgfast.nn.config import check_integers, check_numbers, config_from_dict
from ecgfast.training import OptimConfig
from ecgfast.training.config import LoopConfig
from ecgfast.units import SAMPLE_RATE

TASK = "finetune"
TRI_STAGE = "tri-stage 0.1/0.2/0.7, final 0.01"
"""A schedule as recipes name it."""


def _encoder() -> EncoderConfig:
    return EncoderConfig(dropout=0.0, attention_dropout=0.0, activation_dropout=0.1, dropout_input=0.0)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(LoopConfig):
    """Fine-tuning on labels, numbers or whose a recording is. The defaults are those of the paper's code.

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
    task: Literal["auto", "classification", "regression", "identification"] = "auto"
    """auto: classification of labels and of targets that are 0 or 1, regression of other numbers.
    identification: whose a recording is, by unit embeddings (ArcFace)."""
    target: str = "labels"
    """What to predict: labels (of the store, a probability each) or a column of its numbers, such as age."""
    classes: tuple[str, ...] = ()
    """Labels to learn, in this order; none: all, those of the store in alphabetical order."""
    labels: str = ""
    """Table (.csv) in place of the store's labels, by record_id or patient_id."""
    label_columns: tuple[str, ...] = ()
    """Columns of the table to learn, of 0/1, numbers or lists of labels with ; between; none: all."""
    label_lists: tuple[str, ...] = ()
    """Columns of the table that are lists of labels though they look like numbers, such as codes."""
    protocol: str = ""
    """Protocol that says classes and parts, such as helme:super, cinc2021, oh2022 or id-gallery-probe."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a class that is present weighs as much as it is absent in the training part."""
    freeze: Literal["stem", "encoder", "none"] = "stem"
    """What is not trained: the stem's convolutions as in the paper, the whole encoder, or nothing."""
    lead_mask_prob: float = 0.0
    """Probability that a lead is masked in training, for a model of any leads; one at least is left."""
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
    """Folds of the source to validate with; none: the protocol's, or a random part of the patients."""
    test_folds: tuple[int, ...] = ()
    """Folds that are left alone."""
    validation_fraction: float = 0.1
    """Part of the patients to validate with, without folds; for identification of those with two records."""
    test_fraction: float = 0.0
    """Part of the patients that is left alone, likewise."""
    identities: Literal["patients", "recordings"] = "patients"
    """What identification tells apart in training: patients, or every recording as in the paper's code."""
    arcface_scale: float = 192.0
    """Factor on the cosines of identification."""
    arcface_margin: float = 1.0
    """Angle that identification adds between an embedding and its own identity, in radians."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.encoder, EncoderConfig):
            object.__setattr__(self, "encoder", config_from_dict(EncoderConfig, self.encoder, "encoder"))
        for name in ("classes", "label_columns", "label_lists", "leads", "validation_folds", "test_folds"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_integers(self, 1, "batch_size")
        check_integers(self, 1 << self.encoder.stem_layers, "segment_samples")
        check_integers(self, 0, "validate_every")
        check_numbers(self, 0, 1, "layer_decay", "validation_fraction", "test_fraction", "lead_mask_prob")
        check_arcface(self.arcface_scale, self.arcface_margin)
        choices = {
            "task": ("auto", *TASKS),
            "identities": ("patients", "recordings"),
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
        if self.test_fraction and self.validation_folds:
            raise EcgfastError("test_fraction: must be 0 beside validation_folds, which take test_folds")
        if self.validation_fraction + self.test_fraction >= 1:
            raise EcgfastError("validation_fraction and test_fraction: must leave some patients to train on")
        self._check_targets()

    def _check_targets(self) -> None:
        """Refuse settings of which one says what to predict, and another says it otherwise."""
        if self.target != "labels" and self.classes:
            raise EcgfastError(f"classes: must be without a target of numbers, got target {self.target!r}")
        if (self.label_columns or self.label_lists) and not self.labels:
            name = "label_columns" if self.label_columns else "label_lists"
            raise EcgfastError(f"{name}: must have labels, a table, beside it, got none")
        if self.labels and self.target != "labels":
            raise EcgfastError(f"target: must be left out beside a table of labels, got {self.target!r}")
        task = "" if self.task == "auto" else self.task
        if self.protocol:
            task = {"multi-label": "classification"}.get(of := find_protocol(self.protocol).task, of)
            if self.task not in ("auto", task):
                raise EcgfastError(f"task: must be {task} for {self.protocol}, got {self.task!r}")
            if self.test_fraction:
                raise EcgfastError(
                    f"test_fraction: must be 0 beside the protocol {self.protocol}, which has it"
                )
        told = [name for name in ("classes", "labels") if getattr(self, name)]
        told += ["target"] if self.target != "labels" else []
        if told and (self.protocol or task == "identification"):
            by = f"the protocol {self.protocol}" if self.protocol else "identification"
            raise EcgfastError(f"{told[0]}: must be left out beside {by}, which says what is learnt")

    @property
    def is_identification(self) -> bool:
        """Whether identities are learnt, as the task or the protocol says."""
        protocol = find_protocol(self.protocol).task if self.protocol else ""
        return "identification" in (self.task, protocol)


def recipe_config(protocol: str) -> FinetuneConfig:
    """The settings that a protocol fine-tunes with, and its name; the defaults where it has none.

    Args:
        protocol: name of a preset of `ecgfast.evaluation`, such as "id-gallery-probe".

    Raises:
        EcgfastError: there is none of that name.
    """
    found = find_protocol(protocol)
    settings: dict[str, Any] = {"protocol": protocol}
    if found.segment_seconds is not None:
        settings["segment_samples"] = round(SAMPLE_RATE * found.segment_seconds)
    recipe = next((one for one in found.recipes if one.what.startswith("finetune")), None)
    if recipe is None or any(name.startswith("lr_factor") for name, _ in recipe.extra):
        return FinetuneConfig(**settings)
    rates: dict[str, Any] = {}
    if recipe.schedule == TRI_STAGE:
        rates = {"schedule": "tri_stage", "stages": (0.1, 0.2, 0.7), "final_scale": 0.01}
    optim = OptimConfig(
        lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, weight_decay=recipe.weight_decay, **rates
    )
    settings |= {"batch_size": recipe.batch_size, "epochs": recipe.epochs or FinetuneConfig.epochs}
    extra = dict(recipe.extra)
    settings |= {name: extra[name] for name in ("arcface_scale", "arcface_margin") if name in extra}
    return FinetuneConfig(optim=optim, **settings)


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
