"""The objectives that contrast segments: cases worked by hand, and plain forms of the whole loss in fp64."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ecgfast import ops
from ecgfast.errors import EcgfastError
from ecgfast.nn import EncoderConfig
from ecgfast.nn.encoder import mean_tokens
from ecgfast.objectives import Views, objective_class
from ecgfast.objectives.augment import draw_noise, draw_turn
from ecgfast.objectives.contrast import agreement
from tests.objectives.plain import plain_noise, plain_turned

ENCODER = EncoderConfig(
    stem_channels=8,
    stem_layers=3,
    width=16,
    layers=1,
    heads=2,
    ffn=16,
    conv_pos=4,
    conv_pos_groups=2,
    dropout=0.0,
    attention_dropout=0.0,
    dropout_input=0.0,
)
NAMES = ("cmlc", "cmsmlc", "simclr", "3kg", "crlc")


def make(name: str, n_leads: int = 12, width: int = 16, **settings):
    torch.manual_seed(0)
    kind = objective_class(name)
    encoder = replace(ENCODER, n_leads=n_leads, leads=ENCODER.leads[:n_leads], width=width)
    return kind(kind.Config(encoder=encoder, **settings)).double()


def make_views(rows: int, n_leads: int = 12, samples: int = 96, patients=None) -> Views:
    generator = torch.Generator().manual_seed(1)
    signal = torch.randn(rows, n_leads, samples, generator=generator, dtype=torch.float64)
    ids = torch.arange(rows)
    return Views(signal, ids % (rows // 2) if patients is None else torch.tensor(patients), ids)


def with_embeddings(monkeypatch, model, z) -> None:
    """The model whose encoder gives these mean tokens, row by row."""
    tokens = torch.tensor(z, dtype=torch.float64)[:, None]
    monkeypatch.setattr(model.encoder, "contextualize", lambda features, **_: tokens)


def mean_loss(model, views: Views) -> float:
    losses = model(views, ops.make_rng(0))
    assert losses.size == views.signal.shape[0]
    return float(losses.total.detach() / losses.size)


X, Y, FAR = (1.0, 0.0), (0.0, 1.0), (5.0, -7.0)


def test_cmsc_by_hand(monkeypatch):
    """First segments X, Y, second ones the same, tau = 1.

    Two patients: each row, and each column, has a positive of cosine 1 and a negative of 0: ln(1 + 1/e). One
    patient: all four are positives; of cosine 1: ln(1 + 1/e), of cosine 0: ln(1 + e) = 1 + ln(1 + 1/e).
    """
    model = make("cmsc", width=2, global_temperature=1.0)
    with_embeddings(monkeypatch, model, [X, Y, X, Y])
    assert mean_loss(model, make_views(4)) == pytest.approx(0.313262, abs=1e-6)
    assert mean_loss(model, make_views(4, patients=[7] * 4)) == pytest.approx(0.813262, abs=1e-6)


@pytest.mark.parametrize(("official", "want"), [(False, 0.208841), (True, 0.052210)])
def test_cmlc_by_hand(monkeypatch, official, want):
    """Leads a, b, c of two segments: a = (X, Y), b = (X, Y), c = (X, absent), tau = 1.

    (a, b): rows and columns ln(1 + 1/e) = 0.313262. (a, c) has one positive, X with X; its row has no
    negative: 0; its column has Y of cosine 0: 0.313262; halved 0.156631. (b, c) the same. The mean is
    0.208841; the last pair alone divided by three is 0.052210.
    """
    model = make("cmlc", n_leads=3, width=2, global_temperature=1.0, official_pairs=official)
    with_embeddings(monkeypatch, model, [X, Y, X, Y, X, FAR])
    views = make_views(2, n_leads=3, patients=[0, 1])
    views.signal[1, 2] = 0
    assert mean_loss(model, views) == pytest.approx(want, abs=1e-6)


def test_cmsmlc_by_hand(monkeypatch):
    """Two leads of two pairs, tau = 1: lead a of first segments (X, Y) meets lead b of second ones (X, X).

    Cosines: 1 1 / 0 0. Rows: ln 2 each. Columns: the first positive has 1 beside 0, ln(1 + 1/e), the second
    0 beside 1, ln(1 + e); their mean is 0.813262. (0.693147 + 0.813262) / 2 = 0.753204.
    """
    model = make("cmsmlc", n_leads=2, width=2, global_temperature=1.0)
    lead_a, lead_b = [X, Y, FAR, FAR], [FAR, FAR, X, X]
    with_embeddings(monkeypatch, model, lead_a + lead_b)
    assert mean_loss(model, make_views(4, n_leads=2)) == pytest.approx(0.753204, abs=1e-6)


def test_simclr_by_hand(monkeypatch):
    """Views X, Y, X, Y of two segments, tau = 1: each has its positive of cosine 1 and two of cosine 0.

    ln(e + 2) - 1 = 0.551445. That both are one patient's changes nothing.
    """
    model = make("simclr", width=2, global_temperature=1.0)
    with_embeddings(monkeypatch, model, [X, Y, X, Y])
    assert mean_loss(model, make_views(4, patients=[3] * 4)) == pytest.approx(0.551445, abs=1e-6)


def test_3kg_by_hand(monkeypatch):
    """Three segments, twice each, tau = 1: X and Y of a patient, Y of another one.

    Rows of X: positives of cosine 1, 0, 0, each against two negatives of 0: ln(e + 2) - 1 = 0.551445 and
    twice ln 3 = 1.098612. Rows of the patient's Y: positives 1, 0, 0, negatives 1, 1: ln 3 and twice
    ln(1 + 2e) = 1.861995. Rows of the other's Y: positive 1, negatives 0, 0, 1, 1: ln(3e + 2) - 1 = 1.317951.
    Twice their sum (2.748670 + 4.822602 + 1.317951), divided by 2B = 6: 2.963074.
    """
    model = make("3kg", width=2, global_temperature=1.0)
    with_embeddings(monkeypatch, model, [X, Y, Y, X, Y, Y])
    views = make_views(6, patients=[0, 0, 1] * 2)
    assert mean_loss(model, views) == pytest.approx(2.963074, abs=1e-6)


def test_crlc_by_hand(monkeypatch):
    """Four leads of two segments, split into 0, 2 and 1, 3; no head, tau = 1.

    Segment 0: X, X, Y, X: views (X + Y) / 2 and X. Segment 1: Y, Y, Y, absent: views Y and Y. Cosines, with
    h = sqrt(1/2): of (X + Y) / 2: h to X, h, h to Y: ln 3 = 1.098612. Of X: h, 0, 0: ln(e^h + 2) - h =
    0.686193. Of each Y: 1, h, 0: ln(e + e^h + 1) - 1 = 0.748573. The mean is 0.820488.
    """
    model = make("crlc", n_leads=4, width=2, global_temperature=1.0, projection_dim=0)
    monkeypatch.setattr(model, "split", lambda n, rng: torch.tensor([True, False, True, False]))
    with_embeddings(monkeypatch, model, [X, Y, X, Y, Y, Y, X, FAR])
    views = make_views(2, n_leads=4, patients=[0, 1])
    views.signal[1, 3] = 0
    assert mean_loss(model, views) == pytest.approx(0.820488, abs=1e-6)


def test_crlc_divides_by_the_number_of_leads():
    views = make_views(3, n_leads=5)
    parts = torch.tensor([[True, True, True, False, False], [False, False, False, True, True]])
    parts = parts[:, None].expand(2, 3, 5).clone()
    parts[0, 1] = False
    mean, total = (make("crlc", n_leads=5, readout=readout) for readout in ("mean", "sum"))
    ours, official = mean.readout(views, parts), total.readout(views, parts)
    torch.testing.assert_close(ours[0] * torch.tensor([3, 1, 3])[:, None], official[0])
    torch.testing.assert_close(ours[1] * 2, official[1])
    assert not ours[0, 1].any()
    together = make("crlc", n_leads=5, readout="encoder").readout(views, parts)
    torch.testing.assert_close(together[1], mean.encoder.embed(views.signal[:, 3:], ENCODER.leads[3:5]))


def unit(z: Tensor) -> Tensor:
    """Divided by the norm, through which there is no gradient, as in FS."""
    return z / z.norm(dim=1, keepdim=True).detach()


def plain_nt_xent(z: Tensor, group: Tensor, tau: float) -> Tensor:
    """Row by row, from the definition."""
    u = unit(z)
    each = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        (p,) = [j for j in others if group[j] == group[i]]
        weights = torch.stack([torch.exp(u[i] @ u[j] / tau) for j in others])
        each.append(-torch.log(torch.exp(u[i] @ u[p] / tau) / weights.sum()))
    return torch.stack(each).mean()


def plain_pair(a: Tensor, b: Tensor, group: Tensor, there_a: Tensor, there_b: Tensor, tau: float):
    """Both directions of one pair of leads; None without a positive."""
    rows, columns = [i for i in range(len(a)) if there_a[i]], [j for j in range(len(b)) if there_b[j]]
    weight = torch.exp(unit(a) @ unit(b).T / tau)
    terms = [
        -torch.log(weight[i, j] ** 2 / (weight[i, columns].sum() * weight[rows, j].sum())) / 2
        for i in rows
        for j in columns
        if group[i] == group[j]
    ]
    return torch.stack(terms).mean() if terms else None


def lead_alone(model, signal: Tensor) -> Tensor:
    """[L, B, E]: the encoder of all leads with all but one zeroed."""
    found = []
    for lead in range(signal.shape[1]):
        alone = torch.zeros_like(signal)
        alone[:, lead] = signal[:, lead]
        found.append(model.encoder(alone).tokens.mean(1))
    return torch.stack(found)


def plain_loss(name: str, model, views: Views, rng: Tensor) -> Tensor:
    """The loss of an objective from its definition and given draws."""
    tau, signal, patients = model.config.global_temperature, views.signal, views.patients
    rows, n_leads = signal.shape[:2]
    keep = model.lead_keep(views, rng)
    there = keep & (signal != 0).any(-1)
    if name in ("cmlc", "cmsmlc"):
        z = lead_alone(model, signal)
        halves = slice(0, rows // 2), slice(rows // 2, rows)
        first, second = halves if name == "cmsmlc" else [slice(None)] * 2
        pairs = [
            plain_pair(z[a, first], z[b, second], patients[first], there[first, a], there[second, b], tau)
            for a in range(n_leads)
            for b in range(a + 1, n_leads)
        ]
        return torch.stack([loss for loss in pairs if loss is not None]).mean()
    if name == "crlc":
        z, part = lead_alone(model, signal), model.split(n_leads, rng)
        y = torch.stack([z[there[i] & side, i].mean(0) for side in (part, ~part) for i in range(rows)])
        return plain_nt_xent(model.head(y), torch.arange(rows).repeat(2), tau)
    if name == "simclr":
        draws = draw_noise(rng, views.sample_ids, signal.shape[2], model.config.noise)
        changed = [plain_noise(x.numpy(), draws, i) for i, x in enumerate(signal)]
    else:
        draws = draw_turn(rng, views.sample_ids, n_leads, signal.shape[2], angle=45.0, scale=1.5)
        changed = [plain_turned(x.numpy(), draws, i) for i, x in enumerate(signal)]
    kept = torch.from_numpy(np.stack(changed)) * there[..., None]
    z = model.head(model.encoder(kept).tokens.mean(1))
    if name == "simclr":
        return plain_nt_xent(z, torch.arange(rows) % (rows // 2), tau)
    u = unit(z)
    total = 0.0
    for i in range(rows):
        negatives = sum(torch.exp(u[i] @ u[n] / tau) for n in range(rows) if patients[n] != patients[i])
        for p in range(rows):
            if p != i and patients[p] == patients[i]:
                positive = torch.exp(u[i] @ u[p] / tau)
                total = total - torch.log(positive / (positive + negatives))
    return total / rows


@pytest.mark.parametrize("name", NAMES)
def test_against_the_definition(name):
    """Loss and gradients, with random lead masking, patients that come twice and an absent lead."""
    settings = {"projection_dim": 8} if name in ("simclr", "3kg") else {}
    model = make(name, n_leads=5 if name != "3kg" else 12, lead_mask_prob=0.2, **settings)
    n_leads = model.config.encoder.n_leads
    views = make_views(8, n_leads=n_leads, patients=[0, 1, 0, 2] * 2)
    views.signal[:, 2] = 0
    rng = ops.make_rng(3, 5)
    losses = model(views, rng)
    (losses.total / losses.size).backward()
    ours = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    want = plain_loss(name, model, views, rng)
    want.backward()
    # noise is drawn and added in fp32
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if name in ("simclr", "3kg") else {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(losses.total / losses.size, want, **tolerance)
    for key, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(
                ours[key], p.grad, **tolerance, msg=lambda text, key=key: f"{key}: {text}"
            )


@pytest.mark.parametrize("name", NAMES)
def test_draws_follow_from_the_sample_not_from_the_batch(name):
    """A row's view is the same in another batch; another step draws others."""
    if name in ("cmlc", "cmsmlc", "crlc"):
        model = make(name, lead_mask_prob=0.5)
        draw = model.lead_keep
    else:
        model = make(name)
        draw = model.augmented
    views = make_views(6)
    few = Views(views.signal[4:], views.patients[4:], views.sample_ids[4:])
    rng = ops.make_rng(0, 7)
    assert torch.equal(draw(views, rng)[4:], draw(few, rng))
    assert not torch.equal(draw(views, rng), draw(views, ops.make_rng(0, 8)))


