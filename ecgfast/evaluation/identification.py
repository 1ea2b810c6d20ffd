"""Whether embeddings tell who a recording is of: ranks in a gallery, and acceptance of claimed identities.

Similarity is the cosine of two embeddings. Identification asks which patient of the gallery a probe is most
like (rank 1, rank 5); verification whether a probe and an entry of the gallery are of one patient, by a
threshold of their similarity: true and false acceptance rates, and the rate at which false acceptances equal
false rejections (EER).
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ecgfast.errors import EcgfastError
from ecgfast.evaluation._inputs import check_groups, check_matrix, sklearn_metrics

_RANKS = (1, 5)
_FALSE_ACCEPTANCES = (1e-2, 1e-3)
_ROC_POINTS = 1000  # that a report keeps: enough for a figure
_DECIMALS = 12  # of a cosine; what differs beyond is rounding, and a tie


@dataclass(frozen=True)
class IdentificationReport:
    """How well probes find their patients in a gallery.

    Attributes:
        n_gallery: Entries of the gallery.
        n_identities: Patients in it.
        n_probes: Probes that were ranked: those whose patient has an entry that may be compared.
        n_genuine: Pairs of a probe and an entry of one patient.
        n_impostor: Pairs of different patients.
        rank_1: Share of ranked probes whose patient is the most similar; ties with other patients count
            against.
        rank_5: Among the five most similar; None with five patients or fewer, among whom it is certain.
        eer: Rate at which as many impostor pairs are accepted as genuine ones rejected, between the two
            neighbouring thresholds interpolated.
        tar_at_far_1e_2: Greatest share of genuine pairs accepted with at most 1e-2 of the impostor pairs.
        tar_at_far_1e_3: With at most 1e-3; None with fewer than 1,000 impostor pairs, which can't measure it.
        roc: (false acceptance rate, true acceptance rate) from the strictest threshold to the widest, at most
            1,000 points.
        left_out: Why a score is not there or which pairs and probes were not counted, by name.
    """

    n_gallery: int
    n_identities: int
    n_probes: int
    n_genuine: int
    n_impostor: int
    rank_1: float
    rank_5: float | None
    eer: float
    tar_at_far_1e_2: float | None
    tar_at_far_1e_3: float | None
    roc: tuple[tuple[float, float], ...]
    left_out: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


def identification_report(
    gallery: Any,
    gallery_patients: Any,
    probes: Any,
    probe_patients: Any,
    *,
    gallery_recordings: Any = None,
    probe_recordings: Any = None,
) -> IdentificationReport:
    """Look for each probe's patient in a gallery.

    All pairs are held at once: some 100 bytes each.

    Args:
        gallery: Embeddings [G, D], of any norm but 0.
        gallery_patients: Whose each is, whole numbers or texts [G]; a patient may have several entries.
        probes: Embeddings [P, D].
        probe_patients: Whose each is, [P], in the same terms.
        gallery_recordings: Recording of each entry, whole numbers or texts [G]; with `probe_recordings`,
            pairs of one recording with itself are left out, so that crops of a recording, or the gallery as
            probes, are no easy matches.
        probe_recordings: Recording of each probe, [P], in the same terms.

    Raises:
        EcgfastError: shapes that don't fit, an embedding that is zero or not finite, no pair of one patient
            left, or none of two.
    """
    gallery, probes = _unit("gallery", gallery), _unit("probes", probes)
    if gallery.shape[1] != probes.shape[1]:
        raise EcgfastError(
            f"probes: must be {gallery.shape[1]} wide as the gallery is, got {probes.shape[1]}"
        )
    owner, claimed = _together("patients", gallery_patients, probe_patients, len(gallery), len(probes))
    allowed = np.ones((len(probes), len(gallery)), dtype=bool)
    if (gallery_recordings is None) != (probe_recordings is None):
        raise EcgfastError("gallery_recordings and probe_recordings: must be given both, or neither")
    if gallery_recordings is not None:
        entry, probe = _together(
            "recordings", gallery_recordings, probe_recordings, len(gallery), len(probes)
        )
        allowed = probe[:, None] != entry[None]
    same = claimed[:, None] == owner[None]
    genuine, impostor = allowed & same, allowed & ~same
    if not genuine.any() or not impostor.any():
        kind = "one patient" if not genuine.any() else "different patients"
        raise EcgfastError(f"gallery and probes: must have a pair of recordings of {kind}, got none")
    similarity = np.round(probes @ gallery.T, _DECIMALS)
    left_out = {}
    if excluded := int(np.count_nonzero(~allowed)):
        left_out["pairs"] = f"{excluded:,} of a recording with itself"
    ranks = _ranks(similarity, genuine, allowed, owner)
    if unranked := len(probes) - len(ranks):
        left_out["probes"] = (
            f"{unranked:,} whose patient has no other recording in the gallery, of rank alone"
        )
    identities = len(np.unique(owner))
    if identities <= _RANKS[1]:
        left_out["rank_5"] = f"the gallery has {identities} patients, among whom it is certain"
    false, true = _roc(similarity[genuine], similarity[impostor])
    n_impostor = int(np.count_nonzero(impostor))
    tar = []
    for far, name in zip(_FALSE_ACCEPTANCES, ("tar_at_far_1e_2", "tar_at_far_1e_3"), strict=True):
        if n_impostor * far < 1:
            left_out[name] = f"{n_impostor:,} impostor pairs can't measure a rate of {far:g}"
        tar.append(float(true[false <= far].max()) if n_impostor * far >= 1 else None)
    return IdentificationReport(
        n_gallery=len(gallery),
        n_identities=identities,
        n_probes=len(ranks),
        n_genuine=int(np.count_nonzero(genuine)),
        n_impostor=n_impostor,
        rank_1=float((ranks <= _RANKS[0]).mean()),
        rank_5=float((ranks <= _RANKS[1]).mean()) if identities > _RANKS[1] else None,
        eer=_equal_error_rate(false, true),
        tar_at_far_1e_2=tar[0],
        tar_at_far_1e_3=tar[1],
        roc=_thinned(false, true),
        left_out=left_out,
    )


def _unit(name: str, embeddings: Any) -> np.ndarray:
    embeddings = check_matrix(name, embeddings, "[recordings, width]")
    norm = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if (zero := np.flatnonzero(norm == 0)).size:
        raise EcgfastError(f"{name}: must have a direction, got zeros in row {zero[0]}")
    return embeddings / norm


def _together(name: str, first: Any, second: Any, n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Groups of two sets of rows, numbered alike."""
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != (n,) or second.shape != (m,):
        got = f"{list(first.shape)} and {list(second.shape)}"
        raise EcgfastError(f"{name}: must be [{n}] for the gallery and [{m}] for the probes, got {got}")
    if (first.dtype.kind in "iu") != (second.dtype.kind in "iu"):
        raise EcgfastError(
            f"{name}: must be alike for gallery and probes, got {first.dtype} and {second.dtype}"
        )
    both = check_groups(name, np.concatenate([first, second]), n + m)
    return both[:n], both[n:]


