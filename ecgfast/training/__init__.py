"""Configurations and training loops."""

from ecgfast.training.config import PRESETS, OptimConfig, PretrainConfig
from ecgfast.training.exporting import export
from ecgfast.training.metrics import read_metrics, summarize_run
from ecgfast.training.pretraining import Interrupted, pretrain

__all__ = [
    "PRESETS",
    "Interrupted",
    "OptimConfig",
    "PretrainConfig",
    "export",
    "pretrain",
    "read_metrics",
    "summarize_run",
]
