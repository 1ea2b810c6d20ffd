"""The kernels, emulated, on inputs as real records and trained or collapsed models make them.

What they give in full fp32 precision is as near to fp64 as the references in fp32: see hard_inputs.py.
"""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from ecgfast import ops
from tests.cuda_on_cpu import (
    test_global_contrastive_kernel,
    test_gumbel_quantize_kernel,
    test_local_contrastive_kernel,
    test_positional_conv_kernel,
)
from tests.ops.hard_inputs import LOGITS, NOTHING, ROUNDING, ROWS, TOKENS
from tests.ops.helpers import generator

Function = Callable[..., tuple[Tensor, ...]]
# Of one seed, where the tests on the CPU take 3 of several seeds together.
FACTOR = 3.0


def differentiated(function: Function, inputs: Sequence[Tensor], upstream: Sequence[Tensor]) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = function(*leaves)
    grads = torch.autograd.grad(outputs, leaves, [w.to(y) for w, y in zip(upstream, outputs, strict=True)])
    return [*(y.detach() for y in outputs), *grads]


def assert_never_worse(
    got: dict[str, Tensor], function: Function, inputs: Sequence[Tensor], upstream: Sequence[Tensor]
) -> None:
    """``got`` are the outputs and the gradients of the inputs, in the order of the reference's."""
    plain = differentiated(function, inputs, upstream)
    exact = differentiated(function, [x.double() for x in inputs], [w.double() for w in upstream])
    failures = []
    for (name, mine), reference, want in zip(got.items(), plain, exact, strict=True):
        assert torch.isfinite(mine).all(), name
        error = (mine.double() - want).norm().item()
        rounding = ROUNDING[mine.dtype] * want.norm().item()
        allowed = max((reference.double() - want).norm().item(), rounding, NOTHING)
        if error > FACTOR * allowed:
            failures.append(f"{name}: {error / allowed:.1f} times the reference")
    assert not failures, "; ".join(failures)


@pytest.mark.parametrize("aligned", [False, True], ids=["apart", "aligned"])
@pytest.mark.parametrize("kind", ROWS)
def test_local_contrastive(kind, aligned):
    g = generator(1)
    p = ROWS[kind]((1, 70, 40), g).float()
    t = (p + 1e-2 * p.std() * torch.randn(p.shape, generator=g)) if aligned else ROWS[kind]((1, 70, 40), g)
    t = t.float()
    codes, grad = torch.randint(0, 20, (1, 70, 2), generator=g, dtype=torch.int32), torch.randn(1, 70)
    case = test_local_contrastive_kernel.Case("float32", p.numpy(), t.numpy(), grad.numpy(), use_all=True)
    case.codes = codes.numpy()
    out = test_local_contrastive_kernel.Kernels().run(case)
    assert_never_worse(
        {n: torch.from_numpy(out[n]) for n in ("loss", "grad_predictions", "grad_targets")},
        lambda p, t: ops.local_contrastive_reference(p, t, codes=codes, negatives="all")[:1],
        (p, t),
        (grad,),
    )


@pytest.mark.parametrize("aligned", [False, True], ids=["apart", "aligned"])
@pytest.mark.parametrize("detach_norm", [True, False], ids=["detached", "true_norm"])
@pytest.mark.parametrize("kind", ROWS)
def test_global_contrastive(kind, detach_norm, aligned):
    g = generator(1)
    a = ROWS[kind]((70, 40), g).float()
    b = (a + 1e-2 * a.std() * torch.randn(a.shape, generator=g)) if aligned else ROWS[kind]((70, 40), g)
    b, groups = b.float(), torch.arange(70)
    for temperature in (0.1, 0.02):
        case = test_global_contrastive_kernel.Case(a, b, groups, groups, temperature)
        out = test_global_contrastive_kernel.Kernels().run(case, detach_norm)

        def loss(a, b, temperature=temperature):
            settings = {"temperature": temperature, "detach_norm": detach_norm}
            return (ops.global_contrastive_reference(a, b, groups, groups, **settings),)

        grads = dict(zip(("loss", "a", "b"), (out.loss, *out.grads), strict=True))
        assert_never_worse(grads, loss, (a, b), (torch.tensor(case.grad_loss),))


@pytest.mark.parametrize("codebook", ["normal", "all equal", "large norms", "correlated"])
@pytest.mark.parametrize("kind", LOGITS)
def test_gumbel_quantize(kind, codebook):
    g = generator(1)
    logits = torch.cat([LOGITS[kind]((30, 36), g) for _ in range(2)], dim=1).float()
    entries = ROWS[codebook]((2, 36, 24), g).float()
    upstream = torch.randn(30, 48, generator=g), torch.randn(2, 36, generator=g)
    for temperature in (2.0, 0.05):
        case = test_gumbel_quantize_kernel.Case(logits, entries, *upstream, temperature=temperature)
        out = test_gumbel_quantize_kernel.Kernels().run(case)

        def quantize(logits, entries, temperature=temperature):
            quantized, _, probs = ops.gumbel_quantize_reference(logits, entries, temperature)
            return quantized, probs

        names = ("quantized", "mean_probs", "grad_logits", "grad_codebook")
        assert_never_worse({n: out[n] for n in names}, quantize, (logits, entries), upstream)


@pytest.mark.parametrize("kind", TOKENS)
def test_positional_conv(kind):
    g = generator(1)
    x = TOKENS[kind]((1, 60, 32), g).float()
    weight = (torch.randn(32, 16, 24, generator=g) + 0.5) / (16 * 24) ** 0.5
    bias, grad = torch.randn(32, generator=g), torch.randn(1, 60, 32, generator=g)
    out = test_positional_conv_kernel.Kernels().run(x, weight, bias, grad, 2)
    names = ("out", "grad_x", "grad_weight", "grad_bias")
    assert_never_worse(
        {n: out[n] for n in names},
        lambda x, w, b: (ops.positional_conv_reference(x, w, b, 2),),
        (x, weight, bias),
        (grad,),
    )
