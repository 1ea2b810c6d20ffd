"""The batches in which windows are encoded: straight from the store, with no work on what is not there."""

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ecgfast.data import ListedSegments, SegmentLoader, Store
from ecgfast.embedding.inference import Inference
from ecgfast.embedding.windows import Windows
from ecgfast.errors import EcgfastError
from ecgfast.leads import lead_indices
from ecgfast.nn import Encoder, EncoderConfig, mean_tokens

# Of a batch's largest tensor on the CPU: the C library returns larger ones to the system, which zeroes
# their pages again at each call.
_CPU_BYTES = 2**25
_CUDA_SHARE = 0.4  # of the free memory
_MOST_ROWS = 4096

PRECISIONS = ("fp32", "bf16")


class Encoded(NamedTuple):
    """A batch of windows that were encoded.

    Attributes:
        windows: Their numbers, int64 [B].
        tokens: float32 [B, N, E].
        padding: bool [B, N], true for tokens past a window's end; None: there are none.
    """

    windows: np.ndarray
    tokens: Tensor
    padding: Tensor | None

    def pooled(self) -> np.ndarray:
        """Mean over each window's tokens, float32 [B, E]."""
        return mean_tokens(self.tokens, self.padding).cpu().numpy()


class _Part(NamedTuple):
    """Windows with the same leads: what the others would hold is zeros, and is not computed."""

    leads: tuple[str, ...]
    plan: ListedSegments
    windows: np.ndarray


