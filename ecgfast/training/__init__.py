"""Configurations and training loops."""

from ecgfast.training.config import PRESETS, OptimConfig, PretrainConfig
from ecgfast.training.exporting import export
from ecgfast.training.loop import Interrupted, pretrain
from ecgfast.training.metrics import read_metrics, summarize_run

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
