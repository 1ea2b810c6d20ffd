"""Which recordings a run trained on, validated with and left alone, by their ids."""

import json
from pathlib import Path

from ecgfast.data import Store
from ecgfast.errors import EcgfastError
from ecgfast.evaluation import Split
from ecgfast.files import write_atomically

PARTS = "parts.json"
"""File of a run's folder."""


def write_parts(run: Path, store: Store, split: Split) -> None:
    """Write `parts.json` into a run's folder: the record ids of `train`, `validation` and `test`.

    Raises:
        EcgfastError: it can't be written.
    """
    records = store.index["record_id"].to_pylist()
    ids = {name: [records[i] for i in part.tolist()] for name, part in split.parts().items()}
    text = json.dumps(ids, indent=1) + "\n"
    try:
        write_atomically(run / PARTS, lambda path: path.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise EcgfastError(f"RUN: {str(run / PARTS)!r} can't be written: {error.strerror}") from None


def read_parts(run: Path | str) -> dict[str, list[str]]:
    """The record ids of the parts `train`, `validation` and `test` of a run of fine-tuning.

    Raises:
        EcgfastError: the run has no such file, as those of earlier versions, or it can't be read.
    """
    path = Path(run) / PARTS
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))
        good = parts.keys() == {"train", "validation", "test"} and all(
            isinstance(name, str) for names in parts.values() for name in names
        )
    except (OSError, ValueError, TypeError, AttributeError):
        good = False
    if not good:
        raise EcgfastError(f"RUN: must have a {PARTS} that can be read, got none in {str(run)!r}")
    return parts
