"""Segments cropped out of a store that is kept in memory, so that training needs no loader."""

import torch
from torch import Tensor

from ecgfast.leads import N_LEADS
from ecgfast.ops._dispatch import FLOATS, check, check_tensor, fused

_OP = "gather_segments"
_DTYPES = (torch.int16, *FLOATS)
_MILLIVOLT = 1e-3  # per unit of a store


def _validate(
    store: Tensor,
    offset: Tensor,
    start: Tensor,
    n_samples: Tensor,
    length: int,
    lead_index: Tensor | None,
    dtype: torch.dtype,
) -> None:
    check_tensor(_OP, "store", store, (None,), (torch.int16,), None, "n_values")
    check(store.is_contiguous(), _OP, f"store must be contiguous, got stride {store.stride(0)}")
    check_tensor(_OP, "offset", offset, (None,), (torch.int64,), store, "B")
    batch = offset.shape[0]
    check_tensor(_OP, "start", start, (batch,), (torch.int64,), store)
    check_tensor(_OP, "n_samples", n_samples, (batch,), (torch.int64,), store)
    check(length >= 0, _OP, f"length must not be negative, got {length}")
    if lead_index is not None:
        check_tensor(_OP, "lead_index", lead_index, (None,), (torch.int64,), store, "L")
    names = ", ".join(str(d).removeprefix("torch.") for d in _DTYPES)
    check(dtype in _DTYPES, _OP, f"dtype must be {names}, got {dtype}")


def gather_segments_reference(
    store: Tensor,
    offset: Tensor,
    start: Tensor,
    n_samples: Tensor,
    length: int,
    *,
    lead_index: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Plain PyTorch form of :func:`gather_segments`: one index per value. Bounds are not checked."""
    _validate(store, offset, start, n_samples, length, lead_index, dtype)
    if lead_index is None:
        lead_index = torch.arange(N_LEADS, device=store.device)
    first = (offset + start)[:, None] + lead_index.clamp(min=0) * n_samples[:, None]
    index = first[..., None] + torch.arange(length, device=store.device)
    signal = store[index] * (lead_index >= 0)[:, None]
    if dtype == torch.int16:
        return signal
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return (signal.to(wide) * _MILLIVOLT).to(dtype)


def gather_segments(
    store: Tensor,
    offset: Tensor,
    start: Tensor,
    n_samples: Tensor,
    length: int,
    *,
    lead_index: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Crop segments out of a store's signals and convert them, without a gradient.

    ``signal[b, l, t] = store[offset[b] + lead_index[l] * n_samples[b] + start[b] + t]``, in millivolts
    (``* 1e-3``) unless ``dtype`` is int16. ``torch.from_numpy(Store(path).shards[0])`` is such a store, and
    its index's columns ``offset`` and ``n_samples`` go with it.

    Args:
        store: int16 ``[n_values]`` of microvolts, contiguous: recordings one after another, each a
            ``[12, n_samples]`` block, lead-major.
        offset: int64 ``[B]``, where the block of each segment's recording starts, in elements.
        start: int64 ``[B]``, each segment's first sample in its recording.
        n_samples: int64 ``[B]``, samples per lead of each segment's recording.
        length: T, samples of a segment.
        lead_index: int64 ``[L]`` of 0..11 in the order of ``ecgfast.STANDARD_LEADS``; -1 gives a lead of
            zeros. None: all 12 leads.
        dtype: int16 (microvolts as stored), fp32, bf16, fp16 or fp64 (millivolts).

    Returns:
        ``[B, L, T]`` of ``dtype``.

    Raises:
        ValueError, TypeError: naming the argument, what came and what is taken.
        RuntimeError: a segment that does not lie in its recording, a recording that does not lie in the
            store, or a lead index out of range; on CUDA, where the host would have to wait to see it, such
            a segment or lead is NaN (-32768 for int16).
    """
    if not fused(_OP, store):
        return gather_segments_reference(
            store, offset, start, n_samples, length, lead_index=lead_index, dtype=dtype
        )
    _validate(store, offset, start, n_samples, length, lead_index, dtype)
    return torch.ops.ecgfast.gather_segments(store, offset, start, n_samples, length, lead_index, dtype)


@torch.library.register_fake("ecgfast::gather_segments")
def _(
    store: Tensor,
    offset: Tensor,
    start: Tensor,
    n_samples: Tensor,
    length: int,
    lead_index: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    leads = N_LEADS if lead_index is None else lead_index.shape[0]
    return store.new_empty((offset.shape[0], leads, length), dtype=dtype)
