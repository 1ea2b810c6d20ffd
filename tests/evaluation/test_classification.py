import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from ecgfast.errors import EcgfastError
from ecgfast.evaluation import (
    Bootstrap,
    ChallengeWeights,
    average_by_recording,
    challenge_score,
    classification_report,
    tune_thresholds,
)

NO_DRAWS = Bootstrap(draws=0, by="record")


def a_case(n=300, n_classes=6, seed=0, ties=True):
    """Labels with scores that tell something of them, and patients with one to three records."""
    rng = np.random.default_rng(seed)
    labels = rng.random((n, n_classes)) < np.linspace(0.05, 0.6, n_classes)
    scores = 1 / (1 + np.exp(-(labels + rng.normal(size=labels.shape))))
    if ties:
        scores = scores.round(1)
    return labels, scores, rng.integers(0, n // 2, n), [f"class {c}" for c in range(n_classes)]


def test_case_by_hand():
    labels = np.array([[1], [0], [1], [0]])
    scores = np.array([[0.9], [0.8], [0.7], [0.1]])
    report = classification_report(labels, scores, ["AF"], thresholds=[0.75], bootstrap=NO_DRAWS)
    (af,) = report.classes
    # Of the four pairs of a positive and a negative, .9 stands above .8 and .1, .7 above .1: 3 of 4.
    assert af.auroc.value == pytest.approx(3 / 4)
    # Half of the positives are found with precision 1, the other half with 2 of 3.
    assert af.auprc.value == pytest.approx((1 + 2 / 3) / 2)
    # From .75 on two are told, one rightly; one of the two positives is found: F1 = 2 * 1 / (2 + 2).
    assert af.f1.value == pytest.approx(1 / 2)
    assert (af.positives, af.threshold, report.n_records) == (2, 0.75, 4)
    assert (af.auroc.low, af.auroc.high, af.auroc.draws) == (None, None, 0)


def test_figures_are_those_of_scikit_learn():
    labels, scores, patients, names = a_case()
    cuts = tune_thresholds(labels, scores)
    report = classification_report(
        labels, scores, names, patients=patients, thresholds=cuts, bootstrap=Bootstrap(draws=20)
    )
    assert report.macro_auroc.value == pytest.approx(roc_auc_score(labels, scores, average="macro"))
    assert report.macro_auprc.value == pytest.approx(average_precision_score(labels, scores, average="macro"))
    assert report.macro_f1.value == pytest.approx(f1_score(labels, scores >= cuts, average="macro"))
    assert report.n_patients == len(np.unique(patients))
    assert json.loads(json.dumps(report.as_dict()))["classes"][0]["name"] == "class 0"


def test_intervals_are_those_of_drawn_records():
    """Every draw again with the records themselves, repeated, and scikit-learn."""
    labels, scores, patients, names = a_case(n=60, n_classes=4, seed=3)
    weights = ChallengeWeights(tuple(names), np.random.default_rng(1).random((4, 4)), normal="class 3")
    cuts = [0.5, 0.6, 0.7, 0.6]
    how = Bootstrap(draws=50, seed=7, confidence=0.8)
    report = classification_report(
        labels, scores, names, patients=patients, thresholds=cuts, weights=weights, bootstrap=how
    )
    drawn = {"auroc": [], "auprc": [], "f1": [], "challenge": []}
    for times in np.concatenate(list(how.counts(60, patients))):
        truth, score = np.repeat(labels, times, axis=0), np.repeat(scores, times, axis=0)
        both = truth.any(axis=0) & ~truth.all(axis=0)
        figures = {name: np.full(4, np.nan) for name in ("auroc", "auprc", "f1")}
        for c in np.flatnonzero(both):
            figures["auroc"][c] = roc_auc_score(truth[:, c], score[:, c])
            figures["auprc"][c] = average_precision_score(truth[:, c], score[:, c])
            figures["f1"][c] = f1_score(truth[:, c], score[:, c] >= cuts[c])
        for name, values in figures.items():
            drawn[name].append(values)
        drawn["challenge"].append(challenge_score(truth, score >= 0.5, weights))
    assert np.isnan(drawn["auroc"]).any()  # a draw without the rarest class is among them
    for name in ("auroc", "auprc", "f1"):
        of_draws = np.array(drawn[name])
        for c, one in enumerate(report.classes):
            there = of_draws[~np.isnan(of_draws[:, c]), c]
            got = getattr(one, name)
            assert got.draws == len(there)
            np.testing.assert_allclose([got.low, got.high], np.quantile(there, [0.1, 0.9]), atol=1e-12)
        macro = getattr(report, f"macro_{name}")
        want = np.quantile(np.nanmean(of_draws, axis=1), [0.1, 0.9])
        np.testing.assert_allclose([macro.low, macro.high], want, atol=1e-12)
    want = np.quantile(drawn["challenge"], [0.1, 0.9])
    np.testing.assert_allclose([report.challenge.low, report.challenge.high], want, atol=1e-9)
    assert report.challenge.value == pytest.approx(challenge_score(labels, scores >= 0.5, weights), abs=1e-12)


def test_classes_with_one_value_only_are_left_out_and_named():
    labels, scores, patients, names = a_case(n_classes=5)
    labels[:, 1], labels[:, 3] = False, True
    kept = [0, 2, 4]
    report = classification_report(labels, scores, names, patients=patients, bootstrap=Bootstrap(draws=10))
    assert report.left_out == {"class 1": "no record has it", "class 3": "every record has it"}
    assert [one.name for one in report.classes] == ["class 0", "class 2", "class 4"]
    assert report.macro_auroc.value == pytest.approx(roc_auc_score(labels[:, kept], scores[:, kept]))
    assert "NaN" not in json.dumps(report.as_dict())
    with pytest.raises(EcgfastError, match="labels: must have a class with both values, got one value only"):
        classification_report(labels[:, [1, 3]], scores[:, [1, 3]], ["a", "b"], bootstrap=NO_DRAWS)


def test_thresholds_by_hand():
    labels = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]])
    scores = np.array([[0.9, 0.8, 0.1], [0.8, 0.7, 0.2], [0.7, 0.3, 0.3], [0.1, 0.2, 0.4]])
    # First class: from .9 on F1 = 2/3, from .8 1/2, from .7 4/5, from .1 2/3.
    # Second: from .7 on all is right. Third: nobody has it.
    np.testing.assert_array_equal(tune_thresholds(labels, scores), [0.7, 0.7, np.nan])


