"""Whose a recording is: what training makes of it, how runs of every task go on, and what they leave."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from ecgfast.cli import main
from ecgfast.data import Store
from ecgfast.data.store.recording import Recording
from ecgfast.data.store.store import STORE_VERSION
from ecgfast.data.store.writer import StoreWriter
from ecgfast.errors import EcgfastError
from ecgfast.evaluation import identification_report
from ecgfast.finetuning import Classifier, ClassifierConfig, export, finetune, read_parts
from ecgfast.leads import STANDARD_LEADS
from ecgfast.training import Interrupted, OptimConfig, read_metrics
from tests.finetuning.conftest import SMALL
from tests.finetuning.test_finetune import assert_same, state, stop_at

LEADS = ("I", "II", "III", "aVR", "V1")
PLACES = [0, 1, 2, 3, 6]  # of these among the standard ones


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """90 patients with two recordings, whose leads I, II, III and aVR have amplitudes of their own.

    That of lead V1 changes with the recording: it tells nothing of the patient.
    """
    path = tmp_path_factory.mktemp("people") / "store"
    rng = np.random.default_rng(0)
    settings = {"format": "ecgfast-store", "version": STORE_VERSION, "sample_rate": 500}
    with StoreWriter(path, settings | {"leads": list(STANDARD_LEADS)}) as writer:
        for i in range(90):
            own = 400 * rng.dirichlet(np.full(4, 0.5))
            for k in range(2):
                t = 2 * np.pi * (np.arange(640) + rng.integers(100))
                signal = rng.normal(0, 5, (12, 640))
                for lead, (amplitude, period) in enumerate(zip(own, (8, 13, 22, 36), strict=True)):
                    signal[lead] += amplitude * np.sin(t / period)
                signal[6] += 300 * rng.uniform() * np.sin(t / 16)
                name = f"r{i}-{k}"
                leads = list(STANDARD_LEADS)
                writer.add(
                    Recording(name, f"p{i}", name, signal.astype(np.int16), leads, [], None, None, 500.0)
                )
        writer.finish()
    return path


@pytest.fixture(scope="module")
def identity(config):
    return dataclasses.replace(
        config,
        task="identification",
        classes=(),
        leads=LEADS,
        freeze="none",
        optim=OptimConfig(lr=3e-3, eps=1e-8, weight_decay=0.0),
        batch_size=32,
        segment_samples=320,
        epochs=1000,
        max_steps=80,
        validation_fraction=0.4,
        test_fraction=0.1,
        validate_every=20,
        checkpoint_every=80,
        log_every=20,
        arcface_scale=16.0,
        arcface_margin=0.3,
    )


@pytest.fixture(scope="module")
def trained(people, identity, tmp_path_factory):
    run = tmp_path_factory.mktemp("identity") / "run"
    assert finetune(people, "random", run, identity, progress=False)
    return run


def rank_and_eer(store, classifier, parts):
    """Of the first half of every recording in a gallery of the second halves of the patient's other one."""
    number = {name: i for i, name in enumerate(store.index["record_id"].to_pylist())}
    first, second = ([number[name] for name in parts if name.endswith(end)] for end in ("-0", "-1"))
    patients = [store.index["patient_id"][i].as_py() for i in first]
    of = [
        np.concatenate([classifier.embed(store.signal(i)[PLACES, :320].copy()) for i in chosen])
        for chosen in (first, second)
    ]
    report = identification_report(of[0], patients, of[1], patients)
    return report.rank_1, report.eer


def test_it_learns_whose_a_recording_is(people, identity, trained):
    """Of patients that it never trained on: it recognises more of them than the random encoder does."""
    store, parts = Store(people), read_parts(trained)
    owners = {part: {name.split("-")[0] for name in names} for part, names in parts.items()}
    assert not owners["train"] & owners["validation"]
    assert not owners["train"] & owners["test"]
    assert len(owners["test"]) >= 2
    torch.manual_seed(identity.seed)
    told = {"task": "identification", "names": (), "identities": len(owners["train"])}
    before = Classifier(
        ClassifierConfig(encoder=SMALL, leads=identity.leads, segment_samples=320, **told)
    ).eval()
    after = Classifier.from_pretrained(trained)
    assert after.config.identities == len(owners["train"])
    (rank, eer), (rank_after, eer_after) = (
        rank_and_eer(store, classifier, parts["validation"]) for classifier in (before, after)
    )
    assert rank_after > rank + 0.1
    assert eer_after < eer - 0.1


def test_the_best_is_kept_by_rank_and_the_curves_show_it(trained):
    looked = [p for p in read_metrics(trained / "metrics.jsonl") if "val_rank_1" in p]
    assert [p["step"] for p in looked] == [20, 40, 60, 80]
    best = max(looked, key=lambda p: (p["val_rank_1"], -p["val_eer"]))
    origin = json.loads((trained / "model/config.json").read_text())["origin"]
    assert (origin["step"], origin["score"]) == (best["step"], [best["val_rank_1"], -best["val_eer"]])
    assert (trained / "curves.png").stat().st_size > 10_000


