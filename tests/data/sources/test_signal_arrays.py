"""Signals of any library's arrays: the same microvolts, or a reason."""

import numpy as np
import pandas as pd
import pytest
import torch

from ecgfast.data import Preprocessing, Store, write_store
from ecgfast.data.signal.preprocess import Rejected
from ecgfast.data.sources.signal_arrays import array_leads
from ecgfast.errors import EcgfastError
from ecgfast.leads import STANDARD_LEADS, LeadNames
from tests.data.made import sines

MV = sines() / 1000
UV = sines()


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


class Foreign:
    """An array of a library that ecgfast knows nothing of."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        if isinstance(self.array, Exception):
            raise self.array
        return self.array


TAKEN = {
    "float64": MV,
    "float32": MV.astype(np.float32),
    "longdouble": MV.astype(np.longdouble),
    "big-endian": MV.astype(">f4"),
    "read-only": read_only(MV),
    "fortran": np.asfortranarray(MV),
    "reversed": MV[:, ::-1][:, ::-1],
    "strided": np.repeat(MV, 2, axis=1)[:, ::2],
    "int16": UV,
    "big-endian int16": UV.astype(">i2"),
    "memoryview": memoryview(np.ascontiguousarray(MV)),
    "nested lists": MV.tolist(),
    "list of arrays": list(MV),
    "list of tensors": [torch.tensor(lead, requires_grad=True) for lead in MV],
    "objects": MV.astype(object),
    "array of arrays": np.array([*MV, None], dtype=object)[:12],
    "unmasked": np.ma.array(MV, mask=False),
    "unmasked int16": np.ma.array(UV, mask=np.zeros(UV.shape, dtype=bool)),
    "frame": pd.DataFrame(MV),
    "nullable frame": pd.DataFrame(MV).convert_dtypes(),
    "frame of leads": pd.DataFrame(MV.T, columns=STANDARD_LEADS),
    "tensor": torch.tensor(MV),
    "tensor int16": torch.tensor(UV),
    "gradient": torch.tensor(MV, requires_grad=True),
    "parameter": torch.nn.Parameter(torch.tensor(MV)),
    "not contiguous": torch.tensor(MV).T.contiguous().T,
    "sparse": torch.tensor(MV).to_sparse(),
    "negative view": torch._neg_view(torch.tensor(-MV)),
    "foreign": Foreign(MV),
}


@pytest.mark.parametrize("name", TAKEN)
def test_the_same_microvolts_from_any_array(name):
    leads, unit, _ = array_leads(TAKEN[name], 500, None)
    assert sorted(leads) == list(range(12))
    assert unit == ("uV" if "int16" in name else "mV")
    found = np.stack([leads[i].signal for i in range(12)])
    assert found.dtype == np.float64
    np.testing.assert_array_equal(np.rint(found), UV)


@pytest.mark.parametrize(("dtype", "step"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_short_floats(dtype, step):
    leads, _, _ = array_leads(torch.tensor(MV).to(dtype), 500, None)
    for i in range(12):
        np.testing.assert_allclose(leads[i].signal, UV[i], atol=step * 1000)


def test_missing_samples_are_nan():
    masked = np.ma.array(UV, mask=np.zeros(UV.shape, dtype=bool))
    masked[3, 7] = np.ma.masked
    frame = pd.DataFrame(MV).astype("Float64")
    frame.iloc[3, 7] = pd.NA
    objects = MV.astype(object)
    objects[3, 7] = None
    for signal in (masked, frame, objects):
        leads, _, _ = array_leads(signal, 500, None)
        assert [int(np.isnan(leads[i].signal).sum()) for i in range(12)] == [0, 0, 0, 1, *[0] * 8]
        assert np.isnan(leads[3].signal[7])
        np.testing.assert_allclose(leads[0].signal, UV[0])


REFUSED = {
    "meta": (torch.tensor(MV, device="meta"), "type: the signal is a tensor on the device meta"),
    "complex": (MV + 0j, "type: the signal is complex128"),
    "complex tensor": (torch.tensor(MV) + 0j, "type: the signal is complex128"),
    "bool": (MV > 0, "type: the signal is bool"),
    "text": (np.full((12, 5000), "a"), "type: the signal is <U1"),
    "objects": (np.full((12, 5000), {}, dtype=object), "type: the signal holds {}"),
    "times": (np.zeros((12, 5000), "datetime64[s]"), r"type: the signal is datetime64"),
    "record": (np.zeros((12, 5000), [("a", "f4")]), r"type: the signal is \[\('a'"),
    "int64": (UV.astype(np.int64), "no unit is given.*pass unit='uV'.*gain="),
    "masked int32": (np.ma.masked_equal(UV.astype(np.int32), 0), "no unit is given.*pass unit='uV'.*gain="),
    "uint8": (np.zeros((12, 5000), np.uint8), "no unit is given"),
    "raises": (Foreign(KeyError("x")), "type: the signal can't be made an array: KeyError: 'x'"),
    "raises nothing": (Foreign(RuntimeError()), "can't be made an array: RuntimeError"),
    "none": ({}, "type: the signal holds {}"),
    "ragged": ([[1.0, 2.0], [3.0]], r"shape: .*got leads of shapes \[1\] and \[2\]"),
    "ragged arrays": ([MV[0], MV[1][:-1]], r"shape: .*got leads of shapes \[4999\] and \[5000\]"),
    "series": (pd.Series(MV[0]), r"shape: .*got \[5000\]; .*signal\[None\].*leads=\['II'\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_signal_has_a_reason(name):
    signal, reason = REFUSED[name]
    with pytest.raises(Rejected, match=f"^(?s:.*){reason}"):
        array_leads(signal, 500, None)


@pytest.mark.parametrize(
    ("shape", "names", "advice"),
    [
        ((5000, 12), None, r"got \[5000, 12\]; transpose it: signal\.T"),
        ((1, 12, 5000), None, r"got \[1, 12, 5000\]; drop its axes of one: signal\.squeeze\(\)"),
        ((7, 5000, 12), None, r"got \[7, 5000, 12\]; give its 7 recordings one by one: signal\[i\]\.T"),
        ((7, 12, 5000), None, r"got \[7, 12, 5000\]; give its 7 recordings one by one: signal\[i\]$"),
        ((12,), None, r"got \[12\]; if it is one lead, signal\[None\] with its name, leads=\['II'\]"),
        ((5000,), ["II"], r"got \[5000\]; add the axis of its one lead: signal\[None\]"),
        ((8, 5000), None, r"got \[8, 5000\], while 12 leads are named; name those that it has: leads="),
        ((5000, 8), None, r"got \[5000, 8\]; transpose it, signal\.T, and name its 8 leads: leads="),
        ((), None, r"got \[\]"),
    ],
)
def test_the_first_try_ends_in_knowing_what_to_do(tmp_path, shape, names, advice):
    message = rf"shape: signal must be \[leads, samples\], {advice}"
    with pytest.raises(Rejected, match=message):
        array_leads(np.zeros(shape), 500, names)
    record = {"signal": np.zeros(shape), "rate": 500} | ({"leads": names} if names else {})
    with pytest.raises(EcgfastError, match=f"none of 1 can be taken: shape 1; such as {message.rstrip('$')}"):
        write_store([record], tmp_path / "store")


@pytest.mark.parametrize(
    ("factor", "dtype", "options"),
    [
        (1e-3, np.float64, {"unit": "V"}),
        (1e-3, np.float64, {"unit": " v "}),
        (1e3, np.float64, {"unit": "uV"}),
        (1e3, np.int64, {"unit": "µV"}),
        (1e3, np.int32, {"unit": "\u03bcV"}),
        (1e6, np.float64, {"unit": "nV"}),
        (1, np.float64, {"unit": "mV"}),
        (200, np.int32, {"gain": 200}),
        (200, np.int16, {"gain": "200"}),
        (200, np.float32, {"gain": [200.0] * 12}),
        (2e5, np.int64, {"gain": 2e5, "unit": "mV"}),
        (0.2, np.float64, {"gain": 200, "unit": "V"}),
    ],
)
def test_units_and_gains(tmp_path, factor, dtype, options):
    signal = (
        (MV * factor).astype(dtype)
        if np.issubdtype(dtype, np.floating)
        else np.rint(MV * factor).astype(dtype)
    )
    write_store([{"signal": signal, "rate": 500, **options}], tmp_path / "store")
    store = Store(tmp_path / "store")
    assert np.abs(store.signal(0).astype(int) - UV).max() <= (3 if np.issubdtype(dtype, np.integer) else 0)
    assert store.description["warnings"] == {}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"unit": "volt"}, "unit must be V, mV, uV, nV, got 'volt'"),
        ({"unit": 3}, "unit must be .*, got 3"),
        ({"gain": 0}, "gain must be a positive number, or one for each of the 12 leads, got 0"),
        ({"gain": "x"}, "gain must be .*, got 'x'"),
        ({"gain": [200] * 11}, "gain must be .*, got"),
        ({"gain": -1}, "gain must be .*, got -1"),
        ({"names": "II"}, r"leads must be a list of lead names such as \['I', 'II'\], got 'II'"),
        ({"names": set(STANDARD_LEADS)}, "leads must be a list of lead names .*, got "),
    ],
)
def test_bad_units_gains_and_leads(options, reason):
    with pytest.raises(Rejected, match=f"^{reason}"):
        array_leads(MV, 500, **({"names": None} | options))


def test_one_odd_record_among_others_costs_itself_alone(tmp_path):
    """And nothing of it aborts: the others are there whole."""
    odd = [signal for signal, _ in REFUSED.values()] + [None, np.nan, "signal", 7, object()]
    good = {"signal": MV, "rate": 500}
    records = [{"signal": signal, "rate": 500} for signal in odd]
    report = write_store([good, *records, good], tmp_path / "store")
    assert (report.n_imported, report.n_rejected) == (2, len(odd))
    np.testing.assert_array_equal(Store(tmp_path / "store").signal(1), UV)


def test_names_that_a_user_gives(tmp_path):
    """As for files: `rename` for single names, `by_position` for signals of other names or none."""
    two = {"signal": MV[[1, 10]], "rate": 500}
    renaming = Preprocessing(names=LeadNames.of(rename={"MLII": "II"}))
    write_store([two | {"leads": ["mlii", "V5"]}], tmp_path / "renamed", preprocessing=renaming)
    placing = Preprocessing(names=LeadNames.of(leads=["II", "-"]))
    write_store([two], tmp_path / "placed", preprocessing=placing)
    for name, leads in {"renamed": ["II", "V5"], "placed": ["II"]}.items():
        store = Store(tmp_path / name)
        assert store.index["leads"].to_pylist() == [leads]
        np.testing.assert_array_equal(store.signal(0)[1], UV[1])
    with pytest.raises(EcgfastError, match=r"signals are MLII, X \(--rename, --leads; LeadNames.of\)"):
        write_store([two | {"leads": ["MLII", "X"]}], tmp_path / "other")


@pytest.mark.parametrize("gain", [np.nan, None, "", "NA", np.float32("nan")])
def test_counts_without_their_gain_are_no_microvolts(tmp_path, gain):
    record = {"signal": UV.astype(np.int16), "rate": 500, "gain": gain}
    with pytest.raises(EcgfastError, match="gain must be a number, got nothing"):
        write_store([record], tmp_path / "store")
    write_store([record | {"unit": "uV"}, {"signal": MV, "rate": 500, "gain": gain}], tmp_path / "store")
    np.testing.assert_array_equal(Store(tmp_path / "store").signal(0), UV)
    np.testing.assert_array_equal(Store(tmp_path / "store").signal(1), UV)


def test_signals_that_are_no_standard_lead_are_told(tmp_path):
    """As for files: the standard ones are stored."""
    two = {"signal": MV[[1, 10]], "rate": 500}
    report = write_store([two | {"leads": ["MLII", "V5"]}], tmp_path / "store")
    assert report.unused == {"MLII": 1}
    store = Store(tmp_path / "store")
    assert store.index["leads"].to_pylist() == [["V5"]]
    np.testing.assert_array_equal(store.signal(0)[10], UV[10])
    how = Preprocessing(names=LeadNames.of(leads=["-", "V5"]))
    assert write_store([two], tmp_path / "placed", preprocessing=how).unused == {"unnamed": 1}
    write_store([two | {"leads": ["I", "II"]}], tmp_path / "named", preprocessing=how)  # its own names rule
    assert Store(tmp_path / "named").index["leads"].to_pylist() == [["I", "II"]]
