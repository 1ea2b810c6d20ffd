"""How good a model is on a store, at any leads, beside probes and a random encoder; and comparisons."""

from ecgfast.assessment.compare import Comparison, compare
from ecgfast.assessment.config import EvaluationConfig
from ecgfast.assessment.evaluate import evaluate, figures_in, summarize
from ecgfast.assessment.probes import PROBES

__all__ = ["PROBES", "Comparison", "EvaluationConfig", "compare", "evaluate", "figures_in", "summarize"]
