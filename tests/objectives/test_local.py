"""The objectives with the local loss: a case worked by hand, and the plain form of the whole loss in fp64."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ecgfast import ops
from ecgfast.nn.encoder import EncoderOutput
from ecgfast.objectives import Views, objective_class
from tests.objectives.draws import Draws, given
from tests.objectives.test_contrast import ENCODER, make_views, unit

X, Y = (1.0, 0.0), (0.0, 1.0)


def make(name: str, width: int = 16, **settings):
    torch.manual_seed(0)
    kind = objective_class(name)
    return kind(kind.Config(encoder=replace(ENCODER, width=width, stem_channels=width), **settings)).double()


def by_hand(name: str, rows: int, monkeypatch):
    """Rows of three masked tokens, of features X, X, Y, all predicted to be X; tau = 1, no noise."""
    sizes = {"final_dim": 2, "latent_dim": 2, "codebook_groups": 1, "entries": 2, "lead_mask_prob": 0.0}
    temperatures = {"local_temperature": 1.0} | ({"global_temperature": 1.0} if name == "w2v_cmsc" else {})
    model = make(name, width=2, **sizes, **temperatures).eval()
    with torch.no_grad():
        for linear in (model.project_q, model.final_proj, model.quantizer.projection):
            linear.weight.copy_(torch.eye(2))
            linear.bias.zero_()
        model.quantizer.projection.weight.mul_(math.log(3))
        model.quantizer.codebook.copy_(torch.eye(2)[None])

    def repeated(values: list) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).repeat(rows, 1, 1)

    stem = [[0.1, 0.0], [0.0, 0.1], [0.1, 0.1]]
    output = EncoderOutput(repeated([X, X, X]), repeated([X, X, Y]), repeated(stem), None)
    monkeypatch.setattr(model.encoder, "forward", lambda *_, **__: output)
    index = torch.arange(3).repeat(rows, 1)
    draws = Draws(mask_index=index, negative_index=torch.tensor([[1, 2], [0, 2], [0, 1]]).repeat(rows, 1, 1))
    ids = torch.arange(rows)
    views = Views(torch.ones(rows, 12, 24, dtype=torch.float64), ids % max(rows // 2, 1), ids)
    with given(model, draws), torch.no_grad():
        return model(views, ops.make_rng(0))


def test_w2v_by_hand(monkeypatch):
    """Codes 0, 0, 1, targets X, X, Y.

    Local: the first two tokens have each other as a negative, which is left out, and Y, of cosine 0 beside 1:
    ln(1 + 1/e) = 0.313262 each; the third has cosine 0 with its own target and 1 with both others:
    ln(1 + 2e) = 1.861995. Together 2.488519. Probabilities of the codes: 3/4, 1/4 twice and 1/4, 3/4, their
    mean 7/12, 5/12, its perplexity exp(0.679193) = 1.972286: diversity 0.1 (2 - 1.972286) / 2 = 0.001386 a
    token. Penalty: four of six values are 0.1: 10 * 0.04 / 6 = 0.066667 a token. With three of each the sum:
    2.692676.
    """
    losses = by_hand("w2v", 1, monkeypatch)
    assert losses.size == 3
    assert float(losses.terms["local"]) == pytest.approx(2.488519, abs=1e-6)
    assert float(losses.terms["diversity"]) == pytest.approx(3 * 0.001386, abs=2e-6)
    assert float(losses.terms["feature_penalty"]) == pytest.approx(0.2, abs=1e-6)
    assert float(losses.total) == pytest.approx(2.692676, abs=1e-5)
    assert (int(losses.counts["n_correct"]), int(losses.counts["n_strict"])) == (2, 2)


def test_w2v_cmsc_by_hand(monkeypatch):
    """Two pairs of the rows above: 0.897559 a token; all mean tokens are X, so each row and column has one
    positive among two alike: ln 2 = 0.693147. Together 1.590706 a token, of which there are twelve.
    """
    losses = by_hand("w2v_cmsc", 4, monkeypatch)
    assert losses.size == 12
    assert float(losses.terms["global"]) == pytest.approx(12 * 0.693147, abs=1e-5)
    assert float(losses.total) == pytest.approx(12 * 1.590706, abs=1e-4)


def plain_local(model, views: Views, draws: Draws) -> tuple[Tensor, Tensor]:
    """Sum of all terms but the global one, and the mean tokens, from their definitions."""
    config, index = model.config, draws.mask_index
    mask = torch.zeros(len(index), config.encoder.n_tokens(views.signal.shape[2]), dtype=torch.bool)
    mask = mask.scatter(1, index, True)
    encoded = model.encoder(views.signal * draws.lead_keep[..., None], mask=mask)
    groups, entries = config.codebook_groups, config.entries
    rows = torch.cat([encoded.features[i, index[i]] for i in range(len(index))])
    logits = model.quantizer.projection(rows).unflatten(1, (groups, entries))
    noisy = logits + draws.gumbel_noise.view_as(logits)
    codes = noisy.argmax(-1)
    soft = (noisy / config.gumbel_temperature[0]).softmax(-1)
    chosen = F.one_hot(codes, entries) + soft - soft.detach()  # straight through
    vectors = torch.cat([chosen[:, g] @ model.quantizer.codebook[g] for g in range(groups)], 1)
    targets = model.project_q(vectors)
    total, m = torch.zeros((), dtype=torch.float64), index.shape[1]
    for row in range(len(index)):
        for k in range(m):
            own = row * m + k
            prediction = model.final_proj(encoded.tokens[row, index[row, k]])
            others = [row * m + int(j) for j in draws.negative_index[row, k]]
            others = [j for j in others if not torch.equal(codes[j], codes[own])]
            cosines = torch.stack(
                [F.cosine_similarity(prediction, targets[j], dim=0) for j in (own, *others)]
            )
            total = total - (cosines / config.local_temperature).log_softmax(0)[0]
    size = index.numel()
    mean = logits.softmax(-1).mean(0)
    perplexity = torch.exp(-(mean * torch.log(mean + 1e-7)).sum(-1)).sum()
    n_codes = groups * entries
    total = total + size * config.diversity_weight * (n_codes - perplexity) / n_codes
    total = total + size * config.feature_penalty_weight * encoded.stem.square().mean()
    return total, encoded.tokens.mean(1)


@pytest.mark.parametrize("name", ["w2v", "w2v_cmsc"])
def test_against_the_definition(name):
    """Loss and gradients in training, from given draws."""
    sizes = {"final_dim": 8, "latent_dim": 8, "entries": 3, "n_negatives": 4, "dropout_features": 0.0}
    model = make(name, **sizes).train()
    views = make_views(4, samples=64, patients=[0, 1] * 2)
    generator = torch.Generator().manual_seed(2)
    draws = Draws(
        lead_keep=torch.rand(4, 12, generator=generator) < 0.5,
        mask_index=torch.rand(4, 8, generator=generator).argsort(1)[:, :5].sort(1).values,
        gumbel_noise=-torch.rand(20, 6, generator=generator, dtype=torch.float64).log().neg().log(),
        negative_index=torch.randint(0, 5, (4, 5, 4), generator=generator),
    )
    with given(model, draws):
        ours = model(views, ops.make_rng(0)).total
    ours.backward()
    got = {key: p.grad.clone() for key, p in model.named_parameters()}
    model.zero_grad()
    want, z = plain_local(model, views, draws)
    if name == "w2v_cmsc":
        logits = unit(z[:2]) @ unit(z[2:]).T / model.config.global_temperature
        both = logits.log_softmax(1).diagonal().mean() + logits.log_softmax(0).diagonal().mean()
        want = want - both / 2 * draws.mask_index.numel()
    want.backward()
    torch.testing.assert_close(ours, want, rtol=1e-7, atol=1e-7)
    for key, p in model.named_parameters():
        torch.testing.assert_close(
            got[key], p.grad, rtol=1e-6, atol=1e-7, msg=lambda text, key=key: f"{key}: {text}"
        )
