"""What a model's training data and a store differ in, in words."""

import pytest

from ecgfast.data import Preprocessing, describe_differences
from ecgfast.errors import EcgfastError
from ecgfast.leads import STANDARD_LEADS, LeadNames

PLAIN = Preprocessing().describe()
FILTERED = Preprocessing(bandpass=(0.5, 40.0), notch=50.0, derive_leads=True).describe()
BESIDE = {"sample_rate": 500, "unit": "microvolt", "leads": list(STANDARD_LEADS)}


def test_what_is_the_same():
    renamed = Preprocessing(names=LeadNames(rename=(("MLII", "II"),)), longest_gap=1.0).describe()
    for model in (PLAIN, renamed, {**PLAIN, **BESIDE, "sources": ["ptbxl"]}, None, [FILTERED, PLAIN]):
        assert describe_differences(model, PLAIN) == []
    # Official checkpoints tell less, and of the leads only their own.
    official = {
        "filters": [],
        "derived_leads": [],
        "sample_rate": 500,
        "leads": ["I", "II"],
        "sources": ["f"],
    }
    assert describe_differences(official, PLAIN | BESIDE) == []


def test_differences_in_words():
    assert describe_differences(FILTERED, PLAIN) == [
        "band-pass 0.5 to 40 Hz in the model's training, no band-pass here",
        "notch at 50 Hz in the model's training, no notch here",
        "derived leads III, aVR, aVL, aVF in the model's training, none here",
    ]
    assert describe_differences([FILTERED, {**PLAIN, "resampling": "fourier"}], PLAIN) == [
        "resampling fourier in the model's training, polyphase here"
    ]
    other = {**PLAIN, **BESIDE, "sample_rate": 250, "normalized": "unit variance"}
    assert describe_differences(other, PLAIN | BESIDE) == [
        "normalized unit variance in the model's training, untold here",
        "sample rate 250 in the model's training, 500 here",
    ]
    wider = describe_differences(PLAIN, Preprocessing(bandpass=(0.0, 100.0)).describe())
    assert wider == ["no band-pass in the model's training, band-pass 0 to 100 Hz here"]


@pytest.mark.parametrize("model", ["none", [], [1], 3])
def test_what_is_no_description(model):
    with pytest.raises(EcgfastError, match="preprocessing: must be an object or a list of objects, got"):
        describe_differences(model, PLAIN)
