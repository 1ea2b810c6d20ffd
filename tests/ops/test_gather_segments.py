"""Segments out of a store in memory: kernel against NumPy and the reference."""

import numpy as np
import pytest
import torch

import ecgfast
from ecgfast.ops import gather_segments, gather_segments_reference
from tests.ops.helpers import DTYPES, generator, on_cuda, strided

RECORDINGS = (70, 33, 2500, 1)  # samples per lead


def make_store(seed=0):
    g = generator(seed)
    n_samples = torch.tensor(RECORDINGS)
    store = torch.randint(-(2**15), 2**15, (12 * sum(RECORDINGS),), generator=g, dtype=torch.int16)
    offset = 12 * torch.cat([torch.zeros(1, dtype=torch.int64), n_samples.cumsum(0)[:-1]])
    return store, offset, n_samples


def crop(store, offset, start, n_samples, length, leads):
    out = np.zeros((len(offset), len(leads), length), np.int16)
    for b, (o, s, n) in enumerate(zip(offset, start, n_samples, strict=True)):
        block = store.numpy()[o : o + 12 * n].reshape(12, n)
        for row, lead in enumerate(leads):
            if lead >= 0:
                out[b, row] = block[lead, s : s + length]
    return out


@pytest.mark.parametrize("isa", ecgfast.usable_cpu_isas())
@pytest.mark.parametrize("dtype", [torch.int16, *DTYPES])
@pytest.mark.parametrize("length", [1, 16, 33, 1700])
@pytest.mark.parametrize("leads", [None, [0], [5, -1, 11, 5], []])
def test_kernel_equals_numpy_and_reference(isa, dtype, length, leads):
    store, offset, n_samples = make_store()
    which = torch.tensor([r for r in (2, 1, 0, 2, 3) if RECORDINGS[r] >= length])
    offset, n_samples = offset[which], n_samples[which]
    start = (n_samples - length) * torch.arange(len(which)) // max(len(which) - 1, 1)
    index = None if leads is None else torch.tensor(leads, dtype=torch.int64)
    previous = ecgfast.cpu_isa()
    try:
        ecgfast.set_cpu_isa(isa)
        got = gather_segments(store, offset, start, n_samples, length, lead_index=index, dtype=dtype)
    finally:
        ecgfast.set_cpu_isa(previous)
    arguments = (store, offset, start, n_samples, length)
    want = gather_segments_reference(*arguments, lead_index=index, dtype=dtype)
    assert got.dtype == dtype
    assert torch.equal(got, want)
    raw = crop(store, offset, start, n_samples, length, range(12) if leads is None else leads)
    if dtype == torch.int16:
        np.testing.assert_array_equal(got.numpy(), raw)
    else:
        torch.testing.assert_close(got.double(), torch.from_numpy(raw).double() / 1000, rtol=4e-3, atol=0)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.int16, *DTYPES])
@pytest.mark.parametrize("leads", [None, [5, -1, 11, 5]])
def test_cuda_gives_the_bits_of_the_cpu(dtype, leads):
    store, offset, n_samples = make_store()
    which = torch.tensor([2, 0, 2, 2])
    start = torch.tensor([0, 7, 8, 2420])
    index = None if leads is None else torch.tensor(leads, dtype=torch.int64)
    for length in (1, 33, 63):
        inputs = (store, offset[which], start, n_samples[which], length)
        want = gather_segments(*inputs, lead_index=index, dtype=dtype)
        (cuda_index,) = on_cuda(index)
        got = gather_segments(*on_cuda(*inputs), lead_index=cuda_index, dtype=dtype)
        assert got.is_cuda
        assert torch.equal(got.cpu(), want)


@pytest.mark.cuda
def test_a_segment_outside_is_nan_on_cuda():
    store, offset, n_samples = make_store()
    start = torch.tensor([0, 5, 0, 0])
    got = gather_segments(*on_cuda(store, offset, start, n_samples, 30))
    bad = torch.tensor([False, True, False, True], device="cuda")  # 5 + 30 > 33, 30 > 1
    assert got[bad].isnan().all()
    assert got[~bad].isfinite().all()


