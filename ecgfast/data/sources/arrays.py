"""Recordings that are arrays, with what is known of them beside."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ecgfast._suggest import did_you_mean
from ecgfast.data.signal.plausibility import amplitude, scale_advice
from ecgfast.data.signal.preprocess import Lead, Preprocessing, Rejected, standard_block
from ecgfast.data.sources.signal_arrays import array_leads
from ecgfast.data.store.recording import Recording
from ecgfast.data.values import (
    fold_of,
    identity,
    is_missing,
    labels_of,
    number_of,
    sex_of,
    shown,
    text_of,
    years,
)
from ecgfast.errors import EcgfastError
from ecgfast.leads import STANDARD_LEADS

FIELDS = (
    "signal",
    "rate",
    "leads",
    "unit",
    "gain",
    "record_id",
    "patient_id",
    "labels",
    "age",
    "sex",
    "fold",
)
"""What a recording may have, see `ecgfast.data.write_store`."""

_OTHER_NAMES = {
    "signal": "ecg data x array samples p_signal d_signal waveform",
    "rate": "fs hz freq frequency sampling_rate sample_rate sampling_frequency sampling_freq sfreq srate",
    "leads": "lead lead_names channels channel_names sig_name sig_names",
    "unit": "units",
    "gain": "adc_gain gains",
    "record_id": "id record name ecg_id study_id exam_id record_name",
    "patient_id": "patient subject subject_id pid patientid person",
    "labels": "label y target dx diagnosis diagnoses scp_codes codes",
    "age": "years age_years",
    "sex": "gender",
    "fold": "strat_fold split",
    "file": "filename file_name path filepath file_path",
}
_MEANT = {other: name for name, others in _OTHER_NAMES.items() for other in others.split()}


def suggestion(name: object, known: Iterable[str]) -> str:
    """`; did you mean rate?` for a name that others use, or that is near a known one; nothing otherwise."""
    known, plain = list(known), str(name).strip().casefold().replace(" ", "_").replace("-", "_")
    meant = _MEANT.get(plain)
    return f"; did you mean {meant}?" if meant in known else did_you_mean(name, known)


def fields_of(record: Any, i: int = 0) -> dict[str, Any]:
    """The fields of a mapping or an object that are given, not missing as a table's NaN is.

    Args:
        record: The recording.
        i: Its number, for the error.

    Raises:
        EcgfastError: it has no field for the signal or the rate, or is a mapping with other fields.
    """
    if isinstance(record, Mapping):
        if others := [name for name in record if name not in FIELDS]:
            told = f"records: one has the field {others[0]!r}, want of {', '.join(FIELDS)} (number {i})"
            raise EcgfastError(f"{told}{suggestion(others[0], FIELDS)}")
        values = dict(record)
    else:
        values = {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
    for name in ("signal", "rate"):
        if name not in values:
            raise EcgfastError(f"records: one has no {name} (number {i})")
    # a missing gain is no absent one: the signal is counts, in a unit that nobody tells
    values |= {"gain": math.nan} if is_missing(values.get("gain", 1)) else {}
    return {
        name: value for name, value in values.items() if name in ("signal", "gain") or not is_missing(value)
    }


def array_recording(given: Mapping[str, Any], name: str, preprocessing: Preprocessing) -> Recording:
    """A recording in a store's form.

    Args:
        given: Of `FIELDS`; those that are absent are left out.
        name: The record's id where it has none, and its source.
        preprocessing: Filters and repairs.

    Raises:
        Rejected: it can't be taken, with the reason.
    """
    if is_missing(given["signal"]):
        raise Rejected("signal: none is given")
    rate = _rate(given.get("rate"))
    record_id = _record_id(given.get("record_id", name))
    scale = given.get("unit"), given.get("gain")
    leads, unit, unused = array_leads(given["signal"], rate, given.get("leads"), *scale, preprocessing.names)
    block, present = plausible_block(leads, preprocessing, unit)
    warnings: list[str] = []
    recording = Recording(
        record_id=record_id,
        patient_id=identity(given.get("patient_id"), warnings),
        source=name,
        signal=block,
        leads=[STANDARD_LEADS[i] for i in present],
        labels=labels_of(given.get("labels"), warnings),
        age=years(given.get("age"), warnings),
        sex=sex_of(given.get("sex"), warnings),
        source_rate=rate,
        unused=unused,
        fold=fold_of(given.get("fold"), warnings),
    )
    return judged(replace(recording, warnings=tuple(warnings)), unit)


def plausible_block(
    leads: dict[int, Lead], preprocessing: Preprocessing, unit: str | None
) -> tuple[Any, list[int]]:
    """`standard_block`; where its scale is to blame for a refusal, the reason says so."""
    try:
        return standard_block(leads, preprocessing)
    except Rejected as rejected:
        raise Rejected(told_with_advice(rejected, unit)) from None


def told_with_advice(rejected: Rejected, unit: str | None) -> str:
    """The reason, with `scale_advice` where the scale may be wrong."""
    advice = None if rejected.amplitude is None else scale_advice(rejected.amplitude, unit)
    return f"{rejected}; {advice}" if advice else str(rejected)


def judged(recording: Recording, unit: str | None) -> Recording:
    """The recording with its amplitude, and with a warning if that is implausible.

    Args:
        recording: Any.
        unit: In which its signal was read, None where its file or a gain told.
    """
    present = [STANDARD_LEADS.index(lead) for lead in recording.leads]
    found = amplitude(recording.signal, present)
    advice = scale_advice(found, unit)
    warnings = (*recording.warnings, *([f"amplitude: {advice}"] if advice else []))
    return replace(recording, amplitude=found, warnings=warnings)


def _rate(value: Any) -> float:
    if is_missing(value):
        raise Rejected("sample rate: none is given, want samples per second")
    rate = number_of(value)
    if rate is None:
        raise Rejected(f"rate must be a number of samples per second, got {shown(value)}")
    return rate


def _record_id(value: Any) -> str:
    text = text_of(value)
    if text is None:
        raise Rejected(f"record_id must be printable text, got {shown(value)}")
    return text
