"""Pre-training objectives."""

from ecgfast.objectives.w2v_cmsc import (
    W2VCMSC,
    Draws,
    Intermediates,
    PretrainOutput,
    W2VCMSCConfig,
)

__all__ = ["W2VCMSC", "Draws", "Intermediates", "PretrainOutput", "W2VCMSCConfig"]
