"""Gradients of the ops: for the compiler through the registered op, and by a shorter way for eager calls.

``torch.vmap`` runs an op once per example. Transforms that differentiate, such as ``torch.func.grad``, never
get here: ``_dispatch.fused`` sends them to the reference.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether the backward pass may run, so that the forward pass has to keep what it needs."""
    if not torch.is_grad_enabled():
        return False
    if any(t is not None and t.requires_grad for t in tensors):
        return True
    # A tensor that vmap hands on does not say whether the batch that it is of requires a gradient.
    return torch._C._are_functorch_transforms_active()


def register_vmap(op: str) -> None:
    """Let ``torch.vmap`` run ``torch.ops.ecgfast.<op>`` once per example and stack the results."""
    kernel = getattr(torch.ops.ecgfast, op).default

    def example(value: Any, dim: Any, i: int) -> Any:
        if isinstance(value, list | tuple):
            return [example(v, d, i) for v, d in zip(value, dim, strict=True)]
        return value if dim is None else value.select(dim, i)

    def loop(info: Any, in_dims: tuple, *inputs: Any) -> tuple[Any, Any]:
        calls = [
            kernel(*(example(v, d, i) for v, d in zip(inputs, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(calls[0], Tensor):
            return torch.stack(calls), 0
        stacked = [torch.stack(outputs) for outputs in zip(*calls, strict=True)]
        return (
            (stacked, [0] * len(stacked))
            if isinstance(calls[0], list)
            else (tuple(stacked), (0,) * len(stacked))
        )

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
