"""A store whose signals carry its labels, an encoder, and a classifier that was fine-tuned on some folds."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ecgfast.assessment import EvaluationConfig, evaluate
from ecgfast.data import Store, write_store
from ecgfast.finetuning import FinetuneConfig, finetune
from ecgfast.leads import STANDARD_LEADS
from ecgfast.nn import Encoder, EncoderConfig
from ecgfast.training import OptimConfig

SMALL = EncoderConfig(
    stem_channels=16,
    width=32,
    layers=1,
    heads=2,
    ffn=64,
    conv_pos=16,
    conv_pos_groups=4,
    dropout=0.0,
    attention_dropout=0.0,
    dropout_input=0.0,
)
T = 512


def records(n_patients=24, leads_of=lambda i: STANDARD_LEADS):
    """Two recordings a patient: "fast" has a quick wave in each lead, "tall" a slow one; age follows both."""
    rng = np.random.default_rng(5)
    for patient in range(n_patients):
        fast, tall = patient % 2, patient // 2 % 2
        phase = rng.uniform(0, 6)
        for number in range(2):
            i = 2 * patient + number
            leads = leads_of(i)
            time = np.arange(600 if number else 1100) / 500
            wave = fast * np.sin(2 * np.pi * 12 * time + phase) + tall * np.sin(2 * np.pi * 2 * time + phase)
            gains = rng.uniform(0.5, 1.5, size=(len(leads), 1))
            yield {
                "signal": gains * wave + rng.normal(scale=0.5, size=(len(leads), len(time))),
                "unit": "mV",
                "rate": 500,
                "leads": list(leads),
                "record_id": f"r{i:03d}",
                "patient_id": f"p{patient:02d}",
                "labels": [name for name, has in (("fast", fast), ("tall", tall)) if has] or ["calm"],
                "age": 30 + 20 * fast + 10 * tall + float(rng.normal()),
                "fold": patient // 4 % 6 + 1,
            }


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 recordings of 24 patients in 6 folds; some have two leads, one has V6 alone."""
    store = tmp_path_factory.mktemp("assessment") / "store"
    some = {5: ("I", "II"), 30: ("I", "II"), 47: ("V6",)}
    write_store(records(leads_of=lambda i: some.get(i, STANDARD_LEADS)), store)
    return store


@pytest.fixture(scope="session")
def store(path: Path) -> Store:
    return Store(path)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "model"
    torch.manual_seed(1)
    Encoder(SMALL).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def run(path: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, fine-tuned on folds 1 to 4, validated on 5; fold 6 was left alone."""
    folder = tmp_path_factory.mktemp("finetuned") / "run"
    config = FinetuneConfig(
        encoder=SMALL,
        optim=OptimConfig(lr=1e-2),
        max_steps=12,
        batch_size=16,
        segment_samples=T,
        validation_folds=(5,),
        test_folds=(6,),
        validate_every=6,
        device="cpu",
    )
    finetune(path, model, folder, config, progress=False)
    return folder


CONFIG = {
    "leads": ("12", "2", "V1"),
    "draws": 30,
    "segment_samples": T,
    "batch_size": 16,
    "device": "cpu",
}
FOLDS = {"validation_folds": (5,), "test_folds": (6,)}


@pytest.fixture(scope="session")
def evaluated(path: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier evaluated on fold 6; no test changes it."""
    out = tmp_path_factory.mktemp("evaluated") / "out"
    assert evaluate(path, run, out, EvaluationConfig(**CONFIG), progress=False)
    return out


@pytest.fixture(scope="session")
def evaluated_encoder(path: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder that the classifier began with, evaluated on the same fold."""
    out = tmp_path_factory.mktemp("evaluated") / "encoder"
    assert evaluate(path, model, out, EvaluationConfig(**CONFIG, **FOLDS), progress=False)
    return out