def test_embeddings(trained):
    """Unit vectors: that of a recording of several windows is the mean of theirs, brought to norm 1."""
    classifier = Classifier.from_pretrained(trained)
    signal = np.random.default_rng(0).integers(-500, 500, (2, 5, 640)).astype(np.int16)
    got = classifier.embed(signal, leads=LEADS)
    assert (got.shape, got.dtype) == ((2, 32), np.float32)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    mean = classifier.embed(signal[..., :320]) + classifier.embed(signal[..., 320:])
    np.testing.assert_allclose(got, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(classifier.embed(signal[:, ::-1].copy(), LEADS[::-1]), got, atol=1e-6)
    with pytest.raises(EcgfastError, match="MODEL: must tell classes or numbers to predict"):
        classifier.predict(signal)


@pytest.mark.parametrize("task", ["regression", "identification"])
def test_stopped_it_ends_the_same(task, people, identity, tmp_path, monkeypatch):
    """With leads masked at random: numbers of a table, and identities, stopped between two validations."""
    settings = dataclasses.replace(
        identity, max_steps=4, validate_every=2, lead_mask_prob=0.5, batch_size=8, checkpoint_every=3
    )
    if task == "regression":
        labels = tmp_path / "labels.csv"
        labels.write_text("patient_id,number\n" + "".join(f"p{i},{i}\n" for i in range(90)))
        settings = dataclasses.replace(settings, task="auto", labels=str(labels))
    finetune(people, "random", tmp_path / "whole", settings, progress=False)
    stop_at(monkeypatch, 3)
    with pytest.raises(Interrupted):
        finetune(people, "random", tmp_path / "parts", settings, progress=False)
    best = state(tmp_path / "parts")["validation"]
    assert export(tmp_path / "parts", tmp_path / "best") == best["step"] == 2
    so_far = Classifier.from_pretrained(tmp_path / "best").state_dict()
    assert all(torch.equal(so_far[name], value) for name, value in best["model"].items())
    finetune(people, "random", tmp_path / "parts", settings, progress=False)
    assert_same(state(tmp_path / "whole"), state(tmp_path / "parts"))
    if task == "regression":
        labels.write_text(labels.read_text() + "p90,1\n")
        with pytest.raises(EcgfastError, match=r"was started with data\.labels_sha256"):
            finetune(people, "random", tmp_path / "parts", settings, progress=False)


def test_masked_leads_follow_from_the_update_and_the_recording():
    torch.manual_seed(0)
    from ecgfast.finetuning import LabelledBatch
    from ecgfast.ops import lead_mask, make_rng

    told = {"encoder": dataclasses.replace(SMALL, activation_dropout=0.0), "names": ("a",)}
    classifier = Classifier(ClassifierConfig(segment_samples=320, lead_mask_prob=0.7, **told)).train()
    signal = torch.randint(-500, 500, (3, 12, 320), dtype=torch.int16)
    batch = LabelledBatch(signal, torch.ones(3, 1), None, torch.tensor([5, 6, 7]))
    rng = make_rng(0, 3, "cpu")
    keep = lead_mask(batch.sample_ids, 12, 0.7, rng, keep_one=True)
    masked = batch._replace(signal=signal * keep[..., None].to(torch.int16), sample_ids=None)
    torch.testing.assert_close(classifier(batch, rng).total, classifier(masked, rng).total)
    whole = classifier(batch._replace(sample_ids=None), rng).total
    assert abs(whole - classifier(batch, rng).total) > 1e-4
    assert torch.equal(classifier.eval()(batch, rng).total, whole)  # none in validation


def test_commands(people, trained, tmp_path, capsys):
    """The user's own table from the command line, what it says, and what it refuses."""
    labels = tmp_path / "labels.csv"
    labels.write_text("record_id,af\n" + "".join(f"r{i}-0,{i % 2}\n" for i in range(90)) + "x,1\n")
    encoder = [f"--encoder.{name.replace('_', '-')}={getattr(SMALL, name)}" for name in ("width", "layers")]
    encoder += ["--encoder.stem-channels=16", "--encoder.heads=2", "--encoder.ffn=64"]
    encoder += ["--encoder.conv-pos=16", "--encoder.conv-pos-groups=4"]
    run = [str(people), "random", str(tmp_path / "run"), "--labels", str(labels), "--max-steps", "1"]
    small = ["--segment-samples", "320", "--batch-size", "8", "--validate-every", "1", *encoder]
    assert main(["finetune", *run, "--validation-fraction", "0.2", "--test-fraction", "0.2", *small]) == 0
    told = capsys.readouterr().out
    assert "left out 1: rows whose record_id is not in the store (x)" in told
    assert "left out 90: recordings without a row in the table" in told
    assert "recordings: 54 train, 18 validation, 18 test; classes: 1" in told
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert "of step 1" in capsys.readouterr().out
    assert main(["predict", str(people), str(trained), str(tmp_path / "x.csv")]) == 2
    assert "MODEL: must tell classes or numbers" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["finetune", "--task", "identification", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "--arcface-margin" in told
    assert "--protocol" in told
    assert "tri_stage)" in told  # the recipe's, shown as a default
