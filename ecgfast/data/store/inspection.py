"""What a store holds, for people."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from ecgfast._suggest import among, did_you_mean
from ecgfast.data.signal.plausibility import (
    LEAST_MILLIVOLTS,
    MOST_MILLIVOLTS,
    lead_amplitudes,
    typical_advice,
)
from ecgfast.data.signal.rhythm import heart_rate
from ecgfast.data.store.codes import name_of, with_name
from ecgfast.data.store.store import Store
from ecgfast.errors import EcgfastError
from ecgfast.leads import STANDARD_LEADS
from ecgfast.units import UNITS_PER_MILLIVOLT

_LOOKED_AT = 500  # recordings whose signals are read
_ROWS = 12  # of a table of counts, before the rest is summed up


@dataclass(frozen=True)
class StoreSummary:
    """Figures of a store; `str()` of it is a page of text.

    Attributes:
        path: The store's folder.
        n_recordings: Recordings.
        n_patients: Patients.
        recordings_per_patient: Least, median and most.
        hours: Of all recordings together.
        seconds: Duration of a recording: shortest, median, longest.
        pairs: Pairs of adjacent 5 s segments.
        source_rates: Recordings by sample rate of the source, Hz.
        leads: Recordings by lead present, in standard order.
        lead_sets: Recordings by number of leads present.
        labels: Recordings by label, most frequent first.
        n_unlabelled: Recordings without a label.
        age: Youngest, median, oldest, in years; None where no age is known.
        sex: Recordings by sex; "unknown" for null.
        folds: Recordings by cross-validation fold of the source; empty where it has none.
        amplitude: Typical peak-to-peak millivolts by lead: the median of recordings looked at that have it.
        levels: Distinct values by lead in a recording, likewise; few are a coarse converter or a wrong unit.
        n_looked_at: Recordings whose signals were looked at, spread evenly over the store.
        n_implausible: Of these, those whose amplitude no ECG has, see `plausibility`.
        n_rejected: Records of the source that were not taken.
        rejected: Those by kind of reason.
        unused_signals: Recordings by name of a signal that is no standard lead and wasn't taken; likewise.
        warnings: What is odd about recordings that were taken, by kind; empty for stores that don't tell.
        without: Recordings of unknown patient, age and sex, and without a label; likewise.
        bytes: Size on disk, by file.
        preprocessing: As `store.json` tells it.
        provenance: As `store.json` tells it.
    """

    path: str
    n_recordings: int
    n_patients: int
    recordings_per_patient: tuple[int, float, int]
    hours: float
    seconds: tuple[float, float, float]
    pairs: int
    source_rates: dict[str, int]
    leads: dict[str, int]
    lead_sets: dict[str, int]
    labels: dict[str, int]
    n_unlabelled: int
    age: tuple[float, float, float] | None
    sex: dict[str, int]
    folds: dict[str, int]
    amplitude: dict[str, float]
    levels: dict[str, int]
    n_looked_at: int
    n_implausible: int
    n_rejected: int
    rejected: dict[str, int]
    unused_signals: dict[str, int]
    warnings: dict[str, int]
    without: dict[str, int]
    bytes: dict[str, int]
    preprocessing: dict[str, Any]
    provenance: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON, and the names of the labels that are known codes."""
        return asdict(self) | {
            "label_names": {label: name_of(label) for label in self.labels if name_of(label)}
        }

    def __str__(self) -> str:
        low, middle, high = self.recordings_per_patient
        shortest, typical, longest = self.seconds
        rates = {f"{rate} Hz": n for rate, n in self.source_rates.items()}
        lead_sets = {f"{n} leads": k for n, k in self.lead_sets.items()}
        labels = {with_name(label): n for label, n in self.labels.items()}
        lacking = {name: n for name, n in self.without.items() if n}
        lines = [
            f"{self.path}",
            f"recordings   {self.n_recordings:,} of {self.n_patients:,} patients "
            f"({low:,} to {high:,} each, median {middle:g})",
            f"duration     {self.hours:,.1f} h; {shortest:g} to {longest:g} s each, median {typical:g} s; "
            f"{self.pairs:,} pairs of 5 s segments",
            f"leads        {_counts(self.leads, self.n_recordings, len(STANDARD_LEADS))}",
            f"             {_counts(lead_sets, None, _ROWS)}",
            *([f"not taken    {_counts(self.unused_signals, None, _ROWS)}"] if self.unused_signals else []),
            f"amplitude    {_values(self.amplitude)} mV peak to peak"
            + typical_advice(float(np.median(list(self.amplitude.values()))), self.n_looked_at),
            f"levels       {_values(self.levels)} distinct values in a recording",
            *([f"             {self._implausible()}"] if self.n_implausible else []),
            f"source rate  {_counts(rates, None, _ROWS)}",
            f"age          {_span(self.age)}",
            f"sex          {_counts(self.sex, None, _ROWS)}",
            *([f"folds        {_counts(self.folds, None, _ROWS)}"] if self.folds else []),
            f"labels       {_counts(labels, None, _ROWS) or 'none'}; {self.n_unlabelled:,} without",
            f"rejected     {self.n_rejected:,}"
            + (f": {_counts(self.rejected, None, _ROWS)} (rejected.csv)" if self.n_rejected else ""),
            *(
                [f"warnings     {_counts(self.warnings, None, _ROWS)} (warnings.csv)"]
                if self.warnings
                else []
            ),
            *([f"without      {_counts(lacking, None, _ROWS)}"] if lacking else []),
            f"disk         {_size(sum(self.bytes.values()))} in {len(self.bytes)} files",
            f"made         {_pairs(self.preprocessing)}",
            f"from         {_pairs(self.provenance)}",
        ]
        return "\n".join(lines)

    def _implausible(self) -> str:
        of = f"{self.n_implausible:,} of {self.n_looked_at:,} recordings looked at"
        return f"{of} are outside {LEAST_MILLIVOLTS:g} to {MOST_MILLIVOLTS:g} mV: is their unit right?"


