"""The ops with products on the inputs of the benchmarks against the reference in float64: no worse than the
reference in the inputs' own dtype."""

import pytest
import torch
from torch import Tensor

from ecgfast import ops
from ecgfast.benchmarking.cases import CASES, flatten, merge_sizes, variants_of

# A kernel may sum in another order than the reference, and round where the reference's parts do.
WORSE = 3
FLOOR = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
# Of the others, tests of their own compare every bit, or follow the choice of an entry.
OPS = ("patch_embed", "positional_conv", "local_contrastive", "global_contrastive")
CPU, CUDA = pytest.param("cpu", True, id="cpu"), ("cuda", False)


def converted(tree: object, dtype: torch.dtype, device: str) -> object:
    """The inputs elsewhere and in another dtype; leaves stay leaves."""
    if isinstance(tree, Tensor):
        to = tree.detach().to(device, dtype if tree.is_floating_point() else None)
        return to.requires_grad_(tree.requires_grad)
    if isinstance(tree, list | tuple):
        return type(tree)(converted(item, dtype, device) for item in tree)
    return tree


def results(op, arguments, dtype, device):
    """Outputs of floating point and the gradients of all leaves, in float64 on the CPU."""
    arguments = converted(arguments, dtype, device)
    outputs = [t for t in flatten(op(*arguments)) if t.is_floating_point()]
    seeded = [torch.Generator().manual_seed(i) for i in range(len(outputs))]
    upstream = [torch.randn(t.shape, generator=g).to(t) for t, g in zip(outputs, seeded, strict=True)]
    wanted = [t for t in flatten(arguments) if t.requires_grad]
    grads = torch.autograd.grad([t for t in outputs if t.requires_grad], wanted, upstream)
    return [t.detach().double().cpu() for t in (*outputs, *grads)]


def error(got: Tensor, want: Tensor) -> float:
    assert torch.isfinite(got).all()
    return ((got - want).norm() / want.norm().clamp_min(1e-30)).item()


@pytest.mark.parametrize(
    ("device", "quick"),
    [CPU, pytest.param(*CUDA, id="cuda", marks=[pytest.mark.cuda, pytest.mark.large])],
)
@pytest.mark.parametrize("dtype", FLOOR, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("name", OPS)
def test_no_worse_than_the_reference(name, dtype, device, quick):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        op = variants_of(name)["ecgfast"]
        sizes = merge_sizes(name, None, quick, device)
        inputs = CASES[name].inputs(sizes, torch.float32, torch.Generator().manual_seed(0))
        inputs = converted(inputs, dtype, "cpu")  # rounded once, for all
        got = results(op, inputs, dtype, device)
        with ops.use_reference():
            plain = results(op, inputs, dtype, device)
            want = results(op, inputs, torch.float64, device)
    finally:
        torch.set_float32_matmul_precision(before)
    for i, (mine, its, target) in enumerate(zip(got, plain, want, strict=True)):
        bound = max(WORSE * error(its, target), FLOOR[dtype])
        assert error(mine, target) <= bound, f"result {i}: {error(mine, target):.1e}, bound {bound:.1e}"
