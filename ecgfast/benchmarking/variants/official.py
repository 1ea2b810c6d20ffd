"""The official variant of each op, as fairseq-signals computes it, written again in plain PyTorch and NumPy.

Each function does the work of the official code at that place of the training step, materialises the
same intermediates and draws from the same generators (torch's or NumPy's global one). Arguments that
are None are drawn; the tests give them instead.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ecgfast.units import MILLIVOLTS_PER_UNIT


def patch_embed(
    signal: Tensor, keep: Tensor, weights: Sequence[Tensor], gn_weight: Tensor, gn_bias: Tensor
) -> Tensor:
    """Masked leads copied into zeros, then conv1d, fp32 GroupNorm and GELU in channels-first layout."""
    x = torch.zeros_like(signal)
    x[keep] = signal[keep]
    for i, weight in enumerate(weights):
        x = F.conv1d(x, weight, stride=2)
        if i == 0:
            normed = F.group_norm(x.float(), x.shape[1], gn_weight.float(), gn_bias.float())
            x = normed.type_as(x)
        x = F.gelu(x)
    return x.transpose(1, 2)


def gumbel_quantize(
    logits: Tensor, codebook: Tensor, temperature: float, noise: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """One-hot rows of ``gumbel_softmax(hard=True)`` times every codebook entry, summed over entries."""
    g, v, width = codebook.shape
    rows = logits.shape[0]
    mean_probs = torch.softmax(logits.view(rows, g, v).float(), dim=-1).mean(dim=0)
    x = logits.view(rows * g, v).float()
    if noise is None:
        one_hot = F.gumbel_softmax(x, tau=temperature, hard=True)
    else:
        soft = torch.softmax((x + noise.view_as(x)) / temperature, dim=-1)
        best = soft.max(-1, keepdim=True).indices
        one_hot = torch.zeros_like(x).scatter_(-1, best, 1.0) - soft.detach() + soft
    one_hot = one_hot.type_as(logits)
    codes = one_hot.view(rows, g, v).argmax(-1).to(torch.int32)
    product = one_hot.view(rows, g * v, 1) * codebook.view(1, g * v, width)
    return product.view(rows, g, v, width).sum(-2).view(rows, g * width), codes, mean_probs


def _negative_index(batch: int, n_tokens: int, n_negatives: int, device: torch.device) -> Tensor:
    own = torch.arange(n_tokens, device=device)[:, None].expand(-1, n_negatives).flatten()
    index = torch.randint(0, n_tokens - 1, (batch, n_negatives * n_tokens), device=device)
    index[index >= own] += 1
    return index.view(batch, n_tokens, n_negatives)


def local_contrastive(
    predictions: Tensor,
    targets: Tensor,
    n_negatives: int,
    temperature: float,
    negative_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Negatives gathered as ``[K, B, M, D]``, their cosines with the predictions, cross-entropy."""
    b, m, d = targets.shape
    if negative_index is None:
        negative_index = _negative_index(b, m, n_negatives, targets.device)
    flat_index = negative_index.flatten(1) + torch.arange(b, device=targets.device)[:, None] * m
    negatives = targets.reshape(-1, d)[flat_index.view(-1)].view(b, m, -1, d).permute(2, 0, 1, 3)
    same = (targets == negatives).all(-1)
    candidates = torch.cat([targets[None], negatives])
    cosines = torch.cosine_similarity(predictions.float(), candidates.float(), dim=-1)
    logits = cosines.type_as(predictions) / temperature
    if same.any():
        logits[1:][same] = -torch.inf
    logits = logits.transpose(0, 2).reshape(b * m, -1).float()
    loss = F.cross_entropy(logits, logits.new_zeros(b * m, dtype=torch.long), reduction="none")
    with torch.no_grad():
        correct = (logits.argmax(-1) == 0) & ~(logits.argmin(-1) == 0)
    return loss.view(m, b).T, correct.view(m, b).T


