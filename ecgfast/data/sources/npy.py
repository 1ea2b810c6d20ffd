"""Folders of NumPy arrays, one recording to a file, with or without a table beside them."""

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from ecgfast.data.signal.preprocess import Preprocessing, Rejected
from ecgfast.data.sources.arrays import FIELDS, array_recording
from ecgfast.data.sources.base import Item, Source, unseen
from ecgfast.data.sources.tables import find_files, refused_path, safe_path, table_rows, with_unlisted
from ecgfast.data.store.recording import Recording
from ecgfast.data.store.store import array_shape, map_array
from ecgfast.data.values import is_missing
from ecgfast.errors import one_line

_TABLE = "records.csv"
_DEFAULT_RATE = 500
_MOST_RECORDS = 2**24  # in a file: more is damage, and would take all memory
_IN_ARRAY = re.compile(r"(?P<file>.*\.npy)/(?P<number>\d{1,9})", re.DOTALL)
_TOLD = tuple(name for name in FIELDS if name not in ("signal", "record_id"))


class Npy(Source):
    """`.npy` files at any depth: [leads, n_samples], floating point in mV or int16 in µV.

    An array [records, leads, n_samples] is as many recordings, `a.npy/0` and on.

    `records.csv` tells of each `file` what is known, in the columns rate (500 Hz where it doesn't say), leads
    (all twelve in the standard order where it doesn't say) and labels, both separated by `;`, unit, gain
    (counts in one unit), patient_id, age, sex and fold; columns whose names begin with `_` are left alone,
    others are an error. Files that it doesn't list are refused; without it all files are taken.
    """

    format = "npy"
    takes_unit = True
    wants = "array (.npy file)"

    @classmethod
    def detect(cls, folder: Path) -> bool:
        return not (folder / "store.json").is_file() and next(find_files(folder, ".npy"), None) is not None

    def items(self, seen: Callable[[], object] = unseen) -> Iterator[Item]:
        found = (name for file in find_files(self.folder, ".npy") for name in _names(self.folder, file))
        if not (self.folder / _TABLE).exists():
            return map(Item, found)
        return with_unlisted(_Rows(self.folder / _TABLE), found, _TABLE, seen)

    def read(self, item: Item, preprocessing: Preprocessing) -> Recording:
        file, place = item.name, _IN_ARRAY.fullmatch(item.name)
        if place is not None:
            file = place["file"]
        try:
            # mapped: a header that announces more than the file holds allocates nothing
            signal = map_array(self.folder / file)
        except (OSError, ValueError) as error:
            told = one_line(error)
            if "Python objects" in told:
                told = "the array holds Python objects, want numbers: save an array [leads, samples] a file"
            raise Rejected(f"unreadable: {told}") from None
        record_id = item.name.removesuffix(".npy")
        if place is not None:
            at = int(place["number"])
            if signal.ndim != 3 or at >= len(signal):
                raise Rejected(f"shape: {file} is {list(signal.shape)}, it has no recording number {at}")
            signal, record_id = signal[at], f"{file.removesuffix('.npy')}/{at}"
        told = {"rate": _DEFAULT_RATE, "record_id": record_id, "unit": self.unit}
        told |= {key: value for key, value in item.place if not _says_nothing(value)}
        if "gain" not in told and "gain" in dict(item.place):  # counts, in a unit that nobody tells
            told["gain"] = math.nan
        return array_recording(told | {"signal": signal}, item.name, preprocessing)


def _names(folder: Path, file: str) -> Iterator[str]:
    """Names of the recordings in a file; its own where it is one, or no array."""
    try:
        shape = array_shape(folder / file) if file.endswith(".npy") else ()
    except (OSError, ValueError):  # reading it tells why
        shape = ()
    if len(shape) != 3 or shape[0] > _MOST_RECORDS:
        yield file
    else:
        yield from (f"{file}/{i}" for i in range(shape[0]))


class _Rows:
    """The table's rows as items, as often as they are wanted."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __iter__(self) -> Iterator[Item]:
        for where, row in table_rows(self._file, ["file"], _TOLD):
            if row is None:
                yield Item(where, refused="unreadable: the row has another number of fields than the header")
            elif (name := safe_path(row["file"])) is None:
                yield Item(where, refused=refused_path("file", row["file"]))
            else:
                place = tuple(
                    (key, _value(key, row[key])) for key in _TOLD if row.get(key) or key == "gain" in row
                )
                yield from (Item(each, place=place) for each in _names(self._file.parent, name))


def _value(key: str, text: str) -> str | list[str]:
    if key not in ("leads", "labels") and not (key == "gain" and ";" in text):
        return text
    return [part.strip() for part in text.split(";") if part.strip()]


def _says_nothing(value: str | list[str]) -> bool:
    return all(map(is_missing, value)) if isinstance(value, list) else is_missing(value)
