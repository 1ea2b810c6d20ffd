"""Several evaluations and runs of fine-tuning in one table."""

import json
import shutil

import numpy as np
import pytest

from ecgfast.assessment import compare
from ecgfast.cli import main
from ecgfast.errors import EcgfastError
from ecgfast.evaluation import Bootstrap, compare_classifiers


def test_rows_differences_and_settings(evaluated, evaluated_encoder, run):
    found = compare([evaluated_encoder, evaluated, run])
    assert [(row.run, row.method) for row in found.rows][:5] == [
        (str(evaluated_encoder), method)
        for method in ("linear probe", "k-NN", "linear probe, random encoder", "k-NN, random encoder")
    ] + [(str(evaluated), "fine-tuned")]
    assert found.rows[-1].run == str(run)
    assert found.rows[-1].method == "validation"
    best = json.loads((run / "model" / "config.json").read_text())["origin"]["score"]
    assert found.rows[-1].values["validation"]["value"] == best
    with np.load(evaluated / "scores.npz") as a, np.load(evaluated_encoder / "scores.npz") as b:
        units = a["units|12"]
        plain = compare_classifiers(
            a["targets"][units],
            a["12|model|linear|1.0"],
            b["12|model|linear|1.0"],
            ("calm", "fast", "tall"),
            patients=a["patients"][units],
            bootstrap=Bootstrap(draws=30),
        )
    [one] = [d for d in found.differences if (d.method, d.leads) == ("linear probe", "12")]
    assert (one.p_auroc, one.auroc["value"]) == (plain.p_auroc, plain.auroc.value)
    # The random encoders are the same: no difference, and no sign of one.
    [one] = [d for d in found.differences if (d.method, d.leads) == ("linear probe, random encoder", "12")]
    assert (one.p_auroc, one.auroc["value"]) == (1.0, 0.0)
    assert found.settings["model.path"][str(evaluated)] == str(run)
    assert found.settings["config.test_folds"][str(evaluated)] == []
    assert found.settings["config.test_folds"][str(evaluated_encoder)] == [6]
    assert "config.seed" not in compare([evaluated, evaluated_encoder]).settings


def test_the_command(evaluated, evaluated_encoder, tmp_path, capsys):
    args = ["compare", str(evaluated), str(evaluated_encoder), "--no-random", "--metric", "macro_auprc"]
    assert main([*args, "--out", str(tmp_path / "t.md")]) == 0
    told = capsys.readouterr().out
    assert (tmp_path / "t.md").read_text() == told
    assert "## macro AUPRC by leads" in told
    assert "| run | method | metric | 12 | 2 | V1 |" in told
    assert "k-NN, random encoder |" not in told.split("## Against")[0]
    assert main([*args, "--out", str(tmp_path / "t.json")]) == 0
    assert len(json.loads((tmp_path / "t.json").read_text())["rows"]) == 5


def test_other_tests_are_not_compared_pair_by_pair(evaluated, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(evaluated, other)
    with np.load(evaluated / "scores.npz") as arrays:
        changed = dict(arrays)
    changed["targets"] = 1 - changed["targets"]
    np.savez(other / "scores.npz", **changed)
    found = compare([evaluated, other])
    assert found.differences == ()
    assert f"{other} and {evaluated}: other test recordings at 12 leads" in found.told
    report = json.loads((other / "report.json").read_text())
    report["store"]["index_sha256"] = "x"
    (other / "report.json").write_text(json.dumps(report))
    assert compare([evaluated, other]).told == (
        f"{other} and {evaluated}: not compared pair by pair: other stores",
    )


def test_bad_input(evaluated, tmp_path, capsys):
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(evaluated / "settings.json", unfinished)
    for args, message in (
        ([str(tmp_path)], "RUN: must be a folder of ecgfast evaluate or finetune"),
        ([str(unfinished)], "must be finished, got an evaluation without a report yet"),
        ([str(evaluated), str(evaluated)], "RUN: must be there once"),
        ([str(evaluated), "--metric", "accuracy"], "metric: must be of macro_auroc"),
        ([str(evaluated), "--out", str(tmp_path / "t.txt")], "must end in one of .md, .json"),
    ):
        assert main(["compare", *args]) == 2, args
        assert message in capsys.readouterr().err
    with pytest.raises(EcgfastError, match="one folder or more"):
        compare([])
