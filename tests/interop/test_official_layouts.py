"""Checkpoints with the official configuration's full structure, in every protocol and format."""

import json
import math

import pytest
import torch

from ecgfast.errors import EcgfastError
from ecgfast.interop import convert_fairseq
from ecgfast.leads import STANDARD_LEADS
from ecgfast.nn import Encoder
from ecgfast.objectives import W2VCMSC
from tests.fixtures import official
from tests.interop.test_fairseq import CONFIG, official_names

HEADS = ("quantizer.", "project_q.", "final_proj.", "mask_emb")


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    for name, module in official.register().items():
        monkeypatch.setitem(__import__("sys").modules, name, module)


@pytest.fixture
def model() -> W2VCMSC:
    torch.manual_seed(0)
    return W2VCMSC(CONFIG).eval()


@pytest.fixture
def save(tmp_path):
    def write(content, **options):
        torch.save(content, tmp_path / "checkpoint.pt", **options)
        return tmp_path / "checkpoint.pt"

    return write


def fine_tuned(model: W2VCMSC, cfg) -> dict:
    """A classifier's checkpoint: the encoder below `encoder.`, a head, its pre-training's configuration."""
    kept = {f"encoder.{k}": v for k, v in official_names(model).items() if not k.startswith(HEADS)}
    kept |= {"proj.weight": torch.zeros(26, 16), "proj.bias": torch.zeros(26)}
    return official.checkpoint(cfg, kept)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("form", official.CONFIGS)
def test_pretrained(form, protocol, zipped, model, save, tmp_path):
    cfg = official.CONFIGS[form](criterion={"loss_weights": [0.2, 5]})
    path = save(
        official.checkpoint(cfg, official_names(model)),
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=zipped,
    )
    told = convert_fairseq(path, tmp_path / "out")
    converted = W2VCMSC.from_pretrained(tmp_path / "out")
    for name, value in model.state_dict().items():
        assert torch.equal(converted.state_dict()[name], value), name
    config = converted.config
    assert (config.diversity_weight, config.feature_penalty_weight) == (0.2, 5.0)
    assert config.gumbel_temperature == (2.0, 0.5, 0.999995)
    assert (config.encoder.dropout_input, config.encoder.feature_grad_mult) == (0.1, 0.1)
    assert "48 tensors of the encoder and 7 of the pre-training heads" in str(told)
    assert "left behind: optimizer_history, extra_state, last_optimizer_state" in str(told)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("form", official.CONFIGS)
def test_fine_tuned(form, protocol, model, save, tmp_path):
    inner = official.CONFIGS[form](criterion={}, task={"normalize": True})
    if form == "plain":
        inner["criterion"] = inner["lr_scheduler"] = None
    cfg = official.CONFIGS[form](
        model={"_name": "ecg_transformer_classifier", "args": inner, "dropout": 0.7, "apply_mask": False},
        task={"_name": "ecg_classification", "normalize": True},
    )
    path = save(fine_tuned(model, cfg), pickle_protocol=protocol)
    with pytest.warns(UserWarning, match="normalise signals"):
        told = convert_fairseq(path, tmp_path / "out")
    encoder = Encoder.from_pretrained(tmp_path / "out")
    assert encoder.config.dropout == 0.1
    for name, value in model.encoder.state_dict().items():
        if name != "mask_token":
            assert torch.equal(encoder.state_dict()[name], value), name
    assert told.left_behind == ("proj.weight", "proj.bias")
    assert "47 tensors of the encoder; left behind: proj.weight, proj.bias, optimizer_history" in str(told)
    assert "normalize true" in str(told)
    assert "scaling is yours to match" in str(told)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["preprocessing"] == encoder.preprocessing
    assert encoder.preprocessing == {
        "filters": [],
        "derived_leads": [],
        "sample_rate": 500,
        "leads": list(STANDARD_LEADS),
        "sources": ["fairseq-signals"],
        "normalized": "zero mean and unit variance per lead",
    }
    origin = config["origin"]
    assert origin["inputs"] == {
        "sample_rate": 500,
        "normalize": True,
        "filter": False,
        "max_sample_size": 2500,
    }


