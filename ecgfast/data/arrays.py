"""Recordings that are NumPy arrays, with what is known of them beside."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ecgfast.data.preprocess import Lead, Preprocessing, Rejected, standard_block
from ecgfast.data.writer import Recording
from ecgfast.errors import EcgfastError
from ecgfast.leads import STANDARD_LEADS, lead_indices

FIELDS = ("signal", "rate", "leads", "record_id", "patient_id", "labels", "age", "sex", "fold")
"""What a recording may have, see `ecgfast.data.write_store`."""

_SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}


def fields_of(record: Any) -> dict[str, Any]:
    """The fields of a mapping or an object that are given: neither None nor a table's NaN.

    Raises:
        EcgfastError: it lacks the signal or the rate, or is a mapping with other fields.
    """
    if isinstance(record, Mapping):
        if others := [name for name in record if name not in FIELDS]:
            raise EcgfastError(f"records: one has the field {others[0]!r}, want of {', '.join(FIELDS)}")
        values = dict(record)
    else:
        values = {name: getattr(record, name, None) for name in FIELDS}
    given = {name: value for name, value in values.items() if not _absent(value)}
    for name in ("signal", "rate"):
        if name not in given:
            raise EcgfastError(f"records: one has no {name}")
    return given


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


def array_recording(given: Mapping[str, Any], name: str, how: Preprocessing) -> Recording:
    """A recording in a store's form.

    Args:
        given: Of `FIELDS`; those that are absent are left out.
        name: The record's id where it has none, and its source.
        how: Filters and repairs.

    Raises:
        Rejected: it can't be taken, with the reason.
    """
    rate = _number("rate", given["rate"])
    leads = array_leads(np.asanyarray(given["signal"]), rate, given.get("leads", STANDARD_LEADS))
    block, present = standard_block(leads, how)
    record_id = _text("record_id", given.get("record_id", name))
    return Recording(
        record_id=record_id,
        patient_id=_text("patient_id", given.get("patient_id", record_id)),
        source=name,
        signal=block,
        leads=[STANDARD_LEADS[i] for i in present],
        labels=[_text("labels", label) for label in _sequence("labels", given.get("labels", ()))],
        age=_age(given.get("age")),
        sex=_sex(given.get("sex")),
        source_rate=rate,
        fold=_fold(given.get("fold")),
    )


def array_leads(signal: np.ndarray, rate: float, names: Iterable[str]) -> dict[int, Lead]:
    """The leads of an array, by index in `STANDARD_LEADS`.

    Args:
        signal: [leads, n_samples], floating point in millivolts or int16 in microvolts.
        rate: Samples per second.
        names: Of the leads; standard ones, each once.

    Raises:
        Rejected: another shape or type, other names.
    """
    try:
        indices = lead_indices(list(_sequence("leads", names)))
    except EcgfastError as error:
        raise Rejected(str(error)) from None
    if signal.ndim != 2 or len(signal) != len(indices):
        raise Rejected(f"shape: the signal is {list(signal.shape)}, want [{len(indices)} leads, n_samples]")
    if not np.issubdtype(signal.dtype, np.floating) and signal.dtype != np.int16:
        raise Rejected(f"type: the signal is {signal.dtype}, want floating point (mV) or int16 (µV)")
    factor = 1.0 if signal.dtype == np.int16 else 1000.0
    microvolts = signal.astype(np.float64) * factor
    return {index: Lead(row, rate) for index, row in zip(indices, microvolts, strict=True)}


def _sequence(name: str, value: Any) -> Iterable[Any]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise Rejected(f"{name}: got {value!r}, want a list")
    return value


def _text(name: str, value: Any) -> str:
    text = str(value)
    if not text or not text.isprintable():  # no lone surrogates either: they are no UTF-8
        raise Rejected(f"{name}: got {text!r}, want printable text")
    return text


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise Rejected(f"{name}: got {value!r}, want a number") from None


def _age(value: Any) -> float | None:
    if value is None:
        return None
    age = _number("age", value)
    if not 0 <= age < math.inf:
        raise Rejected(f"age: got {value!r}, want years")
    return age


def _sex(value: Any) -> str | None:
    if value is None:
        return None
    if str(value).casefold() not in _SEXES:
        raise Rejected(f"sex: got {value!r}, want F or M")
    return _SEXES[str(value).casefold()]


def _fold(value: Any) -> int | None:
    if value is None:
        return None
    fold = _number("fold", value)
    if not fold.is_integer() or abs(fold) >= 2**31:
        raise Rejected(f"fold: got {value!r}, want a whole number")
    return int(fold)
