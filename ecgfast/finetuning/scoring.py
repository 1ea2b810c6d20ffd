"""What a classifier says of a store's recordings, and how right it is on those held back."""

import copy
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ecgfast.data import Loader, Windows
from ecgfast.errors import EcgfastError
from ecgfast.finetuning.classifier import Classifier, shortest_window
from ecgfast.finetuning.targets import Targets
from ecgfast.objectives.base import Metric, Panel
from ecgfast.training.loop import Trainer
from ecgfast.training.metrics import check_finite
from ecgfast.training.parallel import World

_LOSS = Panel("Loss", "per known target")
_AUROC = Panel("AUROC", "macro, of validation")
_ERROR = Panel("Mean absolute error", "in the target's unit")


def make_windows(
    loader: Loader, recordings: np.ndarray, batch_size: int, segment_samples: int, world: World
) -> Loader:
    """A loader of the windows that cover recordings, of a loader of the same store."""
    plan = Windows(
        loader.plan.store,
        batch_size,
        recordings,
        segment_samples=segment_samples,
        shortest=shortest_window(segment_samples),
        rank=world.rank,
        world_size=world.size,
    )
    return loader.for_plan(plan)


@torch.no_grad()
def score_recordings(
    classifier: Classifier,
    windows: Loader,
    recordings: np.ndarray,
    world: World,
    *,
    leads: Sequence[str] | None = None,
    bf16: bool = False,
) -> np.ndarray | None:
    """Outputs of recordings, each the mean over its windows: float64 [n, K]; None but on the main process.

    Args:
        classifier: it is in evaluation mode meanwhile.
        windows: see `make_windows`.
        recordings: their numbers, in the order of the result.
        world: processes, each of which scores its part of the windows; all must call it.
        leads: those of the windows; None: the classifier's.
        bf16: compute in bfloat16 where autocast allows it.
    """
    was_training = classifier.training
    classifier.eval()
    ids, rows, outputs = [], [], []
    try:
        for batch in windows:
            signal = batch.signal.to(world.device, non_blocking=True)
            lengths = None if batch.lengths is None else batch.lengths.to(world.device)
            with torch.autocast(world.device.type, torch.bfloat16, enabled=bf16):
                logits = classifier.logits(signal, lengths, leads)
            outputs.append(classifier.outputs(logits).double().cpu())
            ids.append(batch.sample_ids.cpu())
            rows.append(batch.recording.cpu())
    finally:
        classifier.train(was_training)
    k = len(classifier.config.names)
    own = (
        torch.cat(ids).numpy() if ids else np.zeros(0, np.int64),
        torch.cat(rows).numpy() if rows else np.zeros(0, np.int64),
        torch.cat(outputs).numpy() if outputs else np.zeros((0, k)),
    )
    parts = world.gather(own)
    if parts is None:
        return None
    number, recording, output = (np.concatenate(column) for column in zip(*parts, strict=True))
    # In the order of the windows, however many processes there were: sums round alike.
    order = np.argsort(number, kind="stable")
    place = np.full(int(recordings.max()) + 1, -1)
    place[recordings] = np.arange(len(recordings))
    at = place[recording[order]]
    total = np.zeros((len(recordings), k))
    np.add.at(total, at, output[order])
    return total / np.bincount(at, minlength=len(recordings))[:, None]


def macro_auroc(targets: np.ndarray, outputs: np.ndarray) -> float:
    """Mean over the classes that have both values of the area under the ROC curve (scikit-learn)."""
    from sklearn.metrics import roc_auc_score

    areas = []
    for k in range(targets.shape[1]):
        known = ~np.isnan(targets[:, k])
        truth = targets[known, k]
        if len(np.unique(truth)) == 2:
            areas.append(roc_auc_score(truth, outputs[known, k]))
    return float(np.mean(areas))


def check_validation(targets: Targets, recordings: np.ndarray, *, classification: bool) -> list[str]:
    """Refuse a validation part that tells nothing; and what it can't tell of, for people.

    Raises:
        EcgfastError: no class has both values there; scikit-learn is absent.
    """
    if not classification:
        return []
    if importlib.util.find_spec("sklearn") is None:
        raise EcgfastError(
            "scikit-learn: must be installed to validate (pip install 'ecgfast[evaluation]'), got none"
        )
    values = targets.values[recordings]
    single = [name for k, name in enumerate(targets.names) if not {0.0, 1.0} <= set(values[:, k].tolist())]
    if len(single) == len(targets.names):
        raise EcgfastError("split: must have a class with both values in validation, got none")
    if single:
        named = ", ".join(single[:5]) + (", ..." if len(single) > 5 else "")
        return [f"classes of one value in validation are not in its AUROC: {named}"]
    return []


class BestByValidation:
    """Scores the recordings held back, and keeps the weights that do so best.

    The best has the highest macro AUROC, or the lowest mean absolute error; of equal ones the first.

    Args:
        windows: of the recordings, see `make_windows`.
        recordings: their numbers.
        targets: of the whole store.
        classification: whether the targets are classes.
        every: updates from one look to the next.
        bf16: compute in bfloat16 where autocast allows it.
    """

    def __init__(
        self,
        windows: Loader,
        recordings: np.ndarray,
        targets: Targets,
        *,
        classification: bool,
        every: int,
        bf16: bool,
    ) -> None:
        self.windows, self.recordings, self.every, self._bf16 = windows, recordings, every, bf16
        self._targets = targets.values[recordings].astype(np.float64)
        self._classification = classification
        self.metrics = validation_metrics(classification=classification)
        self.best: dict[str, Any] = {}  # score, step and the model's tensors

    def look(self, trainer: Trainer) -> dict[str, float]:
        """The numbers of this step, on the main process; every process must call it."""
        model = trainer.model
        outputs = score_recordings(model, self.windows, self.recordings, trainer.world, bf16=self._bf16)
        whole = trainer.replica.full_model()
        if outputs is None or whole is None:
            return {}
        check_finite("validation's largest output", float(np.abs(outputs).max()), trainer.step, trainer.saved)
        known = ~np.isnan(self._targets)
        if self._classification:
            score = macro_auroc(self._targets, outputs)
            sure = np.clip(outputs, 1e-7, 1 - 1e-7)
            each = np.where(self._targets > 0.5, -np.log(sure), -np.log1p(-sure))
            numbers = {"val_loss": float(each[known].mean()), "val_auroc": score}
        else:
            error = (outputs - self._targets)[known]
            score = -float(np.abs(error).mean())
            std = np.array(model.config.std)
            squares = (((outputs - self._targets) / std) ** 2)[known]
            numbers = {"val_loss": float(squares.mean()), "val_mae": -score}
        if not self.best or score > self.best["score"]:
            tensors = {name: value.to("cpu", copy=True) for name, value in whole.state_dict().items()}
            self.best = {"score": score, "step": trainer.step, "model": tensors}
        return numbers

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return copy.copy(self.best)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.best = dict(state)


def validation_metrics(*, classification: bool) -> tuple[Metric, ...]:
    """What validation adds to log points."""
    loss = Metric("val_loss", _LOSS, "", term=True, legend="validation", row=".4f")
    if classification:
        return loss, Metric("val_auroc", _AUROC, "", bar="AUROC {:.3f}", row=".4f", note="of validation")
    return loss, Metric("val_mae", _ERROR, "", legend="validation", bar="validation {:.3g}", row=".4f")
