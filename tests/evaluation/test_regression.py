import json

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import mean_absolute_error, r2_score

from ecgfast.errors import EcgfastError
from ecgfast.evaluation import Bootstrap, regression_report

NO_DRAWS = Bootstrap(draws=0, by="record")


def test_case_by_hand():
    report = regression_report([1, 2, 3], [1, 3, 2], bootstrap=NO_DRAWS)
    assert report.mae.value == pytest.approx(2 / 3)  # errors 0, 1 and 1
    assert report.mae_of_mean == pytest.approx(2 / 3)  # the mean is 2: errors 1, 0 and 1
    # Both have the deviations -1, 0, 1 in some order, of square sum 2; their products are 1, 0, 0: r = 1/2.
    assert report.r.value == pytest.approx(1 / 2)
    assert report.r2.value == pytest.approx(0)  # squared errors 2, squared deviations 2
    assert (report.n_records, report.n_patients, report.left_out) == (3, None, {})


def test_intervals_are_those_of_drawn_records():
    rng = np.random.default_rng(0)
    ages = rng.uniform(20, 90, 50)
    told = ages + rng.normal(0, 10, 50)
    patients = rng.integers(0, 30, 50)
    how = Bootstrap(draws=40, seed=2, confidence=0.9)
    report = regression_report(ages, told, patients=patients, bootstrap=how)
    drawn = []
    for times in np.concatenate(list(how.counts(50, patients))):
        truth, score = np.repeat(ages, times), np.repeat(told, times)
        drawn.append((mean_absolute_error(truth, score), pearsonr(truth, score)[0], r2_score(truth, score)))
    want = np.quantile(drawn, [0.05, 0.95], axis=0).T
    got = [[one.low, one.high] for one in (report.mae, report.r, report.r2)]
    np.testing.assert_allclose(got, want, atol=1e-10)
    assert report.r.value == pytest.approx(pearsonr(ages, told)[0])
    assert report.n_patients == len(np.unique(patients))
    json.dumps(report.as_dict())


def test_predictions_that_are_all_the_same_have_no_r():
    report = regression_report([1, 2, 3], [5, 5, 5], bootstrap=Bootstrap(draws=20, by="record"))
    assert report.r is None
    assert report.left_out == {"r": "all predictions are 5"}
    assert report.r2.value < 0
    assert "NaN" not in json.dumps(report.as_dict())


def test_draws_of_targets_all_the_same_are_left_out():
    report = regression_report([1, 1, 2], [1, 1.5, 2], bootstrap=Bootstrap(draws=100, by="record"))
    assert report.mae.draws == 100
    assert 0 < report.r2.draws < 100


@pytest.mark.parametrize(
    ("targets", "predictions", "want"),
    [
        ([60, 60, 60], [1, 2, 3], "targets: must differ between records, got 60 in all 3"),
        ([1, np.nan, 2], [1, 2, 3], "targets: must be finite, got nan in row 1"),
        ([1, 2, 3], [1, 2], "predictions: must have 3 rows, got 2"),
        ([[1], [2]], [1, 2], r"targets: must be numbers \[records\]"),
        (["1", "2"], [1, 2], r"targets: must be numbers \[records\]"),
    ],
)
def test_bad_input(targets, predictions, want):
    with pytest.raises(EcgfastError, match=want):
        regression_report(targets, predictions, bootstrap=NO_DRAWS)
