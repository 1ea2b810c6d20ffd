"""MIMIC-IV-ECG: `record_list.csv` and the records that it lists (Gow et al., PhysioNet, 2023)."""

from collections.abc import Callable, Iterator
from pathlib import Path

from ecgfast.data.sources.base import About, Item, unseen
from ecgfast.data.sources.tables import find_files, refused_path, safe_path, table_rows, with_unlisted
from ecgfast.data.sources.wfdb import Tabled
from ecgfast.data.values import identity

_TABLE = "record_list.csv"


class MimicIvEcg(Tabled):
    """MIMIC-IV-ECG: patients are its subjects; it has no labels, ages or sexes of its own.

    Leads are found by name: aVF comes before aVL in these records.
    """

    format = "mimic"
    wants = _TABLE

    @classmethod
    def detect(cls, folder: Path) -> bool:
        return (folder / _TABLE).is_file()

    def items(self, seen: Callable[[], object] = unseen) -> Iterator[Item]:
        below = "files" if (self.folder / "files").is_dir() else ""
        return with_unlisted(
            _Rows(self.folder / _TABLE), find_files(self.folder, ".hea", below), _TABLE, seen
        )


class _Rows:
    """The table's rows as items, as often as they are wanted."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __iter__(self) -> Iterator[Item]:
        for where, row in table_rows(self._file, ("subject_id", "path")):
            if row is None:
                yield Item(where, refused="unreadable: the row has another number of fields than the header")
            elif (name := safe_path(row["path"])) is None:
                yield Item(where, refused=refused_path("path", row["path"]))
            else:
                warnings: list[str] = []
                subject = identity(row["subject_id"], warnings, "subject_id")
                about = About(patient_id=subject, warnings=tuple(warnings))
                yield Item(f"{name.removesuffix('.hea')}.hea", about)
