"""Names and order of the twelve standard leads."""

from collections.abc import Sequence

from ecgfast.errors import EcgfastError

STANDARD_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
"""The standard leads, in the order in which stores and encoders hold them."""

N_LEADS = len(STANDARD_LEADS)

_INDEX = {name.casefold(): i for i, name in enumerate(STANDARD_LEADS)}


def find_lead(name: str) -> int | None:
    """Index of one lead in `STANDARD_LEADS`, whatever its case; None if it is no standard lead.

    Leads recorded in another way ("MLII", "V", "ECG 1") are not taken for a standard one.
    """
    return _INDEX.get(name.strip().casefold())


def lead_indices(names: Sequence[str]) -> list[int]:
    """Indices of leads in `STANDARD_LEADS`, in the order asked for.

    Names are compared without regard to case ("avr" is "aVR").

    Raises:
        EcgfastError: no names, a bare string, an unknown name, or one lead named twice.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise EcgfastError(f"leads: got {names!r}, want a list of lead names such as ['I', 'II']")
    if not names:
        raise EcgfastError("leads: got no lead, want at least one")
    indices = []
    for name in names:
        index = find_lead(name)
        if index is None:
            raise EcgfastError(f"leads: unknown lead {name!r}, want of {', '.join(STANDARD_LEADS)}")
        if index in indices:
            raise EcgfastError(f"leads: {STANDARD_LEADS[index]} is named twice")
        indices.append(index)
    return indices
