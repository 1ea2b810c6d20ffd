import numpy as np
import pytest

from ecgfast.errors import EcgfastError
from ecgfast.evaluation import Bootstrap
from ecgfast.evaluation import bootstrap as module


def counts(how, n, patients=None):
    return np.concatenate(list(how.counts(n, patients)))


def test_a_patients_records_come_together():
    patients = ["b", "a", "b", "c", "a", "b"]
    drawn = counts(Bootstrap(draws=200), 6, patients)
    assert drawn.shape == (200, 6)
    np.testing.assert_array_equal(drawn[:, 0], drawn[:, 2])
    np.testing.assert_array_equal(drawn[:, 1], drawn[:, 4])
    assert set(drawn[:, [0, 1, 3]].sum(axis=1)) == {3}  # as many patients as there are
    assert abs(drawn.mean() - 1) < 0.1


def test_draws_follow_from_the_seed_alone(monkeypatch):
    first = counts(Bootstrap(draws=30, seed=1, by="record"), 40)
    monkeypatch.setattr(module, "_BLOCK", 40 * 7)  # in blocks of 7 draws
    np.testing.assert_array_equal(counts(Bootstrap(draws=30, seed=1, by="record"), 40), first)
    assert (counts(Bootstrap(draws=30, seed=2, by="record"), 40) != first).any()


def test_an_interval_holds_the_mean_as_often_as_it_says():
    """90 % intervals of the mean of 40 normal numbers, 300 times.

    270 are expected to hold it, with a standard deviation of 5; percentiles are a little narrow at 40.
    """
    rng = np.random.default_rng(0)
    how = Bootstrap(draws=300, confidence=0.9, by="record")
    times = counts(how, 40)
    held = 0
    for _ in range(300):
        sample = rng.normal(size=40)
        found = how.estimate(sample.mean(), times @ sample / 40)
        held += found.low <= 0 <= found.high
    assert 245 <= held <= 285


def test_draws_without_a_value_are_left_out():
    how = Bootstrap(draws=4)
    found = how.estimate(0.5, np.array([0.1, np.nan, 0.3, np.nan]))
    assert (found.draws, found.value) == (2, 0.5)
    assert 0.1 <= found.low < found.high <= 0.3
    assert how.estimate(0.5, np.array([np.nan])).low is None


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({"draws": -1}, "draws: must be a whole number, 0 or more, got -1"),
        ({"seed": 0.5}, "seed: must be a whole number"),
        ({"confidence": 95}, "confidence: must be between 0 and 1, got 95"),
        ({"by": "beat"}, "by: must be 'patient' or 'record', got 'beat'"),
    ],
)
def test_bad_settings(options, want):
    with pytest.raises(EcgfastError, match=want):
        Bootstrap(**options)
