"""The objectives that are parts of the paper's, and what every objective promises."""

import json

import pytest
import torch
from torch.nn import functional as F

from ecgfast import ops
from ecgfast.errors import EcgfastError
from ecgfast.nn import Encoder, EncoderConfig
from ecgfast.nn.config import config_from_dict
from ecgfast.objectives import (
    CMSC,
    OBJECTIVES,
    W2V,
    W2VCMSC,
    CMSCConfig,
    Views,
    W2VCMSCConfig,
    W2VConfig,
    objective_class,
    objective_config,
)

ENCODER = EncoderConfig(
    stem_channels=16,
    width=32,
    layers=1,
    heads=2,
    ffn=48,
    conv_pos=8,
    conv_pos_groups=2,
    dropout=0.0,
    attention_dropout=0.0,
    dropout_input=0.0,
)
LOCAL = {"final_dim": 16, "entries": 8, "latent_dim": 16, "n_negatives": 5, "n_masked": 8}


def make_views(rows: int = 6) -> Views:
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(rows)
    return Views(torch.randn(rows, 12, 320, generator=generator), ids % (rows // 2), ids)


def test_the_whole_is_the_sum_of_its_parts():
    torch.manual_seed(0)
    config = W2VCMSCConfig(encoder=ENCODER, dropout_features=0.0, lead_mask_prob=0.5, **LOCAL)
    whole = W2VCMSC(config)
    local = W2V(W2VConfig(encoder=ENCODER, dropout_features=0.0, lead_mask_prob=0.5, **LOCAL))
    local.load_state_dict(whole.state_dict())
    views, rng = make_views(), ops.make_rng(0, 3)
    both, alone = whole(views, rng), local(views, rng)
    assert both.size == alone.size == 6 * 8
    for name in ("local", "diversity", "feature_penalty"):
        assert torch.equal(both.terms[name], alone.terms[name])
    torch.testing.assert_close(both.total, alone.total + both.terms["global"])


def test_cmsc_is_the_loss_of_all_tokens():
    torch.manual_seed(0)
    model = CMSC(CMSCConfig(encoder=ENCODER)).double()
    views = make_views()
    views = views._replace(signal=views.signal.double(), patients=torch.tensor([4, 4, 9, 4, 4, 9]))
    losses = model(views, ops.make_rng(0))
    z = F.normalize(model.encoder(views.signal).tokens.mean(1), dim=1)
    logits = z[:3] @ z[3:].T / 0.1
    positive = views.patients[:3, None] == views.patients[None, 3:]
    rows, columns = logits.log_softmax(1), logits.log_softmax(0)
    want = -(rows[positive].mean() + columns[positive].mean()) / 2
    torch.testing.assert_close(losses.total / losses.size, want)
    assert losses.size == 6
    losses.total.backward()
    assert model.encoder.transformer.layers[0].fc1.weight.grad.any()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective(name, tmp_path):
    """Trains, tells the metrics that it can make, and its folder gives its encoder back."""
    torch.manual_seed(0)
    kind = objective_class(name)
    config = objective_config(name, "demo", ENCODER)
    assert isinstance(config, kind.Config)
    config.check_segment(2500)
    model = kind(config).train()
    views = make_views()
    views = views._replace(signal=views.signal.repeat(1, 1, 8))
    losses = model(views, ops.make_rng(1))
    torch.testing.assert_close(losses.total, sum(losses.terms.values()))
    losses.total.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if n != "encoder.mask_token")
    known = {*losses.terms, *losses.counts, "total", "size", "batches"}
    metrics = kind.metrics(config, 6)
    assert metrics[0].name == "loss"
    assert {name for metric in metrics for name in (metric.of, metric.per)} <= known
    assert {metric.of for metric in metrics if metric.term} == {"total", *losses.terms}
    model.after_update(ops.make_rng(1))
    assert set(model.shardable()) <= set(model.modules())

    model.save_pretrained(tmp_path / "model")
    again = kind.from_pretrained(tmp_path / "model")
    assert again.config == config
    encoder = Encoder.from_pretrained(tmp_path / "model")
    assert torch.equal(encoder.embed(views.signal), model.eval().encoder.embed(views.signal))


def test_names_stand_for_settings():
    assert objective_config("w2v_cmsc", "paper", ENCODER).lead_mask_prob == 0
    assert objective_config("w2v_cmsc_rlm", "paper", ENCODER).lead_mask_prob == 0.5
    assert objective_config("cmsc", "small", ENCODER).lead_mask_prob == 0
    with pytest.raises(
        EcgfastError, match=r"objective: must be one of w2v, .*, got 'w2v_csmc'; did you mean"
    ):
        objective_class("w2v_csmc")
    with pytest.raises(EcgfastError, match="config: must be CMSCConfig, got W2VConfig"):
        CMSC(W2VConfig(encoder=ENCODER))


def test_settings_by_the_names_of_version_0_1():
    old = {"groups": 4, "temperature": [1.0, 0.5, 0.9], "latent_dim": 8}
    config = config_from_dict(W2VCMSCConfig, old, "config.json")
    assert (config.codebook_groups, config.gumbel_temperature) == (4, (1.0, 0.5, 0.9))
    assert config_from_dict(W2VCMSCConfig, json.loads(json.dumps(config.to_dict())), "") == config


def test_one_pair_alone_is_told():
    assert "batch_pairs of at least 2" in CMSC.weaknesses(CMSCConfig(encoder=ENCODER), 2)[0]
    assert CMSC.weaknesses(CMSCConfig(encoder=ENCODER), 4) == []
    assert W2V.weaknesses(W2VConfig(encoder=ENCODER), 2) == []


def test_single_segments_need_no_pairs():
    model = W2V(W2VConfig(encoder=ENCODER, **LOCAL))
    views = make_views()
    odd = Views(views.signal[:5], views.patients[:5], views.sample_ids[:5])
    assert model(odd, ops.make_rng(0)).total.isfinite()
    with pytest.raises(EcgfastError, match="takes pairs of segments, got 5"):
        CMSC(CMSCConfig(encoder=ENCODER))(odd, ops.make_rng(0))
