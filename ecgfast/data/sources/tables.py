"""Reading the CSV tables of sources, which may be damaged, incomplete or made to do harm."""

import csv
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ecgfast.data.sources.base import Item
from ecgfast.errors import EcgfastError


def table_rows(file: Path, columns: Iterable[str]) -> Iterator[tuple[str, dict[str, str] | None]]:
    """The rows of a CSV file with a header line, one by one.

    Args:
        file: UTF-8, with or without a byte order mark; other bytes are replaced.
        columns: Those that must be there; more are handed on as they are.

    Yields:
        Where the row stands, such as "exams.csv line 7", and its fields, stripped, by column; None
        for a row of another number of fields.

    Raises:
        EcgfastError: it can't be read, or lacks a column.
    """
    try:
        with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
            reader = csv.reader(lines)
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in columns if name not in header]
            if missing:
                raise EcgfastError(f"source: {file} has no column {', '.join(missing)}")
            for row in reader:
                if row:
                    fields = dict(zip(header, (field.strip() for field in row), strict=False))
                    whole = len(row) == len(header)
                    yield f"{file.name} line {reader.line_num}", fields if whole else None
    except (OSError, csv.Error) as error:
        raise EcgfastError(f"source: can't read {file}: {error}") from None


def find_files(folder: Path, suffix: str, below: str = "") -> Iterator[str]:
    """Paths, relative to a folder, of all files with a suffix at any depth below, in a fixed order.

    Raises:
        EcgfastError: a folder can't be listed.
    """

    def refuse(error: OSError) -> None:
        raise EcgfastError(f"source: can't list {error.filename}: {error.strerror}") from error

    for path, folders, files in os.walk(folder / below, onerror=refuse):
        folders.sort()
        for name in sorted(files):
            if name.endswith(suffix):
                yield Path(path, name).relative_to(folder).as_posix()


def safe_path(text: str) -> str | None:
    """A path of a table in its plain form, or None if it may lead out of the folder.

    Links that lie in the folder are the user's own, and followed.
    """
    parts = [part for part in text.split("/") if part not in ("", ".")]
    harmless = text.isprintable() and "\\" not in text and not text.startswith("/")
    return "/".join(parts) if harmless and parts and ".." not in parts else None


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


def with_unlisted(items: Iterable[Item], found: Iterable[str], table: str) -> Iterator[Item]:
    """The records of a table, then those that it does not name, refused.

    Args:
        items: Of the table; gone through twice, so no iterator.
        found: Names of the records that are there.
        table: Its name, for people.
    """
    listed = Listed(item.name for item in items)
    yield from listed.first_only(items)
    for name in found:
        if name not in listed:
            yield Item(name, refused=f"not listed: {table} has no row for it")


def number(text: str) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def identity(text: str) -> str | None:
    """An identifier as text: `15709.0`, as tables of numbers with gaps have it, is `15709`."""
    whole = text.removesuffix(".0")
    return (whole if whole.isdigit() else text) or None


def years(text: str) -> float | None:
    """An age, or None where it is unknown or negative."""
    age = number(text)
    return age if age is not None and age >= 0 else None


def fold(text: str) -> int | None:
    """The number of a cross-validation fold, or None."""
    value = number(text)
    return int(value) if value is not None and value == int(value) and abs(value) < 2**31 else None
