"""What the contrastive losses share: vectors of length 1, and the temperature that divides their cosines."""

import torch
from torch import Tensor

from ecgfast.ops._dispatch import scalar, wide

_EPS = 1e-8  # of a norm: what is no longer counts as zero and gets no gradient


def unit(x: Tensor, *, detach_norm: bool = False) -> Tensor:
    """``x / max(|x|, 1e-8)`` along the last dimension; no gradient to vectors no longer than that."""
    length = x.detach().norm(dim=-1, keepdim=True)
    x = torch.where(length <= _EPS, x.detach(), x)
    x = torch.where(length.isinf(), x * 2.0**-70, x)  # so that the squares don't overflow
    norm = x.norm(dim=-1, keepdim=True).clamp(min=_EPS)
    return x / (norm.detach() if detach_norm else norm)


def split_temperature(temperature: float | Tensor, like: Tensor) -> tuple[float, Tensor | None]:
    """The number and the tensor of a loss's temperature that the kernels take; the tensor wins."""
    if isinstance(temperature, Tensor):
        return 1.0, temperature.to(wide(like.dtype))
    if torch.compiler.is_compiling():
        return 1.0, scalar(temperature, wide(like.dtype), like.device)
    return temperature, None


def temperature_gradient(moments: Tensor, temperature: Tensor | None) -> Tensor | None:
    """From the sum of the cosines times the gradients to them."""
    if temperature is None:
        return None
    return -(moments.sum(dtype=torch.float64) / temperature).to(temperature.dtype)
