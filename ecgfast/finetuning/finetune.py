"""Fine-tuning: from a store and a model to a model that predicts."""

import dataclasses
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecgfast.data import Batch, LabelledRecordings, Loader, ResidentLoader, SegmentLoader, Store
from ecgfast.errors import EcgfastError
from ecgfast.evaluation import Split
from ecgfast.finetuning.classifier import Classifier, ClassifierConfig, LabelledBatch, check_leads
from ecgfast.finetuning.config import TASK, FinetuneConfig, completed
from ecgfast.finetuning.identities import IdentityData, choose_identities
from ecgfast.finetuning.parts import write_parts
from ecgfast.finetuning.scoring import (
    BestByValidation,
    BestEmbeddings,
    BestOutputs,
    check_sklearn,
    check_validation,
    make_windows,
    validation_metrics,
)
from ecgfast.finetuning.targets import (
    Targets,
    TrainingData,
    check_targets,
    choose_data,
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
        """`targets`: a row or number for each recording of the store, as `LabelledBatch` has them."""
        self.loader = loader
        self.rows = loader.plan.batch_size
        self.samples = loader.plan.segment_samples
        self._targets = torch.from_numpy(targets).to(device)

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
        return LabelledBatch(batch.signal, self._targets[rows], batch.lengths, batch.sample_ids)


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


def choose(
    store: Store, config: FinetuneConfig, targets: Targets | None, split: Split | None
) -> tuple[TrainingData | IdentityData, list[str]]:
    """What a run learns from a store, checked, and what is odd about it, for people.

    Args:
        store: the recordings.
        config: with the names of the leads to use.
        targets, split: as for `finetune`.

    Raises:
        EcgfastError: nothing can be learnt or validated from what is asked for.
    """
    leads = lead_indices(config.leads)
    if config.is_identification:
        if targets is not None or split is not None:
            raise EcgfastError("targets and split: must be left out for identification, got some")
        check_sklearn()
        return choose_identities(store, config, leads), []
    data = choose_data(store, config, targets, split)
    split, odd = usable(store, data.targets, data.split, leads)
    data = dataclasses.replace(data, split=split)
    if data.single == "leave out":
        found, told = without_single(data.targets, split)
        data = dataclasses.replace(data, targets=found)
        odd += told
    check_targets(store, data)
    classification = data.task == "classification"
    odd += check_validation(data.targets, split.validation, classification=classification)
    return data, odd


def classifier_config(
    store: Store, config: FinetuneConfig, data: TrainingData | IdentityData
) -> ClassifierConfig:
    """What the classifier is, with what the training part alone tells of the targets."""
    common = {
        "encoder": config.encoder,
        "leads": config.leads,
        "segment_samples": config.segment_samples,
        "freeze": config.freeze,
        "lead_mask_prob": config.lead_mask_prob,
        "arcface_scale": config.arcface_scale,
        "arcface_margin": config.arcface_margin,
        "preprocessing": store.description.get("preprocessing"),
    }
    if isinstance(data, IdentityData):
        return ClassifierConfig(names=(), task="identification", identities=data.n_identities, **common)
    values = data.targets.values[data.split.train].astype(np.float64)
    mean = std = positive = ()
    if data.task == "regression":
        mean, std = np.nanmean(values, 0).tolist(), np.nanstd(values, 0).tolist()
    elif config.class_weights == "balanced":
        present = np.nansum(values, 0)
        absent = np.isfinite(values).sum(0) - present
        both = (present > 0) & (absent > 0)  # one that is never there, or always, has nothing to balance
        positive = np.where(both, absent / np.maximum(present, 1), 1.0).tolist()
    return ClassifierConfig(
        names=data.targets.names,
        task=data.task,
        mean=tuple(mean),
        std=tuple(std),
        positive_weights=tuple(positive),
        **common,
    )


def open_batches(
    store: Store, config: FinetuneConfig, data: TrainingData | IdentityData, world: World
) -> LabelledBatches:
    """The training batches of a run."""
    targets = data.classes if isinstance(data, IdentityData) else data.targets.values.astype(np.float32)
    plan = LabelledRecordings(
        store,
        config.batch_size,
        data.split.train,
        segment_samples=config.segment_samples,
        seed=config.seed,
        rank=world.rank,
        world_size=world.size,
        offsets=config.offsets,
    )
    if config.loader == "resident":
        loader: Loader = ResidentLoader(plan, device=world.device, leads=config.leads)
        return LabelledBatches(loader, targets, world.device)
    loader = SegmentLoader(plan, leads=config.leads, pin_memory=world.device.type == "cuda")
    return LabelledBatches(loader, targets, torch.device("cpu"))


def run_metrics(run: Path) -> tuple[Metric, ...]:
    """The metrics of a run of fine-tuning."""
    config = Classifier.from_pretrained(run).config
    return (*Classifier.metrics(config), *validation_metrics(config.task), *COMMON)


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
    report: Callable[[str], object] | None = None,
) -> bool:
    """Train a classifier on the recordings of `store` and leave everything in the folder `run`.

    The model that it leaves in `run` is the best by validation. A run that was stopped is taken up from its
    last checkpoint, as in `ecgfast.training.pretrain`, with the same numbers bit for bit, the best state's
    too. Under torchrun each process takes its share of every batch and of the validation's windows.
    `run/parts.json` names the recordings of every part, those left alone for a test too.

    Args:
        store: folder written by `ecgfast prepare`.
        model: model folder, run of pre-training, official checkpoint, or "random".
        run: new or empty folder, or that of a run with the same settings, store, targets and split.
        config: how to train.
        targets: of all recordings of the store; None: those that `config` names.
        split: of the store; None: by the protocol, folds or fractions of `config`.
        progress: show a progress bar on stderr.
        report: called with each line about what was chosen and left out; None: the latter is warned of.

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
        data, odd = choose(opened, config, targets, split)
        source = open_batches(opened, config, data, world)
        steps = count_steps(config, len(source))
        every = config.validate_every or max(1, len(source) // config.accumulation)
        if every > steps:
            raise EcgfastError(f"validate_every: must be at most the run's {steps} updates, got {every}")
        described = classifier_config(opened, config, data)
        description = describe_run(TASK, config, store, world.size, init, data.describe())
        description["classifier"] = described.to_dict()
        old = _find(folder, description)
        before = steps if old is None else count_steps(had_length(old, config), len(source))
        if folder.finished and steps <= before:
            return False
        torch.manual_seed(config.seed)
        validation = _make_validation(opened, config, data, source, world, every)
        trainer = _make_trainer(Classifier(described, encoder), config, source, world, validation)
        trainer.identity = (old or description).get("identity")
        for line in (*data.told, describe_sizes(data)) if report is not None and world.is_main else ():
            report(line)
        trainer.tell([*(data.left_out if report is None else ()), *odd])
        if world.is_main:
            folder.create(description)
        world.barrier()
        with folder.claim() if world.is_main else nullcontext():
            _take_up(trainer, folder, old, steps)
            world.barrier()
            if world.is_main:
                if old is not None:
                    if folder.finished:
                        folder.reopen(before)
                    folder.adopt(old, description, trainer.step)
                write_parts(folder.path, opened, data.split)
            train(trainer, folder, steps, show=progress)
            _finish(trainer, validation, folder)
        world.barrier()
    return True


def describe_sizes(data: TrainingData | IdentityData) -> str:
    """How many recordings each part has, and what is learnt, for people."""
    sizes = ", ".join(f"{len(part):,} {name}" for name, part in data.split.parts().items() if len(part))
    if isinstance(data, IdentityData):
        return f"recordings: {sizes}; identities to train on: {data.n_identities:,}"
    what = "classes" if data.task == "classification" else "quantities"
    return f"recordings: {sizes}; {what}: {len(data.targets.names)}"


def _find(folder: RunFolder, description: dict[str, Any]) -> dict[str, Any] | None:
    """The description of the run that the folder holds, if that is the run described; None: it holds none.

    Raises:
        EcgfastError: it is another run, or something else.
    """
    old = folder.find()
    if old is None:
        return None
    old = old | {"config": completed(old["config"])}
    if isinstance(had := old.get("data"), dict):
        # Runs of earlier versions told nothing of a part to test on, which followed from their settings.
        newer = {name: description["data"].get(name) for name in ("n_test", "test_sha256")}
        old["data"] = newer | had
    folder.check(old, description)
    return old


def _make_validation(
    store: Store,
    config: FinetuneConfig,
    data: TrainingData | IdentityData,
    source: LabelledBatches,
    world: World,
    every: int,
) -> BestByValidation:
    bf16 = config.precision == "bf16"
    if isinstance(data, IdentityData):
        return BestEmbeddings(
            store,
            data.crops,
            config.leads,
            segment_samples=config.segment_samples,
            batch_size=config.batch_size,
            every=every,
            bf16=bf16,
        )
    held = data.split.validation
    windows = make_windows(source.loader, held, config.batch_size, config.segment_samples, world)
    classification = data.task == "classification"
    return BestOutputs(windows, held, data.targets, classification=classification, every=every, bf16=bf16)


def _make_trainer(
    classifier: Classifier,
    config: FinetuneConfig,
    source: LabelledBatches,
    world: World,
    validation: BestByValidation,
) -> Trainer:
    return Trainer(
        classifier,
        source,
        config,
        world,
        metrics=Classifier.metrics(classifier.config),
        watch=_Calm(),
        scales=classifier.learning_rate_scales(config.layer_decay) if config.layer_decay != 1 else None,
        validation=validation,
    )


def _take_up(trainer: Trainer, folder: RunFolder, old: dict[str, Any] | None, steps: int) -> None:
    take_up(
        trainer,
        folder,
        old,
        steps,
        start=f"as MODEL {folder.model}",
        model=f"ecgfast export {folder.path} OUT writes its best model",
    )
