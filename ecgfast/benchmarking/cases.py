"""What is measured: each op's sizes, inputs, variants and least work."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ecgfast import ops
from ecgfast._suggest import did_you_mean
from ecgfast.benchmarking.variants import official, tuned
from ecgfast.errors import EcgfastError

Sizes = dict[str, int]
Variant = Callable[..., Any]

VARIANTS = ("official", "tuned_eager", "tuned_compiled", "ecgfast")


@dataclass(frozen=True)
class Case:
    """One op to measure.

    Args:
        sizes: the default sizes; a size not listed here does not exist.
        quick: sizes that take milliseconds, for tests and warm-up.
        inputs: makes the arguments that every variant takes; tensors that require a gradient are leaves.
        variants: makes the variants, by name.
        products: floating-point operations of the matrix products that no variant can do without, forward
            and forward + backward.
        read_bytes: bytes of the arguments that must be read, where that is not all of them.
        direct: operations of the op computed directly, forward and forward + backward, by which a rate is
            stated; those of ``products`` if None.
        others: further sizes that ``ecgfast bench all`` measures, by suffix.
        cuda: sizes in place of the defaults on CUDA, where 128 segments are a batch.
        cuda_others: ``others`` of CUDA.
    """

    sizes: Sizes
    quick: Sizes
    inputs: Callable[[Sizes, torch.dtype, torch.Generator], tuple]
    variants: Callable[[], dict[str, Variant]]
    products: Callable[[Sizes], tuple[float, float]] = lambda sizes: (0.0, 0.0)
    direct: Callable[[Sizes], tuple[float, float]] | None = None
    read_bytes: Callable[[Sizes], int] | None = None
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    passes: tuple[str, ...] = ("forward", "forward_backward")
    others: dict[str, Sizes] = field(default_factory=dict)
    cuda: Sizes = field(default_factory=dict)
    cuda_others: dict[str, Sizes] = field(default_factory=dict)


def variants_of(op: str) -> dict[str, Variant]:
    """The variants of an op, by name; not every op has all of :data:`VARIANTS`."""
    return CASES[op].variants()


def flatten(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples and lists."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from flatten(item)


def other_sizes(op: str, device: str) -> dict[str, Sizes]:
    """The further sizes of a device, by suffix."""
    return CASES[op].cuda_others if device == "cuda" else CASES[op].others


def merge_sizes(op: str, given: Sizes | None, quick: bool, device: str = "cpu") -> Sizes:
    """The case's sizes on a device with those given in their place."""
    case = CASES[op]
    sizes = dict(case.quick if quick else case.sizes | (case.cuda if device == "cuda" else {}))
    for name, value in (given or {}).items():
        if name not in sizes:
            near = did_you_mean(name, sizes)
            raise EcgfastError(f"bench: sizes of {op} are {', '.join(sizes)}, got {name!r}{near}")
        if value < 1:
            raise EcgfastError(f"bench: size {name} must be at least 1, got {value}")
        sizes[name] = value
    return sizes


def _usual(name: str, ours: Variant, compiled: str = "") -> dict[str, Variant]:
    """All variants, which take the same arguments. The compiled one may have a function of its own."""
    return {
        "official": getattr(official, name),
        "tuned_eager": getattr(tuned, name),
        "tuned_compiled": _Compiled(getattr(tuned, compiled or name)),
        "ecgfast": ours,
    }


def _randn(g: torch.Generator, dtype: torch.dtype, *shape: int, scale: float = 1.0) -> Tensor:
    """A leaf of normal numbers."""
    return (torch.randn(shape, generator=g) * scale).to(dtype).requires_grad_()


def _patch_embed_inputs(s: Sizes, dtype: torch.dtype, g: torch.Generator) -> tuple:
    """D layers; each segment keeps K of its L leads, other ones in each (all of them where K exceeds L)."""
    signal = torch.randn(s["B"], s["L"], s["T"], generator=g).to(dtype)
    keep = torch.rand(s["B"], s["L"], generator=g).argsort(dim=1) < s["K"]
    weights = [_randn(g, dtype, s["C"], s["L"], 2, scale=0.3)]
    weights += [_randn(g, dtype, s["C"], s["C"], 2, scale=s["C"] ** -0.5) for _ in range(s["D"] - 1)]
    ones = torch.ones(s["C"], dtype=dtype).requires_grad_()
    return signal, keep, weights, ones, torch.zeros_like(ones).requires_grad_()


