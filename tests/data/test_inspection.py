"""`ecgfast inspect`: figures of a store, and a page of ECG paper."""

import json

import numpy as np
import pytest
from matplotlib.image import imread

from ecgfast.cli import main
from ecgfast.data import Store, prepare, summarize, write_synthetic
from ecgfast.errors import EcgfastError
from ecgfast.leads import STANDARD_LEADS
from ecgfast.plotting import plot_recording


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    folder = tmp_path_factory.mktemp("inspect")
    write_synthetic(folder / "wfdb", patients=3, records=2, seconds=11, seed=4, progress=False)
    (folder / "wfdb" / "bad.hea").write_text("nonsense\n")
    prepare(folder / "wfdb", folder / "store", progress=False)
    return Store(folder / "store")


def test_figures(store):
    found = summarize(store)
    assert (found.n_recordings, found.n_patients, found.recordings_per_patient) == (6, 3, (2, 2.0, 2))
    assert found.seconds == (11, 11, 11)
    assert found.hours == pytest.approx(66 / 3600)
    assert found.pairs == 6
    assert found.leads == dict.fromkeys(STANDARD_LEADS, 6)
    assert found.source_rates == {"500": 6}
    assert sum(found.sex.values()) == 6
    assert found.labels == dict(sorted(found.labels.items(), key=lambda item: (-item[1], item[0])))
    assert (found.n_rejected, found.rejected) == (1, {"unreadable": 1})
    assert sum(found.bytes.values()) == sum(f.stat().st_size for f in store.path.iterdir())
    assert json.loads(json.dumps(found.as_dict()))["n_recordings"] == 6


def test_command_prints_figures(store, capsys, tmp_path):
    out = tmp_path / "figures.json"
    assert main(["inspect", str(store.path), "--verify", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "recordings   6 of 3 patients (2 to 2 each, median 2)" in text
    assert "all 12 in every recording" in text
    assert "rejected     1: unreadable 1 (rejected.csv)" in text
    assert "every signal has its checksum" in text
    assert json.loads(out.read_text())["n_patients"] == 3


def test_command_draws_a_recording(store, capsys, tmp_path):
    record = store.index["record_id"][2].as_py()
    page = tmp_path / "page.png"
    assert main(["inspect", str(store.path), "--record", record, "--plot", str(page)]) == 0
    text = capsys.readouterr().out
    assert record in text
    assert "duration     11 s" in text
    assert imread(page).shape[:2] == (1550, 2850)  # ten pixels a millimetre


def ink(page) -> np.ndarray:
    """Dark pixels; row 0 at the top."""
    return imread(page)[..., :3].max(axis=2) < 0.35


def test_the_page_is_true_to_scale(tmp_path):
    """A 1 mV step after exactly one second in the strip's lead, in a page of 10 pixels per millimetre."""
    signal = np.zeros((12, 5000), np.int16)
    signal[1, 500:] = 1000
    plot_recording(signal, STANDARD_LEADS, tmp_path / "step.png", rate=500)
    dark = ink(tmp_path / "step.png")
    rows = np.flatnonzero(dark[1100:1400, 400]) + 1100  # before the step
    later = np.flatnonzero(dark[1100:1400, 1500]) + 1100  # after it
    assert abs((rows.mean() - later.mean()) - 100) < 3  # 10 mm
    column = np.flatnonzero(dark[round(rows.mean()) - 50, 280:1000]) + 280  # half-way up the step
    assert abs(column.mean() - (100 + 150 + 250)) < 4  # margin, pulse, 25 mm


def test_absent_leads_are_named_and_not_drawn(tmp_path):
    signal = np.full((12, 5000), 500, np.int16)
    plot_recording(signal, ["I"], tmp_path / "one.png")
    plot_recording(signal, STANDARD_LEADS, tmp_path / "all.png")
    lead_i, v4 = (slice(340, 360), slice(300, 800)), (slice(340, 360), slice(2100, 2600))
    assert ink(tmp_path / "one.png")[lead_i].any()
    assert not ink(tmp_path / "one.png")[v4].any()
    assert ink(tmp_path / "all.png")[v4].any()


def test_names_are_clear_of_the_trace(tmp_path):
    """A tall wave at the beginning of a lead lifts its name."""
    flat, tall = np.zeros((2, 12, 5000), np.int16)
    tall[:, 1290:1310] = 1500  # 2 to 3 mm behind the beginning of aVR
    plot_recording(flat, STANDARD_LEADS, tmp_path / "flat.png")
    plot_recording(tall, STANDARD_LEADS, tmp_path / "tall.png")
    baseline, left = 400, 875
    name = (slice(baseline - 130, baseline - 100), slice(left + 40, left + 80))
    lifted = (slice(baseline - 190, baseline - 155), slice(left + 10, left + 80))
    assert ink(tmp_path / "flat.png")[name].any()
    assert not ink(tmp_path / "flat.png")[lifted].any()
    assert not ink(tmp_path / "tall.png")[name].any()
    assert ink(tmp_path / "tall.png")[lifted].any()


def test_short_recordings_and_later_pages(tmp_path):
    signal = np.full((12, 1700), 300, np.int16)
    plot_recording(signal, STANDARD_LEADS, tmp_path / "short.png", start=1.0)
    strip = ink(tmp_path / "short.png")[1200:1500]
    assert strip[:, 300:800].any()
    assert not strip[:, 900:].any()  # 2.4 s are left


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--record", "nobody"], "has no 'nobody'; it has"),
        (["--plot", "x.png"], "plot: want --record ID beside it"),
    ],
)
def test_command_with_bad_input(store, capsys, arguments, message):
    assert main(["inspect", str(store.path), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"signal": np.zeros((3, 5000), np.int16)}, "signal: got shape"),
        ({"start": 10.0}, "start: got 10 s of a recording of 10 s"),
        ({"rhythm": "MLII"}, "rhythm: got 'MLII'"),
    ],
)
def test_bad_pages(tmp_path, change, message):
    arguments = {"signal": np.zeros((12, 5000), np.int16), "present": [], "out": tmp_path / "x.png"} | change
    with pytest.raises(EcgfastError, match=message):
        plot_recording(**arguments)
    assert not list(tmp_path.iterdir())
