"""Targets of a store's recordings: from the store's own labels, or from a table of the user's.

What is left out on the way is told: every function's result has `left_out`, the ids by the reason, which
`describe_left_out` turns into lines for people.
"""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa

from ecgfast._suggest import among, did_you_mean
from ecgfast.data.values import is_missing, labels_of, number_of, shown, text_of
from ecgfast.errors import EcgfastError, one_line
from ecgfast.evaluation._inputs import named

LeftOut = dict[str, list[str]]

_KEYS = ("record_id", "patient_id")
_PLACES = ("shard", "offset", "checksum")  # numbers of a store's index that say nothing of a recording
_YES_NO = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


@dataclass(frozen=True, eq=False)
class MultiLabel:
    """0/1 targets of some of a store's recordings.

    Attributes:
        classes: Names of the C classes.
        recordings: Numbers of the recordings in the store, ascending, int64 [n].
        matrix: Which classes each has, bool [n, C].
        left_out: Ids of what is not here, by the reason.
    """

    classes: tuple[str, ...]
    recordings: np.ndarray
    matrix: np.ndarray
    left_out: LeftOut = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Numbers:
    """A number for some of a store's recordings.

    Attributes:
        name: Of the column.
        recordings: Numbers of the recordings in the store, ascending, int64 [n].
        values: float64 [n], finite.
        left_out: Ids of what is not here, by the reason.
    """

    name: str
    recordings: np.ndarray
    values: np.ndarray
    left_out: LeftOut = field(default_factory=dict)


