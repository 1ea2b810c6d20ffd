"""The local contrastive kernels, emulated, against NumPy in float64."""

import ctypes
from dataclasses import dataclass, field

import numpy as np
import pytest

from tests.cuda_on_cpu.harness import SCHEDULES, TF32, Driver
from tests.cuda_on_cpu.local_contrastive_numpy import (
    Expected,
    draw_negatives,
    expected,
    philox4x32_10,
)

SEED, STEP = 0x1234_5678_9ABC_DEF0, 77
DTYPES = {"float32": 0, "bfloat16": 1, "float16": 2}
# Relative to the norm of the tensor. The similarities are exact products summed in fp32 for all dtypes;
# gradients are rounded to the dtype at the end, after weights rounded to tf32 for the 16-bit ones.
GRAD_TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-3, "float16": 6e-4}


class Problem(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_void_p) for n in ("predictions", "targets", "codes", "negative_index")),
        ("index_is_64", ctypes.c_bool),
        ("use_all", ctypes.c_bool),
        ("rng", ctypes.c_void_p),
        ("sample_ids", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        *((n, ctypes.c_int) for n in ("tokens", "width", "groups", "draws")),
        ("inv_temperature", ctypes.c_float),
        ("temperature", ctypes.c_void_p),
    )


class Result(ctypes.Structure):
    _fields_ = tuple((n, ctypes.c_void_p) for n in ("loss", "correct", "lse", "inv_norms"))


class Gradients(ctypes.Structure):
    _fields_ = tuple((n, ctypes.c_void_p) for n in ("predictions", "targets", "moments"))


class Saved(ctypes.Structure):
    _fields_ = tuple((n, ctypes.c_void_p) for n in ("grad_loss", "lse", "inv_norms"))


def narrow(x: np.ndarray, dtype: str) -> np.ndarray:
    """To the dtype's bits, to nearest even."""
    if dtype != "bfloat16":
        return x.astype(dtype)
    u = x.astype(np.float32).view(np.uint32)
    return ((u + 0x7FFF + (u >> 16 & 1)) >> 16).astype(np.uint16)


def widen(x: np.ndarray) -> np.ndarray:
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32)


@dataclass
class Case:
    """Inputs of the op, as the kernels get them."""

    dtype: str
    predictions: np.ndarray
    targets: np.ndarray
    grad_loss: np.ndarray
    codes: np.ndarray | None = None
    index: np.ndarray | None = None
    use_all: bool = False
    n_draws: int = 0
    tau: float = 0.1
    rng: np.ndarray = field(default_factory=lambda: np.array([SEED, STEP]))
    sample_ids: np.ndarray | None = None

    def draws(self, b: int) -> np.ndarray:
        m = self.predictions.shape[1]
        if self.use_all:
            return np.array([[j for j in range(m) if j != i] for i in range(m)]).reshape(m, -1).astype(int)
        if self.index is not None:
            return self.index[b]
        return draw_negatives(SEED, STEP, int(self.sample_ids[b]), m, self.n_draws)

    def expected(self, b: int) -> Expected:
        codes = None if self.codes is None else self.codes[b]
        p, t = widen(self.predictions[b]), widen(self.targets[b])
        return expected(p, t, self.draws(b), codes, self.grad_loss[b].astype(float), self.tau)


