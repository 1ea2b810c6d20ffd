"""Which sets of leads a model is scored at."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ecgfast._suggest import did_you_mean
from ecgfast.assessment.results import leads_name
from ecgfast.data import Store
from ecgfast.errors import EcgfastError
from ecgfast.evaluation import LEAD_SETS
from ecgfast.leads import STANDARD_LEADS, lead_indices

ALL = "all"


class LeadSet(NamedTuple):
    """Leads by their standard names, in standard order, and what the set is called."""

    name: str
    leads: tuple[str, ...]


def named_sets(asked: Sequence[str]) -> list[LeadSet]:
    """Sets by name ("12", "6", "all") or by their leads ("I,II").

    Raises:
        EcgfastError: an unknown set or lead, or a set that is there twice.
    """
    sets: list[LeadSet] = []
    for text in asked:
        if text == ALL:
            sets += [LeadSet(name, leads) for name, leads in LEAD_SETS.items()]
        elif text in LEAD_SETS:
            sets.append(LeadSet(text, LEAD_SETS[text]))
        else:
            try:
                indices = sorted(lead_indices(text.split(",")))
            except EcgfastError:
                near = did_you_mean(text, [ALL, *LEAD_SETS])
                raise EcgfastError(
                    f"leads: must be {ALL}, {', '.join(LEAD_SETS)} or leads with commas such as I,II, got "
                    f"{text!r}{near}"
                ) from None
            leads = tuple(STANDARD_LEADS[i] for i in indices)
            sets.append(LeadSet(",".join(leads), leads))
    names = [one.name for one in sets]
    if repeated := [name for i, name in enumerate(names) if name in names[:i]]:
        raise EcgfastError(f"leads: must name each set once, got {repeated[0]} twice")
    return sets


def choose_lead_sets(
    asked: Sequence[str], default: Sequence[str], own: Sequence[str], store: Store, recordings: np.ndarray
) -> tuple[list[LeadSet], list[str]]:
    """The sets to score a model at, and what was left out, for people.

    Args:
        asked: By the user: each must be possible, those of "all" excepted.
        default: Where nothing is asked: those that are possible.
        own: The model's leads.
        store: The store.
        recordings: Numbers of the recordings that count.

    Raises:
        EcgfastError: a set that the model does not take or that no recording has a lead of, or none is left.
    """
    takes = {STANDARD_LEADS[i] for i in lead_indices(own)}
    present = store.present_leads()[recordings]
    strict = {one.name for text in asked if text != ALL for one in named_sets([text])}
    kept, told = [], []
    for one in named_sets(asked or default):
        has = present[:, list(lead_indices(one.leads))]
        foreign = [lead for lead in one.leads if lead not in takes]
        if one.name in strict:
            if foreign:
                raise EcgfastError(f"leads: must be of the model's, {', '.join(own)}, got {foreign[0]!r}")
            if not has.any():
                raise EcgfastError(f"leads: must be of the store's recordings, which have none of {one.name}")
        elif foreign:
            told.append(
                f"left out: {leads_name(one.name)}, of which the model does not take {', '.join(foreign)}"
            )
            continue
        elif not has.all(axis=1).any():
            told.append(f"left out: {leads_name(one.name)}, which no recording has together")
            continue
        kept.append(one)
        told += _lacking(one, has)
    if not kept:
        raise EcgfastError(f"leads: must name a set for this model and store, got none possible: {told[0]}")
    return kept, told


def _lacking(one: LeadSet, has: np.ndarray) -> list[str]:
    n, none = len(has), int((~has.any(axis=1)).sum())
    partly = int((has.any(axis=1) & ~has.all(axis=1)).sum())
    lines = []
    if none:
        lines.append(
            f"{leads_name(one.name)}: {none:,} of {n:,} recordings have none of them: left out there"
        )
    if partly:
        lines.append(
            f"{leads_name(one.name)}: {partly:,} of {n:,} recordings lack some of them, which count as zero"
        )
    return lines
