"""Inputs as real records and trained or collapsed models make them, and a bar for what kernels make of them.

Random normal inputs hide cancellation: they are neither correlated nor offset, and their norms are all alike.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import ecgfast
from ecgfast import ops
from tests.ops.helpers import generator

SEEDS = (0, 1, 2)
NOTHING = 1e-30  # below it terms of a softmax in fp32 are 0, or denormal numbers
# Gradients that are sums of terms which cancel entirely are held to what a rounding of a similarity in fp32,
# cosine / temperature, does to the terms: of the upstream gradient over the temperature and the rows' length.
CANCELLED = 2.0**-25
# Whole tensors, relative to what is wanted: within this factor of the fp32 reference's error, or of what one
# rounding of the result makes.
FACTOR = 3.0
ROUNDING = {
    torch.float32: 2.0**-23,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}


def _normal(shape: Sequence[int], g: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=g, dtype=torch.float64)


def _correlated(shape: Sequence[int], g: torch.Generator) -> Tensor:
    return _normal((*shape[:-2], 1, shape[-1]), g) + 1e-3 * _normal(shape, g)


def _near_duplicates(shape: Sequence[int], g: torch.Generator) -> Tensor:
    rows = _normal((*shape[:-2], 3, shape[-1]), g)
    chosen = torch.randint(0, 3, (shape[-2],), generator=g)
    return rows[..., chosen, :] + 1e-5 * _normal(shape, g)


def _duplicates(shape: Sequence[int], g: torch.Generator) -> Tensor:
    chosen = torch.randint(0, max(shape[-2] // 3, 1), (shape[-2],), generator=g)
    return _normal((*shape[:-2], max(shape[-2] // 3, 1), shape[-1]), g)[..., chosen, :]


def _all_equal(shape: Sequence[int], g: torch.Generator) -> Tensor:
    return _normal((*shape[:-2], 1, shape[-1]), g).expand(shape).clone()


def _outlier_feature(shape: Sequence[int], g: torch.Generator) -> Tensor:
    x = _normal(shape, g)
    x[..., 0] = 300 + x[..., 0]
    return x


def _mixed_norms(shape: Sequence[int], g: torch.Generator) -> Tensor:
    exponents = torch.rand((*shape[:-1], 1), generator=g, dtype=torch.float64) * 6 - 3
    return _normal(shape, g) * 10**exponents


ROWS: dict[str, Callable[[Sequence[int], torch.Generator], Tensor]] = {
    "normal": _normal,
    "correlated": _correlated,
    "near duplicates": _near_duplicates,
    "duplicates": _duplicates,
    "all equal": _all_equal,
    "an outlier feature": _outlier_feature,
    "large norms": lambda shape, g: 1e3 * _normal(shape, g),
    "tiny norms": lambda shape, g: 1e-4 * _normal(shape, g),
    "mixed norms": _mixed_norms,
}


def _few_in_use(shape: Sequence[int], g: torch.Generator) -> Tensor:
    x = _normal(shape, g)
    x[..., :2] += 50
    return x


LOGITS: dict[str, Callable[[Sequence[int], torch.Generator], Tensor]] = {
    "normal": _normal,
    "nearly uniform": lambda shape, g: 1e-3 * _normal(shape, g),
    "one entry in use": lambda shape, g: _normal(shape, g) + 50 * (torch.arange(shape[-1]) == 3),
    "a few in use": _few_in_use,
    "a common offset": lambda shape, g: 1e3 + _normal(shape, g),
    "an offset per row": lambda shape, g: 200 * _normal((*shape[:-1], 1), g) + _normal(shape, g),
    "large": lambda shape, g: 100 * _normal(shape, g),
    "correlated": _correlated,
}


def _steps(shape: Sequence[int], g: torch.Generator) -> Tensor:
    x = 5 + 0.2 * _normal(shape, g)
    x[..., shape[-2] // 2 :, :] = 0
    return x


def _wander(shape: Sequence[int], g: torch.Generator) -> Tensor:
    t = torch.linspace(0, 6, shape[-2], dtype=torch.float64)[:, None]
    return 50 * torch.sin(t) * _normal((*shape[:-2], 1, shape[-1]), g) + 0.1 * _normal(shape, g)


TOKENS: dict[str, Callable[[Sequence[int], torch.Generator], Tensor]] = {
    "normal": _normal,
    "a large offset": lambda shape, g: 1e3 + _normal(shape, g),
    "correlated": _correlated,
    "a step into padding": _steps,
    "wander": _wander,
    "an outlier feature": _outlier_feature,
    "all equal": _all_equal,
    "mixed norms": _mixed_norms,
    "zeros": lambda shape, g: torch.zeros(shape, dtype=torch.float64),
}


def every_isa(function: Callable[[], None]) -> None:
    """Run the function with the kernels of each ISA that this machine has."""
    previous = ecgfast.cpu_isa()
    try:
        for isa in ecgfast.usable_cpu_isas():
            ecgfast.set_cpu_isa(isa)
            function()
    finally:
        ecgfast.set_cpu_isa(previous)


def gradients(function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs and the gradients of the inputs, of one fixed random weighting of the outputs."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = function(*leaves)
    draw = torch.Generator().manual_seed(7)
    weights = [torch.randn(y.shape, generator=draw, dtype=torch.float64).to(y) for y in outputs]
    grads = torch.autograd.grad(outputs, leaves, weights, allow_unused=True)
    return [
        *(y.detach() for y in outputs),
        *(torch.zeros_like(x) if d is None else d for x, d in zip(leaves, grads, strict=True)),
    ]


def worse(name: str, got: Tensor, plain: Tensor, exact: Tensor) -> tuple[float, float]:
    """The squared error of a tensor, and what it is measured by: the reference's in the same dtype."""
    finite = torch.isfinite(plain)  # what overflows in half precision does so in both
    assert torch.isfinite(got[finite]).all(), f"{name}: not finite on {ecgfast.cpu_isa()}"
    got, plain, exact = (x.double()[finite & torch.isfinite(got)] for x in (got, plain, exact))
    return (got - exact).norm().item() ** 2, (plain - exact).norm().item() ** 2