def test_splits_of_leads():
    """Both parts have two leads or more, every size comes up, and so does every lead; the step decides."""
    model = make("crlc", n_leads=6)
    splits = torch.stack([model.split(6, ops.make_rng(1, step)) for step in range(200)])
    assert set(splits.sum(1).tolist()) == {2, 3, 4}
    assert ((splits.double().mean(0) - 0.5).abs() < 0.15).all()
    assert torch.equal(splits[3], model.split(6, ops.make_rng(1, 3)))


@pytest.mark.parametrize("name", NAMES)
def test_silent_records_and_masked_leads_give_no_nan(name):
    """No lead of a row is there; or of none: the loss and all gradients are finite."""
    for probability, silent in ((0.0, [1]), (1.0, []), (0.0, range(4))):
        model = make(name, lead_mask_prob=probability)
        views = make_views(4)
        views.signal[list(silent)] = 0
        losses = model(views, ops.make_rng(0))
        losses.total.backward()
        assert losses.total.isfinite()
        assert all(value.isfinite() for value in losses.counts.values() if isinstance(value, Tensor))
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name):
    """What padding holds and how far it goes, but for draws within the segment."""
    model = make(name)
    views = make_views(4)._replace(lengths=torch.tensor([96, 64, 96, 64]))
    first = model(views, ops.make_rng(0)).total
    other = views.signal.clone()
    other[[1, 3], :, 64:] = 1e3
    torch.testing.assert_close(model(views._replace(signal=other), ops.make_rng(0)).total, first)


