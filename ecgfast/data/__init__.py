"""Records in, stores, and batches out."""

from ecgfast.data.batches.batch import Batch
from ecgfast.data.batches.joined import JoinedStores
from ecgfast.data.batches.listed import ListedSegments
from ecgfast.data.batches.loader import Loader
from ecgfast.data.batches.mixture import Mixture
from ecgfast.data.batches.plans import (
    AdjacentPairs,
    LabelledRecordings,
    Plan,
    SingleSegments,
    TwoViews,
    Windows,
)
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
from ecgfast.data.store.preprocessing import describe_differences
from ecgfast.data.store.store import Store
from ecgfast.data.synthetic.files import synthetic_store, write_synthetic
from ecgfast.data.synthetic.records import SyntheticRecord, synthesize
from ecgfast.leads import LeadNames
from ecgfast.units import SAMPLE_RATE

__all__ = [
    "SAMPLE_RATE",
    "AdjacentPairs",
    "Augmenter",
    "BaselineShift",
    "BaselineWander",
    "Batch",
    "EmgNoise",
    "JoinedStores",
    "LabelledRecordings",
    "LeadNames",
    "ListedSegments",
    "Loader",
    "Mixture",
    "Plan",
    "PowerlineNoise",
    "PrepareReport",
    "Preprocessing",
    "ResidentLoader",
    "SegmentLoader",
    "SingleSegments",
    "Store",
    "StoreSummary",
    "SyntheticRecord",
    "TurnDipole",
    "TwoViews",
    "Windows",
    "describe_differences",
    "heart_rate",
    "prepare",
    "summarize",
    "synthesize",
    "synthetic_store",
    "write_store",
    "write_synthetic",
]
