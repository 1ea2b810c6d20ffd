"""Evaluations: their numbers against plain forms, what they encode, how they go on, what they refuse."""

import dataclasses
import json
import shutil
import sys
import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import mean_absolute_error, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from ecgfast.assessment import EvaluationConfig, evaluate, summarize
from ecgfast.cli import main
from ecgfast.data import Store, prepare, write_store
from ecgfast.embedding import embed_store
from ecgfast.embedding.encoding import Encoding
from ecgfast.errors import EcgfastError
from ecgfast.evaluation import LEAD_SETS, tune_thresholds
from ecgfast.finetuning import Classifier, FinetuneConfig, Split, Targets, finetune, predict_store
from ecgfast.leads import STANDARD_LEADS
from ecgfast.nn import Encoder
from tests.assessment.conftest import CONFIG, FOLDS, SMALL, T, records


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing takes most of a small evaluation's time."""
    monkeypatch.setattr(sys.modules["ecgfast.assessment.evaluate"], "draw_figures", lambda *_: [])


def report(out):
    return json.loads((out / "report.json").read_text())


def result(out, method, leads="12"):
    [found] = [r for r in report(out)["results"] if (r["method"], r["leads"]) == (method, leads)]
    return found


def parts(store):
    folds = np.array(store.index["fold"].to_pylist())
    return [np.flatnonzero(np.isin(folds, which)) for which in ((1, 2, 3, 4), (5,), (6,))]


def truth(store, recordings, classes=("calm", "fast", "tall")):
    labels = store.index["labels"].to_pylist()
    return np.array([[name in labels[i] for name in classes] for i in recordings])


def test_what_is_there(evaluated):
    found = report(evaluated)
    assert [one["leads"] for one in found["lead_sets"]] == ["12", "2", "V1"]
    assert found["task"]["names"] == ["calm", "fast", "tall"]
    methods = ["fine-tuned", "linear probe", "k-NN", "linear probe, random encoder", "k-NN, random encoder"]
    assert [r["method"] for r in found["results"]] == 3 * methods
    # Two recordings have I and II alone, one V6 alone: fold 6 has the last of them.
    assert [one["sizes"]["test"] for one in found["lead_sets"]] == [8, 7, 7]
    assert "2 leads: 1 of 48 recordings have none of them: left out there" in found["told"]
    assert "12 leads: 3 of 48 recordings lack some of them, which count as zero" in found["told"]
    for name in ("heatmap.png", "roc.png", "reliability.png"):
        assert (evaluated / name).read_bytes()[:4] == b"\x89PNG"
    text = (evaluated / "report.md").read_text()
    assert "| leads | test | fine-tuned | linear probe | k-NN |" in text
    assert "## Against the random encoder" in text
    assert summarize(evaluated) == text


def test_the_classifiers_own_scores(evaluated, store, run):
    """Those of `predict_store`; the thresholds of F1 are of the validation part."""
    _, validation, test = parts(store)
    classifier = Classifier.from_pretrained(run)
    chosen, scores = predict_store(store, classifier, recordings=test, device="cpu")
    areas = roc_auc_score(truth(store, chosen), scores, average=None)
    found = result(evaluated, "fine-tuned")["report"]
    np.testing.assert_allclose([one["auroc"]["value"] for one in found["classes"]], areas, atol=1e-9)
    _, scores = predict_store(store, classifier, recordings=validation, device="cpu")
    want = tune_thresholds(truth(store, validation), scores)
    np.testing.assert_allclose([one["threshold"] for one in found["classes"]], want, atol=1e-6)
    with np.load(evaluated / "scores.npz") as arrays:
        np.testing.assert_array_equal(arrays["recording"][arrays["units|V1"]], test[test < 47])


def plain_parts(store, model, leads=None):
    encoder = Encoder.from_pretrained(model)
    embeddings = [
        embed_store(store, encoder, recordings=part, segment_samples=T, leads=leads, device="cpu")
        for part in parts(store)
    ]
    scaler = StandardScaler().fit(embeddings[0].astype(float))
    return [scaler.transform(x.astype(float)) for x in embeddings]