def test_strided_indices():
    store, offset, n_samples = make_store()
    start = torch.tensor([1, 2, 3, 0])
    plain = gather_segments(store, offset, start, n_samples, 1)
    assert torch.equal(gather_segments(store, strided(offset), strided(start), strided(n_samples), 1), plain)


def test_empty():
    store, offset, n_samples = make_store()
    none = torch.zeros(0, dtype=torch.int64)
    assert gather_segments(store, none, none, none, 5).shape == (0, 12, 5)
    start = torch.zeros(4, dtype=torch.int64)
    assert gather_segments(store, offset, start, n_samples, 0).shape == (4, 12, 0)


def test_opcheck():
    store, offset, n_samples = make_store()
    op = torch.ops.ecgfast.gather_segments.default
    start = torch.zeros(4, dtype=torch.int64)
    torch.library.opcheck(op, (store, offset, start, n_samples, 1, None, torch.float32))
    torch.library.opcheck(op, (store, offset, start, n_samples, 1, torch.tensor([3, -1]), torch.int16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"offset": -1},
            "segment 1: a recording of 12 x 33 values at offset -1 must lie in the store's 31248 values",
        ),
        ({"offset": 31248 - 12 * 33 + 1}, "segment 1: a recording of 12 x 33 values at offset"),
        ({"n_samples": 2**62}, "segment 1: a recording of 12 x 4611686018427387904 values"),
        ({"start": -1}, "segment 1: start must lie in 0..n_samples - length = 33 - 20, got -1"),
        ({"start": 14}, "segment 1: start must lie in 0..n_samples - length = 33 - 20, got 14"),
        ({"n_samples": 19}, "segment 1: start must lie in 0..n_samples - length = 19 - 20, got 0"),
        ({"lead_index": [0, 12]}, "lead_index must hold -1..11, got 12"),
        ({"lead_index": [-2]}, "lead_index must hold -1..11, got -2"),
    ],
)
def test_out_of_bounds(change, message):
    store, offset, n_samples = make_store()
    arguments = {"offset": offset, "start": torch.zeros(4, dtype=torch.int64), "n_samples": n_samples}
    arguments = {name: t[:3].clone() for name, t in arguments.items()}
    lead_index = torch.tensor(change.pop("lead_index")) if "lead_index" in change else None
    for name, value in change.items():
        arguments[name][1] = value
    with pytest.raises(RuntimeError, match="gather_segments: ") as caught:
        gather_segments(store, length=20, lead_index=lead_index, **arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"store": torch.zeros(60)}, "store must be int16, got .* float32"),
        ({"store": torch.zeros(2, 60).short()}, r"store must have shape \[n_values\], got \[2, 60\]"),
        ({"store": torch.zeros(120).short()[::2]}, "store must be contiguous, got stride 2"),
        ({"start": torch.zeros(3).long()}, r"start must have shape \[2\], got \[3\]"),
        ({"n_samples": torch.zeros(2)}, "n_samples must be int64, int32, .*, got .* float32"),
        ({"length": -1}, "length must not be negative, got -1"),
        ({"lead_index": torch.zeros(2, 2).long()}, r"lead_index must have shape \[L\], got \[2, 2\]"),
        ({"dtype": torch.int32}, "dtype must be int16, float32, .*, got torch.int32"),
    ],
)
def test_bad_input(kwargs, message):
    args = {
        "store": torch.zeros(60).short(),
        "offset": torch.zeros(2).long(),
        "start": torch.zeros(2).long(),
        "n_samples": torch.full((2,), 5),
        "length": 3,
    } | kwargs
    for function in (gather_segments, gather_segments_reference):
        with pytest.raises((ValueError, TypeError), match=f"gather_segments: {message}"):
            function(**args)
