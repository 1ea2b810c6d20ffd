"""Records in, stores, and batches out."""

from ecgfast.data.augment import (
    Augmenter,
    BaselineShift,
    BaselineWander,
    EmgNoise,
    PowerlineNoise,
    TurnDipole,
)
from ecgfast.data.importing import PrepareReport, prepare, write_store
from ecgfast.data.inspection import StoreSummary, summarize
from ecgfast.data.loader import SegmentLoader
from ecgfast.data.pairs import Batch, PairLoader
from ecgfast.data.preprocess import Preprocessing
from ecgfast.data.resident import ResidentLoader
from ecgfast.data.rhythm import heart_rate
from ecgfast.data.store import SAMPLE_RATE, Store
from ecgfast.data.synthetic import SyntheticRecord, synthesize
from ecgfast.data.synthetic_files import synthetic_store, write_synthetic
from ecgfast.leads import LeadNames

__all__ = [
    "SAMPLE_RATE",
    "Augmenter",
    "BaselineShift",
    "BaselineWander",
    "Batch",
    "EmgNoise",
    "LeadNames",
    "PairLoader",
    "PowerlineNoise",
    "PrepareReport",
    "Preprocessing",
    "ResidentLoader",
    "SegmentLoader",
    "Store",
    "StoreSummary",
    "SyntheticRecord",
    "TurnDipole",
    "heart_rate",
    "prepare",
    "summarize",
    "synthesize",
    "synthetic_store",
    "write_store",
    "write_synthetic",
]
