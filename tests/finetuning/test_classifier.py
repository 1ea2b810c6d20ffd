"""The classifier's losses on cases worked by hand, what it freezes, and how it predicts."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from ecgfast.errors import EcgfastError
from ecgfast.finetuning import Classifier, ClassifierConfig, LabelledBatch
from ecgfast.finetuning.classifier import window_bounds
from ecgfast.leads import STANDARD_LEADS
from ecgfast.ops import make_rng
from tests.finetuning.conftest import SMALL


def make(**changes) -> Classifier:
    torch.manual_seed(0)
    told = {"encoder": SMALL, "names": ("a", "b"), "segment_samples": 320, **changes}
    return Classifier(ClassifierConfig(**told))


def batch(targets, samples=320):
    signal = torch.randint(-500, 500, (len(targets), 12, samples), dtype=torch.int16)
    return LabelledBatch(signal, torch.tensor(targets))


def with_logits(classifier, values):
    """Its head gives these logits whatever the signal is."""
    with torch.no_grad():
        classifier.head.weight.zero_()
        classifier.head.bias.copy_(torch.tensor(values))
    return classifier


def test_head_begins_as_the_papers():
    classifier = make()
    assert torch.equal(classifier.head.bias, torch.zeros(2))
    limit = math.sqrt(6 / (32 + 2))  # Xavier: U(-l, l) with l = sqrt(6 / (fan in + fan out))
    assert 0.5 * limit < classifier.head.weight.abs().max() <= limit


def test_cross_entropy_by_hand():
    """Logits (0, ln 3): probabilities 1/2 and 3/4. Rows (1, 0), (unknown, 1), b weighs 2 if present:
    -ln 1/2 - ln 1/4 - 2 ln 3/4, over 3 known targets. The logit 0 is not above 0: a is told absent, which is
    wrong, and b present: wrong in the first row, right in the second."""
    classifier = with_logits(make(positive_weights=(1.0, 2.0)), [0.0, math.log(3)])
    losses = classifier(batch([[1.0, 0.0], [math.nan, 1.0]]), make_rng(0, 0, "cpu"))
    want = math.log(2) + math.log(4) + 2 * math.log(4 / 3)
    assert losses.total.item() == pytest.approx(want, rel=1e-6)
    assert int(losses.size) == 3
    assert int(losses.counts["n_correct"]) == 1
    losses.total.backward()
    assert classifier.head.bias.grad.isfinite().all()
    # d/dz of -2 ln s(z) is -2 (1 - s), of -ln(1 - s) it is s: 3/4 - 2/4
    assert classifier.head.bias.grad.tolist() == pytest.approx([-0.5, 0.25])


def test_squared_error_by_hand():
    """Mean 50, std 10, head 0.5: 55 years. Targets 65, unknown, 45: (0.5 - 1.5)^2 + (0.5 + 0.5)^2 over 2;
    absolute errors 10 + 10."""
    told = {"names": ("age",), "task": "regression", "mean": (50.0,), "std": (10.0,)}
    classifier = with_logits(make(**told), [0.5])
    losses = classifier(batch([[65.0], [math.nan], [45.0]]), make_rng(0, 0, "cpu"))
    assert (losses.total.item(), int(losses.size)) == (pytest.approx(2.0), 2)
    assert float(losses.counts["absolute_error"]) == pytest.approx(20.0)
    assert classifier.predict(np.zeros((1, 12, 320), np.int16)) == pytest.approx(55.0)


@pytest.mark.parametrize("freeze", ["stem", "encoder", "none"])
def test_what_is_frozen(freeze):
    mult = 1.0 if freeze == "none" else 0.0
    classifier = make(freeze=freeze, encoder=dataclasses.replace(SMALL, feature_grad_mult=mult)).train()
    classifier(batch([[1.0, 0.0], [0.0, 1.0]]), make_rng(0, 0, "cpu")).total.backward()
    trained = {name for name, p in classifier.named_parameters() if p.grad is not None}
    every = {name for name, _ in classifier.named_parameters()} - {"encoder.mask_token"}
    stem = {name for name in every if name.startswith("encoder.stem.")}
    want = {"stem": every - stem, "encoder": {"head.weight", "head.bias"}, "none": every}[freeze]
    assert trained == want
    # what DDP would wait for
    assert {name for name, p in classifier.named_parameters() if p.requires_grad} == want
    assert classifier.encoder.training == (freeze != "encoder")


def test_layer_decay():
    """Two layers: head 1, layer 1 a half, layer 0 a quarter, what is below an eighth."""
    scales = make().learning_rate_scales(0.5)
    assert scales["head.weight"] == 1
    assert scales["encoder.transformer.layers.1.fc1.weight"] == 0.5
    assert scales["encoder.transformer.layers.0.fc1.weight"] == 0.25
    for name in ("stem.convs.0.weight", "projection.weight", "transformer.norm.weight"):
        assert scales[f"encoder.{name}"] == 0.125
    after = make(encoder=dataclasses.replace(SMALL, norm_first=True)).learning_rate_scales(0.5)
    assert after["encoder.transformer.norm.weight"] == 0.5


@pytest.mark.parametrize(
    ("n", "starts", "lengths"),
    [
        (100, [0], [100]),
        (320, [0], [320]),
        (479, [0], [320]),  # a last window of 159, less than half of one
        (480, [0, 320], [320, 160]),
        (960, [0, 320, 640], [320, 320, 320]),
    ],
)
def test_windows(n, starts, lengths):
    assert window_bounds(n, 320) == (starts, lengths)


def test_prediction_is_the_mean_of_windows():
    classifier = make().eval()
    signal = np.random.default_rng(0).integers(-500, 500, (3, 12, 850)).astype(np.int16)
    got = classifier.predict(signal, batch_size=2)
    with torch.no_grad():
        parts = [classifier.logits(torch.from_numpy(signal[..., a:b])) for a, b in [(0, 320), (320, 640)]]
        parts.append(classifier.logits(torch.from_numpy(signal[..., 640:850])))
    want = np.mean([part.sigmoid().numpy() for part in parts], 0)
    assert got.shape == (3, 2)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_allclose(classifier.predict(signal[0]), got[:1], atol=1e-6)
    np.testing.assert_allclose(classifier.predict(signal / 1000.0), got, atol=1e-5)


def test_leads_by_name_in_any_order():
    classifier = make(leads=("II", "V2")).eval()
    signal = np.random.default_rng(0).integers(-500, 500, (2, 12, 320)).astype(np.int16)
    both = signal[:, [1, 7]]
    want = classifier.predict(both)
    np.testing.assert_allclose(classifier.predict(both[:, ::-1].copy(), leads=["v2", "DII"]), want, atol=1e-6)
    # leads that it was not trained on are left out
    np.testing.assert_allclose(classifier.predict(signal, leads=STANDARD_LEADS), want, atol=1e-6)
    alone = classifier.predict(both[:, :1], leads=["II"])
    zeroed = both.copy()
    zeroed[:, 1] = 0
    np.testing.assert_allclose(alone, classifier.predict(zeroed), atol=1e-6)
    assert np.abs(alone - want).max() > 1e-4


@pytest.mark.parametrize(
    ("signal", "leads", "message"),
    [
        (np.zeros((1, 3, 320), np.int16), None, r"signal: must be \[n, 2, T\]"),
        (np.zeros((1, 2, 0), np.int16), None, "signal: must be"),
        (np.zeros((1, 2, 320), np.int32), None, "signal: must be int16 microvolts or float"),
        (np.full((1, 2, 320), np.nan), None, "signal: must be finite"),
        (np.zeros((1, 1, 320), np.int16), ["V1"], "leads: must have one of II, V2"),
        (np.zeros((1, 1, 320), np.int16), ["X"], "unknown lead 'X'"),
    ],
)
def test_bad_signals(signal, leads, message):
    with pytest.raises(EcgfastError, match=message):
        make(leads=("II", "V2")).predict(signal, leads)


def test_folder(tmp_path):
    classifier = make(leads=("II",), positive_weights=(1.0, 3.0)).eval()
    classifier.save_pretrained(tmp_path / "model")
    back = Classifier.from_pretrained(tmp_path / "model")
    assert back.config == classifier.config
    signal = np.random.default_rng(0).integers(-500, 500, (1, 1, 320)).astype(np.int16)
    np.testing.assert_array_equal(back.predict(signal), classifier.predict(signal))
    classifier.encoder.save_pretrained(tmp_path / "encoder")
    with pytest.raises(EcgfastError, match="model_type must be ecgfast_classifier, got 'ecgfast_encoder'"):
        Classifier.from_pretrained(tmp_path / "encoder")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ("a", "a")}, "names: must be one or more, each once"),
        ({"task": "ranking"}, "task: must be classification or regression"),
        ({"task": "regression"}, "mean: must be 2 numbers for regression, got"),
        ({"leads": ("X",)}, "unknown lead"),
        ({"positive_weights": (1.0,)}, "positive_weights: must be 2 numbers"),
        ({"freeze": "head"}, "freeze: must be stem, encoder, none, got 'head'"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(EcgfastError, match=message):
        make(**changes)