def test_the_linear_probe_against_a_plain_form(evaluated_encoder, store, model):
    train, validation, test = plain_parts(store, model)
    y_train, y_validation, y_test = (truth(store, part) for part in parts(store))
    areas = []
    for k in range(3):
        fits = [
            LogisticRegression(C=c, max_iter=1000).fit(train, y_train[:, k])
            for c in (0.001, 0.01, 0.1, 1, 10)
        ]
        sure = [np.clip(fit.predict_proba(validation)[:, 1], 1e-7, 1 - 1e-7) for fit in fits]
        losses = [-np.mean(np.where(y_validation[:, k], np.log(p), np.log(1 - p))) for p in sure]
        areas.append(roc_auc_score(y_test[:, k], fits[np.argmin(losses)].predict_proba(test)[:, 1]))
    found = result(evaluated_encoder, "linear probe")["report"]
    np.testing.assert_allclose([one["auroc"]["value"] for one in found["classes"]], areas, atol=1e-6)


def test_neighbours_against_a_plain_form(evaluated_encoder, store, model):
    train, validation, test = plain_parts(store, model)
    y_train, y_validation, y_test = (truth(store, part) for part in parts(store))
    scores = {}
    for k in (1, 5, 10, 20):
        fit = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(train, y_train)
        told = [np.stack([p[:, 1] for p in fit.predict_proba(x)], axis=1) for x in (validation, test)]
        scores[k] = ((told[0] - y_validation) ** 2).mean(), told[1]
    k = min(scores, key=lambda k: scores[k][0])
    found = result(evaluated_encoder, "k-NN")
    assert found["chosen"] == {"neighbours": k}
    areas = roc_auc_score(y_test, scores[k][1], average=None)
    got = [one["auroc"]["value"] for one in found["report"]["classes"]]
    np.testing.assert_allclose(got, areas, atol=1e-6)


@pytest.mark.usefixtures("no_figures")
def test_every_recording_is_encoded_once_a_lead_set(path, store, run, tmp_path, monkeypatch):
    """By the model and by the random encoder, with the leads of the set alone."""
    seen = []
    forward = Encoder.forward

    def counted(self, signal, leads=None, **rest):
        seen.append((tuple(leads), len(signal)))
        return forward(self, signal, leads, **rest)

    monkeypatch.setattr(Encoder, "forward", counted)
    config = EvaluationConfig(**CONFIG | {"leads": ("2", "V1"), "draws": 0})
    evaluate(path, run, tmp_path / "out", config, progress=False)
    # Of 600 samples one window of 512; of 1,100 two, as 76 more are too few.
    windows = np.where(store.n_samples == 600, 1, 2)
    n = {("I", "II"): windows[:47].sum(), ("V1",): windows[:47].sum() - windows[[5, 30]].sum()}
    for leads, want in n.items():
        assert sum(rows for named, rows in seen if named == leads) == 2 * want
    assert {named for named, _ in seen} == set(n)


class Stop(Exception):
    pass


@pytest.mark.usefixtures("no_figures")
def test_taken_up_where_it_was_left(path, run, evaluated, tmp_path, monkeypatch):
    out = tmp_path / "out"
    batches, stops = Encoding.batches, iter([3, 1, 4, 2])  # the third has but three left

    def some(self, start=0):
        left = next(stops, 1000)
        for n, encoded in enumerate(batches(self, start)):
            if n == left:
                raise Stop
            yield encoded

    monkeypatch.setattr(Encoding, "batches", some)
    config = EvaluationConfig(**CONFIG)
    for _ in range(3):
        with pytest.raises(Stop):
            evaluate(path, run, out, config, progress=False)
    assert evaluate(path, run, out, config, progress=False)
    for name in ("report.json", "report.md"):
        assert (out / name).read_text() == (evaluated / name).read_text()
    with np.load(out / "scores.npz") as a, np.load(evaluated / "scores.npz") as b:
        assert a.files == b.files
        assert all(np.array_equal(a[name], b[name]) for name in a.files)
    assert not evaluate(path, run, out, config, progress=False)


