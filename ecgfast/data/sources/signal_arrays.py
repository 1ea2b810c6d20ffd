"""Signals that are arrays of any library, as NumPy arrays in microvolts."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ecgfast.data.signal.plausibility import MICROVOLTS, find_unit
from ecgfast.data.signal.preprocess import Lead, Rejected
from ecgfast.data.values import is_missing, number_of, plain, shown
from ecgfast.errors import EcgfastError, one_line
from ecgfast.leads import OWN_NAMES, STANDARD_LEADS, LeadNames, shown_name

_WANTED = "floating point (mV), int16 (µV), or with unit= or gain= any numbers"


def signal_array(value: Any) -> tuple[np.ndarray, np.dtype]:
    """A signal as numbers on the CPU, NaN where they are missing or masked; and the type they had.

    Args:
        value: An array, a tensor, a data frame or nested lists.

    Raises:
        Rejected: it is none of them, holds no values or other than real numbers.
    """
    if isinstance(value, list | tuple) and any(
        isinstance(row, list | tuple) or _is_array(row) for row in value
    ):
        return _stacked(value)
    torch = sys.modules.get("torch")
    try:
        if torch is not None and isinstance(value, torch.Tensor):
            array = _from_tensor(value)
        elif hasattr(value, "to_numpy"):  # of pandas, polars and the like: NumPy asks their rows one by one
            array = value.to_numpy()
        else:
            array = np.asanyarray(value)
    except Rejected:
        raise
    except Exception as error:  # of the user's own type
        raise Rejected(f"type: the signal can't be made an array: {one_line(error)}") from None
    if array.dtype == object:
        items = array.ravel().tolist()
        if items and all(_is_array(item) and getattr(item, "ndim", 0) for item in items):
            inner, given = _stacked(items)
            return inner.reshape(*array.shape, *inner.shape[1:]), given
        array = _from_objects(array)
    if array.dtype.kind == "V" and array.dtype.name.startswith(("bfloat", "float")):  # ml_dtypes'
        array = array.astype(np.float32)
    given = array.dtype
    if given.kind not in "fiu":
        raise Rejected(f"type: the signal is {given}, want {_WANTED}")
    if np.ma.is_masked(array):
        array = array.astype(np.float64).filled(np.nan)
    return np.asarray(array), given


def array_leads(
    value: Any,
    rate: float,
    names: Iterable[str] | None,
    unit: Any = None,
    gain: Any = None,
    rule: LeadNames = OWN_NAMES,
) -> tuple[dict[int, Lead], str | None, tuple[str, ...]]:
    """The leads of an array, by index in `STANDARD_LEADS`, the unit they were read in, and other signals.

    Args:
        value: [leads, n_samples], see `signal_array`; or a data frame whose columns are leads.
        rate: Samples per second.
        names: Of the signals, one a standard lead or more, none twice. None: a data frame's own, else those
            that the rule gives by position, which are for arrays without names alone; else all twelve.
        unit: V, mV, uV or nV; None: mV for floating point and for counts with a gain, uV for int16.
        gain: Counts of a converter in one unit, one for all leads or one for each. NaN: unknown, whole
            numbers without a unit are refused.
        rule: How names are read.

    Returns:
        The leads; a key of `MICROVOLTS`, None where a gain was given; the names of signals that are no
        standard lead, for people.

    Raises:
        Rejected: another shape or type, no standard lead, no unit.
    """
    array, given = signal_array(value)
    if (own := _columns(value)) is not None:
        array, names = array.T, own if names is None else names
    if names is not None:
        rule = replace(rule, by_position=())
    elif rule.by_position:
        names = ["" if name == "-" else name for name in rule.by_position]
        if array.ndim == 2 and len(array) != len(rule.by_position):
            told = f"{len(rule.by_position)} names were given for its leads"
            raise Rejected(f"leads: the signal is {list(array.shape)}, {told}")
    names = _names(STANDARD_LEADS if names is None else names)
    indices = _indices(names, rule)
    if array.ndim != 2 or len(array) != len(indices):
        raise Rejected(_shape_advice(array.shape, len(indices)))
    if gain is not None and is_missing(gain):
        if unit is None and given.kind in "iu":
            raise Rejected("gain must be a number, got nothing")
        gain = None
    unit = _unit(given, unit, gain)
    microvolts = array.astype(np.float64, order="C")
    if gain is not None:
        microvolts /= _gains(gain, len(indices))
    microvolts *= MICROVOLTS[unit]
    rows = zip(indices, microvolts, strict=True)
    leads = {index: Lead(row, rate) for index, row in rows if index is not None}
    unused = tuple(shown_name(name) for name, index in zip(names, indices, strict=True) if index is None)
    return leads, unit if gain is None else None, unused


def _is_array(row: Any) -> bool:
    return hasattr(row, "__array__") or hasattr(row, "__dlpack__")


def _stacked(rows: Sequence[Any]) -> tuple[np.ndarray, np.dtype]:
    """Leads that are arrays of their own."""
    arrays, given = zip(*map(signal_array, rows), strict=True)
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) > 1:
        told = " and ".join(str(list(shape)) for shape in shapes[:3])
        raise Rejected(f"shape: signal must be [leads, samples], got leads of shapes {told}")
    return np.stack(arrays), np.result_type(*given)


def _from_tensor(tensor: Any) -> np.ndarray:
    import torch

    if tensor.is_meta:
        raise Rejected("type: the signal is a tensor on the device meta, which holds no values")
    tensor = tensor.detach()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64):
        tensor = tensor.float()
    return tensor.cpu().resolve_conj().resolve_neg().numpy()


def _from_objects(array: np.ndarray) -> np.ndarray:
    """Numbers that are Python objects: floating point with NaN for missing ones, or whole numbers."""
    items = array.ravel().tolist()
    numbers = [np.nan if is_missing(item) else _as_number(item) for item in items]
    if isinstance(array, np.ma.MaskedArray):
        numbers = np.where(np.ma.getmaskarray(array).ravel(), np.nan, numbers)
    elif all(isinstance(number, int) for number in numbers) and numbers:
        return np.array(numbers, dtype=np.int64).reshape(array.shape)
    return np.array(numbers, dtype=np.float64).reshape(array.shape)


def _as_number(item: Any) -> float | int:
    item = plain(item)
    if isinstance(item, int) and not isinstance(item, bool) and abs(item) < 2**53:
        return item
    number = None if isinstance(item, str) else number_of(item)
    if number is None and not isinstance(item, float):
        raise Rejected(f"type: the signal holds {shown(item)}, want {_WANTED}")
    return float(item) if number is None else number


def _columns(value: Any) -> list[str] | None:
    """The names of a data frame's columns; None if it has none that are text."""
    columns = getattr(value, "columns", None)
    if columns is None or not hasattr(value, "to_numpy"):
        return None
    names = list(columns)
    return names if names and all(isinstance(name, str) for name in names) else None


