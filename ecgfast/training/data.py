"""What a pre-training learns from: stores, the parts of their recordings, and the plans over these."""

import dataclasses
from collections.abc import Sequence
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ecgfast.data import (
    AdjacentPairs,
    JoinedStores,
    Mixture,
    Plan,
    SingleSegments,
    Store,
    TwoViews,
    describe_differences,
)
from ecgfast.errors import EcgfastError
from ecgfast.nn.pretrained import file_digest
from ecgfast.objectives.registry import objective_class
from ecgfast.training.config import PretrainConfig
from ecgfast.training.parallel import World

PLANS: dict[str, type[AdjacentPairs | SingleSegments | TwoViews]] = {
    "adjacent_pairs": AdjacentPairs,
    "single_segments": SingleSegments,
    "two_views": TwoViews,
}
"""How the rows of an objective's batches belong together, see `ecgfast.objectives.base.Pairing`."""

_NO_FOLD = -1


class Data(NamedTuple):
    """The recordings of a run, by their numbers in `store`.

    Attributes:
        stores: in the order given.
        store: as plans see them: the one store, or several as one.
        training: int64, for each store; None for a store that is trained on whole and alone.
        validation: int64; None: nothing is validated.
        weights: of the stores; none: their numbers of units.
        notes: what is left out, and what is odd, for people.
    """

    stores: tuple[Store, ...]
    store: Store | JoinedStores
    training: tuple[np.ndarray | None, ...]
    validation: np.ndarray | None = None
    weights: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()

    def used(self, i: int) -> np.ndarray | None:
        """The recordings of store `i` that are trained or validated on, by their numbers in it; None: all."""
        part = self.training[i]
        if part is None:
            return None
        own = np.arange(len(self.store))
        if isinstance(self.store, JoinedStores):
            own = self.store.recordings(i)
        held = np.zeros(0, np.int64) if self.validation is None else self.validation
        return np.flatnonzero(np.isin(own, np.concatenate([part, held])))

    def describe(self) -> dict[str, Any] | None:
        """The parts, for a run's config.json; None where all recordings are trained on."""
        if self.training[0] is None or not self._divided():
            return None
        training = np.concatenate([part for part in self.training if part is not None])
        held = np.zeros(0, np.int64) if self.validation is None else self.validation
        digest = sha256(np.concatenate([training, [-1], held]).astype("<i8").tobytes())
        counts = {"training": len(training), "validation": len(held)}
        return {"recordings": len(self.store), **counts, "parts_sha256": digest.hexdigest()}

    def _divided(self) -> bool:
        return sum(len(part) for part in self.training if part is not None) < len(self.store)


def open_data(paths: Sequence[Path], config: PretrainConfig) -> Data:
    """Open stores and divide their recordings.

    Folds are those of every store that has folds; of a store without any, all recordings are trained on.
    A patient is in one part alone. `validation_fraction` of the patients to train on are held back: those
    whose ids have the smallest hashes, so the part hardly changes where a store grows.

    Raises:
        EcgfastError: a store can't be opened or is there twice, weights of another number, a fold that no
            store has, a patient in two parts, or a part without recordings.
    """
    stores = tuple(Store(path) for path in paths)
    if config.store_weights and len(config.store_weights) != len(stores):
        raise EcgfastError(
            f"store_weights: must be one for each of {len(stores)} stores, got {len(config.store_weights)}"
        )
    if len(stores) == 1:
        joined: Store | JoinedStores = stores[0]
        own = [np.arange(len(joined))]
    else:
        _check_different(stores)
        joined = JoinedStores(stores)
        own = [joined.recordings(i) for i in range(len(stores))]
    folded = bool(config.train_folds or config.validation_folds or config.exclude_folds)
    if len(stores) == 1 and not folded and not config.validates:
        return Data(stores, joined, (None,))
    train, held, notes = _parts(joined, stores, own, config) if folded else _whole(joined)
    if config.validation_fraction:
        held = _by_patient(joined, train, config.validation_fraction, config.seed)
        train &= ~held
    if config.validates and not held.any():
        raise EcgfastError("validation: must have recordings, got none")
    training = tuple(part[train[part]] for part in own)
    validation = np.flatnonzero(held) if config.validates else None
    if len(stores) > 1:
        notes += _made_differently(stores)
    return Data(stores, joined, training, validation, config.store_weights, tuple(notes))


