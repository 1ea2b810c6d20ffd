"""CODE-15%: `exams.csv` and HDF5 files of tracings (Ribeiro et al., Zenodo, 2021, record 4916206).

The tracings are 12 leads at 400 Hz, filled up with zeros at both ends. They are taken as millivolts, as the
George B. Moody PhysioNet Challenge 2025 does: the data set names no unit, and what its authors say of their
models' input ("scale 1e-4V", "if in V multiply by 1000") contradicts itself. Users have found amplitudes
about twice those of other sources. Another unit may be given.
"""

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ecgfast.data.signal.preprocess import Preprocessing, Rejected
from ecgfast.data.sources.arrays import judged, plausible_block
from ecgfast.data.sources.base import About, Item, Source, unseen
from ecgfast.data.sources.folders import is_file
from ecgfast.data.sources.signal_arrays import array_leads
from ecgfast.data.sources.tables import find_files, table_rows
from ecgfast.data.store.recording import Recording
from ecgfast.data.values import is_missing, number_of, sex_of, shown, years
from ecgfast.errors import EcgfastError, one_line
from ecgfast.leads import N_LEADS, STANDARD_LEADS

RATE = 400.0
"""Samples per second of the tracings."""

_TABLE = "exams.csv"
_PART = re.compile(r"(?:^|/)exams_part[^/]*\.hdf5$")
_LABELS = ("1dAVb", "RBBB", "LBBB", "SB", "ST", "AF")
_TRUTH = {"true": 1, "1": 1, "1.0": 1, "false": 0, "0": 0, "0.0": 0}
_MALE = {"true": "M", "false": "F"}
_MOST_SAMPLES = 2**20  # of a tracing, and
_MOST_EXAMS = 2**24  # of a part: more is damage, and would take all memory
_EXAM = np.dtype([("exam", "<i8"), ("patient", "<i8"), ("age", "<f4"), ("sex", "u1"), ("labels", "u1")])
_SEXES = (None, "F", "M")  # as the table's rows are kept
_NO_PATIENT = np.iinfo(np.int64).min


class Code15(Source):
    """CODE-15%: `exams.csv` and any of its `exams_part*.hdf5`; needs h5py.

    Padding with zeros is cut off. Labels are the names of the columns that are true. A tracing whose patient,
    age or sex the table doesn't tell, or a label, is taken without it.
    """

    format = "code15"
    takes_unit = True
    takes_names = False
    wants = f"{_TABLE} beside exams_part*.hdf5"

    @classmethod
    def detect(cls, folder: Path) -> bool:
        return (folder / _TABLE).is_file() and any(_PART.search(name) for name in find_files(folder, ".hdf5"))

    def items(self, seen: Callable[[], object] = unseen) -> Iterator[Item]:
        _h5py()
        bad: list[Item] = []
        odd: dict[int, tuple[str, ...]] = {}
        exams = _read_exams(self.folder / _TABLE, bad, odd, seen)
        yield from bad
        seen = np.zeros(len(exams), dtype=bool)
        for part in find_files(self.folder, ".hdf5"):
            if _PART.search(part):
                yield from self._part_items(part, exams, odd, seen)
        for exam in exams["exam"][~seen].tolist():
            yield Item(
                f"{_TABLE} exam {exam}", refused="missing file: no exams_part*.hdf5 that is here has it"
            )

    def _part_items(
        self, part: str, exams: np.ndarray, odd: dict[int, tuple[str, ...]], seen: np.ndarray
    ) -> Iterator[Item]:
        try:
            with _open(self.folder / part) as file:
                ids, tracings = _dataset(file, "exam_id", 1), _dataset(file, "tracings", 3)
                if len(ids) != len(tracings) or len(ids) > _MOST_EXAMS:
                    raise Rejected(f"shape: {len(ids)} exam_id beside {len(tracings)} tracings")
                ids = ids[:].astype(np.int64)
        except Rejected as rejected:
            yield Item(part, refused=str(rejected))
            return
        except (OSError, RuntimeError, ValueError) as error:
            yield Item(part, refused=f"unreadable: exam_id: {one_line(error)}")
            return
        places = np.searchsorted(exams["exam"], ids)
        for row, (exam, at) in enumerate(zip(ids.tolist(), places.tolist(), strict=True)):
            name = f"{part}/{exam}"
            if at == len(exams) or exams["exam"][at] != exam:
                yield Item(name, refused=f"not listed: {_TABLE} has no row for it")
            elif seen[at]:
                yield Item(name, refused="ambiguous: an earlier tracing has this exam_id")
            else:
                seen[at] = True
                yield Item(name, _about(exams[at], odd.get(exam, ())), (part, row, str(exam)))

    def read(self, item: Item, preprocessing: Preprocessing) -> Recording:
        part, row, exam = item.place
        signal = _tracing(_kept_open(self.folder / part, _changed(self.folder / part)), row)
        found, unit, _ = array_leads(signal, RATE, STANDARD_LEADS, self.unit)
        block, present = plausible_block(found, preprocessing, unit)
        leads = [STANDARD_LEADS[i] for i in present]
        recording = Recording(exam, None, item.name, block, leads, [], None, None, RATE)
        return judged(item.about.applied(recording), unit)


