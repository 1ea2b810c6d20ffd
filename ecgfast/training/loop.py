"""The training loop of every task: updates, signals, progress and checkpoints."""

import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.utils._pytree import tree_map_only
from tqdm import tqdm

from ecgfast.errors import EcgfastError
from ecgfast.objectives.base import Losses, Metric
from ecgfast.ops import make_rng
from ecgfast.training.config import LoopConfig
from ecgfast.training.metrics import MetricLog, MetricSums, bar_text, check_finite
from ecgfast.training.optim import learning_rate, make_optimizer, scale_gradients_
from ecgfast.training.parallel import Replica, World, largest
from ecgfast.training.run_folder import RunFolder


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


class Source(Protocol):
    """Where batches come from."""

    rows: int
    """Segments in a batch of one process."""
    samples: int
    """Samples of each."""

    def __len__(self) -> int:
        """Batches of an epoch."""

    def batches(self, start: int) -> Iterator[Any]:
        """Batches without end, from the run's number `start` on, each what the model's `forward` takes."""


class Critic(Protocol):
    """What looks at a run while it trains."""

    def batch(self, losses: Losses, n_rows: int, n_samples: int) -> list[str]:
        """What goes wrong with a batch of `n_rows` rows of `n_samples`, for people; never waits."""

    def point(self, point: Mapping[str, float]) -> list[str]:
        """What goes wrong at a log point, for people."""


