"""Settings of an evaluation."""

from dataclasses import dataclass
from pathlib import Path

from ecgfast.assessment.probes import PROBES
from ecgfast.errors import EcgfastError


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What to score a model by, and how."""

    protocol: str | None = None
    """Preset, such as helme:super; its parts, classes and intervals count."""
    labels: Path | None = None
    """CSV table of labels by record_id or patient_id."""
    target: str | None = None
    """labels (of the store, or all columns of the table), a column of the table, or without one the store's
    age; by default what a fine-tuned model tells, else labels."""
    classes: tuple[str, ...] = ()
    """Labels that count, in this order; none: all."""
    leads: tuple[str, ...] = ()
    """Sets of leads: all, 12, 6, 4, 3, 2, 1, or leads with commas (I,II); none: the protocol's, or all."""
    probes: tuple[str, ...] = PROBES
    """What is learnt on the embeddings: linear, knn."""
    label_shares: tuple[float, ...] = ()
    """Shares of the training labels that probes are given; none: the protocol's, or all labels."""
    random: bool = True
    """Tell the encoder with random weights beside."""
    seed: int = 0
    """Of the random encoder, and of parts that are drawn."""
    validation_folds: tuple[int, ...] = ()
    """Folds of the source to choose by."""
    test_folds: tuple[int, ...] = ()
    """Folds of the source to test on; all others train."""
    weights: Path | None = None
    """weights.csv of the challenge score."""
    draws: int | None = None
    """Draws of the confidence intervals; by default the protocol's, or 1,000."""
    segment_samples: int | None = None
    """Samples of a window at 500 Hz; by default the protocol's, or the model's."""
    precision: str = "fp32"
    """fp32 or bf16."""
    batch_size: int | None = None
    """Windows at a time; none: as many as fit."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        if self.protocol is not None and (self.labels or self.target or self.classes):
            raise EcgfastError("protocol: must be without labels, target and classes, which it names itself")
        for name in self.probes:
            if name not in PROBES:
                raise EcgfastError(f"probes: must be of {', '.join(PROBES)}, got {name!r}")
        for share in self.label_shares:
            if not 0 < share <= 1:
                raise EcgfastError(f"label_shares: must be above 0 and at most 1, got {share:g}")
        if self.draws is not None and self.draws < 0:
            raise EcgfastError(f"draws: must be 0 or more, got {self.draws}")
        if self.seed < 0:
            raise EcgfastError(f"seed: must be 0 or more, got {self.seed}")
