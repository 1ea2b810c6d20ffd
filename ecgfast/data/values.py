"""What tables, arrays and headers say of a recording: values plain, missing or odd.

A missing value is unknown. An odd one is too, with a warning: it never costs the recording.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

OLDEST = 125.0
"""Years; a greater age is a code or a mistake."""

_MISSING = frozenset(
    (
        "",
        "none",
        "(none)",
        "null",
        "nil",
        "nan",
        "-nan",
        "na",
        "n/a",
        "<na>",
        "#na",
        "#n/a",
        "#n/a n/a",
        "nat",
    )
) | frozenset(("masked", "--", "-", "?", "unknown", "(unknown)", "not available"))
_SEXES = {"f": "F", "female": "F", "woman": "F", "m": "M", "male": "M", "man": "M"}
_NO_SEX = frozenset(("u", "o", "x", "other", "unspecified", "undetermined"))
_WHOLE = re.compile(r"(-?\d+)\.0+")
_DICOM_AGE = re.compile(r"(\d{1,3}) ?([dwmy])(?:ears?)?")
_YEARS = {"d": 1 / 365.25, "w": 7 / 365.25, "m": 1 / 12, "y": 1.0}
_Read = TypeVar("_Read")
_EXACT = {2: 2**11, 4: 2**24}  # by bytes: a float has not every whole number beyond


def plain(value: Any) -> Any:
    """A scalar of NumPy, pandas, PyTorch or Arrow as Python's own, bytes as text; others as they are."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, np.ma.MaskedArray) and value.ndim == 0 and value.mask:
        return None
    if isinstance(value, str):
        return str(value)
    for name in ("item", "as_py"):
        convert = getattr(value, name, None)
        if callable(convert) and getattr(value, "ndim", 0) == 0:
            try:
                value = convert()
            except Exception:  # of a type of the user's own, or a tensor without values: told as it is
                return value
            return plain(value) if isinstance(value, bytes) else value
    return value


def is_missing(value: Any) -> bool:
    """Whether a value stands for an unknown one: None, NaN, NA, NaT, a masked one, "", "nan" or the like."""
    value = plain(value)
    if value is None:
        return True
    if isinstance(value, str):
        return value.strip().casefold() in _MISSING
    if getattr(value, "ndim", 0) or isinstance(value, Iterable):
        return False
    try:
        return bool(value != value)
    except Exception:  # pandas' NA is neither true nor false
        return type(value).__name__ == "NAType"


def text_of(value: Any) -> str | None:
    """An identifier or a label as text, whole numbers without ".0"; None if it is none.

    Tables of numbers with gaps have 15709.0 where others have 15709.
    """
    exact = _EXACT.get(getattr(value, "itemsize", 8), 2**53)
    value = plain(value)
    if isinstance(value, float):
        if not math.isfinite(value) or abs(value) >= exact:
            return None
        value = int(value) if value.is_integer() else value
    if not isinstance(value, str):
        nameless = type(value).__str__ is object.__str__ and type(value).__repr__ is object.__repr__
        if nameless or isinstance(value, bool | complex | Iterable):
            return None
    text = str(value).strip()
    whole = _WHOLE.fullmatch(text)
    text = whole[1] if whole else text
    return text if text and text.isprintable() else None  # no lone surrogates either: they are no UTF-8


def number_of(value: Any) -> float | None:
    """A finite number, also one that is text; None if it is none."""
    value = plain(value)
    if isinstance(value, bool | complex):
        return None
    try:
        number = float(value)
    except Exception:  # the user's own types raise what they like
        return None
    return number if math.isfinite(number) else None


def identity(value: Any, warnings: list[str], name: str = "patient_id") -> str | None:
    """A patient's id; None where it is unknown: then the recording is of a patient of its own."""
    return _understood(value, text_of, "text or a whole number", warnings, name)


def years(value: Any, warnings: list[str], name: str = "age") -> float | None:
    """An age in years; text may be DICOM's ("063Y", "006M")."""
    return _understood(value, _age, f"0 to {OLDEST:g} years", warnings, name)


def fold_of(value: Any, warnings: list[str], name: str = "fold") -> int | None:
    """The number of a cross-validation fold."""
    return _understood(value, _whole, "a whole number", warnings, name)


def sex_of(value: Any, warnings: list[str], codes: Mapping[float, str] | None = None) -> str | None:
    """Either "F" or "M"; None where it is unknown.

    Args:
        value: What a table says.
        warnings: Gets one where that is odd.
        codes: The numbers that stand for sexes, where the source defines them: they differ.
    """
    if is_missing(value):
        return None
    word = str(plain(value)).strip().casefold()
    if word in _SEXES or word in _NO_SEX:
        return _SEXES.get(word)
    sex = (codes or {}).get(number_of(value))
    if sex is None:
        want = "F or M" if codes is None else "F, M, " + ", ".join(f"{c:g} ({s})" for c, s in codes.items())
        warnings.append(f"sex: got {shown(value)}, want {want}")
    return sex


def labels_of(value: Any, warnings: list[str]) -> list[str]:
    """Labels as text, each once: of a list, set, array or series, a mapping's keys, or text with `;`."""
    if is_missing(value):
        return []
    value = plain(value)
    if isinstance(value, str):
        parts: Iterable[Any] = value.split(";")
    elif getattr(value, "ndim", 1) != 1:
        warnings.append(f"labels: got {shown(value)}, want a list of labels")
        return []
    elif isinstance(value, Iterable):
        parts = value
    else:
        parts = [value]
    found: dict[str, None] = {}
    for part in parts:
        if is_missing(part):
            continue
        text = text_of(part)
        if text is None:
            warnings.append(f"labels: one is {shown(part)}, want text or a whole number")
        else:
            found[text] = None
    return sorted(found) if isinstance(value, set | frozenset) else list(found)  # sets have no order to keep


def shown(value: Any) -> str:
    """A value as it is told: in one line, not too long."""
    text = " ".join(repr(plain(value)).split())
    return text if len(text) <= 100 else f"{text[:99]}…"


def _understood(
    value: Any, read: Callable[[Any], _Read | None], want: str, warnings: list[str], name: str
) -> _Read | None:
    """What `read` makes of a value; where that is nothing, there is a warning, unless it is missing."""
    if is_missing(value):
        return None
    found = read(value)
    if found is None:
        warnings.append(f"{name}: got {shown(value)}, want {want}")
    return found


def _age(value: Any) -> float | None:
    age = number_of(value)
    if age is None and isinstance(plain(value), str):
        told = _DICOM_AGE.fullmatch(plain(value).strip().casefold())
        age = int(told[1]) * _YEARS[told[2]] if told else None
    return age if age is not None and 0 <= age <= OLDEST else None


def _whole(value: Any) -> int | None:
    number = number_of(value)
    return int(number) if number is not None and number.is_integer() and abs(number) < 2**31 else None
