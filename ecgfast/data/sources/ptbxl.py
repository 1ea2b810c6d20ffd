"""PTB-XL: `ptbxl_database.csv` and the records it lists (Wagner et al., Scientific Data 7, 154, 2020)."""

import re
from collections.abc import Iterator
from pathlib import Path

from ecgfast.data.sources.base import About, Item
from ecgfast.data.sources.tables import (
    find_files,
    fold,
    identity,
    number,
    safe_path,
    table_rows,
    with_unlisted,
    years,
)
from ecgfast.data.sources.wfdb import Tabled

_TABLE = "ptbxl_database.csv"
_COLUMNS = ("patient_id", "age", "sex", "scp_codes", "strat_fold")
_STATEMENT = r"'([^']+)'\s*:\s*-?[\d.]+"
_STATEMENTS = re.compile(rf"{{\s*(?:{_STATEMENT}\s*(?:,\s*|(?=}})))*}}")
_OVER_89 = 90.0


class PtbXl(Tabled):
    """PTB-XL at 500 Hz; at 100 Hz where only that is there.

    Labels are the SCP-ECG codes that `scp_statements.csv` explains, likelihood 0 ("unknown") included;
    the fold is `strat_fold`. Age 300, which stands for more than 89 years, is taken as 90.
    """

    form = "ptbxl"
    wants = _TABLE

    @classmethod
    def detect(cls, folder: Path) -> bool:
        return (folder / _TABLE).is_file()

    @property
    def resolution(self) -> tuple[str, str]:
        """The folder of the records, and the column with their names."""
        low = not (self.folder / "records500").is_dir() and (self.folder / "records100").is_dir()
        return ("records100", "filename_lr") if low else ("records500", "filename_hr")

    def items(self) -> Iterator[Item]:
        below = self.resolution[0] if (self.folder / self.resolution[0]).is_dir() else ""
        return with_unlisted(_Rows(self), find_files(self.folder, ".hea", below), _TABLE)


class PtbXl100(PtbXl):
    """PTB-XL at 100 Hz."""

    form = "ptbxl100"

    @property
    def resolution(self) -> tuple[str, str]:
        return "records100", "filename_lr"


class _Rows:
    """The table's rows as items, as often as they are wanted."""

    def __init__(self, source: PtbXl) -> None:
        self._file = source.folder / _TABLE
        self._column = source.resolution[1]

    def __iter__(self) -> Iterator[Item]:
        for where, row in table_rows(self._file, (*_COLUMNS, self._column)):
            yield _item(where, row, self._column)


def _item(where: str, row: dict[str, str] | None, column: str) -> Item:
    if row is None:
        return Item(where, refused="unreadable: the row has another number of fields than the header")
    name = safe_path(row[column])
    if name is None:
        return Item(where, refused=f"unsafe path: {column} is {row[column]!r}")
    name = f"{name.removesuffix('.hea')}.hea"
    if not _STATEMENTS.fullmatch(row["scp_codes"]):
        return Item(name, refused=f"unreadable: scp_codes is {row['scp_codes'][:100]!r}")
    age = years(row["age"])
    return Item(
        name,
        About(
            patient_id=identity(row["patient_id"]),
            labels=tuple(re.findall(_STATEMENT, row["scp_codes"])),
            age=_OVER_89 if age is not None and age >= 300 else age,
            sex={0: "M", 1: "F"}.get(number(row["sex"])),
            fold=fold(row["strat_fold"]),
        ),
    )
