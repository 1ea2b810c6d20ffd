"""The optimiser of the recipe and its learning-rate schedule."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ecgfast.training.config import OptimConfig
from ecgfast.training.parallel import total_norm


def make_optimizer(parameters: Iterable[nn.Parameter], config: OptimConfig) -> torch.optim.AdamW:
    """Adam with decoupled decay of every parameter, as fairseq's `adam` (p *= 1 - decay * lr).

    The fused kernel is used: it exists on CPU and CUDA, and makes one pass over the parameters.
    """
    return torch.optim.AdamW(
        parameters,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(step: int, config: OptimConfig) -> float:
    """Learning rate of update `step` (from 0): linear warm-up to `lr`, then constant."""
    return config.lr * min(1.0, (step + 1) / (config.warmup_steps + 1))


def scale_gradients_(gradients: list[Tensor], factor: Tensor, clip_norm: float) -> Tensor:
    """Multiply by `factor` (0-dim, on the device), clip to a total norm of `clip_norm` if positive.

    Returns the total norm before clipping, 0-dim. Nothing waits for the device.
    """
    torch._foreach_mul_(gradients, factor)
    norm = total_norm(gradients)
    if clip_norm > 0:
        torch._foreach_mul_(gradients, (clip_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