def _names(names: Any) -> list[str]:
    listed = isinstance(names, Iterable) and not isinstance(names, str | bytes | set | frozenset)
    found = list(names) if listed else []
    if not listed or not all(isinstance(name, str) for name in found):
        raise Rejected(f"leads must be a list of lead names such as ['I', 'II'], got {shown(names)}")
    if not found:
        raise Rejected("leads must be at least one lead, got none")
    return found


def _indices(names: list[str], rule: LeadNames) -> list[int | None]:
    try:
        return rule.find(names)
    except EcgfastError as error:
        raise Rejected(str(error)) from None


def _unit(given: np.dtype, unit: Any, gain: Any) -> str:
    if unit is not None:
        found = find_unit(unit) if isinstance(unit, str) else None
        if found is None:
            raise Rejected(f"unit must be {', '.join(MICROVOLTS)}, got {shown(unit)}")
        return found
    if gain is not None or given.kind == "f":
        return "mV"
    if (given.kind, given.itemsize) == ("i", 2):
        return "uV"
    raise Rejected(
        f"type: the signal is {given} and no unit is given, want {_WANTED}: "
        "pass unit='uV' if it is in microvolts, gain= (counts per mV) if it is a converter's counts"
    )


def _gains(gain: Any, n: int) -> np.ndarray:
    """Gains to divide [leads, samples] by."""
    single = isinstance(gain, str) or not isinstance(gain, Iterable) or getattr(gain, "ndim", 1) == 0
    gains = [number_of(one) for one in ([gain] * n if single else gain)]
    if len(gains) != n or not all(one is not None and one > 0 for one in gains):
        raise Rejected(f"gain must be a positive number, or one for each of the {n} leads, got {shown(gain)}")
    return np.array(gains, dtype=np.float64)[:, None]


def _shape_advice(shape: tuple[int, ...], n: int) -> str:
    """What is wrong with a signal's shape where `n` leads are named, and what mends it."""
    told = f"shape: signal must be [leads, samples], got {list(shape)}"
    some = "leads=['I', 'II', ...]"
    if len(shape) == 2 and shape[1] == n:
        return f"{told}; transpose it: signal.T"
    if len(shape) == 2 and shape[0] > shape[1] > 0:
        return f"{told}; transpose it, signal.T, and name its {shape[1]} leads: {some}"
    if len(shape) == 2:
        return f"{told}, while {n} leads are named; name those that it has: {some}"
    if len(shape) == 1 and n == 1:
        return f"{told}; add the axis of its one lead: signal[None]"
    if len(shape) == 1:
        return f"{told}; if it is one lead, signal[None] with its name, leads=['II']; else stack its leads"
    if len(shape) > 2 and 1 in shape:
        return f"{told}; drop its axes of one: signal.squeeze()"
    if len(shape) == 3 and n in shape[1:]:
        each = "signal[i]" if shape[1] == n else "signal[i].T"
        return f"{told}; give its {shape[0]} recordings one by one: {each}"
    return told