@pytest.mark.parametrize("name", ["cmsmlc", "simclr", "3kg"])
def test_rows_in_another_order(name):
    """`segment` says which rows are first ones, in place of the order by halves."""
    model = make(name)
    views = make_views(6, patients=[0, 1, 1] * 2)
    order = torch.tensor([0, 3, 1, 4, 2, 5])
    mixed = Views(*(x[order] for x in views[:3]), segment=torch.tensor([0, 1] * 3))
    a, b = (model(x, ops.make_rng(2)) for x in (views, mixed))
    torch.testing.assert_close(a.total, b.total)
    assert {k: float(v) for k, v in b.counts.items()} == pytest.approx(
        {k: float(v) for k, v in a.counts.items()}
    )


def test_microvolts_are_millivolts():
    for name in NAMES:
        model = make(name).float()
        views = make_views(4)
        counts = (views.signal * 300).round().to(torch.int16)
        a, b = (
            model(views._replace(signal=x), ops.make_rng(0)).total for x in (counts, counts.float() / 1000)
        )
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_official_token_mean():
    """(2, 0), (4, 6): over two tokens (3, 3), over entries that are not zero (3, 6)."""
    tokens = torch.tensor([[[2.0, 0.0], [4.0, 6.0]]])
    assert mean_tokens(tokens, None).tolist() == [[3, 3]]
    assert mean_tokens(tokens, None, nonzero=True).tolist() == [[3, 6]]
    padding = torch.tensor([[False, True]])
    assert mean_tokens(tokens, padding, nonzero=True).tolist() == [[2, 0]]
    model = make("cmsc", official_token_mean=True)
    encoded = model.encoder(make_views(2).signal)
    zeroed = encoded._replace(tokens=encoded.tokens * (torch.arange(12) % 2 == 0)[:, None])
    torch.testing.assert_close(model.embedding(zeroed), encoded.tokens[:, ::2].mean(1))


