"""Models of other libraries, in and out."""

from ecgfast.interop.fairseq import convert_fairseq

__all__ = ["convert_fairseq"]
