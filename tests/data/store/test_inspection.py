"""`ecgfast inspect`: figures of a store, and a page of ECG paper."""

import csv
import json
import re

import numpy as np
import pytest
from matplotlib.image import imread

from ecgfast.cli import main
from ecgfast.data import Store, prepare, summarize, write_synthetic
from ecgfast.data.store.codes import SCP, SNOMED_CT, name_of, with_name
from ecgfast.errors import EcgfastError
from ecgfast.leads import STANDARD_LEADS
from ecgfast.plotting import arrange_leads, plot_recording


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


@pytest.mark.parametrize(
    ("leads", "rows", "strip"),
    [
        (["I"], [["I"]], False),
        (["V2", "I"], [["I"], ["V2"]], False),
        (["I", "II", "V2"], [["I"], ["II"], ["V2"]], False),
        (["I", "II", "III", "V2"], [["I", "III"], ["II", "V2"]], True),
        (STANDARD_LEADS[:6], [["I", "aVR"], ["II", "aVL"], ["III", "aVF"]], True),
        (STANDARD_LEADS[6:], [["V1", "V4"], ["V2", "V5"], ["V3", "V6"]], True),
        (STANDARD_LEADS[:7], [["I", "aVL"], ["II", "aVF"], ["III", "V1"], ["aVR"]], True),
        (["I", "II", *STANDARD_LEADS[6:]], [["I", "V3"], ["II", "V4"], ["V1", "V5"], ["V2", "V6"]], True),
        (STANDARD_LEADS, [STANDARD_LEADS[row::3] for row in range(3)], True),
    ],
)
def test_pages_are_full_of_the_leads_that_are_there(tmp_path, leads, rows, strip):
    """Every row is drawn from its left end to its right one; nothing tells of a lead that is absent."""
    present = [lead for lead in STANDARD_LEADS if lead in leads]
    assert arrange_leads(present) == [list(row) for row in rows]
    plot_recording(np.full((12, 5000), 500, np.int16), leads, tmp_path / "page.svg")
    plot_recording(np.full((12, 5000), 500, np.int16), leads, tmp_path / "page.png")
    page = ink(tmp_path / "page.png")
    assert page.shape == (350 + 300 * (len(rows) + strip), 2850)
    for row in range(len(rows) + strip):
        trace = page[345 + 300 * row : 355 + 300 * row, 250:2750]  # 0.5 mV above the row's baseline
        assert trace.any(axis=0).all()
    names = re.findall(r">([IVaRLF]+\d?)</text>", (tmp_path / "page.svg").read_text())
    lead = next(lead for lead in ("II", "I", "V1") if lead in present)
    assert names == [name for row in rows for name in row] + [lead] * strip
    assert "absent" not in (tmp_path / "page.svg").read_text()


def test_the_strip_is_of_the_lead_asked_for(tmp_path):
    signal = np.zeros((12, 5000), np.int16)
    signal[STANDARD_LEADS.index("V5")] = 500
    plot_recording(signal, STANDARD_LEADS, tmp_path / "page.png", rhythm="v5")
    assert ink(tmp_path / "page.png")[1245:1255, 250:2750].any(axis=0).all()
    with pytest.raises(EcgfastError, match="rhythm: got 'V1', which the recording lacks, want one of I, II"):
        plot_recording(signal, ["I", "II"], tmp_path / "x.png", rhythm="V1")
    assert not (tmp_path / "x.png").exists()


def test_large_waves_and_offsets_stay_on_the_page(tmp_path):
    signal = np.zeros((12, 5000), np.int16)
    signal[1, 500:] = 1000
    signal[1] += 9000
    plot_recording(signal, ["II"], tmp_path / "offset.svg")
    assert "II (+10.0 mV)" in (tmp_path / "offset.svg").read_text()  # the median
    signal[1] = 0
    signal[1, 500:1500] = 1000
    for factor, gain in ((4, 10), (5, 5), (9, 2.5), (30, 1)):
        plot_recording(factor * signal, ["I", "II"], tmp_path / "large.svg")
        assert f"{gain:g} mm/mV" in (tmp_path / "large.svg").read_text()
    plot_recording(5 * signal, STANDARD_LEADS, tmp_path / "large.png")
    dark = ink(tmp_path / "large.png")[1020:1350, 750]
    assert abs(np.flatnonzero(dark).mean() + 1020 - (1300 - 250)) < 4  # 5 mV are 25 mm


def test_short_recordings_show_every_lead(tmp_path):
    signal = np.full((12, 1500), 500, np.int16)
    plot_recording(signal, STANDARD_LEADS, tmp_path / "short.png")
    assert ink(tmp_path / "short.png")[345:355, 250:2750].any(axis=0).all()
    assert not ink(tmp_path / "short.png")[1245:1255, 1100:].any()  # the strip has 3 s


