"""A small store of noise and a model that trains on it in milliseconds."""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ecgfast.data.store.recording import Recording
from ecgfast.data.store.store import STORE_VERSION
from ecgfast.data.store.writer import StoreWriter
from ecgfast.leads import STANDARD_LEADS
from ecgfast.nn import EncoderConfig
from ecgfast.objectives import W2VCMSCConfig
from ecgfast.training import OptimConfig, PretrainConfig

TINY = PretrainConfig(
    model=W2VCMSCConfig(
        encoder=EncoderConfig(
            stem_channels=8, width=16, layers=1, heads=2, ffn=16, conv_pos=4, conv_pos_groups=2
        ),
        final_dim=8,
        entries=4,
        latent_dim=8,
        n_negatives=4,
        n_masked=8,
    ),
    optim=OptimConfig(lr=1e-3),
    batch_pairs=2,
    accumulation=1,
    max_steps=10,
    segment_samples=320,
    device="cpu",
    log_every=4,
    checkpoint_every=3,
)


def write_store(
    path: Path,
    recordings: int = 14,
    seed: int = 0,
    leads: Sequence[str] = STANDARD_LEADS,
    *,
    folds: Sequence[int | None] | None = None,
    samples: int = 640,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    rng = np.random.default_rng(seed)
    every = list(STANDARD_LEADS)
    told = {"format": "ecgfast-store", "version": STORE_VERSION, "sample_rate": 500, "leads": every}
    with StoreWriter(path, told | dict(settings or {})) as writer:
        for i in range(recordings):
            signal = rng.integers(-500, 500, (12, samples)).astype(np.int16)
            name = f"r{i}"
            signal[[every.index(lead) for lead in every if lead not in leads]] = 0
            record = Recording(name, f"p{i // 2}", name, signal, list(leads), [], None, None, 500.0)
            if folds is not None:
                record = dataclasses.replace(record, fold=folds[i])
            writer.add(record)
        writer.finish()
    return path


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("data") / "store")


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without curves.png, whose drawing takes longer than the run."""
    module = importlib.import_module("ecgfast.training.pretrain")  # the package has a function of that name
    monkeypatch.setattr(module, "plot_run", lambda *_: None)


@pytest.fixture(scope="session")
def tiny() -> PretrainConfig:
    return TINY
