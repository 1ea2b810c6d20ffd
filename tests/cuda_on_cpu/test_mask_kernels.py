"""The lead and span mask kernels, emulated: the bits of the references."""

import ctypes

import pytest
import torch
from torch import Tensor

from ecgfast.ops import lead_mask_reference, make_rng, span_mask_reference
from tests.cuda_on_cpu.harness import SCHEDULES, Driver

RNG = make_rng(0x1234_5678_9ABC_DEF0, 77)


class LeadMask(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_void_p) for n in ("rng", "sample_ids")),
        *((n, ctypes.c_int64) for n in ("batch", "leads")),
        ("threshold", ctypes.c_uint64),
        ("keep_one", ctypes.c_bool),
    )


class SpanMask(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_void_p) for n in ("rng", "sample_ids", "lengths")),
        ("batch", ctypes.c_int64),
        ("tokens", ctypes.c_int),
        ("length", ctypes.c_int64),
        ("prob", ctypes.c_double),
    )


@pytest.fixture(scope="module")
def masks() -> Driver:
    return Driver("masks")


def address(t: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if t is None else t.data_ptr())


def sample_ids(batch: int) -> Tensor:
    return torch.arange(batch) * 2**35 + 3


def as_bool(written: Tensor) -> Tensor:
    """What a kernel wrote over bytes that are no bool."""
    assert ((written == 0) | (written == 1)).all()
    return written.bool()


def draw_leads(masks: Driver, batch: int, leads: int, p: float, keep_one: bool) -> Tensor:
    ids, keep = sample_ids(batch), torch.full((batch, leads), 7, dtype=torch.uint8)
    args = LeadMask(address(RNG), address(ids), batch, leads, int(p * 2**32), keep_one)
    masks.call("lead_mask", ctypes.byref(args), address(keep))
    return as_bool(keep)


@pytest.mark.parametrize("order", SCHEDULES)
@pytest.mark.parametrize("leads", [1, 3, 4, 12, 15, 131])
def test_lead_mask(masks, leads, order):
    masks.schedule(order)
    for batch in (0, 1, 5):
        for keep_one in (False, True):
            for p in (0.0, 0.5, 0.97, 1.0):
                want = lead_mask_reference(sample_ids(batch), leads, p, RNG, keep_one=keep_one)
                assert torch.equal(draw_leads(masks, batch, leads, p, keep_one), want)


def draw_spans(masks, batch, n_tokens, prob, length, lengths, n_masked) -> tuple[Tensor, Tensor]:
    ids = sample_ids(batch)
    args = SpanMask(address(RNG), address(ids), address(lengths), batch, n_tokens, length, prob)
    if n_masked is None:
        covered = torch.full((batch,), -1, dtype=torch.int32)
        masks.call("span_mask_count", ctypes.byref(args), address(covered))
        n_masked = int(covered.min())
    index = torch.full((batch, n_masked), -1, dtype=torch.int32)
    mask = torch.full((batch, n_tokens), 7, dtype=torch.uint8)
    masks.call("span_mask", ctypes.byref(args), n_masked, address(index), address(mask))
    return index, as_bool(mask)


def compare_spans(masks, batch, n_tokens, prob, length, padded, n_masked):
    lengths = (torch.arange(batch) * 37 + n_tokens // 2) % (n_tokens + 3) - 1 if padded else None
    index, mask = draw_spans(masks, batch, n_tokens, prob, length, lengths, n_masked)
    want_index, want_mask = span_mask_reference(
        sample_ids(batch), n_tokens, prob, length, RNG, lengths=lengths, n_masked=n_masked
    )
    assert torch.equal(index, want_index)
    assert torch.equal(mask, want_mask)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("length", [1, 4, 10])
@pytest.mark.parametrize("n_tokens", [1, 2, 31, 33])
def test_small_span_masks(masks, n_tokens, length, padded):
    masks.schedule("fwd")
    for n_masked in (None, 1, max(1, n_tokens // 3), n_tokens):
        for prob in (0.0, 0.65, 1.0):
            compare_spans(masks, 5, n_tokens, prob, length, padded, n_masked)


@pytest.mark.parametrize("order", SCHEDULES)
@pytest.mark.parametrize("n_masked", [None, 62, 140])
def test_the_papers_span_mask(masks, n_masked, order):
    masks.schedule(order)
    compare_spans(masks, 3, 156, 0.65, 10, False, n_masked)
    compare_spans(masks, 2, 156, 0.65, 10, True, n_masked)


@pytest.mark.parametrize("order", SCHEDULES)
def test_more_tokens_than_threads(masks, order):
    masks.schedule(order)
    compare_spans(masks, 1, 300, 0.3, 7, False, 90)
    compare_spans(masks, 2, 300, 0.5, 400, True, 290)


def test_an_empty_batch_is_no_launch(masks):
    index, mask = draw_spans(masks, 0, 31, 0.65, 4, None, 14)
    assert index.shape == (0, 14)
    assert mask.shape == (0, 31)


def test_too_many_tokens_are_refused_at_launch(masks):
    with pytest.raises(RuntimeError, match="launch"):
        draw_spans(masks, 1, 5000, 0.65, 10, None, 100)
