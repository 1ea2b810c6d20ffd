"""The encoder: any leads, any lengths, model folders, and errors in one line."""

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ecgfast import ops
from ecgfast.errors import EcgfastError
from ecgfast.leads import STANDARD_LEADS
from ecgfast.nn import Encoder, EncoderConfig, PositionalConv, scale_gradient
from ecgfast.ops._dispatch import INTS

CONFIG = EncoderConfig(stem_channels=16, width=32, layers=2, heads=2, ffn=48, conv_pos=8, conv_pos_groups=2)


def make_encoder(**changes) -> Encoder:
    torch.manual_seed(0)
    return Encoder(replace(CONFIG, **changes)).eval()


def make_signal(batch: int = 3, leads: int = 12, samples: int = 325) -> Tensor:
    return torch.randn(batch, leads, samples, generator=torch.Generator().manual_seed(1))


def test_output_shapes():
    output = make_encoder()(make_signal())
    assert output.tokens.shape == (3, 20, 32)
    assert output.features.shape == output.stem.shape == (3, 20, 16)
    assert output.padding is None
    assert make_encoder().embed(make_signal()).shape == (3, 32)


def test_paper_architecture_by_default():
    with torch.device("meta"):
        encoder = Encoder()
    n_parameters = sum(p.numel() for p in encoder.parameters())
    assert encoder.config.n_tokens(2500) == 156
    assert 90_000_000 < n_parameters < 91_000_000


@pytest.mark.parametrize(
    "leads", [["I"], ["I", "II", "V2"], ["V6", "I", "aVR"], ["avf", "v1"], STANDARD_LEADS[::-1]]
)
def test_leads_by_name(leads):
    encoder, signal = make_encoder(), make_signal(leads=len(leads))
    full = torch.zeros(3, 12, signal.shape[2])
    positions = [[name.lower() for name in STANDARD_LEADS].index(lead.lower()) for lead in leads]
    full[:, positions] = signal
    torch.testing.assert_close(encoder(signal, leads).tokens, encoder(full).tokens)
    torch.testing.assert_close(encoder.embed(signal, leads), encoder.embed(full))


def test_all_leads_named_in_order_are_the_default():
    encoder, signal = make_encoder(), make_signal()
    assert torch.equal(encoder(signal, STANDARD_LEADS).tokens, encoder(signal).tokens)


def test_encoder_of_few_leads():
    encoder = make_encoder(n_leads=2, leads=("V1", "II"))
    signal = make_signal(leads=2)
    assert torch.equal(encoder(signal).tokens, encoder(signal, ["V1", "II"]).tokens)
    torch.testing.assert_close(encoder(signal.flip(1), ["II", "V1"]).tokens, encoder(signal).tokens)
    with pytest.raises(EcgfastError, match="'I' is not a lead of this encoder: V1, II"):
        encoder(signal, ["I", "II"])


def test_gradients_of_a_lead_subset_stay_with_its_leads():
    encoder = make_encoder()
    encoder(make_signal(leads=2), ["II", "V1"]).tokens.square().sum().backward()
    used = encoder.stem.convs[0].weight.grad.abs().sum((0, 2)) > 0
    assert used.nonzero().flatten().tolist() == [1, 6]


def test_microvolts_and_millivolts():
    encoder = make_encoder()
    micro = (1000 * make_signal()).to(torch.int16)
    torch.testing.assert_close(encoder(micro).tokens, encoder(micro / 1000).tokens)
    torch.testing.assert_close(encoder(micro.double() / 1000).tokens, encoder(micro).tokens)


def test_kept_leads():
    encoder, signal = make_encoder(), make_signal()
    keep = torch.zeros(3, 12, dtype=torch.bool)
    keep[:, [0, 4]] = True
    zeroed = signal * keep[..., None]
    torch.testing.assert_close(encoder(signal, keep=keep).tokens, encoder(zeroed).tokens)


def test_no_lead_kept_is_finite():
    keep = torch.zeros(3, 12, dtype=torch.bool)
    assert make_encoder()(make_signal(), keep=keep).tokens.isfinite().all()


@pytest.mark.parametrize("norm_first", [False, True])
def test_padding_is_ignored(norm_first):
    encoder, signal = make_encoder(norm_first=norm_first), make_signal()
    lengths = torch.tensor([325, 200, 9])
    output = encoder(signal, lengths=lengths)
    assert (~output.padding).sum(1).tolist() == [20, 12, 0]
    noisy = signal.clone()
    noisy[1, :, 200:], noisy[2, :, 9:] = 50.0, -50.0
    assert torch.equal(encoder(noisy, lengths=lengths).tokens, output.tokens)
    embedding = encoder.embed(signal, lengths=lengths)
    torch.testing.assert_close(embedding[1], output.tokens[1, :12].mean(0))
    assert embedding.isfinite().all()
    assert not embedding[2].any()
    # Full lengths are no padding at all.
    full = encoder(signal, lengths=torch.full((3,), 325))
    torch.testing.assert_close(full.tokens, encoder(signal).tokens)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
