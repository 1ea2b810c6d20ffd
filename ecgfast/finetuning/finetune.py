"""Fine-tuning: from a store and a model to a model that predicts."""

import dataclasses
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecgfast.data import Batch, LabelledRecordings, Loader, ResidentLoader, SegmentLoader, Store
from ecgfast.errors import EcgfastError
from ecgfast.finetuning.classifier import Classifier, ClassifierConfig, LabelledBatch, check_leads
from ecgfast.finetuning.config import TASK, FinetuneConfig, completed
from ecgfast.finetuning.scoring import (
    BestByValidation,
    check_validation,
    make_windows,
    validation_metrics,
)
from ecgfast.finetuning.targets import (
    Split,
    Targets,
    check_targets,
    column_targets,
    describe_data,
    label_targets,
    split_by_fold,
    split_by_patient,
    usable,
    without_single,
)
from ecgfast.interop import convert_fairseq
from ecgfast.leads import lead_indices
from ecgfast.nn import Encoder, EncoderConfig
from ecgfast.nn.pretrained import file_digest, load_tensors
from ecgfast.objectives.base import Losses, Metric
from ecgfast.training.initial import describe_init
from ecgfast.training.loop import Trainer, count_steps, train
from ecgfast.training.metrics import COMMON
from ecgfast.training.parallel import World, open_world
from ecgfast.training.pretrain import take_up
from ecgfast.training.reports import plot_run, summarize_run
from ecgfast.training.run_folder import RunFolder, describe_run, had_length
from ecgfast.training.watch import check_store

RANDOM = "random"
"""As a model: random weights."""

_FROM_RUN = ("dropout", "attention_dropout", "activation_dropout", "layer_drop", "dropout_input")


class LabelledBatches:
    """The batches of a loader with their targets, from any one of the run on.

    Attributes:
        rows: segments in a batch of one process.
        samples: of each.
    """

    def __init__(self, loader: Loader, targets: np.ndarray, device: torch.device) -> None:
        self.loader = loader
        self.rows = loader.plan.batch_size
        self.samples = loader.plan.segment_samples
        self._targets = torch.from_numpy(targets.astype(np.float32)).to(device)

    def __len__(self) -> int:
        return len(self.loader)

    def batches(self, start: int) -> Iterator[LabelledBatch]:
        """Batches without end, from the run's number `start` on."""
        epoch, batch = divmod(start, len(self.loader))
        self.loader.load_state_dict(self.loader.state_dict() | {"epoch": epoch, "batch": batch})
        while True:
            yield from map(self._labelled, self.loader)
            epoch += 1
            self.loader.set_epoch(epoch)

    def _labelled(self, batch: Batch) -> LabelledBatch:
        rows = batch.recording.to(self._targets.device)
        return LabelledBatch(batch.signal, self._targets[rows], batch.lengths)


class _Calm:
    """Nothing of a classifier's batches is told but its numbers."""

    def batch(self, losses: Losses, n_rows: int, n_samples: int) -> list[str]:
        return []

    def point(self, point: Mapping[str, float]) -> list[str]:
        return []


@dataclasses.dataclass(frozen=True)
class _Best:
    """The classifier with its best weights, as the run's folder keeps it."""

    classifier: Classifier
    origin: dict[str, Any]

    def save_pretrained(self, folder: Path) -> None:
        self.classifier.save_pretrained(folder, origin=self.origin)


def open_encoder(model: str, config: FinetuneConfig) -> tuple[Encoder | None, EncoderConfig, dict[str, Any]]:
    """The encoder to start from, its settings in the run, and what the run's config.json says of it.

    Args:
        model: a model folder, a run with one, an official checkpoint, or "random".
        config: its `encoder` is that of "random"; of a model the dropouts are taken from it.

    Raises:
        EcgfastError: there is no such model, or it is of another architecture than the one asked for.
    """
    if model == RANDOM:
        return None, _in_run(config.encoder, config), {"path": RANDOM, "sha256": RANDOM}
    path = Path(model)
    if path.is_file():
        with tempfile.TemporaryDirectory() as folder:
            convert_fairseq(path, Path(folder) / "model")
            encoder = Encoder.from_pretrained(Path(folder) / "model")
        init = {"path": model, "sha256": file_digest(path)}
    elif path.is_dir():
        inner = path / "model" if (path / "checkpoint").is_dir() and (path / "model").is_dir() else path
        encoder = Encoder.from_pretrained(inner)
        init = describe_init(inner)
    else:
        raise EcgfastError(f"MODEL: must be a model folder, an official checkpoint or random, got {model!r}")
    has, default = encoder.config, EncoderConfig()
    for entry in dataclasses.fields(EncoderConfig):
        name = entry.name
        asked, own = getattr(config.encoder, name), getattr(has, name)
        if name not in (*_FROM_RUN, "feature_grad_mult") and asked not in (own, getattr(default, name)):
            raise EcgfastError(f"encoder.{name}: must be {own!r}, that of the model {model}, got {asked!r}")
    return encoder, _in_run(has, config), init


