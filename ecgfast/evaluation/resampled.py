"""Areas under curves of many draws at once, for confidence intervals.

The areas of a report are scikit-learn's. A draw with replacement gives each record a whole number of copies,
and of a thousand draws of a test set with 71 classes, 142,000 areas, scikit-learn takes five minutes, since
it sorts again for each. Here each class is sorted once and a draw costs a cumulative sum. The tests compare
every one of a set of draws with scikit-learn's area of the records drawn.
"""

import numpy as np


class RankedClass:
    """One class's labels in the order of its scores, from the highest.

    Records of equal scores pass a threshold together. Both areas are sums over the thresholds at which a
    positive record passes.

    Args:
        labels: bool [n], some True and some False.
        scores: float64 [n], finite.
    """

    def __init__(self, labels: np.ndarray, scores: np.ndarray) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ranked, positive = scores[self._order], labels[self._order]
        ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # last record of each equal score
        self._positive = self._order[positive]
        hits = np.cumsum(positive)[ends]
        groups = np.flatnonzero(np.diff(hits, prepend=0))
        self._last_hit = hits[groups] - 1  # of a group, among the positive records
        self._last = ends[groups]
        self._before = np.where(groups > 0, ends[groups - 1], -1)  # -1: none, the column of zeros

    def areas(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """AUROC and average precision of draws.

        Args:
            counts: How often each record comes, whole numbers [draws, n].

        Returns:
            Two times float64 [draws], NaN where a draw has one value of the label only.
        """
        told = np.zeros((len(counts), counts.shape[1] + 1), dtype=np.int64)
        np.cumsum(counts[:, self._order], axis=1, out=told[:, :-1])
        n, told, before = told[:, -2], told[:, self._last], told[:, self._before]
        hits = np.cumsum(counts[:, self._positive], axis=1)[:, self._last_hit]
        new_hits = np.diff(hits, axis=1, prepend=0)
        positives = hits[:, -1]
        negatives = n - positives
        below = negatives[:, None] - (told - hits)
        tied = told - before - new_hits
        pairs = (new_hits * (below + tied / 2)).sum(axis=1)
        precision = hits / np.maximum(told, 1)
        both = (positives > 0) & (negatives > 0)
        auroc = np.full(len(counts), np.nan)
        auprc = auroc.copy()
        auroc[both] = pairs[both] / (positives[both] * negatives[both])
        auprc[both] = (new_hits * precision).sum(axis=1)[both] / positives[both]
        return auroc, auprc
