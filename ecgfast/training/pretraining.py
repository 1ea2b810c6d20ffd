"""Pre-training: the loop, from a store to a model folder."""

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ecgfast.data import Batch, PairLoader, ResidentLoader, SegmentLoader, Store
from ecgfast.errors import EcgfastError
from ecgfast.objectives import W2VCMSC, PretrainOutput
from ecgfast.ops import make_rng
from ecgfast.plotting import plot_curves
from ecgfast.training.checkpoint import RunFolder, describe_run
from ecgfast.training.config import PretrainConfig
from ecgfast.training.distributed import World, open_world
from ecgfast.training.metrics import MetricLog, MetricSums, check_finite
from ecgfast.training.optim import learning_rate, make_optimizer, scale_gradients_


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

    def __init__(self, config: PretrainConfig, loader: PairLoader, world: World) -> None:
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
        tensors = (batch.signal, batch.groups, batch.sample_ids)
        signal_, groups, sample_ids = (t.to(device, non_blocking=True) for t in tensors)
        bf16 = self.config.precision == "bf16"
        group = self.world.group if self.config.global_batch else None
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return self.forward(signal_, groups, sample_ids, self.rng, process_group=group)

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

    def read_metrics(self) -> dict[str, float]:
        self.world.sum_(self.sums.values)
        point = {"step": self.step, "epoch": self.epoch, **self.sums.read()}
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
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.copy_(state["rng"])
        self.step = state["step"]
        own = state["ranks"][self.world.rank]
        self.sums.values.copy_(own["sums"])
        torch.set_rng_state(own["torch"])
        if "cuda" in own and self.world.device.type == "cuda":
            torch.cuda.set_rng_state(own["cuda"], self.world.device)


def count_steps(config: PretrainConfig, batches_per_epoch: int) -> int:
    """Updates of a whole run; micro-batches run on from one epoch into the next."""
    steps = config.epochs * batches_per_epoch // config.accumulation
    return min(steps, config.max_steps) if config.max_steps else steps


def _open_loader(store: Store, config: PretrainConfig, world: World) -> tuple[PairLoader, int]:
    options = {
        "segment_samples": config.segment_samples,
        "seed": config.seed,
        "rank": world.rank,
        "world_size": world.size,
        "offsets": config.offsets,
        "leads": config.model.encoder.leads,
    }
    if config.loader == "resident":
        loader = ResidentLoader(store, config.batch_pairs, device=world.device, **options)
    else:
        pin = world.device.type == "cuda"
        loader = SegmentLoader(store, config.batch_pairs, pin_memory=pin, **options)
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
        self.log = MetricLog(run.path, trainer.step) if main else None
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
        self.bar.set_postfix_str(
            f"local {point['local']:.3f} global {point['global']:.3f} "
            f"diversity {point['diversity']:.4f} penalty {point['feature_penalty']:.3f} "
            f"accuracy {point['accuracy']:.1%}, {point['segments_per_second']:.0f} segments/s"
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
        check_finite("largest weight or moment", trainer.largest(), trainer.step)
        state = trainer.state()
        if state is not None:
            progress.log.sync()
            run.save_state(state)

    try:
        with stop.listening():
            batches = trainer.batches()
            while trainer.step < steps:
                trainer.update(batches)
                progress.bar.update()
                step = trainer.step
                log = step == 1 or step % config.log_every == 0 or step == steps
                signum = stop.signum if world.size == 1 else 0
                if log:
                    point = trainer.read_metrics()
                    check_finite("loss", point["loss"], step)
                    progress.write(point)
                    # Processes must stop at the same step: they agree where they wait anyway.
                    agreed = torch.tensor(float(stop.signum), device=world.device)
                    signum = int(world.max_(agreed))
                if signum or step % config.checkpoint_every == 0 or step == steps:
                    save()
                if signum and step < steps:
                    raise Interrupted(signum, f"stopped and saved after step {step} of {steps} in {run.path}")
    finally:
        progress.close()


def pretrain(store: Path, run: Path, config: PretrainConfig, *, progress: bool = True) -> bool:
    """Pre-train on the recordings of `store` and leave everything in the folder `run`.

    A run that was stopped is taken up from its last checkpoint, and then ends with the same
    numbers, bit for bit, as one that never stopped (on the same machine and number of threads).
    Under torchrun each process takes its share of every epoch's pairs, on its own device.

    Args:
        store: folder written by `ecgfast prepare`.
        run: new or empty folder, or that of a run with the same configuration and store.
        config: what to train and how.
        progress: show a progress bar on stderr.

    Returns:
        False if the run was finished before, True otherwise.

    Raises:
        EcgfastError: no such store, no pair of segments in it, `run` is something else or
            was started differently, or the loss is no number any more.
        Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    store, folder = Path(store), RunFolder(Path(run))
    with open_world(config.device) as world:
        opened = Store(store)
        description = describe_run(config, store, world.size)
        folder.check(description)
        if folder.finished:
            return False
        loader, steps = _open_loader(opened, config, world)
        trainer = _Trainer(config, loader, world)
        if world.is_main:
            folder.create(description)
        world.barrier()
        with folder.claim() if world.is_main else nullcontext():
            state = folder.load_state()
            if state is not None:
                trainer.restore(state)
            _train(trainer, folder, steps, progress)
            if world.is_main:
                plot_curves(folder.path / "metrics.jsonl", folder.path / "curves.png")
                folder.save_model(trainer.model)
        world.barrier()
    return True