def summarize(store: Store) -> StoreSummary:
    """Count what a store holds; reads its index, and the signals of 500 recordings at most."""
    index = store.index
    seconds = store.n_samples / store.rate
    per_patient = np.bincount(store.patient_numbers())
    present = store.present_leads()
    ages = index["age"].drop_null().to_numpy()
    labels = Counter(pc.list_flatten(index["labels"]).to_pylist())
    rates = Counter(f"{rate:g}" for rate in index["source_rate"].to_pylist())
    files = sorted(file for file in store.path.iterdir() if file.is_file())
    description = store.description
    return StoreSummary(
        path=str(store.path),
        n_recordings=len(store),
        n_patients=len(per_patient),
        recordings_per_patient=(
            int(per_patient.min()),
            float(np.median(per_patient)),
            int(per_patient.max()),
        ),
        hours=float(seconds.sum() / 3600),
        seconds=(float(seconds.min()), float(np.median(seconds)), float(seconds.max())),
        pairs=int((store.n_samples // (10 * store.rate)).sum()),
        source_rates=dict(rates.most_common()),
        leads=dict(zip(STANDARD_LEADS, present.sum(axis=0).tolist(), strict=True)),
        lead_sets={str(n): k for n, k in sorted(Counter(present.sum(axis=1).tolist()).items(), reverse=True)},
        labels=dict(sorted(labels.items(), key=lambda item: (-item[1], item[0]))),
        n_unlabelled=int((pc.list_value_length(index["labels"]).to_numpy() == 0).sum()),
        age=(float(ages.min()), float(np.median(ages)), float(ages.max())) if len(ages) else None,
        sex=dict(Counter(sex or "unknown" for sex in index["sex"].to_pylist()).most_common()),
        folds={str(fold): n for fold, n in sorted(Counter(index["fold"].drop_null().to_pylist()).items())},
        **_look_at_signals(store, present),
        n_rejected=description["n_rejected"],
        rejected=dict(sorted(description["rejected"].items(), key=lambda item: (-item[1], item[0]))),
        unused_signals=dict(
            sorted(description.get("unused_signals", {}).items(), key=lambda item: (-item[1], item[0]))
        ),
        warnings=description.get("warnings", {}),
        without=description.get("without", {}),
        bytes={file.name: file.stat().st_size for file in files},
        preprocessing=description.get("preprocessing", {}),
        provenance=description.get("provenance", {}),
    )


def _look_at_signals(store: Store, present: np.ndarray) -> dict[str, Any]:
    """The figures of a summary that take signals."""
    looked_at = np.unique(np.linspace(0, len(store) - 1, min(len(store), _LOOKED_AT)).astype(int))
    amplitudes = np.full((len(looked_at), len(STANDARD_LEADS)), np.nan)
    levels = amplitudes.copy()
    for row, i in enumerate(looked_at):
        there = np.flatnonzero(present[i])
        signal = store.signal(i)[there]
        amplitudes[row, there] = lead_amplitudes(signal) / UNITS_PER_MILLIVOLT
        levels[row, there] = [len(np.unique(lead)) for lead in signal]
    typical = np.nanmedian(amplitudes, axis=1)
    some = [(k, lead) for k, lead in enumerate(STANDARD_LEADS) if present[looked_at, k].any()]
    return {
        "amplitude": {lead: round(float(np.nanmedian(amplitudes[:, k])), 4) for k, lead in some},
        "levels": {lead: int(np.nanmedian(levels[:, k])) for k, lead in some},
        "n_looked_at": len(looked_at),
        "n_implausible": int(np.count_nonzero((typical < LEAST_MILLIVOLTS) | (typical > MOST_MILLIVOLTS))),
    }


def find_recording(store: Store, record_id: str) -> int:
    """Number of the recording with this id in the store.

    Raises:
        EcgfastError: there is none; names some that there are.
    """
    at = pc.index(store.index["record_id"], record_id).as_py()
    if at < 0:
        ids = store.index["record_id"].to_pylist()
        some = ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")
        near = did_you_mean(record_id, among(record_id, ids))
        raise EcgfastError(f"record: {store.path} has no {record_id!r}; it has {some}{near}")
    return at


def describe_recording(store: Store, i: int) -> dict[str, Any]:
    """What the index says of recording `i`, and its leads' ranges, for people."""
    row = store.index.slice(i, 1).to_pylist()[0]
    signal = store.signal(i)
    millivolts = signal / UNITS_PER_MILLIVOLT
    amplitudes = lead_amplitudes(signal) / UNITS_PER_MILLIVOLT
    ranges = {
        lead: f"{millivolts[k].min():.3f} to {millivolts[k].max():.3f} mV, "
        f"typically {amplitudes[k]:.3g} mV peak to peak, {len(np.unique(signal[k]))} distinct values"
        for k, lead in enumerate(STANDARD_LEADS)
        if lead in row["leads"]
    }
    present = [STANDARD_LEADS.index(lead) for lead in row["leads"]]
    beats = heart_rate(signal[present], store.rate)
    age = "age unknown" if row["age"] is None else f"{row['age']:g} years"
    return {
        "record": row["record_id"],
        "patient": f"{row['patient_id']}, {age}, sex {row['sex'] or 'unknown'}",
        "source": f"{row['source']} at {row['source_rate']:g} Hz",
        "duration": f"{row['n_samples'] / store.rate:g} s",
        "heart rate": "unknown" if beats is None else f"{beats:.0f} /min",
        "labels": ", ".join(map(with_name, row["labels"])) or "no labels",
        **ranges,
    }


def _counts(counts: dict[str, int], of: int | None, rows: int) -> str:
    """Counts in a line, such as `V1 12, V2 11, 5 more 20`; what all `of` have is told once."""
    if of is not None and counts and all(n == of for n in counts.values()):
        return f"all {len(counts)} in every recording"
    shown = [f"{name} {n:,}" for name, n in list(counts.items())[:rows]]
    rest = list(counts.values())[rows:]
    return ", ".join([*shown, *([f"{len(rest)} more {sum(rest):,}"] if rest else [])])


def _values(values: dict[str, float]) -> str:
    return ", ".join(f"{lead} {value:.3g}" for lead, value in values.items())


def _span(values: tuple[float, float, float] | None) -> str:
    if values is None:
        return "unknown"
    low, middle, high = values
    return f"{low:g} to {high:g} years, median {middle:g}"


def _size(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items()) or "unknown"
