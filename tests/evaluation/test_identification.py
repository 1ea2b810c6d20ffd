import json

import numpy as np
import pytest

from ecgfast.errors import EcgfastError
from ecgfast.evaluation import identification_report


def at(*degrees):
    """Embeddings in a plane, of different lengths, by their angles."""
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.arange(1, len(degrees) + 1)[:, None]


def plain(gallery, owners, probes, claimed, same_recording):
    """Everything again, pair by pair, without curves."""
    genuine, impostor, ranks = [], [], []
    for i, probe in enumerate(probes):
        best = {}
        for j, entry in enumerate(gallery):
            if same_recording(i, j):
                continue
            cosine = float(probe @ entry / np.linalg.norm(probe) / np.linalg.norm(entry))
            (genuine if owners[j] == claimed[i] else impostor).append(cosine)
            best[owners[j]] = max(best.get(owners[j], -2), cosine)
        if claimed[i] in best:
            ranks.append(1 + sum(v >= best[claimed[i]] for k, v in best.items() if k != claimed[i]))
    genuine, impostor, ranks = map(np.array, (genuine, impostor, ranks))
    cuts = np.concatenate([genuine, impostor, [2.0]])
    far = np.array([(impostor >= cut).mean() for cut in cuts])
    tar = np.array([(genuine >= cut).mean() for cut in cuts])
    return ranks, far, tar


def test_case_by_hand():
    """Patients a, b and c lie at 0, 90 and 180 degrees; their probes at 10, 40 and 170."""
    report = identification_report(at(0, 90, 180), ["a", "b", "c"], at(10, 40, 170), ["a", "b", "c"])
    # b's probe is 40 degrees from a and 50 from b: rank 2. The others are 10 degrees from their own.
    assert report.rank_1 == pytest.approx(2 / 3)
    assert report.rank_5 is None
    assert "3 patients" in report.left_out["rank_5"]
    # Angles of genuine pairs: 10, 10, 50. Of impostor pairs: 40, 80, 80, 140, 170, 170. Accepting up to 10:
    # no impostor, 2 of 3 genuine; up to 40: 1 of 6 and 2 of 3; up to 50: 1 of 6 and all. At 1 of 6 false
    # acceptances the rejections pass from 1/3 to 0: both are 1/6 in between.
    assert report.eer == pytest.approx(1 / 6)
    assert report.roc[:4] == ((0, 0), (0, pytest.approx(2 / 3)), (pytest.approx(1 / 6), pytest.approx(2 / 3)),
                              (pytest.approx(1 / 6), 1))  # fmt: skip
    assert report.roc[-1] == (1, 1)
    assert (report.n_genuine, report.n_impostor) == (3, 6)
    assert report.tar_at_far_1e_2 is report.tar_at_far_1e_3 is None
    assert "6 impostor pairs can't measure a rate of 0.01" in report.left_out["tar_at_far_1e_2"]
    json.dumps(report.as_dict())


def test_ties_count_against_and_error_rates_cross_between_two_thresholds():
    """a and b lie at 0 and 100 degrees, a's probe at 0, b's at 50: as near to a as to b."""
    report = identification_report(at(0, 100), [1, 2], at(0, 50), [1, 2])
    assert report.rank_1 == 1 / 2
    # Genuine angles 0 and 50, impostor 50 and 100. Up to 0: no impostor, 1/2 rejected. Up to 50: 1/2 and
    # none. On the line between, both are 1/4.
    assert report.eer == pytest.approx(1 / 4)
    assert report.roc == ((0, 0), (0, 0.5), (0.5, 1), (1, 1))


def test_a_collapsed_model_recognises_nobody():
    same = np.random.default_rng(0).normal(size=(1, 16)).repeat(8, axis=0) * np.arange(1, 9)[:, None]
    report = identification_report(same, np.arange(8), same[::-1], np.arange(8))
    assert (report.rank_1, report.rank_5) == (0, 0)
    assert report.eer == pytest.approx(1 / 2)


