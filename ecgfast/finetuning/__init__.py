"""Fine-tuning an encoder on labels or numbers, and predicting with it."""

from ecgfast.finetuning.classifier import Classifier, ClassifierConfig, LabelledBatch
from ecgfast.finetuning.config import FinetuneConfig, read_config
from ecgfast.finetuning.finetune import finetune, summarize
from ecgfast.finetuning.predicting import predict_store, write_predictions
from ecgfast.finetuning.targets import (
    Split,
    Targets,
    column_targets,
    label_targets,
    split_by_fold,
    split_by_patient,
)

__all__ = [
    "Classifier",
    "ClassifierConfig",
    "FinetuneConfig",
    "LabelledBatch",
    "Split",
    "Targets",
    "column_targets",
    "finetune",
    "label_targets",
    "predict_store",
    "read_config",
    "split_by_fold",
    "split_by_patient",
    "summarize",
    "write_predictions",
]
