"""ecgfast: fused kernels, encoders and training for self-supervised learning on electrocardiograms."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ecgfast._version import __version__

if TYPE_CHECKING:
    from ecgfast import ops
    from ecgfast._build import config, cpu_isa, set_cpu_isa, show_config, usable_cpu_isas
    from ecgfast.assessment import compare, evaluate
    from ecgfast.data import SegmentLoader, Store, prepare
    from ecgfast.embedding import embed_store
    from ecgfast.errors import EcgfastError
    from ecgfast.finetuning import Classifier, FinetuneConfig, finetune
    from ecgfast.leads import STANDARD_LEADS
    from ecgfast.nn import Encoder, EncoderConfig
    from ecgfast.objectives import W2VCMSC, W2VCMSCConfig
    from ecgfast.training import PretrainConfig, pretrain

# Imported when first asked for: torch takes seconds, and `ecgfast --help` needs none of it.
_HOMES = {
    "STANDARD_LEADS": "leads",
    "Classifier": "finetuning",
    "EcgfastError": "errors",
    "Encoder": "nn",
    "EncoderConfig": "nn",
    "FinetuneConfig": "finetuning",
    "PretrainConfig": "training",
    "SegmentLoader": "data",
    "Store": "data",
    "W2VCMSC": "objectives",
    "W2VCMSCConfig": "objectives",
    "compare": "assessment",
    "config": "_build",
    "cpu_isa": "_build",
    "embed_store": "embedding",
    "evaluate": "assessment",
    "finetune": "finetuning",
    "prepare": "data",
    "pretrain": "training",
    "set_cpu_isa": "_build",
    "show_config": "_build",
    "usable_cpu_isas": "_build",
}

__all__ = [
    "STANDARD_LEADS",
    "W2VCMSC",
    "Classifier",
    "EcgfastError",
    "Encoder",
    "EncoderConfig",
    "FinetuneConfig",
    "PretrainConfig",
    "SegmentLoader",
    "Store",
    "W2VCMSCConfig",
    "__version__",
    "compare",
    "config",
    "cpu_isa",
    "embed_store",
    "evaluate",
    "finetune",
    "ops",
    "prepare",
    "pretrain",
    "set_cpu_isa",
    "show_config",
    "usable_cpu_isas",
]


def __getattr__(name: str) -> Any:
    if name == "ops":
        return import_module("ecgfast.ops")
    if name not in _HOMES:
        raise AttributeError(f"module 'ecgfast' has no attribute {name!r}")
    return getattr(import_module(f"ecgfast.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
