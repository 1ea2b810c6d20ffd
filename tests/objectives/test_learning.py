"""Each objective learns what patients differ by: a linear probe of its encoder beats the random encoder's.

A patient has one of four kinds of beat, a sharp wave with a broad one of either sign before or behind it,
whose delay and size are the patient's own; played backwards a kind with the wave behind is one with it
before, of the same spectrum. All else (phase, size in each lead, noise) differs from segment to segment.
"""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ecgfast import ops
from ecgfast.nn import EncoderConfig
from ecgfast.objectives import OBJECTIVES, Objective, Views, objective_class

SAMPLES, PERIOD, UNITS, PATIENTS, KINDS = 240, 53, 16, 1000, 4
FOUR = ("I", "II", "V1", "V2")
EIGHT = (*FOUR, "V3", "V4", "V5", "V6")
LOCAL = {
    "final_dim": 16,
    "latent_dim": 16,
    "entries": 8,
    "n_negatives": 10,
    "n_masked": 10,
    "mask_prob": 0.4,
    "mask_length": 4,
    "dropout_features": 0.0,
    "gumbel_temperature": (2.0, 0.5, 0.99),
}


class Case(NamedTuple):
    """How an objective is trained here."""

    steps: int
    leads: tuple[str, ...] = FOUR
    settings: Mapping = MappingProxyType({})
    lr: float = 2.5e-3


CASES = {
    "w2v": Case(220, settings=LOCAL, lr=5e-3),
    "cmsc": Case(80),
    "cmlc": Case(150),
    "cmsmlc": Case(120, FOUR[:3], lr=5e-3),
    "simclr": Case(150),
    "3kg": Case(120, EIGHT),
    "crlc": Case(260, settings={"global_temperature": 0.2, "projection_dim": 0}),
    "w2v_cmsc": Case(130, settings=LOCAL | {"lead_mask_prob": 0.0}, lr=5e-3),
    "w2v_cmsc_rlm": Case(130, settings=LOCAL | {"lead_mask_prob": 0.5}, lr=5e-3),
}


def beats(kind: np.ndarray, broad: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """Kinds [R] with broad waves of delays and sizes [2, R, 1], at places [R, T] within a beat, 0 to 1."""
    before, sign = kind[:, None] % 2 == 1, np.where(kind[:, None] < 2, 1, -1)
    place = np.where(before, 1 - phase, phase)
    delay, size = broad
    return np.exp(-(((place - 0.3) / 0.05) ** 2)) + sign * size * np.exp(
        -(((place - 0.3 - delay) / 0.1) ** 2)
    )


@cache
def records(patients: int, segments: int, n_leads: int, seed: int) -> tuple[Tensor, Tensor]:
    """Signals [patients, segments, L, T] in millivolts, and the kind of each patient."""
    rng = np.random.default_rng(seed)
    rows = patients * segments
    kind = rng.permutation(np.arange(patients) % KINDS)
    start = rng.uniform(size=(rows, 1))
    broad = np.stack([rng.uniform(0.15, 0.3, patients), rng.uniform(0.4, 1.0, patients)])
    broad = broad.repeat(segments, axis=1)[..., None]
    wave = beats(kind.repeat(segments), broad, (np.arange(SAMPLES) / PERIOD + start) % 1)
    size = rng.uniform(0.8, 1.2, (rows, n_leads, 1))
    signal = size * wave[:, None] + 0.2 * rng.standard_normal((rows, n_leads, SAMPLES))
    shape = (patients, segments, n_leads, SAMPLES)
    return torch.from_numpy(signal.astype(np.float32)).view(shape), torch.from_numpy(kind)


def make(name: str, seed: int) -> Objective:
    case, kind = CASES[name], objective_class(name)
    encoder = EncoderConfig(
        n_leads=len(case.leads),
        leads=case.leads,
        stem_channels=24,
        stem_layers=3,
        width=32,
        layers=1,
        heads=2,
        ffn=64,
        conv_pos=8,
        conv_pos_groups=2,
        dropout=0.0,
        attention_dropout=0.0,
        dropout_input=0.0,
        feature_grad_mult=1.0,
    )
    torch.manual_seed(seed)
    return kind(kind.Config(encoder=encoder, **case.settings))


def probe(model: Objective, seed: int) -> float:
    """Share of right kinds of a logistic regression, on patients that nothing was trained on."""
    n_leads = model.config.encoder.n_leads
    found = []
    for part in (1, 2):
        signal, kind = records(150, 2, n_leads, 100 * part + seed)
        with torch.no_grad():
            z = model.eval().encoder.embed(signal.flatten(0, 1))
        found.append((z.numpy(), kind.repeat_interleave(2).numpy()))
    (train, known), (test, asked) = found
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    return classifier.fit(train, known).score(test, asked)


def batches(model: Objective, seed: int, steps: int):
    """Rows as the objective's plan has them, of patients that are all different."""
    signal, _ = records(PATIENTS, 4, model.config.encoder.n_leads, seed)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        who = torch.randperm(PATIENTS, generator=generator)[:UNITS]
        segment = torch.randint(0, 3, (UNITS,), generator=generator)
        first, number = signal[who, segment], 4 * who + segment
        if model.plan == "single_segments":
            yield Views(first, who, number)
        elif model.plan == "adjacent_pairs":
            both = torch.cat([first, signal[who, segment + 1]])
            yield Views(both, who.repeat(2), torch.cat([number, number + 1]))
        else:
            yield Views(first.repeat(2, 1, 1), who.repeat(2), torch.cat([2 * number, 2 * number + 1]))


def train(model: Objective, seed: int, steps: int, lr: float) -> None:
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    for step, views in enumerate(batches(model, seed, steps)):
        losses = model(views, ops.make_rng(seed, step))
        optimizer.zero_grad()
        (losses.total / losses.size).backward()
        optimizer.step()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_lifts_a_linear_probe_above_the_random_encoder(name):
    gains = []
    for seed in (0, 1):
        model = make(name, seed)
        random = probe(model, seed)
        train(model, seed, CASES[name].steps, CASES[name].lr)
        gains.append(probe(model, seed) - random)
    # of 300 segments and four kinds: two standard errors of a share are 0.06
    assert min(gains) > 0.06, gains
    assert np.mean(gains) > 0.1, gains
