"""Gaps, scale, cut-off samples and derived leads."""

import numpy as np
import pytest

from ecgfast.data.signal.cleaning import (
    CUT_SAMPLES,
    CUT_SECONDS,
    CUT_STEPS,
    HELD_SECONDS,
    HELD_SHARE,
    HELD_SHARE_ONCE,
    RAIL_JUMP,
    cut_off,
    derive_limb_leads,
    fill_gaps,
    standardize,
)
from ecgfast.errors import EcgfastError
from ecgfast.leads import STANDARD_LEADS

NAN = np.nan


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gaps_become_lines_as_numpy_interpolates(dtype):
    rng = np.random.default_rng(3)
    signal = rng.standard_normal((6, 400)).astype(dtype)
    signal[rng.random((6, 400)) < 0.3] = NAN
    filled = fill_gaps(signal, 400)
    at = np.arange(400)
    for row, got in zip(signal, filled, strict=True):
        good = np.isfinite(row)
        np.testing.assert_allclose(got, np.interp(at, at[good], row[good]), rtol=1e-5, atol=1e-6)


def test_long_gaps_and_empty_leads_stay():
    signal = np.array([[1, NAN, NAN, 4, NAN, NAN, NAN, 8, np.inf], [NAN] * 9])
    filled = fill_gaps(signal, 2)
    np.testing.assert_array_equal(filled[0], [1, 2, 3, 4, NAN, NAN, NAN, 8, 8])
    assert np.isnan(filled[1]).all()
    assert np.isnan(signal[0, 1])  # the input is left alone


def test_nothing_missing_is_no_copy():
    signal = np.ones((2, 3))
    assert fill_gaps(signal, 5) is signal


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_standardize(dtype):
    signal = np.random.default_rng(4).normal(30, 7, (2, 3, 500)).astype(dtype)
    signal[0, 1] = 12.5
    scaled = standardize(signal, 2.0)
    assert scaled.dtype == dtype
    wide = signal.astype(float)
    with np.errstate(invalid="ignore"):
        want = (wide - wide.mean(-1, keepdims=True)) / wide.std(-1, keepdims=True)
    want[0, 1] = 0
    np.testing.assert_allclose(scaled, want.clip(-2, 2), atol=1e-4 if dtype == np.float32 else 1e-12)
    assert np.abs(standardize(signal)).max() > 2


def test_limb_leads_follow_from_two():
    rng = np.random.default_rng(5)
    one, two = 2 * rng.integers(-500, 500, (2, 50)).astype(np.int16)
    block = np.zeros((12, 50), np.int16)
    block[0], block[1] = one, two
    block[4] = 7  # aVL is there already
    derived, present = derive_limb_leads(block, [0, 1, 4])
    assert [STANDARD_LEADS[i] for i in present] == ["I", "II", "III", "aVR", "aVL", "aVF"]
    np.testing.assert_array_equal(derived[2], two - one)
    np.testing.assert_array_equal(derived[3], -(one + two) // 2)
    np.testing.assert_array_equal(derived[4], block[4])
    np.testing.assert_array_equal(derived[5], two - one // 2)
    assert not block[2].any()


def test_limb_leads_need_both_and_never_overflow():
    block = np.zeros((12, 3), np.int16)
    assert derive_limb_leads(block, [0, 6]) == (block, [0, 6])
    block[0], block[1] = -30000, 30000
    assert derive_limb_leads(block, [0, 1])[1] == [0, 1, 3]


def jump_at(signal, start, end):
    """The lesser of the jumps in which a run is left."""
    steps = np.abs(np.diff(signal))
    return min(steps[i] for i in (start - 1, end - 1) if 0 <= i < len(steps))


def plain_cut_off(signal, rate, low, high):
    """The definition, run by run."""
    for value, at_rail in ((signal.min(), signal.min() <= low), (signal.max(), signal.max() >= high)):
        edges = np.flatnonzero(np.diff(signal == value, prepend=False, append=False))
        runs = edges[1::2] - edges[::2]
        held = runs[runs >= HELD_SECONDS * rate]
        share = HELD_SHARE if len(held) > 1 else HELD_SHARE_ONCE
        steps = np.abs(np.diff(signal))
        jumps = [
            jump_at(signal, start, end)
            for start, end in zip(edges[::2], edges[1::2], strict=True)
            if end - start >= max(CUT_SAMPLES, CUT_SECONDS * rate)
        ]
        cuts = [jump for jump in jumps if jump > CUT_STEPS * steps[steps > 0].min()]
        at_rail = at_rail and max(cuts, default=0) > RAIL_JUMP * np.ptp(signal)
        if held.sum() > share * len(signal) or len(cuts) > 1 or at_rail:
            return value, runs.sum()
    return None


@pytest.mark.parametrize("seed", range(40))
def test_cut_off_is_its_definition(seed):
    rng = np.random.default_rng(seed)
    rate = rng.choice([100.0, 500.0, 1000.0])
    signal = np.repeat(rng.normal(0, 300, 400), rng.integers(1, 8)).round()
    for _ in range(rng.integers(0, 4)):
        start = rng.integers(0, len(signal))
        signal[start : start + rng.integers(1, 120)] = rng.choice([900.0, -900.0])
    rails = (-900.0, 900.0) if seed % 2 else (-np.inf, np.inf)
    assert cut_off(signal, rate, *rails) == plain_cut_off(signal, rate, *rails)


def test_cut_off_finds_both_kinds():
    signal = np.sin(np.arange(5000) / 60) * 1000
    assert cut_off(signal, 500) is None
    assert cut_off(signal.clip(-800, 9999), 500)[0] == -800
    assert cut_off(np.full(5000, 3.0), 500, -3, 3) is None
    railed = signal.copy()
    railed[100:104] = 1500
    assert cut_off(railed, 500, -1500, 1500) is None
    railed[100:106] = 1500
    assert cut_off(railed, 500) is None
    assert cut_off(railed, 500, -1500, 1500) == (1500, 6)
    railed[2000:2004] = 1500
    assert cut_off(railed, 500) is None
    railed[2000:2005] = 1500
    assert cut_off(railed, 500) == (1500, 11)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fill_gaps(np.zeros(3, int), 1), "signal: got int64"),
        (lambda: fill_gaps(np.zeros(3), -1), "longest: got -1"),
        (lambda: standardize(np.float64(3)), "signal: got float64"),
        (lambda: standardize(np.zeros(3), 0), "limit: got 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(EcgfastError, match=message):
        call()
