"""Predictions for a whole store."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ecgfast._outputs import check_output, write_whole
from ecgfast.data import SegmentLoader, Store, Windows, describe_differences
from ecgfast.errors import EcgfastError
from ecgfast.finetuning.classifier import Classifier, shortest_window
from ecgfast.finetuning.scoring import score_recordings
from ecgfast.leads import lead_indices
from ecgfast.training.parallel import World, resolve_device

KINDS = ("parquet", "csv")
"""Kinds of tables, by the end of a file's name."""


def predict_store(
    store: Store,
    classifier: Classifier,
    *,
    leads: Sequence[str] | None = None,
    recordings: np.ndarray | None = None,
    batch_size: int = 64,
    device: str = "auto",
) -> tuple[np.ndarray, np.ndarray]:
    """What a classifier says of a store's recordings, each averaged over its windows.

    Args:
        store: the recordings.
        classifier: it is moved to the device.
        leads: to use, of the classifier's; None: all of them.
        recordings: numbers of recordings; None: all.
        batch_size: windows at a time.
        device: auto, cpu, cuda or cuda:N.

    Returns:
        Numbers of the recordings, int64 [n], and float32 [n, K]; recordings with none of the leads are left
        out.

    Raises:
        EcgfastError: none of the leads is the classifier's, or no recording has one.

    Warns:
        UserWarning: recordings are left out; the store was made otherwise than that of the training.
    """
    config = classifier.config
    own = lead_indices(config.leads)
    asked = own if leads is None else lead_indices(leads)
    for name, lead in zip(leads or (), asked, strict=False):
        if lead not in own:
            raise EcgfastError(f"leads: must be of the classifier's, {', '.join(config.leads)}, got {name!r}")
    used = [config.leads[own.index(lead)] for lead in asked]
    chosen = np.arange(len(store)) if recordings is None else np.asarray(recordings, dtype=np.int64)
    present = store.present_leads()[chosen][:, asked].any(1)
    if not present.any():
        raise EcgfastError(f"STORE: {str(store.path)!r} has no recording with any of {', '.join(used)}")
    if not present.all():
        n = int((~present).sum())
        warnings.warn(f"{n} of {len(chosen)} recordings have none of {', '.join(used)}: they are left out")
    chosen = chosen[present]
    for line in describe_differences(config.preprocessing, store.description.get("preprocessing", {})):
        warnings.warn(f"{store.path}: was made with other preprocessing than the training's store: {line}")
    world = World(0, 1, resolve_device(device))
    plan = Windows(
        store,
        batch_size,
        chosen,
        segment_samples=config.segment_samples,
        shortest=shortest_window(config.segment_samples),
    )
    loader = SegmentLoader(plan, leads=used)
    outputs = score_recordings(classifier.to(world.device), loader, chosen, world, leads=used)
    return chosen, outputs.astype(np.float32)


def write_predictions(
    store: Path,
    model: Path,
    out: Path,
    *,
    leads: Sequence[str] | None = None,
    batch_size: int = 64,
    device: str = "auto",
) -> int:
    """Write a table of predictions, a row for each recording: its ids, and a column for each of the names.

    Args:
        store: folder written by `ecgfast prepare`.
        model: run of fine-tuning, or its model folder.
        out: `.parquet` or `.csv` file.
        leads, batch_size, device: as for `predict_store`.

    Returns:
        The number of rows.

    Raises:
        EcgfastError: the store, model, leads or file can't be used, see `predict_store`.
    """
    check_output("out", out, KINDS)
    classifier = Classifier.from_pretrained(model)
    names = classifier.config.names
    if taken := {"record_id", "patient_id"} & set(names):
        raise EcgfastError(f"MODEL: must have classes of other names than the table's, got {min(taken)!r}")
    opened = Store(store)
    chosen, outputs = predict_store(opened, classifier, leads=leads, batch_size=batch_size, device=device)
    columns = {name: opened.index[name].take(pa.array(chosen)) for name in ("record_id", "patient_id")}
    table = pa.table(columns | {name: outputs[:, k] for k, name in enumerate(names)})
    is_csv = out.suffix.casefold() == ".csv"
    write_whole(
        out,
        lambda path: pa.csv.write_csv(table, path) if is_csv else pa.parquet.write_table(table, path),
    )
    return table.num_rows