def refused(path, message):
    with pytest.raises(EcgfastError, match=message) as error:
        convert_fairseq(path, path.parent / "out")
    assert str(error.value).count(str(path)) == 1
    assert "\n" not in str(error.value)
    assert not (path.parent / "out").exists()


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (r"mask_emb", "lacks 1 tensors .*: mask_emb"),
        (r"encoder.layers.1", r"lacks 16 tensors \(encoder_layers is 2\): encoder.layers.1.fc1.bias"),
        (r"encoder.layers.0", r"lacks 16 tensors \(encoder_layers is 2\): encoder.layers.0.fc1.bias|lacks "),
        (r"encoder.layers", "lacks 32 tensors"),
        (r"feature_extractor.conv_layers.3", "lacks 1 tensors .*: feature_extractor.conv_layers.3.0.weight"),
        (r"quantizer.vars", "lacks 1 tensors of the pre-training heads: quantizer.vars"),
        (r"project_q", "lacks 2 tensors of the pre-training heads: project_q.bias, project_q.weight"),
        (("quantizer", "project_q", "final_proj"), "lacks 7 tensors of the pre-training heads"),
        (r"post_extract_proj.weight", "lacks 1 tensors .*: post_extract_proj.weight"),
        (r"conv_pos", "lacks the weight of the convolutional position"),
        (r"feature_extractor.conv_layers.0.0.weight", "holds no ECG transformer"),
    ],
)
@pytest.mark.parametrize("form", ["plain", "structured"])
def test_incomplete(form, gone, message, model, save):
    kept = {k: v for k, v in official_names(model).items() if not k.startswith(gone)}
    refused(save(official.checkpoint(official.CONFIGS[form](), kept)), message)


@pytest.mark.parametrize("name", ["encoder.layers.1.fc2.weight", "quantizer.vars", "mask_emb"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_not_finite(name, value, model, save):
    tensors = {k: v.clone() for k, v in official_names(model).items()}
    tensors[name].view(-1)[-1] = value
    refused(save(official.checkpoint(official.plain_config(), tensors)), f"not finite in 1 tensors: {name}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_layers": 1}, r"no place for \(encoder_layers is 1\): encoder.layers.1"),
        ({"encoder_layers": 12}, r"lacks 160 tensors \(encoder_layers is 12\)"),
        ({"encoder_layers": 10**9}, "encoder_layers 1000000000"),
        ({"encoder_embed_dim": 768}, "encoder_embed_dim 768 in its configuration, but 16 in conv_pos"),
        ({"encoder_ffn_embed_dim": 3072}, "encoder_ffn_embed_dim 3072 in its configuration, but 12"),
        ({"in_d": 1}, "in_d 1 in its configuration, but 12"),
        ({"conv_feature_layers": "[(8, 2, 2)] * 5"}, "lacks 1 tensors .*conv_layers.4.0.weight"),
        ({"conv_feature_layers": "[(8,2,2)] + [(8,2,2)]*2"}, "no place for .*conv_layers.3.0.weight"),
        ({"conv_feature_layers": "[(256, 2, 2)] * 4"}, "has 8 channels, its configuration says 256"),
        ({"conv_feature_layers": "[(8, 2, 2)] * 999999999"}, "takes 1000 at most"),
        ({"conv_bias": True}, "lacks 4 tensors .*feature_extractor.conv_layers.0.0.bias"),
        ({"latent_vars": 320}, "latent_vars 320 in its configuration, but 5"),
        ({"final_dim": 256}, "final_dim 256 in its configuration, but 8"),
        ({"latent_dim": 256}, "latent_dim 256 in its configuration, but 4"),
    ],
)
def test_other_sizes_than_the_configurations(changes, message, model, save):
    cfg = official.plain_config(model=changes)
    refused(save(official.checkpoint(cfg, official_names(model))), message)


def test_sizes_that_the_configuration_leaves_open(model, save, tmp_path):
    cfg = official.plain_config(model={"final_dim": 0, "latent_dim": 0})
    convert_fairseq(save(official.checkpoint(cfg, official_names(model))), tmp_path / "out")


def test_other_rate_is_told(model, save, tmp_path):
    cfg = official.plain_config(task={"sample_rate": 250})
    with pytest.warns(UserWarning, match="250 samples per second, stores hold 500"):
        convert_fairseq(save(official.checkpoint(cfg, official_names(model))), tmp_path / "out")


def test_cut_legacy_file(model, save):
    path = save(
        official.checkpoint(official.plain_config(), official_names(model)),
        _use_new_zipfile_serialization=False,
    )
    whole = path.read_bytes()
    for size in range(0, len(whole), len(whole) // 50):
        path.write_bytes(whole[:size])
        refused(path, "is no checkpoint of torch|is damaged")
