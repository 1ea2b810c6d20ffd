"""PyTorch's precision of fp32 products: what the ops are told, and what CUDA makes of it."""

import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ecgfast import _build, ops
from ecgfast.ops import _dispatch
from tests.ops.helpers import assert_close


@pytest.fixture(autouse=True)
def _precision():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def case_patch_embed():
    weights = [torch.randn(24, c, 2) for c in (12, 24, 24, 24)]
    parameters = (torch.ones(24), torch.zeros(24), *weights)

    def function(signal, *parameters):
        return (ops.patch_embed(signal, None, parameters[2:], *parameters[:2]),)

    return function, (torch.randn(2, 12, 160), *parameters)


def case_positional_conv():
    def function(x, weight, bias):
        return (ops.positional_conv(x, weight, bias, 2),)

    return function, (torch.randn(2, 40, 96), torch.randn(96, 48, 16) / 30, torch.randn(96))


def case_global_contrastive():
    def function(a, b, group):
        return (ops.global_contrastive(a, b, group, group),)

    return function, (torch.randn(70, 64), torch.randn(70, 64), torch.arange(70))


def case_local_contrastive():
    def function(p, t):
        return ops.local_contrastive(p, t, negatives="all")

    return function, (torch.randn(2, 40, 64), torch.randn(2, 40, 64))


def case_gumbel_quantize():
    def function(logits, codebook, rng, ids):
        return ops.gumbel_quantize(logits, codebook, 1.5, rng=rng, sample_ids=ids)

    return function, (torch.randn(64, 2 * 64), torch.randn(2, 64, 32), ops.make_rng(1, 2), torch.arange(4))


CASES = {k.removeprefix("case_"): v for k, v in sorted(globals().items()) if k.startswith("case_")}


def leaves(inputs, device="cpu", dtype=torch.float32):
    """The inputs elsewhere, and as leaves of a graph where they are of floating point."""
    moved = [t.to(device, dtype if t.is_floating_point() else None) for t in inputs]
    return [t.requires_grad_(t.is_floating_point()) for t in moved]


class Flags(TorchDispatchMode):
    """The last arguments, `tf32`, of the ops that run."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "ecgfast":
            self.seen[function._schema.name.removeprefix("ecgfast::")] = args[-1]
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_on_cuda_the_op_is_told(monkeypatch, name, dtype, precision):
    function, inputs = CASES[name]()
    monkeypatch.setattr(_build, "_KERNELS", {**_build._KERNELS, "cuda": _build._OPS})
    torch.set_float32_matmul_precision(precision)
    with FakeTensorMode(), torch.no_grad(), Flags() as flags:
        types = [dtype if t.is_floating_point() else t.dtype for t in inputs]
        on_cuda = [torch.empty(t.shape, dtype=d, device="cuda:0") for t, d in zip(inputs, types, strict=True)]
        function(*on_cuda)
    assert flags.seen == {name: dtype == torch.float32 and precision != "highest"}


@pytest.mark.parametrize("name", CASES)
def test_on_the_cpu_products_are_always_precise(name):
    function, inputs = CASES[name]()
    results = []
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        arguments = leaves(inputs)
        with Flags() as flags:
            outputs = [t for t in function(*arguments) if t.requires_grad]
            wanted = [t for t in arguments if t.requires_grad]
            grads = torch.autograd.grad(outputs, wanted, [torch.ones_like(t) for t in outputs])
        assert flags.seen == {name: False, f"{name}_backward": False}
        results.append((*outputs, *grads))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


@pytest.mark.parametrize("at_forward", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_backward_pass_is_told_what_the_forward_pass_was(monkeypatch, name, at_forward):
    module = sys.modules[f"ecgfast.ops.{name}"]
    function, inputs = CASES[name]()
    with Flags() as flags:
        monkeypatch.setattr(module, "tf32", lambda _: at_forward)
        outputs = [t for t in function(*leaves(inputs)) if t.requires_grad]
        monkeypatch.setattr(module, "tf32", lambda _: not at_forward)
        torch.autograd.backward(outputs, [torch.ones_like(t) for t in outputs])
    assert flags.seen == {name: at_forward, f"{name}_backward": at_forward}


def test_agrees_with_pytorch_and_the_compiler():
    """Under torch.compile without a break, compiled anew when the setting changes."""
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: x + 2 if _dispatch._tf32_allowed() else x + 1, fullgraph=True, backend="aot_eager"
    )
    for precision in ("highest", "high", "medium", "highest"):
        torch.set_float32_matmul_precision(precision)
        allowed = torch.get_float32_matmul_precision() != "highest"
        assert _dispatch._tf32_allowed() == allowed
        assert compiled(torch.zeros(())) == (2 if allowed else 1)


def test_follows_the_setting_of_cuda_products_alone():
    """Which torch.get_float32_matmul_precision() refuses to read."""
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for precision, allowed in (("tf32", True), ("ieee", False)):
            torch.backends.cuda.matmul.fp32_precision = precision
            assert _dispatch._tf32_allowed() == allowed
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def run(function, inputs, precision, later=None, **to):
    """Outputs and gradients; the precision may change before the backward pass."""
    torch.set_float32_matmul_precision(precision)
    arguments = leaves(inputs, **to)
    outputs = [t for t in function(*arguments) if t.requires_grad]
    torch.set_float32_matmul_precision(later or precision)
    draw = torch.Generator().manual_seed(0)
    upstream = [torch.randn(t.shape, generator=draw).to(t) for t in outputs]
    wanted = [t for t in arguments if t.requires_grad]
    return [t.detach().cpu() for t in (*outputs, *torch.autograd.grad(outputs, wanted, upstream))]


@pytest.mark.cuda
@pytest.mark.parametrize("name", CASES)
def test_cuda_follows_the_setting(name):
    torch.manual_seed(0)
    function, inputs = CASES[name]()
    with ops.use_reference():
        want = run(function, inputs, "highest", dtype=torch.float64)
    highest, high, medium, again, kept = (
        run(function, inputs, *precisions, device="cuda")
        for precisions in (("highest",), ("high",), ("medium",), ("highest",), ("highest", "high"))
    )
    for i, target in enumerate(want):
        assert_close(highest[i], target, 2e-5, f"highest {i}")
        assert_close(high[i], target, 4e-3, f"high {i}")
        assert torch.equal(high[i], medium[i])
        assert torch.equal(highest[i], again[i])
        assert torch.equal(highest[i], kept[i])
    assert not all(torch.equal(x, y) for x, y in zip(highest, high, strict=True))


@pytest.mark.cuda
@pytest.mark.parametrize("name", CASES)
def test_cuda_under_the_compiler(name):
    torch._dynamo.reset()
    torch.manual_seed(0)
    function, inputs = CASES[name]()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for precision in ("highest", "high", "highest"):
        got, want = (run(f, inputs, precision, device="cuda") for f in (compiled, function))
        assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))
