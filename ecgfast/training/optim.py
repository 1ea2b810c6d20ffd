"""The optimiser of the recipe and its learning-rate schedule."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ecgfast.training.config import OptimConfig
from ecgfast.training.parallel import total_norm


def make_optimizer(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], config: OptimConfig
) -> torch.optim.AdamW:
    """Adam with decoupled decay of every parameter, as fairseq's `adam` (p *= 1 - decay * lr).

    The fused kernel is used: it exists on CPU and CUDA, and makes one pass over the parameters. Instead of
    parameters there may be groups of them, with a factor `scale` on the learning rate.
    """
    return torch.optim.AdamW(
        parameters,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(step: int, config: OptimConfig, steps: int | None = None) -> float:
    """Learning rate of update `step`, from 0.

    Args:
        step: number of the update.
        config: says how the rate goes; `tri_stage` is that of fairseq (`TriStageLRSchedule`).
        steps: updates of the whole run, for schedules over its length.
    """
    if config.schedule == "constant":
        return config.lr * min(1.0, (step + 1) / (config.warmup_steps + 1))
    if steps is None:
        raise ValueError(f"steps: must be the updates of the run for {config.schedule}, got None")
    if config.schedule == "cosine":
        return config.lr * _cosine(step, config, steps)
    return config.lr * _tri_stage(step, config, steps)


def _cosine(step: int, config: OptimConfig, steps: int) -> float:
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    # The last update, steps - 1, has the final rate.
    gone = min(1.0, (step - config.warmup_steps) / max(steps - 1 - config.warmup_steps, 1))
    return config.final_scale + (1 - config.final_scale) * 0.5 * (1 + math.cos(math.pi * gone))


def _tri_stage(step: int, config: OptimConfig, steps: int) -> float:
    warmup, hold, decay = (int(share * steps) for share in config.stages)
    if step < warmup:
        return config.initial_scale + (1 - config.initial_scale) * step / warmup
    if step < warmup + hold:
        return 1.0
    gone = step - warmup - hold
    return config.final_scale ** (gone / decay) if gone < decay else config.final_scale


def scale_gradients_(gradients: list[Tensor], factor: Tensor, clip_norm: float) -> Tensor:
    """Multiply by `factor` (0-dim, on the device), clip to a total norm of `clip_norm` if positive.

    Returns the total norm before clipping, 0-dim. Nothing waits for the device.
    """
    torch._foreach_mul_(gradients, factor)
    norm = total_norm(gradients)
    if clip_norm > 0:
        torch._foreach_mul_(gradients, (clip_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