def _read_exams(
    file: Path, bad: list[Item], odd: dict[int, tuple[str, ...]], seen: Callable[[], object]
) -> np.ndarray:
    """The table in 22 bytes a row, sorted by exam.

    Args:
        file: The table.
        bad: Gets the rows that can't be taken.
        odd: Gets the warnings of those in which something can't be understood, by exam.
        seen: Called for every row.
    """

    def read() -> Iterator[tuple[Any, ...]]:
        for where, row in table_rows(file, ("exam_id", "patient_id", "age", "is_male", *_LABELS)):
            seen()
            exam = _whole(row["exam_id"]) if row else None
            if exam is None:
                bad.append(Item(where, refused="unreadable: the row has no whole exam_id"))
                continue
            warnings: list[str] = []
            patient = _whole(row["patient_id"])
            if patient is None and not is_missing(row["patient_id"]):
                warnings.append(f"patient_id: got {shown(row['patient_id'])}, want a whole number")
            age = years(row["age"], warnings)
            sex = _SEXES.index(_sex(row["is_male"], warnings))
            labels = sum(_truth(name, row[name], warnings) << i for i, name in enumerate(_LABELS))
            if warnings:
                odd.setdefault(exam, tuple(warnings))  # a second row of the exam is refused
            yield (
                exam,
                _NO_PATIENT if patient is None else patient,
                np.nan if age is None else age,
                sex,
                labels,
            )

    exams = np.fromiter(read(), dtype=_EXAM)
    exams = exams[np.argsort(exams["exam"], kind="stable")]
    again = np.zeros(len(exams), dtype=bool)
    again[1:] = exams["exam"][1:] == exams["exam"][:-1]
    for exam in exams["exam"][again].tolist():
        bad.append(Item(f"{_TABLE} exam {exam}", refused="ambiguous: the table has another row for it"))
    return exams[~again]


def _whole(text: str) -> int | None:
    value = number_of(text)
    return int(value) if value is not None and value.is_integer() and abs(value) < 2**53 else None


def _sex(is_male: str, warnings: list[str]) -> str | None:
    word = is_male.casefold()
    return _MALE.get(word) or sex_of(is_male, warnings, {0: "F", 1: "M"})


def _truth(name: str, text: str, warnings: list[str]) -> int:
    if is_missing(text):
        return 0
    if text.casefold() not in _TRUTH:
        warnings.append(f"{name}: got {shown(text)}, want True or False")
    return _TRUTH.get(text.casefold(), 0)


def _about(exam: np.void, warnings: tuple[str, ...]) -> About:
    age, patient = float(exam["age"]), int(exam["patient"])
    return About(
        patient_id=None if patient == _NO_PATIENT else str(patient),
        labels=tuple(name for i, name in enumerate(_LABELS) if exam["labels"] >> i & 1),
        age=None if np.isnan(age) else age,
        sex=_SEXES[exam["sex"]],
        warnings=warnings,
    )


def _h5py() -> Any:
    try:
        import h5py  # an extra: no other source needs it
    except ImportError:
        raise EcgfastError("format: code15 needs h5py: pip install 'ecgfast[code15]'") from None
    return h5py


def _open(path: Path) -> Any:
    if path.exists() and not is_file(path):
        raise Rejected(f"unreadable: {path.name} is no file")
    try:
        return _h5py().File(path, "r")
    except OSError as error:
        raise Rejected(f"unreadable: {one_line(error)}") from None


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise Rejected(f"unreadable: {path.name}: {error.strerror}") from None


@functools.lru_cache(maxsize=1)  # the tracings come part by part
def _kept_open(path: Path, changed: int) -> Any:
    """The file, opened once for all its tracings, until it is `changed`."""
    return _open(path)


def _dataset(file: Any, name: str, n_dims: int) -> Any:
    """A dataset whose values lie in the file itself: an HDF5 file may name others, anywhere."""
    h5py = _h5py()
    try:
        here = isinstance(file.get(name, getlink=True), h5py.HardLink)
        found = file[name] if here else None
        if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
            raise Rejected(f"unreadable: no dataset {name} in the file itself")
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise Rejected(f"unreadable: {name}: {one_line(error)}") from None
    if found.ndim != n_dims or found.dtype.kind not in "fiu":
        raise Rejected(f"shape: {name} is {found.dtype} {list(found.shape)}")
    if n_dims == 3 and (found.shape[2] != N_LEADS or found.shape[1] > _MOST_SAMPLES):
        raise Rejected(f"shape: {name} is {list(found.shape)}, want [exams, samples, {N_LEADS}]")
    return found


def _tracing(file: Any, row: int) -> np.ndarray:
    """Millivolts, floating point [12, n], without the zeros at both ends."""
    try:
        with np.errstate(invalid="ignore"):  # NaN that signal: what follows finds them
            tracing = np.asarray(_dataset(file, "tracings", 3)[row], dtype=np.float64)
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise Rejected(f"unreadable: {one_line(error)}") from None
    inside = np.flatnonzero((tracing != 0).any(axis=1))
    if len(inside) == 0:
        raise Rejected("flat: every sample is zero")
    return tracing[inside[0] : inside[-1] + 1].T
