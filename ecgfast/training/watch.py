"""What makes a run learn nothing, told when it starts and while it trains."""

from collections.abc import Mapping

import numpy as np

from ecgfast.data import Store
from ecgfast.data.store.store import block_checksum, shard_name
from ecgfast.errors import EcgfastError
from ecgfast.leads import lead_indices
from ecgfast.objectives.base import Losses, Objective, ObjectiveConfig

_SPOT_CHECKS = 32  # recordings, of some 120 kB each
_FIRST_STEPS = 20


def check_store(store: Store, leads: tuple[str, ...], recordings: np.ndarray | None = None) -> list[str]:
    """Look at some recordings, evenly spread, before a run relies on all of them.

    Args:
        store: it.
        leads: those that are used.
        recordings: numbers of the recordings that are used; None: all.

    Returns:
        What is odd but no error, for people.

    Raises:
        EcgfastError: a recording's bytes changed since the import, or are all zero; or none has one
            of the leads.
    """
    used = np.arange(len(store)) if recordings is None else recordings
    n = len(used)
    checksums = store.index["checksum"]
    at = sorted({round(k * (n - 1) / (_SPOT_CHECKS - 1)) for k in range(_SPOT_CHECKS)} if n else ())
    for i in used[at].tolist():
        signal = store.signal(i)
        record = store.index["record_id"][i].as_py()
        file = store.path / shard_name(store.index["shard"][i].as_py())
        if block_checksum(signal) != checksums[i].as_py():
            raise EcgfastError(
                f"STORE: {file} is damaged: checksum of record {record} differs (ecgfast inspect --verify "
                "checks all); import it again, or put a copy in its place"
            )
        if not signal.any():
            raise EcgfastError(f"STORE: record {record} in {file} is zero throughout; import it again")
    without = int((~store.present_leads()[used][:, lead_indices(leads)].any(1)).sum())
    named = ", ".join(leads)
    if n and without == n:
        raise EcgfastError(f"STORE: {str(store.path)!r} has no recording with any of the leads {named}")
    if without:
        return [
            f"{store.path}: {without} of {n} recordings have none of the leads {named}: they train on zeros"
        ]
    return []


class Watch:
    """Says once of each thing that goes wrong in a run, as its objective knows it.

    Args:
        kind: the objective.
        config: its settings.
        warmup_steps: updates of the learning rate's warm-up.
    """

    def __init__(self, kind: type[Objective], config: ObjectiveConfig, warmup_steps: int) -> None:
        self._kind, self._config = kind, config
        self._from = max(warmup_steps, _FIRST_STEPS)
        self._told: set[str] = set()

    def batch(self, losses: Losses, n_rows: int, n_samples: int) -> list[str]:
        """Of a batch of `n_rows` rows of `n_samples`."""
        return self._once(self._kind.batch_troubles(self._config, losses, n_rows, n_samples))

    def point(self, point: Mapping[str, float]) -> list[str]:
        """Of a log point."""
        settled = point["step"] > self._from
        told = self._once(self._kind.troubles(self._config, point, settled=settled))
        return [f"step {point['step']}: {text}" for text in told]

    def _once(self, troubles: Mapping[str, str]) -> list[str]:
        new = {name: text for name, text in troubles.items() if name not in self._told}
        self._told |= new.keys()
        return list(new.values())
