"""What the op tests share: tolerances per dtype and a comparison of values and gradients."""

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# Relative to the largest magnitude of the fp64 reference. Half precisions round their outputs once.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
}


def generator(seed: int) -> torch.Generator:
    """A seeded generator; the seed shows in pytest's output of a failing test."""
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)


def assert_close(got: Tensor, want: Tensor, tolerance: float, name: str, floor: float = 1e-30) -> None:
    """The largest difference, relative to the largest magnitude wanted (or ``floor``), is in tolerance."""
    assert got.shape == want.shape, f"{name}: shape {list(got.shape)}, want {list(want.shape)}"
    if want.numel() == 0:
        return
    got, want = got.detach().double(), want.detach().double()
    finite = torch.isfinite(want)
    assert torch.equal(torch.isfinite(got), finite), f"{name}: non-finite values elsewhere"
    error = (got - want)[finite].abs().max().item() if finite.any() else 0.0
    scale = max(want[finite].abs().max().item(), floor) if finite.any() else 1.0
    assert error <= tolerance * scale, f"{name}: error {error:.3e} at scale {scale:.3e}"


def strided(x: Tensor) -> Tensor:
    """The same values and gradient leaf, seen through strides that are not contiguous."""
    if x.dim() < 2:
        return torch.stack([x, x], dim=-1)[..., 0]
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def on_cuda(*values: object) -> tuple[object, ...]:
    """The tensors among the values on the current CUDA device; the others as they are."""
    return tuple(v.cuda() if isinstance(v, Tensor) else v for v in values)
