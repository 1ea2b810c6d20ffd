"""The sets of leads to compare models by: the challenge's of 2021, and one lead (Oh et al. 2022)."""

from ecgfast.leads import STANDARD_LEADS

LEAD_SETS: dict[str, tuple[str, ...]] = {
    "12": STANDARD_LEADS,
    "6": STANDARD_LEADS[:6],
    "4": ("I", "II", "III", "V2"),
    "3": ("I", "II", "V2"),
    "2": ("I", "II"),
    "1": ("I",),
}
"""Names of leads by the name of the set, from many to few."""
