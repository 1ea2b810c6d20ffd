"""Records in, stores, and batches out."""

from ecgfast.data.batches.plans import Batch, PairLoader
from ecgfast.data.batches.resident import ResidentLoader
from ecgfast.data.batches.streaming import SegmentLoader
from ecgfast.data.signal.augment import (
    Augmenter,
    BaselineShift,
    BaselineWander,
    EmgNoise,
    PowerlineNoise,
    TurnDipole,
)
from ecgfast.data.signal.preprocess import Preprocessing
from ecgfast.data.signal.rhythm import heart_rate
from ecgfast.data.sources.importing import PrepareReport, prepare, write_store
from ecgfast.data.store.inspection import StoreSummary, summarize
from ecgfast.data.store.store import Store
from ecgfast.data.synthetic.files import synthetic_store, write_synthetic
from ecgfast.data.synthetic.records import SyntheticRecord, synthesize
from ecgfast.leads import LeadNames
from ecgfast.units import SAMPLE_RATE

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
