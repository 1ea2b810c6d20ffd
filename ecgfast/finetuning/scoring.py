"""What a classifier says of a store's recordings, and how right it is on those held back."""

import copy
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ecgfast.data import Loader, Store, Windows
from ecgfast.errors import EcgfastError
from ecgfast.evaluation import (
    GalleryProbe,
    IdentificationReport,
    average_by_recording,
    identification_report,
)
from ecgfast.finetuning.arcface import unit_vectors
from ecgfast.finetuning.classifier import Classifier, shortest_window
from ecgfast.finetuning.targets import Targets
from ecgfast.leads import lead_indices
from ecgfast.objectives.base import Metric, Panel
from ecgfast.training.loop import Trainer
from ecgfast.training.parallel import World

_LOSS = Panel("Loss", "per known target")
_AUROC = Panel("AUROC", "macro, of validation")
_ERROR = Panel("Mean absolute error", "in the target's unit")
_RANK = Panel("Rank 1", "share of validation's probes")
_EER = Panel("Equal error rate", "of validation's pairs")


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
    classifier.check_tells()
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
    if not np.isfinite(output).all():
        bad = recording[int(np.argmin(np.isfinite(output).all(1)))]
        raise EcgfastError(f"MODEL: must give numbers, got NaN or infinity of recording {bad}")
    # In the order of the windows, however many processes there were: sums round alike.
    order = np.argsort(number, kind="stable")
    found, means = average_by_recording(output[order], recording[order])
    return means[np.searchsorted(found, recordings)]


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


def check_sklearn() -> None:
    """Raise `EcgfastError` if scikit-learn, which scores the validation, is absent."""
    if importlib.util.find_spec("sklearn") is None:
        raise EcgfastError(
            "scikit-learn: must be installed to validate (pip install 'ecgfast[evaluation]'), got none"
        )


def check_validation(targets: Targets, recordings: np.ndarray, *, classification: bool) -> list[str]:
    """Refuse a validation part that tells nothing; and what it can't tell of, for people.

    Raises:
        EcgfastError: no class has both values there; scikit-learn is absent.
    """
    if not classification:
        return []
    check_sklearn()
    values = targets.values[recordings]
    single = [name for k, name in enumerate(targets.names) if not {0.0, 1.0} <= set(values[:, k].tolist())]
    if len(single) == len(targets.names):
        raise EcgfastError("split: must have a class with both values in validation, got none")
    if single:
        named = ", ".join(single[:5]) + (", ..." if len(single) > 5 else "")
        return [f"classes of one value in validation are not in its AUROC: {named}"]
    return []


class BestByValidation(ABC):
    """Looks at a model on recordings held back, and keeps the weights that do best; of equal ones the first.

    Args:
        every: updates from one look to the next.
    """

    metrics: tuple[Metric, ...]

    def __init__(self, every: int) -> None:
        self.every = every
        self.best: dict[str, Any] = {}  # score, step and the model's tensors

    @abstractmethod
    def judge(self, trainer: Trainer) -> tuple[dict[str, float], Any] | None:
        """The numbers of this step and a score, the higher the better; None but on the main process."""

    def look(self, trainer: Trainer) -> dict[str, float]:
        """The numbers of this step, on the main process; every process must call it."""
        judged = self.judge(trainer)
        whole = trainer.replica.full_model()
        if judged is None or whole is None:
            return {}
        numbers, score = judged
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


