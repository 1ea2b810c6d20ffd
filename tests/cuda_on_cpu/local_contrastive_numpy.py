"""The local contrastive loss and its gradients in NumPy, float64, written from the definitions."""

from dataclasses import dataclass

import numpy as np

NEGATIVES = 5  # the purpose of the draws in the random stream
MIN_NORM = 1e-8


def philox4x32_10(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10 of uint32 ``[n, 4]`` counters."""
    low = np.uint64(0xFFFFFFFF)
    c = [counter[:, n].astype(np.uint64) for n in range(4)]
    k0, k1 = (np.uint64(k) for k in key)
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ k0, p1 & low, (p0 >> np.uint64(32)) ^ c[3] ^ k1, p0 & low]
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return np.stack(c, axis=1).astype(np.uint32)


def draw_negatives(seed: int, step: int, sample: int, n_tokens: int, n_draws: int) -> np.ndarray:
    """``[M, K]``: element i * K + k of the sample's stream, uniform over the tokens other than i."""
    if n_tokens < 2:
        return np.zeros((n_tokens, 0), np.int64)
    n = n_tokens * n_draws
    counter = np.zeros(((n + 3) // 4, 4), np.uint32)
    counter[:, 0] = np.arange(len(counter))
    counter[:, 1] = step & 0xFFFFFFFF
    counter[:, 2] = sample & 0xFFFFFFFF
    counter[:, 3] = NEGATIVES << 24 | (sample >> 32) & 0xFFFFFF
    words = philox4x32_10(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)).reshape(-1)[:n]
    j = ((words.astype(np.uint64) * np.uint64(n_tokens - 1)) >> np.uint64(32)).astype(np.int64)
    j = j.reshape(n_tokens, n_draws)
    return j + (j >= np.arange(n_tokens)[:, None])


@dataclass
class Expected:
    loss: np.ndarray
    correct: np.ndarray
    margin: np.ndarray  # how far `correct` is from a tie
    lse: np.ndarray
    inv_norms: np.ndarray  # [2, M]
    moments: np.ndarray  # [M]: sum_j cosine_ij times the gradient to it
    grad_predictions: np.ndarray
    grad_targets: np.ndarray


def expected(
    p: np.ndarray,
    t: np.ndarray,
    draws: np.ndarray,
    codes: np.ndarray | None,
    grad_loss: np.ndarray,
    tau: float,
) -> Expected:
    """One segment: p, t ``[M, D]``, draws ``[M, K]``, codes ``[M, G]``."""
    p, t = p.astype(np.float64), t.astype(np.float64)
    m = len(p)
    counts = np.zeros((m, m))
    np.add.at(counts, (np.arange(m)[:, None], draws), 1)
    rows = t if codes is None else codes
    excluded = (rows[:, None] == rows[None]).all(-1) & (counts > 0)
    counted = np.where(excluded, 0, counts)

    norms = [np.linalg.norm(x, axis=1) for x in (p, t)]
    inv = [1 / np.maximum(n, MIN_NORM) for n in norms]
    p_unit, t_unit = p * inv[0][:, None], t * inv[1][:, None]
    s = p_unit @ t_unit.T / tau
    own = np.diag(s)
    terms = counted + np.eye(m)
    shift = np.where(terms > 0, s, -np.inf).max(1)
    lse = shift + np.log((terms * np.exp(s - shift[:, None])).sum(1))

    most = np.where(counted > 0, s, -np.inf).max(1)
    least = np.where(excluded, -np.inf, np.where(counted > 0, s, np.inf)).min(1)
    correct = (own >= most) & ~(own <= least)
    margin = np.minimum(abs(own - most), abs(own - least))

    weights = grad_loss[:, None] / tau * (terms * np.exp(s - lse[:, None]) - np.eye(m))

    def through_norm(
        grad_unit: np.ndarray, unit: np.ndarray, norm: np.ndarray, inv: np.ndarray
    ) -> np.ndarray:
        radial = (grad_unit * unit).sum(1, keepdims=True) * unit
        return np.where(norm[:, None] > MIN_NORM, inv[:, None] * (grad_unit - radial), 0)

    return Expected(
        loss=lse - own,
        correct=correct,
        margin=margin,
        lse=lse,
        inv_norms=np.stack(inv),
        moments=(weights * s * tau).sum(1),
        grad_predictions=through_norm(weights @ t_unit, p_unit, norms[0], inv[0]),
        grad_targets=through_norm(weights.T @ p_unit, t_unit, norms[1], inv[1]),
    )