def describe_left_out(left_out: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each reason: "left out 407: no label of the task (a, b, c and 404 more)"."""
    return [f"left out {len(ids):,}: {reason} ({named(ids)})" for reason, ids in left_out.items() if ids]


def store_labels(
    index: pa.Table,
    classes: Sequence[str] | None = None,
    *,
    synonyms: Mapping[str, str] | None = None,
    min_records: int = 1,
    keep_unlabelled: bool | str = False,
    absent: str = "error",
) -> MultiLabel:
    """Targets from the column `labels` of a store's index.

    Args:
        index: `Store.index`, or some of its rows.
        classes: Those wanted, in this order; None: all that are there, in alphabetical order.
        synonyms: The class of each label that has one; labels without a class are left aside. None: each
            label is its own class.
        min_records: Leave out classes that fewer recordings have.
        keep_unlabelled: Keep recordings that have none of the classes, as ones with every target 0: all of
            them, or with "others" those that have other labels; what has none at all was not read.
        absent: What to do with a class of `classes` that no recording has: "error", or "leave out".

    Raises:
        EcgfastError: a class that no recording has, or no class or recording is left.
    """
    if absent not in ("error", "leave out"):
        raise EcgfastError(f"absent: must be 'error' or 'leave out', got {absent!r}")
    if keep_unlabelled not in (False, True, "others"):
        raise EcgfastError(f"keep_unlabelled: must be False, True or 'others', got {keep_unlabelled!r}")
    lists = [_classes_of(labels, synonyms) for labels in index["labels"].to_pylist()]
    counts = Counter(label for labels in lists for label in labels)
    if not counts:
        raise EcgfastError(_no_labels(index, synonyms))
    wanted = sorted(counts) if classes is None else [str(name) for name in classes]
    if (missing := [name for name in wanted if name not in counts]) and absent == "error":
        near = did_you_mean(missing[0], among(missing[0], list(counts)))
        raise EcgfastError(f"classes: must be labels of the store, got {missing[0]!r}{near}")
    kept = [name for name in wanted if counts[name] >= max(min_records, 1)]
    if not kept:
        raise EcgfastError(f"classes: must have one that {min_records} or more recordings have, got none")
    rare = [name for name in wanted if 0 < counts[name] < min_records]
    left_out: LeftOut = {
        "classes that no recording has": missing,
        f"classes that fewer than {min_records} recordings have": rare,
    }
    labelled = [bool(labels) for labels in index["labels"].to_pylist()]
    keep = labelled if keep_unlabelled == "others" else [bool(keep_unlabelled)] * len(lists)
    return _multi_label(index["record_id"].to_pylist(), lists, kept, keep, left_out)


def store_numbers(index: pa.Table, column: str) -> Numbers:
    """A column of numbers of a store's index, such as "age"; recordings where it is null are left out.

    Args:
        index: `Store.index`, or some of its rows.
        column: Its name; those that tell where signals lie are none.

    Raises:
        EcgfastError: there is no such column of numbers, or no number in it.
    """
    known = [entry.name for entry in index.schema if _is_number(entry)]
    if column not in known:
        near = did_you_mean(column, known)
        raise EcgfastError(f"target: must be labels or {' or '.join(known)}, got {column!r}{near}")
    values = index[column].to_numpy().astype(np.float64)
    good = np.isfinite(values)
    if not good.any():
        raise EcgfastError(f"target: must be known of some recordings of the store, got no {column}")
    records = index["record_id"].to_pylist()
    without = [records[i] for i in np.flatnonzero(~good)]
    left_out = {f"recordings without {column}": without} if without else {}
    return Numbers(column, np.flatnonzero(good), values[good], left_out)


def _is_number(entry: pa.Field) -> bool:
    number = pa.types.is_floating(entry.type) or pa.types.is_integer(entry.type)
    return number and entry.name not in _PLACES


@dataclass(frozen=True)
class LabelTable:
    """A CSV table of labels by record or patient.

    Attributes:
        path: The file.
        by: "record_id" or "patient_id": what its ids are.
        lines: Line of each row in the file.
        ids: Id of each row, each once.
        columns: Texts of each column, as many as ids.
        left_out: Rows without an id.
        digest: SHA-256 of the file, in hexadecimal.
    """

    path: Path
    by: str
    lines: tuple[int, ...]
    ids: tuple[str, ...]
    columns: dict[str, tuple[str, ...]]
    left_out: LeftOut
    digest: str = ""

    @classmethod
    def read(cls, path: str | Path) -> "LabelTable":
        """Read a table with a header line and a column `record_id` or `patient_id` (the first where both
        are).

        Columns whose name is empty or begins with `_` are left alone.

        Args:
            path: A CSV file, UTF-8.

        Raises:
            EcgfastError: it can't be read, has no column of ids or no other one, has a column or an id twice,
                or a row of another number of fields.
        """
        path = Path(path)
        header, rows, digest = _read_csv(path)
        by = next((key for key in _KEYS if key in header), None)
        names = [name for name in header if name not in _KEYS and name and not name.startswith("_")]
        if by is None:
            raise EcgfastError(
                f"labels: {path} must have a column record_id or patient_id, got {named(header)}"
            )
        if repeated := [name for i, name in enumerate(header) if name and name in header[:i]]:
            raise EcgfastError(f"labels: {path} has the column {repeated[0]} twice, want each once")
        if not names:
            raise EcgfastError(f"labels: {path} must have a column of labels beside {by}, got none")
        lines, ids, left_out = _ids(path, by, header.index(by), rows)
        taken = set(lines)
        kept = [fields for line, fields in rows if line in taken]
        columns = {name: tuple(fields[header.index(name)] for fields in kept) for name in names}
        return cls(path, by, tuple(lines), tuple(ids), columns, left_out, digest)

    def kind(self, column: str) -> str:
        """What a column holds: "binary" (0/1, true/false), "number", or "list" (texts with `;` between).

        Raises:
            EcgfastError: there is no such column, or it is empty.
        """
        values = [text for text in self._column(column) if not is_missing(text)]
        if not values:
            raise EcgfastError(f"labels: column {column!r} of {self.path} must have values, got none")
        if all(text.casefold() in _YES_NO for text in values):
            return "binary"
        return "number" if all(number_of(text) is not None for text in values) else "list"

    def multi_label(
        self,
        index: pa.Table,
        columns: Sequence[str] | None = None,
        *,
        classes: Sequence[str] | None = None,
        lists: Sequence[str] = (),
        empty: str = "missing",
    ) -> MultiLabel:
        """0/1 targets: 0/1 columns are a class each, and each label of a column of lists is a class.

        Recordings with a missing value in any of the columns are left out.

        Args:
            index: `Store.index`.
            columns: Those that count; None: all.
            classes: Those wanted, in this order; None: the 0/1 columns in the order of the file, then the
                labels in alphabetical order.
            lists: Columns to read as lists of labels whatever they hold: codes may look like numbers.
            empty: What an empty field of a column of lists means: "missing", or "none" of the labels.

        Raises:
            EcgfastError: an unknown column or class, one of numbers, or no recording of the store has a row.
        """
        if empty not in ("missing", "none"):
            raise EcgfastError(f"empty: must be 'missing' or 'none', got {empty!r}")
        columns = list(self.columns) if columns is None else list(columns)
        kinds = {column: "list" if column in lists else self.kind(column) for column in columns}
        for column in lists:
            self._column(column)
        if numbers := [column for column, kind in kinds.items() if kind == "number"]:
            raise EcgfastError(
                f"labels: column {numbers[0]!r} of {self.path} must be 0/1 or lists of labels, got numbers "
                "(name it in lists if they are codes)"
            )
        found = [self._labels_of_row(i, kinds, empty) for i in range(len(self.ids))]
        binary = [column for column, kind in kinds.items() if kind == "binary"]
        listed = sorted({label for labels in found for label in labels or ()} - set(binary))
        known = binary + listed
        wanted = known if classes is None else [str(name) for name in classes]
        if unknown := [name for name in wanted if name not in known]:
            near = did_you_mean(unknown[0], known)
            raise EcgfastError(f"classes: must be of {self.path}, got {unknown[0]!r}{near}")
        recordings, rows, left_out = self._join(index, [labels is not None for labels in found])
        matrix = np.array([[name in found[row] for name in wanted] for row in rows], dtype=bool)
        return MultiLabel(tuple(wanted), recordings, matrix, left_out)

    def numbers(self, index: pa.Table, column: str) -> Numbers:
        """A column of numbers; recordings without a value are left out.

        Args:
            index: `Store.index`.
            column: Its name.

        Raises:
            EcgfastError: an unknown column, a value that is no finite number (names its line), or no
                recording of the store has one.
        """
        texts = self._column(column)
        values = [None if is_missing(text) else number_of(text) for text in texts]
        for line, text, value in zip(self.lines, texts, values, strict=True):
            if value is None and not is_missing(text):
                where = f"{self.path} line {line}"
                raise EcgfastError(f"labels: {where}: {column} must be a finite number, got {shown(text)}")
        recordings, rows, left_out = self._join(index, [value is not None for value in values])
        return Numbers(
            column, recordings, np.array([values[row] for row in rows], dtype=np.float64), left_out
        )

    def _column(self, column: str) -> tuple[str, ...]:
        if column not in self.columns:
            near = did_you_mean(column, self.columns) or f" of {named(list(self.columns))}"
            raise EcgfastError(f"labels: must be a column of {self.path}, got {column!r}{near}")
        return self.columns[column]

    def _labels_of_row(self, row: int, kinds: dict[str, str], empty: str) -> set[str] | None:
        """The classes of a row; None where a value is missing."""
        found: set[str] = set()
        for column, kind in kinds.items():
            text = self.columns[column][row]
            if is_missing(text):
                if kind == "list" and empty == "none":
                    continue
                return None
            if kind == "binary":
                found |= {column} if _YES_NO[text.casefold()] else set()
            else:
                found |= set(labels_of(text, []))
        return found

    def _join(self, index: pa.Table, has_value: list[bool]) -> tuple[np.ndarray, np.ndarray, LeftOut]:
        """Numbers of the recordings that have a row with a value, and its number."""
        keys, records = index[self.by].to_pylist(), index["record_id"].to_pylist()
        row_of = {key: row for row, key in enumerate(self.ids)}
        there = set(keys)
        unknown = [key for key in self.ids if key not in there]
        if len(unknown) == len(self.ids):
            like = f"got such as {named(self.ids)}, the store has such as {named(keys)}"
            raise EcgfastError(f"labels: {self.path} must have a {self.by} of the store, {like}")
        rows = np.array([row_of.get(key, -1) for key in keys], dtype=np.int64)
        valued = np.array([*has_value, False])[rows]  # row -1: none
        left_out = dict(self.left_out)
        left_out[f"rows whose {self.by} is not in the store"] = unknown
        left_out["recordings without a row in the table"] = [records[i] for i in np.flatnonzero(rows < 0)]
        empty = np.flatnonzero((rows >= 0) & ~valued)
        left_out["recordings whose value in the table is missing"] = [records[i] for i in empty]
        recordings = np.flatnonzero(valued)
        if not recordings.size:
            raise EcgfastError(
                f"labels: {self.path} must have a value for a recording of the store, got none"
            )
        return recordings, rows[recordings], {reason: ids for reason, ids in left_out.items() if ids}


def _classes_of(labels: list[str], synonyms: Mapping[str, str] | None) -> set[str]:
    if synonyms is None:
        return set(labels)
    return {synonyms[label] for label in labels if label in synonyms}


def _no_labels(index: pa.Table, synonyms: Mapping[str, str] | None) -> str:
    there = sorted({label for labels in index["labels"].to_pylist() for label in labels})
    if synonyms is None or not there:
        return "labels: the store must have labels, got none"
    return (
        f"labels: the store must have some of the task, such as {named(list(synonyms))}, got {named(there)}"
    )


def _multi_label(
    records: list[str], lists: list[set[str]], kept: list[str], keep: list[bool], left_out: LeftOut
) -> MultiLabel:
    """Targets of the recordings that have one of the classes `kept`, and of those to `keep` all the same."""
    at = {name: column for column, name in enumerate(kept)}
    matrix = np.zeros((len(records), len(kept)), dtype=bool)
    for row, labels in enumerate(lists):
        matrix[row, [at[label] for label in labels if label in at]] = True
    counts = matrix.any(axis=1) | np.array(keep, dtype=bool)
    recordings = np.flatnonzero(counts)
    left_out["recordings without a label of the task"] = [records[i] for i in np.flatnonzero(~counts)]
    left_out = {reason: ids for reason, ids in left_out.items() if ids}
    return MultiLabel(tuple(kept), recordings, matrix[recordings], left_out)


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]], str]:
    """The header, the lines and fields of the rows, and the file's digest."""
    try:
        content = path.read_bytes()
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        header = [name.strip() for name in next(reader, [])]
        rows = [(reader.line_num, [field.strip() for field in row]) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EcgfastError(f"labels: can't read {path}: {one_line(error)}") from None
    for line, fields in rows:
        if len(fields) != len(header):
            want = f"{len(header)} fields as its header"
            raise EcgfastError(f"labels: {path} line {line} must have {want}, got {len(fields)}")
    if not rows:
        raise EcgfastError(f"labels: {path} must have a header and rows, got none")
    return header, rows, sha256(content).hexdigest()


def _ids(
    path: Path, by: str, column: int, rows: list[tuple[int, list[str]]]
) -> tuple[list[int], list[str], LeftOut]:
    """Lines and ids of the rows that have one."""
    seen: dict[str, int] = {}
    nameless = []
    for line, fields in rows:
        key = text_of(fields[column]) if not is_missing(fields[column]) else None
        if key is None:
            nameless.append(f"line {line}")
            continue
        if key in seen:
            raise EcgfastError(
                f"labels: {path} has {by} {key!r} in lines {seen[key]} and {line}, want it once"
            )
        seen[key] = line
    left_out: LeftOut = {f"rows without a {by}": nameless} if nameless else {}
    return list(seen.values()), list(seen), left_out