def test_pairs_of_a_recording_with_itself_are_left_out():
    """Recordings 1 and 2 of a lie at 0 and 80 degrees, 3 and 4 of b at 90 and 100; each probes all others."""
    embeddings, patients, recordings = at(0, 80, 90, 100), ["a", "a", "b", "b"], [1, 2, 3, 4]
    whole = identification_report(embeddings, patients, embeddings, patients)
    assert whole.rank_1 == 1
    report = identification_report(
        embeddings, patients, embeddings, patients, gallery_recordings=recordings, probe_recordings=recordings
    )
    # 1: a 80, b 90, right. 2: a 80, b 10, wrong. 3: b 10, a 10, a tie, wrong. 4: b 10, a 20, right.
    assert report.rank_1 == 1 / 2
    assert (whole.n_genuine, report.n_genuine, report.n_impostor) == (8, 4, 8)
    assert report.left_out["pairs"] == "4 of a recording with itself"


def test_probes_of_unknown_patients_have_no_rank_but_are_impostors():
    report = identification_report(at(0, 90), ["a", "b"], at(5, 85, 45), ["a", "b", "c"])
    assert (report.n_probes, report.rank_1) == (2, 1)
    assert (report.n_genuine, report.n_impostor) == (2, 4)
    assert report.left_out["probes"].startswith("1 whose patient")


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_a_plain_form(seed):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(45, 8))
    owners, claimed = rng.integers(0, 45, 120), rng.integers(0, 45, 70)
    gallery = centres[owners] + rng.normal(size=(120, 8))
    probes = centres[claimed] + rng.normal(size=(70, 8))
    entry, probe = rng.integers(0, 90, 120), rng.integers(0, 90, 70)
    report = identification_report(
        gallery, owners, probes, claimed, gallery_recordings=entry, probe_recordings=probe
    )
    ranks, far, tar = plain(gallery, owners, probes, claimed, lambda i, j: probe[i] == entry[j])
    assert report.n_probes == len(ranks)
    assert report.rank_1 == pytest.approx((ranks <= 1).mean())
    assert report.rank_5 == pytest.approx((ranks <= 5).mean())
    assert report.tar_at_far_1e_2 == pytest.approx(tar[far <= 1e-2].max())
    assert report.tar_at_far_1e_3 == pytest.approx(tar[far <= 1e-3].max())
    gap = np.abs(far - (1 - tar))
    nearest = np.argmin(gap)
    assert abs(report.eer - far[nearest]) <= gap[nearest] + 1e-12
    assert 0 < report.eer < 0.5
    assert len(report.roc) <= 1000
    points = set(zip(far.round(12).tolist(), tar.round(12).tolist(), strict=True))
    assert {(round(x, 12), round(y, 12)) for x, y in report.roc} <= points | {(0.0, 0.0)}


@pytest.mark.parametrize(
    ("change", "want"),
    [
        ({"gallery": [[0, 0], [1, 0]]}, "gallery: must have a direction, got zeros in row 0"),
        ({"probes": [[np.nan, 0], [1, 0]]}, "probes: must be finite"),
        ({"probes": [[1, 0, 0], [0, 1, 0]]}, "probes: must be 2 wide as the gallery is, got 3"),
        ({"probe_patients": ["c", "d"]}, "must have a pair of recordings of one patient, got none"),
        ({"gallery_patients": ["a", "a"], "probe_patients": ["a", "a"]}, "a pair of recordings of different"),
        ({"probe_patients": [1, 2]}, "patients: must be alike for gallery and probes, got <U1 and int64"),
        ({"probe_patients": ["a"]}, r"patients: must be \[2\] for the gallery and \[2\] for the probes"),
        ({"gallery_recordings": [1, 2]}, "must be given both, or neither"),
    ],
)
def test_bad_input(change, want):
    good = {
        "gallery": [[1, 0], [0, 1]],
        "gallery_patients": ["a", "b"],
        "probes": [[1, 0.1], [0.1, 1]],
        "probe_patients": ["a", "b"],
    }
    with pytest.raises(EcgfastError, match=want):
        identification_report(**(good | change))
