"""From a store to embeddings by any model: in memory, or in files."""

from ecgfast.embedding.embed import embed_store, embed_windows, write_embeddings
from ecgfast.embedding.models import OpenedModel, open_model, random_model
from ecgfast.embedding.windows import (
    Windows,
    check_lead_names,
    cover_recordings,
    mean_over_units,
    with_a_lead,
)

__all__ = [
    "OpenedModel",
    "Windows",
    "check_lead_names",
    "cover_recordings",
    "embed_store",
    "embed_windows",
    "mean_over_units",
    "open_model",
    "random_model",
    "with_a_lead",
    "write_embeddings",
]
