"""A store with recordings of several lengths and leads, and a small encoder."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ecgfast.data import Store, write_store
from ecgfast.nn import Encoder, EncoderConfig

SMALL = EncoderConfig(stem_channels=16, width=32, layers=2, heads=2, ffn=64, conv_pos=16, conv_pos_groups=4)
LEADS = [
    ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"],
    ["I", "II"],
    ["I", "II", "V1", "V2"],
    ["V5"],
]


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 recordings of 1.2 to 4.2 s with 12, 2, 4 and 1 leads; windows of 800 samples: 1 to 3 of each."""
    rng = np.random.default_rng(0)
    records = []
    for i in range(24):
        leads = LEADS[i % 4]
        noise = rng.normal(size=(len(leads), 600 + 250 * (i % 7))).cumsum(axis=1)
        records.append(
            {
                "signal": noise * 0.02,
                "unit": "mV",
                "rate": 500,
                "leads": leads,
                "record_id": f"r{i:02d}",
                "patient_id": f"p{i // 2}",
            }
        )
    store = tmp_path_factory.mktemp("embedding") / "store"
    write_store(records, store)
    return store


@pytest.fixture(scope="session")
def store(path: Path) -> Store:
    return Store(path)


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(SMALL).eval()


@pytest.fixture(scope="session")
def model(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "model"
    encoder.save_pretrained(folder)
    return folder
