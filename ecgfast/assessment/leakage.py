"""Whether a model was trained on what it is to be tested on."""

from typing import Any

import numpy as np

from ecgfast.assessment.task import Task
from ecgfast.data import Store
from ecgfast.errors import EcgfastError
from ecgfast.evaluation import ByFolds
from ecgfast.finetuning.config import TASK, FinetuneConfig, completed
from ecgfast.finetuning.finetune import choose_data
from ecgfast.finetuning.targets import Split, Targets, describe_data, usable
from ecgfast.leads import lead_indices
from ecgfast.nn.config import config_from_dict
from ecgfast.nn.pretrained import file_digest


def is_finetuning(run: dict[str, Any] | None) -> bool:
    """Whether this is the `config.json` of a run of fine-tuning."""
    return run is not None and run.get("task") == TASK


def folds_of_run(run: dict[str, Any] | None, store: Store) -> ByFolds | None:
    """The parts of a run of fine-tuning on the same store, where it left folds alone to test on."""
    if not is_finetuning(run) or not _same_store(run, store):
        return None
    config = run.get("config", {})
    validation, test = config.get("validation_folds"), config.get("test_folds")
    if not validation or not test:
        return None
    found = {fold for fold in store.index["fold"].to_pylist() if fold is not None}
    others = tuple(sorted(found - {*validation, *test}))
    return ByFolds(others, tuple(validation), tuple(test)) if others else None


def check_unseen(run: dict[str, Any] | None, store: Store, task: Task, *, classifier: bool) -> list[str]:
    """Refuse a test part of which patients were trained on with their labels; and what can't be told.

    Args:
        run: `config.json` of the model's run; None: the model is of no run.
        store: What is tested on.
        task: Whose parts count.
        classifier: Whether the model was trained on labels.

    Raises:
        EcgfastError: a patient of the test part is among those that the run was trained on.
    """
    if run is None:
        if classifier:
            return [
                "whether the model was trained on recordings of the test part is not known: it is of no run"
            ]
        return [
            "whether the pre-training saw recordings of the test part is not known: the model is of no run"
        ]
    if not _same_store(run, store):
        path = (
            run.get("store", {}).get("path", "another store") if isinstance(run.get("store"), dict) else "?"
        )
        return [f"the model was trained on {path}: whether it has patients of {store.path} is not known"]
    if not is_finetuning(run):
        return [
            "the pre-training saw the recordings of this store, those of the test part too, without labels"
        ]
    trained = _trained_on(run, store, task)
    if trained is None:
        return [
            "WARNING: the run does not tell which recordings it was fine-tuned on in a way that can be "
            "checked: where the test part has some of them, its scores flatter"
        ]
    patients = store.patient_numbers()
    tested = task.recording[task.test]
    shared = np.isin(patients[tested], patients[trained])
    if shared.any():
        record = store.index["record_id"][int(tested[np.argmax(shared)])].as_py()
        raise EcgfastError(
            f"MODEL: must not be fine-tuned on patients of the test part, got {int(shared.sum())} of "
            f"{len(tested)} test recordings, such as {record}: fine-tune with --validation-folds and "
            "--test-folds, or evaluate on another store"
        )
    return ["no patient of the test part was fine-tuned on (checked by the run's digests)"]


def _same_store(run: dict[str, Any], store: Store) -> bool:
    told = run.get("store")
    index = file_digest(store.path / "index.parquet")
    stores = told if isinstance(told, list) else [told]
    return any(isinstance(one, dict) and one.get("index_sha256") == index for one in stores)


def _trained_on(run: dict[str, Any], store: Store, task: Task) -> np.ndarray | None:
    """The recordings that a run was trained on; None where they can't be found again."""
    told = run.get("data", {})
    for part in (task.recording[task.train], _again(run, store)):
        if part is not None and _digest(part) == told.get("train_sha256"):
            return part
    return None


def _again(run: dict[str, Any], store: Store) -> np.ndarray | None:
    """The training part that the run's settings give."""
    try:
        config = config_from_dict(FinetuneConfig, completed(run["config"]), "config")
        targets, split = choose_data(store, config, None, None)
        split, _ = usable(store, targets, split, lead_indices(config.leads))
    except EcgfastError:
        return None  # targets that were given to the function itself, which no settings name
    return split.train


def _digest(recordings: np.ndarray) -> str:
    """The digest of a training part, as runs have it."""
    nothing = Targets(np.empty((0, 0), dtype=np.float32), ())
    split = Split(recordings.astype(np.int64), np.empty(0, dtype=np.int64))
    return describe_data(nothing, split)["train_sha256"]
