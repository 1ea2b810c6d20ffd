"""Convolutional position embedding."""

import math

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from ecgfast import ops


class PositionalConv(nn.Module):
    """Position embedding by a grouped convolution, weight-normalised for each kernel position."""

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        conv = nn.Conv1d(width, width, kernel, groups=groups)
        nn.init.normal_(conv.weight, std=math.sqrt(4 / (kernel * width)))
        nn.init.zeros_(conv.bias)
        self.conv = weight_norm(conv, dim=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, E] -> [B, N, E]."""
        return ops.positional_conv(x, self.conv.weight, self.conv.bias, self.conv.groups)
