"""Puts other people's variants in the place of ``ecgfast.ops`` while a model runs."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ecgfast import ops
from ecgfast.benchmarking.variants import official, tuned


def _millivolts(signal: Tensor, dtype: torch.dtype) -> Tensor:
    return signal.to(dtype) * 1e-3 if signal.dtype == torch.int16 else signal.to(dtype)


def _lower(*tensors: Tensor) -> tuple[Tensor, ...]:
    """In the autocast dtype where that is on, as PyTorch's own layers do."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(t.to(torch.get_autocast_dtype(device)) for t in tensors)


def _shared(variant: Any) -> dict[str, Callable[..., Any]]:
    """The ops whose official and tuned variants take the same arguments."""

    def patch_embed(
        signal: Tensor, keep: Tensor, weights: list[Tensor], gn_weight: Tensor, gn_bias: Tensor, **_: Any
    ) -> Tensor:
        parameters = _lower(*weights, gn_weight, gn_bias)
        signal = _millivolts(signal, parameters[0].dtype)
        return variant.patch_embed(signal, keep, parameters[:-2], *parameters[-2:])

    def gumbel_quantize(
        logits: Tensor, codebook: Tensor, temperature: Tensor, **_: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        return variant.gumbel_quantize(logits, codebook, temperature)

    def global_contrastive(
        a: Tensor, b: Tensor, group_a: Tensor, group_b: Tensor, *, temperature: float, **_: Any
    ) -> Tensor:
        return variant.global_contrastive(a, b, group_a, group_b, temperature)

    def positional_conv(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
        return variant.positional_conv(*_lower(x, weight, bias), groups)

    functions = (patch_embed, gumbel_quantize, global_contrastive, positional_conv)
    return {f.__name__: f for f in functions}


@functools.cache  # a compiled model runs the same functions each time
def _official() -> dict[str, Callable[..., Any]]:
    def lead_mask(ids: Tensor, n_leads: int, p: float, rng: Tensor, *, keep_one: bool = False) -> Tensor:
        return official.lead_mask(len(ids), n_leads, p).to(ids.device)

    def span_mask(
        ids: Tensor, n_tokens: int, prob: float, length: int, rng: Tensor, **_: Any
    ) -> tuple[Tensor, Tensor]:
        mask = official.span_mask(len(ids), n_tokens, prob, length).to(ids.device)
        return mask.nonzero()[:, 1].view(len(ids), -1).int(), mask

    def local_contrastive(
        p: Tensor, t: Tensor, *, n_negatives: int, temperature: float, **_: Any
    ) -> tuple[Tensor, Tensor]:
        return official.local_contrastive(p, t, n_negatives, temperature)

    functions = (lead_mask, span_mask, local_contrastive)
    return _shared(official) | {f.__name__: f for f in functions}


@functools.cache
def _tuned() -> dict[str, Callable[..., Any]]:
    def lead_mask(ids: Tensor, n_leads: int, p: float, rng: Tensor, *, keep_one: bool = False) -> Tensor:
        return torch.rand(len(ids), n_leads, device=ids.device) >= p

    def span_mask(
        ids: Tensor, n_tokens: int, prob: float, length: int, rng: Tensor, *, n_masked: int, **_: Any
    ) -> tuple[Tensor, Tensor]:
        _, mask = tuned.masks(len(ids), 1, 0.0, n_tokens, prob, length, ids.device, n_masked)
        return mask.int().topk(n_masked, sorted=False).indices.int(), mask

    def local_contrastive(
        p: Tensor, t: Tensor, *, codes: Tensor, n_negatives: int, temperature: float, **_: Any
    ) -> tuple[Tensor, Tensor]:
        return tuned.local_contrastive(p, t, codes, n_negatives, temperature)

    functions = (lead_mask, span_mask, local_contrastive)
    return _shared(tuned) | {f.__name__: f for f in functions}


@contextmanager
def ops_of(variant: str) -> Iterator[None]:
    """Models run the ops of ``variant``: "official", "tuned" or "ecgfast"."""
    replaced = {"official": _official, "tuned": _tuned, "ecgfast": dict}[variant]()
    previous = {name: getattr(ops, name) for name in replaced}
    try:
        for name, function in replaced.items():
            setattr(ops, name, function)
        yield
    finally:
        for name, function in previous.items():
            setattr(ops, name, function)
