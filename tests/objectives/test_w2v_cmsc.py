"""The pre-training objective: against the official numbers, our own, and its own promises."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from ecgfast import ops
from ecgfast.errors import EcgfastError
from ecgfast.nn import Encoder, EncoderConfig
from ecgfast.nn.config import config_from_dict
from ecgfast.objectives import W2VCMSC, Views, W2VCMSCConfig
from ecgfast.objectives.parts import temperature_at
from tests.fixtures.golden import GOLDEN, load_golden
from tests.fixtures.make_golden import PATH, run
from tests.objectives.draws import Draws, given

LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
VALUE_TOLERANCE = 1e-5

ENCODER = EncoderConfig(stem_channels=16, width=32, layers=2, heads=2, ffn=48, conv_pos=8, conv_pos_groups=2)
CONFIG = W2VCMSCConfig(
    encoder=ENCODER,
    final_dim=16,
    entries=8,
    latent_dim=16,
    n_negatives=5,
    mask_length=3,
    n_masked=8,
)


def distance(ours: Tensor, official: Tensor) -> float:
    """Norm of the difference, relative to the official value's."""
    ours, official = ours.detach(), official.detach().double()
    return float((ours.double() - official).norm() / official.norm().clamp(min=1e-12))


def check_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        if name == "encoder.stem.convs.0.bias":
            # The normalisation that follows takes it away: both gradients are rounding errors.
            scale = theirs[name.replace("bias", "weight")].norm()
            assert max(ours[name].norm(), gradient.norm()) < 1e-5 * scale
        else:
            assert distance(ours[name], gradient) < GRADIENT_TOLERANCE, name


@pytest.fixture(params=[False, True], ids=["ops", "reference"])
def use_reference(request):
    with ops.use_reference(request.param):
        yield


@pytest.mark.parametrize("name", GOLDEN)
def test_official_numbers(name, shared, use_reference):
    golden = load_golden(shared(f"golden/{name}.safetensors"))
    output = golden.step()
    output.total.backward()
    details, out = output.details, golden.out
    batch, n_masked = details.mask_index.shape

    for ours, official in (
        (details.encoder.stem.transpose(1, 2), "conv_features"),
        (details.encoder.features, "features"),
        (details.encoder.tokens, "encoder"),
        (details.quantizer.logits.view(out["quantizer_logits"].shape), "quantizer_logits"),
        (details.quantizer.quantized, "quantized"),
        (details.targets, "targets"),
        (details.predictions, "predictions"),
    ):
        assert distance(ours, out[official]) < VALUE_TOLERANCE, official
    assert torch.equal(details.quantizer.codes.view(-1, 2).long(), out["codes"])
    logits = out["logits"].permute(1, 2, 0).flatten(0, 1)
    each = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long), reduction="none")
    assert distance(details.each.flatten(), each) < LOSS_TOLERANCE

    for ours, official in (
        (output.terms["local"], "loss_local"),
        (output.terms["diversity"], "loss_diversity"),
        (output.terms["feature_penalty"], "loss_features_pen"),
        (output.terms["global"], "loss_global"),
        (output.total, "loss_total"),
        (output.counts["code_perplexity"], "code_perplexity"),
        (output.counts["prob_perplexity"], "prob_perplexity"),
        (output.counts["temperature"], "temperature"),
    ):
        assert distance(ours, out[official]) < LOSS_TOLERANCE, official
    assert output.counts["n_correct"] == out["n_correct"]
    assert output.size == out["sample_size"] == batch * n_masked
    check_gradients({n: p.grad for n, p in golden.model.named_parameters()}, golden.grad)


@pytest.mark.parametrize("name", GOLDEN)
def test_official_position_and_logits(name, shared, use_reference):
    golden = load_golden(shared(f"golden/{name}.safetensors"))
    model, found = golden.model, {}
    model.encoder.positional.register_forward_hook(
        lambda _, args, output: found.update(position=output - args[0])
    )
    details = golden.step().details
    assert distance(found["position"], golden.out["conv_pos"]) < VALUE_TOLERANCE

    index = golden.draws.negative_index
    rows = torch.arange(len(index))[:, None, None]
    targets = torch.cat([details.targets[:, :, None], details.targets[rows, index]], 2)
    logits = F.cosine_similarity(details.predictions[:, :, None], targets, dim=-1)
    logits = (logits / model.config.local_temperature).permute(2, 0, 1)
    kept = golden.out["logits"].isfinite()
    assert distance(logits[kept], golden.out["logits"][kept]) < VALUE_TOLERANCE


