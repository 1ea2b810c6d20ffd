"""Targets from a learned codebook, chosen by a Gumbel-softmax."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import _register_namedtuple

from ecgfast import ops
from ecgfast.errors import EcgfastError


class QuantizerOutput(NamedTuple):
    """What the quantizer returns for R rows.

    Attributes:
        quantized: [..., D], the chosen rows of the codebook, groups concatenated.
        codes: [..., G] int32, their numbers.
        mean_probs: [G, V] float32, mean over rows of softmax(logits), without noise.
        usage: [G, V] float32, share of rows whose largest logit, without noise, is the entry's.
        logits: [..., G * V].
    """

    quantized: Tensor
    codes: Tensor
    mean_probs: Tensor
    usage: Tensor
    logits: Tensor


_register_namedtuple(QuantizerOutput, serialized_type_name="ecgfast.nn.QuantizerOutput")


def perplexity(probs: Tensor) -> Tensor:
    """Sum over groups of exp(entropy): [G, V] -> 0-dim, between G and G * V."""
    return torch.exp(-(probs * torch.log(probs + 1e-7)).sum(-1)).sum()


def code_usage(logits: Tensor, codebook_groups: int) -> Tensor:
    """Share of rows in which each entry has the largest logit: [R, G * V] -> [G, V]."""
    logits = logits.detach().view(logits.shape[0], codebook_groups, -1)
    best = logits.argmax(-1).t()
    counts = torch.zeros(logits.shape[1:], device=logits.device)
    counts.scatter_add_(1, best, torch.ones_like(best, dtype=counts.dtype))
    return counts / max(logits.shape[0], 1)


class Quantizer(nn.Module):
    """Hard Gumbel-softmax over the groups of a codebook (wav2vec 2.0, section 2), straight-through.

    Args:
        dim: width of the input.
        codebook_groups: groups G.
        entries: rows V of each.
        out_dim: width D of the output, a multiple of `codebook_groups`.
    """

    def __init__(self, dim: int, codebook_groups: int = 2, entries: int = 320, out_dim: int = 256) -> None:
        super().__init__()
        if out_dim % codebook_groups:
            raise EcgfastError(f"out_dim {out_dim} is no multiple of codebook_groups {codebook_groups}")
        self.projection = nn.Linear(dim, codebook_groups * entries)
        self.codebook = nn.Parameter(torch.rand(codebook_groups, entries, out_dim // codebook_groups))
        nn.init.normal_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(
        self,
        x: Tensor,
        temperature: float | Tensor,
        *,
        rng: Tensor | None = None,
        sample_ids: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> QuantizerOutput:
        """Quantize x [B, M, dim].

        Args:
            x: features.
            temperature: of the softmax; a 0-dim tensor stays on its device.
            rng: int64 [2], seed and step of the Gumbel noise.
            sample_ids: [B] int64, a number for each segment that its noise follows from.
            noise: [B * M, G * V], the noise itself instead. With neither, and always in evaluation
                mode, the entry with the largest logit is taken.
        """
        groups, entries, _ = self.codebook.shape
        logits = self.projection(x).to(self.codebook.dtype)
        rows = logits.reshape(-1, groups * entries)
        if not self.training:
            rng = sample_ids = noise = None
        elif noise is not None:
            rng = sample_ids = None
        quantized, codes, mean_probs = ops.gumbel_quantize(
            rows, self.codebook, temperature, rng=rng, sample_ids=sample_ids, noise=noise
        )
        shape = x.shape[:-1]
        return QuantizerOutput(
            quantized.view(*shape, -1),
            codes.view(*shape, groups),
            mean_probs,
            code_usage(rows, groups),
            logits,
        )
