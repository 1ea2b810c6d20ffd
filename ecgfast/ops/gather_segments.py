"""Segments cropped out of a store that is kept in memory, so that training needs no loader."""

import torch
from torch import Tensor

from ecgfast.leads import N_LEADS
from ecgfast.ops._autograd import register_vmap
from ecgfast.ops._dispatch import (
    FLOATS,
    INTS,
    as_int64,
    check,
    check_tensor,
    describe,
    fused,
    integer,
    readable,
)
from ecgfast.units import MILLIVOLTS_PER_UNIT

_OP = "gather_segments"
_DTYPES = (torch.int16, *FLOATS)


def _validate(
    store: Tensor,
    offset: Tensor,
    start: Tensor,
    n_samples: Tensor,
    length: int,
    lead_index: Tensor | None,
    dtype: torch.dtype,
) -> int:
    check_tensor(_OP, "store", store, (None,), (torch.int16,), None, "n_values")
    check(store.is_contiguous(), _OP, "store must be contiguous, got stride {}", store.stride(0))
    check_tensor(_OP, "offset", offset, (None,), INTS, store, "B")
    batch = offset.shape[0]
    check_tensor(_OP, "start", start, (batch,), INTS, store)
    check_tensor(_OP, "n_samples", n_samples, (batch,), INTS, store)
    length = integer(_OP, "length", length)
    check(length >= 0, _OP, "length must not be negative, got {}", length)
    if lead_index is not None:
        check_tensor(_OP, "lead_index", lead_index, (None,), INTS, store, "L")
    if dtype not in _DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in _DTYPES)
        raise (ValueError if isinstance(dtype, torch.dtype) else TypeError)(
            f"{_OP}: dtype must be {names}, got {describe(dtype)}"
        )
    return length


def _check_bounds(
    n_values: int, offset: Tensor, start: Tensor, n_samples: Tensor, length: int, lead_index: Tensor
) -> None:
    """Raise the kernel's errors for the first segment or lead that is not there."""
    whole = (offset >= 0) & (n_samples >= 0) & (n_samples <= (n_values - offset) // N_LEADS)
    fits = whole & (start >= 0) & (start <= n_samples - length)
    if not fits.all():
        b = int((~fits).nonzero()[0, 0])
        samples, at = int(n_samples[b]), int(start[b])
        says = f"start must lie in 0..n_samples - length = {samples} - {length}, got {at}"
        if not whole[b]:
            block = f"a recording of {N_LEADS} x {samples} values at offset {int(offset[b])}"
            says = f"{block} must lie in the store's {n_values} values"
        raise RuntimeError(f"{_OP}: segment {b}: {says}")
    known = (lead_index >= -1) & (lead_index < N_LEADS)
    if not known.all():
        raise RuntimeError(f"{_OP}: lead_index must hold -1..{N_LEADS - 1}, got {int(lead_index[~known][0])}")


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
    """Plain PyTorch form of :func:`gather_segments`: one index per value. Only a CPU checks bounds."""
    length = _validate(store, offset, start, n_samples, length, lead_index, dtype)
    if lead_index is None:
        lead_index = torch.arange(N_LEADS, device=store.device)
    offset, start, n_samples, lead_index = map(as_int64, (offset, start, n_samples, lead_index))
    if all(map(readable, (store, offset, start, n_samples, lead_index))):
        _check_bounds(store.shape[0], offset, start, n_samples, length, lead_index)
    first = (offset + start)[:, None] + lead_index.clamp(min=0) * n_samples[:, None]
    index = first[..., None] + torch.arange(length, device=store.device)
    signal = store[index] * (lead_index >= 0)[:, None]
    if dtype == torch.int16:
        return signal
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return (signal.to(wide) * MILLIVOLTS_PER_UNIT).to(dtype)


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
        offset: integer ``[B]``, where the block of each segment's recording starts, in elements.
        start: integer ``[B]``, each segment's first sample in its recording.
        n_samples: integer ``[B]``, samples per lead of each segment's recording.
        length: T, samples of a segment.
        lead_index: integer ``[L]`` of 0..11 in the order of ``ecgfast.STANDARD_LEADS``; -1 gives a lead of
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
    length = _validate(store, offset, start, n_samples, length, lead_index, dtype)
    if lead_index is not None:
        lead_index = as_int64(lead_index)
    return torch.ops.ecgfast.gather_segments(
        store, as_int64(offset), as_int64(start), as_int64(n_samples), length, lead_index, dtype
    )


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


register_vmap(_OP)
