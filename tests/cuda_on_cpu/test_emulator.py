"""The emulator must catch what it is for: each kernel of drivers/planted_bugs.cpp has one mistake."""

import ctypes
import subprocess
import sys

import numpy as np
import pytest

from tests.cuda_on_cpu.harness import ROOT, SCHEDULES, UNDER_ASAN, Driver, EmulatorError, asan_environment


@pytest.fixture(scope="module")
def bugs() -> Driver:
    return Driver("planted_bugs")


def _run(bugs: Driver, function: str, n_in: int, *flags: ctypes.c_bool) -> tuple[np.ndarray, ...]:
    values = np.arange(1, n_in + 1, dtype=np.float32)
    out = np.zeros_like(values)
    bugs.call(function, values.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p), *flags)
    return values, out


def _right(bugs: Driver, function: str, n_in: int, *flags: ctypes.c_bool) -> list[bool]:
    right = []
    for order in SCHEDULES:
        bugs.schedule(order)
        values, out = _run(bugs, function, n_in, *flags)
        expected = values.reshape(-1, min(n_in, 128))[:, ::-1].reshape(-1)
        right.append(bool(np.array_equal(out, expected)))
    return right


def test_a_missing_barrier_shows_in_some_schedule(bugs):
    assert all(_right(bugs, "run_reverse", 64, ctypes.c_bool(True)))
    assert not all(_right(bugs, "run_reverse", 64, ctypes.c_bool(False)))


def test_a_missing_wait_for_cp_async_shows_in_every_schedule(bugs):
    assert all(_right(bugs, "run_copy", 128, ctypes.c_bool(True)))
    assert not any(_right(bugs, "run_copy", 128, ctypes.c_bool(False)))


def test_refilling_a_buffer_that_is_still_read_shows(bugs):
    assert not all(_right(bugs, "run_refill", 256))


@pytest.mark.parametrize("order", SCHEDULES)
@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("run_barrier_in_a_branch", "divergent barrier: a thread exited"),
        ("run_two_barriers_for_one", "divergent barrier: some threads at planted_bugs.cpp"),
        ("run_half_warp_shuffle", "the mask names a lane that has exited"),
        ("run_shuffle_from_outside", "which takes no part"),
        ("run_barrier_against_shuffle", "deadlock: 16 threads wait at a barrier"),
        ("run_different_collectives", "lanes came to different operations"),
    ],
)
def test_misuse_is_an_error(bugs, function, message, order):
    bugs.schedule(order)
    out = np.zeros(64, np.float32)
    with pytest.raises(EmulatorError, match=message):
        bugs.call(function, out.ctypes.data_as(ctypes.c_void_p))


def test_shared_memory_is_poisoned_for_every_block(bugs):
    out = np.zeros(64, np.float32)
    at = out.ctypes.data_as(ctypes.c_void_p)
    bugs.schedule("fwd")
    bugs.call("run_read_last_blocks_shared", at)
    assert (out[:32] == 1).all()
    assert np.isnan(out[32:]).all()
    bugs.call("run_read_unwritten_shared", at, ctypes.c_size_t(128))
    assert np.isnan(out[:32]).all()


def test_shared_memory_beyond_what_the_launch_asked_for_is_an_error(bugs):
    out = np.zeros(32, np.float32)
    with pytest.raises(EmulatorError, match="128 bytes used, 112 asked for"):
        bugs.call("run_read_unwritten_shared", out.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(112))


def test_an_unknown_schedule_is_refused(bugs):
    with pytest.raises(EmulatorError, match="takes fwd, rev or rand"):
        bugs.schedule("sideways")


@pytest.mark.skipif(UNDER_ASAN, reason="starts a process under ASan itself")
@pytest.mark.parametrize(("excess", "caught"), [(0, False), (1, True)])
def test_asan_sees_a_write_from_one_shared_array_into_the_next(excess, caught):
    code = (
        "from tests.cuda_on_cpu.harness import Driver\n"
        f"Driver('planted_bugs').call('run_write_beyond_shared', {excess})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=asan_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ("AddressSanitizer: heap-buffer-overflow" in result.stderr) == caught, result.stderr
    assert (result.returncode != 0) == caught
