"""Parts of other things than whole recordings: the official split by segment, and pairs of a patient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from ecgfast.errors import EcgfastError
from ecgfast.evaluation.labels import LeftOut
from ecgfast.evaluation.splits import PARTS, _chosen, check_fractions, part_of, place_of


@dataclass(frozen=True, eq=False)
class Segments:
    """Segments of recordings, by number of the recording in the store and first sample, int64 [n] each."""

    recording: np.ndarray
    start: np.ndarray


@dataclass(frozen=True, eq=False)
class SegmentSplit:
    """Segments to train on, to choose by and to test on.

    Attributes:
        train, validation, test: The segments.
        shared_patients: Patients with segments in two parts or more: what is learnt of them helps in the
            test.
        left_out: Ids of recordings in no part, by the reason.
    """

    train: Segments
    validation: Segments
    test: Segments
    shared_patients: tuple[str, ...]
    left_out: LeftOut = field(default_factory=dict)


@dataclass(frozen=True)
class BySegment:
    """The official split of fairseq-signals: every segment is drawn by itself, whosever it is.

    Segments of one recording come into several parts, so its test results flatter: only for comparison with
    published numbers.

    Attributes:
        fractions: Shares to train on, to choose by and to test on, with the sum 1.
        seed: Of the draw.
        segment_samples: Samples of a segment; what is left of a recording makes none.
    """

    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0
    segment_samples: int = 2500

    def __post_init__(self) -> None:
        check_fractions(self.fractions)

    def __str__(self) -> str:
        shares = "/".join(f"{100 * share:g}" for share in self.fractions)
        return (
            f"{shares} % of the segments, seed {self.seed}: segments of a recording come into several parts"
        )

    def split(self, index: pa.Table, recordings: Sequence[int] | np.ndarray | None = None) -> SegmentSplit:
        """Divide the segments of a store's recordings.

        Args:
            index: `Store.index`.
            recordings: Numbers of those to divide; None: all.

        Raises:
            EcgfastError: a part that is to have segments has none.
        """
        recordings = _chosen(index, recordings)
        records, patients = index["record_id"].to_pylist(), index["patient_id"].to_pylist()
        counts = index["n_samples"].to_numpy()[recordings] // self.segment_samples
        owner = np.repeat(recordings, counts)
        number = np.concatenate([np.arange(count) for count in counts])
        part = np.array(
            [
                part_of(f"{records[i]}\0{k}", self.fractions, self.seed)
                for i, k in zip(owner, number, strict=True)
            ]
        )
        found, parts_of = {}, {}
        for at, (name, share) in enumerate(zip(PARTS, self.fractions, strict=True)):
            found[name] = Segments(owner[part == at], number[part == at] * self.segment_samples)
            if share > 0 and not found[name].recording.size:
                raise EcgfastError(f"fractions: must give {name} a segment, got none of {len(owner)}")
            for i in np.unique(found[name].recording):
                parts_of.setdefault(patients[i], set()).add(name)
        short = [records[i] for i in recordings[counts == 0]]
        return SegmentSplit(
            **found,
            shared_patients=tuple(sorted(p for p, names in parts_of.items() if len(names) > 1)),
            left_out={f"recordings shorter than {self.segment_samples} samples": short} if short else {},
        )


@dataclass(frozen=True, eq=False)
class GalleryProbe:
    """Two crops of each of n patients, from two recordings: row i of both is of patient i.

    Attributes:
        gallery: The crops that are known.
        probe: Those to be recognised.
        patients: Ids of the patients.
    """

    gallery: Segments
    probe: Segments
    patients: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class IdentitySplit:
    """Patients to learn identities from, and others to be recognised.

    Attributes:
        train: Numbers of the recordings to train on, int64.
        validation: Crops to choose by; None where their share is 0.
        test: Crops to test on; their patients are never trained on. None where their share is 0.
        left_out: Ids of recordings in no part, by the reason.
    """

    train: np.ndarray
    validation: GalleryProbe | None
    test: GalleryProbe | None
    left_out: LeftOut = field(default_factory=dict)


@dataclass(frozen=True)
class ByIdentity:
    """Patients with two recordings or more are divided by their ids; all others are trained on.

    The first two recordings of a patient, in the order of the store, are gallery and probe: one crop each,
    where it begins drawn from the recording's id. With the shares 0, 0 and 1 all patients with two recordings
    are tested on, as in Oh et al. 2022.

    Attributes:
        fractions: Shares of the patients with two recordings: to train on, to choose by, to test on.
        seed: Of the draws.
        segment_samples: Samples of a crop.
    """

    fractions: tuple[float, float, float] = (0.4, 0.2, 0.4)
    seed: int = 0
    segment_samples: int = 2500

    def __post_init__(self) -> None:
        good = len(self.fractions) == 3 and all(0 <= share <= 1 for share in self.fractions)
        if not good or abs(sum(self.fractions) - 1) > 1e-9 or not any(self.fractions[1:]):
            got = ", ".join(str(share) for share in self.fractions)
            raise EcgfastError(
                "fractions: must be three shares with the sum 1, validation or test above 0, got " + got
            )

    def __str__(self) -> str:
        shares = "/".join(f"{100 * share:g}" for share in self.fractions)
        return f"{shares} % of the patients with two recordings, seed {self.seed}; all others to train on"

    def split(self, index: pa.Table, recordings: Sequence[int] | np.ndarray | None = None) -> IdentitySplit:
        """Divide a store's patients.

        Args:
            index: `Store.index`.
            recordings: Numbers of those to divide; None: all.

        Raises:
            EcgfastError: fewer than two patients to test on, or none to choose by though their share is not
                0.
        """
        recordings = _chosen(index, recordings)
        patients, records = index["patient_id"].to_pylist(), index["record_id"].to_pylist()
        samples = index["n_samples"].to_numpy()
        long_enough = samples[recordings] >= self.segment_samples
        short = [records[i] for i in recordings[~long_enough]]
        of_patient: dict[str, list[int]] = {}
        for i in recordings[long_enough].tolist():
            of_patient.setdefault(patients[i], []).append(i)
        members: list[list[str]] = [[], [], []]
        for patient, own in of_patient.items():
            members[part_of(patient, self.fractions, self.seed) if len(own) > 1 else 0].append(patient)
        few = [part for part in (2, 1) if self.fractions[part] > 0 and len(members[part]) < 2]
        if few:
            lacking = PARTS[few[0]]
            repeated = sum(len(own) > 1 for own in of_patient.values())
            raise EcgfastError(
                f"fractions: must give {lacking} two patients with two recordings, got "
                f"{len(members[few[0]])} of {repeated} that the store has"
            )
        crops = [
            gallery_probe(
                index,
                {patient: of_patient[patient] for patient in part},
                seed=self.seed,
                segment_samples=self.segment_samples,
            )
            if part
            else None
            for part in members[1:]
        ]
        beyond = [records[i] for part in members[1:] for patient in part for i in of_patient[patient][2:]]
        left_out = {
            f"recordings shorter than {self.segment_samples} samples": short,
            "recordings beyond a patient's first two": beyond,
        }
        return IdentitySplit(
            train=np.array(sorted(i for patient in members[0] for i in of_patient[patient]), dtype=np.int64),
            validation=crops[0],
            test=crops[1],
            left_out={reason: ids for reason, ids in left_out.items() if ids},
        )


def gallery_probe(
    index: pa.Table, of_patient: Mapping[str, Sequence[int]], *, seed: int = 0, segment_samples: int = 2500
) -> GalleryProbe:
    """A crop of each of the first two recordings of patients, where it begins drawn from the recording's id.

    Args:
        index: `Store.index`.
        of_patient: Numbers of each patient's recordings, two or more of `segment_samples` or longer.
        seed: Of the draws.
        segment_samples: Samples of a crop.
    """
    records, samples = index["record_id"].to_pylist(), index["n_samples"].to_numpy()

    def crops(which: int) -> Segments:
        recording = np.array([own[which] for own in of_patient.values()], dtype=np.int64)
        room = samples[recording] - segment_samples + 1
        place = np.array([place_of(records[i], seed, "crop") for i in recording])
        return Segments(recording, np.floor(place * room).astype(np.int64))

    return GalleryProbe(crops(0), crops(1), tuple(of_patient))
