"""Presets and the checks of configurations."""

import dataclasses
import json

import pytest

from ecgfast.errors import EcgfastError
from ecgfast.objectives import OBJECTIVES, W2VCMSCConfig, objective_config
from ecgfast.objectives.registry import DEFAULT
from ecgfast.training import PRESETS, OptimConfig, PretrainConfig
from ecgfast.training.loop import count_steps


def test_paper_preset_is_the_papers():
    config = PRESETS["paper"]()
    encoder = config.model.encoder
    assert (encoder.width, encoder.layers, encoder.heads, encoder.ffn) == (768, 12, 12, 3072)
    assert (encoder.stem_channels, config.model.entries, config.model.latent_dim) == (256, 320, 256)
    assert (config.batch_pairs, config.accumulation, config.epochs) == (64, 2, 200)
    assert config.optim == OptimConfig(5e-5, (0.9, 0.98), 1e-6, 0.01, 0, 0.0)
    assert config.model.n_masked is None
    assert config.precision == "fp32"


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", PRESETS)
def test_each_objective_has_the_presets(name, objective):
    config = PRESETS[name](objective)
    assert config.objective == objective
    assert config.model == objective_config(objective, name, config.model.encoder)
    assert config.model.encoder == PRESETS[name]().model.encoder
    described = dataclasses.asdict(config)
    assert json.loads(json.dumps(described))["model"]["encoder"]["n_leads"] == 12


def test_lead_masking_is_a_switch():
    assert PRESETS["small"]().model.lead_mask_prob == 0.5
    assert PRESETS["small"]("w2v_cmsc").model.lead_mask_prob == 0.0
    assert PRESETS["small"]() == PRESETS["small"](DEFAULT)


def make_config(optim=None, model=None, **changes):
    return PretrainConfig(model=W2VCMSCConfig(**(model or {})), optim=OptimConfig(**(optim or {})), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_pairs": 0}, "batch_pairs: got 0; an integer of at least 1 is taken"),
        ({"max_steps": -1}, "max_steps: got -1"),
        ({"optim": {"lr": 0.0}}, "optim.lr: got 0.0; a positive number"),
        ({"optim": {"lr": float("inf")}}, "optim.lr: got inf"),
        ({"optim": {"betas": (1.5, 0.9)}}, r"optim.betas: got \(1.5, 0.9\); two numbers in \[0, 1\)"),
        ({"optim": {"betas": (0.9, 1.0)}}, "optim.betas: got"),
        ({"optim": {"betas": (0.9,)}}, "optim.betas: got"),
        ({"optim": {"eps": -1e-6}}, "optim.eps: got -1e-06; a number of at least 0"),
        ({"optim": {"weight_decay": -0.1}}, "optim.weight_decay: got -0.1"),
        ({"optim": {"warmup_steps": -1}}, "optim.warmup_steps: got -1"),
        ({"optim": {"clip_norm": -3.0}}, "optim.clip_norm: got -3.0"),
        ({"optim": {"clip_norm": float("nan")}}, "optim.clip_norm: got nan"),
        ({"seed": -1}, "seed: got -1; an integer of at least 0"),
        ({"seed": 2**63}, "seed: got 9223372036854775808"),
        ({"segment_samples": 200, "model": {"n_masked": 13}}, "got 200, which make 12 tokens; at least 13"),
        ({"loader": "disk"}, "loader: got 'disk'; stream or resident is taken"),
        ({"precision": "fp8"}, "precision: got 'fp8'; fp32 or bf16 is taken"),
    ],
)
def test_bad_values_are_named(changes, message):
    with pytest.raises(EcgfastError, match=message):
        make_config(**changes)


def test_steps_of_a_run():
    config = PretrainConfig(epochs=3, accumulation=2)
    assert count_steps(config, 5) == 7
    assert count_steps(dataclasses.replace(config, max_steps=4), 5) == 4
    assert count_steps(dataclasses.replace(config, max_steps=40), 5) == 7
