"""Fine-tuning an encoder on labels, numbers or identities, and predicting with it."""

from ecgfast.evaluation import Split
from ecgfast.finetuning.classifier import Classifier, ClassifierConfig, LabelledBatch
from ecgfast.finetuning.config import FinetuneConfig, read_config, recipe_config
from ecgfast.finetuning.exporting import export
from ecgfast.finetuning.finetune import finetune, summarize
from ecgfast.finetuning.parts import read_parts
from ecgfast.finetuning.predicting import predict_store, write_predictions
from ecgfast.finetuning.targets import Targets, choose_data, column_targets, label_targets

__all__ = [
    "Classifier",
    "ClassifierConfig",
    "FinetuneConfig",
    "LabelledBatch",
    "Split",
    "Targets",
    "choose_data",
    "column_targets",
    "export",
    "finetune",
    "label_targets",
    "predict_store",
    "read_config",
    "read_parts",
    "recipe_config",
    "summarize",
    "write_predictions",
]
