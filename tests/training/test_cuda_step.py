"""A training step on a GPU: as eager code and as one CUDA graph, never waiting for the device."""

import copy
from dataclasses import replace

import pytest
import torch

from ecgfast.objectives import W2VCMSC, Views
from ecgfast.ops import make_rng
from ecgfast.training.optim import make_optimizer

pytestmark = pytest.mark.cuda


class Step:
    """The trainer's update on one batch that stays on the device."""

    def __init__(self, config, model, capturable=False):
        g = torch.Generator("cuda").manual_seed(1)
        signal = torch.randint(-500, 500, (4, 12, 320), device="cuda", generator=g, dtype=torch.int16)
        ids = torch.arange(4, device="cuda")
        self.views = Views(signal, ids % 2, ids)
        self.rng = make_rng(3, 0, "cuda")
        self.model = model
        self.optimizer = make_optimizer(model.parameters(), config.optim)
        for group in self.optimizer.param_groups:
            group["capturable"] = capturable

    def __call__(self):
        with torch.autocast("cuda", torch.bfloat16):
            losses = self.model(self.views, self.rng)
        (losses.total / losses.size).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.rng[1:].add_(1)
        return losses.total.detach()


@pytest.fixture
def model(tiny):
    """Without dropout: torch draws other numbers inside a graph."""
    torch.manual_seed(0)
    encoder = replace(tiny.model.encoder, dropout=0.0, attention_dropout=0.0, dropout_input=0.0)
    return W2VCMSC(replace(tiny.model, encoder=encoder, dropout_features=0.0)).cuda().train()


def test_never_waits_for_the_device(tiny, model):
    step = Step(tiny, model)
    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(step())


def test_a_captured_step_trains_as_the_eager_one(tiny, model):
    eager, captured = Step(tiny, copy.deepcopy(model), True), Step(tiny, model, True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            captured()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = captured()
    losses = [eager() for _ in range(6)]
    for want in losses[3:]:
        graph.replay()
        torch.testing.assert_close(loss, want, rtol=1e-3, atol=1e-3)
    assert captured.rng.tolist() == [3, 6]
