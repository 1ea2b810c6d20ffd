"""The random stream: Random123's known answers, and that every implementation gives the same bits."""

import numpy as np
import pytest
import torch

from ecgfast import _C
from ecgfast.ops import Purpose, make_rng, philox4x32
from ecgfast.ops.random import bounded, gumbel_from_words, words

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    (
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_known_answers(counter, key, result):
    native = _C.philox4x32_10(np.array([counter], dtype=np.uint32), np.array([key], dtype=np.uint32))
    assert tuple(native[0]) == result
    plain = philox4x32([torch.tensor(c) for c in counter], torch.tensor(key[0]), torch.tensor(key[1]))
    assert tuple(int(w) for w in plain) == result


@pytest.mark.parametrize(
    ("seed", "step", "sample"),
    [(0, 0, 0), (1, 2, 3), (-1, 2**31 + 5, 2**40 + 7), (2**63 - 1, 2**32 - 1, 2**56 - 1)],
)
def test_plain_form_matches_native(seed, step, sample):
    rng = make_rng(seed, step)
    plain = words(rng, torch.tensor([sample]), Purpose.GUMBEL, 37)[0]
    native = _C.stream(seed, step, sample, int(Purpose.GUMBEL), 37)
    assert plain.tolist() == native.tolist()


def test_streams_differ_by_every_part_of_the_counter():
    base = words(make_rng(1, 1), torch.tensor([1]), Purpose.GUMBEL, 64)
    others = [
        words(make_rng(2, 1), torch.tensor([1]), Purpose.GUMBEL, 64),
        words(make_rng(1, 2), torch.tensor([1]), Purpose.GUMBEL, 64),
        words(make_rng(1, 1), torch.tensor([2]), Purpose.GUMBEL, 64),
        words(make_rng(1, 1), torch.tensor([1 + 2**32]), Purpose.GUMBEL, 64),
        words(make_rng(1, 1), torch.tensor([1]), Purpose.NEGATIVES, 64),
    ]
    for other in others:
        assert (base == other).float().mean() < 0.1


def test_bounded_covers_its_range_evenly():
    drawn = bounded(words(make_rng(3), torch.arange(500), Purpose.NEGATIVES, 200), 7).flatten()
    counts = torch.bincount(drawn, minlength=7)
    assert len(counts) == 7
    expected = drawn.numel() / 7
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 22.5  # p = 0.001 at 6 degrees of freedom


def test_gumbel_noise_is_finite_at_the_extremes_and_has_the_right_moments():
    edge = gumbel_from_words(torch.tensor([0, 2**32 - 1]))
    assert torch.isfinite(edge).all()
    noise = gumbel_from_words(words(make_rng(5), torch.arange(1000), Purpose.GUMBEL, 200))
    assert abs(noise.mean() - 0.5772) < 0.01
    assert abs(noise.var() - torch.pi**2 / 6) < 0.03


def test_make_rng_takes_any_seed():
    assert make_rng(2**64 - 1, 7).tolist() == [-1, 7]
    with pytest.raises(ValueError, match="keys"):
        _C.philox4x32_10(np.zeros((1, 4), np.uint32), np.zeros((2, 2), np.uint32))
