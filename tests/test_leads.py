import pytest

from ecgfast.errors import EcgfastError
from ecgfast.leads import STANDARD_LEADS, find_lead, lead_indices


def test_standard_order():
    assert " ".join(STANDARD_LEADS) == "I II III aVR aVL aVF V1 V2 V3 V4 V5 V6"
    assert lead_indices(STANDARD_LEADS) == list(range(12))


def test_any_case_and_any_order():
    assert lead_indices(["v6", "AVR", "avl", "iii", " I "]) == [11, 3, 4, 2, 0]


@pytest.mark.parametrize("name", ["MLII", "V", "V7", "ECG 1", "", "VI", "1"])
def test_other_leads_are_not_taken_for_standard_ones(name):
    assert find_lead(name) is None
    with pytest.raises(EcgfastError, match=r"unknown lead .* want of I, II, III, aVR"):
        lead_indices([name])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["I", "i"], "I is named twice"),
        ([], "at least one"),
        ("II", "want a list"),
        ([0, 1], "want a list"),
    ],
)
def test_refused(names, message):
    with pytest.raises(EcgfastError, match=message):
        lead_indices(names)
