"""Pre-training: the loop, from a store to a model folder."""

import math
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ecgfast.data import AdjacentPairs, Batch, Loader, ResidentLoader, SegmentLoader, Store
from ecgfast.errors import EcgfastError
from ecgfast.nn.pretrained import load_tensors
from ecgfast.objectives import W2VCMSC, PretrainOutput
from ecgfast.ops import make_rng
from ecgfast.plotting import plot_curves
from ecgfast.training.checkpoint import RunFolder, as_started, describe_run, had_length
from ecgfast.training.config import PretrainConfig
from ecgfast.training.distributed import World, open_world
from ecgfast.training.initial import describe_init, load_init
from ecgfast.training.metrics import MetricLog, MetricSums, check_finite
from ecgfast.training.optim import learning_rate, make_optimizer, scale_gradients_
from ecgfast.training.watch import Watch, check_store, weak_settings


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run after its state was saved; `signum` is the signal."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


class _StopRequest:
    """Notes SIGINT and SIGTERM, so the step under way can end; the second one acts at once."""

    def __init__(self) -> None:
        self.signum = 0

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum:
            raise KeyboardInterrupt
        self.signum = signum

    @contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._note) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Trainer:
    """Model, optimiser, data and random state of one process: what a checkpoint holds."""

    def __init__(self, config: PretrainConfig, loader: Loader, world: World) -> None:
        self.config, self.loader, self.world = config, loader, world
        torch.manual_seed(config.seed)
        self.model = W2VCMSC(config.model).to(world.device).train()
        if config.model.encoder.feature_grad_mult == 0:
            # DDP would wait for gradients that never come.
            self.model.encoder.stem.requires_grad_(False)
        # Rank 0's weights go to every process; the dropout of each process is its own.
        forward: nn.Module = self.model
        if world.size > 1:
            forward = nn.parallel.DistributedDataParallel(forward, gradient_as_bucket_view=True)
        self.replica = forward
        self.forward = torch.compile(forward) if config.compile else forward
        torch.manual_seed(config.seed + 1 + world.rank)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.parameters, config.optim)
        self.rng = make_rng(config.seed, 0, world.device)
        self.sums = MetricSums(world.device)
        self.step = 0
        self.saved: int | None = None  # step of the last checkpoint
        self.watch = Watch(config)
        self.identity: str | None = None  # of the run, kept in its states

    @property
    def segments_per_step(self) -> int:
        return 2 * self.config.batch_pairs * self.config.accumulation * self.world.size

    @property
    def epoch(self) -> float:
        return self.step * self.config.accumulation / len(self.loader)

    def batches(self) -> Iterator[Batch]:
        """Batches without end, from the one that the next step needs."""
        epoch, batch = divmod(self.step * self.config.accumulation, len(self.loader))
        position = {"epoch": epoch, "batch": batch}
        self.loader.load_state_dict(self.loader.state_dict() | position)
        while True:
            yield from self.loader
            epoch += 1
            self.loader.set_epoch(epoch)

    def _loss(self, batch: Batch) -> PretrainOutput:
        device = self.world.device
        tensors = (batch.signal, batch.patients, batch.sample_ids)
        signal_, patients, sample_ids = (t.to(device, non_blocking=True) for t in tensors)
        bf16 = self.config.precision == "bf16"
        group = self.world.group if self.config.global_batch else None
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return self.forward(signal_, patients, sample_ids, self.rng, process_group=group)

    def update(self, batches: Iterator[Batch]) -> None:
        """One update; nothing in it waits for the device."""
        optim = self.config.optim
        # Losses are sums over masked tokens; their number is the same sum over all processes.
        tokens = torch.zeros((), device=self.world.device)
        for left in reversed(range(self.config.accumulation)):
            apart = self.world.size > 1 and left > 0
            with self.replica.no_sync() if apart else nullcontext():
                out = self._loss(next(batches))
                out.loss.backward()
            self.sums.add_batch(out)
            tokens += out.sample_size
            self.tell(self.watch.masks(out.sample_size // (2 * self.config.batch_pairs)))
        # DDP has averaged the gradients over processes.
        factor = self.world.size / self.world.sum_(tokens)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        self.sums.add_step(scale_gradients_(gradients, factor, optim.clip_norm))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, optim)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.rng[1:].add_(1)
        self.step += 1

    def tell(self, messages: Iterable[str]) -> None:
        """Warn of what goes wrong, once for all processes."""
        for message in messages if self.world.is_main else ():
            warnings.warn(message)

    def read_metrics(self, *, keep: bool = False) -> dict[str, float]:
        """The log point of this step; `keep`: the sums go on as if it had not been read."""
        sums = self.sums.values.clone()
        self.world.sum_(self.sums.values)
        point = {"step": self.step, "epoch": self.epoch, **self.sums.read()}
        if keep:
            self.sums.values.copy_(sums)
        return point | {"lr": learning_rate(self.step - 1, self.config.optim)}

    def largest(self) -> float:
        """The largest absolute value of the weights and the optimiser's state; waits for the device."""
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return float(torch.nn.utils.get_total_norm([*self.parameters, *moments], math.inf))

    def state(self) -> dict[str, Any] | None:
        """The training state on the main process, None elsewhere; every process must call it."""
        own: dict[str, Tensor] = {"torch": torch.get_rng_state(), "sums": self.sums.values.cpu()}
        if self.world.device.type == "cuda":
            own["cuda"] = torch.cuda.get_rng_state(self.world.device)
        ranks = self.world.gather(own)
        if ranks is None:
            return None
        return {
            "format": 1,
            "step": self.step,
            "rng": self.rng.cpu(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ranks": ranks,
            "identity": self.identity,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state.

        Raises:
            EcgfastError: it is another run's.
        """
        if state.get("identity", self.identity) != self.identity:
            raise EcgfastError("is the state of a run with other settings or another store")
        try:
            load_tensors(self.model, state["model"], "its model", assign=False)
            self.optimizer.load_state_dict(state["optimizer"])
            self.rng.copy_(state["rng"])
            own = state["ranks"][self.world.rank]
            self.sums.restore(own["sums"])
            torch.set_rng_state(own["torch"])
            if "cuda" in own and self.world.device.type == "cuda":
                torch.cuda.set_rng_state(own["cuda"], self.world.device)
        except (AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__).strip()
            raise EcgfastError(f"does not fit this run: {reason}") from None
        self.step = self.saved = state["step"]


def count_steps(config: PretrainConfig, batches_per_epoch: int) -> int:
    """Updates of a whole run; micro-batches run on from one epoch into the next."""
    steps = config.epochs * batches_per_epoch // config.accumulation
    return min(steps, config.max_steps) if config.max_steps else steps


def _open_loader(store: Store, config: PretrainConfig, world: World) -> tuple[Loader, int]:
    plan = AdjacentPairs(
        store,
        config.batch_pairs,
        segment_samples=config.segment_samples,
        seed=config.seed,
        rank=world.rank,
        world_size=world.size,
        offsets=config.offsets,
    )
    leads = config.model.encoder.leads
    if config.loader == "resident":
        loader = ResidentLoader(plan, device=world.device, leads=leads)
    else:
        loader = SegmentLoader(plan, leads=leads, pin_memory=world.device.type == "cuda")
    steps = count_steps(config, len(loader))
    if steps == 0:
        raise EcgfastError(
            f"STORE: {str(store.path)!r} fills {len(loader)} batches of {config.batch_pairs} pairs in "
            f"each of {config.epochs} epochs; at least one update of {config.accumulation} batches "
            "is needed"
        )
    return loader, steps


class _Progress:
    """The bar, the log and the clock of the main process; does nothing on the others."""

    def __init__(self, run: RunFolder, trainer: _Trainer, steps: int, show: bool) -> None:
        main = trainer.world.is_main
        self.trainer = trainer
        # A shorter run logged its last step out of turn; its state holds the sums before that.
        beyond = bool(trainer.sums.values.any()) and trainer.step < steps
        self.log = MetricLog(run.path, trainer.step, drop_last=beyond) if main else None
        self.bar = tqdm(
            total=steps,
            initial=trainer.step,
            unit="step",
            disable=not (show and main),
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 10.0,  # a log file wants few lines
        )
        self._mark()

    def _mark(self) -> None:
        self.since = (time.perf_counter(), self.trainer.step)

    def write(self, point: dict[str, float]) -> None:
        seconds = time.perf_counter() - self.since[0]
        segments = (self.trainer.step - self.since[1]) * self.trainer.segments_per_step
        point["segments_per_second"] = segments / seconds
        if self.log is not None:
            self.log.write(point)
        codes = self.trainer.config.model.groups * self.trainer.config.model.entries
        self.bar.set_postfix_str(
            f"local {point['local']:.3f} global {point['global']:.3f} "
            f"diversity {point['diversity']:.4f} penalty {point['feature_penalty']:.3f} "
            f"accuracy {point['accuracy_strict']:.1%} perplexity {point['code_perplexity']:.1f} of {codes}, "
            f"{point['segments_per_second']:.0f} segments/s"
        )
        self._mark()

    def close(self) -> None:
        self.bar.close()
        if self.log is not None:
            self.log.close()


def _train(trainer: _Trainer, run: RunFolder, steps: int, show: bool) -> None:
    config, world = trainer.config, trainer.world
    stop = _StopRequest()
    progress = _Progress(run, trainer, steps, show)

    def save() -> None:
        # Alike on all processes, which so stop together.
        check_finite("largest weight or moment", trainer.largest(), trainer.step, trainer.saved)
        state = trainer.state()
        if state is not None:
            progress.log.sync()
            run.save_state(state)
        trainer.saved = trainer.step

    try:
        with stop.listening():
            batches = trainer.batches()
            while trainer.step < steps:
                trainer.update(batches)
                progress.bar.update()
                step = trainer.step
                in_turn = step == 1 or step % config.log_every == 0
                signum = stop.signum if world.size == 1 else 0
                if in_turn or step == steps:
                    point = trainer.read_metrics(keep=not in_turn)
                    check_finite("loss", point["loss"], step, trainer.saved)
                    progress.write(point)
                    trainer.tell(trainer.watch.point(point))
                    # Processes must stop at the same step: they agree where they wait anyway.
                    agreed = torch.tensor(float(stop.signum), device=world.device)
                    signum = int(world.max_(agreed))
                if signum or step % config.checkpoint_every == 0 or step == steps:
                    save()
                if signum and step < steps:
                    raise Interrupted(signum, f"stopped and saved after step {step} of {steps} in {run.path}")
    finally:
        progress.close()


def _finish(trainer: _Trainer, folder: RunFolder) -> None:
    """Draw the curves and write the model, which nothing about the curves may prevent."""
    try:
        plot_curves(folder.path / "metrics.jsonl", folder.path / "curves.png")
    except (OSError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        warnings.warn(f"{folder.path / 'curves.png'}: the curves can't be drawn: {error!r}")
    folder.save_model(trainer.model)


def _resume(trainer: _Trainer, folder: RunFolder, old: dict[str, Any] | None, steps: int) -> None:
    """Take up the run's last state, if there is one."""
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
            f"can start from its model: --init {folder.model}"
        )
    if old is not None and trainer.step > steps:
        raise EcgfastError(
            f"max_steps: must be at least {trainer.step}, the updates that the run in {str(folder.path)!r} "
            f"has made already, got {steps}; ecgfast export {folder.path} OUT writes its model"
        )


def pretrain(
    store: Path, run: Path, config: PretrainConfig, *, init: Path | None = None, progress: bool = True
) -> bool:
    """Pre-train on the recordings of `store` and leave everything in the folder `run`.

    A run that was stopped is taken up from its last checkpoint, and then ends with the same
    numbers, bit for bit, as one that never stopped (on the same machine and number of threads).
    `max_steps`, `epochs`, `log_every`, `checkpoint_every` and `loader` may change then; a finished run
    that is given more steps goes on from its end. A run of an earlier version keeps that version's
    architecture (`norm_padding`). Under torchrun each process takes its share of every
    epoch's pairs, on its own device.

    Args:
        store: folder written by `ecgfast prepare`.
        run: new or empty folder, or that of a run with the same configuration and store.
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
        UserWarning: the run can't learn: targets collapse, no negatives, no context; or a file beside
            the model (metrics, curves) can't be read or written.
    """
    store, folder = Path(store), RunFolder(Path(run))
    with open_world(config.device) as world:
        opened = Store(store)
        started_from = None if init is None else describe_init(Path(init))
        description = describe_run(config, store, world.size, started_from)
        old = folder.check(description)
        if old is not None:
            config = as_started(old, config)
        lengthened = old is not None and had_length(old, config) != config
        if folder.finished and not lengthened:
            return False
        odd = check_store(opened, config.model.encoder.leads)
        loader, steps = _open_loader(opened, config, world)
        before = steps if old is None else count_steps(had_length(old, config), len(loader))
        if folder.finished and steps <= before:
            return False
        trainer = _Trainer(config, loader, world)
        trainer.identity = (old or description).get("identity")
        trainer.tell([*odd, *weak_settings(config, world)])
        if not folder.states.exist and (started_from := (old or description).get("init")):
            load_init(trainer.model, started_from)
        if world.is_main:
            folder.create(description)
        world.barrier()
        with folder.claim() if world.is_main else nullcontext():
            _resume(trainer, folder, old, steps)
            world.barrier()
            if world.is_main and old is not None:
                if folder.finished:
                    folder.reopen(before)
                folder.adopt(old, description, trainer.step)
            _train(trainer, folder, steps, progress)
            if world.is_main:
                _finish(trainer, folder)
        world.barrier()
    return True
