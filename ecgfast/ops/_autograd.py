"""Gradients of the ops: for the compiler through the registered op, and by a shorter way for eager calls.

``torch.vmap`` runs an op once per example. Transforms that differentiate, such as ``torch.func.grad``, never
get here: ``_dispatch.fused`` sends them to the reference.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_BATCHED = torch._C._dispatch_key_parse("Batched")  # a tensor under autograd's own vmap


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether the backward pass may run, so that the forward pass has to keep what it needs."""
    if not torch.is_grad_enabled():
        return False
    if any(t is not None and t.requires_grad for t in tensors):
        return True
    # A tensor that vmap hands on does not say whether the batch that it is of requires a gradient.
    return torch._C._are_functorch_transforms_active()


def _stacked(calls: list[Any]) -> Any:
    if isinstance(calls[0], Tensor):
        return torch.stack(calls)
    return type(calls[0])(torch.stack(outputs) for outputs in zip(*calls, strict=True))


def over_batched_gradients(backward: Callable[..., list[Tensor]], grad: Tensor, *inputs: Any) -> list[Tensor]:
    """``backward(grad, *inputs)``, once per gradient where autograd hands on a batch of them.

    ``is_grads_batched`` and ``vectorize=True`` run the backward pass under autograd's own vmap. It runs an op
    once per gradient by itself, but not one with a list of tensors.
    """
    if not torch._C._dispatch_keys(grad).has(_BATCHED):
        return backward(grad, *inputs)
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    examples = torch._remove_batch_dim(grad, level, 1, 0)
    stacked = _stacked([backward(example, *inputs) for example in examples])
    return [torch._add_batch_dim(s, 0, level) for s in stacked]


def register_vmap(op: str) -> None:
    """Let ``torch.vmap`` run ``torch.ops.ecgfast.<op>`` once per example and stack the results."""
    kernel = getattr(torch.ops.ecgfast, op).default

    def example(value: Any, dim: Any, i: int) -> Any:
        if isinstance(value, list | tuple):
            return [example(v, d, i) for v, d in zip(value, dim, strict=True)]
        return value if dim is None else value.select(dim, i)

    def on_meta(value: Any, dim: Any) -> Any:
        if isinstance(value, list | tuple):
            return [on_meta(v, d) for v, d in zip(value, dim, strict=True)]
        if not isinstance(value, Tensor):
            return value
        shape = list(value.shape)
        if dim is not None:
            del shape[dim]
        return value.new_empty(shape, device="meta")

    def none(in_dims: tuple, inputs: tuple) -> Any:
        """The outputs for no example at all: an example on meta tensors tells their shapes."""
        device = next(value.device for value in inputs if isinstance(value, Tensor))
        outputs = kernel(*(on_meta(v, d) for v, d in zip(inputs, in_dims, strict=True)))
        if isinstance(outputs, Tensor):
            return outputs.new_empty((0, *outputs.shape), device=device)
        return type(outputs)(o.new_empty((0, *o.shape), device=device) for o in outputs)

    def loop(info: Any, in_dims: tuple, *inputs: Any) -> tuple[Any, Any]:
        calls = [
            kernel(*(example(v, d, i) for v, d in zip(inputs, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        stacked = _stacked(calls) if calls else none(in_dims, inputs)
        return stacked, 0 if isinstance(stacked, Tensor) else type(stacked)([0] * len(stacked))

    torch.library.register_vmap(f"ecgfast::{op}", loop)


def _refuse_second_derivative(op: str) -> None:
    """Make differentiating the gradient of ``op`` an error, where autograd would leave it out silently."""

    def backward(ctx: Any, *grads: Any) -> None:
        raise NotImplementedError(
            f"{op}: has no second derivative; ecgfast.ops.use_reference() runs a form that has one"
        )

    torch.library.register_autograd(f"ecgfast::{op}_backward", backward)


def register_gradient(op: str, setup: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Register the backward pass of ``torch.ops.ecgfast.<op>``."""
    torch.library.register_autograd(f"ecgfast::{op}", backward, setup_context=setup)
    _refuse_second_derivative(op)
    register_vmap(op)
    register_vmap(f"{op}_backward")


def eager_call(op: str, setup: Callable[..., None], backward: Callable[..., Any]) -> Callable[..., Any]:
    """What calls ``torch.ops.ecgfast.<op>``, in eager mode by a shorter way.

    The registered gradient serves ``torch.compile``, ``torch.export``, tracing and ``vmap``. It costs 50
    microseconds of Python and more for a step, so that eager calls take a plain ``autograd.Function`` over
    the same two functions. Such a function takes no lists of tensors: an op with one is called directly.
    """
    kernel = getattr(torch.ops.ecgfast, op).default

    def forward(ctx: Any, *inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            outputs = kernel(*inputs)
        setup(ctx, inputs, outputs)
        return outputs

    function = type(
        op, (torch.autograd.Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    )

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return kernel(*inputs)
        traced = torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state() is not None
        return kernel(*inputs) if traced else function.apply(*inputs)

    return call
