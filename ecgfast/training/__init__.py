"""Configurations and training loops."""

from ecgfast.training.config import PRESETS, OptimConfig, PretrainConfig
from ecgfast.training.metrics import read_metrics, summarize_run
from ecgfast.training.pretraining import Interrupted, pretrain

__all__ = [
    "PRESETS",
    "Interrupted",
    "OptimConfig",
    "PretrainConfig",
    "pretrain",
    "read_metrics",
    "summarize_run",
]
