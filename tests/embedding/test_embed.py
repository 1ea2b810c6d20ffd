"""Embeddings of a store: against a plain form, killed and taken up again, and what is refused."""

import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ecgfast.cli import main
from ecgfast.data import Store, prepare
from ecgfast.embedding import embed_store, open_model, write_embeddings
from ecgfast.embedding.encoding import Encoding
from ecgfast.embedding.inference import Inference
from ecgfast.embedding.models import random_model
from ecgfast.errors import EcgfastError
from ecgfast.finetuning import Classifier, ClassifierConfig, predict_store
from ecgfast.leads import STANDARD_LEADS
from ecgfast.nn import Encoder
from tests.embedding.conftest import SMALL

T = 800
SIZES = {"segment_samples": T, "device": "cpu"}


def plain_tokens(store, encoder, i, leads=STANDARD_LEADS):
    """The tokens of each window of a recording, one encoder call each, on the segment cut to its length."""
    index = [STANDARD_LEADS.index(lead) for lead in leads]
    recording = torch.from_numpy(np.array(store.signal(i)[index]))
    windows = [recording[:, start : start + T] for start in range(0, recording.shape[1], T)]
    if len(windows) > 1 and windows[-1].shape[1] < T // 2:
        windows.pop()
    with torch.no_grad():
        return [encoder(window[None], leads).tokens[0].numpy() for window in windows]


def plain(store, encoder, leads=STANDARD_LEADS, recordings=range(24)):
    return np.stack(
        [np.mean([t.mean(0) for t in plain_tokens(store, encoder, i, leads)], axis=0) for i in recordings]
    )


@pytest.mark.parametrize("batch_size", [1, 5, None])
def test_against_the_plain_form(store, encoder, batch_size):
    got = embed_store(store, encoder, batch_size=batch_size, **SIZES)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, plain(store, encoder), atol=2e-5)


def test_some_leads_of_some_recordings_in_any_order(store, encoder):
    chosen = np.array([8, 2, 20, 1])
    got = embed_store(store, encoder, leads=["V1", "I"], recordings=chosen, **SIZES)
    np.testing.assert_allclose(got, plain(store, encoder, ("I", "V1"), chosen), atol=2e-5)


def test_absent_leads_are_left_out_of_the_stem(store, encoder, monkeypatch):
    """The stem is given the leads that are there, and short windows without padding."""
    seen = set()
    forward = Encoder.forward

    def watched(self, signal, leads=None, **rest):
        seen.add((tuple(leads), signal.shape[1]))
        return forward(self, signal, leads, **rest)

    monkeypatch.setattr(Encoder, "forward", watched)
    embed_store(store, encoder, **SIZES)
    wanted = (STANDARD_LEADS, ("I", "II"), ("I", "II", "V1", "V2"), ("V5",))
    assert seen == {(leads, len(leads)) for leads in wanted}


def test_each_window_is_encoded_once(store, encoder, monkeypatch):
    rows = []
    forward = Encoder.forward

    def counted(self, signal, *rest, **named):
        rows.append(len(signal))
        return forward(self, signal, *rest, **named)

    monkeypatch.setattr(Encoder, "forward", counted)
    embed_store(store, encoder, **SIZES)
    assert len(rows) < 24
    # Of n samples: one window of 800 and as many more as have 400 or more of the rest.
    assert sum(rows) == sum(max(1, (n + 400) // 800) for n in store.n_samples.tolist())


def test_as_a_classifier_sees_it(store, encoder):
    """The classifier's logits of one-window recordings are its head on the embedding, padding and all."""
    torch.manual_seed(1)
    config = ClassifierConfig(encoder=SMALL, names=("a", "b"), segment_samples=T)
    classifier = Classifier(config, encoder).eval()
    short = np.flatnonzero(store.n_samples < 1.5 * T)
    embeddings = torch.from_numpy(embed_store(store, encoder, recordings=short, **SIZES))
    with torch.no_grad():
        scores = classifier.head(embeddings).sigmoid().numpy()
    np.testing.assert_allclose(
        scores, predict_store(store, classifier, recordings=short, device="cpu")[1], atol=1e-5
    )


def test_a_model_that_sees_padding_gets_it_all(store):
    """As official checkpoints do: the window is padded to a segment, as in such a model's training."""
    torch.manual_seed(0)
    encoder = Encoder(type(SMALL)(**{**SMALL.to_dict(), "norm_padding": True})).eval()
    i = int(np.argmin(store.n_samples))
    n = int(store.n_samples[i])
    padded = torch.zeros(1, 12, T, dtype=torch.int16)
    padded[0, :, :n] = torch.from_numpy(np.array(store.signal(i)))
    with torch.no_grad():
        output = encoder(padded, lengths=torch.tensor([n]))
    want = output.tokens[0, : n >> SMALL.stem_layers].mean(0).numpy()
    got = embed_store(store, encoder, recordings=np.array([i]), **SIZES)
    np.testing.assert_allclose(got[0], want, atol=2e-5)


def test_bf16_is_near(store, encoder):
    exact = embed_store(store, encoder, **SIZES)
    rough = embed_store(store, encoder, precision="bf16", **SIZES)
    assert 0 < np.abs(exact - rough).max() < 0.1


def test_files(path, store, model, encoder, tmp_path):
    want = embed_store(store, encoder, **SIZES)
    opened = open_model(model)
    write = {"segment_samples": T, "device": "cpu", "progress": False}
    assert write_embeddings(path, opened, tmp_path / "e.npy", **write) == (24, 32)
    np.testing.assert_array_equal(np.load(tmp_path / "e.npy"), want)
    write_embeddings(path, opened, tmp_path / "e.parquet", **write)
    table = pq.read_table(tmp_path / "e.parquet")
    assert table["record_id"].to_pylist() == store.index["record_id"].to_pylist()
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), dtype=np.float32), want)
    # 600 samples: 37 tokens. 2,100: two windows of 50 and one of 31, which is half a segment long.
    shape = write_embeddings(path, opened, tmp_path / "t.parquet", pooling="none", **write)
    tokens = pq.read_table(tmp_path / "t.parquet")["tokens"].to_pylist()
    assert [len(tokens[i]) for i in (0, 6)] == [37, 50 + 50 + 31]
    assert shape == (24, sum(map(len, tokens)), 32)
    for i in (0, 6, 23):
        np.testing.assert_allclose(tokens[i], np.concatenate(plain_tokens(store, encoder, i)), atol=2e-5)
    shape = write_embeddings(
        path, opened, tmp_path / "t.npy", pooling="none", records=["r14", "r00"], **write
    )
    assert shape == (2, 37, 32)
    np.testing.assert_array_equal(np.load(tmp_path / "t.npy"), np.array([tokens[14], tokens[0]], np.float32))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.npy", "e.parquet", "t.npy", "t.parquet"]


