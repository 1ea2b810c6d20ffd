"""From samples to features: strided convolutions, each token from its own samples alone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ecgfast import ops
from ecgfast.ops._dispatch import differentiated


class _ScaleGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """`x` itself, with the gradient into it multiplied by `factor`."""
    if factor == 1:
        return x
    if differentiated():
        # The function has no forward-mode derivative: torch.compile takes none that has its own.
        return factor * x + ((1 - factor) * x).detach()
    return _ScaleGradient.apply(x, factor)


class Stem(nn.Module):
    """`layers` x (Conv1d kernel 2, stride 2; GroupNorm over time after the first; GELU).

    The group normalisation has one group per channel and its statistics are over the whole segment, or
    over the samples before its length where lengths are given.
    """

    def __init__(self, n_leads: int, channels: int, layers: int, *, bias: bool = False) -> None:
        super().__init__()
        widths = [n_leads] + [channels] * layers
        self.convs = nn.ModuleList(
            nn.Conv1d(w_in, channels, kernel_size=2, stride=2, bias=bias) for w_in in widths[:-1]
        )
        self.norm = nn.GroupNorm(channels, channels)
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight)

    def forward(
        self,
        signal: Tensor,
        keep: Tensor | None = None,
        channels: Sequence[int] | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Tokens [B, N, C] of the last GELU.

        Args:
            signal: [B, L, T], float millivolts or int16 microvolts.
            keep: [B, L] bool, leads to keep; None keeps all.
            channels: input channel of each of the L leads; None: they are all, in order. An absent
                lead contributes what a lead of zeros would: nothing.
            lengths: [B] integer, samples of each segment: the first of its tokens are those of the
                segment cut to its length. None: all T.
        """
        weights = [conv.weight for conv in self.convs]
        if channels is not None:
            # Slices, not an index: a list of indices would be copied from the host at every step.
            weights[0] = torch.stack([weights[0][:, channel] for channel in channels], dim=1)
        biases = None if self.convs[0].bias is None else [conv.bias for conv in self.convs]
        return ops.patch_embed(
            signal,
            keep,
            weights,
            self.norm.weight,
            self.norm.bias,
            biases=biases,
            eps=self.norm.eps,
            lengths=lengths,
        )