def global_contrastive(a: Tensor, b: Tensor, group_a: Tensor, group_b: Tensor, temperature: float) -> Tensor:
    """Two log-softmaxes of the whole N x N matrix, each row's positives picked and averaged."""

    def unit(z: Tensor) -> Tensor:
        z = z.float()
        return z / torch.max(z.detach().norm(dim=1).unsqueeze(1), 1e-8 * torch.ones_like(z))

    logits = torch.matmul(unit(a), unit(b).transpose(0, 1)) / temperature
    positive = torch.stack([group == group_b for group in group_a])
    loss = 0.0
    for scores, mask in ((logits, positive), (logits.T, positive.T)):
        rows = zip(-F.log_softmax(scores, dim=-1), mask, strict=True)
        loss = loss + torch.stack([row[chosen].mean() for row, chosen in rows]).mean() / 2
    return loss


def nt_xent(a: Tensor, groups: Tensor, temperature: float) -> Tensor:
    """The whole matrix, -infinity on its diagonal, log-softmax, and each row's positives picked."""
    unit = F.normalize(a.float(), dim=1)
    logits = torch.matmul(unit, unit.transpose(0, 1)) / temperature
    itself = torch.eye(len(a), dtype=torch.bool, device=a.device)
    logits = logits.masked_fill(itself, -torch.inf)
    positive = (groups[:, None] == groups[None, :]) & ~itself
    return -F.log_softmax(logits, dim=-1)[positive].mean()


def lead_pairs(a: Tensor, groups: Tensor, pairs: Tensor, temperature: float) -> Tensor:
    """The loss of two batches, pair by pair."""
    losses = [global_contrastive(a[i], a[j], groups, groups, temperature) for i, j in pairs.tolist()]
    return torch.stack(losses).mean()


def positional_conv(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """``x + GELU(conv1d)``, channels first, the surplus last step cut off."""
    kernel = weight.shape[-1]
    y = F.conv1d(x.transpose(1, 2), weight, bias, padding=kernel // 2, groups=groups)
    if kernel % 2 == 0:
        y = y[:, :, :-1]
    return x + F.gelu(y).transpose(1, 2)


def gather_segments(
    store: Tensor, offset: Tensor, start: Tensor, n_samples: Tensor, length: int, dtype: torch.dtype
) -> Tensor:
    """Item by item as a data set and a collater do: crop in NumPy, convert, make a tensor, stack."""
    values, items = store.numpy(), []
    for first, at, n in zip(offset.tolist(), start.tolist(), n_samples.tolist(), strict=True):
        crop = values[first : first + 12 * n].reshape(12, n)[:, at : at + length]
        if dtype != torch.int16:
            crop = crop.astype(np.float32) * np.float32(MILLIVOLTS_PER_UNIT)
        items.append(torch.from_numpy(crop))
    return torch.stack(items).to(dtype)


def masks(
    batch: int, n_leads: int, p: float, n_tokens: int, prob: float, length: int
) -> tuple[Tensor, Tensor]:
    """Kept leads ``[B, L]`` and masked tokens ``[B, N]``."""
    return lead_mask(batch, n_leads, p), span_mask(batch, n_tokens, prob, length)


def lead_mask(batch: int, n_leads: int, p: float) -> Tensor:
    """Kept leads ``[B, L]``, drawn for each item."""
    rows = [np.random.uniform(0, 1, size=n_leads) >= p for _ in range(batch)]  # noqa: NPY002
    return torch.from_numpy(np.stack(rows))


def span_mask(batch: int, n_tokens: int, prob: float, length: int) -> Tensor:
    """Masked tokens ``[B, N]``, row by row in NumPy."""
    rows = []
    n_spans = max(2, int(prob * n_tokens / length + np.random.rand()))  # noqa: NPY002
    for _ in range(batch):
        n_starts = n_tokens - length if n_tokens - length > n_spans else n_spans + 1
        starts = np.random.choice(n_starts, n_spans, replace=False)  # noqa: NPY002
        covered = np.asarray([start + offset for start in starts for offset in range(length)])
        rows.append(np.unique(covered[covered < n_tokens]))
    common = min(len(row) for row in rows)
    mask = np.zeros((batch, n_tokens), dtype=bool)
    for i, row in enumerate(rows):
        if len(row) > common:
            row = np.random.choice(row, common, replace=False)  # noqa: NPY002
        mask[i, row] = True
    return torch.from_numpy(mask)
