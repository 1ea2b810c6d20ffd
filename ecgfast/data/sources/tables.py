"""Reading the CSV tables of sources, which may be damaged, incomplete or made to do harm."""

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from ecgfast.data.sources.arrays import suggestion
from ecgfast.data.sources.base import Item, unseen
from ecgfast.data.sources.folders import is_file, walk_folders
from ecgfast.data.values import is_missing
from ecgfast.errors import EcgfastError

_NAMELESS = re.compile(r"_|$|Unnamed: \d+$")


def table_rows(
    file: Path, columns: Iterable[str], others: Iterable[str] | None = None
) -> Iterator[tuple[str, dict[str, str] | None]]:
    """The rows of a CSV file with a header line, one by one.

    Args:
        file: UTF-8, with or without a byte order mark; other bytes are replaced.
        columns: Those that must be there.
        others: Those that may be there, besides ones without a name or one that begins with `_` (and pandas'
            "Unnamed: 0"); None: any.

    Yields:
        Where the row stands, such as "exams.csv line 7", and its fields, stripped, by column; None
        for a row of another number of fields.

    Raises:
        EcgfastError: it can't be read, lacks a column, or has one twice or one of another name.
    """
    if file.exists() and not is_file(file):
        raise EcgfastError(f"source: can't read {file}: it is no file")
    try:
        with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
            reader = csv.reader(lines)
            header = [name.strip() for name in next(reader, [])]
            _check_columns(file, header, list(columns), None if others is None else list(others))
            for row in reader:
                if row:
                    fields = dict(zip(header, (field.strip() for field in row), strict=False))
                    whole = len(row) == len(header)
                    yield f"{file.name} line {reader.line_num}", fields if whole else None
    except (OSError, csv.Error) as error:
        raise EcgfastError(f"source: can't read {file}: {error}") from None


def _check_columns(file: Path, header: list[str], columns: list[str], others: list[str] | None) -> None:
    missing = [name for name in columns if name not in header]
    if missing:
        raise EcgfastError(f"source: {file} has no column {', '.join(missing)}")
    known = [*columns, *(others or ())]
    if repeated := [name for name in known if header.count(name) > 1]:
        raise EcgfastError(f"source: {file} has {header.count(repeated[0])} columns {repeated[0]}, want one")
    unknown = [name for name in header if name not in known and not _NAMELESS.match(name)]
    if others is not None and unknown:
        told = f"source: {file} has a column {unknown[0]!r}, want of {', '.join(known)}"
        alone = " (names that begin with _ are left alone)"
        raise EcgfastError(f"{told}{alone}{suggestion(unknown[0], known)}")


def find_files(folder: Path, suffix: str, below: str = "") -> Iterator[str]:
    """Paths, relative to a folder, of all files with a suffix at any depth below, in a fixed order.

    Raises:
        EcgfastError: a folder can't be listed.
    """
    for path, files in walk_folders(folder, below):
        prefix = f"{path}/" if path else ""
        yield from (prefix + name for name in files if name.endswith(suffix))


def safe_path(text: str) -> str | None:
    """A path of a table in its plain form, or None if it may lead out of the folder.

    Links that lie in the folder are the user's own, and followed.
    """
    parts = [part for part in text.split("/") if part not in ("", ".")]
    harmless = text.isprintable() and "\\" not in text and not text.startswith("/")
    return "/".join(parts) if harmless and parts and ".." not in parts else None


def refused_path(column: str, text: str) -> str:
    """Why a row is refused whose path `safe_path` does not take."""
    if is_missing(text):
        return f"missing file: the row's {column} is empty"
    return f"unsafe path: {column} is {text!r}"


class Listed:
    """The record names of a table, in 8 bytes each: a table may have a million rows."""

    def __init__(self, names: Iterable[str]) -> None:
        self._keys = np.sort(np.fromiter(map(hash, names), dtype=np.int64))
        again = self._keys[1:] == self._keys[:-1]
        self._repeated = set(self._keys[1:][again].tolist())

    def __contains__(self, name: str) -> bool:
        key = hash(name)
        at = np.searchsorted(self._keys, key)
        return bool(at < len(self._keys) and self._keys[at] == key)

    def first_only(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, those that name a record again refused."""
        seen: set[int] = set()
        for item in items:
            key = hash(item.name)
            if item.refused is None and key in self._repeated:
                if key in seen:
                    item = item._replace(refused="ambiguous: the table has an earlier row for it")
                seen.add(key)
            yield item


def with_unlisted(
    items: Iterable[Item], found: Iterable[str], table: str, seen: Callable[[], object] = unseen
) -> Iterator[Item]:
    """The records of a table, then those that it does not name, refused.

    Args:
        items: Of the table; gone through twice, so no iterator.
        found: Names of the records that are there.
        table: Its name, for people.
        seen: Called for every item when they are gone through for the first time.
    """

    def names() -> Iterator[str]:
        for item in items:
            seen()
            yield item.name

    listed = Listed(names())
    yield from listed.first_only(items)
    for name in found:
        if name not in listed:
            yield Item(name, refused=f"not listed: {table} has no row for it")
