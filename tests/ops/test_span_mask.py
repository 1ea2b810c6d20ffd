"""Span masks: the kernel's bits are the reference's, and the spans are those of the method."""

import pytest
import torch

import ecgfast
from ecgfast.ops import make_rng, span_mask, span_mask_reference


@pytest.mark.parametrize("n_tokens", [1, 2, 11, 31, 156])
@pytest.mark.parametrize("length", [1, 4, 10])
@pytest.mark.parametrize("padded", [False, True])
def test_kernel_equals_reference(n_tokens, length, padded):
    ids = torch.arange(23) * 2**35 + 1
    lengths = (torch.arange(23) * 7) % (n_tokens + 3) if padded else None
    for n_masked in (None, 1, max(1, n_tokens // 3), n_tokens):
        for prob in (0.0, 0.65, 1.0):
            rng = make_rng(17, 5)
            kwargs = {"lengths": lengths, "n_masked": n_masked}
            index, mask = span_mask(ids, n_tokens, prob, length, rng, **kwargs)
            want_index, want_mask = span_mask_reference(ids, n_tokens, prob, length, rng, **kwargs)
            assert torch.equal(index, want_index)
            assert torch.equal(mask, want_mask)
            assert index.dtype == torch.int32
            assert torch.equal(mask.nonzero()[:, 1].view(index.shape), index.long())


@pytest.mark.parametrize("isa", ecgfast.usable_cpu_isas())
def test_every_isa(isa):
    previous, rng, ids = ecgfast.cpu_isa(), make_rng(4, 2**31), torch.arange(150) * 2**31
    lengths = (torch.arange(150) * 5) % 333
    try:
        ecgfast.set_cpu_isa(isa)
        for n_tokens, length in ((63, 70), (64, 1), (65, 10), (331, 65)):
            for n_masked in (None, n_tokens // 2, n_tokens):
                kwargs = {"lengths": lengths, "n_masked": n_masked}
                got = span_mask(ids, n_tokens, 0.65, length, rng, **kwargs)
                want = span_mask_reference(ids, n_tokens, 0.65, length, rng, **kwargs)
                assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))
    finally:
        ecgfast.set_cpu_isa(previous)


def test_same_bits_for_any_thread_count():
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3, 8):
            torch.set_num_threads(n)
            results.append(span_mask(torch.arange(500), 156, 0.65, 10, make_rng(5), n_masked=None))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@pytest.mark.cuda
@pytest.mark.parametrize("n_tokens", [1, 31, 156, 700, 5000])  # the last beyond the kernel
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("share", [None, 0.4, 1.0])
def test_cuda_gives_the_bits_of_the_cpu(n_tokens, padded, share):
    ids, rng = torch.arange(23) * 2**35 + 1, make_rng(17, 5)
    lengths = (torch.arange(23) * 7) % (n_tokens + 3) if padded else None
    n_masked = None if share is None else max(1, int(share * n_tokens))
    want = span_mask(ids, n_tokens, 0.65, 10, rng, lengths=lengths, n_masked=n_masked)
    lengths = None if lengths is None else lengths.cuda()
    got = span_mask(ids.cuda(), n_tokens, 0.65, 10, rng.cuda(), lengths=lengths, n_masked=n_masked)
    for x, y in zip(got, want, strict=True):
        assert x.is_cuda
        assert torch.equal(x.cpu(), y)


def test_empty_batch():
    index, mask = span_mask(torch.arange(0), 31, 0.65, 4, make_rng(0), n_masked=14)
    assert index.shape == (0, 14)
    assert mask.shape == (0, 31)


def test_batch_minimum_is_the_smallest_union():
    rng, ids = make_rng(2), torch.arange(64)
    together, _ = span_mask(ids, 156, 0.65, 10, rng, n_masked=None)
    alone = [span_mask(ids[i : i + 1], 156, 0.65, 10, rng, n_masked=None)[0].shape[1] for i in ids]
    assert together.shape[1] == min(alone)
    # The union of floor(0.65 * 156 / 10 + u) spans, u uniform, drawn without replacement.
    mean = sum(alone) / len(alone)
    assert 70 < mean < 92


def test_uncut_masks_are_unions_of_whole_spans():
    for i in range(40):
        _, mask = span_mask(torch.tensor([i]), 156, 0.65, 10, make_rng(3), n_masked=None)
        edges = torch.diff(torch.nn.functional.pad(mask[0].int(), (1, 1)))
        runs = (edges == -1).nonzero()[:, 0] - (edges == 1).nonzero()[:, 0]
        assert (runs >= 10).all()


def test_a_fixed_count_holds_for_every_row_and_batch_split():
    rng = make_rng(8, 1)
    index, mask = span_mask(torch.arange(200), 156, 0.65, 10, rng, n_masked=62)
    assert (mask.sum(1) == 62).all()
    part, _ = span_mask(torch.tensor([150, 3]), 156, 0.65, 10, rng, n_masked=62)
    assert torch.equal(part, index[[150, 3]])


def test_padding_is_masked_only_when_nothing_else_is_left():
    lengths = torch.tensor([31, 20, 5, 0])
    _, mask = span_mask(torch.arange(4), 31, 0.65, 4, make_rng(1), lengths=lengths, n_masked=12)
    padding = torch.arange(31) >= lengths[:, None]
    assert (mask & padding).sum(1).tolist() == [0, 0, 7, 12]


def test_every_token_is_masked_about_equally_often():
    _, mask = span_mask(torch.arange(4000), 100, 0.5, 5, make_rng(6), n_masked=30)
    rate = mask.float().mean(0)[5:90]
    assert rate.std() < 0.02


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_tokens": 0}, "span_mask: n_tokens must be at least 1, got 0"),
        ({"prob": -0.1}, r"span_mask: prob must lie in \[0, 1\], got -0.1"),
        ({"length": 0}, "span_mask: length must be at least 1, got 0"),
        ({"n_masked": 32}, r"span_mask: n_masked must lie in 1..31 .* got 32"),
        ({"lengths": torch.zeros(3, dtype=torch.int64)}, r"span_mask: lengths must have shape"),
    ],
)
def test_bad_input(kwargs, message):
    args = {
        "sample_ids": torch.arange(4),
        "n_tokens": 31,
        "prob": 0.65,
        "length": 4,
        "rng": make_rng(0),
        "n_masked": 14,
    } | kwargs
    for function in (span_mask, span_mask_reference):
        with pytest.raises((ValueError, TypeError), match=message):
            function(**args)
