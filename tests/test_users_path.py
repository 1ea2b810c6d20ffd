"""The README's way from records and a table of labels to a report with pictures, on real records."""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from ecgfast.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
COMMANDS = re.search(r"## Fine-tune on your own labels.*?```\n(.*?)```", README, re.DOTALL)
# The same on few recordings, in seconds.
SHORTER = {
    "pretrain": "--max-steps 8 --batch-pairs 4",
    "finetune": "--epochs 3 --batch-size 8 --optim.lr 1e-3 --validation-fraction 0.2",
    "evaluate": "--draws 50",
}


def run_commands(**changes):
    """Run the five commands where they are, with flags of `SHORTER` and `changes` instead of their own."""
    assert COMMANDS is not None
    lines = [shlex.split(line, comments=True) for line in COMMANDS[1].splitlines()]
    assert [line[1] for line in lines] == ["prepare", "pretrain", "finetune", "evaluate", "predict"]
    for _, name, *args in lines:
        flags = [*shlex.split(SHORTER.get(name, "")), *shlex.split(changes.get(name, ""))]
        assert main([name, *args, *flags]) in (0, None), name


def write_labels(header, rows):
    with open("labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "records").mkdir()
    return tmp_path


def test_twelve_leads(shared, here, capsys):
    source = shared("data/ptbxl_subset")
    with (source / "ptbxl_database.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if float(row["strat_fold"]) < 4][:60]
    labels = []
    for row in rows:
        header = source / f"{row['filename_hr']}.hea"
        for part in header.parent.glob(f"{header.stem}*"):
            shutil.copy(part, "records")
        statements = row["scp_codes"]
        labels.append([header.stem, *(int(f"'{code}'" in statements) for code in ("NORM", "NDT", "SR"))])
    positives = [sum(column) for column in zip(*(label[1:] for label in labels), strict=True)]
    assert 5 < positives[0] < 55
    write_labels(["record_id", "normal", "ndt", "sinus"], labels)
    run_commands(
        finetune="--label-columns normal", evaluate="--target normal", pretrain="--model.n-masked 64"
    )
    report = json.loads(Path("report/report.json").read_text(encoding="utf-8"))
    assert {result["leads"] for result in report["results"]} == {"12", "6", "4", "3", "2", "1"}
    methods = {(result["encoder"], result["probe"]) for result in report["results"]}
    assert {("model", "own"), ("model", "linear"), ("random", "linear"), ("random", "knn")} <= methods
    for name in ("report.md", "heatmap.png", "roc.png", "reliability.png"):
        assert Path("report", name).stat().st_size > 0
    with open("predictions.csv", encoding="utf-8") as file:
        predictions = list(csv.DictReader(file))
    assert len(predictions) == 60
    assert all(0 < float(row["normal"]) < 1 for row in predictions)


def test_one_lead(shared, here):
    """A watch-like record has lead I alone: the same five commands, on a number."""
    source = shared("data/ecgid")
    rows = []
    for folder in sorted(source.glob("Person_*"))[:24]:
        for header in sorted(folder.glob("*.hea"))[:2]:
            name = f"{folder.name}_{header.stem}"
            text = header.read_text(encoding="utf-8")
            age = re.search(r"[Aa]ge: *(\d+)", text)
            if age is None:
                continue
            for part in folder.glob(f"{header.stem}.*"):
                target = Path("records", f"{name}{part.suffix}")
                target.write_bytes(part.read_bytes())
            target = Path("records", f"{name}.hea")
            target.write_text(text.replace(header.stem, name), encoding="utf-8")
            rows.append([name, age[1]])
    assert len(rows) > 20
    write_labels(["record_id", "years"], rows)
    run_commands(prepare="--rename 'ECG I=I'", evaluate="--target years --leads 1", finetune="--leads I")
    report = json.loads(Path("report/report.json").read_text(encoding="utf-8"))
    assert {result["leads"] for result in report["results"]} == {"1"}
    assert all(result["report"]["mae"]["value"] > 0 for result in report["results"])
    assert Path("report/heatmap.png").stat().st_size > 0
