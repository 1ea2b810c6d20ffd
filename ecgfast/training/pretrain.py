"""Pre-training: from a store to a model folder."""

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from ecgfast.data import Batch, Loader, ResidentLoader, SegmentLoader
from ecgfast.errors import EcgfastError
from ecgfast.nn import EncoderConfig
from ecgfast.objectives.base import Objective, Views
from ecgfast.objectives.registry import objective_class
from ecgfast.training.config import PretrainConfig, completed, renamed
from ecgfast.training.data import (
    Data,
    describe_preprocessing,
    make_plan,
    make_validation_plan,
    open_data,
    resolved,
)
from ecgfast.training.initial import describe_init, load_init
from ecgfast.training.loop import Trainer, count_steps, train
from ecgfast.training.parallel import World, open_world
from ecgfast.training.reports import plot_run, rows_contrasted
from ecgfast.training.run_folder import RunFolder, describe_run, had_length
from ecgfast.training.validating import PartValidation
from ecgfast.training.watch import Watch, check_store

TASK = "pretrain"


class Batches:
    """The batches of a loader, as an objective sees them, from any one of the run on.

    Attributes:
        rows: segments in a batch of one process.
        samples: of each.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.rows = loader.plan.batch_size * loader.plan.rows_per_unit
        self.samples = loader.plan.segment_samples

    def __len__(self) -> int:
        return len(self.loader)

    def batches(self, start: int) -> Iterator[Views]:
        """Batches without end, from the run's number `start` on."""
        epoch, batch = divmod(start, len(self.loader))
        self.loader.load_state_dict(self.loader.state_dict() | {"epoch": epoch, "batch": batch})
        while True:
            yield from map(_views, self.loader)
            epoch += 1
            self.loader.set_epoch(epoch)

    def first_epoch(self) -> Iterator[Views]:
        """The batches of epoch 0, the same in the same order each time."""
        self.loader.set_epoch(0)
        return map(_views, self.loader)


def _views(batch: Batch) -> Views:
    return Views(batch.signal, batch.patients, batch.sample_ids, batch.lengths)


def open_batches(data: Data, config: PretrainConfig, world: World) -> tuple[Batches, int, list[str]]:
    """The batches of a run, how many updates they make, and what they leave out, for people.

    Raises:
        EcgfastError: the stores fill too few batches.
    """
    plan, notes = make_plan(data, config, world)
    leads = config.model.encoder.leads
    if config.loader == "resident":
        loader = ResidentLoader(plan, device=world.device, leads=leads)
    else:
        loader = SegmentLoader(plan, leads=leads, pin_memory=world.device.type == "cuda")
    steps = count_steps(config, len(loader))
    if steps == 0:
        raise EcgfastError(
            f"STORE: {str(data.store.path)!r} fills {len(loader)} batches of {plan.batch_size} {plan.unit} "
            f"in each of {config.epochs} epochs; at least one update of {config.accumulation} batches "
            "is needed"
        )
    return Batches(loader), steps, notes


def open_validation(
    data: Data, source: Batches, config: PretrainConfig, world: World
) -> tuple[PartValidation | None, list[str]]:
    """The validation of a run, None if it has none, and what is odd about its part, for people.

    Raises:
        EcgfastError: its part has too little for a batch.
    """
    if data.validation is None:
        return None, []
    plan, notes = make_validation_plan(data, config, world)
    batches = Batches(source.loader.for_plan(plan))
    metrics = objective_class(config.objective).metrics(config.model, _rows(config, world))
    return PartValidation(batches, metrics, config.validate_every), notes


def make_objective(config: PretrainConfig) -> Objective:
    """The objective with the weights that the seed gives it."""
    torch.manual_seed(config.seed)
    objective = objective_class(config.objective)(config.model)
    if config.model.encoder.feature_grad_mult == 0:
        # DDP would wait for gradients that never come.
        objective.encoder.stem.requires_grad_(False)
    return objective


