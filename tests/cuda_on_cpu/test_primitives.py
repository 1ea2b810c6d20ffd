"""The emulated primitives: fragment layouts against the tables of the PTX ISA, collectives against NumPy."""

import ctypes

import numpy as np
import pytest

from tests.cuda_on_cpu.harness import SCHEDULES, Driver

LANES = np.arange(32)
GROUP, MEMBER = LANES // 4, LANES % 4  # "groupID" and "threadID_in_group" of the PTX ISA


@pytest.fixture(scope="module")
def primitives() -> Driver:
    return Driver("primitives")


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return array.ctypes.data_as(ctypes.c_void_p)


# PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": element i of a lane's fragment.
def a_16x16(i):
    row = np.where((0 <= i < 2) or (4 <= i < 6), GROUP, GROUP + 8)
    return row, MEMBER * 2 + (i & 1) + (8 if i >= 4 else 0)


def b_16x8(i):
    return MEMBER * 2 + (i & 1) + (8 if i >= 2 else 0), GROUP


# The same, "for mma.m16n8k8" with .tf32.
def a_16x8(i):
    return np.where(i in (0, 2), GROUP, GROUP + 8), np.where(i in (0, 1), MEMBER, MEMBER + 4)


def b_8x8(i):
    return np.where(i == 0, MEMBER, MEMBER + 4), GROUP


def c_16x8(i):
    return np.where(i < 2, GROUP, GROUP + 8), MEMBER * 2 + (i & 1)


def fragments(matrix: np.ndarray, place, per_lane: int) -> np.ndarray:
    """[32, per_lane]: what each lane holds of the matrix."""
    return np.ascontiguousarray(np.stack([matrix[place(i)] for i in range(per_lane)], axis=1))


def test_the_tables_cover_each_element_once():
    for place, per_lane, shape in [
        (a_16x16, 8, (16, 16)),
        (b_16x8, 4, (16, 8)),
        (a_16x8, 4, (16, 8)),
        (b_8x8, 2, (8, 8)),
        (c_16x8, 4, (16, 8)),
    ]:
        seen = np.zeros(shape, int)
        for i in range(per_lane):
            np.add.at(seen, place(i), 1)
        assert (seen == 1).all()


def _bits16(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16)
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("order", SCHEDULES)
@pytest.mark.parametrize("kind", ["bf16", "f16", "tf32"])
def test_mma(primitives, kind, order):
    primitives.schedule(order)
    rng = np.random.default_rng(0)
    depth = 8 if kind == "tf32" else 16
    a, b = rng.integers(-8, 9, (16, depth)) / 4, rng.integers(-8, 9, (depth, 8)) / 4  # exact in all types
    c = rng.integers(-8, 9, (16, 8)).astype(np.float32)
    if kind == "tf32":
        # The hardware doesn't look at the lower 13 bits.
        a_words = fragments(a.astype(np.float32).view(np.uint32), a_16x8, 4) | np.uint32(0x1FFF)
        b_words = fragments(b.astype(np.float32).view(np.uint32), b_8x8, 2) | np.uint32(0x1FFF)
    else:  # element i is in register i / 2, even elements in the lower half
        a_words = fragments(_bits16(a, kind), a_16x16, 8).view(np.uint32)
        b_words = fragments(_bits16(b, kind), b_16x8, 4).view(np.uint32)
    out = fragments(c, c_16x8, 4)
    primitives.call(f"mma_{kind}", pointer(a_words), pointer(b_words), pointer(out))
    np.testing.assert_array_equal(out, fragments((a @ b + c).astype(np.float32), c_16x8, 4))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("order", SCHEDULES)
def test_ldmatrix(primitives, order, transposed):
    """Lanes 8 m to 8 m + 7 name the rows of matrix m; a lane gets elements 2 * member, + 1 of row `group`,
    or of column `group`.
    """
    primitives.schedule(order)
    memory = np.random.default_rng(1).integers(0, 2**16, (64, 8)).astype(np.uint16)
    rows = np.random.default_rng(2).permutation(64)[:32]
    words = np.zeros((32, 4), np.uint32)
    offsets = (rows * 16).astype(np.int32)
    primitives.call("ldmatrix", pointer(memory), pointer(offsets), transposed, pointer(words))
    for m in range(4):
        matrix = memory[rows[8 * m : 8 * m + 8]]
        matrix = matrix.T if transposed else matrix
        expected = np.stack([matrix[GROUP, MEMBER * 2], matrix[GROUP, MEMBER * 2 + 1]], axis=1)
        np.testing.assert_array_equal(words.view(np.uint16).reshape(32, 4, 2)[:, m], expected)


def test_transpose_8x8(primitives):
    matrix = np.random.default_rng(4).integers(0, 2**16, (8, 8)).astype(np.uint16)
    words = matrix.copy().view(np.uint32).reshape(32)  # row `group`, elements 2 * member, + 1
    primitives.call("transpose", pointer(words))
    np.testing.assert_array_equal(words.view(np.uint16).reshape(8, 8), matrix.T)


def test_to_tf32_rounds_to_nearest_ties_away(primitives):
    x = np.array([1, 1 + 2**-11, 1 + 3 * 2**-11, -1 - 2**-11, 1 + 2**-12, 3e38, np.inf], np.float32)
    y = np.zeros(len(x), np.uint32)
    primitives.call("to_tf32", pointer(x), pointer(y), len(x))
    expected = np.array([1, 1 + 2**-10, 1 + 2**-9, -1 - 2**-10, 1, 3e38, np.inf], np.float32)
    np.testing.assert_array_equal(y.view(np.float32)[:5], expected[:5])
    np.testing.assert_allclose(y.view(np.float32)[5:], expected[5:], rtol=2**-11)
    assert not (y & 0x1FFF).any()


@pytest.mark.parametrize("order", SCHEDULES)
def test_warp_operations(primitives, order):
    primitives.schedule(order)
    x = np.random.default_rng(3).integers(-100, 100, 32).astype(np.int32)
    out = np.zeros((32, 9), np.int32)
    primitives.call("warp_operations", pointer(x), pointer(out))
    half = LANES % 16
    ballot = np.uint32(sum(1 << int(lane) for lane in LANES[x > 0]))
    pairs = np.where(LANES < 6, LANES ^ 1, LANES)
    expected = [
        np.full(32, x[5]),
        x[LANES // 8 * 8 + 5],
        x[LANES ^ 6],
        x[np.where(half + 3 < 16, LANES + 3, LANES) % 32],
        x[np.where(half >= 3, LANES - 3, LANES)],
        np.full(32, ballot).view(np.int32),
        np.full(32, 2),
        np.full(32, x.sum()),
        np.where(LANES < 7, x[pairs], 0),
    ]
    np.testing.assert_array_equal(out.T, np.stack(expected))


@pytest.mark.parametrize("order", SCHEDULES)
def test_block_operations(primitives, order):
    primitives.schedule(order)
    votes, sums = np.zeros(3, np.int32), np.array([0, -1, 1000, 0], np.int32)
    primitives.call("block_operations", pointer(votes), pointer(sums))
    assert votes.tolist() == [1, 0, 42]
    assert sums.tolist() == [4950, 99, 0, 255]
