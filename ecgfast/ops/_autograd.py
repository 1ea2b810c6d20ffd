"""Gradients of the ops: for the compiler through the registered op, and by a shorter way for eager calls."""

from collections.abc import Callable
from typing import Any

import torch


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
