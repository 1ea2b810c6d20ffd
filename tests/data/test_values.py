"""Missing and odd values of tables, arrays and headers."""

import uuid

import numpy as np
import pandas as pd
import pytest
import torch

from ecgfast.data.values import fold_of, identity, is_missing, labels_of, sex_of, years

MISSING = [
    None,
    float("nan"),
    np.float32("nan"),
    np.array(np.nan),
    np.datetime64("NaT"),
    np.ma.masked,
    np.ma.array(7, mask=True),
    pd.NA,
    pd.NaT,
    torch.tensor(float("nan")),
    "",
    "  ",
    "nan",
    "NaN",
    "NA",
    "<NA>",
    "N/A",
    "None",
    "NaT",
    np.str_("nan"),
    b"NA",
    "Unknown",
]


def of(function, value, **options):
    """What a function makes of a value, and the kinds of its warnings."""
    warnings = []
    found = function(value, warnings, **options)
    return found, [warning.partition(":")[0] for warning in warnings]


@pytest.mark.parametrize("value", MISSING, ids=repr)
def test_missing_values_are_unknown_and_no_warning(value):
    assert is_missing(value)
    for function in (identity, years, sex_of, fold_of):
        assert of(function, value) == (None, [])
    assert of(labels_of, value) == ([], [])
    assert of(labels_of, [value, "AF"]) == (["AF"], [])


@pytest.mark.parametrize(
    "value", [0, 0.0, False, "0", [], (), {}, [None], np.zeros(2), np.int64(0), "n"], ids=repr
)
def test_values_that_are_there(value):
    assert not is_missing(value)


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (7, "7"),
        (7.0, "7"),
        (np.float64(7), "7"),
        (np.int32(7), "7"),
        (torch.tensor(7), "7"),
        (np.array(7), "7"),
        ("7", "7"),
        ("7.0", "7"),
        ("15709.0", "15709"),
        (" p 7 ", "p 7"),
        (b"p7", "p7"),
        (np.str_("p7"), "p7"),
        (np.bytes_(b"p7"), "p7"),
        (-7, "-7"),
        ("-7.0", "-7"),
        ("007", "007"),
        ("1.2.840.0", "1.2.840.0"),
        (7.5, "7.5"),
        (2**70, str(2**70)),
        (uuid.UUID(int=7), str(uuid.UUID(int=7))),
    ],
)
def test_identities(value, want):
    found, warnings = of(identity, value)
    assert (found, warnings) == (want, [])
    assert type(found) is str


@pytest.mark.parametrize(
    "value",
    [
        True,
        [1, 2],
        {"a": 1},
        np.zeros(2),
        float("inf"),
        1e17,
        np.float32(2**24),
        1j,
        "a\nb",
        "\ud800",
        object(),
    ],
)
def test_odd_identities_are_unknown(value):
    """Floating point that has not every whole number makes one person of several."""
    assert of(identity, value) == (None, ["patient_id"])


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (63, 63),
        ("63", 63),
        ("63.5", 63.5),
        ("063Y", 63),
        ("006M", 0.5),
        ("52W", 52 * 7 / 365.25),
        ("63 years", 63),
        (np.float32(63), 63),
        (torch.tensor(63), 63),
        (0, 0),
        (125, 125),
    ],
)
def test_ages(value, want):
    found, warnings = of(years, value)
    assert (found, warnings) == (pytest.approx(want), [])


@pytest.mark.parametrize(
    "value", [-3, 126, 300, "old", "Y", True, [63], float("inf"), 1j, np.zeros(3), "1e999"]
)
def test_odd_ages_are_unknown(value):
    assert of(years, value) == (None, ["age"])


@pytest.mark.parametrize(
    ("value", "want"),
    [
        ("F", "F"),
        ("female", "F"),
        (" Male ", "M"),
        ("m", "M"),
        (b"F", "F"),
        (np.str_("M"), "M"),
        ("other", None),
    ],
)
def test_sexes(value, want):
    assert of(sex_of, value) == (want, [])


@pytest.mark.parametrize("value", [0, 1, "1", 2.0, "q", True, ["F"], np.array(["F", "M"])])
def test_odd_sexes_are_unknown(value):
    """0 and 1 are: a source has to say which is which."""
    assert of(sex_of, value) == (None, ["sex"])


@pytest.mark.parametrize(("value", "want"), [(0, "M"), ("1", "F"), (1.0, "F"), ("0.0", "M"), ("male", "M")])
def test_codes_of_sexes(value, want):
    assert of(sex_of, value, codes={0: "M", 1: "F"}) == (want, [])
    assert of(sex_of, 2, codes={0: "M", 1: "F"}) == (None, ["sex"])


@pytest.mark.parametrize(
    ("value", "want"), [(3, 3), ("3", 3), (3.0, 3), ("3.0", 3), (-1, -1), (np.int8(3), 3)]
)
def test_folds(value, want):
    assert of(fold_of, value) == (want, [])


@pytest.mark.parametrize("value", [1.5, "a", 2**31, True, [1]])
def test_odd_folds_are_unknown(value):
    assert of(fold_of, value) == (None, ["fold"])


@pytest.mark.parametrize(
    ("value", "want"),
    [
        ("AF", ["AF"]),
        ("AF; SR", ["AF", "SR"]),
        (["AF", 426783006, 59118001.0], ["AF", "426783006", "59118001"]),
        (("AF", "AF", None), ["AF"]),
        ({"SR", "AF"}, ["AF", "SR"]),
        ({"NORM": 100.0, "SR": 0.0}, ["NORM", "SR"]),
        (np.array(["AF", "SR"]), ["AF", "SR"]),
        (np.array([1.0, np.nan]), ["1"]),
        (pd.Series(["AF", pd.NA]), ["AF"]),
        (torch.tensor([1, 2]), ["1", "2"]),
        (426783006, ["426783006"]),
        (iter("ab"), ["a", "b"]),
        ([], []),
    ],
)
def test_labels(value, want):
    assert of(labels_of, value) == (want, [])


@pytest.mark.parametrize(
    ("value", "want"), [([["AF"], "SR"], ["SR"]), (np.zeros((2, 2)), []), ([True, "a\nb"], [])]
)
def test_odd_labels_are_left_out(value, want):
    found, warnings = of(labels_of, value)
    assert found == want
    assert set(warnings) == {"labels"}
