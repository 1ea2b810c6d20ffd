"""Why records were not taken or not taken whole, counted and with examples."""

import csv
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ecgfast.errors import printable

_MOST_SORTS = 64  # of reasons that are kept with an example: damage makes up ever more
_SHOWN = 6  # sorts that are told
_ARGUMENT = re.compile(r"(\w+) must ")
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\d.,]*")


class Sort(NamedTuple):
    """Reasons that differ in numbers and quotations alone.

    Attributes:
        count: How many.
        reason: The first of them, whole.
        source: Its record.
    """

    count: int
    reason: str
    source: str


class Reasons:
    """Counts by kind (`kind: details`), and the first example of each sort.

    Attributes:
        kinds: How many reasons, by kind.
    """

    def __init__(self, reasons: Iterable[tuple[str, str]] = ()) -> None:
        self.kinds: Counter[str] = Counter()
        self._sorts: dict[str, Sort] = {}
        for source, reason in reasons:
            self.add(source, reason)

    def add(self, source: str, reason: str) -> None:
        """Count one reason of a record."""
        self.kinds[kind_of(reason)] += 1
        key = _VARYING.sub("#", reason)
        known = self._sorts.get(key)
        if known is not None:
            self._sorts[key] = known._replace(count=known.count + 1)
        elif len(self._sorts) < _MOST_SORTS:
            self._sorts[key] = Sort(1, reason, source)

    def sorts(self) -> list[Sort]:
        """The most frequent sorts, the earlier ones first among equals."""
        return sorted(self._sorts.values(), key=lambda sort: -sort.count)[:_SHOWN]

    def told(self) -> list[str]:
        """A text for each of `sorts`, such as `flat: every lead is constant (record a.hea)`."""
        return [printable(f"{reason} ({_such_as(count, source)})") for count, reason, source in self.sorts()]

    def clear(self) -> None:
        """Forget all."""
        self.kinds.clear()
        self._sorts.clear()


def kind_of(reason: str) -> str:
    """The kind of a reason: what stands before the colon, the argument's name of "ARGUMENT must be ..."."""
    argument = _ARGUMENT.match(reason)
    return argument[1] if argument else reason.partition(":")[0]


def counts_of(kinds: dict[str, int]) -> str:
    """Counts in one line, the largest first: "flat 3, unreadable 1"."""
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {count}" for name, count in ordered)


def read_reasons(file: Path) -> Reasons:
    """Those of a store's `rejected.csv` or `warnings.csv`; none where it is absent or damaged."""
    try:
        with file.open(encoding="utf-8", errors="replace", newline="") as rows:
            return Reasons((row[0], row[1]) for row in csv.reader(rows) if row[:1] != ["source"] and row[1:])
    except (OSError, csv.Error):  # they are for people: no store is refused for them
        return Reasons()


def _such_as(count: int, source: str) -> str:
    return f"{count} records, such as {source}" if count > 1 else f"record {source}"
