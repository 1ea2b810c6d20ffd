"""What every kind of source offers to an import."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from ecgfast.data.signal.preprocess import Preprocessing
from ecgfast.data.store.recording import Recording


def unseen() -> None:
    """Nothing: for those who don't want to see rows go by."""


class About(NamedTuple):
    """What a source's tables tell of a record beside its signal; None where they don't.

    Attributes:
        patient_id: The same for all recordings of a patient.
        labels: Diagnosis codes.
        age: Years.
        sex: "F" or "M".
        fold: Cross-validation fold of the source.
        warnings: What is odd in the tables: `kind: details` each.
    """

    patient_id: str | None = None
    labels: tuple[str, ...] | None = None
    age: float | None = None
    sex: str | None = None
    fold: int | None = None
    warnings: tuple[str, ...] = ()

    def applied(self, recording: Recording) -> Recording:
        """The recording with what is known here in place of what its own file says."""
        known = {name: value for name, value in self._asdict().items() if value is not None}
        if self.labels is not None:
            known["labels"] = list(self.labels)
        known["warnings"] = (*recording.warnings, *self.warnings)
        return replace(recording, **known)


class Item(NamedTuple):
    """One record of a source, small enough to be sent to a worker.

    Attributes:
        name: Path below the source folder, or the line of a table that gives none.
        about: What tables tell of it.
        place: What else the source needs to read it.
        refused: Why it can't be taken, where that is plain before reading: `kind: details`.
    """

    name: str
    about: About = About()
    place: tuple[Any, ...] = ()
    refused: str | None = None


@dataclass(frozen=True)
class Source(ABC):
    """A folder of records in one format; picklable.

    Attributes:
        folder: The folder.
        unit: Unit of the signals, where the source tells none and takes one; None: its usual one.
        format: Name of the format.
        takes_unit: Whether it takes one.
        takes_names: Whether its signals may have other names, or none.
        wants: What a folder of this format holds, for people.
    """

    folder: Path
    unit: str | None = None
    format: ClassVar[str]
    takes_unit: ClassVar[bool] = False
    takes_names: ClassVar[bool] = True
    wants: ClassVar[str]

    @classmethod
    @abstractmethod
    def detect(cls, folder: Path) -> bool:
        """Whether the folder looks like this format."""

    @abstractmethod
    def items(self, seen: Callable[[], object] = unseen) -> Iterator[Item]:
        """All records, in an order that depends on the folder's contents alone.

        Args:
            seen: Called for every row of a table that is read before the first record is known.

        Raises:
            EcgfastError: a folder or table can't be read.
        """

    @abstractmethod
    def read(self, item: Item, preprocessing: Preprocessing) -> Recording:
        """Read one record that is not refused.

        Raises:
            Rejected: it can't be taken, with the reason.
        """
