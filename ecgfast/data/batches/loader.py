"""Going through a plan's batches, from any of them on: what all loaders share."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ecgfast.data.batches.batch import DTYPES, Batch
from ecgfast.data.batches.plans import Plan
from ecgfast.errors import EcgfastError
from ecgfast.leads import STANDARD_LEADS, lead_indices


class Loader(ABC):
    """Iterates over the batches of a plan, an epoch at a time.

    Args:
        plan: Which segments make which batch.
        dtype: "int16" (microvolts as stored) or "float32" (millivolts).
        leads: Names of the L leads to give, in this order; None: the 12 standard ones.

    Raises:
        EcgfastError: an argument out of range.
    """

    def __init__(self, plan: Plan, *, dtype: str = "int16", leads: Sequence[str] | None = None) -> None:
        if dtype not in DTYPES:
            raise EcgfastError(f"dtype: got {dtype!r}, want {' or '.join(map(repr, DTYPES))}")
        self.dtype = dtype
        self._lead_index = np.array(lead_indices(STANDARD_LEADS if leads is None else leads))
        self._present = plan.store.present_leads()[:, self._lead_index]
        self._patients = plan.store.patient_numbers()
        self._begin(plan)

    def __len__(self) -> int:
        return len(self.plan)

    def for_plan(self, plan: Plan) -> "Loader":
        """A loader for another plan of the same store; the two hold the signals once.

        Raises:
            EcgfastError: the plan is of another store.
        """
        if plan.store is not self.plan.store:
            raise EcgfastError(f"plan: must be of {self.plan.store.path}, opened once, got {plan.store.path}")
        other = copy.copy(self)
        other._begin(plan)
        return other

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration goes through.

        A position restored by `load_state_dict` is kept if it lies in that epoch.
        """
        if epoch < 0:
            raise EcgfastError(f"epoch: got {epoch}, want 0 or more")
        if epoch != self._epoch:
            self._epoch = epoch
            self._batch = self._resume_at = 0

    def state_dict(self) -> dict[str, Any]:
        """Position after the last batch handed out, and what it depends on."""
        return {"epoch": self._epoch, "batch": self._batch} | self.plan.identity()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position of `state_dict`: the next iteration begins there.

        Raises:
            EcgfastError: the state is of a loader with another order of batches.
        """
        for name, mine in self.plan.identity().items():
            if state.get(name) != mine:
                raise EcgfastError(f"loader state: {name} is {state.get(name)!r}, here {mine!r}")
        self._epoch = state["epoch"]
        self._batch = self._resume_at = state["batch"]

    def __iter__(self) -> Iterator[Batch]:
        start, self._resume_at = self._resume_at, 0
        self._batch = start
        for batch in self._batches(self._epoch, start):
            self._batch += 1
            yield batch

    @abstractmethod
    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on."""

    def _begin(self, plan: Plan) -> None:
        self.plan = plan
        self._epoch = 0
        self._batch = 0  # batches of this epoch already handed out
        self._resume_at = 0