def make_case(b, m, d, dtype="float32", *, draws="drawn", k=100, codes=True, seed=0) -> Case:
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.1, 10, (2, b, m, 1))  # norms apart
    p, t = rng.standard_normal((2, b, m, d)) * scale
    t = t + 2 * p * rng.uniform(0, 1, (b, m, 1))  # some tokens are right
    for first in range(0, m - 3, 5):  # targets that coincide, a few
        t[:, first + 3] = t[:, first]
    case = Case(dtype, narrow(p, dtype), narrow(t, dtype), rng.standard_normal((b, m)).astype(np.float32))
    if codes:
        case.codes = rng.integers(0, max(2, m // 4), (b, m, 2)).astype(np.int32)
    if draws == "all":
        case.use_all = True
    elif draws.startswith("int"):
        case.index = rng.integers(0, m, (b, m, k)).astype(draws)
    else:
        case.n_draws = k
        case.sample_ids = rng.integers(0, 2**55, b)
    return case


def address(x: np.ndarray | None) -> int | None:
    return None if x is None else x.ctypes.data


class Kernels:
    def __init__(self) -> None:
        self.driver = Driver("local_contrastive")

    def run(
        self, case: Case, order: str = "fwd", *, tf32: bool = False, learnable: bool = False
    ) -> dict[str, np.ndarray]:
        """Forward and backward; outputs start as NaN, so what is not written shows."""
        b, m, d = case.predictions.shape
        out = {n: np.full((b, m), np.nan, np.float32) for n in ("loss", "lse")}
        out["correct"] = np.full((b, m), 7, np.uint8)
        out["inv_norms"] = np.full((2, b, m), np.nan, np.float32)
        for n in ("grad_predictions", "grad_targets"):
            out[n] = narrow(np.full((b, m, d), np.nan), case.dtype)
        tensor = np.array(case.tau, np.float32)
        moments = np.full((b, m), np.nan, np.float32)
        problem = Problem(
            address(case.predictions),
            address(case.targets),
            address(case.codes),
            address(case.index),
            case.index is not None and case.index.dtype == np.int64,
            case.use_all,
            address(case.rng),
            address(case.sample_ids),
            b,
            m,
            d,
            0 if case.codes is None else case.codes.shape[2],
            case.n_draws if case.index is None else case.index.shape[2],
            *((7.0, address(tensor)) if learnable else (1 / case.tau, None)),
        )
        dtype = TF32 if tf32 else DTYPES[case.dtype]
        self.driver.schedule(order)
        result = Result(*(address(out[n]) for n in ("loss", "correct", "lse", "inv_norms")))
        self.driver.call("forward", ctypes.byref(problem), dtype, ctypes.byref(result))
        saved = Saved(address(case.grad_loss), address(out["lse"]), address(out["inv_norms"]))
        grads = Gradients(
            *(address(out[n]) for n in ("grad_predictions", "grad_targets")),
            address(moments) if learnable else None,
        )
        self.driver.call("backward", ctypes.byref(problem), dtype, ctypes.byref(saved), ctypes.byref(grads))
        return {**out, "moments": moments} if learnable else out


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels()


def relative(got: np.ndarray, want: np.ndarray) -> float:
    norm = np.linalg.norm(want)
    return float(np.linalg.norm(got - want) / norm) if norm else float(np.abs(got).max(initial=0))


def check(out: dict[str, np.ndarray], case: Case) -> None:
    for b in range(len(case.predictions)):
        want = case.expected(b)
        np.testing.assert_allclose(out["loss"][b], want.loss, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(out["lse"][b], want.lse, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(out["inv_norms"][:, b], want.inv_norms, rtol=1e-6)
        sure = want.margin > 1e-4
        np.testing.assert_array_equal(out["correct"][b][sure], want.correct[sure])
        assert set(np.unique(out["correct"][b])) <= {0, 1}
        for name in ("grad_predictions", "grad_targets"):
            got = widen(out[name][b])
            assert np.isfinite(got).all(), name
            assert relative(got, getattr(want, name)) < GRAD_TOLERANCE[case.dtype], name


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_philox_in_numpy_gives_random123s_known_answer():
    counter = np.array([[0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]], np.uint32)
    words = philox4x32_10(counter, (0xA4093822, 0x299F31D0))[0]
    assert [f"{w:08x}" for w in words] == ["d16cfe09", "94fdcceb", "5001e420", "24126ea1"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [
        (0, 5, 8),
        (2, 1, 16),
        (3, 2, 7),
        (2, 33, 32),
        (1, 62, 100),
        (1, 62, 256),
        (1, 130, 40),
        (1, 20, 301),
        (1, 18, 320),
    ],
    ids=str,
)
def test_shapes(kernels, shape, dtype):
    case = make_case(*shape, dtype)
    check(kernels.run(case), case)


@pytest.mark.parametrize("codes", [True, False], ids=["codes", "vectors"])
@pytest.mark.parametrize("draws", ["drawn", "int32", "int64", "all"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_draws_and_exclusion(kernels, dtype, draws, codes):
    case = make_case(2, 34, 24, dtype, draws=draws, k=40, codes=codes)
    check(kernels.run(case), case)


def test_several_tiles_compare_vectors_across_tiles(kernels):
    case = make_case(1, 100, 16, codes=False, k=60)
    case.targets[0, 90] = case.targets[0, 10]
    case.targets[0, 75] = case.targets[0, 5]
    check(kernels.run(case), case)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(2, 40, 72), (1, 70, 136)], ids=str)
def test_every_schedule_gives_the_same_bits(kernels, shape, dtype):
    case = make_case(*shape, dtype, codes=False)
    outputs = [kernels.run(case, order) for order in SCHEDULES]
    check(outputs[0], case)
    for other in outputs[1:]:
        assert_same(outputs[0], other)


@pytest.mark.parametrize("codes", [True, False], ids=["codes", "vectors"])
@pytest.mark.parametrize("shape", [(2, 40, 72), (1, 70, 136), (1, 20, 301)], ids=str)
def test_tf32(kernels, shape, codes):
    case = make_case(*shape, codes=codes)
    precise = kernels.run(case)
    outputs = [kernels.run(case, order, tf32=True) for order in SCHEDULES]
    for other in outputs[1:]:
        assert_same(outputs[0], other)
    out = outputs[0]
    np.testing.assert_array_equal(out["inv_norms"], precise["inv_norms"])
    for b in range(shape[0]):
        want = case.expected(b)
        np.testing.assert_allclose(out["loss"][b], want.loss, rtol=1e-3, atol=1e-3 / case.tau)
        for name in ("grad_predictions", "grad_targets"):
            assert 2e-5 < relative(out[name][b], getattr(want, name)) < 3e-3, name
            assert relative(precise[name][b], getattr(want, name)) < 1e-5, name


def test_drawn_negatives_are_the_documented_stream(kernels):
    """Given the stream's draws as indices, the result is the same to the last bit."""
    case = make_case(2, 37, 16, k=25)
    drawn = kernels.run(case)
    case.index = np.stack([case.draws(b) for b in range(2)])
    assert_same(drawn, kernels.run(case))


def test_unaligned_rows_give_the_same_as_aligned_ones(kernels):
    case = make_case(1, 20, 64, "bfloat16")
    aligned = kernels.run(case)
    storage = np.zeros(case.predictions.size + 1, np.uint16)
    storage[1:] = case.predictions.reshape(-1)
    case.predictions = storage[1:].reshape(case.predictions.shape)
    assert_same(aligned, kernels.run(case))


def test_no_draws_cost_nothing_and_are_not_correct(kernels):
    case = make_case(1, 6, 8, draws="int32", k=0)
    out = kernels.run(case)
    assert not out["loss"].any()
    assert not out["correct"].any()
    for name in ("grad_predictions", "grad_targets"):
        np.testing.assert_allclose(out[name], 0, atol=1e-6)


def test_a_token_whose_draws_are_all_excluded_is_correct(kernels):
    case = make_case(1, 6, 8)
    case.codes[:] = 3
    out = kernels.run(case)
    assert not out["loss"].any()
    assert out["correct"].all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])  # float16 holds no gradients 1e8 apart
def test_zero_vectors(kernels, dtype):
    """A zero vector has cosine 0 with all; it gets no gradient."""
    case = make_case(1, 12, 16, dtype, codes=False, k=30)
    case.predictions[0, 3] = 0
    case.targets[0, 5] = 0
    case.targets[0, 8] = 0  # equal to token 5's
    out, want = kernels.run(case), case.expected(0)
    np.testing.assert_allclose(out["loss"][0], want.loss, rtol=1e-5, atol=1e-5)
    for name in ("grad_predictions", "grad_targets"):
        got, full = widen(out[name][0]), getattr(want, name)
        zero = out["inv_norms"][0 if "predictions" in name else 1, 0] == 1e8
        assert zero.any()
        assert not got[zero].any()
        assert relative(got[~zero], full[~zero]) < GRAD_TOLERANCE[dtype], name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tau", [0.02, 0.1, 3.0])
def test_a_temperature_on_the_device(kernels, dtype, tau):
    case = make_case(2, 70, 40, dtype, k=50)
    case.tau = tau
    out = kernels.run(case, learnable=True)
    check(out, case)
    for b in range(2):
        np.testing.assert_allclose(out["moments"][b], case.expected(b).moments, rtol=1e-3, atol=1e-5 / tau)
    assert_same(out, kernels.run(case, "rev", learnable=True))


@pytest.mark.parametrize("tau", [0.0, -0.1, float("nan")])
def test_a_temperature_on_the_device_that_is_not_positive_shows(kernels, tau):
    case = make_case(1, 9, 16)
    case.tau = tau
    assert np.isnan(kernels.run(case, learnable=True)["loss"]).all()


@pytest.mark.parametrize("tau", [1e-3, 10.0])
def test_temperatures(kernels, tau):
    case = make_case(1, 33, 16, k=50)
    case.tau = tau
    out, want = kernels.run(case), case.expected(0)
    np.testing.assert_allclose(out["loss"][0], want.loss, rtol=1e-5, atol=1e-6 / tau)


def test_an_index_that_is_no_token_makes_that_loss_nan(kernels):
    case = make_case(1, 70, 16, draws="int64", k=5)
    case.index[0, 4, 2] = 70
    case.index[0, 66, 0] = -1
    out = kernels.run(case)
    bad = np.isin(np.arange(70), [4, 66])
    np.testing.assert_array_equal(np.isnan(out["loss"][0]), bad)