@pytest.mark.parametrize("reference", [False, True])
def test_embed_does_not_depend_on_padding(norm_first, dtype, reference):
    encoder = make_encoder(norm_first=norm_first, conv_pos=9)
    signal = 1000 * make_signal(batch=1, samples=700) + 500
    signal = signal.to(dtype) if dtype == torch.int16 else signal / 1000
    with ops.use_reference(reference), torch.no_grad():
        for length in (700, 512, 333, 161, 97, 31, 16):
            cut = encoder.embed(signal[..., :length])
            output = encoder(signal[..., :length]).tokens
            for samples in (length, length + 7, 704, 1500):
                padded = torch.full((1, 12, samples), 99, dtype=dtype)
                n = min(length, samples)
                padded[..., :n] = signal[..., :n]
                lengths = torch.tensor([length]).clamp(max=samples)
                got = encoder.embed(padded, lengths=lengths)
                assert float((got - cut).norm() / cut.norm()) < 1e-5, (length, samples)
                tokens = encoder(padded, lengths=lengths).tokens[:, : length >> 4]
                assert float((tokens - output).norm() / output.norm()) < 1e-5, (length, samples)


def test_embed_of_a_batch_of_lengths_is_that_of_each():
    encoder, signal = make_encoder(), make_signal(batch=4)
    lengths = torch.tensor([325, 200, 77, 16], dtype=torch.int32)
    together = encoder.embed(signal, lengths=lengths)
    for i, length in enumerate(lengths):
        torch.testing.assert_close(together[i : i + 1], encoder.embed(signal[i : i + 1, :, :length]))