def term(rows: Tensor) -> float:
    """The size that a loss's gradient to rows has before it is multiplied by the inverse temperature."""
    if rows.dim() == 0:
        return 1 / rows.item()
    lengths = rows.double().flatten(0, -2).norm(dim=1)
    return (1 / lengths.clamp(min=1e-8)).norm().item() / len(lengths) ** (0.5 if rows.dim() == 3 else 1)


def never_worse(
    function: Callable[..., tuple[Tensor, ...]],
    make: Callable[[torch.Generator], Sequence[Tensor]],
    dtype: torch.dtype,
    names: Sequence[str],
    seeds: Sequence[int] = SEEDS,
    *,
    sharpness: float = 0.0,
    factor: float = FACTOR,
) -> None:
    """On every ISA the op's results are as near to fp64's as those of its reference in the same dtype.

    ``function`` returns the outputs that have a gradient; ``make`` makes the inputs in fp64. ``names`` are
    those of the outputs and of the inputs' gradients. Errors are those of all seeds together. ``sharpness``
    is the inverse temperature of a loss of cosines.
    """
    cases = []
    for seed in seeds:
        inputs = [x.to(dtype) if x.dtype == torch.float64 else x for x in make(generator(seed))]
        with ops.use_reference():
            exact = gradients(function, [x.double() for x in inputs])
            plain = gradients(function, inputs)
        cases.append((inputs, exact, plain))

    def check() -> None:
        results = [gradients(function, inputs) for inputs, _, _ in cases]
        failures = []
        for i, name in enumerate(names):
            error = allowed = 0.0
            for (_, exact, plain), got in zip(cases, results, strict=True):
                mine, reference = worse(name, got[i], plain[i], exact[i])
                rounding = ROUNDING[got[i].dtype] * exact[i].nan_to_num(0, 0, 0).norm().item()
                if sharpness and i > 0:
                    rounding = max(rounding, CANCELLED * sharpness**2 * term(inputs[i - 1]))
                error += mine
                allowed += max(reference, rounding**2, NOTHING**2)
            if error > factor**2 * allowed:
                failures.append(f"{name}: {(error / allowed) ** 0.5:.1f} times the reference")
        assert not failures, f"{ecgfast.cpu_isa()}: " + "; ".join(failures)

    every_isa(check)
