"""Stores, model folders and checkpoints that earlier versions wrote still load and give the same numbers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ecgfast.data import Store
from ecgfast.nn import Encoder, EncoderConfig
from ecgfast.objectives import W2VCMSC, W2VCMSCConfig
from ecgfast.training import PretrainConfig, export, pretrain

FIXTURES = Path(__file__).parent / "fixtures"
VERSIONS = ("v0_1",)
ENCODER = {"stem_channels": 16, "width": 32, "layers": 1, "heads": 2, "ffn": 32, "conv_pos": 8}
MODEL = {"final_dim": 16, "codebook_groups": 2, "entries": 8, "latent_dim": 16, "n_negatives": 10}


@pytest.fixture(params=VERSIONS)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shutil.copytree(FIXTURES / request.param, tmp_path / "old")
    return tmp_path / "old"


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_store(old):
    store = Store(old / "store")
    store.verify()
    assert len(store) == 3
    assert store.index["patient_id"].to_pylist() == ["p0", "p1", "p2"]
    assert store.signal(1).shape == (12, 5000)


def test_encoder_embeds_as_it_did(old):
    """A folder that says nothing of the norm's statistics was trained with the official ones."""
    encoder = Encoder.from_pretrained(old / "finished" / "model")
    signal = torch.from_numpy(Store(old / "store").signal(0)[:, :2500].copy())[None]
    padded = torch.nn.functional.pad(signal[..., :1600], (0, 900))
    before = np.load(old / "embeddings.npz")
    with torch.no_grad():
        full = encoder.embed(signal).numpy()
        part = encoder.embed(padded, lengths=torch.tensor([1600])).numpy()
    np.testing.assert_allclose(full, before["full"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(part, before["padded"], rtol=1e-4, atol=1e-5)


def test_model_loads(old):
    model = W2VCMSC.from_pretrained(old / "finished" / "model")
    assert model.config.entries == 8


def config_of_the_runs() -> PretrainConfig:
    encoder = EncoderConfig(**ENCODER, conv_pos_groups=4)
    return PretrainConfig(
        model=W2VCMSCConfig(encoder=encoder, **MODEL),
        batch_pairs=2,
        epochs=40,
        max_steps=20,
        log_every=5,
        checkpoint_every=5,
        device="cpu",
    )


def test_a_resumed_run_keeps_its_architecture(old, tmp_path):
    """The model at its end is that of its last checkpoint: the norm's statistics see padding in both."""
    export(old / "stopped", tmp_path / "exported")
    assert pretrain(old / "store", old / "stopped", config_of_the_runs(), progress=False)
    export(old / "stopped", tmp_path / "at the end")
    folders = (tmp_path / "exported", old / "stopped" / "model", tmp_path / "at the end")
    encoders = [W2VCMSC.from_pretrained(folder).config.encoder for folder in folders]
    assert [encoder.norm_padding for encoder in encoders] == [True] * 3
    assert encoders[0] == encoders[1] == encoders[2]


def test_a_stopped_run_goes_on(old):
    config = config_of_the_runs()
    assert pretrain(old / "store", old / "stopped", config, progress=False)
    points, wanted = metrics(old / "stopped"), metrics(old / "finished")
    assert [point["step"] for point in points] == [point["step"] for point in wanted]
    for point, want in zip(points, wanted, strict=True):
        for name in want.keys() - {"segments_per_second"}:
            assert point[name] == pytest.approx(want[name], rel=1e-3, abs=1e-4), name
    assert (old / "stopped" / "model" / "model.safetensors").is_file()
