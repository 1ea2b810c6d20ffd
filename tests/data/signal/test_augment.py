"""Augmentations: what they add, what they keep, what they depend on."""

import numpy as np
import pytest

from ecgfast.data import (
    Augmenter,
    BaselineShift,
    BaselineWander,
    EmgNoise,
    PowerlineNoise,
    TurnDipole,
    synthesize,
)
from ecgfast.errors import EcgfastError

NOISES = [PowerlineNoise(), EmgNoise(), BaselineWander(), BaselineShift()]
ALL = [*NOISES, TurnDipole()]


@pytest.fixture(scope="module")
def segments() -> np.ndarray:
    return np.stack([record.signal[:, :2500] for record in synthesize(4, 1, 5, 1)])


IDS = np.arange(4)


def relations(signal: np.ndarray) -> float:
    """How far III, aVR, aVL and aVF are from what I and II say."""
    one, two = signal[:, 0], signal[:, 1]
    follow = np.stack([two - one, -(one + two) / 2, one - two / 2, two - one / 2], axis=1)
    return np.abs(signal[:, 2:6] - follow).max()


@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: type(a).__name__)
def test_changes_the_leads_and_keeps_their_relations(augmentation, segments):
    out = Augmenter([(augmentation, 1.0)])(segments, IDS)
    assert out.dtype == np.float32
    assert out.shape == segments.shape
    assert np.isfinite(out).all()
    changed = np.abs(out - segments / 1000).max(axis=(1, 2))
    assert (changed > 1e-3).all()
    assert relations(out) < 2e-5


@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: type(a).__name__)
def test_depends_on_seed_epoch_and_sample_alone(augmentation, segments):
    augment = Augmenter([(augmentation, 0.7)], seed=5)
    out = augment(segments, IDS, epoch=2)
    threaded = Augmenter([(augmentation, 0.7)], seed=5, threads=3)
    np.testing.assert_array_equal(threaded(segments, IDS, epoch=2), out)
    np.testing.assert_array_equal(augment(segments[2:3], IDS[2:3], epoch=2)[0], out[2])
    assert not np.array_equal(augment(segments, IDS, epoch=3), out)
    assert not np.array_equal(Augmenter([(augmentation, 0.7)], seed=6)(segments, IDS, epoch=2), out)


@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: type(a).__name__)
def test_absent_leads_stay_zero(augmentation, segments):
    some = segments.copy()
    some[:, [2, 7, 8]] = 0
    out = Augmenter([(augmentation, 1.0)])(some, IDS)
    assert not out[:, [2, 7, 8]].any()
    if isinstance(augmentation, TurnDipole):
        np.testing.assert_array_equal(out, some * np.float32(1e-3))


def test_probability():
    many = np.ones((400, 12, 8), np.float32)
    augment = Augmenter([(BaselineShift((0.1, 0.2)), 0.25)], seed=1)
    share = (augment(many, np.arange(400)) != many).any(axis=(1, 2)).mean()
    assert 0.17 < share < 0.33
    np.testing.assert_array_equal(Augmenter([(EmgNoise(), 0.0)])(many, np.arange(400)), many)


def spectrum(noise: np.ndarray) -> np.ndarray:
    return np.abs(np.fft.rfft(noise, axis=-1)) * 2 / noise.shape[-1]


def test_powerline_is_one_tone_at_mains_frequency():
    silent = np.full((40, 12, 500), 1e-9, np.float32)
    out = Augmenter([(PowerlineNoise((0.1, 0.3)), 1.0)])(silent, np.arange(40))
    tones = spectrum(out[:, 6])
    peaks = tones.argmax(axis=1)
    assert set(peaks) == {50, 60}
    assert (tones.max(axis=1) > 0.099).all()
    assert (tones.max(axis=1) < 0.301).all()
    assert np.sort(tones, axis=1)[:, -2].max() < 1e-3


def test_wander_is_slow_and_emg_is_white():
    silent = np.full((50, 12, 5000), 1e-9, np.float32)
    wander = Augmenter([(BaselineWander(), 1.0)])(silent, np.arange(50))
    assert spectrum(np.diff(wander, axis=-1))[..., 10:].max() < 2e-3  # below 1 Hz
    noise = Augmenter([(EmgNoise((0.2, 0.2)), 1.0)])(silent, np.arange(50))[:, [0, 1, 6, 11]]
    assert abs(noise.std() - 0.2) < 1e-3
    whole = noise.reshape(-1)
    assert abs(np.corrcoef(whole[1:], whole[:-1])[0, 1]) < 0.01


def test_shift_moves_a_part_of_each_lead_by_one_step():
    silent = np.full((30, 12, 1000), 1e-9, np.float32)
    out = Augmenter([(BaselineShift((0.1, 0.2), share=0.3), 1.0)])(silent, np.arange(30))
    moved = np.abs(out[:, 6:]) > 1e-6
    assert (np.diff(moved.astype(int), axis=-1).__abs__().sum(-1) <= 2).all()
    assert 0.25 < moved.mean() < 0.35
    assert (np.abs(out[:, 6:][moved]) > 0.0999).all()


def test_turning_keeps_the_dipoles_length_and_scaling_does_not(segments):
    from ecgfast.vcg import DOWER, INDEPENDENT_LEADS

    def length(signal: np.ndarray) -> np.ndarray:
        dipole = np.linalg.pinv(DOWER) @ signal[:, list(INDEPENDENT_LEADS)]
        return np.linalg.norm(dipole, axis=1)

    millivolts = segments / 1000
    turned = Augmenter([(TurnDipole(angle=60, scale=1), 1.0)])(segments, IDS)
    np.testing.assert_allclose(length(turned), length(millivolts), atol=1e-5)
    scaled = Augmenter([(TurnDipole(angle=0, scale=1.5), 1.0)])(segments, IDS)
    ratio = length(scaled).max(1) / length(millivolts).max(1)
    assert ((ratio > 1 / 1.5) & (ratio < 1.5)).all()
    assert np.ptp(ratio) > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PowerlineNoise((0.5, 0.1)), "amplitude: got 0.5 to 0.1"),
        (lambda: PowerlineNoise(frequencies=()), "frequencies: got"),
        (lambda: BaselineWander(frequency=(-1, 1)), "frequency: got -1 to 1"),
        (lambda: BaselineWander(n_tones=0), "n_tones: got 0"),
        (lambda: BaselineShift(share=0), "share: got 0"),
        (lambda: TurnDipole(angle=200), "angle: got 200"),
        (lambda: TurnDipole(scale=0.5), "scale: got 0.5"),
        (lambda: Augmenter([(EmgNoise(), 1.5)]), "got probability 1.5"),
        (lambda: Augmenter([], threads=0), "threads: got 0"),
        (lambda: Augmenter([], seed=-1), "seed: got -1"),
        (lambda: Augmenter([])(np.zeros((2, 3, 4)), np.arange(2)), "signal: got shape"),
        (lambda: Augmenter([])(np.zeros((2, 12, 4)), np.arange(3)), "sample_ids: got int64"),
        (lambda: Augmenter([])(np.zeros((2, 12, 4), int), np.arange(2)), "signal: got int64"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(EcgfastError, match=message):
        make()
