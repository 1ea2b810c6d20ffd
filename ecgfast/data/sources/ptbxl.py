"""PTB-XL: `ptbxl_database.csv` and the records it lists (Wagner et al., Scientific Data 7, 154, 2020)."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from ecgfast.data.sources.base import About, Item, unseen
from ecgfast.data.sources.tables import find_files, refused_path, safe_path, table_rows, with_unlisted
from ecgfast.data.sources.wfdb import Tabled
from ecgfast.data.values import fold_of, identity, is_missing, number_of, sex_of, shown, years

_TABLE = "ptbxl_database.csv"
_COLUMNS = ("patient_id", "age", "sex", "scp_codes", "strat_fold")
_STATEMENT = r"""(?:'([^']+)'|"([^"]+)")\s*:\s*(?:-?[\d.]+|nan|None)"""
_STATEMENTS = re.compile(rf"{{\s*(?:{_STATEMENT}\s*(?:,\s*|(?=}})))*}}")
_OVER_89 = 90.0


class PtbXl(Tabled):
    """PTB-XL at 500 Hz; at 100 Hz where only that is there.

    Labels are the SCP-ECG codes that `scp_statements.csv` explains, likelihood 0 ("unknown") included;
    the fold is `strat_fold`. Age 300, which stands for more than 89 years, is taken as 90. A recording whose
    codes, age, sex or fold can't be understood is taken without them.
    """

    format = "ptbxl"
    wants = _TABLE

    @classmethod
    def detect(cls, folder: Path) -> bool:
        return (folder / _TABLE).is_file()

    @property
    def resolution(self) -> tuple[str, str]:
        """The folder of the records, and the column with their names."""
        low = not (self.folder / "records500").is_dir() and (self.folder / "records100").is_dir()
        return ("records100", "filename_lr") if low else ("records500", "filename_hr")

    def items(self, seen: Callable[[], object] = unseen) -> Iterator[Item]:
        below = self.resolution[0] if (self.folder / self.resolution[0]).is_dir() else ""
        return with_unlisted(_Rows(self), find_files(self.folder, ".hea", below), _TABLE, seen)


class PtbXl100(PtbXl):
    """PTB-XL at 100 Hz."""

    format = "ptbxl100"

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
        return Item(where, refused=refused_path(column, row[column]))
    name = f"{name.removesuffix('.hea')}.hea"
    warnings: list[str] = []
    about = About(
        patient_id=identity(row["patient_id"], warnings),
        labels=_codes(row["scp_codes"], warnings),
        age=_OVER_89 if (number_of(row["age"]) or 0) == 300 else years(row["age"], warnings),
        sex=sex_of(row["sex"], warnings, {0: "M", 1: "F"}),
        fold=fold_of(row["strat_fold"], warnings, "strat_fold"),
    )
    return Item(name, about._replace(warnings=tuple(warnings)))


def _codes(text: str, warnings: list[str]) -> tuple[str, ...]:
    if is_missing(text):
        return ()
    if not _STATEMENTS.fullmatch(text):
        warnings.append(f"scp_codes: got {shown(text)}, want such as {{'NORM': 100.0, 'SR': 0.0}}")
        return ()
    return tuple(single or double for single, double in re.findall(_STATEMENT, text))