@pytest.mark.parametrize("name", GOLDEN)
def test_official_evaluation(name, shared, use_reference):
    golden = load_golden(shared(f"golden/{name}.safetensors"))
    source, lengths = golden.input["source"], golden.input.get("lengths")
    with torch.no_grad():
        output = golden.model.eval().encoder(source, lengths=lengths)
    assert distance(output.tokens, golden.out["eval_encoder"]) < VALUE_TOLERANCE
    if lengths is not None:
        assert torch.equal(output.padding, golden.out["eval_padding_mask"])


def test_own_numbers(use_reference):
    with safe_open(PATH, "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 no dict
        config = json.loads(file.metadata()["config"])

    def part(name: str) -> dict[str, Tensor]:
        return {k.removeprefix(name): v for k, v in stored.items() if k.startswith(name)}

    model = W2VCMSC(config_from_dict(W2VCMSCConfig, config, str(PATH)))
    model.load_state_dict(part("param."))
    results = run(model, part("input."))
    for name, value in part("out.").items():
        ours = results[f"out.{name}"]
        if value.is_floating_point():
            assert distance(ours, value) < LOSS_TOLERANCE, name
        else:
            assert torch.equal(ours, value), name
    check_gradients(
        {k.removeprefix("grad."): v for k, v in results.items() if k.startswith("grad.")},
        part("grad."),
    )


def make_batch(pairs: int = 2, samples: int = 320, seed: int = 0) -> Views:
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(2 * pairs, 12, samples, generator=generator)
    ids = torch.arange(2 * pairs)
    return Views(signal, ids % pairs, ids)


def make_model(**changes) -> W2VCMSC:
    torch.manual_seed(0)
    return W2VCMSC(replace(CONFIG, **changes))


def no_dropout(layers: int = 2, **changes) -> W2VCMSC:
    encoder = replace(ENCODER, layers=layers, dropout=0.0, attention_dropout=0.0, dropout_input=0.0)
    return make_model(encoder=encoder, dropout_features=0.0, **changes)


def test_draws_follow_seed_and_step():
    model, batch = no_dropout(), make_batch()
    first = model(batch, ops.make_rng(1, 5)).total
    assert first.isfinite()
    assert torch.equal(first, model(batch, ops.make_rng(1, 5)).total)
    assert not torch.equal(first, model(batch, ops.make_rng(1, 6)).total)
    assert not torch.equal(first, model(batch, ops.make_rng(2, 5)).total)


def test_losses_sum_up_and_reach_every_parameter():
    model = make_model()
    output = model(make_batch(), ops.make_rng(0))
    torch.testing.assert_close(output.total, sum(output.terms.values()))
    assert output.size == 4 * 8
    output.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_masked_count_of_the_batch_by_default():
    model = no_dropout(n_masked=None)
    output = model(make_batch(), ops.make_rng(3), details=True)
    assert output.size == output.details.mask_index.numel()
    assert output.total.isfinite()


def test_padded_segments_ignore_what_padding_holds():
    model = no_dropout()
    batch = make_batch()._replace(lengths=torch.tensor([320, 250, 320, 208]))
    first = model(batch, ops.make_rng(0)).total
    signal = batch.signal.clone()
    signal[1, :, 250:] = 1e3
    assert torch.equal(first, model(batch._replace(signal=signal), ops.make_rng(0)).total)


@pytest.mark.parametrize("samples", [200, 320, 1600])
@pytest.mark.parametrize("offset", [0.0, 5.0, 100.0])
@pytest.mark.parametrize("held", [0.0, -30.0])
def test_no_loss_term_depends_on_padding_or_an_offset(samples, offset, held, use_reference):
    """The norm takes an offset away from a segment's tokens; padding stands off from it by that much."""
    model = no_dropout(lead_mask_prob=0.0).double().eval()
    lengths = torch.tensor([200, 150, 177, 200])
    draws = Draws(mask_index=torch.arange(1, 9).expand(4, 8), negative_index=torch.arange(5).expand(4, 8, 5))

    def terms(signal: Tensor) -> Tensor:
        batch = make_batch(samples=samples)._replace(signal=signal, lengths=lengths)
        with given(model, draws):
            return torch.stack(list(model(batch, ops.make_rng(0)).terms.values())).detach()

    signal = make_batch(samples=200)[0].double()
    want = terms(signal)
    past = torch.arange(samples) >= lengths[:, None, None]
    padded = F.pad(signal + offset, (0, samples - 200)).masked_fill(past, held)
    torch.testing.assert_close(terms(padded), want, rtol=1e-6, atol=1e-9)
    if not offset and samples == 200:
        valid = [model.encoder(signal[i : i + 1, :, :n]).stem.flatten() for i, n in enumerate(lengths)]
        n_masked = 4 * 8
        by_hand = CONFIG.feature_penalty_weight * torch.cat(valid).square().mean() * n_masked
        # The model's stem sees all leads, as no one is masked.
        torch.testing.assert_close(want[2], by_hand, rtol=1e-6, atol=0)


def test_padding_counts_in_the_official_penalty():
    model = no_dropout(lead_mask_prob=0.0)
    model.config.encoder.norm_padding = True
    batch = make_batch()._replace(lengths=torch.tensor([320, 200, 160, 320]))
    output = model(batch, ops.make_rng(0), details=True)
    stem = output.details.encoder.stem
    want = CONFIG.feature_penalty_weight * stem.square().mean() * output.size
    torch.testing.assert_close(output.terms["feature_penalty"], want)


def test_segments_of_padding_alone_have_no_penalty():
    model = no_dropout()
    output = model(make_batch()._replace(lengths=torch.full((4,), 15)), ops.make_rng(0))
    assert output.terms["feature_penalty"] == 0
    output.total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_segment_replaces_the_order_by_halves():
    model, batch = no_dropout(), make_batch(3)
    order = torch.tensor([0, 3, 1, 4, 2, 5])
    expected = model(batch, ops.make_rng(0))
    mixed = Views(*(x[order] for x in batch[:3]), segment=torch.tensor([0, 1] * 3))
    got = model(mixed, ops.make_rng(0))
    torch.testing.assert_close(got.terms["global"], expected.terms["global"])
    torch.testing.assert_close(got.total, expected.total)


def test_evaluation_takes_the_largest_logit():
    model = make_model().eval()
    output = model(make_batch(), ops.make_rng(0), details=True)
    codes = output.details.quantizer.logits.unflatten(-1, (2, -1)).argmax(-1)
    assert torch.equal(output.details.quantizer.codes.long(), codes)


def test_temperature_falls_to_its_end():
    def at(step: int) -> float:
        return float(temperature_at((2.0, 0.5, 0.999995), ops.make_rng(0, step)))

    assert at(0) == 2.0
    assert at(100_000) == pytest.approx(2 * 0.999995**100_000, rel=1e-6)
    assert at(10**9) == 0.5


def test_frozen_stem_has_no_gradient():
    model = make_model(encoder=replace(ENCODER, feature_grad_mult=0.0))
    model(make_batch(), ops.make_rng(0)).total.backward()
    assert all(p.grad is None for p in model.encoder.stem.parameters())
    assert model.encoder.feature_norm.weight.grad is not None


def test_layer_drop_skips_whole_layers():
    model = make_model(encoder=replace(ENCODER, layer_drop=1.0))
    model(make_batch(), ops.make_rng(0)).total.backward()
    assert not model.encoder.transformer.layers[0].fc1.weight.grad.any()


def test_lead_subset_and_integer_signal():
    model = no_dropout(lead_mask_prob=0.0)
    batch = make_batch()
    signal = batch.signal
    micro = (signal[:, :2] * 1000).to(torch.int16)
    full = torch.zeros_like(signal)
    full[:, 1], full[:, 6] = micro[:, 0] / 1000, micro[:, 1] / 1000
    expected = model(batch._replace(signal=full), ops.make_rng(0)).total
    got = model(batch._replace(signal=micro, leads=["II", "v1"]), ops.make_rng(0)).total
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)


