"""The optimiser against the formula of the recipe."""

import dataclasses

import pytest
import torch

from ecgfast.errors import EcgfastError
from ecgfast.training.config import OptimConfig
from ecgfast.training.optim import learning_rate, make_optimizer, scale_gradients_
from tests.training.test_pretraining import trainer_of


def test_adam_decays_apart_from_the_moments():
    torch.manual_seed(0)
    config = OptimConfig(lr=1e-2, weight_decay=0.1)
    parameter = torch.nn.Parameter(torch.randn(50))
    want = parameter.detach().double()
    optimizer = make_optimizer([parameter], config)
    first, second = torch.zeros(50).double(), torch.zeros(50).double()
    for step in range(1, 6):
        gradient = torch.randn(50)
        parameter.grad = gradient.clone()
        optimizer.step()
        first = 0.9 * first + 0.1 * gradient.double()
        second = 0.98 * second + 0.02 * gradient.double() ** 2
        want *= 1 - config.weight_decay * config.lr
        mean, root = first / (1 - 0.9**step), (second / (1 - 0.98**step)).sqrt()
        want -= config.lr * mean / (root + config.eps)
    torch.testing.assert_close(parameter.detach().double(), want, rtol=1e-5, atol=1e-6)


def test_learning_rate_warms_up_and_stays():
    config = OptimConfig(lr=1.0, warmup_steps=3)
    assert [learning_rate(step, config) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert learning_rate(0, OptimConfig()) == 5e-5


def test_cosine_by_hand():
    """lr 1, 1 update of warm-up, 6 in all: 1/2; then (t = 0, 1/4, 1/2, 3/4, 1)
    0.2 + 0.8 * (1 + cos(pi t)) / 2 = 1, 0.2 + 0.4 * (1 + 0.70710678), 0.6, 0.2 + 0.4 * 0.29289322, 0.2."""
    config = OptimConfig(lr=1.0, warmup_steps=1, schedule="cosine", final_scale=0.2)
    got = [learning_rate(step, config, 6) for step in range(6)]
    assert got == pytest.approx([0.5, 1.0, 0.88284271, 0.6, 0.31715729, 0.2], abs=1e-8)


def test_tri_stage_by_hand():
    """20 updates, shares 0.1, 0.2, 0.5: 2 of warm-up (0.01, 0.01 + 0.99 / 2), 4 of hold, 10 of decay
    (0.01 ** (t / 10): at t = 5 a tenth), then 4 of 0.01."""
    config = OptimConfig(lr=2.0, schedule="tri_stage", stages=(0.1, 0.2, 0.5))
    got = [learning_rate(step, config, 20) / 2 for step in range(20)]
    assert got[:7] == pytest.approx([0.01, 0.505, 1, 1, 1, 1, 1])
    assert got[11] == pytest.approx(0.1)
    assert got[16:] == pytest.approx([0.01] * 4)


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"warmup_steps": 3}, [0.25, 0.5, 0.75, 1, 1]),
        ({"schedule": "cosine", "final_scale": 0}, [1, 0.85355339, 0.5, 0.14644661, 0]),
        # 2 of warm-up, 1 of hold, 2 of decay
        ({"schedule": "tri_stage", "stages": (0.4, 0.2, 0.4)}, [0.01, 0.505, 1, 1, 0.1]),
    ],
)
def test_schedules_in_a_pre_training(store, tiny, settings, rates):
    """What the optimiser is given in each of 5 updates, and what the log tells."""
    config = dataclasses.replace(tiny, optim=OptimConfig(lr=1e-3, **settings), max_steps=5)
    trainer = trainer_of(config, store)
    batches = trainer.batches()
    given, told = [], []
    for _ in range(5):
        trainer.update(batches)
        given.append(trainer.optimizer.param_groups[0]["lr"])
        told.append(trainer.read_metrics()["lr"])
    batches.close()
    assert given == told == pytest.approx([1e-3 * rate for rate in rates], abs=1e-11)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "linear"}, "optim.schedule: got 'linear'"),
        ({"stages": (0.5, 0.6, 0.1)}, r"optim.stages: got \(0.5, 0.6, 0.1\)"),
        ({"stages": (0.5, 0.5)}, "optim.stages"),
        ({"final_scale": 2}, "optim.final_scale: got 2"),
        ({"schedule": "tri_stage", "final_scale": 0}, "optim.final_scale: got 0"),
    ],
)
def test_bad_schedules(settings, message):
    with pytest.raises(EcgfastError, match=message):
        OptimConfig(**settings)


@pytest.mark.parametrize(("clip", "norm"), [(0.0, 10.0), (100.0, 10.0), (1.0, 1.0)])
def test_gradients_are_scaled_then_clipped(clip, norm):
    gradients = [torch.full((2,), 6.0), torch.full((2,), 8.0)]
    total = scale_gradients_(gradients, torch.tensor(0.5**0.5), clip)
    torch.testing.assert_close(total, torch.tensor(10.0))
    torch.testing.assert_close(torch.cat(gradients).norm(), torch.tensor(norm), rtol=1e-5, atol=0)
