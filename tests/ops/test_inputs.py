"""What every argument of every op accepts, and the one line that refuses anything else."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from ecgfast import ops

INTS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
GROUPS = torch.tensor([0, 1, 2, 2])


def base(op):
    """Arguments of an op that it accepts."""
    torch.manual_seed(0)
    ids, rng = torch.arange(2), ops.make_rng(1, 2)
    return {
        "lead_mask": {"sample_ids": ids, "n_leads": 12, "p": 0.5, "rng": rng, "keep_one": True},
        "span_mask": {
            "sample_ids": ids,
            "n_tokens": 31,
            "prob": 0.65,
            "length": 4,
            "rng": rng,
            "lengths": torch.tensor([31, 20]),
            "n_masked": 9,
        },
        "local_contrastive": {
            "predictions": torch.randn(2, 5, 4),
            "targets": torch.randn(2, 5, 4),
            "codes": torch.arange(20).view(2, 5, 2) % 7,
            "n_negatives": 6,
            "temperature": 0.2,
            "rng": rng,
            "sample_ids": ids,
        },
        "global_contrastive": {
            "a": torch.randn(4, 3),
            "b": torch.randn(4, 3),
            "group_a": GROUPS,
            "group_b": GROUPS,
            "temperature": 0.2,
            "detach_norm": True,
        },
        "gumbel_quantize": {
            "logits": torch.randn(4, 6),
            "codebook": torch.randn(2, 3, 4),
            "temperature": 1.5,
            "rng": rng,
            "sample_ids": ids,
            "hard": True,
        },
        "positional_conv": {
            "x": torch.randn(2, 5, 8),
            "weight": torch.randn(8, 4, 3),
            "bias": torch.randn(8),
            "groups": 2,
        },
        "patch_embed": {
            "signal": torch.randn(2, 3, 32),
            "keep": torch.ones(2, 3, dtype=torch.bool),
            "weights": [torch.randn(4, 3, 2), torch.randn(4, 4, 2)],
            "gn_weight": torch.ones(4),
            "gn_bias": torch.zeros(4),
            "biases": [torch.zeros(4), torch.zeros(4)],
            "eps": 1e-5,
            "lengths": torch.tensor([32, 21]),
        },
        "gather_segments": {
            "store": torch.arange(12 * 60).short(),
            "offset": torch.zeros(2).long(),
            "start": torch.tensor([1, 2]),
            "n_samples": torch.tensor([30, 60]),
            "length": 20,
            "lead_index": torch.tensor([0, 7, -1]),
            "dtype": torch.float32,
        },
    }[op]


OPS = [
    "lead_mask",
    "span_mask",
    "local_contrastive",
    "global_contrastive",
    "gumbel_quantize",
    "positional_conv",
    "patch_embed",
    "gather_segments",
]
INTEGERS = {
    "lead_mask": ["n_leads"],
    "span_mask": ["n_tokens", "length", "n_masked"],
    "local_contrastive": ["n_negatives"],
    "positional_conv": ["groups"],
    "gather_segments": ["length"],
}
# Numbers, with values that are out of range.
NUMBERS = {
    "lead_mask": {"p": (-0.1, 1.1)},
    "span_mask": {"prob": (-0.1, 1.1)},
    "local_contrastive": {"temperature": (0, -0.1)},
    "global_contrastive": {"temperature": (0, -0.1)},
    "gumbel_quantize": {"temperature": (0, -0.1)},
    "patch_embed": {"eps": (-1e-5,)},
}
FLAGS = {"lead_mask": ["keep_one"], "global_contrastive": ["detach_norm"], "gumbel_quantize": ["hard"]}
INDICES = {
    "lead_mask": ["sample_ids"],
    "span_mask": ["sample_ids", "lengths"],
    "patch_embed": ["lengths"],
    "local_contrastive": ["sample_ids", "codes"],
    "global_contrastive": ["group_a", "group_b"],
    "gumbel_quantize": ["sample_ids"],
    "gather_segments": ["offset", "start", "n_samples", "lead_index"],
}


def pairs(table):
    return [(op, name) for op in table for name in table[op]]


def tensors(op):
    return [name for name, value in base(op).items() if isinstance(value, torch.Tensor)]


def forms(op):
    return getattr(ops, op), getattr(ops, f"{op}_reference")


def run(function, arguments):
    result = function(**arguments)
    return result if isinstance(result, tuple) else (result,)


def refuses(op, name, value, kind, says):
    """Both forms raise one line of this kind that names the argument and says what it must be."""
    for function in forms(op):
        with pytest.raises(kind, match=rf"^{op}: (?=.*\b{name}\b).*{says}") as caught:
            function(**base(op) | {name: value})
        assert "\n" not in str(caught.value)
        assert type(caught.value) is kind


def same(op, name, value):
    """Both forms give with this value what they give with the one it equals."""
    for function in forms(op):
        assert all(map(torch.equal, run(function, base(op) | {name: value}), run(function, base(op))))


@pytest.mark.parametrize(("op", "name"), [(op, name) for op in OPS for name in tensors(op)])
def test_tensors(op, name):
    array = base(op)[name].numpy()
    for value, got in ((array, "ndarray"), (array.tolist(), "list"), ("text", "'text'"), (2.5, "2.5")):
        refuses(op, name, value, TypeError, f"must be a tensor.*, got {got}")
    refuses(op, name, base(op)[name].to(torch.complex64), TypeError, "must be .*, got .* complex64")
    refuses(op, name, base(op)[name][None], ValueError, r"must have shape \[.*\], got \[1, ")


@pytest.mark.parametrize(("op", "name"), pairs(INTEGERS))
def test_integers(op, name):
    same(op, name, np.int64(base(op)[name]))
    same(op, name, np.uint8(base(op)[name]))
    for value in (2.0, "3", True, np.float32(2), np.bool_(True), torch.tensor(3), [3]):
        refuses(op, name, value, TypeError, "must be an integer, got ")
    refuses(op, name, -1, ValueError, "must .*, got -1")
    for value in (2**63, 2**70, -(2**70), np.uint64(2**63)):
        refuses(op, name, value, ValueError, "must be an integer of 64 bits, got ")
    if name != "n_masked":
        refuses(op, name, None, TypeError, "must be an integer, got None")


@pytest.mark.parametrize(("op", "name"), pairs(NUMBERS))
def test_numbers(op, name):
    same(op, name, np.float64(base(op)[name]))
    function, value = forms(op)[0], base(op)[name]
    got = run(function, base(op) | {name: np.float32(value)})
    assert all(map(torch.equal, got, run(function, base(op) | {name: float(np.float32(value))})))
    for value in ("0.5", None, True, 1j, [0.5], *([] if name == "temperature" else [torch.tensor(0.5)])):
        refuses(op, name, value, TypeError, "must be a number, got ")
    for value in (
        *NUMBERS[op][name],
        10**400,
        Fraction(10**400),
        float("nan"),
        float("inf"),
        -float("inf"),
        np.float32("nan"),
    ):
        refuses(op, name, value, ValueError, "must .*, got ")


@pytest.mark.parametrize("op", ["local_contrastive", "global_contrastive", "gumbel_quantize"])
def test_temperatures_in_tensors(op):
    for value in (0.0, -0.5, float("nan"), float("inf")):
        refuses(op, "temperature", torch.tensor(value), ValueError, "must be positive, got ")
    refuses(op, "temperature", torch.ones(1), ValueError, r"must have shape \[\], got \[1\]")
    refuses(op, "temperature", torch.tensor(1), TypeError, "must be float32, .*, got .* int64")
    for function in forms(op):
        got = function(**base(op) | {"temperature": torch.tensor(0.5)})
        want = function(**base(op) | {"temperature": 0.5})
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("op", "name"), pairs(FLAGS))
def test_flags(op, name):
    same(op, name, np.bool_(True))
    for value in (1, 0.0, "yes", None, torch.tensor(True)):
        refuses(op, name, value, TypeError, "must be True or False, got ")


@pytest.mark.parametrize(("op", "name"), pairs(INDICES))
def test_integer_tensors_of_any_width(op, name):
    value = base(op)[name]
    for dtype in INTS:
        if dtype != torch.uint8 or int(value.min()) >= 0:
            same(op, name, value.to(dtype))
    for dtype in (torch.bool, torch.float32):
        refuses(op, name, value.to(dtype), TypeError, "must be int64, int32, .*, got ")


@pytest.mark.parametrize("op", ["lead_mask", "span_mask", "local_contrastive", "gumbel_quantize"])
def test_the_random_state(op):
    refuses(op, "rng", 7, TypeError, r"must be a tensor \(ecgfast.ops.make_rng makes it\), got 7")
    refuses(op, "rng", torch.Generator(), TypeError, "must be a tensor .*, got Generator")
    refuses(op, "rng", torch.tensor([1, 2], dtype=torch.int32), TypeError, "must be int64, got ")
    refuses(op, "rng", torch.tensor([1, 2, 3]), ValueError, r"must have shape \[2\], got \[3\]")


def test_masks_take_the_random_state_by_name_and_by_place():
    ids, rng = torch.arange(3), ops.make_rng(5)
    for f in forms("lead_mask"):
        want = f(ids, 12, 0.5, rng)
        assert torch.equal(f(ids, 12, 0.5, rng=rng), want)
        assert torch.equal(f(n_leads=12, p=0.5, rng=rng, sample_ids=ids), want)
    for f in forms("span_mask"):
        want = f(ids, 31, 0.65, 4, rng, n_masked=9)
        for got in (
            f(ids, 31, 0.65, 4, rng=rng, n_masked=9),
            f(n_tokens=31, prob=0.65, length=4, n_masked=9, rng=rng, sample_ids=ids),
        ):
            assert all(map(torch.equal, got, want))


@pytest.mark.parametrize("bad", [0.5, "1", None, True, torch.tensor(3), np.float64(1)])
def test_seeds_and_steps_are_integers(bad):
    for name, call in (("seed", lambda: ops.make_rng(bad)), ("step", lambda: ops.make_rng(0, bad))):
        with pytest.raises(TypeError, match=f"make_rng: {name} must be an integer, got "):
            call()


def test_numpy_seeds():
    assert ops.make_rng(np.int64(-1), np.uint32(7)).tolist() == [-1, 7]
    assert ops.make_rng(np.uint64(2**64 - 1)).tolist() == [-1, 0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"offset": [0, -1]}, "segment 1: a recording of 12 x 60 values at offset -1 must lie"),
        ({"start": [11, 0]}, "segment 0: start must lie in 0..n_samples - length = 30 - 20, got 11"),
        ({"n_samples": [10, 60]}, "segment 0: start must lie in 0..n_samples - length = 10 - 20"),
        ({"n_samples": [30, 2**62]}, "segment 1: a recording of 12 x 4611686018427387904 values"),
        ({"lead_index": [0, 12]}, "lead_index must hold -1..11, got 12"),
        ({"lead_index": [-2]}, "lead_index must hold -1..11, got -2"),
    ],
)
def test_segments_out_of_bounds(change, says):
    for function in forms("gather_segments"):
        with pytest.raises(RuntimeError, match="gather_segments: ") as caught:
            function(**base("gather_segments") | {k: torch.tensor(v) for k, v in change.items()})
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, "float32", None, float, np.float32])
def test_dtypes_of_segments(dtype):
    kind = ValueError if isinstance(dtype, torch.dtype) else TypeError
    refuses("gather_segments", "dtype", dtype, kind, "must be int16, float32, .*, got ")


def test_lists_of_weights():
    layer = torch.randn(4, 3, 2)
    for value, got in ((layer, r"\[4, 3, 2\] float32"), (3, "3"), (None, "None")):
        refuses("patch_embed", "weights", value, TypeError, f"must be a (list|sequence).*, got {got}")
    refuses("patch_embed", "weights", [], ValueError, "must hold at least one layer")
    refuses("patch_embed", "weights", [layer.numpy()], TypeError, "must be a tensor, got ndarray")
    refuses("patch_embed", "biases", [torch.zeros(4)], ValueError, "must be .*2.*, got 1")
    refuses("patch_embed", "biases", torch.zeros(2, 4), TypeError, "must be a (list|sequence).*, got ")


@pytest.mark.parametrize("name", ["weights", "biases"])
def test_parameters_of_layers_in_any_iterable(name):
    layers = base("patch_embed")["weights"]
    given = layers if name == "weights" else [torch.randn(len(layers[0])) for _ in layers]
    for function in forms("patch_embed"):
        want = function(**base("patch_embed") | {name: given})
        for value in (torch.nn.ParameterList(given), tuple(given), iter(given), (w for w in given)):
            assert torch.equal(function(**base("patch_embed") | {name: value}), want)
    parameters = torch.nn.ParameterList(given)
    compiled = torch.compile(
        lambda: ops.patch_embed(**base("patch_embed") | {name: parameters}), backend="eager"
    )
    torch.testing.assert_close(compiled(), want)


def test_negative_index():
    index = torch.arange(30).view(2, 5, 3) % 5
    for dtype in INTS:
        same("local_contrastive", "codes", base("local_contrastive")["codes"].to(dtype))
        got = ops.local_contrastive(
            **base("local_contrastive") | {"rng": None, "negative_index": index.to(dtype)}
        )
        want = ops.local_contrastive(**base("local_contrastive") | {"rng": None, "negative_index": index})
        assert all(map(torch.equal, got, want))
    for bad in (-1, 5):
        index[1, 2, 0] = bad
        refuses("local_contrastive", "negative_index", index, ValueError, rf"must hold .*0..4.*, got {bad}")
    for value in ("none", None, 3):
        for function in forms("local_contrastive"):
            with pytest.raises(ValueError, match="negatives must be 'sampled' or 'all', got "):
                function(**base("local_contrastive") | {"negatives": value})
