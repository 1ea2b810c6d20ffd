"""A plan that draws from other plans in given shares."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ecgfast.data.batches.plans import Plan, Segments
from ecgfast.errors import EcgfastError


class Mixture(Plan):
    """Units of several plans, mixed in every epoch, in shares that follow weights.

    The plans are of one store, or of several as one (`JoinedStores`), each of a part of its recordings.
    An epoch has as many units as all plans together. Of plan c it has `counts[c]` of them, the whole
    numbers nearest to the weights' shares (largest remainders), one after another in the plan's own order:
    its epoch 0, then its epoch 1 and so on. So none comes again before the plan is used up, in whichever
    epoch of the mixture that is. Which plan the next unit is of is shuffled in every epoch of the mixture.

    Without weights the counts are the plans' own, so an epoch has every unit once. The mixture of one plan
    has its units in its order.

    The order depends on (seed, epoch) and the plans alone; ranks are as for `AdjacentPairs`. A unit that
    comes again in an epoch has other sample ids.

    Args:
        plans: Of the same kind and store, each with a batch_size of 1 and for one process; those of different
            recordings have different sample ids.
        batch_size: P, units per batch on this rank.
        weights: A positive number for each plan, of any sum; None: their numbers of units.
        seed: Of the order.
        rank: This process's number, from 0.
        world_size: Number of processes, W.
        drop_last: As for `AdjacentPairs`.

    Attributes:
        counts: Units of each plan in an epoch, int64.

    Raises:
        EcgfastError: an argument out of range, plans that don't go together, a weight so small that its plan
            has no unit in an epoch, or too few units to fill one batch.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        batch_size: int,
        *,
        weights: Sequence[float] | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
    ) -> None:
        self._plans = tuple(plans)
        _check_plans(self._plans)
        first = self._plans[0]
        super().__init__(
            first.store,
            batch_size,
            segment_samples=first.segment_samples,
            rank=rank,
            world_size=world_size,
        )
        if seed < 0:
            raise EcgfastError(f"seed: got {seed}, want 0 or more")
        self.seed = seed
        self.drop_last = drop_last
        self.unit = first.unit
        self.rows_per_unit = first.rows_per_unit
        self.whole = all(plan.whole for plan in self._plans)
        self._sizes = np.array([plan.n_units for plan in self._plans])
        self.n_units = int(self._sizes.sum())
        self.counts = self._sizes if weights is None else _shares(weights, self.n_units, len(self._plans))
        if not self.counts.all():
            c = int(np.argmin(self.counts))
            raise EcgfastError(
                f"weights: must give each of an epoch's {self.n_units} {self.unit}, got {weights[c]} for "
                f"number {c + 1}, which has none"
            )
        # of the rows of one epoch of every plan: what comes again is numbered beyond them
        self._ids = 1 + max(int(plan.segments(0).sample_id.max()) for plan in self._plans)
        if len(self) == 0:
            raise EcgfastError(
                f"store: {self.store.path} gives {self.n_units} {self.unit} of {self.segment_samples} "
                f"samples, fewer than one batch of {batch_size} x {world_size}"
            )

    def segments(self, epoch: int) -> Segments:
        rng = np.random.default_rng([self.seed, epoch, 2])
        source = rng.permutation(np.repeat(np.arange(len(self._plans)), self.counts))
        units = np.empty((4, self.n_units, self.rows_per_unit), dtype=np.int64)
        for c, plan in enumerate(self._plans):
            units[:, source == c] = self._next(c, plan, epoch)
        unit, place = self._own(np.arange(self.n_units))
        return Segments(*(column[unit, place] for column in units))

    def identity(self) -> dict[str, Any]:
        names = ("batch_size", "n_units", "seed", "world_size", "drop_last")
        own = {name: getattr(self, name) for name in names}
        plans = [plan.identity() for plan in self._plans]
        return {"plan": type(self).__name__, "counts": self.counts.tolist(), "plans": plans} | own

    def _next(self, c: int, plan: Plan, epoch: int) -> np.ndarray:
        """The units that an epoch has of a plan, in their order: [4, counts[c], rows_per_unit]."""
        size, count = plan.n_units, int(self.counts[c])
        begin = epoch * count
        first = begin // size
        rounds = []
        for own in range(first, -(-(begin + count) // size)):
            # batches of one unit: its rows follow one another
            columns = np.stack([column.astype(np.int64) for column in plan.segments(own)])
            columns[-1] += (own - first) * self._ids
            rounds.append(columns.reshape(4, size, self.rows_per_unit))
        start = begin - first * size
        return np.concatenate(rounds, axis=1)[:, start : start + count]

    def _last_part(self, rest: int) -> tuple[int, int]:
        share = 0 if self.drop_last else rest // self.world_size
        return self.rank * share, (self.rank + 1) * share


def _check_plans(plans: Sequence[Plan]) -> None:
    if not plans:
        raise EcgfastError("plans: must be one or more, got none")
    first = plans[0]
    for plan in plans:
        if (plan.batch_size, plan.world_size) != (1, 1):
            got = f"{plan.batch_size} and {plan.world_size}"
            raise EcgfastError(f"plans: must have batch_size and world_size 1, got {got}")
        if plan.store is not first.store:
            raise EcgfastError(
                f"plans: must be of one store, opened once, got {plan.store.path} and {first.store.path}"
            )
        if (type(plan), plan.segment_samples) != (type(first), first.segment_samples):
            got = f"{type(plan).__name__} of {plan.segment_samples} samples"
            raise EcgfastError(
                f"plans: must be alike, got {got} and {type(first).__name__} of {first.segment_samples}"
            )


def _shares(weights: Sequence[float], n: int, n_plans: int) -> np.ndarray:
    """`n` divided by the weights into whole numbers, by largest remainders; of equal ones the first."""
    shares = np.asarray(weights, dtype=np.float64)
    if shares.shape != (n_plans,) or not np.isfinite(shares).all() or not (shares > 0).all():
        raise EcgfastError(f"weights: must be {n_plans} positive numbers, got {list(weights)}")
    exact = n * (shares / shares.sum())
    counts = np.floor(exact).astype(np.int64)
    rest = n - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:rest]] += 1
    return counts
