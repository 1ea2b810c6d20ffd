"""Configurations and training loops."""

from ecgfast.training.config import OptimConfig, PretrainConfig, read_config
from ecgfast.training.exporting import export
from ecgfast.training.loop import Interrupted
from ecgfast.training.metrics import read_metrics
from ecgfast.training.presets import PRESETS
from ecgfast.training.pretrain import pretrain
from ecgfast.training.reports import summarize_run

__all__ = [
    "PRESETS",
    "Interrupted",
    "OptimConfig",
    "PretrainConfig",
    "export",
    "pretrain",
    "read_config",
    "read_metrics",
    "summarize_run",
]
