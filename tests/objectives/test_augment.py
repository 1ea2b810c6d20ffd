"""Views drawn on the device: against the same noises in NumPy, and what their draws depend on."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ecgfast import ops
from ecgfast.data import BaselineShift, BaselineWander, EmgNoise, PowerlineNoise
from ecgfast.leads import STANDARD_LEADS
from ecgfast.objectives.augment import (
    NoiseConfig,
    TurnDraws,
    add_noise,
    draw_noise,
    draw_turn,
    in_millivolts,
    lead_system,
    present_leads,
    turn_dipole,
    turn_matrix,
    zero_parts,
)
from ecgfast.ops.random import Purpose, normal_from_words, uniform_from_words, words
from ecgfast.vcg import DOWER, TWELVE_FROM_INDEPENDENT
from tests.objectives.plain import EIGHT, plain_turned

SYSTEM = lead_system(STANDARD_LEADS)
IDS = torch.arange(4) + 2**33
T = 500


def make_signal(rows: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    """Whose leads follow from eight."""
    eight = torch.randn(rows, 8, T, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return torch.from_numpy(TWELVE_FROM_INDEPENDENT).to(dtype) @ eight


def noisy(signal: Tensor, config: NoiseConfig, step: int = 0, ids: Tensor = IDS) -> Tensor:
    draws = draw_noise(ops.make_rng(3, step), ids, signal.shape[2], config)
    return add_noise(signal, draws, SYSTEM.mix(signal))


class Given:
    """A NumPy generator whose draws, in their order, are these."""

    def __init__(self, *values):
        self.values = [np.asarray(value, dtype=float) for value in values]

    def _next(self, *_, **__):
        return self.values.pop(0)

    uniform = normal = standard_normal = choice = _next

    def integers(self, *_, **__):
        return int(self.values.pop(0))


def alone(name: str) -> NoiseConfig:
    noises = ("mains", "muscle", "wander", "shift")
    return NoiseConfig(amplitude=0.3, **{noise: float(noise == name) for noise in noises})


@pytest.mark.parametrize("name", ["mains", "muscle", "wander", "shift"])
def test_as_the_noises_in_numpy(name):
    """With the same draws both forms make the same segments."""
    signal = make_signal()
    d = draw_noise(ops.make_rng(3), IDS, T, alone(name))
    ours = add_noise(signal, d, SYSTEM.mix(signal))
    for row in range(4):
        want = signal[row].float().numpy().copy()
        if name == "mains":
            given = Given(d.mains[row], [d.mains_frequency[row] * 500], [d.mains_phase[row]])
            noise = PowerlineNoise()
        elif name == "muscle":
            given, noise = Given(d.muscle_noise[row], d.muscle[row]), EmgNoise()
            given.values[0] = given.values[0].astype(np.float32)
        elif name == "wander":
            # factor of a lead times amplitude of a tone: rank one
            tones = d.wander[row, 0] / d.wander[row, 0, 0]
            given = Given(d.wander[row, :, 0], tones, d.wander_frequency[row] * 500, d.wander_phase[row])
            noise = BaselineWander()
        else:
            steps = d.shift[row]
            share, noise = (float(d.shift_length[row]) + 0.5) / T, BaselineShift()
            given = Given(share, d.shift_start[row], steps.sign(), steps.abs()[0])
        noise(want, 500.0, given)
        assert not given.values
        np.testing.assert_allclose(ours[row].numpy(), want, atol=3e-5)


def test_ranges_of_the_draws():
    ids = torch.arange(2000)
    d = draw_noise(ops.make_rng(0), ids, 100, NoiseConfig(amplitude=0.2, muscle=0.25))
    assert 0.19 < d.mains.max() <= 0.2
    assert d.mains.min() < 0.01
    assert set((d.mains_frequency.unique() * 500).round().tolist()) == {50, 60}
    applied = (d.muscle > 0).all(1)
    assert 0.2 < applied.double().mean() < 0.3
    assert (d.muscle[~applied] == 0).all()
    assert d.wander_frequency.min() * 500 >= 0.01
    assert d.wander_frequency.max() * 500 <= 0.2
    assert set(d.shift.sign().unique().tolist()) == {-1, 1}
    assert 0.19 < d.shift.abs().max() <= 0.2
    assert (d.shift_start >= 0).all()
    assert (d.shift_start + d.shift_length <= 100).all()
    assert 0.18 < d.shift_length.double().mean() / 100 < 0.21
    lengths = torch.full((2000,), 60)
    d = draw_noise(ops.make_rng(0), ids, 100, NoiseConfig(), lengths)
    assert (d.shift_start + d.shift_length).max() == 60


def test_the_official_shift_is_one_less_the_amplitude():
    """FS subtracts: with amplitudes in (0, 0.1), steps in (0.9, 1) or (-1.1, -1) mV."""
    steps = draw_noise(ops.make_rng(0), IDS, 8, NoiseConfig(subtract_shift=True)).shift
    right = draw_noise(ops.make_rng(0), IDS, 8, NoiseConfig()).shift
    torch.testing.assert_close(steps, right.sign() - right.abs())
    assert ((steps > 0.9) & (steps < 1) | (steps > -1.1) & (steps < -1)).all()


def test_normal_draws():
    """Mean, standard deviation, kurtosis, and independence of the two halves that make them."""
    x = normal_from_words(words(ops.make_rng(1), torch.arange(50), Purpose.MUSCLE_NOISE, 8000)).double()
    assert x.shape == (50, 4000)
    assert abs(x.mean()) < 0.01
    assert abs(x.std() - 1) < 0.01
    assert abs((x**4).mean() - 3) < 0.06
    assert abs((x[:, 1:] * x[:, :-1]).mean()) < 0.01
    # the least radius' uniform is 2^-24: sqrt(48 ln 2) = 5.77
    least = normal_from_words(torch.tensor([0, 0]))
    assert float(least) == pytest.approx(math.sqrt(48 * math.log(2)), rel=1e-6)
    assert uniform_from_words(torch.tensor([0, 2**32 - 1])).min() > 0
    assert uniform_from_words(torch.tensor([2**32 - 1])).max() < 1


def test_noise_keeps_the_relations_of_leads_and_the_order_that_they_come_in():
    signal = make_signal()
    out = noisy(signal, NoiseConfig(0.5))
    follow = torch.from_numpy(TWELVE_FROM_INDEPENDENT) @ out[:, list(EIGHT)]
    torch.testing.assert_close(out, follow, atol=1e-6, rtol=0)
    names = ("V3", "aVF", "I")
    some = signal[:, [STANDARD_LEADS.index(name) for name in names]]
    draws = draw_noise(ops.make_rng(3), IDS, T, NoiseConfig(0.5))
    few = add_noise(some, draws, lead_system(names).mix(some))
    torch.testing.assert_close(few, out[:, [STANDARD_LEADS.index(name) for name in names]])
    assert torch.equal(noisy(signal, NoiseConfig(0.0)), signal)


def test_draws_depend_on_seed_step_and_sample_alone():
    signal = make_signal()
    out = noisy(signal, NoiseConfig())
    assert torch.equal(noisy(signal[2:], NoiseConfig(), ids=IDS[2:]), out[2:])
    assert not torch.equal(noisy(signal, NoiseConfig(), step=1), out)
    assert not torch.equal(out[0] - signal[0], out[1] - signal[1])
    a = draw_turn(ops.make_rng(3), IDS, 12, T, angle=45, scale=1.5)
    b = draw_turn(ops.make_rng(3), IDS[1:], 12, T, angle=45, scale=1.5)
    assert all(torch.equal(x[1:], y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("residual", [True, False])
def test_turns_and_zeroed_parts_against_the_plain_form(residual):
    signal = make_signal() + 0.3
    signal[1, 4] = 0  # a limb lead, which gives no dipole
    signal[2, 7] = 0  # V2: this segment is not turned
    draws = draw_turn(ops.make_rng(5), IDS, 12, T, angle=45, scale=1.5)
    present = present_leads(signal)
    turned = turn_dipole(signal, turn_matrix(draws).double(), SYSTEM, residual=residual, present=present)
    out = zero_parts(turned, draws.start, 0.5) * present[..., None]
    want = np.stack([plain_turned(x.numpy(), draws, i, residual=residual) for i, x in enumerate(signal)])
    np.testing.assert_allclose(out.numpy(), want, atol=1e-5)


def test_no_turn_changes_nothing_but_in_the_official_form():
    """At angle 0 and scale 1 the official round trip leaves of eight leads what three dimensions hold."""
    signal = make_signal()
    still = torch.eye(3, dtype=torch.float64).expand(4, 3, 3)
    present = present_leads(signal)
    same = turn_dipole(signal, still, SYSTEM, residual=True, present=present)
    assert torch.equal(same, signal)
    official = turn_dipole(signal, still, SYSTEM, residual=False, present=present)
    assert np.linalg.matrix_rank(official[0].numpy(), tol=1e-6) == 3
    projector = torch.from_numpy(DOWER @ np.linalg.pinv(DOWER))
    torch.testing.assert_close(official[:, list(EIGHT)], projector @ signal[:, list(EIGHT)])


def test_a_turn_by_hand():
    """By 90 degrees about z, then y: x goes to y, which stays; z goes to x. Scales 2, 3, 4 come last."""
    angles = torch.tensor([[90.0, 90.0, 0.0]]).deg2rad()
    matrix = turn_matrix(TurnDraws(angles, torch.tensor([[2.0, 3.0, 4.0]]), torch.zeros(1, 12)))[0]
    x, y, z = torch.eye(3)
    torch.testing.assert_close(matrix @ x, 3 * y, atol=1e-6, rtol=0)
    torch.testing.assert_close(matrix @ z, 2 * x, atol=1e-6, rtol=0)
    # y goes to -x about z, and -x to z about y
    torch.testing.assert_close(matrix @ y, 4 * z, atol=1e-6, rtol=0)


def test_ranges_of_turns():
    draws = draw_turn(ops.make_rng(0), torch.arange(3000), 2, 10, angle=45, scale=1.5)
    degrees = draws.angles.rad2deg()
    assert -45 <= degrees.min() < -44
    assert 44 < degrees.max() <= 45
    assert 1 <= draws.scales.min() < 1.01
    assert 1.49 < draws.scales.max() <= 1.5
    assert set(draws.start.unique().tolist()) == set(range(10))


def test_zeroed_parts_by_hand():
    """Half of six samples from 4 on: 4, 5 and 0; of a segment of four from 1 on: 1 and 2."""
    ones = torch.ones(2, 1, 6)
    out = zero_parts(ones, torch.tensor([[4], [1]]), 0.5, torch.tensor([6, 4]))
    assert out[0, 0].tolist() == [0, 1, 1, 1, 0, 0]
    assert out[1, 0, :4].tolist() == [1, 0, 0, 1]


def test_presence_and_millivolts():
    counts = torch.zeros(2, 3, 8, dtype=torch.int16)
    counts[0, 1, 2], counts[1, 0, 7] = 5, -3
    assert present_leads(counts).tolist() == [[False, True, False], [True, False, False]]
    assert present_leads(counts, torch.tensor([8, 7])).tolist() == [[False, True, False], [False] * 3]
    assert float(in_millivolts(counts)[0, 1, 2]) == pytest.approx(0.005)
    assert in_millivolts(torch.ones(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert in_millivolts(torch.ones(1, dtype=torch.float64)).dtype == torch.float64
