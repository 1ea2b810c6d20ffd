import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from ecgfast.errors import EcgfastError
from ecgfast.evaluation import Bootstrap, compare_classifiers


def two_models(seed, n=60, better=0.0):
    rng = np.random.default_rng(seed)
    labels = rng.random((n, 2)) < 0.4
    first, second = (labels + rng.normal(size=labels.shape) for _ in range(2))
    return labels, first + better * labels, second


def test_differences_are_those_of_drawn_records():
    labels, first, second = two_models(0)
    patients = np.arange(60) // 3
    how = Bootstrap(draws=40, seed=5)
    found = compare_classifiers(labels, first, second, ["a", "b"], patients=patients, bootstrap=how)
    drawn = []
    for times in np.concatenate(list(how.counts(60, patients))):
        truth, *scores = (np.repeat(array, times, axis=0) for array in (labels, first, second))
        drawn.append(
            [
                area(truth, scores[0]) - area(truth, scores[1])
                for area in (roc_auc_score, average_precision_score)
            ]
        )
    drawn = np.array(drawn)
    for k, (one, p) in enumerate(((found.auroc, found.p_auroc), (found.auprc, found.p_auprc))):
        np.testing.assert_allclose([one.low, one.high], np.quantile(drawn[:, k], [0.025, 0.975]), atol=1e-12)
        other_sign = min((drawn[:, k] <= 0).sum(), (drawn[:, k] >= 0).sum())
        assert p == pytest.approx(min(1, 2 * (1 + other_sign) / 41))
    want = roc_auc_score(labels, first) - roc_auc_score(labels, second)
    assert found.auroc.value == pytest.approx(want)
    assert found.first.macro_auroc.value - found.second.macro_auroc.value == pytest.approx(want)
    json.dumps(found.as_dict())


def test_p_values_at_their_ends():
    labels, first, _ = two_models(1)
    how = Bootstrap(draws=99, by="record")
    same = compare_classifiers(labels, first, first, ["a", "b"], bootstrap=how)
    assert (same.auroc.value, same.p_auroc) == (0, 1)
    opposite = compare_classifiers(labels, labels * 1.0, -1.0 * labels, ["a", "b"], bootstrap=how)
    assert opposite.auroc.value == 1
    assert opposite.p_auroc == pytest.approx(2 / 100)  # no draw has another sign


def test_models_that_are_alike_seldom_differ_and_better_ones_do():
    """Of 80 pairs that are alike a tenth, 8 with a standard deviation of 2.7, should have one below .1."""
    how = Bootstrap(draws=200, by="record")

    def below(better):
        models = (two_models(seed, better=better) for seed in range(80))
        return sum(compare_classifiers(*each, ["a", "b"], bootstrap=how).p_auroc < 0.1 for each in models)

    assert 1 <= below(0.0) <= 18
    assert below(1.5) > 60


def test_bad_input():
    labels, first, second = two_models(2)
    with pytest.raises(EcgfastError, match=r"must have the same shape, got \[60, 2\] and \[59, 2\]"):
        compare_classifiers(labels, first, second[1:], ["a", "b"])
    with pytest.raises(EcgfastError, match="draws: must be 1 or more for a p-value, got 0"):
        compare_classifiers(labels, first, second, ["a", "b"], bootstrap=Bootstrap(draws=0))