def test_agreement_by_hand():
    """Views X, Y against X, X: the first finds its own, the second (cosines 0, 0) the other's.

    Cosines of partners: 1 and 0. Components: (1, 0, 1, 1) and (0, 1, 0, 0); both have the standard deviation
    sqrt(3) / 4 = 0.433013; times sqrt(2).
    """
    a, b = torch.tensor([[X, Y]]), torch.tensor([[X, X]])
    got = agreement(a, b, torch.tensor([0, 1]))
    assert (int(got["found"]), int(got["searched"]), float(got["alignment"])) == (1, 2, 1)
    assert float(got["spread"]) == pytest.approx(0.612372, abs=1e-6)
    there = torch.tensor([[True, False]])
    got = agreement(a, b, torch.tensor([0, 1]), there, there)
    assert [float(got[k]) for k in ("found", "searched", "alignment", "spread")] == [1, 1, 1, 0]


def test_warnings():
    for name, alone in (("cmsmlc", 2), ("simclr", 2), ("3kg", 2), ("crlc", 1), ("cmlc", 1)):
        kind = objective_class(name)
        config = kind.Config(encoder=ENCODER)
        assert "no negatives" in kind.weaknesses(config, alone)[0]
        assert kind.weaknesses(config, alone + 2) == []
        assert "spread is 0.010" in kind.troubles(config, {"spread": 0.01}, settled=True)["collapse"]
        assert kind.troubles(config, {"spread": 0.01}, settled=False) == {}
        assert kind.troubles(config, {"spread": 0.5}, settled=True) == {}