def make_trainer(
    objective: Objective,
    source: Batches,
    config: PretrainConfig,
    world: World,
    validation: PartValidation | None = None,
) -> Trainer:
    """A trainer of an objective, at the run's start."""
    return Trainer(
        objective,
        source,
        config,
        world,
        metrics=objective.metrics(config.model, _rows(config, world)),
        watch=Watch(type(objective), config.model, config.optim.warmup_steps),
        process_group=world.group if config.global_batch else None,
        validation=validation,
    )


def _rows(config: PretrainConfig, world: World) -> int:
    return rows_contrasted(config.batch_pairs, config.global_batch, world.size)


def as_started(old: dict[str, Any], config: PretrainConfig) -> PretrainConfig:
    """`config` with the architecture of the run `old`, whose version may not have had all its settings."""
    model = old["config"].get("model")
    described = model.get("encoder") if isinstance(model, dict) else None
    described = described if isinstance(described, dict) else {}
    absent = {name: value for name, value in EncoderConfig.BEFORE.items() if name not in described}
    encoder = dataclasses.replace(config.model.encoder, **absent)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, encoder=encoder))


def _finish(trainer: Trainer, folder: RunFolder, preprocessing: Any) -> None:
    """Draw the curves and write the model, which nothing about the curves may prevent."""
    model = trainer.replica.full_model()
    if model is None:
        return
    model.preprocessing = preprocessing
    try:
        plot_run(folder.path, folder.path / "curves.png")
    except (OSError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        warnings.warn(f"{folder.path / 'curves.png'}: the curves can't be drawn: {error!r}")
    folder.save_model(model)


def take_up(
    trainer: Trainer, folder: RunFolder, old: dict[str, Any] | None, steps: int, *, start: str, model: str
) -> None:
    """Take up the run's last state, if there is one.

    Args:
        trainer: at the run's start.
        folder: of the run.
        old: the run that it holds; None: a new one.
        steps: updates of the whole run.
        start: how a new run starts from a model, for messages.
        model: how to get the model of a run that goes on, likewise.

    Raises:
        EcgfastError: the state is damaged, another run's, gone, or of more updates than `steps`.
    """
    state = folder.load_state()
    if state is not None:
        try:
            trainer.restore(state)
        except EcgfastError as error:
            raise EcgfastError(
                f"{folder.state}: {error}; put the run's own in its place, or delete "
                f"{folder.states.folder} to start the run over"
            ) from None
    elif folder.finished:
        raise EcgfastError(
            f"RUN: {str(folder.path)!r} is finished and its checkpoint is gone, so it can't go on; a new run "
            f"can start from its model: {start}"
        )
    if old is not None and trainer.step > steps:
        raise EcgfastError(
            f"max_steps: must be at least {trainer.step}, the updates that the run in {str(folder.path)!r} "
            f"has made already, got {steps}; {model}"
        )


def _find(folder: RunFolder) -> dict[str, Any] | None:
    """The description of the run in the folder, in today's names; None if it holds none."""
    old = folder.find()
    if old is None:
        return None
    try:
        return old | {"config": renamed(old["config"])}
    except EcgfastError as error:
        raise EcgfastError(f"{folder.config}: {error}") from None


def _described(
    data: Data, config: PretrainConfig, world: World, started_from: dict[str, Any] | None
) -> dict[str, Any]:
    """What the run's config.json says, see `describe_run`; how the stores were made decides nothing."""
    paths = [store.path for store in data.stores]
    description = describe_run(TASK, config, paths, world.size, started_from, data.describe())
    return description | {"preprocessing": describe_preprocessing(data.stores)}


def _validating(
    config: PretrainConfig, old: dict[str, Any] | None, data: Data, world: World
) -> PretrainConfig:
    """`config` with the updates between validations: those of the run `old`, or those of a new run."""
    if not config.validates or config.validate_every:
        return config
    every = 0 if old is None else old["config"].get("validate_every", 0)
    if every:
        return dataclasses.replace(config, validate_every=every)
    plan, _ = make_plan(data, config, world)
    # told in config.json: it must not change where the run goes on for longer
    return resolved(config, len(plan), count_steps(config, len(plan)))


def pretrain(
    store: Path | Sequence[Path],
    run: Path,
    config: PretrainConfig,
    *,
    init: Path | None = None,
    progress: bool = True,
) -> bool:
    """Pre-train on the recordings of one store or several and leave everything in the folder `run`.

    A run that was stopped is taken up from its last checkpoint, and then ends with the same
    numbers, bit for bit, as one that never stopped (on the same machine and number of threads).
    `max_steps`, `epochs`, `log_every`, `checkpoint_every` and `loader` may change then; a finished run
    that is given more steps goes on from its end. A run of an earlier version keeps that version's
    architecture (`norm_padding`). Under torchrun each process takes its share of every
    epoch's pairs, on its own device.

    Several stores are mixed in every epoch, in shares that follow `store_weights` (see
    `ecgfast.data.Mixture`). Patients of two stores count as different ones, unless both stores were imported
    from the same folder (see `ecgfast.data.JoinedStores`). One that is too short for a segment is left out.

    With a validation part the objective's losses on it, in evaluation mode and with the same random choices
    each time, stand in the log as `validation_loss` and so on.

    Args:
        store: folder written by `ecgfast prepare`, or several.
        run: new or empty folder, or that of a run with the same configuration and stores.
        config: what to train and how.
        init: model folder to start from, a pre-training model's or an encoder's; None: random weights,
            or what the run in `run` was started from.
        progress: show a progress bar on stderr.

    Returns:
        False if the run was finished before, True otherwise.

    Raises:
        EcgfastError: no such store, a damaged one, no pair of segments in it, `run` is something else or
            was started differently, `init` is of another architecture, or the loss is no number any more.
        Interrupted: SIGINT or SIGTERM came; the state is saved.

    Warns:
        UserWarning: the run can't learn: targets collapse, no negatives, no context; stores were made
            differently, or recordings are left out; or a file beside the model (metrics, curves) can't be
            read or written.
    """
    paths = [Path(store)] if isinstance(store, str | Path) else [Path(one) for one in store]
    folder = RunFolder(Path(run))
    with open_world(config.device) as world:
        data = open_data(paths, config)
        started_from = None if init is None else describe_init(Path(init))
        old = _find(folder)
        if old is not None:
            config = as_started(old, config)
        config = _validating(config, old, data, world)
        description = _described(data, config, world, started_from)
        if old is not None:
            folder.check(old | {"config": completed(old["config"])}, description)
        lengthened = old is not None and had_length(old, config) != config
        if folder.finished and not lengthened:
            return False
        odd = list(data.notes)
        for i, one in enumerate(data.stores):
            odd += check_store(one, config.model.encoder.leads, data.used(i))
        source, steps, told = open_batches(data, config, world)
        if config.validate_every > steps:
            raise EcgfastError(
                f"validate_every: must be at most the run's {steps} updates, got {config.validate_every}"
            )
        validation, of_validation = open_validation(data, source, config, world)
        before = steps if old is None else count_steps(had_length(old, config), len(source))
        if folder.finished and steps <= before:
            return False
        objective = make_objective(config)
        if not folder.states.exist and (started_from := (old or description).get("init")):
            load_init(objective, started_from)
        trainer = make_trainer(objective, source, config, world, validation)
        trainer.identity = (old or description).get("identity")
        trainer.tell(
            [
                *odd,
                *told,
                *of_validation,
                *objective.weaknesses(config.model, _rows(config, world)),
            ]
        )
        if world.is_main:
            folder.create(description)
        world.barrier()
        with folder.claim() if world.is_main else nullcontext():
            exporting = f"ecgfast export {run} OUT writes its model"
            take_up(trainer, folder, old, steps, start=f"--init {folder.model}", model=exporting)
            world.barrier()
            if world.is_main and old is not None:
                if folder.finished:
                    folder.reopen(before)
                folder.adopt(old, description, trainer.step)
            train(trainer, folder, steps, show=progress)
            _finish(trainer, folder, description["preprocessing"])
        world.barrier()
    return True
