"""ArcFace: identities as directions, and a margin between an embedding and its own one."""

import math

import torch
from torch import Tensor

from ecgfast.errors import EcgfastError


def check_arcface(scale: float, margin: float) -> None:
    """Raise `EcgfastError` unless the scale is positive and the margin an angle from 0 to below pi."""
    for name, value, high in (("arcface_scale", scale, math.inf), ("arcface_margin", margin, math.pi)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value < high or (value == 0 and name == "arcface_scale"):
            taken = "a positive number" if name == "arcface_scale" else "an angle from 0 to below pi"
            raise EcgfastError(f"{name}: must be {taken}, got {value!r}")


def arcface_logits(
    embeddings: Tensor, directions: Tensor, classes: Tensor, *, scale: float, margin: float
) -> tuple[Tensor, Tensor]:
    """Logits of identities, the own one with a margin, and the cosines that they are made of.

    With theta the angle between an embedding and a direction, the logit is scale * cos(theta), but for the
    own identity scale * cos(theta + margin), or, past theta = pi - margin, where that would rise again,
    scale * (cos(theta) - margin * sin(margin)). (Deng et al., CVPR 2019, equation 3; fairseq-signals,
    `arcface.py`.)

    The sine is half the product of the lengths of the difference and of the sum of the two unit vectors:
    sqrt(1 - cos^2) has an infinite gradient at theta = 0 and pi, and few digits near them. Both lengths have
    gradients of at most 1; at 0, where they have a kink, it is 0.

    Args:
        embeddings: [B, D], of any norm but 0.
        directions: [C, D], likewise.
        classes: int64 [B], the own identity of each row, 0 to C - 1.
        scale: positive.
        margin: in radians, from 0 to below pi.

    Returns:
        Logits [B, C] and cosines [B, C], in float32, or float64 of such arguments.
    """
    with torch.autocast(embeddings.device.type, enabled=False):  # a scale of 192 needs the digits
        unit, towards = unit_vectors(embeddings), unit_vectors(directions)
        own = towards[classes]
        cosines = unit @ towards.T
        cos = cosines.gather(1, classes[:, None])[:, 0]
        sin = torch.linalg.vector_norm(unit - own, dim=1) * torch.linalg.vector_norm(unit + own, dim=1) / 2
        near = cos * math.cos(margin) - sin * math.sin(margin)
        own_logit = torch.where(cos > -math.cos(margin), near, cos - margin * math.sin(margin))
        return scale * cosines.scatter(1, classes[:, None], own_logit[:, None]), cosines


def unit_vectors(x: Tensor) -> Tensor:
    """Rows of norm 1, in float32, or float64 of such; zeros stay zeros, with a finite gradient."""
    x = x if x.dtype == torch.float64 else x.float()
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(norm > 0, norm, 1.0)
