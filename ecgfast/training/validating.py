"""What a pre-training model's losses are on recordings that it never trains on."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ecgfast.objectives.base import Metric, Views
from ecgfast.ops import make_rng
from ecgfast.training.loop import Trainer
from ecgfast.training.metrics import MetricSums, check_finite

_PREFIX = "validation_"


class Part(Protocol):
    """Where the batches of a validation part come from."""

    def first_epoch(self) -> Iterator[Views]:
        """The same batches in the same order each time."""


class PartValidation:
    """The losses and metrics of an objective on a part of the data, in evaluation mode.

    Every look has the same batches and the same random choices, those of step 0, so numbers of different
    steps and runs compare. The model, the optimiser and all random states stay as they were.

    Some differ from training's for the mode's sake: without Gumbel noise the codes of alike tokens are the
    same more often, so that more negatives drop out of the local loss, which is lower.

    Args:
        source: of the part's batches on this process.
        metrics: the objective's.
        every: updates from one look to the next.

    Attributes:
        every: likewise.
        metrics: what a look gives, see `validation_metrics`.
    """

    def __init__(self, source: Part, metrics: Sequence[Metric], every: int) -> None:
        self.every = every
        self.metrics = validation_metrics(metrics)
        self._source, self._of = source, tuple(metrics)

    def look(self, trainer: Trainer) -> dict[str, float]:
        """The numbers of this step, alike on all processes, all of which must call it."""
        device = trainer.world.device
        sums = MetricSums(self._of, device)
        with torch.random.fork_rng(devices=[device.index] if device.type == "cuda" else []):
            torch.manual_seed(trainer.config.seed)
            self._add(trainer, sums)
        trainer.world.sum_(sums.values)
        found = sums.read()
        numbers = {metric.name: found[metric.beside] for metric in self.metrics}
        for name, value in numbers.items():
            check_finite(name, value, trainer.step, trainer.saved)
        return numbers

    @torch.no_grad()
    def _add(self, trainer: Trainer, sums: MetricSums) -> None:
        model, device = trainer.model, trainer.world.device
        bf16 = trainer.config.precision == "bf16"
        rng = make_rng(trainer.config.seed, 0, device)
        was_training = model.training
        model.eval()
        try:
            for views in self._source.first_epoch():
                batch = tree_map_only(Tensor, lambda t: t.to(device, non_blocking=True), views)
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    losses = model(batch, rng, process_group=trainer.process_group)
                sums.add_batch(losses)
        finally:
            model.train(was_training)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a look depends on the model alone."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""


def validation_metrics(metrics: Sequence[Metric]) -> tuple[Metric, ...]:
    """What a validation adds to log points: those of the metrics that people are shown, under other names."""
    return tuple(
        metric._replace(
            name=_PREFIX + metric.name,
            of="",
            legend=f"{metric.legend}, validation" if metric.legend else "validation",
            bar="validation {:.3f}" if metric.name == "loss" else "",
            note="of validation" if metric.row else "",
            chance=None,
            beside=metric.name,
        )
        for metric in metrics
        if metric.of and (metric.row or metric.bar)
    )
