"""Convolutional position embedding."""

import math

import torch
from torch import Tensor, nn

from ecgfast import ops
from ecgfast.ops._dispatch import differentiated


class _WeightNorm(nn.Module):
    """A weight as a length for each kernel position and a direction."""

    def __init__(self, weight: Tensor, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.original0 = nn.Parameter(torch.norm_except_dim(weight, 2, dim))
        self.original1 = nn.Parameter(weight)

    def forward(self) -> Tensor:
        if differentiated():
            # torch's own has no forward-mode derivative.
            return self.original1 * (self.original0 / torch.norm_except_dim(self.original1, 2, self.dim))
        return torch._weight_norm(self.original1, self.original0, self.dim)


class _Convolution(nn.Module):
    """The parameters of the convolution, named as ``torch.nn.utils.parametrizations.weight_norm`` names them.

    That function makes a class of its own for every module, which cannot be pickled.
    """

    def __init__(self, weight: Tensor, bias: Tensor, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.bias = nn.Parameter(bias)
        self.parametrizations = nn.ModuleDict({"weight": _WeightNorm(weight, 2)})

    @property
    def weight(self) -> Tensor:
        return self.parametrizations["weight"]()


class PositionalConv(nn.Module):
    """Position embedding by a grouped convolution, weight-normalised for each kernel position."""

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        conv = nn.Conv1d(width, width, kernel, groups=groups)
        nn.init.normal_(conv.weight, std=math.sqrt(4 / (kernel * width)))
        nn.init.zeros_(conv.bias)
        self.conv = _Convolution(conv.weight.detach(), conv.bias.detach(), groups)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, E] -> [B, N, E]."""
        return ops.positional_conv(x, self.conv.weight, self.conv.bias, self.conv.groups)