def _ranks(similarity: np.ndarray, genuine: np.ndarray, allowed: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Rank of the own patient, from 1, for the probes that have one; patients go by their best entry."""
    ranked = genuine.any(axis=1)
    open_pairs = np.where(allowed, similarity, -np.inf)
    own = np.where(genuine, similarity, -np.inf).max(axis=1)
    order = np.argsort(owner, kind="stable")
    first = np.flatnonzero(np.diff(owner[order], prepend=-1))
    best = np.maximum.reduceat(open_pairs[:, order], first, axis=1)  # [P, patients], the own one among them
    # As many patients are at least as similar as the own one, which counts itself.
    return (best >= own[:, None]).sum(axis=1)[ranked]


def _roc(genuine: np.ndarray, impostor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true acceptance rates, from (0, 0) to (1, 1)."""
    truth = np.concatenate([np.ones(len(genuine), dtype=bool), np.zeros(len(impostor), dtype=bool)])
    false, true, _ = sklearn_metrics().roc_curve(
        truth, np.concatenate([genuine, impostor]), drop_intermediate=False
    )
    return false, true


def _equal_error_rate(false: np.ndarray, true: np.ndarray) -> float:
    """Where false acceptances, which grow along the curve, meet false rejections, which fall."""
    gap = false - (1 - true)  # from -1 at the strictest threshold to 1 at the widest
    after = int(np.argmax(gap >= 0))
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    return float(false[after - 1] + share * (false[after] - false[after - 1]))


def _thinned(false: np.ndarray, true: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Points along the curve, half of them denser towards its strict end, where figures are logarithmic."""
    last = len(false) - 1
    at = np.arange(len(false))
    if len(false) > _ROC_POINTS:
        evenly = np.linspace(0, last, _ROC_POINTS // 2)
        at = np.unique(np.concatenate([evenly, np.geomspace(1, last, _ROC_POINTS // 2)]).round().astype(int))
    return tuple(zip(false[at].tolist(), true[at].tolist(), strict=True))