class BestOutputs(BestByValidation):
    """Scores what a model says of recordings: the best has the highest macro AUROC, or the lowest error.

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
        super().__init__(every)
        self.windows, self.recordings, self._bf16 = windows, recordings, bf16
        self._targets = targets.values[recordings].astype(np.float64)
        self._classification = classification
        self.metrics = validation_metrics("classification" if classification else "regression")

    def judge(self, trainer: Trainer) -> tuple[dict[str, float], float] | None:
        model = trainer.model
        outputs = score_recordings(model, self.windows, self.recordings, trainer.world, bf16=self._bf16)
        if outputs is None:
            return None
        known = ~np.isnan(self._targets)
        if self._classification:
            score = macro_auroc(self._targets, outputs)
            sure = np.clip(outputs, 1e-7, 1 - 1e-7)
            each = np.where(self._targets > 0.5, -np.log(sure), -np.log1p(-sure))
            return {"val_loss": float(each[known].mean()), "val_auroc": score}, score
        error = (outputs - self._targets)[known]
        score = -float(np.abs(error).mean())
        std = np.array(model.config.std)
        squares = (((outputs - self._targets) / std) ** 2)[known]
        return {"val_loss": float(squares.mean()), "val_mae": -score}, score


class BestEmbeddings(BestByValidation):
    """Looks for patients that are never trained on in a gallery: the best has the highest rank 1.

    Of those with the same rank 1 it has the lowest equal error rate.

    Args:
        store: the recordings.
        crops: two of each patient.
        leads: names of the leads to give the model.
        segment_samples: samples of a crop.
        batch_size: crops at a time.
        every: updates from one look to the next.
        bf16: compute in bfloat16 where autocast allows it.
    """

    metrics: tuple[Metric, ...]

    def __init__(
        self,
        store: Store,
        crops: GalleryProbe,
        leads: Sequence[str],
        *,
        segment_samples: int,
        batch_size: int,
        every: int,
        bf16: bool,
    ) -> None:
        super().__init__(every)
        self._store, self._crops, self._leads = store, crops, lead_indices(leads)
        self._samples, self._batch, self._bf16 = segment_samples, batch_size, bf16
        self.metrics = validation_metrics("identification")

    def judge(self, trainer: Trainer) -> tuple[dict[str, float], tuple[float, float]] | None:
        embeddings = self._embed(trainer.model, trainer.world)
        if embeddings is None:
            return None
        report = self.report(embeddings)
        numbers = {"val_rank_1": report.rank_1, "val_eer": report.eer}
        return numbers, (report.rank_1, -report.eer)

    def report(self, embeddings: np.ndarray) -> IdentificationReport:
        """Of the crops' embeddings, those of the gallery first."""
        n, patients = len(self._crops.patients), list(self._crops.patients)
        return identification_report(embeddings[:n], patients, embeddings[n:], patients)

    @torch.no_grad()
    def _embed(self, classifier: Classifier, world: World) -> np.ndarray | None:
        """Unit embeddings of the gallery's crops and the probes', float64; None but on the main process."""
        recording = np.concatenate([self._crops.gallery.recording, self._crops.probe.recording])
        start = np.concatenate([self._crops.gallery.start, self._crops.probe.start])
        was_training = classifier.training
        classifier.eval()
        own: dict[int, np.ndarray] = {}
        try:
            for first in range(world.rank * self._batch, len(recording), world.size * self._batch):
                rows = slice(first, first + self._batch)
                signal = torch.from_numpy(self._cut(recording[rows], start[rows])).to(world.device)
                with torch.autocast(world.device.type, torch.bfloat16, enabled=self._bf16):
                    pooled = classifier.pooled(signal)
                own[first] = unit_vectors(pooled).double().cpu().numpy()
        finally:
            classifier.train(was_training)
        parts = world.gather(own)
        if parts is None:
            return None
        every = {first: rows for part in parts for first, rows in part.items()}
        return np.concatenate([every[first] for first in sorted(every)])

    def _cut(self, recordings: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Crops of the leads, int16 [n, L, T]."""
        pairs = zip(recordings.tolist(), starts.tolist(), strict=True)
        return np.stack([self._store.signal(i)[self._leads, a : a + self._samples] for i, a in pairs])


def validation_metrics(task: str) -> tuple[Metric, ...]:
    """What validation adds to log points."""
    if task == "identification":
        rank = Metric("val_rank_1", _RANK, "", bar="rank 1 {:.3f}", row=".4f", note="of validation")
        return rank, Metric("val_eer", _EER, "", row=".4f", note="of validation")
    loss = Metric("val_loss", _LOSS, "", term=True, legend="validation", row=".4f")
    if task == "classification":
        return loss, Metric("val_auroc", _AUROC, "", bar="AUROC {:.3f}", row=".4f", note="of validation")
    return loss, Metric("val_mae", _ERROR, "", legend="validation", bar="validation {:.3g}", row=".4f")
