"""Pre-training objectives."""

from ecgfast.objectives.base import Losses, Metric, Objective, ObjectiveConfig, Panel, Views
from ecgfast.objectives.registry import OBJECTIVES, objective_class, objective_config
from ecgfast.objectives.w2v_cmsc import CMSC, W2V, W2VCMSC, CMSCConfig, W2VCMSCConfig, W2VConfig

__all__ = [
    "CMSC",
    "OBJECTIVES",
    "W2V",
    "W2VCMSC",
    "CMSCConfig",
    "Losses",
    "Metric",
    "Objective",
    "ObjectiveConfig",
    "Panel",
    "Views",
    "W2VCMSCConfig",
    "W2VConfig",
    "objective_class",
    "objective_config",
]