def test_autocast():
    model, batch = no_dropout(), make_batch()
    expected = model(batch, ops.make_rng(0))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch, ops.make_rng(0))
    output.total.backward()
    assert output.total.dtype == torch.float32
    assert distance(output.total, expected.total) < 0.05
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_compiles_as_one_graph():
    model, batch = no_dropout(layers=1), make_batch()
    expected = model(batch, ops.make_rng(0, 7))
    expected.total.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    step = torch.compile(model, fullgraph=True, dynamic=True)
    output = step(batch, ops.make_rng(0, 7))
    output.total.backward()
    torch.testing.assert_close(output.total, expected.total, rtol=1e-5, atol=0)
    assert torch.equal(output.counts["n_correct"], expected.counts["n_correct"])
    for name, p in model.named_parameters():
        assert distance(p.grad, gradients[name]) < GRADIENT_TOLERANCE, name


def test_compiles_with_as_many_masks_as_are_drawn():
    model = no_dropout(layers=1, n_masked=None)
    step = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    sizes = set()
    for i in (3, 4):
        expected = model(make_batch(), ops.make_rng(0, i))
        output = step(make_batch(), ops.make_rng(0, i))
        torch.testing.assert_close(output.total, expected.total, rtol=1e-5, atol=0)
        assert output.size == expected.size
        sizes.add(int(output.size))
    assert len(sizes) == 2