def test_of_thresholds_alike_the_highest_is_taken():
    # From .9 on one of two is found, precision 1: F1 = 2/3; from .1 on both, precision 1/2: 2/3 too.
    labels, scores = np.array([[1], [0], [0], [1]]), np.array([[0.9], [0.5], [0.4], [0.1]])
    assert tune_thresholds(labels, scores) == [0.9]


def test_a_class_without_threshold_has_no_f1():
    labels, scores, _, names = a_case()
    cuts = tune_thresholds(labels, scores)
    cuts[2] = np.nan
    report = classification_report(labels, scores, names, thresholds=cuts, bootstrap=NO_DRAWS)
    assert report.classes[2].f1 is None
    assert report.left_out == {"F1 of class 2": "no threshold could be tuned for it"}
    others = [0, 1, 3, 4, 5]
    want = f1_score(labels[:, others], scores[:, others] >= cuts[others], average="macro")
    assert report.macro_f1.value == pytest.approx(want)
    cuts[:] = np.nan
    assert classification_report(labels, scores, names, thresholds=cuts, bootstrap=NO_DRAWS).macro_f1 is None


def test_an_undefined_challenge_score_is_left_out_and_named():
    labels = np.array([[1, 0], [1, 0], [0, 0]])
    weights = ChallengeWeights(("N", "A"), np.eye(2), normal="N")
    report = classification_report(labels, labels * 0.9, ["N", "A"], weights=weights, bootstrap=NO_DRAWS)
    assert report.challenge is None
    assert "challenge score" in report.left_out


def test_patients_are_drawn_whole():
    """Ten records each of sixty patients, all alike: intervals by record are too narrow by some sqrt(10)."""
    labels, scores, _, names = a_case(n=60, n_classes=3, ties=False)
    many = (np.repeat(labels, 10, axis=0), np.repeat(scores, 10, axis=0), names)
    patients = [f"patient {i:02d}" for i in np.repeat(np.arange(60), 10)]

    def width(**options):
        found = classification_report(*many, **options).macro_auroc
        return found.high - found.low

    by_patient = width(patients=patients)
    by_record = width(bootstrap=Bootstrap(by="record"))
    assert 2.5 < by_patient / by_record < 4
    alone = classification_report(labels, scores, names, patients=np.arange(60)).macro_auroc
    assert by_patient == pytest.approx(alone.high - alone.low, abs=1e-12)


def test_windows_are_averaged_by_recording():
    scores = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0], [0.2, 0.4]])
    recordings, means = average_by_recording(scores, [7, 3, 7, 7])
    np.testing.assert_array_equal(recordings, [3, 7])
    np.testing.assert_allclose(means, [[0.5, 0.5], [0.4, 1.4 / 3]])


@pytest.mark.parametrize(
    ("change", "want"),
    [
        ({"labels": np.zeros((4, 3))}, r"labels: must have the shape \[4, 2\] of the scores, got \[4, 3\]"),
        ({"labels": np.full((4, 2), 2)}, "labels: must be 0 or 1, got 2 in row 0, column 0"),
        ({"scores": [[0.1, np.nan]] * 4}, r"scores: must be finite, got \[0.1, nan\] in row 0"),
        ({"scores": np.zeros(4)}, r"scores: must be numbers \[records, classes\]"),
        ({"classes": ["a"]}, "classes: must be as many as the scores have columns, 2, got 1"),
        ({"classes": ["a", "a"]}, "classes: must be there once, got a twice or more"),
        ({"patients": [1, 2, 3]}, r"patients: must be whole numbers or texts \[4\], got int64 \[3\]"),
        ({"patients": None}, "patients: must be given for intervals by patient"),
        ({"thresholds": [0.5]}, r"thresholds: must be finite or NaN, \[2\], got \[1\]"),
        ({"weights": ChallengeWeights(("a", "N"), np.eye(2), "N")}, "classes: must be those of the weights"),
    ],
)
def test_bad_input(change, want):
    good = {
        "labels": [[1, 0], [0, 1], [1, 0], [0, 1]],
        "scores": [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]],
        "classes": ["a", "b"],
        "patients": [1, 2, 3, 3],
    }
    with pytest.raises(EcgfastError, match=want):
        classification_report(**(good | change))


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.metrics", None)
    with pytest.raises(EcgfastError, match=r"pip install 'ecgfast\[evaluation\]'"):
        tune_thresholds([[1], [0]], [[0.2], [0.1]])
