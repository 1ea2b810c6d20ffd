"""Floating-point operations of the ops for ``torch.utils.flop_counter.FlopCounterMode``.

As in PyTorch, matrix products alone count, a multiplication and an addition as two. These are the products
that an op's result needs, whatever the kernels do: nothing that a backward pass computes again, no padding,
and convolutions in their direct form, where a CPU kernel goes through the frequency domain. The references
count as much in ``patch_embed``, ``global_contrastive`` and the soft ``gumbel_quantize``; otherwise in

- ``positional_conv``: for an even kernel of K taps the reference computes one output more, which it cuts.
- ``gumbel_quantize``: the hard choice copies rows of the codebook and adds gradients to them; the reference
  multiplies by one-hot rows.
- ``local_contrastive``: here all M x M cosines of a segment; the reference makes sums of gathered negatives,
  which PyTorch does not count.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

_COUNTER = "torch.utils.flop_counter"


def _stem_layers(a: SimpleNamespace) -> list[int]:
    batch, _, samples = a.signal
    return [
        2 * batch * (samples >> layer) * channels * leads * taps
        for layer, (channels, leads, taps) in enumerate(a.weights, start=1)
    ]


def _stem_backward(a: SimpleNamespace) -> int:
    first, *rest = _stem_layers(a)
    return first * (2 if a.for_signal else 1) + 2 * sum(rest)


def _convolution(a: SimpleNamespace) -> int:
    batch, tokens, width = a.x
    return 2 * batch * tokens * width * a.weight[1] * a.weight[2]


def _cosines(a: SimpleNamespace) -> int:
    batch, tokens, width = a.predictions
    return 2 * batch * tokens * tokens * width


def _similarities(a: SimpleNamespace) -> int:
    return 2 * a.a[0] * a.b[0] * a.a[1]


def _pairs(a: SimpleNamespace) -> int:
    """A batch against itself has half the similarities, but the reference has all of them."""
    _, n, width = a.a
    return 2 * a.pairs[0] * n * (n if a.b is None else a.b[1]) * width


def _mixture(a: SimpleNamespace) -> int:
    groups, entries, width = a.codebook
    return 2 * a.logits[0] * groups * entries * width


def _gumbel_backward(a: SimpleNamespace) -> int:
    if a.grad_quantized is None:
        return 0
    return _mixture(a) * (1 if a.hard else 2)


# Of an op's arguments by name, tensors as their shapes.
_FORMULAS: dict[str, Callable[[SimpleNamespace], int]] = {
    "patch_embed": lambda a: sum(_stem_layers(a)),
    "patch_embed_backward": _stem_backward,
    "positional_conv": _convolution,
    "positional_conv_backward": lambda a: _convolution(a) * (a.need_x + a.need_parameters),
    "local_contrastive": _cosines,
    "local_contrastive_backward": lambda a: 2 * _cosines(a),
    "global_contrastive": _similarities,
    "global_contrastive_backward": lambda a: 2 * _similarities(a),
    "global_contrastive_pairs": _pairs,
    "global_contrastive_pairs_backward": lambda a: 2 * _pairs(a),
    "gumbel_quantize": lambda a: 0 if a.hard else _mixture(a),
    "gumbel_quantize_backward": _gumbel_backward,
}


def _register(counter: ModuleType) -> None:
    def add(op: str, formula: Callable[[SimpleNamespace], int]) -> None:
        packet = getattr(torch.ops.ecgfast, op)
        names = [argument.name for argument in packet.default._schema.arguments]

        def count(*shapes: Any, out_shape: Any = None, **named: Any) -> int:
            return formula(SimpleNamespace(**dict(zip(names, shapes, strict=False)), **named))

        counter.register_flop_formula(packet)(count)

    for op, formula in _FORMULAS.items():
        add(op, formula)


class _Loader(Loader):
    """The counter's own loader, which registers the formulas too."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_loader"], name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register(module)


class _Finder(MetaPathFinder):
    """Registers the formulas when the counter is imported, which takes a second where Triton is there.

    It stays: the counter may be looked for without being imported, and loses the formulas when it is loaded
    again.
    """

    def __init__(self) -> None:
        self._asks = threading.local()

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _COUNTER or getattr(self._asks, "others", False):
            return None
        self._asks.others = True
        try:
            spec = self._spec(name, path, target)
        finally:
            self._asks.others = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec

    @staticmethod
    def _spec(name: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return spec
        return None


def register_flops() -> None:
    """Make the formulas known to PyTorch's counter, now or when it is imported."""
    if _COUNTER in sys.modules:
        _register(sys.modules[_COUNTER])
    sys.meta_path.insert(0, _Finder())