def test_model_folder_round_trip(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    again = W2VCMSC.from_pretrained(tmp_path / "model")
    assert again.config == model.config
    assert not again.training
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    encoder = Encoder.from_pretrained(tmp_path / "model")
    signal = make_batch().signal
    assert torch.equal(encoder.embed(signal), model.eval().encoder.embed(signal))
    encoder.save_pretrained(tmp_path / "encoder")
    with pytest.raises(EcgfastError, match="model_type must be ecgfast_w2v_cmsc, got 'ecgfast_encoder'"):
        W2VCMSC.from_pretrained(tmp_path / "encoder")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, g, i: (s[:3], g[:3], i[:3]), "signal: takes pairs"),
        (lambda s, g, i: (s[0], g, i), r"signal: takes \[2P, L, T\]"),
        (lambda s, g, i: (s[..., :15], g, i), r"with T >= 16"),
        (lambda s, g, i: (s[:, :7], g, i), r"signal: takes \[B, 12, T\], got \[4, 7, 320\]"),
        (lambda s, g, i: (s, g.float(), i), r"patients must be \[4\] of integers, got \[4\] torch.float32"),
        (lambda s, g, i: (s, g, i[:2]), r"sample_ids must be \[4\] of integers, got \[2\] torch.int64"),
        (lambda s, g, i: (s[..., :100], g, i), "n_masked is 8"),
    ],
)
def test_bad_batch(change, message):
    with pytest.raises(EcgfastError, match=message) as error:
        make_model()(Views(*change(*make_batch()[:3])), ops.make_rng(0))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rng": None}, "rng: takes a tensor .*, got NoneType"),
        ({"rng": torch.zeros(1, dtype=torch.int64)}, r"rng: takes \[2\] torch.int64, got \[1\]"),
        ({"rng": torch.zeros(2)}, r"rng: takes \[2\] torch.int64, got \[2\] torch.float32"),
        ({"rng": ops.make_rng(0, device="meta")}, "rng: is on meta, the signal on cpu"),
        ({"segment": torch.tensor([0, 1])}, r"segment: takes \[4\], got \[2\]"),
        ({"segment": torch.tensor([0, 1, 0, 0])}, "takes 2 zeros and as many ones, got 3 and 1"),
        ({"segment": torch.tensor([0, 0, 2, 2])}, "takes 2 zeros and as many ones, got 2 and 0"),
        ({"segment": torch.zeros(4, device="meta")}, "segment: is on meta"),
    ],
)
def test_bad_step(keywords, message):
    rng = keywords.get("rng", ops.make_rng(0))
    with pytest.raises(EcgfastError, match=message) as error:
        make_model()(make_batch()._replace(segment=keywords.get("segment")), rng)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"latent_dim": 15},
        {"gumbel_temperature": (0.5, 2.0, 0.9)},
        {"gumbel_temperature": 2.0},
        {"mask_prob": 1.5},
        {"n_masked": 0},
        {"entries": "320"},
        {"keep_one_lead": 1},
        {"encoder": {"no_such_field": 1}},
        {"encoder": 3},
    ],
)
def test_bad_config(change):
    with pytest.raises(EcgfastError) as error:
        W2VCMSCConfig(**change)
    assert "\n" not in str(error.value)


