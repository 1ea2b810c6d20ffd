"""Configurations of the training tasks: their checks, and their way from and to JSON."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ecgfast._suggest import did_you_mean
from ecgfast.errors import EcgfastError
from ecgfast.nn.config import EncoderConfig, config_from_dict
from ecgfast.nn.config import renamed as renamed_fields
from ecgfast.objectives.base import ObjectiveConfig
from ecgfast.objectives.registry import DEFAULT, objective_class, objective_config

# Each process and each epoch may add to the seed, which torch takes in 64 bits.
_SEED_END = 2**63 - 2**20
_FLAG = (True, False)
_FOLDS = ("train_folds", "validation_folds", "exclude_folds")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_integers(config: Any, **least: int) -> None:
    for name, lowest in least.items():
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
            raise EcgfastError(f"{name}: got {value!r}; an integer of at least {lowest} is taken")


def _check_choices(config: Any, **choices: tuple[Any, ...]) -> None:
    for name, taken in choices.items():
        value = getattr(config, name)
        if value not in taken or type(value) is not type(taken[0]):
            shown = " or ".join(str(choice).lower() if taken == _FLAG else choice for choice in taken)
            raise EcgfastError(f"{name}: got {value!r}; {shown} is taken")


@dataclass(frozen=True)
class OptimConfig:
    """Adam with decoupled weight decay and a schedule, constant as in the paper (CHIL 2022, appendix)."""

    lr: float = 5e-5
    """Learning rate: the highest of the schedule."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of the first and the second moment."""
    eps: float = 1e-6
    """Added to the root of the second moment."""
    weight_decay: float = 0.01
    """Decoupled decay: each update multiplies every parameter by 1 - decay * lr."""
    warmup_steps: int = 0
    """Updates of linear warm-up of the learning rate; tri_stage has its own."""
    clip_norm: float = 0.0
    """Gradients are scaled down to this total norm; 0: no clipping."""
    schedule: Literal["constant", "cosine", "tri_stage"] = "constant"
    """The learning rate over the run's updates: constant after the warm-up; half a cosine from lr to
    final_scale * lr after the warm-up; or fairseq's warm-up from initial_scale * lr, hold and
    exponential decay to final_scale * lr. The length of a run that is not constant can't change."""
    stages: tuple[float, float, float] = (0.1, 0.2, 0.7)
    """Shares of tri_stage's warm-up, hold and decay in the run; what they leave has the final rate."""
    initial_scale: float = 0.01
    """Where tri_stage begins, as a part of lr."""
    final_scale: float = 0.01
    """Where cosine and tri_stage end, as a part of lr."""

    def __post_init__(self) -> None:
        if not _is_number(self.lr) or not 0 < self.lr < math.inf:
            raise EcgfastError(f"optim.lr: got {self.lr!r}; a positive number is taken")
        pair = isinstance(self.betas, list | tuple) and len(self.betas) == 2
        if not pair or not all(_is_number(beta) and 0 <= beta < 1 for beta in self.betas):
            raise EcgfastError(f"optim.betas: got {self.betas!r}; two numbers in [0, 1) are taken")
        object.__setattr__(self, "betas", tuple(self.betas))
        for name in ("eps", "weight_decay", "warmup_steps", "clip_norm"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value < math.inf:
                raise EcgfastError(f"optim.{name}: got {value!r}; a number of at least 0 is taken")
        if not isinstance(self.warmup_steps, int):
            raise EcgfastError(f"optim.warmup_steps: got {self.warmup_steps!r}; an integer is taken")
        self._check_schedule()

    def _check_schedule(self) -> None:
        kinds = ("constant", "cosine", "tri_stage")
        if self.schedule not in kinds:
            raise EcgfastError(f"optim.schedule: got {self.schedule!r}; {' or '.join(kinds)} is taken")
        three = isinstance(self.stages, list | tuple) and len(self.stages) == 3
        numbers = three and all(_is_number(share) and share >= 0 for share in self.stages)
        if not numbers or sum(self.stages) > 1 + 1e-9:
            raise EcgfastError(
                f"optim.stages: got {self.stages}; three shares of at least 0, together at most 1, are taken"
            )
        object.__setattr__(self, "stages", tuple(self.stages))
        for name in ("initial_scale", "final_scale"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value <= 1:
                raise EcgfastError(f"optim.{name}: got {value}; a number from 0 to 1 is taken")
        if self.schedule == "tri_stage" and self.final_scale == 0:
            raise EcgfastError("optim.final_scale: got 0; tri_stage decays exponentially, to more than 0")


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What the training loop of every task is told."""

    optim: OptimConfig = field(default_factory=OptimConfig)
    accumulation: int = 2
    """Micro-batches per update."""
    epochs: int = 200
    """Passes over the store."""
    max_steps: int = 0
    """Updates after which training ends, whatever `epochs` says; 0: `epochs` decides."""
    seed: int = 0
    """Seed of the weights, the batches, the masks and the dropout."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic: float32, or bfloat16 where autocast allows it."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    compile: bool = False
    """Compile the model with torch.compile."""
    log_every: int = 50
    """Updates between log points; the device is read only there."""
    checkpoint_every: int = 500
    """Updates between checkpoints of the training state."""

    def __post_init__(self) -> None:
        if not isinstance(self.optim, OptimConfig):
            object.__setattr__(self, "optim", config_from_dict(OptimConfig, self.optim, "optim"))
        _check_integers(self, accumulation=1, epochs=1, max_steps=0, log_every=1, checkpoint_every=1)
        _check_choices(self, precision=("fp32", "bf16"), compile=_FLAG)
        if not isinstance(self.device, str):
            raise EcgfastError(f"device: got {self.device!r}; auto, cpu, cuda or cuda:N is taken")
        _check_integers(self, seed=0)
        if self.seed >= _SEED_END:
            raise EcgfastError(
                f"seed: got {self.seed}; an integer of at least 0 and below {_SEED_END} is taken"
            )


@dataclass(frozen=True, kw_only=True)
class _Objective:
    """What a pre-training is told first."""

    objective: str = DEFAULT
    """What to learn by: one of the objectives listed above."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(LoopConfig, _Objective):  # the fields of the last base come first
    """Pre-training with an objective. The defaults are the paper's."""

    # Where nothing is told, __post_init__ makes that of the objective.
    model: ObjectiveConfig = field(default=None)
    """Settings of the objective."""
    batch_pairs: int = 64
    """Pairs of segments per process and micro-batch; twice as many segments where they need not be pairs."""
    segment_samples: int = 2500
    """Length of a segment in samples at 500 Hz (2500: 5 s)."""
    offsets: Literal["fixed", "random"] = "fixed"
    """Where a recording's pair starts: fixed as in the paper, or drawn each epoch."""
    loader: Literal["stream", "resident"] = "stream"
    """Batches come ahead of their use from the disk, or out of a store kept in the device's memory."""
    global_batch: bool = False
    """Contrast segments with those of all processes; the official code does so within each."""
    store_weights: tuple[float, ...] = ()
    """Shares in which the stores are drawn from, one number each; none: every recording once an epoch."""
    train_folds: tuple[int, ...] = ()
    """The source's folds to train on; none: all but those below. Stores without folds are used whole."""
    validation_folds: tuple[int, ...] = ()
    """The source's folds to validate on."""
    exclude_folds: tuple[int, ...] = ()
    """The source's folds to leave alone, such as those of a later test."""
    validation_fraction: float = 0.0
    """Share of the patients to validate on, drawn by their ids and the seed; 0: none."""
    validate_every: int = 0
    """Updates between validations; 0: once an epoch, and 20 times in the run as told when it begins."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = objective_class(self.objective).Config
        if not isinstance(self.model, ObjectiveConfig):
            told = {} if self.model is None else self.model
            object.__setattr__(self, "model", model_config(self.objective, told, "model"))
        elif type(self.model) is not kind:
            got = type(self.model).__name__
            raise EcgfastError(f"model: must be {kind.__name__} for objective {self.objective}, got {got}")
        _check_integers(self, batch_pairs=1, segment_samples=16)
        _check_choices(self, offsets=("fixed", "random"), loader=("stream", "resident"), global_batch=_FLAG)
        self._check_data()
        self.model.check_segment(self.segment_samples)

    @property
    def validates(self) -> bool:
        """Whether a part of the data is for validation."""
        return bool(self.validation_folds) or self.validation_fraction > 0

    def _check_data(self) -> None:
        for name in ("store_weights", *_FOLDS):
            value = getattr(self, name)
            if not isinstance(value, list | tuple):
                raise EcgfastError(f"{name}: must be a list of numbers, got {value!r}")
            object.__setattr__(self, name, tuple(value))
        if not all(_is_number(weight) and 0 < weight < math.inf for weight in self.store_weights):
            raise EcgfastError(f"store_weights: must be positive numbers, got {list(self.store_weights)}")
        seen: dict[int, str] = {}
        for name in _FOLDS:
            for fold in getattr(self, name):
                if not isinstance(fold, int) or isinstance(fold, bool) or fold < 0:
                    raise EcgfastError(f"{name}: must be integers of at least 0, got {fold!r}")
                if fold in seen:
                    where = "twice" if seen[fold] == name else f"in {seen[fold]} too"
                    raise EcgfastError(f"{name}: must be folds of their own, got {fold} {where}")
                seen[fold] = name
        if not _is_number(self.validation_fraction) or not 0 <= self.validation_fraction < 1:
            raise EcgfastError(
                f"validation_fraction: must be a number in [0, 1), got {self.validation_fraction!r}"
            )
        if self.validation_fraction and self.validation_folds:
            raise EcgfastError(
                f"validation_fraction: must be 0 beside validation_folds, got {self.validation_fraction}"
            )
        _check_integers(self, validate_every=0)
        if self.validate_every and not self.validates:
            raise EcgfastError(
                "validate_every: must have validation_fraction or validation_folds beside it, got neither"
            )


def model_config(objective: str, data: Any, source: str) -> ObjectiveConfig:
    """The settings of an objective from plain data, by the names of earlier versions too.

    What `data` does not tell is as in the preset `paper`; but an encoder that is told whole, as a run's
    config.json does, without a field that is newer than that run, gets what the version of that time did.

    Raises:
        EcgfastError: there is no such objective, or the settings are not its own.
    """
    if not isinstance(data, Mapping):
        raise EcgfastError(f"{source}: takes a JSON object, got {type(data).__name__}")
    default = objective_config(objective, "paper", EncoderConfig())
    given = renamed_fields(type(default), data)
    if isinstance(encoder := given.get("encoder"), Mapping):
        newer = EncoderConfig.BEFORE.keys()
        if asdict(default.encoder).keys() - encoder.keys() - newer:
            given["encoder"] = {name: getattr(default.encoder, name) for name in newer} | dict(encoder)
    fields = {entry.name: getattr(default, entry.name) for entry in dataclasses.fields(default)}
    try:
        return config_from_dict(type(default), fields | given, source)
    except TypeError as error:
        raise EcgfastError(f"{source}: a value has the wrong type: {error}") from None


def renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `config` part of a run's config.json with today's names for its settings."""
    model = config.get("model")
    if not isinstance(model, Mapping):
        return dict(config)
    kind = objective_class(config.get("objective", DEFAULT)).Config
    return {**config, "model": renamed_fields(kind, model)}


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with what versions did for whose runs there was no such setting yet."""
    objective = config.get("objective", DEFAULT)
    default = json.loads(json.dumps(asdict(PretrainConfig(objective=objective))))
    default["model"]["encoder"] |= EncoderConfig.BEFORE
    return _overlaid(default, renamed(config))


def _overlaid(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        name: _overlaid(below[name], value)
        if isinstance(value, Mapping) and isinstance(below.get(name), dict)
        else value
        for name, value in above.items()
    }
    return below | both


def config_from_json(data: Any, source: str) -> PretrainConfig:
    """A configuration from what a run's config.json says, or its `config` part.

    Raises:
        EcgfastError: it is something else, or holds unknown settings or bad values.
    """
    if not isinstance(data, Mapping):
        raise EcgfastError(f"{source}: must hold a JSON object, got {type(data).__name__}")
    if "model_type" in data:
        raise EcgfastError(f"{source}: is the config.json of a model folder; that of a run is wanted")
    if "task" in data or "config" in data:
        if (task := data.get("task", "pretrain")) != "pretrain":
            raise EcgfastError(f"{source}: is of a run of another task, {task}")
        data = data.get("config")
        if not isinstance(data, Mapping):
            raise EcgfastError(f"{source}: config must be a JSON object, got {type(data).__name__}")
    known = [entry.name for entry in dataclasses.fields(PretrainConfig)]
    for name in data:
        if name not in known:
            raise EcgfastError(f"{source}: has an unknown setting {name!r}{did_you_mean(name, known)}")
    return config_from_dict(PretrainConfig, data, source)


def read_config(path: Path) -> tuple[PretrainConfig, str | None]:
    """The configuration in a file, as `config_from_json` takes it, and the model that its run started from.

    Raises:
        EcgfastError: the file can't be read or holds something else.
    """
    source = f"config: {str(path)!r}"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EcgfastError(f"{source}: can't be read: {error.strerror}") from None
    except (ValueError, RecursionError):  # no UTF-8, no JSON
        raise EcgfastError(f"{source}: holds no JSON") from None
    config = config_from_json(data, source)
    init = data.get("init")
    return config, str(init["path"]) if isinstance(init, Mapping) and "path" in init else None
