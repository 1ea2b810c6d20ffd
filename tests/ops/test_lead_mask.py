"""Random lead masking: the kernel's bits are the reference's, and they mean what they say."""

import pytest
import torch

import ecgfast
from ecgfast.ops import lead_mask, lead_mask_reference, make_rng


@pytest.mark.parametrize("n_leads", [1, 3, 4, 8, 12, 15])
@pytest.mark.parametrize("batch", [0, 1, 7, 130])
@pytest.mark.parametrize("keep_one", [False, True])
def test_kernel_equals_reference(n_leads, batch, keep_one):
    ids = torch.arange(batch) * 2**33 + 5
    for p in (0.0, 0.3, 0.5, 0.9999, 1.0):
        rng = make_rng(11, 3)
        got = lead_mask(ids, n_leads, p, rng, keep_one=keep_one)
        assert got.dtype == torch.bool
        assert torch.equal(got, lead_mask_reference(ids, n_leads, p, rng, keep_one=keep_one))


@pytest.mark.parametrize("isa", ecgfast.usable_cpu_isas())
def test_every_isa(isa):
    previous, rng, ids = ecgfast.cpu_isa(), make_rng(4, 7), torch.arange(300) * 2**31
    try:
        ecgfast.set_cpu_isa(isa)
        for n_leads in (1, 12, 1500):
            got = lead_mask(ids, n_leads, 0.5, rng, keep_one=True)
            assert torch.equal(got, lead_mask_reference(ids, n_leads, 0.5, rng, keep_one=True))
    finally:
        ecgfast.set_cpu_isa(previous)


@pytest.mark.cuda
@pytest.mark.parametrize("n_leads", [1, 12, 131])
@pytest.mark.parametrize("keep_one", [False, True])
def test_cuda_gives_the_bits_of_the_cpu(n_leads, keep_one):
    ids, rng = torch.arange(130) * 2**33 + 5, make_rng(11, 3)
    for p in (0.0, 0.5, 1.0):
        got = lead_mask(ids.cuda(), n_leads, p, rng.cuda(), keep_one=keep_one)
        assert got.is_cuda
        assert torch.equal(got.cpu(), lead_mask(ids, n_leads, p, rng, keep_one=keep_one))


def test_extreme_probabilities():
    ids, rng = torch.arange(64), make_rng(0)
    assert lead_mask(ids, 12, 0.0, rng).all()
    assert not lead_mask(ids, 12, 1.0, rng).any()
    kept = lead_mask(ids, 12, 1.0, rng, keep_one=True)
    assert (kept.sum(1) == 1).all()
    assert len(kept.long().argmax(1).unique()) == 12


def test_leads_are_masked_at_the_rate_asked_for():
    keep = lead_mask(torch.arange(20000), 12, 0.3, make_rng(4))
    assert torch.allclose(keep.float().mean(0), torch.full((12,), 0.7), atol=0.015)


def test_a_segment_draws_the_same_in_any_batch():
    rng = make_rng(9, 100)
    whole = lead_mask(torch.arange(50), 12, 0.5, rng)
    part = lead_mask(torch.tensor([41, 7]), 12, 0.5, rng)
    assert torch.equal(part, whole[[41, 7]])
    assert not torch.equal(whole, lead_mask(torch.arange(50), 12, 0.5, make_rng(9, 101)))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"p": 1.5}, r"lead_mask: p must lie in \[0, 1\], got 1.5"),
        ({"n_leads": 0}, "lead_mask: n_leads must be at least 1, got 0"),
        ({"rng": torch.zeros(3, dtype=torch.int64)}, r"lead_mask: rng must have shape .*got \[3\]"),
        ({"sample_ids": torch.zeros(2, 2, dtype=torch.int64)}, "lead_mask: sample_ids must have"),
        ({"sample_ids": torch.zeros(2)}, "lead_mask: sample_ids must be int64, int32, .*, got .* float32"),
    ],
)
def test_bad_input(kwargs, message):
    args = {"sample_ids": torch.arange(4), "n_leads": 12, "p": 0.5, "rng": make_rng(0)} | kwargs
    for function in (lead_mask, lead_mask_reference):
        with pytest.raises((ValueError, TypeError), match=message):
            function(**args)