def test_heart_rate_and_names_of_codes(store, capsys, tmp_path):
    record = store.index["record_id"][0].as_py()
    page = tmp_path / "page.svg"
    assert main(["inspect", str(store.path), "--record", record, "--plot", str(page)]) == 0
    text = capsys.readouterr().out
    rate = int(re.search(r"heart rate +(\d+) /min", text)[1])
    labels = store.index["labels"][0].as_py()
    assert all(label in SNOMED_CT for label in labels)
    drawn = " ".join(re.findall(r">([^<]+)</text>", page.read_text()))
    assert re.search(rf"HR {rate} /min|HR {rate + 1} /min|HR {rate - 1} /min", drawn)  # 10 s of its 11
    for label in labels:
        assert f"{label} ({SNOMED_CT[label]})" in text
        assert f"{label} ({SNOMED_CT[label]})" in drawn
    plot_recording(np.zeros((12, 5000), np.int16), ["I"], page, labels=["AFIB", "my label", "1"])
    assert "HR ?   AFIB (atrial fibrillation), my label, 1<" in page.read_text()
    assert main(["inspect", str(store.path), "--json", str(tmp_path / "x.json")]) == 0
    names = json.loads((tmp_path / "x.json").read_text())["label_names"]
    assert names == {
        label: SNOMED_CT[label] for label in store.index["labels"].combine_chunks().flatten().to_pylist()
    }
    text = capsys.readouterr().out
    assert all(f"{label} ({name}) " in text for label, name in names.items())


def test_known_codes(shared):
    """The challenge's diagnoses and PTB-XL's statements have names, which say what the sources say."""

    def plain(text):
        return re.sub(r"[^a-z0-9]", "", text.casefold()).replace("ischaemia", "ischemia")

    for part in ("scored", "unscored"):
        with shared(f"data/cinc2021/dx_mapping_{part}.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                said = plain(row["Dx"]).replace("countercolockwise", "counterclockwise")
                assert plain(name_of(row["SNOMEDCTCode"])) == said
    with shared("data/ptbxl_subset/scp_statements.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if "not known here" not in row["description"]]
    assert len(rows) == len(SCP) == 71
    for row in rows:
        assert plain(name_of(row[""])).replace("wolff", "wolf") == plain(row["description"])
    assert name_of("I47.1") is None
    assert with_name("I47.1") == "I47.1"


@pytest.mark.parametrize(("name", "begin"), [("x.pdf", b"%PDF"), ("x.PNG", b"\x89PNG"), ("x.svg", b"<?xml")])
def test_pictures_are_what_their_names_say(store, tmp_path, name, begin):
    record = store.index["record_id"][0].as_py()
    for _ in range(2):
        assert main(["inspect", str(store.path), "--record", record, "--plot", str(tmp_path / name)]) == 0
        content = (tmp_path / name).read_bytes()
        assert content.startswith(begin)
    if name == "x.pdf":  # vectors: it holds no picture
        assert b"/Subtype /Image" not in content
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_odd_names_are_drawn_as_they_are(tmp_path):
    title = "$x_1$ \\frac{\x07\n心電図 " + "long " * 80
    plot_recording(
        np.zeros((12, 5000), np.int16), ["I"], tmp_path / "x.svg", title=title, labels=["$", "<&>"]
    )
    text = (tmp_path / "x.svg").read_text()
    assert "$x_1$ \\frac{  心電図 long" in text
    assert "$, &lt;&amp;&gt;" in text
    lines = re.findall(r">([^<]+)</text>", text)
    assert max(map(len, lines)) < 140
    plot_recording(np.zeros((12, 5000), np.int16), ["I"], tmp_path / "x.png", title=title)
    assert imread(tmp_path / "x.png").shape[0] == 650 + 84  # the head grew by two lines


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
        (
            ["--record", "x", "--plot", "x.jpg"],
            "plot: the file's name must end in one of .png, .pdf, .svg, got",
        ),
        (["--record", "x", "--plot", "picture"], "must end in one of .png, .pdf, .svg, got 'picture'"),
        (["--record", "x", "--plot", "no/such/x.png"], "must be in a folder that exists, got 'no/such'"),
        (["--json", "no/such/x.json"], "json: 'no/such/x.json' must be in a folder that exists"),
        (["--json", "/"], "json: must be a file, got the folder '/'"),
    ],
)
def test_command_with_bad_input(store, capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", str(store.path), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"signal": np.zeros((3, 5000), np.int16)}, "signal: got shape"),
        ({"start": 10.0}, "start: got 10 s of a recording of 10 s"),
        ({"rhythm": "MLII"}, "rhythm: got 'MLII'"),
        ({}, "present: got no standard lead"),
    ],
)
def test_bad_pages(tmp_path, change, message):
    arguments = {"signal": np.zeros((12, 5000), np.int16), "present": [], "out": tmp_path / "x.png"} | change
    with pytest.raises(EcgfastError, match=message):
        plot_recording(**arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--rhythm=V9", "--start=99"])
def test_nothing_is_printed_before_a_page_is_refused(store, tmp_path, capsys, option):
    record = store.index["record_id"][0].as_py()
    page, figures = tmp_path / "page.png", tmp_path / "figures.json"
    arguments = [str(store.path), "--record", record, "--plot", str(page), option, "--json", str(figures)]
    assert main(["inspect", *arguments]) != 0
    assert capsys.readouterr().out == ""
    assert not page.exists()
    assert not figures.exists()
