"""A recording on its way into a store."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Recording:
    """One recording as an importer hands it to the store.

    Attributes:
        record_id: Unique in the store.
        patient_id: The same for all recordings of a patient; None where unknown.
        source: Path of the record below the source folder.
        signal: Microvolts at 500 Hz, int16 [12, n_samples], absent leads zero.
        leads: Names of the leads present.
        labels: Diagnosis codes.
        age: Years, None where unknown.
        sex: "F", "M" or None.
        source_rate: Hz, before resampling.
        fold: Cross-validation fold of the source, None where it has none.
        warnings: What is odd about it though it is taken: `kind: details` each.
        amplitude: Typical peak-to-peak millivolts, see `plausibility.amplitude`; None where not looked at.
        unused: Names of the source's signals that were not taken.
    """

    record_id: str
    patient_id: str | None
    source: str
    signal: np.ndarray
    leads: list[str]
    labels: list[str]
    age: float | None
    sex: str | None
    source_rate: float
    fold: int | None = None
    warnings: tuple[str, ...] = ()
    amplitude: float | None = None
    unused: tuple[str, ...] = ()