def _patch_embed_products(s: Sizes) -> tuple[float, float]:
    first = 2.0 * s["B"] * (s["T"] // 2) * s["C"] * 2 * min(s["K"], s["L"])
    rest = sum(2.0 * s["B"] * (s["T"] >> i) * s["C"] * 2 * s["C"] for i in range(2, s["D"] + 1))
    return first + rest, 2 * first + 3 * rest  # no gradient of the signal


def _patch_embed() -> dict[str, Variant]:
    return _usual("patch_embed", ops.patch_embed)


def _gumbel_inputs(s: Sizes, dtype: torch.dtype, g: torch.Generator) -> tuple:
    logits = _randn(g, dtype, s["R"], s["G"] * s["V"])
    return logits, _randn(g, dtype, s["G"], s["V"], s["D"] // s["G"]), 2.0


def _gumbel() -> dict[str, Variant]:
    rng = _Rng()

    def ours(logits: Tensor, codebook: Tensor, temperature: float) -> tuple[Tensor, ...]:
        return ops.gumbel_quantize(logits, codebook, temperature, rng=rng(logits))

    return _usual("gumbel_quantize", ours)


def _local_inputs(s: Sizes, dtype: torch.dtype, g: torch.Generator) -> tuple:
    codes = torch.randint(0, 320, (s["B"], s["M"], 2), generator=g)
    # Equal codes have equal targets, as the quantizer makes them.
    halves = [torch.randn(320, s["D"], generator=g) for _ in range(2)]
    targets = halves[0][codes[..., 0]] + halves[1][codes[..., 1]]
    predictions = _randn(g, dtype, s["B"], s["M"], s["D"])
    return predictions, targets.to(dtype).requires_grad_(), codes.to(torch.int32), s["K"], 0.1


def _local() -> dict[str, Variant]:
    rng = _Rng()

    def ours(p: Tensor, t: Tensor, codes: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
        ids = torch.arange(len(p), device=p.device)
        return ops.local_contrastive(
            p, t, codes=codes, n_negatives=k, temperature=temperature, rng=rng(p), sample_ids=ids
        )

    found = _usual("local_contrastive", ours)
    # It compares the target vectors.
    found["official"] = lambda p, t, codes, *rest: official.local_contrastive(p, t, *rest)
    return found


def _global_inputs(s: Sizes, dtype: torch.dtype, g: torch.Generator) -> tuple:
    groups = torch.arange(s["N"])
    a, b = (_randn(g, dtype, s["N"], s["D"]) for _ in range(2))
    return a, b, groups, groups.clone(), 0.1


def _global() -> dict[str, Variant]:
    def ours(a: Tensor, b: Tensor, group_a: Tensor, group_b: Tensor, temperature: float) -> Tensor:
        return ops.global_contrastive(a, b, group_a, group_b, temperature=temperature)

    return _usual("global_contrastive", ours, "global_contrastive_compiled")


def _nt_xent_inputs(s: Sizes, dtype: torch.dtype, g: torch.Generator) -> tuple:
    return _randn(g, dtype, s["N"], s["D"]), torch.arange(s["N"]) // 2, 0.1


def _nt_xent() -> dict[str, Variant]:
    def ours(a: Tensor, groups: Tensor, temperature: float) -> Tensor:
        return ops.global_contrastive(a, None, groups, temperature=temperature)

    return _usual("nt_xent", ours)


def _lead_pairs_inputs(s: Sizes, dtype: torch.dtype, g: torch.Generator) -> tuple:
    pairs = torch.combinations(torch.arange(s["L"]))
    return _randn(g, dtype, s["L"], s["N"], s["D"]), torch.arange(s["N"]), pairs, 0.1


def _lead_pairs() -> dict[str, Variant]:
    def ours(a: Tensor, groups: Tensor, pairs: Tensor, temperature: float) -> Tensor:
        return ops.global_contrastive(a, None, groups, pairs=pairs, temperature=temperature)

    return _usual("lead_pairs", ours)


def _lead_pairs_products(s: Sizes) -> tuple[float, float]:
    forward = s["L"] * (s["L"] - 1.0) * s["N"] ** 2 * s["D"]
    return forward, 3 * forward


def _positional_inputs(s: Sizes, dtype: torch.dtype, g: torch.Generator) -> tuple:
    shape = s["E"], s["E"] // s["G"], s["K"]
    weight = _randn(g, dtype, *shape, scale=2 * (s["K"] * s["E"]) ** -0.5)
    return _randn(g, dtype, s["B"], s["N"], s["E"]), weight, _randn(g, dtype, s["E"]), s["G"]


def _positional_direct(s: Sizes) -> tuple[float, float]:
    product = 2.0 * s["B"] * s["N"] * s["E"] * s["E"] / s["G"] * s["K"]
    return product, 3 * product


def _positional() -> dict[str, Variant]:
    return _usual("positional_conv", ops.positional_conv)


def _gather_inputs(s: Sizes, dtype: torch.dtype, g: torch.Generator) -> tuple:
    block = 12 * s["S"]
    store = torch.randint(-3000, 3000, (s["R"] * block,), generator=g).to(torch.int16)
    offset = torch.randint(0, s["R"], (s["B"],), generator=g) * block
    start = torch.randint(0, s["S"] - s["T"] + 1, (s["B"],), generator=g)
    return store, offset, start, torch.full_like(start, s["S"]), s["T"], dtype


def _gather() -> dict[str, Variant]:
    def ours(
        store: Tensor, offset: Tensor, start: Tensor, n_samples: Tensor, length: int, dtype: torch.dtype
    ) -> Tensor:
        return ops.gather_segments(store, offset, start, n_samples, length, dtype=dtype)

    found = _usual("gather_segments", ours, "gather_segments_compiled")
    found["official"] = lambda store, *rest: official.gather_segments(store.cpu(), *rest).to(store.device)
    return found


def _lead_mask_inputs(s: Sizes, dtype: torch.dtype, g: torch.Generator) -> tuple:
    return torch.arange(s["B"]), s["L"], 0.5


def _lead_mask() -> dict[str, Variant]:
    rng = _Rng()

    def ours(ids: Tensor, n_leads: int, p: float) -> Tensor:
        return ops.lead_mask(ids, n_leads, p, rng(ids))

    def plain(ids: Tensor, n_leads: int, p: float) -> Tensor:
        return tuned.lead_mask(ids.shape[0], n_leads, p, device=ids.device)

    return {
        "official": lambda ids, *rest: official.lead_mask(len(ids), *rest).to(ids.device),
        "tuned_eager": plain,
        "tuned_compiled": _Compiled(plain),
        "ecgfast": ours,
    }


def _span_mask_inputs(s: Sizes, dtype: torch.dtype, g: torch.Generator) -> tuple:
    return torch.arange(s["B"]), s["N"], 0.65, 10


def _span_mask() -> dict[str, Variant]:
    rng = _Rng()

    def ours(ids: Tensor, n_tokens: int, prob: float, length: int) -> tuple[Tensor, ...]:
        return ops.span_mask(ids, n_tokens, prob, length, rng(ids), n_masked=None)

    # The count of masked tokens depends on the draw, so there is no one graph to compile.
    return {
        "official": lambda ids, *rest: official.span_mask(len(ids), *rest).to(ids.device),
        "tuned_eager": lambda ids, *rest: tuned.span_mask(len(ids), *rest, device=ids.device),
        "ecgfast": ours,
    }


def _mask_inputs(s: Sizes, dtype: torch.dtype, g: torch.Generator) -> tuple:
    return torch.arange(s["B"]), s["L"], 0.5, s["N"], 0.65, 10


def _masks() -> dict[str, Variant]:
    rng = _Rng()

    def ours(
        ids: Tensor, n_leads: int, p: float, n_tokens: int, prob: float, length: int
    ) -> tuple[Tensor, ...]:
        state = rng(ids)
        keep = ops.lead_mask(ids, n_leads, p, state)
        return keep, *ops.span_mask(ids, n_tokens, prob, length, state, n_masked=None)

    # The count of masked tokens depends on the draw, so there is no one graph to compile.
    return {
        "official": lambda ids, *rest: _to(ids, official.masks(len(ids), *rest)),
        "tuned_eager": lambda ids, *rest: tuned.masks(len(ids), *rest, device=ids.device),
        "ecgfast": ours,
    }


def _to(like: Tensor, drawn: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(t.to(like.device) for t in drawn)


class _Compiled:
    """Compiles at the first call, so that only who runs it loads the compiler."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.compiled: Variant | None = None

    def __call__(self, *arguments: Any) -> Any:
        if self.compiled is None:
            self.compiled = torch.compile(self.variant, dynamic=False)
        return self.compiled(*arguments)


class _Rng:
    """A random state whose step advances at every call, as in training."""

    def __init__(self) -> None:
        self.state: Tensor | None = None

    def __call__(self, like: Tensor) -> Tensor:
        if self.state is None:
            self.state = ops.make_rng(0, device=like.device)
            self.one_step = ops.make_rng(0, 1, device=like.device)
        return self.state.add_(self.one_step)


CASES: dict[str, Case] = {
    "patch_embed": Case(
        sizes={"B": 32, "L": 12, "T": 2500, "C": 256, "K": 6, "D": 4},
        quick={"B": 2, "L": 12, "T": 320, "C": 32, "K": 6, "D": 4},
        inputs=_patch_embed_inputs,
        variants=_patch_embed,
        products=_patch_embed_products,
        others={"2_of_12_leads": {"K": 2}, "2_leads": {"L": 2, "K": 2}},
        cuda={"B": 128},
        cuda_others={"2_of_12_leads": {"K": 2}, "2_leads": {"L": 2, "K": 2}},
    ),
    "gumbel_quantize": Case(
        sizes={"R": 992, "G": 2, "V": 320, "D": 256},
        quick={"R": 31, "G": 2, "V": 40, "D": 16},
        inputs=_gumbel_inputs,
        variants=_gumbel,
        products=lambda s: (0.0, 2.0 * s["R"] * s["V"] * s["D"]),
        cuda={"R": 7936},
    ),
    "local_contrastive": Case(
        sizes={"B": 128, "M": 62, "D": 256, "K": 100},
        quick={"B": 2, "M": 13, "D": 32, "K": 10},
        inputs=_local_inputs,
        variants=_local,
        products=lambda s: (2.0 * s["B"] * s["M"] ** 2 * s["D"], 6.0 * s["B"] * s["M"] ** 2 * s["D"]),
        others={"b16": {"B": 16}},
    ),
    "global_contrastive": Case(
        sizes={"N": 4096, "D": 768},
        quick={"N": 48, "D": 32},
        inputs=_global_inputs,
        variants=_global,
        products=lambda s: (2.0 * s["N"] ** 2 * s["D"], 6.0 * s["N"] ** 2 * s["D"]),
        cuda={"N": 32768},
        cuda_others={"n64": {"N": 64}},
    ),
    # A batch of two views against itself: half of the similarities are those of the other half.
    "nt_xent": Case(
        sizes={"N": 4096, "D": 768},
        quick={"N": 48, "D": 32},
        inputs=_nt_xent_inputs,
        variants=_nt_xent,
        products=lambda s: (1.0 * s["N"] ** 2 * s["D"], 3.0 * s["N"] ** 2 * s["D"]),
        others={"n512": {"N": 512}},
    ),
    # Each lead alone, every pair of leads.
    "lead_pairs": Case(
        sizes={"L": 12, "N": 64, "D": 768},
        quick={"L": 4, "N": 12, "D": 32},
        inputs=_lead_pairs_inputs,
        variants=_lead_pairs,
        products=_lead_pairs_products,
    ),
    "positional_conv": Case(
        sizes={"B": 16, "N": 156, "E": 768, "K": 128, "G": 16},
        quick={"B": 2, "N": 20, "E": 64, "K": 8, "G": 2},
        inputs=_positional_inputs,
        variants=_positional,
        direct=_positional_direct,
        cuda={"B": 128},
    ),
    "gather_segments": Case(
        sizes={"B": 128, "T": 2500, "R": 512, "S": 5000},
        quick={"B": 4, "T": 40, "R": 6, "S": 100},
        inputs=_gather_inputs,
        variants=_gather,
        passes=("forward",),
        dtypes=("float32", "bfloat16", "int16"),
        read_bytes=lambda s: 2 * s["B"] * 12 * s["T"],
    ),
    "lead_mask": Case(
        sizes={"B": 128, "L": 12},
        quick={"B": 4, "L": 12},
        inputs=_lead_mask_inputs,
        variants=_lead_mask,
        dtypes=("bool",),
        passes=("forward",),
    ),
    "span_mask": Case(
        sizes={"B": 128, "N": 156},
        quick={"B": 4, "N": 40},
        inputs=_span_mask_inputs,
        variants=_span_mask,
        dtypes=("bool",),
        passes=("forward",),
    ),
    # Both, one after the other, as a step of training draws them.
    "masks": Case(
        sizes={"B": 128, "L": 12, "N": 156},
        quick={"B": 4, "L": 12, "N": 40},
        inputs=_mask_inputs,
        variants=_masks,
        dtypes=("bool",),
        passes=("forward",),
    ),
}
