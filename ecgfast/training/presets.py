"""Presets of pre-training: functions that return a whole configuration for an objective."""

from ecgfast.nn import EncoderConfig
from ecgfast.objectives.registry import DEFAULT, objective_config
from ecgfast.training.config import OptimConfig, PretrainConfig


def demo(objective: str = DEFAULT) -> PretrainConfig:
    """Minutes on two CPU cores.

    Besides its size it differs from the paper in what slows the first minutes down: it has no dropout, the
    stem's full gradient, few codes and a higher learning rate.
    """
    encoder = EncoderConfig(
        stem_channels=64,
        width=64,
        layers=2,
        heads=4,
        ffn=128,
        dropout=0.0,
        attention_dropout=0.0,
        dropout_input=0.0,
        feature_grad_mult=1.0,
    )
    return PretrainConfig(
        objective=objective,
        model=objective_config(objective, "demo", encoder),
        optim=OptimConfig(lr=1e-3, warmup_steps=20),
        batch_pairs=8,
        accumulation=1,
        epochs=1000,
        max_steps=800,
        log_every=20,
        checkpoint_every=100,
    )


def small(objective: str = DEFAULT) -> PretrainConfig:
    """Hours on one GPU."""
    encoder = EncoderConfig(width=256, layers=4, heads=4, ffn=1024)
    return PretrainConfig(
        objective=objective,
        model=objective_config(objective, "small", encoder),
        optim=OptimConfig(lr=2e-4, warmup_steps=200),
        batch_pairs=32,
        accumulation=1,
        epochs=50,
    )


def paper(objective: str = DEFAULT) -> PretrainConfig:
    """The paper's, for four GPUs."""
    return PretrainConfig(objective=objective, model=objective_config(objective, "paper", EncoderConfig()))


PRESETS = {"demo": demo, "small": small, "paper": paper}
"""The presets by name."""