def test_chance_levels():
    """16 pairs, 32 rows: 2B - 1 = 31 others for two views, 63 for crlc's 64, 32 segments, 16 pairs."""
    want = {"simclr": 31, "3kg": 31, "crlc": 63, "cmlc": 32, "cmsmlc": 16}
    for name, n in want.items():
        kind = objective_class(name)
        assert kind.metrics(kind.Config(encoder=ENCODER), 32)[1].chance[0] == pytest.approx(math.log(n))


@pytest.mark.parametrize(
    ("name", "leads", "settings", "message"),
    [
        ("crlc", 3, {}, "encoder.leads: must be 4 leads or more, .* got 3"),
        ("crlc", 4, {"readout": "max"}, "readout takes mean, sum, encoder, got 'max'"),
        ("cmlc", 1, {}, "encoder.leads: must be 2 or more, .* got 1"),
        ("3kg", 6, {}, "leads: must have I, II, V1, .* got I, II, III"),
        ("3kg", 12, {"zero_share": 1}, "zero_share takes a number below 1"),
        ("3kg", 12, {"scale": 0.5}, "scale takes a number in"),
        ("simclr", 12, {"emg_prob": 2}, "emg_prob takes a number in"),
        ("simclr", 12, {"projection_dim": -1}, "projection_dim takes an integer >= 0"),
    ],
)
def test_settings_that_make_no_sense(name, leads, settings, message):
    with pytest.raises(EcgfastError, match=message):
        make(name, n_leads=leads, **settings)


def test_batches_of_too_few_leads():
    views = make_views(4)
    for name, n, message in (
        ("crlc", 3, "4 leads or more"),
        ("cmlc", 1, "2 leads or more"),
        ("3kg", 6, "dipole"),
    ):
        few = views._replace(signal=views.signal[:, :n], leads=ENCODER.leads[:n])
        with pytest.raises(EcgfastError, match=message):
            make(name)(few, ops.make_rng(0))


def test_one_lead_alone_costs_one_lead():
    """CMLC gives the stem one lead at a time, never twelve with eleven zeros."""
    model, seen = make("cmlc"), []
    model.encoder.stem.register_forward_hook(lambda _, args, out: seen.append(tuple(args[0].shape)))
    model(make_views(4), ops.make_rng(0))
    assert seen == [(4, 1, 96)] * 12


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_without_breaks(name):
    """torch.compile traces each step whole, and draws the same."""
    model = make(name, n_leads=12 if name == "3kg" else 4, lead_mask_prob=0.3)
    views, rng = make_views(4, n_leads=model.config.encoder.n_leads, samples=32), ops.make_rng(1)
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    torch.testing.assert_close(compiled(views, rng).total, model(views, rng).total)