class Validation(Protocol):
    """Looks at a model between updates, on data that it never trains on, and keeps the best one."""

    every: int
    """Updates from one look to the next."""
    metrics: Sequence[Metric]
    """What it adds to log points."""

    def look(self, trainer: "Trainer") -> dict[str, float]:
        """The numbers of this step, on the main process; every process must call it."""

    def state_dict(self) -> dict[str, Any]:
        """What it keeps between looks, for a training state."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""


class Trainer:
    """Model, optimiser, data and random state of one process: what a checkpoint holds.

    Args:
        model: `forward(batch, rng, process_group=...)` gives its `Losses`, and `after_update(rng)` follows
            each update (see `ecgfast.objectives.base.Objective`).
        source: of its batches.
        config: how to train it.
        world: the processes.
        metrics: what its log points tell.
        watch: looks at its batches and log points.
        process_group: what the losses contrast over; None: each process by itself.
        scales: factors on the learning rate, by the names of parameters; None: all have the same rate.
        validation: looks at the model between updates; None: nothing does.
    """

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        config: LoopConfig,
        world: World,
        *,
        metrics: Sequence[Metric],
        watch: Critic,
        process_group: ProcessGroup | None = None,
        scales: Mapping[str, float] | None = None,
        validation: Validation | None = None,
    ) -> None:
        self.source, self.config, self.world = source, config, world
        self.metrics, self.watch, self.process_group = metrics, watch, process_group
        self.validation = validation
        self.steps = count_steps(config, len(source))  # over which the learning rate goes
        self.replica = Replica(model, world, compiled=config.compile)
        self.model = self.replica.model
        # The dropout of each process is its own.
        torch.manual_seed(config.seed + 1 + world.rank)
        self.parameters = self.replica.parameters
        groups = self.parameters if scales is None else _scaled_groups(self.model, scales)
        self.optimizer = make_optimizer(groups, config.optim)
        self.rng = make_rng(config.seed, 0, world.device)
        self.sums = MetricSums(metrics, world.device)
        self.step = 0
        self.saved: int | None = None  # step of the last checkpoint
        self.identity: str | None = None  # of the run, kept in its states

    @property
    def segments_per_step(self) -> int:
        return self.source.rows * self.config.accumulation * self.world.size

    @property
    def epoch(self) -> float:
        return self.step * self.config.accumulation / len(self.source)

    def batches(self) -> Iterator[Any]:
        """Batches without end, from the one that the next step needs."""
        return self.source.batches(self.step * self.config.accumulation)

    def _losses(self, batch: Any) -> Losses:
        device = self.world.device
        batch = tree_map_only(Tensor, lambda t: t.to(device, non_blocking=True), batch)
        bf16 = self.config.precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return self.replica.forward(batch, self.rng, process_group=self.process_group)

    def update(self, batches: Iterator[Any]) -> None:
        """One update; nothing in it waits for the device."""
        optim = self.config.optim
        # Losses are sums; what they are divided by is the same sum over all processes.
        size = torch.zeros((), device=self.world.device)
        for left in reversed(range(self.config.accumulation)):
            with self.replica.accumulating() if left else nullcontext():
                losses = self._losses(next(batches))
                losses.total.backward()
            self.sums.add_batch(losses)
            size += losses.size
            self.tell(self.watch.batch(losses, self.source.rows, self.source.samples))
        # The gradients are means over processes.
        factor = self.world.size / self.world.sum_(size)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        self.sums.add_step(scale_gradients_(gradients, factor, optim.clip_norm))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, optim, self.steps) * group.get("scale", 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.model.after_update(self.rng)
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
        return point | {"lr": learning_rate(self.step - 1, self.config.optim, self.steps)}

    def largest(self) -> float:
        """The largest absolute value of the weights and the optimiser's state; waits for the device."""
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return largest([*self.parameters, *moments])

    def state(self) -> dict[str, Any] | None:
        """The training state on the main process, None elsewhere; every process must call it."""
        own: dict[str, Any] = {"torch": torch.get_rng_state(), **self.sums.state_dict()}
        if self.world.device.type == "cuda":
            own["cuda"] = torch.cuda.get_rng_state(self.world.device)
        ranks = self.world.gather(own)
        whole = self.replica.full_state(self.optimizer)
        if ranks is None:
            return None
        return {
            "format": 1,
            "step": self.step,
            "rng": self.rng.cpu(),
            **whole,
            "ranks": ranks,
            "identity": self.identity,
            **({"validation": self.validation.state_dict()} if self.validation is not None else {}),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state.

        Raises:
            EcgfastError: it is another run's.
        """
        if state.get("identity", self.identity) != self.identity:
            raise EcgfastError("is the state of a run with other settings or another store")
        try:
            self.replica.load_full_state(self.optimizer, state)
            self.rng.copy_(state["rng"])
            own = state["ranks"][self.world.rank]
            self.sums.load_state_dict(own)
            torch.set_rng_state(own["torch"])
            if self.validation is not None:
                self.validation.load_state_dict(state["validation"])
            if "cuda" in own and self.world.device.type == "cuda":
                torch.cuda.set_rng_state(own["cuda"], self.world.device)
        except (AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__).strip()
            raise EcgfastError(f"does not fit this run: {reason}") from None
        self.step = self.saved = state["step"]


def _scaled_groups(model: nn.Module, scales: Mapping[str, float]) -> list[dict[str, Any]]:
    """The trained parameters by their factors on the learning rate, in the model's order."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(scales[name], []).append(parameter)
    return [{"params": parameters, "scale": scale} for scale, parameters in groups.items()]


def count_steps(config: LoopConfig, batches_per_epoch: int) -> int:
    """Updates of a whole run; micro-batches run on from one epoch into the next."""
    steps = config.epochs * batches_per_epoch // config.accumulation
    return min(steps, config.max_steps) if config.max_steps else steps


class _Progress:
    """The bar, the log and the clock of the main process; does nothing on the others."""

    def __init__(self, run: RunFolder, trainer: Trainer, steps: int, show: bool) -> None:
        main = trainer.world.is_main
        self.trainer = trainer
        # A shorter run logged its last step out of turn; its state holds the sums before that.
        beyond = bool(trainer.sums.values.any()) and trainer.step < steps
        shown = () if trainer.validation is None else trainer.validation.metrics
        self.metrics = (*trainer.metrics, *shown)
        self.log = MetricLog(run.path, self.metrics, trainer.step, drop_last=beyond) if main else None
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

    def write(self, point: dict[str, float], looking: float) -> None:
        """Log a point; `looking`: seconds since the last one that no update took."""
        seconds = time.perf_counter() - self.since[0] - looking
        segments = (self.trainer.step - self.since[1]) * self.trainer.segments_per_step
        point["segments_per_second"] = segments / seconds
        if self.log is not None:
            self.log.write(point)
        self.bar.set_postfix_str(bar_text(self.metrics, point))
        self._mark()

    def close(self) -> None:
        self.bar.close()
        if self.log is not None:
            self.log.close()


def train(trainer: Trainer, run: RunFolder, steps: int, *, show: bool) -> None:
    """Update until `steps` are made, writing log points and states into the run's folder.

    Args:
        trainer: with the state to go on from.
        run: folder, claimed by this process.
        steps: updates of the whole run.
        show: a progress bar on stderr.

    Raises:
        EcgfastError: the loss, a weight or a moment is no number any more; a state can't be written.
        Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
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
                looked = trainer.validation is not None and step % trainer.validation.every == 0
                in_turn = step == 1 or step % config.log_every == 0 or looked
                signum = stop.signum if world.size == 1 else 0
                if in_turn or step == steps:
                    point = trainer.read_metrics(keep=not in_turn)
                    check_finite("loss", point["loss"], step, trainer.saved)
                    begin = time.perf_counter()
                    if looked:
                        point |= trainer.validation.look(trainer)
                    progress.write(point, time.perf_counter() - begin)
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
