"""Whether a model was trained on what it is to be tested on, and which parts its run left for that."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ecgfast.assessment.task import Task
from ecgfast.data import Store
from ecgfast.errors import EcgfastError
from ecgfast.evaluation import Split
from ecgfast.finetuning.config import TASK
from ecgfast.finetuning.parts import PARTS, read_parts
from ecgfast.nn.pretrained import file_digest


@dataclass(frozen=True, eq=False)
class OfRun:
    """The parts of a run of fine-tuning, as it keeps them: a division of its store.

    Attributes:
        run: Its folder.
        parts: Record ids of train, validation and test.
    """

    run: Path
    parts: dict[str, list[str]]

    def __str__(self) -> str:
        return f"those of {self.run / PARTS}"

    def split(self, index: pa.Table, recordings: Sequence[int] | np.ndarray | None = None) -> Split:
        """Divide a store's recordings.

        Args:
            index: `Store.index`.
            recordings: Numbers of those to divide; None: all.

        Raises:
            EcgfastError: none of them is in the run's test part.
        """
        records = index["record_id"].to_pylist()
        chosen = np.arange(index.num_rows) if recordings is None else np.asarray(recordings)
        part_of = {record: name for name, ids in self.parts.items() for record in ids}
        names = np.array([part_of.get(records[i], "") for i in chosen])
        found = {name: np.sort(chosen[names == name]) for name in ("train", "validation", "test")}
        for name in ("train", "test"):
            if not found[name].size:
                raise EcgfastError(
                    f"MODEL: must have targets in its {name} part, got none of {len(self.parts[name])} there"
                )
        others = [records[i] for i in chosen[names == ""]]
        left_out = {"recordings in no part of the model's run": others} if others else {}
        return Split(**found, left_out=left_out)


def division_of_run(run: Path | None, description: dict[str, Any] | None, store: Store) -> OfRun | None:
    """The parts of a run of fine-tuning on this store; None: it is none, or left nothing to test on."""
    if (
        run is None
        or description is None
        or description.get("task") != TASK
        or not _same_store(description, store)
    ):
        return None
    if not (run / PARTS).is_file():
        return None
    parts = read_parts(run)
    return OfRun(run, parts) if parts["test"] else None


def check_unseen(
    run: Path | None, description: dict[str, Any] | None, store: Store, task: Task, *, classifier: bool
) -> list[str]:
    """Refuse a test part of which patients were trained on with their labels; and what can't be told.

    Args:
        run: The folder of the model's run; None: the model is of no run.
        description: `config.json` of the run.
        store: What is tested on.
        task: Whose parts count.
        classifier: Whether the model was trained on labels.

    Raises:
        EcgfastError: a patient of the test part is among those that the run was trained on.
    """
    if run is None or description is None:
        what = "the model was trained on" if classifier else "the pre-training saw"
        return [f"whether {what} recordings of the test part is not known: the model is of no run"]
    if not _same_store(description, store):
        paths = ", ".join(str(one.get("path")) for one in _stores(description)) or "other stores"
        return [f"the model was trained on {paths}: whether patients of {store.path} are there is not known"]
    if description.get("task") != TASK:
        return ["the pre-training saw recordings of this store, without their labels"]
    if not (run / PARTS).is_file():
        return [
            f"WARNING: the run has no {PARTS}, so that which recordings it was fine-tuned on is not known: "
            "where the test part has some of them, its scores flatter"
        ]
    return _check_parts(read_parts(run), store, task)


def _check_parts(parts: dict[str, list[str]], store: Store, task: Task) -> list[str]:
    records = store.index["record_id"].to_pylist()
    number = {record: i for i, record in enumerate(records)}
    patients = store.patient_numbers()
    tested = task.recording[task.test]
    seen = {
        name: np.isin(patients[tested], patients[[number[record] for record in parts[name]]])
        for name in ("train", "validation")
    }
    if seen["train"].any():
        record = records[int(tested[np.argmax(seen["train"])])]
        raise EcgfastError(
            "MODEL: must not be fine-tuned on patients of the test part, got "
            f"{int(seen['train'].sum())} of {len(tested)} test recordings of such, {record} the first: "
            "fine-tune with parts for a test, or evaluate on another store"
        )
    if seen["validation"].any():
        return [
            f"WARNING: {int(seen['validation'].sum())} of {len(tested)} test recordings are of patients by "
            "whom the fine-tuning chose its best state"
        ]
    return [f"no patient of the test part was fine-tuned on, by the run's {PARTS}"]


def _stores(description: dict[str, Any]) -> list[dict[str, Any]]:
    told = description.get("store")
    several = told if isinstance(told, list) else [told]
    return [one for one in several if isinstance(one, dict)]


def _same_store(description: dict[str, Any], store: Store) -> bool:
    index = file_digest(store.path / "index.parquet")
    return any(one.get("index_sha256") == index for one in _stores(description))
