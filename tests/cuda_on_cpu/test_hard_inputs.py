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
from tests.ops.hard_inputs import FACTOR, LOGITS, NOTHING, ROUNDING, ROWS, TOKENS
from tests.ops.helpers import generator

Function = Callable[..., tuple[Tensor, ...]]
# Seeds, whose errors are taken together, and rows: more than a tile of the kernels, and fewer.
DRAWN = ((1, 70), (2, 40), (3, 40))


def differentiated(function: Function, inputs: Sequence[Tensor], upstream: Sequence[Tensor]) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = function(*leaves)
    grads = torch.autograd.grad(outputs, leaves, [w.to(y) for w, y in zip(upstream, outputs, strict=True)])
    return [*(y.detach() for y in outputs), *grads]


class Errors:
    """Squared errors of outputs and of inputs' gradients, of several cases together, and the bar for them."""

    def __init__(self) -> None:
        self.mine: dict[str, float] = {}
        self.allowed: dict[str, float] = {}

    def add(
        self, got: dict[str, Tensor], function: Function, inputs: Sequence[Tensor], upstream: Sequence[Tensor]
    ) -> None:
        """``got`` are the outputs and the gradients of the inputs, in the order of the reference's."""
        plain = differentiated(function, inputs, upstream)
        exact = differentiated(function, [x.double() for x in inputs], [w.double() for w in upstream])
        for (name, mine), reference, want in zip(got.items(), plain, exact, strict=True):
            assert torch.isfinite(mine).all(), name
            scale = want.norm().item() or 1.0  # cases count alike
            rounding = ROUNDING[mine.dtype] * scale
            allowed = max((reference.double() - want).norm().item(), rounding, NOTHING)
            error = (mine.double() - want).norm().item()
            self.mine[name] = self.mine.get(name, 0.0) + (error / scale) ** 2
            self.allowed[name] = self.allowed.get(name, 0.0) + (allowed / scale) ** 2

    def check(self) -> None:
        ratios = {name: (self.mine[name] / self.allowed[name]) ** 0.5 for name in self.mine}
        failures = [f"{name}: {r:.1f} times the reference" for name, r in ratios.items() if r > FACTOR]
        assert not failures, "; ".join(failures)


@pytest.mark.parametrize("aligned", [False, True], ids=["apart", "aligned"])
@pytest.mark.parametrize("kind", ROWS)
def test_local_contrastive(kind, aligned):
    errors, kernels = Errors(), test_local_contrastive_kernel.Kernels()
    for seed, m in DRAWN:
        g = generator(seed)
        p = ROWS[kind]((1, m, 40), g).float()
        t = (p + 1e-2 * p.std() * torch.randn(p.shape, generator=g)) if aligned else ROWS[kind]((1, m, 40), g)
        t = t.float()
        codes = torch.randint(0, 20, (1, m, 2), generator=g, dtype=torch.int32)
        grad = torch.randn(1, m, generator=g)
        case = test_local_contrastive_kernel.Case("float32", p.numpy(), t.numpy(), grad.numpy(), use_all=True)
        case.codes = codes.numpy()
        out = kernels.run(case)

        def loss(p, t, codes=codes):
            return ops.local_contrastive_reference(p, t, codes=codes, negatives="all")[:1]

        got = {n: torch.from_numpy(out[n]) for n in ("loss", "grad_predictions", "grad_targets")}
        errors.add(got, loss, (p, t), (grad,))
    errors.check()


@pytest.mark.parametrize("aligned", [False, True], ids=["apart", "aligned"])
@pytest.mark.parametrize("detach_norm", [True, False], ids=["detached", "true_norm"])
@pytest.mark.parametrize("kind", ROWS)
def test_global_contrastive(kind, detach_norm, aligned):
    kernels = test_global_contrastive_kernel.Kernels()
    for temperature in (0.1, 0.02):
        errors = Errors()
        for seed, n in DRAWN:
            g = generator(seed)
            a = ROWS[kind]((n, 40), g).float()
            b = (
                (a + 1e-2 * a.std() * torch.randn(a.shape, generator=g))
                if aligned
                else ROWS[kind]((n, 40), g)
            )
            b, groups = b.float(), torch.arange(n)
            case = test_global_contrastive_kernel.Case(a, b, groups, groups, temperature)
            out = kernels.run(case, detach_norm)

            def loss(a, b, temperature=temperature, groups=groups):
                settings = {"temperature": temperature, "detach_norm": detach_norm}
                return (ops.global_contrastive_reference(a, b, groups, groups, **settings),)

            grads = dict(zip(("loss", "a", "b"), (out.loss, *out.grads), strict=True))
            errors.add(grads, loss, (a, b), (torch.tensor(case.grad_loss),))
        errors.check()


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
        errors = Errors()
        errors.add({n: out[n] for n in names}, quantize, (logits, entries), upstream)
        errors.check()


@pytest.mark.parametrize("kind", TOKENS)
def test_positional_conv(kind):
    g = generator(1)
    x = TOKENS[kind]((1, 60, 32), g).float()
    weight = (torch.randn(32, 16, 24, generator=g) + 0.5) / (16 * 24) ** 0.5
    bias, grad = torch.randn(32, generator=g), torch.randn(1, 60, 32, generator=g)
    out = test_positional_conv_kernel.Kernels().run(x, weight, bias, grad, 2)
    names = ("out", "grad_x", "grad_weight", "grad_bias")
    errors = Errors()
    errors.add(
        {n: out[n] for n in names},
        lambda x, w, b: (ops.positional_conv_reference(x, w, b, 2),),
        (x, weight, bias),
        (grad,),
    )
    errors.check()