def test_the_command(path, run, evaluated, capsys, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(evaluated, out)
    args = ["evaluate", str(path), str(run), str(out), "--leads", "12", "2", "V1", "--device", "cpu"]
    args += ["--batch-size", "16"]
    assert main([*args, "--draws", "30", "--segment-samples", str(T)]) == 0
    told = capsys.readouterr().out
    assert f"{out}: nothing to do, the evaluation is finished" in told
    assert "## Macro AUROC" in told
    assert main([*args, "--draws", "31", "--segment-samples", str(T)]) == 2
    assert "OUT: " in (told := capsys.readouterr().err)
    assert "is of other arguments: draws = 30 (now 31)" in told


def test_a_model_that_was_trained_on_the_test_part(path, store, run, tmp_path):
    config = EvaluationConfig(**CONFIG, validation_folds=(5,), test_folds=(4,))
    with pytest.raises(
        EcgfastError, match="MODEL: must not be fine-tuned on patients of the test part, got 8"
    ):
        evaluate(path, run, tmp_path / "out", config, progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_figures")
def test_what_is_told_of_training(evaluated, evaluated_encoder, path, model, tmp_path):
    assert (
        "no patient of the test part was fine-tuned on, by the run's parts.json" in report(evaluated)["told"]
    )
    assert any("is not known: the model is of no run" in line for line in report(evaluated_encoder)["told"])
    # Runs of earlier versions don't say which recordings they were trained on.
    opened = Store(path)
    targets = Targets(truth(opened, range(48)).astype(np.float32), ("calm", "fast", "tall"))
    split = Split(np.arange(10), np.arange(12, 24))
    config = FinetuneConfig(
        encoder=SMALL, max_steps=1, batch_size=8, segment_samples=T, validate_every=1, device="cpu"
    )
    finetune(path, model, tmp_path / "run", config, targets=targets, split=split, progress=False)
    (tmp_path / "run" / "parts.json").unlink()
    settings = EvaluationConfig(**CONFIG | {"leads": ("1",)}, **FOLDS)
    evaluate(path, tmp_path / "run", tmp_path / "out", settings, progress=False)
    assert any(
        line.startswith("WARNING: the run has no parts.json") for line in report(tmp_path / "out")["told"]
    )


def test_regression(path, store, model, tmp_path):
    config = EvaluationConfig(**CONFIG | {"leads": ("12",)}, **FOLDS, target="age")
    evaluate(path, model, tmp_path / "out", config, progress=False)
    found = result(tmp_path / "out", "linear probe")
    train, _, test = plain_parts(store, model)
    ages = store.index["age"].to_numpy()
    y_train, _, y_test = (ages[part][:, None].astype(float) for part in parts(store))
    plain = Ridge(alpha=found["chosen"]["alpha"]).fit(train, y_train).predict(test)
    want = mean_absolute_error(y_test, plain.reshape(-1, 1))
    assert abs(found["report"]["mae"]["value"] - want) < 1e-4
    assert want < found["report"]["mae_of_mean"]
    assert (tmp_path / "out" / "scatter.png").is_file()
    assert "## MAE" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.usefixtures("no_figures")
def test_a_table_of_labels(path, store, model, tmp_path):
    table = tmp_path / "labels.csv"
    numbers = [
        (p, k % 2, 10 + k % 5) for k, p in enumerate(dict.fromkeys(store.index["patient_id"].to_pylist()))
    ]
    table.write_text(
        "patient_id,odd,lvef\n" + "".join(f"{p},{a},{b}\n" for p, a, b in numbers) + "stranger,1,9\n"
    )
    common = CONFIG | FOLDS | {"leads": ("1",), "labels": table, "random": False, "probes": ("linear",)}
    evaluate(path, model, tmp_path / "a", EvaluationConfig(**common, target="odd"), progress=False)
    assert report(tmp_path / "a")["task"]["names"] == ["odd"]
    assert any("patient_id is not in the store (stranger)" in line for line in report(tmp_path / "a")["told"])
    evaluate(path, model, tmp_path / "b", EvaluationConfig(**common, target="lvef"), progress=False)
    assert report(tmp_path / "b")["task"]["kind"] == "regression"
    table.write_text("patient_id,odd\np00,1\np00,0\n")
    with pytest.raises(EcgfastError, match="has patient_id 'p00' in lines 2 and 3"):
        evaluate(path, model, tmp_path / "c", EvaluationConfig(**common), progress=False)


@pytest.mark.usefixtures("no_figures")
def test_shares_of_labels(path, store, model, tmp_path):
    config = EvaluationConfig(
        **CONFIG | {"leads": ("1",), "random": False}, **FOLDS, probes=("linear",), label_shares=(0.1, 1.0)
    )
    evaluate(path, model, tmp_path / "out", config, progress=False)
    methods = [r["method"] for r in report(tmp_path / "out")["results"]]
    assert methods == ["linear probe, 10 % of labels", "linear probe"]


@pytest.mark.usefixtures("no_figures")
def test_one_lead(model, tmp_path):
    """A store of one lead has one of the sets: the others would be the same again."""
    write_store(records(12, lambda i: ("I",)), tmp_path / "store")
    config = EvaluationConfig(
        draws=0, segment_samples=T, device="cpu", validation_folds=(2,), test_folds=(3,), random=False
    )
    evaluate(tmp_path / "store", model, tmp_path / "out", config, progress=False)
    assert [one["leads"] for one in report(tmp_path / "out")["lead_sets"]] == ["1"]
    told = report(tmp_path / "out")["told"]
    assert [line for line in told if line.endswith("which no recording has together")] == [
        f"left out: {name} leads, which no recording has together" for name in LEAD_SETS if name != "1"
    ]


def test_identification(path, store, model, tmp_path):
    """On crops of 5 s in the protocol; here the store's recordings are too short for them."""
    with pytest.raises(EcgfastError, match="fractions: must give test two patients"):
        evaluate(path, model, tmp_path / "a", EvaluationConfig(protocol="id-gallery-probe"), progress=False)
    long = [one | {"signal": np.tile(one["signal"], (1, 5))} for one in records(24)]
    write_store(long, tmp_path / "store")
    config = EvaluationConfig(protocol="id-gallery-probe", leads=("2",), device="cpu")
    evaluate(tmp_path / "store", model, tmp_path / "out", config, progress=False)
    found = report(tmp_path / "out")
    assert [r["method"] for r in found["results"]] == ["embeddings", "embeddings, random encoder"]
    scores = found["results"][0]["report"]
    assert scores["n_gallery"] == scores["n_probes"] > 2
    assert 0 <= scores["rank_1"] <= scores["rank_5"] <= 1
    assert "## Rank-1" in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "roc.png").is_file()


@pytest.mark.usefixtures("no_figures")
def test_official_segments_and_the_challenge_score(shared, model, tmp_path):
    """Real records of two databases, their segments drawn one by one as published, with the challenge's
    weights.
    """
    source = shared("data/cinc")
    prepare(source, tmp_path / "store", progress=False)
    config = EvaluationConfig(
        protocol="oh2022-official",
        weights=shared("data/cinc2021") / "weights.csv",
        leads=("2",),
        probes=("linear",),
        random=False,
        draws=10,
        device="cpu",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(tmp_path / "store", model, tmp_path / "out", config, progress=False)
    found = report(tmp_path / "out")
    assert found["task"]["segment_samples"] == 2500
    assert "challenge" in found["results"][0]["report"]
    assert any("patients are in several parts, so results flatter" in line for line in found["told"])
    assert any(line.startswith("left out: finetune, convolutional stem frozen") for line in found["told"])


def test_bad_input(path, store, model, run, tmp_path, capsys):
    out = str(tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").touch()
    table = tmp_path / "labels.csv"
    table.write_text("record_id,a\nx,1\n")
    few = ["--validation-folds", "5", "--test-folds", "6"]
    for args, message in (
        ([str(path), str(model), out, "--protocol", "helm"], "protocol: must be of helme:all"),
        (
            [str(path), str(model), out, "--protocol", "helme:super"],
            "labels: the store must have some of the task",
        ),
        ([str(path), str(model), out, "--target", "lvef"], "target: must be labels or "),
        (
            [str(path), str(model), out, "--classes", "quick"],
            "classes: must be labels of the store, got 'quick'",
        ),
        ([str(path), str(model), out, "--leads", "13"], "leads: must be all, 12, 6, 4, 3, 2, 1 or leads"),
        ([str(path), str(model), out, "--leads", "2", "2"], "leads: must name each set once, got 2 twice"),
        ([str(path), str(model), out, "--test-folds", "6"], "must be given both, or neither"),
        (
            [str(path), str(model), out, "--validation-folds", "5", "--test-folds", "9"],
            "folds: must have recordings",
        ),
        ([str(path), str(model), out, "--labels", str(table)], "must have a record_id of the store"),
        ([str(path), str(model), str(tmp_path / "other"), *few], "must be new, empty or an evaluation"),
        ([str(path), "random", out], "random must have --like MODEL"),
        ([str(path), str(model), out, "--label-shares", "0"], "label_shares: must be above 0"),
        ([str(path), str(model), out, "--protocol", "merl", "--target", "age"], "protocol: must be without"),
    ):
        assert main(["evaluate", *args]) == 2, args
        told = capsys.readouterr().err
        assert message in told
        assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_figures")
def test_classes_of_one_value(path, model, tmp_path):
    """A class that all or none of the test has is left out and named, never a silent NaN."""
    content = list(records(16))
    for one in content:
        one["labels"] = [*one["labels"], *(["early"] if one["fold"] < 3 else []), "every"]
    write_store(content, tmp_path / "store")
    config = EvaluationConfig(
        draws=5,
        leads=("1",),
        segment_samples=T,
        device="cpu",
        validation_folds=(3,),
        test_folds=(4,),
        random=False,
    )
    evaluate(tmp_path / "store", model, tmp_path / "out", config, progress=False)
    found = result(tmp_path / "out", "linear probe", "1")
    assert found["report"]["left_out"]["early"] == "no record has it"
    assert found["report"]["left_out"]["every"] == "every record has it"
    assert "classes of one value in training get that value everywhere" in " ".join(found["told"])
    assert "NaN" not in (tmp_path / "out" / "report.json").read_text()


def test_a_patient_on_both_sides(model, tmp_path):
    content = list(records(12))
    for one in content:
        if one["record_id"] == "r001":
            one["fold"] = 3
    write_store(content, tmp_path / "store")
    config = EvaluationConfig(validation_folds=(2,), test_folds=(3,), device="cpu")
    with pytest.raises(EcgfastError, match="split: must have each patient in one part, got 'p00'"):
        evaluate(tmp_path / "store", model, tmp_path / "out", config, progress=False)


@pytest.mark.usefixtures("no_figures")
def test_leads_that_the_model_does_not_take(path, tmp_path):
    limb = dataclasses.replace(SMALL, n_leads=6, leads=STANDARD_LEADS[:6])
    Encoder(limb).save_pretrained(tmp_path / "model")
    common = CONFIG | FOLDS | {"random": False, "probes": ("knn",), "draws": 0}
    evaluate(
        path, tmp_path / "model", tmp_path / "out", EvaluationConfig(**common | {"leads": ()}), progress=False
    )
    assert [one["leads"] for one in report(tmp_path / "out")["lead_sets"]] == ["6", "2", "1"]
    assert any(
        "4 leads, of which the model does not take V2" in line for line in report(tmp_path / "out")["told"]
    )
    with pytest.raises(
        EcgfastError, match="leads: must be of the model's, I, II, III, aVR, aVL, aVF, got 'V2'"
    ):
        evaluate(
            path,
            tmp_path / "model",
            tmp_path / "b",
            EvaluationConfig(**common | {"leads": ("3",)}),
            progress=False,
        )


@pytest.mark.usefixtures("no_figures")
def test_real_records(shared, model, tmp_path):
    """PTB-XL's own layout, a few of its records, by the preset with the folds that the subset has."""
    source = tmp_path / "ptbxl"
    source.mkdir()
    lines = (shared("data/ptbxl_subset") / "ptbxl_database.csv").read_text().splitlines()
    (source / "records500").symlink_to(shared("data/ptbxl_subset") / "records500")
    (source / "scp_statements.csv").symlink_to(shared("data/ptbxl_subset") / "scp_statements.csv")
    (source / "ptbxl_database.csv").write_text("\n".join([lines[0], *lines[1::16]]) + "\n")
    prepare(source, tmp_path / "store", progress=False)
    config = EvaluationConfig(
        protocol="helme:super", validation_folds=(7,), test_folds=(8,), leads=("2",), draws=20, device="cpu"
    )
    evaluate(tmp_path / "store", model, tmp_path / "out", config, progress=False)
    found = report(tmp_path / "out")
    assert found["task"]["names"] == ["CD", "HYP", "MI", "NORM", "STTC"]
    assert any("parts are not the protocol's" in line for line in found["told"])
    assert 0.5 < result(tmp_path / "out", "linear probe", "2")["report"]["macro_auroc"]["value"] < 1


@pytest.mark.usefixtures("no_figures")
def test_a_run_of_identification(tmp_path, model):
    """Its own test part, of patients that it was never trained on: nothing need be named."""
    long = [one | {"signal": np.tile(one["signal"], (1, 2))} for one in records(24)]
    write_store(long, tmp_path / "store")
    config = FinetuneConfig(
        encoder=SMALL,
        task="identification",
        max_steps=1,
        batch_size=8,
        segment_samples=T,
        validation_folds=(5,),
        test_folds=(6,),
        validate_every=1,
        device="cpu",
    )
    finetune(tmp_path / "store", model, tmp_path / "run", config, progress=False)
    settings = EvaluationConfig(leads=("1",), device="cpu")
    evaluate(tmp_path / "store", tmp_path / "run", tmp_path / "out", settings, progress=False)
    found = report(tmp_path / "out")
    assert found["task"]["name"] == "identification"
    assert found["results"][0]["report"]["n_probes"] == 4
    assert found["task"]["segment_samples"] == T
    assert "no patient of the test part was fine-tuned on, by the run's parts.json" in found["told"]
    opened = Store(tmp_path / "store")
    with np.load(tmp_path / "out" / "scores.npz") as arrays:
        recording = arrays["recording"]
    assert set(opened.index["fold"].take(recording).to_pylist()) == {6}


@pytest.mark.usefixtures("no_figures")
def test_what_a_run_was_fine_tuned_for(path, model, tmp_path):
    """Its table of labels is used where nothing is named, and its parts."""
    table = tmp_path / "labels.csv"
    table.write_text(
        "patient_id,lvef\n" + "".join(f"p{k:02d},{40 + k % 2 * 20 + k % 5}\n" for k in range(24))
    )
    config = FinetuneConfig(
        encoder=SMALL,
        labels=str(table),
        max_steps=2,
        batch_size=8,
        segment_samples=T,
        validation_fraction=0.2,
        test_fraction=0.3,
        validate_every=2,
        device="cpu",
    )
    finetune(path, model, tmp_path / "run", config, progress=False)
    settings = EvaluationConfig(leads=("1",), draws=0, random=False, device="cpu")
    evaluate(path, tmp_path / "run" / "model", tmp_path / "out", settings, progress=False)
    found = report(tmp_path / "out")
    assert (found["task"]["kind"], found["task"]["names"]) == ("regression", ["lvef"])
    assert [r["method"] for r in found["results"]] == ["fine-tuned", "linear probe", "k-NN"]
    opened, classifier = Store(path), Classifier.from_pretrained(tmp_path / "run")
    tested = json.loads((tmp_path / "run" / "parts.json").read_text())["test"]
    records_of = opened.index["record_id"].to_pylist()
    numbers = np.array(sorted(records_of.index(record) for record in tested))
    chosen, told = predict_store(opened, classifier, leads=["I"], recordings=numbers, device="cpu")
    values = np.array(
        [40 + int(p[1:]) % 2 * 20 + int(p[1:]) % 5 for p in opened.index["patient_id"].to_pylist()]
    )
    want = mean_absolute_error(values[chosen], told[:, 0])
    assert abs(found["results"][0]["report"]["mae"]["value"] - want) < 1e-4
    table.unlink()
    with pytest.raises(EcgfastError, match="labels: must be given"):
        evaluate(path, tmp_path / "run", tmp_path / "again", settings, progress=False)
