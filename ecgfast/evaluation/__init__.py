"""What evaluation computes: scores with confidence intervals, targets, parts, and the protocols people
compare by.

Needs no model: scores, labels, embeddings and patients are NumPy arrays.
"""

from ecgfast.evaluation.bootstrap import Bootstrap, Estimate
from ecgfast.evaluation.challenge import ChallengeWeights, challenge_score
from ecgfast.evaluation.classification import (
    ClassificationReport,
    ClassScores,
    average_by_recording,
    classification_report,
    tune_thresholds,
)
from ecgfast.evaluation.comparison import Comparison, compare_classifiers
from ecgfast.evaluation.identification import IdentificationReport, identification_report
from ecgfast.evaluation.labels import (
    LabelTable,
    MultiLabel,
    Numbers,
    describe_left_out,
    store_labels,
    store_numbers,
)
from ecgfast.evaluation.lead_sets import LEAD_SETS
from ecgfast.evaluation.protocols import PROTOCOLS, Prepared, Protocol, Recipe, find_protocol
from ecgfast.evaluation.ptbxl import Statements
from ecgfast.evaluation.regression import RegressionReport, regression_report
from ecgfast.evaluation.segments import (
    ByIdentity,
    BySegment,
    GalleryProbe,
    IdentitySplit,
    Segments,
    SegmentSplit,
    gallery_probe,
)
from ecgfast.evaluation.splits import (
    ByFolds,
    ByFoldsOrPatient,
    ByPatient,
    HoldOut,
    LastFolds,
    Split,
    check_patients,
    take_share,
)

__all__ = [
    "LEAD_SETS",
    "PROTOCOLS",
    "Bootstrap",
    "ByFolds",
    "ByFoldsOrPatient",
    "ByIdentity",
    "ByPatient",
    "BySegment",
    "ChallengeWeights",
    "ClassScores",
    "ClassificationReport",
    "Comparison",
    "Estimate",
    "GalleryProbe",
    "HoldOut",
    "IdentificationReport",
    "IdentitySplit",
    "LabelTable",
    "LastFolds",
    "MultiLabel",
    "Numbers",
    "Prepared",
    "Protocol",
    "Recipe",
    "RegressionReport",
    "SegmentSplit",
    "Segments",
    "Split",
    "Statements",
    "average_by_recording",
    "challenge_score",
    "check_patients",
    "classification_report",
    "compare_classifiers",
    "describe_left_out",
    "find_protocol",
    "gallery_probe",
    "identification_report",
    "regression_report",
    "store_labels",
    "store_numbers",
    "take_share",
    "tune_thresholds",
]
