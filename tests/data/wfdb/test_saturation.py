"""Leads that a converter cut off, and leads that a writer scaled to fill the range."""

import numpy as np
import pytest
import wfdb

from ecgfast.data.signal.preprocess import Preprocessing, Rejected
from ecgfast.data.sources import wfdb_records
from ecgfast.data.sources.wfdb_records import read_recording


def read(folder, monkeypatch):
    """The leads, or the reason why there are none; the same in both ways."""
    found = []
    for direct in (True, False):
        with monkeypatch.context() as patch:
            if not direct:
                patch.setattr(wfdb_records, "direct_block", lambda *args: None)
            try:
                found.append(read_recording(folder, "r.hea", Preprocessing()).leads)
            except Rejected as rejected:
                found.append(str(rejected))
    assert found[0] == found[1]
    return found[0]


REAL = [1, 37, 39, 100, 105, 106, 109, 111, 112, 115, 116, 120, 124, 133]
"""Records of LUDB whose leads stay longest at their extremes, up to 0.28 s, and one more."""


@pytest.mark.parametrize("form", ["16", "24", "80", "212"])
def test_scaled_to_the_ends_of_the_range(shared, tmp_path, monkeypatch, form):
    for number in REAL:
        record = wfdb.rdrecord(str(shared(f"data/ludb/{number}.hea").with_suffix("")))
        options = {"p_signal": record.p_signal, "fmt": [form] * 12, "write_dir": str(tmp_path)}
        wfdb.wrsamp("r", 500, record.units, record.sig_name, **options)
        assert len(read(tmp_path, monkeypatch)) == 12, number


@pytest.mark.parametrize("share", [0.75, 0.5])
@pytest.mark.parametrize("end", [32767, 2047])
def test_real_waves_that_are_cut_off(shared, tmp_path, monkeypatch, share, end):
    """At the end of the format's range, and of a narrower converter's in a wider format."""
    for number in (2, 7, 31, 150):
        record = wfdb.rdrecord(str(shared(f"data/ludb/{number}.hea").with_suffix("")), physical=False)
        wide = record.d_signal - np.median(record.d_signal, axis=0)
        wide = np.rint(wide * (end / np.abs(wide).max(axis=0) * 0.99))
        for name, signal in (("whole", wide), ("cut", np.clip(np.rint(wide / share), -end, end))):
            gains = {"adc_gain": [end / 3.0] * 12, "baseline": [0] * 12}
            options = {"d_signal": signal.astype(int), "fmt": ["16"] * 12, "write_dir": str(tmp_path)}
            wfdb.wrsamp("r", 500, ["mV"] * 12, record.sig_name, **options, **gains)
            found = read(tmp_path, monkeypatch)
            assert (len(found) == 12) if name == "whole" else found.startswith("saturated: "), number
