"""The tuned variant of each op: the best PyTorch that we could write, without a kernel of our own.

They use the same exact shortcuts as the kernels, and are what the kernels must beat. Each runs eagerly and
under ``torch.compile``; where the two want different code, there are two functions.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ecgfast.units import MILLIVOLTS_PER_UNIT

_EPS = 1e-8


class _OneDnnLinear(torch.autograd.Function):
    """``x @ weight^T`` on oneDNN's fp32 product, which on some CPUs is faster than MKL's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        return _onednn(grad, weight.T), _onednn(rows.T, x.flatten(0, -2).T)


def _onednn(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


@functools.cache
def onednn_is_faster() -> bool:
    """Whether oneDNN's fp32 product beats the BLAS that torch calls, measured once."""
    if not torch.backends.mkldnn.is_available():
        return False
    x, w = torch.randn(2048, 512), torch.randn(512, 512)

    def seconds(f: Callable[[Tensor, Tensor], Tensor]) -> float:
        f(x, w)
        from torch.utils.benchmark import Timer

        return Timer("f(x, w)", globals={"f": f, "x": x, "w": w}).timeit(5).mean

    return seconds(_onednn) < 0.95 * seconds(F.linear)


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    fp32_on_cpu = x.dtype == torch.float32 and x.device.type == "cpu"
    if fp32_on_cpu and not torch.compiler.is_compiling() and onednn_is_faster():
        return _OneDnnLinear.apply(x, weight)
    return F.linear(x, weight)


def _pairs(x: Tensor) -> Tensor:
    """Neighbouring tokens side by side: ``[B, N, C] -> [B, N // 2, 2C]``; an odd last token is left out."""
    b, n, c = x.shape
    return x[:, : n // 2 * 2].reshape(b, n // 2, 2 * c)


def _as_product(weight: Tensor) -> Tensor:
    return weight.transpose(1, 2).flatten(1)


def patch_embed(
    signal: Tensor, keep: Tensor, weights: Sequence[Tensor], gn_weight: Tensor, gn_bias: Tensor
) -> Tensor:
    """Channels last: layers are products; GroupNorm is folded into a weight per segment.

    The statistics of conv 0's output follow from the second moment of each segment's patches.
    """
    x = _pairs((signal * keep[:, :, None]).transpose(1, 2))
    mean = x.mean(dim=1, keepdim=True, dtype=torch.float32)
    x = x - mean.to(x.dtype)
    w = _as_product(weights[0])
    moment = (x.transpose(1, 2) @ x).float() / x.shape[1]
    variance = ((w.float() @ moment) * w.float()).sum(-1)
    scale = gn_weight * torch.rsqrt(variance + 1e-5)
    per_segment = (scale[:, :, None] * w).to(x.dtype)
    h = F.gelu(torch.baddbmm(gn_bias[None, None], x, per_segment.transpose(1, 2)))
    for weight in weights[1:]:
        h = F.gelu(_linear(_pairs(h), _as_product(weight)))
    return h


class _StraightThrough(torch.autograd.Function):
    """Codebook rows forward; backward the softmax's Jacobian applied to ``grad @ codebook^T``."""

    @staticmethod
    def forward(ctx: Any, noisy: Tensor, codebook: Tensor, codes: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(noisy, codebook, codes)
        ctx.temperature = temperature
        groups = torch.arange(codebook.shape[0], device=codes.device)
        return codebook[groups, codes].flatten(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        noisy, codebook, codes = ctx.saved_tensors
        g, v, width = codebook.shape
        grad = grad.unflatten(1, (g, width))
        probs = torch.softmax(noisy / ctx.temperature, dim=-1)
        towards = torch.bmm(grad.transpose(0, 1), codebook.transpose(1, 2)).transpose(0, 1)
        dot = (probs * towards).sum(-1, keepdim=True)
        grad_noisy = probs * (towards - dot) / ctx.temperature
        entry = codes + torch.arange(g, device=codes.device) * v
        grad_codebook = grad.new_zeros(g * v, width, dtype=torch.float32)
        grad_codebook.index_add_(0, entry.flatten(), grad.flatten(0, 1).float())
        return grad_noisy, grad_codebook.view_as(codebook).to(codebook.dtype), None, None


def gumbel_quantize(
    logits: Tensor, codebook: Tensor, temperature: float, noise: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Noise from uniform numbers in one pass, argmax, codebook rows, straight-through gradient."""
    g, v, _ = codebook.shape
    x = logits.unflatten(1, (g, v)).float()
    if noise is None:
        # torch.rand is faster than exponential_, which draws serially; the clamp keeps log finite.
        noise = -torch.log(-torch.log(torch.rand_like(x).clamp_(2**-24, 1 - 2**-24)))
    noisy = x + noise.view_as(x)
    codes = noisy.detach().argmax(-1)
    quantized = _StraightThrough.apply(noisy, codebook, codes, temperature)
    return quantized, codes.to(torch.int32), torch.softmax(x, dim=-1).mean(0)


def local_contrastive(
    predictions: Tensor,
    targets: Tensor,
    codes: Tensor,
    n_negatives: int,
    temperature: float,
    negative_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Each segment's Gram matrix, plus the logarithm of how often a token was drawn; logsumexp."""
    b, m, _ = predictions.shape
    device = predictions.device
    if negative_index is None:
        index = torch.randint(0, m - 1, (b, m, n_negatives), device=device)
        negative_index = index + (index >= torch.arange(m, device=device)[:, None])
    p = F.normalize(predictions.float(), dim=-1, eps=_EPS)
    t = F.normalize(targets.float(), dim=-1, eps=_EPS)
    half = (p.to(predictions.dtype), t.to(predictions.dtype))
    scores = torch.bmm(half[0], half[1].transpose(1, 2)).float() / temperature
    ones = scores.new_ones(1).expand_as(negative_index)
    count = torch.zeros_like(scores).scatter_add_(2, negative_index, ones)
    same = (codes[:, :, None] == codes[:, None, :]).all(-1)
    positive = scores.diagonal(dim1=1, dim2=2)
    drawn = (count > 0) & ~same
    own = torch.eye(m, dtype=torch.bool, device=device)
    weight = torch.where(own, 0.0, torch.where(drawn, count.log(), -torch.inf))
    loss = torch.logsumexp(scores + weight, dim=-1) - positive
    with torch.no_grad():
        others = scores.masked_fill(~drawn, -torch.inf)
        lowest = torch.where(drawn, scores, torch.inf).amin(-1)
        excluded = ((count > 0) & same).any(-1)
        correct = (positive >= others.amax(-1)) & ((positive > lowest) | excluded)
    return loss, correct


def _unit(z: Tensor) -> Tensor:
    return z.float() / z.detach().float().norm(dim=1, keepdim=True).clamp(min=_EPS)


def global_contrastive_compiled(
    a: Tensor, b: Tensor, group_a: Tensor, group_b: Tensor, temperature: float
) -> Tensor:
    """The algebra with one matrix; the compiler fuses the passes over it."""
    scores = (_unit(a).to(a.dtype) @ _unit(b).to(b.dtype).T).float() / temperature
    positive = group_a[:, None] == group_b[None, :]
    lse = torch.logsumexp(scores, 1, keepdim=True) + torch.logsumexp(scores, 0, keepdim=True)
    return torch.where(positive, lse - 2 * scores, 0.0).sum() / (2 * positive.sum())


class _GlobalContrastive(torch.autograd.Function):
    """One matrix of scores, passed over in blocks of rows, and turned into its own gradient in place."""

    ROWS = 256

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, group_a: Tensor, group_b: Tensor, temperature: float
    ) -> Tensor:
        scores = ((a / temperature) @ b.T).float()
        column_lse = torch.full((len(b),), -torch.inf, device=a.device)
        column_hits = torch.zeros_like(column_lse)
        row_lse, row_hits = scores.new_empty(2, len(a))
        matched = torch.zeros((), device=a.device)
        for rows in _blocks(len(a)):
            block = scores[rows]
            positive = group_a[rows, None] == group_b
            row_lse[rows] = torch.logsumexp(block, 1)
            column_lse = torch.logaddexp(column_lse, torch.logsumexp(block, 0))
            matched += block[positive].sum()
            row_hits[rows] = positive.sum(1)
            column_hits += positive.sum(0)
        total = row_hits.sum().clamp(min=1)
        ctx.save_for_backward(a, b, group_a, group_b, row_lse, column_lse, row_hits, column_hits)
        ctx.scores, ctx.temperature = scores, temperature
        return (row_lse @ row_hits + column_lse @ column_hits - 2 * matched) / (2 * total)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b, group_a, group_b, row_lse, column_lse, row_hits, column_hits = ctx.saved_tensors
        factor = grad / (2 * row_hits.sum().clamp(min=1) * ctx.temperature)
        slope = ctx.scores
        for rows in _blocks(len(a)):
            block = slope[rows]
            by_row = (block - row_lse[rows, None]).exp_().mul_(row_hits[rows, None])
            block.sub_(column_lse).exp_().mul_(column_hits).add_(by_row)
            block[group_a[rows, None] == group_b] -= 2
            block.mul_(factor)
        slope = slope.to(a.dtype)
        return slope @ b, slope.T @ a, None, None, None


def _blocks(n: int) -> list[slice]:
    step = _GlobalContrastive.ROWS
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def global_contrastive(a: Tensor, b: Tensor, group_a: Tensor, group_b: Tensor, temperature: float) -> Tensor:
    """One N x N matrix in all, its passes in blocks that stay in the cache."""
    units = _unit(a).to(a.dtype), _unit(b).to(b.dtype)
    return _GlobalContrastive.apply(*units, group_a, group_b, temperature)


def nt_xent(a: Tensor, groups: Tensor, temperature: float) -> Tensor:
    """A logsumexp of the masked matrix; of the positives, their sum."""
    unit = _unit(a).to(a.dtype)
    scores = (unit @ unit.T).float() / temperature
    itself = torch.eye(len(a), dtype=torch.bool, device=a.device)
    positive = (groups[:, None] == groups) & ~itself
    lse = torch.logsumexp(scores.masked_fill(itself, -torch.inf), 1, keepdim=True)
    return torch.where(positive, lse - scores, 0.0).sum() / positive.sum()


def lead_pairs(a: Tensor, groups: Tensor, pairs: Tensor, temperature: float) -> Tensor:
    """One batched product for all pairs."""
    length = a.detach().float().norm(dim=-1, keepdim=True).clamp(min=_EPS)
    unit = (a.float() / length).to(a.dtype)
    scores = torch.bmm(unit[pairs[:, 0]], unit[pairs[:, 1]].mT).float() / temperature
    positive = groups[:, None] == groups
    lse = torch.logsumexp(scores, 2, keepdim=True) + torch.logsumexp(scores, 1, keepdim=True)
    return torch.where(positive, lse - 2 * scores, 0.0).sum() / (2 * positive.sum() * len(pairs))


def _good_length(n: int) -> int:
    """The smallest product of 2, 3, 5 and 7 that is at least n and even."""
    while True:
        rest = n
        for factor in (2, 3, 5, 7):
            while rest % factor == 0:
                rest //= factor
        if rest == 1 and n % 2 == 0:
            return n
        n += 1


def _spectra(x: Tensor, length: int, groups: int) -> Tensor:
    """``[B, N, E]`` to frequencies first, ``[F, G, B, E / G]``: a batch of small products."""
    spectrum = torch.fft.rfft(x, n=length, dim=1)
    return spectrum.unflatten(2, (groups, -1)).permute(1, 2, 0, 3).contiguous()


def _tokens(spectra: Tensor, length: int) -> Tensor:
    return torch.fft.irfft(spectra.permute(2, 0, 1, 3).flatten(2), n=length, dim=1)


class _SpectralConv(torch.autograd.Function):
    """A grouped convolution over tokens as products of spectra; the same length serves both passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        n, kernel = x.shape[1], weight.shape[-1]
        left = kernel // 2
        length = _good_length(max(n + left, n + kernel - 1 - left, kernel))
        taps = torch.fft.rfft(weight, n=length).unflatten(0, (groups, -1)).permute(3, 0, 1, 2).contiguous()
        spectra = _spectra(x, length, groups)
        ctx.save_for_backward(spectra, taps)
        ctx.sizes = n, kernel, left, length, groups
        # The taps start at offset -left, so the output is rolled by as much.
        return _tokens(spectra @ taps.mH, length).roll(left, 1)[:, :n]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        spectra, taps = ctx.saved_tensors
        n, kernel, left, length, groups = ctx.sizes
        rolled = F.pad(grad, (0, 0, 0, length - n)).roll(-left, 1)
        slope = _spectra(rolled, length, groups)
        grad_x = _tokens(slope @ taps, length)[:, :n]
        grad_taps = (slope.mH @ spectra).permute(1, 2, 3, 0).flatten(0, 1)
        return grad_x, torch.fft.irfft(grad_taps, n=length)[..., :kernel], None


def positional_conv(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """The convolution as a product of spectra, of the shortest good circular length."""
    y = _SpectralConv.apply(x.float(), weight.float(), groups)
    return x + F.gelu(y.to(x.dtype) + bias)


def gather_segments(
    store: Tensor, offset: Tensor, start: Tensor, n_samples: Tensor, length: int, dtype: torch.dtype
) -> Tensor:
    """Each segment copied, and converted by the copy, to its place in the batch."""
    out = store.new_empty(len(offset), 12, length, dtype=dtype)
    rows = zip(out, offset.tolist(), start.tolist(), n_samples.tolist(), strict=True)
    for row, first, at, n in rows:
        row.copy_(store[first : first + 12 * n].view(12, n)[:, at : at + length])
    return out if dtype == torch.int16 else out.mul_(MILLIVOLTS_PER_UNIT)


def gather_segments_compiled(
    store: Tensor, offset: Tensor, start: Tensor, n_samples: Tensor, length: int, dtype: torch.dtype
) -> Tensor:
    """One index for each value, which the compiler computes on the way."""
    leads, samples = (torch.arange(n, device=store.device) for n in (12, length))
    first = (offset + start)[:, None] + leads * n_samples[:, None]
    crop = store[first[..., None] + samples]
    return crop if dtype == torch.int16 else (crop.float() * MILLIVOLTS_PER_UNIT).to(dtype)


def masks(
    batch: int,
    n_leads: int,
    p: float,
    n_tokens: int,
    prob: float,
    length: int,
    device: torch.device | str = "cpu",
    n_masked: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Both masks of a step, :func:`lead_mask` and :func:`span_mask`."""
    keep = lead_mask(batch, n_leads, p, device)
    return keep, span_mask(batch, n_tokens, prob, length, device, n_masked)


def lead_mask(batch: int, n_leads: int, p: float, device: torch.device | str = "cpu") -> Tensor:
    """All rows at once."""
    return torch.rand((batch, n_leads), device=device) >= p


def span_mask(
    batch: int,
    n_tokens: int,
    prob: float,
    length: int,
    device: torch.device | str = "cpu",
    n_masked: int | None = None,
) -> Tensor:
    """All rows at once: starts and cuts are the smallest of random keys.

    With ``n_masked``, the masked tokens of each row, nothing waits for the device and shapes are static.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, device=device)

    n_spans = (prob * n_tokens / length + uniform(batch, 1)).floor().clamp(min=2)
    rank = uniform(batch, max(n_tokens - length, 3)).argsort(1).argsort(1)
    starts = F.pad((rank < n_spans).float(), (length - 1, n_tokens - rank.shape[1]))
    covered = F.max_pool1d(starts[:, None], length, stride=1)[:, 0, :n_tokens] > 0
    common = int(covered.sum(1).min()) if n_masked is None else n_masked
    key = uniform(batch, n_tokens) + torch.where(covered, 0.0, 1.0)
    index = key.topk(common, dim=1, largest=False, sorted=False).indices
    return torch.zeros_like(covered).scatter_(1, index, True)
