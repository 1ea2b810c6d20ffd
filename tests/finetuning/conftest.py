"""Synthetic stores whose labels the leads really carry, and a small encoder."""

import dataclasses
from pathlib import Path

import pytest

from ecgfast.data import Store, synthetic_store
from ecgfast.finetuning import FinetuneConfig
from ecgfast.nn import Encoder, EncoderConfig
from ecgfast.training import OptimConfig

SMALL = EncoderConfig(
    stem_channels=16,
    width=32,
    layers=2,
    heads=2,
    ffn=64,
    conv_pos=16,
    conv_pos_groups=4,
    dropout=0.0,
    attention_dropout=0.0,
    dropout_input=0.0,
    activation_dropout=0.1,
)
RIGHT_BLOCK, LEFT_BLOCK, SINUS = "59118001", "164909002", "426783006"


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 recordings of 30 patients, 3 s each: two windows of 800 samples, the rest is too short for one."""
    store = tmp_path_factory.mktemp("data") / "store"
    synthetic_store(store, patients=30, records=2, seconds=3, seed=3, progress=False)
    return store


@pytest.fixture(scope="session")
def store(path: Path) -> Store:
    return Store(path)


@pytest.fixture(scope="session")
def config() -> FinetuneConfig:
    return FinetuneConfig(
        encoder=SMALL,
        optim=OptimConfig(lr=1e-3),
        max_steps=10,
        batch_size=8,
        segment_samples=800,
        classes=(SINUS,),
        device="cpu",
        validation_fraction=0.3,
        validate_every=2,
        log_every=5,
        checkpoint_every=3,
    )


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "model"
    Encoder(dataclasses.replace(SMALL, dropout=0.1)).save_pretrained(folder)
    return folder