@pytest.mark.parametrize("norm_padding", [False, True])
@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("dtype", INTS)
def test_lengths_of_any_integer_dtype(dtype, reference, norm_padding):
    encoder, signal = make_encoder(norm_padding=norm_padding), make_signal()
    lengths = torch.tensor([127, 77, 9])
    with ops.use_reference(reference):
        got = encoder(signal, lengths=lengths.to(dtype))
        want = encoder(signal, lengths=lengths)
    for x, y in zip(got, want, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("held", [0.0, 40.0])
def test_padding_is_zero_in_the_stem_and_gets_no_gradient(held):
    encoder, lengths = make_encoder(), torch.tensor([325, 200, 9])
    past = torch.arange(325) >= lengths[:, None, None]
    signal = (make_signal() + 5).masked_fill(past, held).requires_grad_()
    output = encoder(signal, lengths=lengths)
    assert not output.stem[output.padding].any()
    # LayerNorm's of zeros: its bias.
    assert torch.equal(output.features[output.padding], encoder.feature_norm.bias.expand(28, -1))
    (output.stem + output.features)[output.padding].sum().backward()
    assert not signal.grad.any()
    assert not encoder.stem.convs[0].weight.grad.any()


@pytest.mark.parametrize("offset", [3.0, 10.0, 30.0, 100.0])
def test_gradients_of_padded_segments_with_an_offset(offset):
    """To the rounding of fp32, as padding, which stands off by the offset, sends nothing."""
    errors = {}
    for seed in range(4):
        print(f"seed {seed}")
        g = torch.Generator().manual_seed(seed)
        signal = 0.3 * torch.randn(3, 12, 1000, generator=g) + offset
        lengths = torch.tensor([1000, 613, 200])
        upstream = torch.randn(3, 62, 16, generator=g)

        def gradient(encoder, reference, signal=signal, lengths=lengths, upstream=upstream):
            dtype = encoder.mask_token.dtype
            with ops.use_reference(reference):
                output = encoder(signal.to(dtype), lengths=lengths)
                (output.stem * upstream.to(dtype)).sum().backward()
            return encoder.stem.convs[0].weight.grad.double()

        want = gradient(make_encoder().double(), True)
        for reference in (False, True):
            difference = gradient(make_encoder(), reference) - want
            errors.setdefault(reference, []).append(float(difference.norm() / want.norm()))
    assert max(errors[False]) < min(6e-7, 3 * max(errors[True])), errors


def test_the_official_form_sees_padding():
    encoder, signal = make_encoder(norm_padding=True), make_signal()
    lengths = torch.tensor([325, 200, 100])
    padded = encoder(signal, lengths=lengths).tokens
    zeros = signal.masked_fill(torch.arange(325) >= lengths[:, None, None], 0)
    torch.testing.assert_close(encoder(zeros).stem, encoder(signal, lengths=lengths).stem)
    other = make_encoder()(signal, lengths=lengths).tokens
    torch.testing.assert_close(padded[0], other[0])
    assert float((padded[1, :12] - other[1, :12]).norm() / other[1, :12].norm()) > 1e-3


def test_folders_without_the_field_keep_the_official_form(tmp_path):
    make_encoder().save_pretrained(tmp_path)
    assert not Encoder.from_pretrained(tmp_path).config.norm_padding
    config = json.loads((tmp_path / "config.json").read_text())
    del config["norm_padding"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Encoder.from_pretrained(tmp_path).config.norm_padding


def test_masked_tokens_hide_their_samples():
    encoder, signal = make_encoder(), make_signal()
    mask = torch.zeros(3, 20, dtype=torch.bool)
    mask[:, 5:9] = True
    tokens = encoder(signal, mask=mask).tokens
    assert not torch.equal(tokens, encoder(signal).tokens)
    encoder(signal, mask=mask).tokens.sum().backward()
    assert encoder.mask_token.grad.any()


def test_same_width_needs_no_projection():
    encoder = make_encoder(stem_channels=32)
    assert not any(name.startswith("projection") for name in encoder.state_dict())
    assert encoder(make_signal()).tokens.shape == (3, 20, 32)


def test_scale_gradient():
    x = torch.ones(3, requires_grad=True)
    y = scale_gradient(x, 0.1)
    assert torch.equal(y, x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.full((3,), 0.1))


@pytest.mark.parametrize("kernel", [1, 4, 5, 128])
def test_positional_conv_keeps_the_length(kernel):
    module = PositionalConv(8, kernel, 2)
    x = torch.randn(2, 11, 8)
    y = F.pad(x.transpose(1, 2), (kernel // 2, kernel // 2))
    y = F.conv1d(y, module.conv.weight, module.conv.bias, groups=2)[..., :11]
    torch.testing.assert_close(module(x), x + F.gelu(y).transpose(1, 2))


def test_attention_dropout_and_layers_draw_in_training_only():
    encoder, signal = make_encoder(attention_dropout=0.5), make_signal()
    assert torch.equal(encoder(signal).tokens, encoder(signal).tokens)
    encoder.train()
    assert not torch.equal(encoder(signal).tokens, encoder(signal).tokens)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"signal": make_signal(leads=3)}, r"signal: takes \[B, 12, T\], got \[3, 3, 325\]"),
        ({"signal": make_signal()[0]}, r"signal: takes \[B, 12, T\]"),
        ({"signal": make_signal(samples=15)}, "signal: takes at least 16 samples, got 15"),
        ({"signal": make_signal().int()}, "signal: takes a float dtype .* or int16"),
        ({"signal": make_signal().to("meta")}, "signal: is on meta, the encoder on cpu"),
        ({"leads": ["I", "X"]}, "leads must be of .*X"),
        ({"leads": "I"}, "leads"),
        ({"leads": ["I", "i"]}, "leads"),
        ({"leads": ["I", "II"]}, r"signal: takes \[B, 2, T\], got \[3, 12, 325\]"),
        ({"lengths": torch.tensor([325, 2])}, r"lengths: takes shape \[3\], got \[2\]"),
        ({"lengths": torch.ones(3)}, "lengths: takes torch.int64 or torch.int32"),
        ({"lengths": torch.tensor([325, 0, 9])}, r"lengths: takes 1\.\.325, got 0"),
        ({"lengths": torch.tensor([325, 326, 9])}, r"lengths: takes 1\.\.325, got 326"),
        ({"keep": torch.ones(3, 4, dtype=torch.bool)}, r"keep: takes shape \[3, 12\]"),
        ({"mask": torch.ones(3, 20)}, "mask: takes torch.bool, got torch.float32"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(EcgfastError, match=message) as error:
        make_encoder()(**{"signal": make_signal(), **arguments})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"width": 33},
        {"heads": 5},
        {"layers": -1},
        {"ffn": 4.0},
        {"dropout": 2},
        {"dropout": float("nan")},
        {"norm_first": None},
        {"norm_padding": 1},
        {"leads": ("I", "II")},
        {"leads": "I"},
        {"leads": ("Q", *STANDARD_LEADS[1:])},
        {"feature_grad_mult": -1},
    ],
)
def test_bad_config(change):
    with pytest.raises(EcgfastError) as error:
        replace(CONFIG, **change)
    assert "\n" not in str(error.value)


def test_model_folder_round_trip(tmp_path):
    encoder = make_encoder(leads=STANDARD_LEADS[::-1])
    encoder.save_pretrained(tmp_path / "a" / "b")
    again = Encoder.from_pretrained(str(tmp_path / "a" / "b"))
    assert again.config == encoder.config
    assert torch.equal(again.embed(make_signal()), encoder.embed(make_signal()))
    assert all(p.requires_grad and p.device.type == "cpu" for p in again.parameters())
    encoder.save_pretrained(tmp_path / "a" / "b")  # over an earlier one
    assert len(list((tmp_path / "a" / "b").iterdir())) == 2


