"""The optimiser against the formula of the recipe."""

import pytest
import torch

from ecgfast.training.config import OptimConfig
from ecgfast.training.optim import learning_rate, make_optimizer, scale_gradients_


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


@pytest.mark.parametrize(("clip", "norm"), [(0.0, 10.0), (100.0, 10.0), (1.0, 1.0)])
def test_gradients_are_scaled_then_clipped(clip, norm):
    gradients = [torch.full((2,), 6.0), torch.full((2,), 8.0)]
    total = scale_gradients_(gradients, torch.tensor(0.5**0.5), clip)
    torch.testing.assert_close(total, torch.tensor(10.0))
    torch.testing.assert_close(torch.cat(gradients).norm(), torch.tensor(norm), rtol=1e-5, atol=0)
