"""Checks of what evaluation is given, and scikit-learn, an extra."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from ecgfast.errors import EcgfastError

_SHOWN = 3


def sklearn_metrics() -> Any:
    """The module `sklearn.metrics`.

    Raises:
        EcgfastError: scikit-learn is not installed.
    """
    try:
        return import_module("sklearn.metrics")
    except ImportError:
        raise EcgfastError("evaluation needs scikit-learn: pip install 'ecgfast[evaluation]'") from None


def named(names: Sequence[object]) -> str:
    """A few of many names, and how many there are beside: "a, b, c and 4 more"."""
    first = ", ".join(str(name) for name in names[:_SHOWN])
    more = len(names) - _SHOWN
    return f"{first} and {more} more" if more > 0 else first


def check_matrix(name: str, value: Any, what: str) -> np.ndarray:
    """Finite numbers, float64 [n, columns], at least one of each.

    Args:
        name: The argument, for messages.
        value: An array.
        what: Its shape for messages, such as "[records, classes]".

    Raises:
        EcgfastError: another shape or dtype, no entries, or one that is not finite; names its row.
    """
    array = np.asarray(value)
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "biuf":
        got = f"{array.dtype} {list(array.shape)}"
        raise EcgfastError(f"{name}: must be numbers {what}, at least one of each, got {got}")
    array = array.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if bad.size:
        raise EcgfastError(f"{name}: must be finite, got {array[bad[0]].tolist()[:4]} in row {bad[0]}")
    return array


def check_vector(name: str, value: Any, n: int | None = None) -> np.ndarray:
    """Finite numbers, float64 [n].

    Raises:
        EcgfastError: another shape, length or dtype, no entries, or one that is not finite; names its row.
    """
    array = np.asarray(value)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "biuf":
        raise EcgfastError(f"{name}: must be numbers [records], got {array.dtype} {list(array.shape)}")
    if n is not None and len(array) != n:
        raise EcgfastError(f"{name}: must have {n} rows, got {len(array)}")
    array = array.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise EcgfastError(f"{name}: must be finite, got {array[bad[0]]} in row {bad[0]}")
    return array


def check_labels(name: str, value: Any, shape: tuple[int, int] | None = None) -> np.ndarray:
    """0 and 1, bool [n, classes].

    Raises:
        EcgfastError: another shape, or an entry that is neither; names its row.
    """
    array = check_matrix(name, value, "[records, classes]")
    if shape is not None and array.shape != shape:
        raise EcgfastError(
            f"{name}: must have the shape {list(shape)} of the scores, got {list(array.shape)}"
        )
    odd = np.argwhere((array != 0) & (array != 1))
    if odd.size:
        row, column = odd[0]
        raise EcgfastError(
            f"{name}: must be 0 or 1, got {array[row, column]:g} in row {row}, column {column}"
        )
    return array.astype(bool)


def check_classes(classes: Sequence[str], n: int) -> tuple[str, ...]:
    """Names of n classes, each once.

    Raises:
        EcgfastError: another number, or one twice.
    """
    names = tuple(str(name) for name in classes)
    if len(names) != n:
        raise EcgfastError(f"classes: must be as many as the scores have columns, {n}, got {len(names)}")
    if repeated := [name for i, name in enumerate(names) if name in names[:i]]:
        raise EcgfastError(f"classes: must be there once, got {named(repeated)} twice or more")
    return names


def check_groups(name: str, value: Any, n: int) -> np.ndarray:
    """Which of the groups 0, 1, ... each of n rows belongs to, int64 [n]; any integers or texts are taken.

    Raises:
        EcgfastError: another shape, length or dtype.
    """
    array = np.asarray(value)
    if array.shape != (n,) or array.dtype.kind not in "iuUO":
        got = f"{array.dtype} {list(array.shape)}"
        raise EcgfastError(f"{name}: must be whole numbers or texts [{n}], got {got}")
    if array.dtype.kind == "O":
        array = array.astype(str)
    return np.unique(array, return_inverse=True)[1].astype(np.int64)