def _in_run(encoder: EncoderConfig, config: FinetuneConfig) -> EncoderConfig:
    mult = 0.0 if config.freeze in ("stem", "encoder") else 1.0
    dropouts = {name: getattr(config.encoder, name) for name in _FROM_RUN}
    return dataclasses.replace(encoder, feature_grad_mult=mult, **dropouts)


def is_classification(config: FinetuneConfig, targets: Targets) -> bool:
    """Whether targets are classes, as the configuration says or their values do."""
    if config.task != "auto":
        return config.task == "classification"
    known = targets.values[~np.isnan(targets.values)]
    return bool(np.isin(known, (0, 1)).all())


def choose_data(
    store: Store, config: FinetuneConfig, targets: Targets | None, split: Split | None
) -> tuple[Targets, Split]:
    """The targets and the split that are given, or else those that the configuration names."""
    if targets is None:
        if config.target == "labels":
            if config.task == "regression":
                raise EcgfastError("task: must be classification for labels, got 'regression'")
            targets = label_targets(store, config.classes)
        else:
            if config.task == "classification":
                raise EcgfastError(f"task: must be regression for {config.target}, got 'classification'")
            targets = column_targets(store, config.target)
    if split is None and config.validation_folds:
        split = split_by_fold(store, config.validation_folds, config.test_folds)
    elif split is None:
        split = split_by_patient(store, config.validation_fraction, config.seed)
    return targets, Split(*(np.asarray(part, dtype=np.int64) for part in split))


def classifier_config(
    store: Store, config: FinetuneConfig, targets: Targets, split: Split
) -> ClassifierConfig:
    """What the classifier is, with what the training part alone tells of the targets."""
    values = targets.values[split.train].astype(np.float64)
    classification = is_classification(config, targets)
    mean = std = positive = ()
    if not classification:
        mean, std = np.nanmean(values, 0).tolist(), np.nanstd(values, 0).tolist()
    elif config.class_weights == "balanced":
        present = np.nansum(values, 0)
        positive = ((np.isfinite(values).sum(0) - present) / present).tolist()
    return ClassifierConfig(
        encoder=config.encoder,
        names=targets.names,
        task="classification" if classification else "regression",
        leads=config.leads,
        segment_samples=config.segment_samples,
        freeze=config.freeze,
        mean=tuple(mean),
        std=tuple(std),
        positive_weights=tuple(positive),
        preprocessing=store.description.get("preprocessing"),
    )


def open_batches(
    store: Store, config: FinetuneConfig, targets: Targets, split: Split, world: World
) -> LabelledBatches:
    """The training batches of a run."""
    plan = LabelledRecordings(
        store,
        config.batch_size,
        split.train,
        segment_samples=config.segment_samples,
        seed=config.seed,
        rank=world.rank,
        world_size=world.size,
        offsets=config.offsets,
    )
    if config.loader == "resident":
        loader: Loader = ResidentLoader(plan, device=world.device, leads=config.leads)
        return LabelledBatches(loader, targets.values, world.device)
    loader = SegmentLoader(plan, leads=config.leads, pin_memory=world.device.type == "cuda")
    return LabelledBatches(loader, targets.values, torch.device("cpu"))


def run_metrics(run: Path) -> tuple[Metric, ...]:
    """The metrics of a run of fine-tuning."""
    config = Classifier.from_pretrained(run).config
    classification = config.task == "classification"
    return (*Classifier.metrics(config), *validation_metrics(classification=classification), *COMMON)


def summarize(run: Path) -> str:
    """What a finished run learned and where its files are, for people; a few lines."""
    return summarize_run(run, run_metrics(run))


