"""Counter-based random numbers (Philox4x32-10), in plain PyTorch.

The kernels draw the same bits in ``csrc/common/philox.h``. A draw depends on the seed, the step, the
sample it is for, its purpose and its place, and on nothing else: not on the device, the number of
ranks, the batch a sample is in, or what was drawn before.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import math
from enum import IntEnum

import torch
from torch import Tensor

from ecgfast.ops._dispatch import any_integer

_MASK = 0xFFFFFFFF


class Purpose(IntEnum):
    """What a draw is for; part of the counter, so that no two uses share bits."""

    LEAD_MASK = 1
    SPAN_COUNT = 2
    SPAN_START = 3
    SPAN_CUT = 4
    NEGATIVES = 5
    GUMBEL = 6
    CROP = 7
    AUGMENT = 8
    MUSCLE_NOISE = 9
    LEAD_SPLIT = 10


def make_rng(seed: int, step: int = 0, device: torch.device | str | None = None) -> Tensor:
    """The state that the random ops take: an int64 tensor ``[2]`` of (seed, step).

    Advance it with ``rng[1] += 1``, on its device: no host round trip, and a captured graph advances it
    too. Seeds count modulo 2^64, steps modulo 2^32.

    Raises:
        TypeError: seed or step is not an integer.
    """
    words = (_as_int64("seed", seed), _as_int64("step", step))
    return torch.tensor(words, dtype=torch.int64, device=device)


def _as_int64(name: str, value: int) -> int:
    return (any_integer("make_rng", name, value) + 2**63) % 2**64 - 2**63


def philox4x32(counter: list[Tensor], key0: Tensor, key1: Tensor) -> list[Tensor]:
    """Ten rounds of Philox4x32 on int64 tensors that hold 32-bit words; shapes broadcast."""
    c0, c1, c2, c3 = counter
    for _ in range(10):
        # int64 products wrap modulo 2^64, which leaves all 64 bits right.
        p0 = c0 * 0xD2511F53
        p1 = c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ key0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ key1,
            p0 & _MASK,
        )
        key0 = (key0 + 0x9E3779B9) & _MASK
        key1 = (key1 + 0xBB67AE85) & _MASK
    return [c0, c1, c2, c3]


def words(rng: Tensor, sample_ids: Tensor, purpose: Purpose, n: int) -> Tensor:
    """Elements 0..n-1 of each sample's stream: int64 ``[B, n]`` holding 32-bit words.

    Element ``e`` is word ``e % 4`` of the block with counter
    ``(e // 4, step, sample low word, purpose << 24 | sample bits 32 to 55)`` under the seed as key.
    """
    seed, step = rng[0], rng[1]
    blocks = torch.arange((n + 3) // 4, device=sample_ids.device)[None, :]
    sample = sample_ids.to(torch.int64)[:, None]
    high = ((sample >> 32) & 0x00FFFFFF) | (int(purpose) << 24)
    zero = torch.zeros_like(blocks | sample)
    out = philox4x32(
        [blocks + zero, (step & _MASK) + zero, (sample & _MASK) + zero, high + zero],
        seed & _MASK,
        (seed >> 32) & _MASK,
    )
    return torch.stack(out, dim=-1).flatten(1)[:, :n]


def bounded(word: Tensor, n: int | Tensor) -> Tensor:
    """Uniform integers 0..n-1 from 32-bit words (multiply and shift)."""
    return (word * n) >> 32


def uniform_from_words(word: Tensor) -> Tensor:
    """Uniform fp32 numbers inside (0, 1) from 32-bit words: 23 bits, centred."""
    return ((word >> 9).to(torch.float32) + 0.5) * 2.0**-23


def normal_from_words(word: Tensor) -> Tensor:
    """Standard normal fp32 numbers [..., n] from 32-bit words [..., 2 n] (Box and Muller, 1958).

    The first n words give the radius, the others the angle; numbers are within 5.8, as 23 bits have it.
    """
    radius, angle = uniform_from_words(word).chunk(2, dim=-1)
    return (-2 * radius.log()).sqrt() * torch.cos(2 * math.pi * angle)


def gumbel_from_words(word: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard Gumbel noise from 32-bit words: 23 bits, centred, so that it is always finite."""
    u = ((word >> 9).to(dtype) + 0.5) * 2.0**-23
    return -torch.log(-torch.log(u))
