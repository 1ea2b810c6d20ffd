"""What an import tells of the records it took and of those it did not."""

import json

import pytest

from ecgfast.data import Store, prepare, summarize
from ecgfast.data.store.writer import StoreWriter
from ecgfast.errors import one_line
from tests.data.made import sines, write_record
from tests.data.sources.test_importing import files


def test_warnings_survive_an_interruption(tmp_path, monkeypatch):
    """They are counted and listed as in an import that was never stopped."""
    for i, age in enumerate(["old", "30", "older", "400", "31", ""]):
        write_record(
            tmp_path / f"in/r{i}", sines(1000 + i), comments=[f"Age: {age}", f"Patient: {i % 2 or 'NA'}"]
        )
    prepare(tmp_path / "in", tmp_path / "whole", progress=False)
    add = StoreWriter.add

    def stopped(self, recording):
        add(self, recording)
        if self.n_imported == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "add", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "in", tmp_path / "store", progress=False)
    report = prepare(tmp_path / "in", tmp_path / "store", progress=False)
    assert files(tmp_path / "store") == files(tmp_path / "whole")
    assert report.warnings == {"age": 3}
    assert report.without == {"patient": 3, "age": 4, "sex": 6, "label": 6}
    assert report.examples == ("warning: age: got 'old', want 0 to 125 years (3 records, such as r0.hea)",)
    listed = (tmp_path / "store/warnings.csv").read_text().splitlines()
    assert listed[0] == "source,warning"
    assert [line.partition(",")[0] for line in listed[1:]] == ["r0.hea", "r2.hea", "r3.hea"]


def test_stores_that_tell_of_no_warnings(tmp_path):
    """As they were written before: they are read, counted and found complete."""
    write_record(tmp_path / "in/a")
    prepare(tmp_path / "in", tmp_path / "store", progress=False)
    (tmp_path / "store/warnings.csv").unlink()
    meta = tmp_path / "store/store.json"
    content = json.loads(meta.read_text())
    for name in ("warnings", "without", "amplitude_mv"):
        del content[name]
    meta.write_text(json.dumps(content))
    summary = summarize(Store(tmp_path / "store"))
    assert (summary.warnings, summary.without, summary.n_implausible) == ({}, {}, 0)
    assert str(prepare(tmp_path / "in", tmp_path / "store", progress=False)).endswith(
        "is complete: 1 recordings"
    )


def test_a_journal_without_amplitudes_is_taken_up(tmp_path, monkeypatch):
    for i in range(4):
        write_record(tmp_path / f"in/r{i}", sines(1000 + i))
    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "in", tmp_path / "store", progress=False)
    journal = tmp_path / "store.partial/journal.jsonl"
    entries = [{"row": json.loads(line)["row"]} for line in journal.read_text().splitlines()]
    journal.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert prepare(tmp_path / "in", tmp_path / "store", progress=False).n_imported == 4


def test_a_mistake_in_a_worker_names_the_record(tmp_path, monkeypatch):
    write_record(tmp_path / "in/a")

    def broken(*args):
        raise KeyError("a slip")

    monkeypatch.setattr("ecgfast.data.sources.wfdb_records.direct_block", broken)
    for workers in (1, 2):
        with pytest.raises(KeyError) as error:
            prepare(tmp_path / "in", tmp_path / "store", progress=False, workers=workers)
        assert error.value.__notes__ == [f"while reading a.hea of {tmp_path / 'in'}"]


@pytest.mark.parametrize(
    ("error", "want"),
    [
        (KeyError("x"), "KeyError: 'x'"),
        (IndexError("list index out of range"), "IndexError: list index out of range"),
        (RuntimeError(), "RuntimeError"),
        (ValueError("  first\n\n second \n"), "first second"),
        (ValueError("x" * 600), "x" * 499 + "…"),
    ],
)
def test_an_error_in_one_line(error, want):
    assert one_line(error) == want
