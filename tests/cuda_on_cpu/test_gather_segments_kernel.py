"""The kernel that crops segments, emulated: the bits of the reference."""

import ctypes

import pytest
import torch
from torch import Tensor

from ecgfast.ops import gather_segments_reference
from tests.cuda_on_cpu.harness import SCHEDULES, Driver

DTYPES = (torch.int16, torch.float32, torch.bfloat16, torch.float16, torch.float64)  # as SignalType
RECORDINGS = (70, 2500, 33, 17000)  # samples per lead


class Segments(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_void_p) for n in ("store", "offset", "start", "n_samples", "lead_index")),
        *((n, ctypes.c_int64) for n in ("n_values", "batch", "leads", "length")),
    )


@pytest.fixture(scope="module")
def kernel() -> Driver:
    return Driver("gather_segments")


@pytest.fixture(scope="module")
def store() -> tuple[Tensor, Tensor, Tensor]:
    n_samples = torch.tensor(RECORDINGS)
    draw = torch.Generator().manual_seed(1)
    values = torch.randint(-(2**15), 2**15, (12 * sum(RECORDINGS),), generator=draw, dtype=torch.int16)
    return values, 12 * (n_samples.cumsum(0) - n_samples), n_samples


def gather(kernel: Driver, values, offset, start, n_samples, length, leads, dtype, shift=0) -> Tensor:
    """Into memory that begins `shift` values after a multiple of 16 bytes, and was NaN."""
    index = None if leads is None else torch.tensor(leads, dtype=torch.int64)
    shape = (len(offset), 12 if leads is None else len(leads), length)
    size = shape[0] * shape[1] * shape[2]
    memory = torch.full((size + shift,), -7 if dtype == torch.int16 else torch.nan, dtype=dtype)
    tensors = (values, offset, start, n_samples, index)
    pointers = (None if t is None else t.data_ptr() for t in tensors)
    args = Segments(*pointers, values.numel(), *shape)
    kernel.call(
        "gather_segments", ctypes.byref(args), DTYPES.index(dtype), ctypes.c_void_p(memory[shift:].data_ptr())
    )
    return memory[shift:].view(shape)


@pytest.mark.parametrize("shift", [0, 1, 4])
@pytest.mark.parametrize("leads", [None, [5, -1, 11]], ids=["all", "some"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference(kernel, store, dtype, leads, shift):
    values, offsets, all_samples = store
    for order, length in zip(SCHEDULES, (1, 33, 40), strict=True):
        kernel.schedule(order)
        which = torch.tensor([r for r in (1, 0, 1, 2, 1) if RECORDINGS[r] >= length])
        offset, n_samples = offsets[which], all_samples[which]
        start = torch.tensor([8, 0, 4, 0, 2457])[: len(which)].clamp(max=n_samples - length)
        got = gather(kernel, values, offset, start, n_samples, length, leads, dtype, shift)
        index = None if leads is None else torch.tensor(leads)
        want = gather_segments_reference(
            values, offset, start, n_samples, length, lead_index=index, dtype=dtype
        )
        assert torch.equal(got, want)


@pytest.mark.parametrize("start", [0, 3])
def test_long_segments_come_in_chunks(kernel, store, start):
    values, offset, n_samples = (t[-1:] if t.numel() == 4 else t for t in store)
    first = torch.tensor([start])
    got = gather(kernel, values, offset, first, n_samples, 16500, [0, 11], torch.float32)
    want = gather_segments_reference(
        values, offset, first, n_samples, 16500, lead_index=torch.tensor([0, 11])
    )
    assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("which", "value"),
    [
        ("offset", -1),
        ("offset", 12 * sum(RECORDINGS) - 5),
        ("start", -1),
        ("start", 2491),
        ("n_samples", 9),
        ("n_samples", 2**62),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_segment_outside_is_nan(kernel, store, dtype, which, value):
    values, offset, n_samples = store[0], store[1][[1, 1]], store[2][[1, 1]]
    numbers = {"offset": offset, "start": torch.tensor([5, 5]), "n_samples": n_samples}
    numbers = {name: t.clone() for name, t in numbers.items()}
    numbers[which][1] = value
    got = gather(kernel, values, *numbers.values(), 10, [0, -1], dtype)
    want = gather_segments_reference(
        values,
        offset[:1],
        torch.tensor([5]),
        n_samples[:1],
        10,
        lead_index=torch.tensor([0, -1]),
        dtype=dtype,
    )
    assert torch.equal(got[:1], want)
    assert (got[1] == -(2**15)).all() if dtype == torch.int16 else got[1].isnan().all()


@pytest.mark.parametrize("lead", [-2, 12, 2**40])
def test_a_lead_that_there_is_none_of_is_nan(kernel, store, lead):
    values, offset, n_samples = store[0], store[1][:1], store[2][:1]
    got = gather(kernel, values, offset, torch.tensor([0]), n_samples, 10, [3, lead], torch.float32)
    assert got[0, 0].isfinite().all()
    assert got[0, 1].isnan().all()


@pytest.mark.parametrize("shape", [(0, [0], 5), (1, [], 5), (1, [0], 0)], ids=str)
def test_empty(kernel, store, shape):
    batch, leads, length = shape
    values, offset, n_samples = store[0], store[1][:batch], store[2][:batch]
    got = gather(kernel, values, offset, torch.zeros_like(offset), n_samples, length, leads, torch.float32)
    assert got.shape == (batch, len(leads), length)
