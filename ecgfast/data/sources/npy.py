"""Folders of NumPy arrays, one recording to a file, with or without a table beside them."""

from collections.abc import Callable, Iterator
from pathlib import Path

from ecgfast.data.arrays import FIELDS, array_recording
from ecgfast.data.preprocess import Preprocessing, Rejected
from ecgfast.data.sources.base import Item, Source, unseen
from ecgfast.data.sources.tables import find_files, safe_path, table_rows, with_unlisted
from ecgfast.data.store import map_array
from ecgfast.data.values import is_missing
from ecgfast.data.writer import Recording
from ecgfast.errors import one_line

_TABLE = "records.csv"
_DEFAULT_RATE = 500
_TOLD = tuple(name for name in FIELDS if name not in ("signal", "record_id"))


class Npy(Source):
    """`.npy` files at any depth: [leads, n_samples], floating point in mV or int16 in µV.

    `records.csv` tells of each `file` what is known, in the columns rate (500 Hz where it doesn't say), leads
    (all twelve in the standard order where it doesn't say) and labels, both separated by `;`, unit, gain
    (counts in one unit), patient_id, age, sex and fold; columns whose names begin with `_` are left alone,
    others are an error. Files that it doesn't list are refused; without it all files are taken.
    """

    form = "npy"
    takes_unit = True
    wants = "array (.npy file)"

    @classmethod
    def detect(cls, folder: Path) -> bool:
        return not (folder / "store.json").is_file() and next(folder.rglob("*.npy"), None) is not None

    def items(self, seen: Callable[[], object] = unseen) -> Iterator[Item]:
        found = find_files(self.folder, ".npy")
        if not (self.folder / _TABLE).exists():
            return map(Item, found)
        return with_unlisted(_Rows(self.folder / _TABLE), found, _TABLE, seen)

    def read(self, item: Item, how: Preprocessing) -> Recording:
        try:
            # mapped: a header that announces more than the file holds allocates nothing
            signal = map_array(self.folder / item.name)
        except (OSError, ValueError) as error:
            told = one_line(error)
            if "Python objects" in told:
                told = "the array holds Python objects, want numbers: save an array [leads, samples] a file"
            raise Rejected(f"unreadable: {told}") from None
        told = {"rate": _DEFAULT_RATE, "record_id": item.name.removesuffix(".npy"), "unit": self.unit}
        told |= {key: value for key, value in item.place if key == "rate" or not _says_nothing(value)}
        return array_recording(told | {"signal": signal}, item.name, how)


class _Rows:
    """The table's rows as items, as often as they are wanted."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __iter__(self) -> Iterator[Item]:
        for where, row in table_rows(self._file, ["file"], _TOLD):
            if row is None:
                yield Item(where, refused="unreadable: the row has another number of fields than the header")
            elif (name := safe_path(row["file"])) is None:
                yield Item(where, refused=f"unsafe path: file is {row['file']!r}")
            else:
                yield Item(name, place=tuple((key, _value(key, row[key])) for key in _TOLD if row.get(key)))


def _value(key: str, text: str) -> str | list[str]:
    if key not in ("leads", "labels") and not (key == "gain" and ";" in text):
        return text
    return [part.strip() for part in text.split(";") if part.strip()]


def _says_nothing(value: str | list[str]) -> bool:
    return all(map(is_missing, value)) if isinstance(value, list) else is_missing(value)
