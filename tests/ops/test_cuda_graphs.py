"""Every op on a GPU: captured in a CUDA graph with its gradients, and without a wait for the device."""

import pytest
import torch

from ecgfast import ops
from ecgfast._build import has_kernel
from tests.ops.test_compile import CASES, gradients

pytestmark = pytest.mark.cuda
NAMES = [case.__name__.removeprefix("case_") for case in CASES]


def on_cuda(tree):
    """The inputs on the GPU; leaves stay leaves."""
    return [t.detach().cuda().requires_grad_(t.requires_grad) for t in tree]


def forward_and_backward(function, inputs):
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [*(t.detach() for t in outputs), *gradients(outputs, inputs)]


def prepared(case):
    """A case's function and inputs, after calls that load libraries and fill the allocator's cache."""
    torch.manual_seed(0)
    function, inputs = case(6)
    inputs = on_cuda(inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            forward_and_backward(function, inputs)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    return function, inputs


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_captured_graph_gives_the_same_bits(case):
    function, inputs = prepared(case)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward_and_backward(function, inputs)
    rng = [t for t in inputs if t.dtype == torch.int64 and t.shape == (2,)]
    for seed in (1, 2):
        with torch.no_grad():
            for t in inputs:
                if t.requires_grad:
                    t.normal_(generator=torch.Generator("cuda").manual_seed(seed))
            for state in rng:
                state.copy_(ops.make_rng(7, seed))
        graph.replay()
        want = forward_and_backward(function, inputs)
        for got, expected in zip(captured, want, strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_never_waits_for_the_device(case):
    function, inputs = prepared(case)
    torch.cuda.set_sync_debug_mode("error")
    try:
        forward_and_backward(function, inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", NAMES)
def test_has_a_kernel(name):
    assert has_kernel(name, "cuda")


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_follows_the_current_stream(case):
    """On a side stream an op waits for what was queued there before it, not for anything else."""
    function, inputs = prepared(case)
    want = forward_and_backward(function, inputs)
    late = [t.detach().clone() for t in inputs]
    with torch.no_grad():
        for t in inputs:
            t.zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        with torch.no_grad():
            for t, value in zip(inputs, late, strict=True):
                t.copy_(value)
        got = forward_and_backward(function, inputs)
    stream.synchronize()
    for x, y in zip(got, want, strict=True):
        assert torch.equal(x, y)