def _check_different(stores: Sequence[Store]) -> None:
    seen: dict[str, Store] = {}
    for store in stores:
        other = seen.setdefault(file_digest(store.path / "index.parquet"), store)
        if other is not store:
            raise EcgfastError(
                f"STORE: must be different ones, got {str(other.path)!r} and {str(store.path)!r}, "
                "which hold the same recordings"
            )


def _whole(store: Store | JoinedStores) -> tuple[np.ndarray, np.ndarray, list[str]]:
    return np.ones(len(store), dtype=bool), np.zeros(len(store), dtype=bool), []


def _parts(
    store: Store | JoinedStores, stores: Sequence[Store], own: Sequence[np.ndarray], config: PretrainConfig
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Which recordings to train and which to validate on, by the sources' folds."""
    folds = store.index["fold"].fill_null(_NO_FOLD).to_numpy().astype(np.int64)
    for name in ("train_folds", "validation_folds", "exclude_folds"):
        for fold in getattr(config, name):
            if fold not in folds:
                has = sorted(set(folds[folds != _NO_FOLD].tolist()))
                raise EcgfastError(f"{name}: must be of the stores' folds {has}, got {fold}")
    held = np.isin(folds, config.validation_folds)
    excluded = np.isin(folds, config.exclude_folds)
    train = np.isin(folds, config.train_folds) if config.train_folds else ~held & ~excluded
    notes = []
    for one, part in zip(stores, own, strict=True):
        if (folds[part] == _NO_FOLD).all():
            train[part] = True
            notes.append(f"{one.path}: has no folds; all of its {len(part)} recordings are trained on")
            continue
        left = int((~train[part] & ~held[part]).sum())
        if left:
            notes.append(f"{one.path}: {left} of {len(part)} recordings are in no fold that is used")
    # a recording without a fold is in no test
    _check_patients(store, train, held, "validation_folds")
    name = "exclude_folds" if config.exclude_folds else "train_folds"
    _check_patients(store, train | held, ~train & ~held & (folds != _NO_FOLD), name)
    return train, held, notes


def _check_patients(store: Store | JoinedStores, part: np.ndarray, other: np.ndarray, name: str) -> None:
    numbers = store.patient_numbers()
    both = np.intersect1d(numbers[part], numbers[other])
    if both.size:
        at = int(np.flatnonzero(part & (numbers == both[0]))[0])
        patient = store.index["patient_id"][at].as_py()
        raise EcgfastError(f"{name}: must hold whole patients, got {patient} in another part too")


def _by_patient(store: Store | JoinedStores, among: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Which recordings are of the patients held back, a share of those `among` whose recordings they are."""
    numbers = store.patient_numbers()
    present, first = np.unique(np.where(among, numbers, -1), return_index=True)
    present, first = present[present >= 0], first[present >= 0]
    if len(present) < 2:
        raise EcgfastError(f"validation_fraction: must have two patients or more, got {len(present)}")
    n = min(max(1, round(fraction * len(present))), len(present) - 1)
    ids = store.index["patient_id"].take(first).to_pylist()
    hashes = [blake2b(f"validation\0{seed}\0{name}".encode()).digest() for name in ids]
    chosen = sorted(range(len(present)), key=lambda k: (hashes[k], k))[:n]
    return among & np.isin(numbers, present[chosen])


def make_plan(data: Data, config: PretrainConfig, world: World) -> tuple[Plan, list[str]]:
    """The plan of a run's training batches, and what it leaves out, for people.

    Raises:
        EcgfastError: the stores don't fill a batch.
    """
    kind, rows = _kind(config)
    options: dict[str, Any] = {
        "segment_samples": config.segment_samples,
        "seed": config.seed,
        "offsets": config.offsets,
    }
    place = {"rank": world.rank, "world_size": world.size}
    if len(data.stores) == 1:
        return kind(data.store, rows, recordings=data.training[0], **options, **place), []
    n = data.store.n_samples
    used = [i for i, part in enumerate(data.training) if kind.count(n[part], config.segment_samples)]
    notes = [
        f"{store.path}: has none of the {kind.unit} of {config.segment_samples} samples to train on; "
        "it isn't used"
        for i, store in enumerate(data.stores)
        if i not in used
    ]
    if not used:
        raise EcgfastError(
            f"STORE: must have {kind.unit} of {config.segment_samples} samples to train on, got none in "
            f"{data.store.path}"
        )
    plans = [kind(data.store, 1, recordings=data.training[i], **options) for i in used]
    weights = [data.weights[i] for i in used] if data.weights else None
    return Mixture(plans, rows, weights=weights, seed=config.seed, **place), notes


def make_validation_plan(data: Data, config: PretrainConfig, world: World) -> tuple[Plan, list[str]]:
    """The plan of the batches of the validation part, of which epoch 0 is used, and what is odd.

    They are as large as those of training, as the losses depend on it; what fills no batch is left out. Of a
    part that fills none there is one smaller batch.

    Raises:
        EcgfastError: the part has too little for a batch.
    """
    kind, rows = _kind(config)
    n = kind.count(data.store.n_samples[data.validation], config.segment_samples)
    if n < world.size:
        raise EcgfastError(
            f"validation: must have {kind.unit} of {config.segment_samples} samples, one for each process, "
            f"got {n} in {len(data.validation)} recordings"
        )
    whole = n >= rows * world.size
    plan = kind(
        data.store,
        rows,
        segment_samples=config.segment_samples,
        seed=config.seed,
        rank=world.rank,
        world_size=world.size,
        drop_last=whole,
        recordings=data.validation,
    )
    if whole:
        return plan, []
    return plan, [
        f"validation: has {n} {kind.unit}, fewer than a batch of {rows * world.size}: losses that contrast "
        "the rows of a batch are lower than in training"
    ]


def _kind(config: PretrainConfig) -> tuple[type[AdjacentPairs | SingleSegments | TwoViews], int]:
    """The kind of plan, and its units in a batch of one process."""
    kind = PLANS[objective_class(config.objective).plan]
    return kind, 2 * config.batch_pairs // kind.rows_per_unit


def resolved(config: PretrainConfig, batches: int, steps: int) -> PretrainConfig:
    """`config` with the updates from one validation to the next: an epoch's, or a 20th of the run's.

    Args:
        config: of a run that validates.
        batches: of an epoch.
        steps: updates of the run.
    """
    every = max(1, min(batches // config.accumulation, steps // 20))
    return dataclasses.replace(config, validate_every=every)


def describe_preprocessing(stores: Sequence[Store]) -> dict[str, Any] | list[dict[str, Any]]:
    """How the stores were made, for a model's config.json; a list where they were made differently.

    Each is what `store.json` says under `preprocessing`, with its rate, unit and leads and the names of the
    `sources`: their folders' names, or that of the importer.
    """
    different: list[dict[str, Any]] = []
    for store in stores:
        described = store.description
        told = {
            **described.get("preprocessing", {}),
            "sample_rate": described["sample_rate"],
            "unit": described.get("unit", "microvolt"),
            "leads": described["leads"],
        }
        name = _source_name(store)
        for other in different:
            if {key: value for key, value in other.items() if key != "sources"} == told:
                other["sources"].append(name)
                break
        else:
            different.append(told | {"sources": [name]})
    return different[0] if len(different) == 1 else different


def _source_name(store: Store) -> str:
    told = store.description.get("provenance", {})
    return Path(told["source"]).name if told.get("source") else told.get("importer", store.path.name)


def _made_differently(stores: Sequence[Store]) -> list[str]:
    """How stores were made differently from the first, for people."""
    first, *others = stores
    made = first.description.get("preprocessing", {})
    notes = []
    for store in others:
        lines = describe_differences(made, store.description.get("preprocessing", {}))
        if lines:
            told = "; ".join(line.replace("in the model's training", "there") for line in lines)
            notes.append(f"{store.path}: was made otherwise than {first.path}: {told}")
    return notes
