"""Areas under curves of many draws at once, for confidence intervals.

The areas of a report are scikit-learn's. A draw with replacement gives each record a whole number of copies,
and of a thousand draws of a test set with 71 classes, 142,000 areas, scikit-learn takes five minutes, since
it sorts anew for each. Here each class is sorted once and a draw costs two cumulative sums. The tests compare
every one of a set of draws with scikit-learn's area of the records drawn.
"""

import numpy as np


class RankedClass:
    """One class's labels in the order of its scores, from the highest.

    Args:
        labels: bool [n].
        scores: float64 [n], finite.
    """

    def __init__(self, labels: np.ndarray, scores: np.ndarray) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ranked = scores[self._order]
        self._positive = labels[self._order]
        # Records of equal scores pass a threshold together: sums are read at the last of each such group.
        self._ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))

    def areas(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """AUROC and average precision of draws.

        Args:
            counts: How often each record comes, whole numbers [draws, n].

        Returns:
            Two times float64 [draws], NaN where a draw has one value of the label only.
        """
        ranked = counts[:, self._order]
        hits = np.cumsum(ranked * self._positive, axis=1)[:, self._ends]
        told = np.cumsum(ranked, axis=1)[:, self._ends]
        misses = told - hits
        positives, negatives = hits[:, -1], misses[:, -1]
        new_hits = np.diff(hits, axis=1, prepend=0)
        new_misses = np.diff(misses, axis=1, prepend=0)
        pairs = (new_misses * (2 * hits - new_hits)).sum(axis=1) / 2  # trapezia: ties count half
        precision = hits / np.maximum(told, 1)
        both = (positives > 0) & (negatives > 0)
        auroc = np.full(len(counts), np.nan)
        auprc = auroc.copy()
        auroc[both] = pairs[both] / (positives[both] * negatives[both])
        auprc[both] = (new_hits * precision).sum(axis=1)[both] / positives[both]
        return auroc, auprc