class Stop(Exception):
    pass


@pytest.mark.parametrize("name", ["e.npy", "t.parquet"])
def test_taken_up_where_it_was_left(path, model, tmp_path, monkeypatch, name):
    pooling = "mean" if name == "e.npy" else "none"
    (tmp_path / "whole").mkdir()
    write = {"segment_samples": T, "device": "cpu", "progress": False, "batch_size": 3, "pooling": pooling}
    opened = open_model(model)
    write_embeddings(path, opened, tmp_path / "whole" / name, **write)
    batches = Encoding.batches
    begun = []

    def few(self, start=0):
        begun.append(start)
        for n, encoded in enumerate(batches(self, start)):
            if n == 4:
                raise Stop
            yield encoded

    monkeypatch.setattr(Encoding, "batches", few)
    for _ in range(3):
        with pytest.raises(Stop):
            write_embeddings(path, opened, tmp_path / name, **write)
    assert begun == [0, 4, 8]
    monkeypatch.setattr(Encoding, "batches", batches)
    write_embeddings(path, opened, tmp_path / name, **write)
    assert (tmp_path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / f"{name}.parts").exists()


def test_other_arguments_begin_again(path, model, encoder, tmp_path, monkeypatch):
    write = {"segment_samples": T, "device": "cpu", "progress": False}
    with monkeypatch.context() as patch:
        patch.setattr(Encoding, "batches", lambda *_: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            write_embeddings(
                path, open_model(model), tmp_path / "e.npy", leads=["I"], records=["r00"], **write
            )
    with pytest.warns(UserWarning, match="is of other arguments"):
        write_embeddings(path, open_model(model), tmp_path / "e.npy", **write)
    assert np.load(tmp_path / "e.npy").shape == (24, 32)


def test_killed(path, model, tmp_path):
    """A process that is killed leaves what another goes on with."""
    args = [str(path), str(model), "--batch-size", "1", "--segment-samples", str(T)]
    assert main(["embed", *args[:2], str(tmp_path / "whole.npy"), *args[2:]]) == 0
    out = tmp_path / "e.npy"
    code = "import time, ecgfast.embedding.embed as e; e._JOURNAL_SECONDS = 0; w = e._Pooled.write\n"
    code += "def slow(*a): w(*a); time.sleep(0.2)\n"
    code += "e._Pooled.write = slow; from ecgfast.cli import main; import sys; main(sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", code, "embed", *args[:2], str(out), *args[2:]])
    state = tmp_path / "e.npy.parts" / "state.json"
    while not state.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert main(["embed", *args[:2], str(out), *args[2:]]) == 0
    assert out.read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_random_encoders(path, store, model, encoder):
    a, b = (open_model("random", seed=3, like=model) for _ in range(2))
    assert a.encoder.config == encoder.config
    assert all(torch.equal(x, y) for x, y in zip(a.encoder.parameters(), b.encoder.parameters(), strict=True))
    other = random_model(SMALL, 4)
    assert not torch.equal(a.encoder.mask_token, other.encoder.mask_token)
    assert a.digest != other.digest
    assert open_model("random", preset="demo").encoder.config.width == 64
    before = torch.random.get_rng_state()
    random_model(SMALL, 5)
    assert torch.equal(before, torch.random.get_rng_state())


