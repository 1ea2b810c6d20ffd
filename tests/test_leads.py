import pytest

from ecgfast.errors import EcgfastError
from ecgfast.leads import STANDARD_LEADS, LeadNames, find_lead, find_leads, lead_indices


def test_standard_order():
    assert " ".join(STANDARD_LEADS) == "I II III aVR aVL aVF V1 V2 V3 V4 V5 V6"
    assert lead_indices(STANDARD_LEADS) == list(range(12))


def test_any_case_and_any_order():
    assert lead_indices(["v6", "AVR", "avl", "iii", " I "]) == [11, 3, 4, 2, 0]


SPELLINGS = {
    "I": "I|i| I |DI|D1|LI|Lead I|lead_I|LeadI|ECG I|ECG Lead I|EKG I|I (mV)|I [uV]|I (\u00b5V)|\u2160",
    "II": "DII|D2|ii|ECG II|lead II|LII|MDC_ECG_LEAD_II|Lead II (Einthoven)|Deriva\u00e7\u00e3o II|ECG_II",
    "III": "DIII|d3|ECG lead III|Ableitung III|III lead",
    "aVR": "AVR|avr|aVr|a-VR|aV R|ECG AVR|MDC_ECG_LEAD_AVR|aVR (mV)|Lead aVR",
    "V1": "v1|Lead V1|V-1|V 1|V_1|ECG V1|lead v1|MDC_ECG_LEAD_V1|V1:",
}


@pytest.mark.parametrize("lead", SPELLINGS)
def test_spellings_in_use(lead):
    for name in SPELLINGS[lead].split("|"):
        assert (name, find_lead(name)) == (name, STANDARD_LEADS.index(lead))


OTHERS = "MLII|V|V7|ECG 1||VI|1|-aVR|Lead -aVR|aVRneg|VR|C1|C3|ECG|ECG1|ECG I filtered|V3R|V1-V2"
OTHERS += "|ML2|ST_I|I+|mod.V1|MLI|A-I|D4|Lead 1|Resp|CM5|MDC_ECG_LEAD_AVRneg|lead|E-S|vx|D12|MCL1|L1|V10|V01"
OTHERS += "|I I|LL|V1-|aVR-|ECG - I"


def test_chest_leads_beside_limb_leads():
    assert lead_indices(["DI", "C1", "c6"]) == [0, 6, 11]
    for names in (["C3", "C4"], ["I", "V1", "C2"]):
        with pytest.raises(EcgfastError, match="unknown lead"):
            lead_indices(names)


@pytest.mark.parametrize("name", [*OTHERS.split("|"), "I" * 10**6])
def test_other_leads_are_not_taken_for_standard_ones(name):
    assert find_lead(name) is None
    with pytest.raises(EcgfastError, match=r"leads must be of I, II, III, aVR.* got unknown lead"):
        lead_indices([name])


INVERTED = (
    "-V1|ECG -V1|ecg--V2|-v 3|-I|ECG -II|lead -aVR|lead--I|ECG - V1|ecg_-v1|ecg:-V1|MDC_ECG_LEAD_-V1|-D1"
)
INVERTED += "|ECG -D-I|\u2212V1|V--1|D -I|'-V1'|-V1 (mV)|-I mV"


@pytest.mark.parametrize("name", INVERTED.split("|"))
def test_a_minus_is_a_sign(name):
    assert find_lead(name) is None
    assert find_leads(["I", name.replace("V", "C")])[1] is None


def test_a_hyphen_joins_the_words_and_the_name():
    assert [find_lead(name) for name in ("ECG-V1", "lead-I", "a-VR", "V-1", "aV-F")] == [6, 0, 3, 6, 5]


def test_more_spellings():
    names = [
        "D I",
        "D-I",
        "d 2",
        "L III",
        "L-III",
        "I uV",
        "II mV",
        "I, mV",
        '"II"',
        "'aVF'",
        "V1,mV",
        "V_2_uV",
    ]
    assert [find_lead(name) for name in names] == [0, 0, 1, 2, 2, 0, 1, 0, 1, 5, 6, 7]
    assert find_leads(["I", "Lead C1", "C 2", "MDC_ECG_LEAD_C3", "C_4", "C7", "CM5"]) == [
        0,
        6,
        7,
        8,
        9,
        None,
        None,
    ]


def test_other_types_are_told_in_one_line():
    assert lead_indices(name for name in ("I", "V2")) == [0, 7]
    for names in (5, None, b"I"):
        with pytest.raises(EcgfastError, match=r"^leads must be a list of lead names .*, got .*$"):
            lead_indices(names)
    with pytest.raises(EcgfastError, match=r"^rename must have names that are text, got 5$"):
        LeadNames.of({5: "I"})
    with pytest.raises(EcgfastError, match=r"^rename must be a mapping .*, got \['a'\]$"):
        LeadNames.of(["a"])
    with pytest.raises(EcgfastError, match=r"^leads must be a list of lead names .*, got 5$"):
        LeadNames.of(leads=5)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["I", "i"], "once each, got I twice"),
        (["Lead II", "DII"], "once each, got II twice"),
        ([], "at least one"),
        ("II", "must be a list"),
        ([0, 1], "must be a list"),
    ],
)
def test_refused(names, message):
    with pytest.raises(EcgfastError, match=message):
        lead_indices(names)


def test_encoders_know_the_same_spellings():
    from ecgfast.nn import Encoder, EncoderConfig

    config = EncoderConfig(
        stem_channels=16, width=32, layers=1, heads=2, ffn=48, conv_pos=8, conv_pos_groups=2
    )
    assert Encoder(config)._channels(["DII", "Lead V1", "ECG I"]) == [1, 6, 0]
