"""Several stores as one, for plans and loaders."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ecgfast.data.store.store import Store
from ecgfast.errors import EcgfastError


class JoinedStores:
    """Several stores, one after another, as plans and loaders see a store.

    Recordings are numbered through: first all of the first store, then all of the second. Patients of two
    stores are different ones, whatever their ids, unless the stores say in their `store.json` that they were
    imported from the same source (the same importer and folder): there equal ids are the same patient.

    Args:
        stores: Them; each once.

    Attributes:
        stores: Them.
        path: Their folders, for messages.
        rate: Samples per second, 500.
        index: `pyarrow.Table` as `Store.index`, shards numbered through. Record and patient ids are as in
            their stores, so they may be there several times.
        n_samples: Samples per lead of every recording, int64 [n].

    Raises:
        EcgfastError: no store, or one that is there twice.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = tuple(stores)
        if not self.stores:
            raise EcgfastError("stores: must be one or more, got none")
        folders = [store.path.resolve() for store in self.stores]
        for i, folder in enumerate(folders):
            if folder in folders[:i]:
                raise EcgfastError(f"stores: must be different ones, got {str(self.stores[i].path)!r} twice")
        self.path = ", ".join(str(store.path) for store in self.stores)
        self.rate = self.stores[0].rate
        self._first = np.cumsum([0, *(len(store) for store in self.stores)])
        self.n_samples = np.concatenate([store.n_samples for store in self.stores])
        shards = np.cumsum([0, *(len(store.shards) for store in self.stores)])
        self.index = pa.concat_tables(
            _shifted(store.index, first) for store, first in zip(self.stores, shards.tolist(), strict=False)
        )

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def shards(self) -> list[np.ndarray]:
        """The shards' memory maps, int16, one dimension."""
        return [shard for store in self.stores for shard in store.shards]

    def recordings(self, i: int) -> np.ndarray:
        """The numbers that the recordings of store `i` have here."""
        return np.arange(self._first[i], self._first[i + 1])

    def present_leads(self) -> np.ndarray:
        """Which of the standard leads each recording has: bool [n, 12]."""
        return np.concatenate([store.present_leads() for store in self.stores])

    def patient_numbers(self) -> np.ndarray:
        """A number per patient, the same for all recordings of one patient: int64 [n]."""
        names = [_source(store.description, i) for i, store in enumerate(self.stores)]
        numbers = np.zeros(len(self), dtype=np.int64)
        after = 0
        for name in dict.fromkeys(names):
            members = [i for i, other in enumerate(names) if other == name]
            ids = pa.concat_arrays([self.stores[i].index["patient_id"].combine_chunks() for i in members])
            own = ids.dictionary_encode().indices.to_numpy().astype(np.int64)
            numbers[np.concatenate([self.recordings(i) for i in members])] = after + own
            after += int(own.max(initial=-1)) + 1
        return numbers

    def check_unchanged(self) -> None:
        """See whether the files of signals are still those that were opened, see `Store.check_unchanged`.

        Raises:
            EcgfastError: one was replaced, cut, written to or removed since; names it.
        """
        for store in self.stores:
            store.check_unchanged()


def _shifted(index: pa.Table, first: int) -> pa.Table:
    """An index whose shards are numbered from `first`."""
    column = index.schema.get_field_index("shard")
    numbers = pa.array(index["shard"].to_numpy() + first, pa.int32())
    return index.set_column(column, index.schema.field(column), numbers)


def _source(description: dict[str, Any], i: int) -> tuple[Any, ...]:
    """What two stores of the same patients have in common; of store `i` alone where it names no folder."""
    told = description.get("provenance", {})
    return (told.get("importer"), told["source"]) if told.get("source") else (i,)