def test_bad_input(path, store, model, encoder, tmp_path, capsys, monkeypatch):
    out = str(tmp_path / "e.npy")
    few = ["--records", "r00", "r01", "--segment-samples", str(T)]
    for args, message in (
        ([str(path), str(model), str(tmp_path / "e.csv")], "must end in one of .npy, .parquet"),
        ([str(path), "nothing", out], "MODEL: must be a model folder"),
        ([str(path), "random", out], "must have --like MODEL or --preset NAME"),
        ([str(path), "random", out, "--preset", "big"], "preset: must be of demo, small, paper, got 'big'"),
        ([str(path), str(model), out, "--like", str(model)], "must go with the model random"),
        ([str(path), str(model), out, "--leads", "V9"], "V9"),
        ([str(path), str(model), out, "--leads", "V6"], "18 of 24 recordings have none of V6"),
        ([str(path), str(model), out, "--records", "x"], "records: must be ids of"),
        ([str(path), str(model), out, "--records", "r00", "r00"], "named once each"),
        ([str(path), str(model), out, "--batch-size", "none"], "batch_size: must be auto or"),
        ([str(path), str(model), out, "--pooling", "none", *few], "out: must be .parquet for recordings"),
        ([str(path), str(model), out, "--segment-samples", "8"], "segment_samples: must be 16 or more"),
    ):
        assert main(["embed", *args]) == 2, args
        told = capsys.readouterr().err
        assert message in told
        assert told.count("\n") == 1
    with pytest.raises(EcgfastError, match="must have one of the leads V6, got 18 without any, such as r01"):
        embed_store(store, encoder, leads=["V6"], **SIZES)
    broken = random_model(SMALL, 0).encoder
    with torch.no_grad():
        broken.feature_norm.bias[0] = torch.nan
    with pytest.raises(EcgfastError, match="NaN or infinity for record r"):
        embed_store(store, broken, **SIZES)


def test_one_process_at_a_time(path, model, tmp_path):
    (tmp_path / "e.npy.parts").mkdir()
    with (tmp_path / "e.npy.parts" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(EcgfastError, match="another process is at work"):
            write_embeddings(path, open_model(model), tmp_path / "e.npy", device="cpu", progress=False)


def test_a_warning_where_preprocessing_differs(path, encoder, tmp_path):
    folder = tmp_path / "model"
    Classifier(ClassifierConfig(encoder=SMALL, segment_samples=T), encoder).save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    own = Store(path).description["preprocessing"]
    for told, warns in ((own, 0), ([{**own, "derived_leads": ["III"]}, own], 0), (None, 0)):
        (folder / "config.json").write_text(json.dumps({**content, "preprocessing": told}))
        assert len(open_model(folder).warn_of_preprocessing(Store(path))) == warns
    filtered = {**own, "filters": [{"bandpass": [0.5, 40.0], "order": 2, "zero_phase": True}]}
    (folder / "config.json").write_text(json.dumps({**content, "preprocessing": filtered}))
    with pytest.warns(UserWarning, match=r"band-pass 0.5 to 40 Hz in the model's training, no band-"):
        write_embeddings(
            path, open_model(folder), tmp_path / "e.npy", records=["r00"], device="cpu", progress=False
        )


def test_real_records(shared, encoder, tmp_path):
    """ECG-ID has one lead: any encoder takes it, at the cost of one."""
    source = tmp_path / "records"
    source.mkdir()
    for name in ("Person_01", "Person_02"):
        os.symlink(shared("data/ecgid") / name, source / name)
    prepare(source, tmp_path / "store", progress=False)
    opened = Store(tmp_path / "store")
    got = embed_store(opened, encoder, leads=["I"], device="cpu")
    assert got.shape == (len(opened), 32)
    assert np.isfinite(got).all()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_inference_is_the_encoder(norm_first, precision):
    """Whole and padded segments, in the encoder's own precision and under autocast; nothing is changed."""
    torch.manual_seed(0)
    encoder = Encoder(dataclasses.replace(SMALL, norm_first=norm_first)).eval()
    with torch.no_grad():  # biases and norms are 0 and 1 at first
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    run = Inference(encoder, precision)
    signal = torch.randint(-900, 900, (5, 2, 400), dtype=torch.int16)
    for lengths in (None, torch.tensor([400, 16, 399, 300, 32])):
        tokens, padding = run(signal, ("I", "V2"), lengths)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            want = encoder(signal, ("I", "V2"), lengths=lengths)
        real = slice(None) if padding is None else ~padding
        atol = 2e-5 if precision == "fp32" else 4e-2
        torch.testing.assert_close(tokens[real], want.tokens.float()[real], atol=atol, rtol=0)
        assert tokens.dtype == torch.float32
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    assert type(encoder.transformer.layers[0]).__name__ == "TransformerLayer"