def _finish(trainer: Trainer, validation: BestByValidation, folder: RunFolder) -> None:
    """Draw the curves and write the best model, which nothing about the curves may prevent."""
    model = trainer.replica.full_model()
    if model is None:
        return
    best = validation.best
    try:
        plot_run(folder.path, folder.path / "curves.png", (*trainer.metrics, *validation.metrics, *COMMON))
    except (OSError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        warnings.warn(f"{folder.path / 'curves.png'}: the curves can't be drawn: {error!r}")
    load_tensors(model, best["model"], folder.state, assign=False)
    folder.save_model(_Best(model, {"run": str(folder.path), "step": best["step"], "score": best["score"]}))


def finetune(
    store: Path,
    model: str | Path,
    run: Path,
    config: FinetuneConfig,
    *,
    targets: Targets | None = None,
    split: Split | None = None,
    progress: bool = True,
) -> bool:
    """Train a classifier on the recordings of `store` and leave everything in the folder `run`.

    The model that it leaves in `run` is the best by validation. A run that was stopped is taken up from its
    last checkpoint, as in `ecgfast.training.pretrain`, with the same numbers bit for bit, the best state's
    too. Under torchrun each process takes its share of every batch and of the validation's windows.

    Args:
        store: folder written by `ecgfast prepare`.
        model: model folder, run of pre-training, official checkpoint, or "random".
        run: new or empty folder, or that of a run with the same settings, store, targets and split.
        config: how to train.
        targets: of all recordings of the store; None: `config.target`.
        split: of the store; None: by `config.validation_folds` or at random by patient.
        progress: show a progress bar on stderr.

    Returns:
        False if the run was finished before, True otherwise.

    Raises:
        EcgfastError: a store, model, target or split from which nothing can be learnt; `run` is something
            else or was started differently; or the loss is no number any more.
        Interrupted: SIGINT or SIGTERM came; the state is saved.

    Warns:
        UserWarning: recordings are left out; classes can't be validated.
    """
    store, folder = Path(store), RunFolder(Path(run))
    with open_world(config.device) as world:
        opened = Store(store)
        encoder, settings, init = open_encoder(str(model), config)
        leads = check_leads(config.leads or settings.leads, settings)
        config = dataclasses.replace(config, encoder=settings, leads=leads)
        check_store(opened, leads)
        listed = targets is not None or bool(config.classes)
        targets, split = choose_data(opened, config, targets, split)
        split, odd = usable(opened, targets, split, lead_indices(leads))
        if not listed:
            targets, told = without_single(targets, split)
            odd += told
        classification = is_classification(config, targets)
        check_targets(opened, targets, split, classification=classification)
        odd += check_validation(targets, split.validation, classification=classification)
        source = open_batches(opened, config, targets, split, world)
        steps = count_steps(config, len(source))
        every = config.validate_every or max(1, len(source) // config.accumulation)
        if every > steps:
            raise EcgfastError(f"validate_every: must be at most the run's {steps} updates, got {every}")
        description = describe_run(TASK, config, store, world.size, init, describe_data(targets, split))
        old = folder.find()
        if old is not None:
            old = old | {"config": completed(old["config"])}
            folder.check(old, description)
        before = steps if old is None else count_steps(had_length(old, config), len(source))
        if folder.finished and steps <= before:
            return False
        trainer, validation = _make_trainer(opened, config, targets, split, world, source, encoder, every)
        trainer.identity = (old or description).get("identity")
        trainer.tell(odd)
        if world.is_main:
            folder.create(description)
        world.barrier()
        with folder.claim() if world.is_main else nullcontext():
            _take_up(trainer, folder, old, steps)
            world.barrier()
            if world.is_main and old is not None:
                if folder.finished:
                    folder.reopen(before)
                folder.adopt(old, description, trainer.step)
            train(trainer, folder, steps, show=progress)
            _finish(trainer, validation, folder)
        world.barrier()
    return True


def _make_trainer(
    store: Store,
    config: FinetuneConfig,
    targets: Targets,
    split: Split,
    world: World,
    source: LabelledBatches,
    encoder: Encoder | None,
    every: int,
) -> tuple[Trainer, BestByValidation]:
    torch.manual_seed(config.seed)
    described = classifier_config(store, config, targets, split)
    classifier = Classifier(described, encoder)
    windows = make_windows(source.loader, split.validation, config.batch_size, config.segment_samples, world)
    validation = BestByValidation(
        windows,
        split.validation,
        targets,
        classification=described.task == "classification",
        every=every,
        bf16=config.precision == "bf16",
    )
    scales = classifier.learning_rate_scales(config.layer_decay) if config.layer_decay != 1 else None
    trainer = Trainer(
        classifier,
        source,
        config,
        world,
        metrics=Classifier.metrics(described),
        watch=_Calm(),
        scales=scales,
        validation=validation,
    )
    return trainer, validation


def _take_up(trainer: Trainer, folder: RunFolder, old: dict[str, Any] | None, steps: int) -> None:
    take_up(
        trainer,
        folder,
        old,
        steps,
        start=f"as MODEL {folder.model}",
        model="give a new folder for a shorter run",
    )