def auto_batch_size(config: EncoderConfig, segment_samples: int, precision: str, device: torch.device) -> int:
    """Windows of which a batch's activations fit into the memory there is.

    A window takes its tokens times queries, keys, values, feed-forward, and what is added to them; the
    attention's matrix is never held.
    """
    width = 2 if precision == "bf16" else 4
    tokens = max(1, config.n_tokens(segment_samples))
    largest = tokens * width * max(config.ffn, 3 * config.width)
    if device.type != "cuda":
        return int(np.clip(_CPU_BYTES // largest, 1, _MOST_ROWS))
    free, _ = torch.cuda.mem_get_info(device)
    window = tokens * width * (8 * config.width + 2 * config.ffn + 4 * config.stem_channels)
    window += 2 * segment_samples * config.n_leads
    return int(np.clip(_CUDA_SHARE * free / window, 1, _MOST_ROWS))


class Encoding:
    """Encodes windows in batches that are the same whenever they are asked for.

    Windows are sorted by the leads that are present, so that absent ones are left out of the stem, and by
    length, longest first, so that little padding is computed. Batches are read ahead in the background.

    Args:
        store: The store.
        encoder: In evaluation mode; it is moved to the device.
        windows: What to encode.
        leads: To use, of the encoder's.
        segment_samples: Samples of the longest window.
        precision: "fp32", or "bf16" where autocast allows it.
        batch_size: Windows at a time; None: as many as fit, see `auto_batch_size`.
        device: Where to compute.

    Raises:
        EcgfastError: an argument out of range, or a window of a recording that has none of the leads.
    """

    def __init__(
        self,
        store: Store,
        encoder: Encoder,
        windows: Windows,
        leads: Sequence[str],
        *,
        segment_samples: int,
        precision: str = "fp32",
        batch_size: int | None = None,
        device: torch.device,
    ) -> None:
        if precision not in PRECISIONS:
            raise EcgfastError(f"precision: must be {' or '.join(PRECISIONS)}, got {precision!r}")
        if batch_size is not None and batch_size < 1:
            raise EcgfastError(f"batch_size: must be 1 or more, got {batch_size}")
        if segment_samples < 1 << encoder.config.stem_layers:
            least = 1 << encoder.config.stem_layers
            raise EcgfastError(f"segment_samples: must be {least} or more, a token's, got {segment_samples}")
        self.batch_size = batch_size or auto_batch_size(encoder.config, segment_samples, precision, device)
        self.config = encoder.config
        self.segment_samples = segment_samples
        self._store, self._encoder, self._windows = store, encoder, windows
        self._precision, self._device = precision, device
        self._parts = list(self._divide(tuple(leads)))

    def __len__(self) -> int:
        return sum(len(part.plan) for part in self._parts)

    def batches(self, start: int = 0) -> Iterator[Encoded]:
        """The batches from number `start` on.

        Raises:
            EcgfastError: a token is not finite; names the recording.
        """
        model = Inference(self._encoder.to(self._device).eval(), self._precision)
        for part in self._parts:
            if start < len(part.plan):
                yield from self._batches_of(part, model, start)
            start = max(0, start - len(part.plan))

    def windows_of(self, n_batches: int) -> np.ndarray:
        """Numbers of the windows in the first batches."""
        found = [np.empty(0, dtype=np.int64)]
        for part in self._parts:
            rows = self.batch_size * min(n_batches, len(part.plan))
            found.append(part.windows[:rows])
            n_batches -= min(n_batches, len(part.plan))
        return np.concatenate(found)

    def _divide(self, leads: tuple[str, ...]) -> Iterator[_Part]:
        asked = self._store.present_leads()[:, list(lead_indices(leads))][self._windows.recording]
        if not asked.any(axis=1).all():
            missing = np.unique(self._windows.recording[~asked.any(axis=1)])
            record = self._store.index["record_id"][int(missing[0])].as_py()
            raise EcgfastError(
                f"recordings: must have one of the leads {', '.join(leads)}, got {len(missing)} without any, "
                f"such as {record}"
            )
        patterns, which = np.unique(asked, axis=0, return_inverse=True)
        length = self._windows.length
        for number in np.argsort(-patterns.sum(axis=1), kind="stable"):
            named = tuple(lead for lead, there in zip(leads, patterns[number], strict=True) if there)
            own = np.flatnonzero(which.ravel() == number)
            for part in (own[length[own] == self.segment_samples], own[length[own] < self.segment_samples]):
                if part.size:
                    part = part[np.argsort(-length[part], kind="stable")]
                    columns = (column[part] for column in self._windows[1:])
                    size = self.batch_size
                    plan = ListedSegments(self._store, size, *columns, segment_samples=self.segment_samples)
                    yield _Part(named, plan, part)

    def _batches_of(self, part: _Part, model: Inference, start: int) -> Iterator[Encoded]:
        cuda = self._device.type == "cuda"
        threads = min(2, os.cpu_count() or 1)
        loader = SegmentLoader(part.plan, leads=part.leads, threads=threads, pin_memory=cuda)
        loader.load_state_dict(loader.state_dict() | {"batch": start})
        for number, batch in enumerate(loader, start):
            windows = part.windows[part.plan.rows(number)]
            signal, lengths = self._cut(batch.signal, batch.lengths)
            signal = signal.to(self._device, non_blocking=True)
            lengths = None if lengths is None else lengths.to(self._device)
            encoded = Encoded(windows, *model(signal, part.leads, lengths))
            if not bool(encoded.tokens.isfinite().all()):
                self._tell_odd(encoded)
            yield encoded

    def _cut(self, signal: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Without the padding that all rows have; encoders that see padding get it all, as in training."""
        if lengths is None or self.config.norm_padding:
            return signal, lengths
        longest = int(lengths.max())
        return signal[:, :, :longest], None if int(lengths.min()) == longest else lengths

    def _tell_odd(self, encoded: Encoded) -> None:
        odd = ~encoded.tokens.isfinite().all(dim=2)
        if encoded.padding is not None:
            odd &= ~encoded.padding
        if not bool(odd.any()):
            return
        window = encoded.windows[int(odd.any(dim=1).nonzero()[0])]
        record = self._store.index["record_id"][int(self._windows.recording[window])].as_py()
        raise EcgfastError(f"MODEL: must give finite numbers, got NaN or infinity for record {record}")
