"""WFDB records in folders of any layout, PhysioNet/CinC 2021 and ECG-ID among them."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from ecgfast.data.signal.preprocess import Preprocessing, Rejected
from ecgfast.data.sources.base import About, Item, Source, unseen
from ecgfast.data.sources.tables import find_files
from ecgfast.data.sources.wfdb_records import find_records, read_recording
from ecgfast.data.store.recording import Recording

_PERSON = re.compile(r"Person_\d+")
_OF_PERSON = re.compile(r"Person_\d+/rec_.*\.hea")


class Wfdb(Source):
    """`.hea` files with their `.dat` or `.mat`, at any depth; comments tell age, sex, labels and patient."""

    format = "wfdb"
    wants = "WFDB record (.hea file)"

    @classmethod
    def detect(cls, folder: Path) -> bool:
        return next(find_files(folder, ".hea"), None) is not None

    def items(self, seen: Callable[[], object] = unseen) -> Iterator[Item]:
        return map(Item, find_records(self.folder))

    def read(self, item: Item, preprocessing: Preprocessing) -> Recording:
        return item.about.applied(read_recording(self.folder, item.name, preprocessing))


class EcgId(Wfdb):
    """The ECG-ID database: `Person_NN/rec_M.hea`, a folder for each patient."""

    format = "ecgid"
    wants = "record Person_NN/rec_M.hea"

    @classmethod
    def detect(cls, folder: Path) -> bool:
        return any(map(_OF_PERSON.fullmatch, find_files(folder, ".hea")))

    def items(self, seen: Callable[[], object] = unseen) -> Iterator[Item]:
        for item in super().items(seen):
            persons = filter(_PERSON.fullmatch, PurePosixPath(item.name).parts[:-1])
            yield item._replace(about=About(patient_id=next(persons, None)))


class Tabled(Source):
    """WFDB records that a table lists."""

    def read(self, item: Item, preprocessing: Preprocessing) -> Recording:
        if not os.path.isfile(self.folder / item.name):  # False for a name too long, too
            raise Rejected("missing file: the table lists a record that is not there")
        return item.about.applied(read_recording(self.folder, item.name, preprocessing))
