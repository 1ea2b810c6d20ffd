"""Activation checkpointing of every op, the encoder and the objective: the same loss, the same gradients."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from ecgfast import ops
from ecgfast.nn import Encoder
from ecgfast.objectives import W2VCMSC, Views, W2VCMSCConfig
from tests.ops.test_compile import CASES
from tests.ops.test_transforms import CONFIG

DIFFERENTIABLE = [case for case in CASES if any(t.requires_grad for t in case(2)[1])]


def step(function, inputs, leaves):
    """Outputs and gradients; by ``backward``, the one way that the older kind of checkpointing takes."""
    for leaf in leaves:
        leaf.grad = None
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum(o.float().square().sum() for o in outputs if o.requires_grad).backward()
    return [t.detach() for t in outputs] + [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=lambda c: c.__name__.removeprefix("case_"))
def test_ops(case, use_reentrant, reference):
    torch.manual_seed(0)
    function, inputs = case(4)
    leaves = [t for t in inputs if t.requires_grad]

    def checkpointed(*inputs):
        return checkpoint(function, *inputs, use_reentrant=use_reentrant)

    with ops.use_reference(reference):
        want, got = step(function, inputs, leaves), step(checkpointed, inputs, leaves)
    assert all(map(torch.equal, got, want))


def test_all_ops_with_a_gradient_are_there():
    assert len(DIFFERENTIABLE) == 5


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_the_encoder(use_reentrant):
    torch.manual_seed(0)
    encoder = Encoder(CONFIG)
    x = torch.randn(3, 12, 96, requires_grad=True)
    leaves = [x, *(p for name, p in encoder.named_parameters() if name != "mask_token")]

    def tokens(x):
        return encoder(x, lengths=torch.tensor([96, 64, 50])).tokens

    def checkpointed(x):
        return checkpoint(tokens, x, use_reentrant=use_reentrant)

    assert all(map(torch.equal, step(checkpointed, [x], leaves), step(tokens, [x], leaves)))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_the_objective_draws_the_same_again(use_reentrant):
    torch.manual_seed(0)
    model = W2VCMSC(W2VCMSCConfig(encoder=CONFIG, final_dim=8, latent_dim=8, entries=4, dropout_features=0))
    x, ids, patients = (
        torch.randn(4, 12, 160, requires_grad=True),
        torch.arange(4),
        torch.tensor([0, 1, 0, 1]),
    )
    leaves = [x, *model.parameters()]

    def loss(x):
        return model(Views(x, patients, ids), ops.make_rng(3, 5)).total

    def checkpointed(x):
        return checkpoint(loss, x, use_reentrant=use_reentrant)

    assert all(map(torch.equal, step(checkpointed, [x], leaves), step(loss, [x], leaves)))


def test_a_compiled_step_of_a_checkpointed_op():
    torch._dynamo.reset()
    torch.manual_seed(0)
    function, inputs = next(case for case in DIFFERENTIABLE if "patch_embed" in case.__name__)(4)
    leaves = [t for t in inputs if t.requires_grad]
    compiled = torch.compile(
        lambda *inputs: checkpoint(function, *inputs, use_reentrant=False),
        fullgraph=True,
        backend="aot_eager",
    )
    for got, want in zip(step(compiled, inputs, leaves), step(function, inputs, leaves), strict=True):
        torch.testing.assert_close(got, want)