def test_interrupted_save_leaves_the_earlier_model(tmp_path, monkeypatch):
    encoder = make_encoder()
    encoder.save_pretrained(tmp_path / "old")
    before = {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()}

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("ecgfast.nn.pretrained.save_file", fail)
    for folder in ("old", "new"):
        with pytest.raises(EcgfastError, match="cannot be written: disk full"):
            encoder.save_pretrained(tmp_path / folder)
    assert {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()} == before
    assert not (tmp_path / "new").exists()


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "not a model folder: no config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "not a model folder: no model.safetensors"),
        (lambda f: (f / "config.json").write_text("{"), "not readable JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "has no model_type"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "not readable JSON"),
        (
            lambda f: edit_config(f, model_type="bert"),
            "must hold an encoder, got model_type 'bert' without one",
        ),
        (lambda f: edit_config(f, model_type="ecgfast_w2v_cmsc"), "must hold an encoder"),
        (lambda f: edit_config(f, model_type="other", encoder_prefix="encoder."), "takes a JSON object"),
        (
            lambda f: edit_config(f, model_type="other", encoder_prefix=3),
            "encoder_prefix must be a text, got 3",
        ),
        (lambda f: edit_config(f, colour=1), "unknown fields colour"),
        (lambda f: edit_config(f, width=-1), "width takes an integer"),
        (lambda f: edit_config(f, layers=3), "lacks 12 tensors of the model: transformer.layers.2"),
        (lambda f: edit_config(f, layers=1), "has 12 tensors unknown to the model"),
        (lambda f: edit_config(f, ffn=50), r"fc1.weight has shape \(48, 32\), the model takes \(50, 32\)"),
        (lambda f: edit_config(f, width=1 << 20, heads=1), "has shape"),
        (lambda f: (f / "model.safetensors").write_bytes(b"junk"), "not a safetensors file"),
    ],
)
def test_foreign_model_folder(damage, message, tmp_path):
    make_encoder().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(EcgfastError, match=message) as error:
        Encoder.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_absent_model_folder(tmp_path):
    with pytest.raises(EcgfastError, match="no such model folder"):
        Encoder.from_pretrained(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(EcgfastError, match="cannot be written"):
        make_encoder().save_pretrained(tmp_path / "file")


def test_transformer_initialisation():
    linears = [m for m in make_encoder(width=64).transformer.modules() if isinstance(m, nn.Linear)]
    weights = torch.cat([m.weight.detach().flatten() for m in linears])
    assert float(weights.std()) == pytest.approx(0.02, rel=0.05)
    assert all(not m.bias.any() for m in linears)


def test_two_steps_are_one():
    torch.manual_seed(0)
    encoder = Encoder(replace(CONFIG, norm_padding=False)).eval()
    signal, lengths = torch.randn(3, 12, 320), torch.tensor([320, 200, 48])
    keep, mask = torch.rand(3, 12) > 0.3, torch.rand(3, 20) > 0.5
    whole = encoder(signal, lengths=lengths, keep=keep, mask=mask)
    made = encoder.features(signal, lengths=lengths, keep=keep)
    assert torch.equal(made.features, whole.features)
    assert torch.equal(made.stem, whole.stem)
    tokens = encoder.contextualize(made.features, mask=mask, padding=made.padding)
    assert torch.equal(tokens, whole.tokens)


def test_visible_tokens_are_all_that_is_seen():
    torch.manual_seed(0)
    encoder = Encoder(CONFIG).eval()
    features = torch.randn(2, 20, CONFIG.stem_channels)
    everything = torch.arange(20).expand(2, 20)
    torch.testing.assert_close(
        encoder.contextualize(features, visible=everything), encoder.contextualize(features)
    )
    visible = torch.stack([torch.tensor([1, 2, 7, 15]), torch.tensor([0, 3, 4, 19])])
    tokens = encoder.contextualize(features, visible=visible)
    assert tokens.shape == (2, 4, CONFIG.width)
    hidden = torch.ones(2, 20, dtype=torch.bool).scatter(1, visible, False)
    changed = features.masked_fill(hidden[..., None], 9.0)
    assert torch.equal(encoder.contextualize(changed, visible=visible), tokens)
    padding = torch.arange(20) >= torch.tensor([[20], [4]])
    padded = encoder.contextualize(features, visible=visible, padding=padding)
    assert torch.isfinite(padded).all()
    for wrong, message in (
        (visible[0], r"visible: takes shape \[2, M\], got \[4\]"),
        (visible.float(), "visible: takes torch.int64"),
    ):
        with pytest.raises(EcgfastError, match=message):
            encoder.contextualize(features, visible=wrong)
