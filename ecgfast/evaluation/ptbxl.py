"""PTB-XL's statements: which are diagnostic, form or rhythm, and their classes and subclasses.

Source: `scp_statements.csv` of PTB-XL 1.0.3 (Wagner et al., Scientific Data 7:154, 2020; CC BY 4.0); the
tasks are those of Strodthoff et al., "Deep Learning for ECG Analysis: Benchmarks and Insights from PTB-XL"
(IEEE JBHI 25:5, 2021) and github.com/helme/ecg_ptbxl_benchmarking. A statement counts whatever its likelihood
is, as it does there.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecgfast._suggest import did_you_mean
from ecgfast.errors import EcgfastError, one_line

TASKS = ("all", "diagnostic", "sub", "super", "form", "rhythm")
"""Sets of classes; the full PTB-XL has 71, 44, 23, 5, 19 and 12."""

_KINDS = ("diagnostic", "form", "rhythm")
_COLUMNS = (*_KINDS, "diagnostic_class", "diagnostic_subclass")

_STANDARD = {
    "NDT": ("diagnostic form", "STTC", "STTC"),
    "NST_": ("diagnostic form", "STTC", "NST_"),
    "DIG": ("diagnostic form", "STTC", "STTC"),
    "LNGQT": ("diagnostic form", "STTC", "STTC"),
    "NORM": ("diagnostic", "NORM", "NORM"),
    "IMI": ("diagnostic", "MI", "IMI"),
    "ASMI": ("diagnostic", "MI", "AMI"),
    "LVH": ("diagnostic", "HYP", "LVH"),
    "LAFB": ("diagnostic", "CD", "LAFB/LPFB"),
    "ISC_": ("diagnostic", "STTC", "ISC_"),
    "IRBBB": ("diagnostic", "CD", "IRBBB"),
    "1AVB": ("diagnostic", "CD", "_AVB"),
    "IVCD": ("diagnostic", "CD", "IVCD"),
    "ISCAL": ("diagnostic", "STTC", "ISCA"),
    "CRBBB": ("diagnostic", "CD", "CRBBB"),
    "CLBBB": ("diagnostic", "CD", "CLBBB"),
    "ILMI": ("diagnostic", "MI", "IMI"),
    "LAO/LAE": ("diagnostic", "HYP", "LAO/LAE"),
    "AMI": ("diagnostic", "MI", "AMI"),
    "ALMI": ("diagnostic", "MI", "AMI"),
    "ISCIN": ("diagnostic", "STTC", "ISCI"),
    "INJAS": ("diagnostic", "MI", "AMI"),
    "LMI": ("diagnostic", "MI", "LMI"),
    "ISCIL": ("diagnostic", "STTC", "ISCI"),
    "LPFB": ("diagnostic", "CD", "LAFB/LPFB"),
    "ISCAS": ("diagnostic", "STTC", "ISCA"),
    "INJAL": ("diagnostic", "MI", "AMI"),
    "ISCLA": ("diagnostic", "STTC", "ISCA"),
    "RVH": ("diagnostic", "HYP", "RVH"),
    "ANEUR": ("diagnostic", "STTC", "STTC"),
    "RAO/RAE": ("diagnostic", "HYP", "RAO/RAE"),
    "EL": ("diagnostic", "STTC", "STTC"),
    "WPW": ("diagnostic", "CD", "WPW"),
    "ILBBB": ("diagnostic", "CD", "ILBBB"),
    "IPLMI": ("diagnostic", "MI", "IMI"),
    "ISCAN": ("diagnostic", "STTC", "ISCA"),
    "IPMI": ("diagnostic", "MI", "IMI"),
    "SEHYP": ("diagnostic", "HYP", "SEHYP"),
    "INJIN": ("diagnostic", "MI", "IMI"),
    "INJLA": ("diagnostic", "MI", "AMI"),
    "PMI": ("diagnostic", "MI", "PMI"),
    "3AVB": ("diagnostic", "CD", "_AVB"),
    "INJIL": ("diagnostic", "MI", "IMI"),
    "2AVB": ("diagnostic", "CD", "_AVB"),
    "ABQRS": ("form", "", ""),
    "PVC": ("form", "", ""),
    "STD_": ("form", "", ""),
    "VCLVH": ("form", "", ""),
    "QWAVE": ("form", "", ""),
    "LOWT": ("form", "", ""),
    "NT_": ("form", "", ""),
    "PAC": ("form", "", ""),
    "LPR": ("form", "", ""),
    "INVT": ("form", "", ""),
    "LVOLT": ("form", "", ""),
    "HVOLT": ("form", "", ""),
    "TAB_": ("form", "", ""),
    "STE_": ("form", "", ""),
    "PRC(S)": ("form", "", ""),
    "SR": ("rhythm", "", ""),
    "AFIB": ("rhythm", "", ""),
    "STACH": ("rhythm", "", ""),
    "SARRH": ("rhythm", "", ""),
    "SBRAD": ("rhythm", "", ""),
    "PACE": ("rhythm", "", ""),
    "SVARR": ("rhythm", "", ""),
    "BIGU": ("rhythm", "", ""),
    "AFLT": ("rhythm", "", ""),
    "SVTAC": ("rhythm", "", ""),
    "PSVT": ("rhythm", "", ""),
    "TRIGU": ("rhythm", "", ""),
}
# statement: its kinds, and the class and subclass of a diagnostic one


@dataclass(frozen=True)
class Statements:
    """The statements of a table.

    Attributes:
        source: Where they are from, for people.
        rows: Kinds, class ("" where it has none) and subclass (likewise) of each statement.
    """

    source: str
    rows: dict[str, tuple[frozenset[str], str, str]]

    @classmethod
    def standard(cls) -> "Statements":
        """The 71 of PTB-XL 1.0.3."""
        rows = {name: (frozenset(kinds.split()), *of) for name, (kinds, *of) in _STANDARD.items()}
        return cls("PTB-XL 1.0.3", rows)

    @classmethod
    def read(cls, path: str | Path) -> "Statements":
        """Those of a file in the layout of `scp_statements.csv`.

        Raises:
            EcgfastError: it can't be read, lacks a column, or has a statement twice.
        """
        path = Path(path)
        try:
            with path.open(encoding="utf-8-sig", newline="") as lines:
                table = csv.DictReader(lines)
                names = list(table.fieldnames or ())
                if missing := [name for name in _COLUMNS if name not in names]:
                    raise EcgfastError(f"statements: {path} has no column {', '.join(missing)}")
                rows: dict[str, tuple[frozenset[str], str, str]] = {}
                for row in table:
                    name = row[names[0]].strip()
                    if name in rows:
                        raise EcgfastError(f"statements: {path} has {name!r} twice, want each once")
                    kinds = frozenset(kind for kind in _KINDS if row[kind] in ("1", "1.0"))
                    rows[name] = (kinds, row["diagnostic_class"] or "", row["diagnostic_subclass"] or "")
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise EcgfastError(f"statements: can't read {path}: {one_line(error)}") from None
        return cls(str(path), rows)

    @classmethod
    def of_store(cls, description: dict[str, Any]) -> "Statements":
        """Those of the folder that a store was made from, where it is still there and has some; else the
        standard.

        Args:
            description: `Store.description`.
        """
        source = description.get("provenance", {}).get("source")
        file = Path(str(source)) / "scp_statements.csv"
        return cls.read(file) if source and file.is_file() else cls.standard()

    def classes_of(self, task: str) -> dict[str, str]:
        """The class in a task of each statement that has one.

        Args:
            task: One of `TASKS`.

        Raises:
            EcgfastError: there is no such task.
        """
        if task not in TASKS:
            raise EcgfastError(
                f"task: must be of {', '.join(TASKS)}, got {task!r}{did_you_mean(task, TASKS)}"
            )
        if task == "all":
            return {name: name for name in self.rows}
        if task in ("super", "sub"):
            column = 1 if task == "super" else 2
            diagnostic = {name: row for name, row in self.rows.items() if "diagnostic" in row[0]}
            return {name: row[column] for name, row in diagnostic.items() if row[column]}
        return {name: name for name, row in self.rows.items() if task in row[0]}
