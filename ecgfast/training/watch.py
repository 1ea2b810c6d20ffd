"""What makes a run learn nothing, told when it starts and while it trains."""

from ecgfast.data import Store
from ecgfast.data.store.store import block_checksum, shard_name
from ecgfast.errors import EcgfastError
from ecgfast.leads import lead_indices
from ecgfast.training.config import PretrainConfig
from ecgfast.training.distributed import World

_SPOT_CHECKS = 32  # recordings, of some 120 kB each
_COLLAPSED = 1.5
"""Perplexity per codebook group below which targets count as collapsed; 1 is one code for all."""
_FIRST_STEPS = 20


def check_store(store: Store, leads: tuple[str, ...]) -> list[str]:
    """Look at some recordings, evenly spread, before a run relies on all of them.

    Returns:
        What is odd but no error, for people.

    Raises:
        EcgfastError: a recording's bytes changed since the import, or are all zero; or none has one
            of the leads.
    """
    n = len(store)
    checksums = store.index["checksum"]
    for i in sorted({round(k * (n - 1) / (_SPOT_CHECKS - 1)) for k in range(_SPOT_CHECKS)} if n else ()):
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
    without = int((~store.present_leads()[:, lead_indices(leads)].any(1)).sum())
    named = ", ".join(leads)
    if n and without == n:
        raise EcgfastError(f"STORE: {str(store.path)!r} has no recording with any of the leads {named}")
    if without:
        return [f"{without} of {n} recordings have none of the leads {named}: they train on zeros"]
    return []


def weak_settings(config: PretrainConfig, world: World) -> list[str]:
    """Settings under which a loss can't fall, for people."""
    if config.batch_pairs == 1 and not (config.global_batch and world.size > 1):
        return [
            "batch_pairs is 1: a pair alone has no other patient, so the global loss is 0 and teaches "
            "nothing; take batch_pairs of at least 2 (or several processes and global_batch)"
        ]
    return []


class Watch:
    """Looks at a run's log points and masks, and says once of each thing that it goes wrong."""

    def __init__(self, config: PretrainConfig) -> None:
        self._groups, self._entries = config.model.groups, config.model.entries
        self._tokens = config.model.encoder.n_tokens(config.segment_samples)
        self._from = max(config.optim.warmup_steps, _FIRST_STEPS)
        self._told: set[str] = set()

    def masks(self, n_masked: int) -> list[str]:
        """Of the number of masked tokens of each segment in a batch."""
        if n_masked >= self._tokens:
            what = f"all {self._tokens} tokens of a batch's segments are masked: there is no context left"
            return self._once("masks", f"{what}; take a lower model.mask_prob or set model.n_masked")
        if n_masked < 2:
            what = f"{n_masked} tokens of each segment of a batch are masked: they have no negatives"
            return self._once("masks", f"{what}; take a higher model.mask_prob or set model.n_masked")
        return []

    def point(self, point: dict[str, float]) -> list[str]:
        """Of a log point."""
        told = []
        if point["local"] == 0 and point["accuracy_strict"] == 0:
            told += self._once(
                "negatives",
                f"step {point['step']}: no masked token has a negative that differs from its target, so the "
                "local loss is 0 and can't fall: all targets of a segment have the same codes (the accuracy "
                "of 100 % is the official count)",
            )
        per_group = point["code_perplexity"] / self._groups
        if point["step"] > self._from and per_group < _COLLAPSED:
            told += self._once(
                "collapse",
                f"step {point['step']}: the targets collapse: their perplexity is {per_group:.2f} of "
                f"{self._entries} codes per group (1: one code for all); a higher model.diversity_weight, a "
                "lower optim.lr or more optim.warmup_steps may help, in a new run folder",
            )
        return told

    def _once(self, name: str, text: str) -> list[str]:
        if name in self._told:
            return []
        self._told.add(name)
        return [text]
