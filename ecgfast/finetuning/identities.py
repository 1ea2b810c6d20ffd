"""Whose a recording is: the identities to train on, and the patients to be recognised."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ecgfast.data import Store
from ecgfast.errors import EcgfastError
from ecgfast.evaluation import (
    ByIdentity,
    GalleryProbe,
    IdentitySplit,
    Split,
    describe_left_out,
    find_protocol,
    gallery_probe,
)
from ecgfast.finetuning.config import FinetuneConfig
from ecgfast.finetuning.targets import (
    check_parts,
    choose_split,
    describe_parts,
    digest_of,
    prepare_protocol,
)


@dataclass(frozen=True, eq=False)
class IdentityData:
    """Identities to learn, and crops of other patients to be recognised.

    Attributes:
        classes: number of each recording's identity, int64 [recordings of the store]; -1: not trained on.
        split: recordings to train on, and those of the crops to validate with and to test on.
        crops: of the patients to validate with.
        told: what was chosen and left out, line by line, for people.
        left_out: those of the lines that tell of something left out.
    """

    classes: np.ndarray
    split: Split
    crops: GalleryProbe
    told: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def n_identities(self) -> int:
        return int(self.classes.max()) + 1

    def describe(self) -> dict[str, Any]:
        """What makes it the same as another run's, as JSON values."""
        starts = np.concatenate([self.crops.gallery.start, self.crops.probe.start])
        return {
            "identities": self.n_identities,
            "targets_sha256": digest_of(self.classes, "<i8"),
            "crops_sha256": digest_of(starts, "<i8"),
            **describe_parts(self.split),
        }


def choose_identities(store: Store, config: FinetuneConfig, leads: list[int]) -> IdentityData:
    """Identities and crops of a store, by the protocol, folds or fractions that a configuration names.

    By folds, the patients with two recordings in the folds of a part are to be recognised.

    Args:
        store: the recordings.
        config: its protocol, folds or fractions; what an identity is; the length of a segment.
        leads: that are used, numbers of the standard ones: recordings with none of them are left out.

    Raises:
        EcgfastError: too few patients with two recordings, a patient in two parts, or fewer than two
            identities to train on.
    """
    present = store.present_leads()[:, leads].any(1)
    recordings = np.flatnonzero(present)
    if len(recordings) == 0:
        raise EcgfastError(f"STORE: {str(store.path)!r} has no recording with any of the leads")
    told: tuple[str, ...] = ()
    if config.validation_folds:
        parts = _by_folds(store, config, recordings)
    elif config.protocol:
        division = find_protocol(config.protocol).division
        want, got = division.segment_samples, config.segment_samples
        if got != want:
            raise EcgfastError(f"segment_samples: must be {want} for {config.protocol}, got {got}")
        told = prepare_protocol(store, config).told
        parts = division.split(store.index, recordings)
    else:
        shares = (config.validation_fraction, config.test_fraction)
        division = ByIdentity((1 - sum(shares), *shares), config.seed, config.segment_samples)
        parts = division.split(store.index, recordings)
    reasons = dict(parts.left_out)
    if not present.all():
        records = store.index["record_id"].to_pylist()
        reasons["recordings with none of the leads"] = [records[i] for i in np.flatnonzero(~present)]
    left_out = tuple(describe_left_out(reasons))
    found = _numbered(store, config, parts)
    check_parts(store, found.split)
    if found.n_identities < 2:
        raise EcgfastError(f"split: must have two identities to train on, got {found.n_identities}")
    return replace(found, told=told or left_out, left_out=left_out)


def _by_folds(store: Store, config: FinetuneConfig, recordings: np.ndarray) -> IdentitySplit:
    long_enough = recordings[store.n_samples[recordings] >= config.segment_samples]
    short = np.setdiff1d(recordings, long_enough)
    split = choose_split(store, config, long_enough)
    patients, records = store.index["patient_id"].to_pylist(), store.index["record_id"].to_pylist()
    alone: list[str] = []

    def crops(part: str, chosen: np.ndarray) -> GalleryProbe:
        of_patient: dict[str, list[int]] = {}
        for i in chosen.tolist():
            of_patient.setdefault(patients[i], []).append(i)
        several = {patient: own for patient, own in of_patient.items() if len(own) > 1}
        alone.extend(records[own[0]] for own in of_patient.values() if len(own) == 1)
        if len(several) < 2:
            raise EcgfastError(
                f"{part}_folds: must have two patients with two recordings, got {len(several)}"
            )
        return gallery_probe(store.index, several, seed=config.seed, segment_samples=config.segment_samples)

    validation = crops("validation", split.validation)
    test = crops("test", split.test) if config.test_folds else None
    left_out = split.left_out | {
        f"recordings shorter than {config.segment_samples} samples": [records[i] for i in short],
        "recordings of patients to be recognised that have no other": alone,
    }
    return IdentitySplit(split.train, validation, test, {k: ids for k, ids in left_out.items() if ids})


def _numbered(store: Store, config: FinetuneConfig, parts: IdentitySplit) -> IdentityData:
    """The identities of the recordings to train on, numbered in the order of the store."""
    owner = store.patient_numbers() if config.identities == "patients" else np.arange(len(store))
    classes = np.full(len(store), -1, dtype=np.int64)
    classes[parts.train] = np.unique(owner[parts.train], return_inverse=True)[1]
    split = Split(parts.train, _recordings(parts.validation), _recordings(parts.test))
    return IdentityData(classes, split, parts.validation, (), ())


def _recordings(crops: GalleryProbe | None) -> np.ndarray:
    if crops is None:
        return np.zeros(0, dtype=np.int64)
    return np.sort(np.concatenate([crops.gallery.recording, crops.probe.recording]))