def strict_by_hand(details, config: W2VCMSCConfig, draws: Draws) -> Tensor:
    """Strictly nearer than every negative of other codes, of which there is one."""
    codes = details.quantizer.codes
    p, t = (F.normalize(x.double(), dim=-1) for x in (details.predictions, details.targets))
    similar = p @ t.transpose(1, 2)
    drawn = torch.zeros(similar.shape, dtype=torch.bool).scatter(2, draws.negative_index, True)
    counted = drawn & (codes[:, :, None] != codes[:, None]).any(-1)
    own = similar.diagonal(dim1=1, dim2=2)[..., None]
    return counted.any(-1) & ((own > similar + 1e-9) | ~counted).all(-1)


@pytest.mark.parametrize("case", ["normal", "one code", "all entries equal", "half the entries equal"])
def test_strict_count_of_collapsed_targets(case):
    """The official count takes ties and tokens without negatives as found; the strict one does not."""
    torch.manual_seed(0)
    model = W2VCMSC(CONFIG)
    m = CONFIG.n_masked
    # Every other token is a negative, so that a tie in the segment is a tie with a negative.
    index = torch.arange(m - 1).expand(6, m, -1) + (torch.arange(m - 1) >= torch.arange(m)[:, None])
    draws = Draws(negative_index=index.contiguous())
    with torch.no_grad():
        if case == "one code":
            model.quantizer.projection.weight.zero_()
            model.quantizer.projection.bias[::8] = 1e4
        elif case == "all entries equal":
            model.quantizer.codebook.copy_(
                model.quantizer.codebook[:, :1].expand_as(model.quantizer.codebook)
            )
        elif case == "half the entries equal":
            model.quantizer.codebook[:, :4] = model.quantizer.codebook[:, :1]
    found = {"official": 0, "strict": 0}
    for step in range(20):
        batch = Views(torch.randn(6, 12, 640), torch.arange(6), torch.arange(6))
        with given(model, draws):
            output = model(batch, ops.make_rng(0, step), details=True)
        want = int(strict_by_hand(output.details, CONFIG, draws).sum())
        assert int(output.counts["n_strict"]) == want
        found["official"] += int(output.counts["n_correct"])
        found["strict"] += want
    if case in ("one code", "all entries equal"):
        assert found["strict"] == 0
    else:
        assert 0 < found["strict"] <= found["official"]
    if case == "one code":
        assert found["official"] == 20 * 6 * m
    if case == "half the entries equal":
        assert found["strict"] < found["official"]


@pytest.mark.parametrize("indexed", [True, False])
def test_strict_count_of_predictions_so_good_that_the_loss_underflows(indexed):
    """A loss of 0 says that a token has no negative, or that no negative comes near: codes tell which."""
    model = no_dropout(local_temperature=0.05, final_dim=8)
    codes = torch.arange(8).repeat(4, 1)
    codes[0], codes[1, 1:6] = 0, 0  # one code in all of the first segment, three in the second
    vectors = F.one_hot(codes, 8).float()
    model.quantizer.register_forward_hook(
        lambda _, args, output: output._replace(codes=codes[..., None].expand(-1, -1, 2))
    )
    model.project_q.register_forward_hook(lambda *_: vectors)
    model.final_proj.register_forward_hook(lambda *_: vectors)
    following = (torch.arange(8)[:, None] + torch.arange(1, 6)) % 8
    draws = Draws(negative_index=following.expand(4, 8, 5) if indexed else None)
    with given(model, draws):
        output = model(make_batch(), ops.make_rng(0))
    assert output.terms["local"] == 0
    assert output.counts["n_correct"] == 32
    # All five negatives given to the second segment's first token have its code.
    assert output.counts["n_strict"] == (23 if indexed else 24)
