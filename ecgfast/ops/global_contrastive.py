"""The global contrastive loss: rows of one group attract, rows of other groups repel."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ecgfast.ops._autograd import eager_call, register_gradient
from ecgfast.ops._cosines import split_temperature, temperature_gradient, unit
from ecgfast.ops._dispatch import (
    FLOATS,
    INTS,
    as_int64,
    autocasts,
    check,
    check_tensor,
    describe,
    flag,
    full_precision,
    fused,
    readable,
    temperature_of,
    tf32,
    wide,
)
from ecgfast.ops._gather import gather_rows

_OP = "global_contrastive"
_PAIRS = "global_contrastive_pairs"


DENOMINATORS = ("all", "negatives")


class _Arguments(NamedTuple):
    """What is contrasted, after the checks; the rows are those of all ranks where there is a group."""

    a: Tensor
    b: Tensor | None
    group_a: Tensor
    group_b: Tensor | None
    present_a: Tensor | None
    present_b: Tensor | None
    pairs: Tensor | None
    denominator: str
    temperature: float | Tensor
    detach_norm: bool


def _validate(given: _Arguments) -> tuple[float | Tensor, bool]:
    a, b, pairs = given.a, given.b, given.pairs
    batch = () if pairs is None else (None,)
    letters = "N, D" if pairs is None else "L, N, D"
    check_tensor(_OP, "a", a, (*batch, None, None), FLOATS, None, letters)
    check_tensor(_OP, "group_a", given.group_a, (a.shape[-2],), INTS, a)
    _check_present("present_a", given.present_a, a)
    if b is None:
        for name in ("group_b", "present_b"):
            value = getattr(given, name)
            check(value is None, _OP, "{} must be None where b is None, got {}", name, describe(value))
    else:
        check_tensor(_OP, "b", b, (*batch, None, a.shape[-1]), (a.dtype,), a)
        check_tensor(_OP, "group_b", given.group_b, (b.shape[-2],), INTS, a)
        _check_present("present_b", given.present_b, b)
    known = isinstance(given.denominator, str) and given.denominator in DENOMINATORS
    names = " or ".join(map(repr, DENOMINATORS))
    check(known, _OP, "denominator must be {}, got {}", names, describe(given.denominator))
    if pairs is not None:
        _check_pairs(pairs, a, a if b is None else b)
    return temperature_of(_OP, given.temperature, a), flag(_OP, "detach_norm", given.detach_norm)


def _check_present(name: str, present: Tensor | None, x: Tensor) -> None:
    if present is None:
        return
    every = x.dim() == 3 and isinstance(present, Tensor) and present.dim() == 2
    check_tensor(_OP, name, present, x.shape[:-1] if every else (x.shape[-2],), (torch.bool,), x)


def _check_pairs(pairs: Tensor, a: Tensor, b: Tensor) -> None:
    check_tensor(_OP, "pairs", pairs, (None, 2), INTS, a, "Q, 2")
    if not readable(pairs) or pairs.numel() == 0:
        return
    least, most = pairs.min().item(), pairs.amax(dim=0).tolist()
    check(least >= 0, _OP, "pairs must not be negative, got {}", least)
    for name, found, size in zip("ab", most, (a.shape[0], b.shape[0]), strict=True):
        check(found < size, _OP, "pairs must be below {} for {}, got {}", size, name, found)


def _checked(given: _Arguments, process_group: ProcessGroup | None) -> _Arguments:
    if process_group is None:
        temperature, detach_norm = _validate(given)
    else:
        *rows, (temperature, detach_norm) = gather_rows(
            _OP, lambda: _validate(given), given[:6], given.pairs, given.denominator, process_group
        )
        given = _Arguments(*rows, *given[6:])
    integers = (given.group_a, given.group_b, given.pairs)
    same = temperature is given.temperature and detach_norm is given.detach_norm
    if same and all(x is None or x.dtype == torch.int64 for x in integers):
        return given  # the usual call, which counts microseconds
    group_a, group_b, pairs = (None if x is None else as_int64(x) for x in integers)
    return given._replace(
        group_a=group_a, group_b=group_b, pairs=pairs, temperature=temperature, detach_norm=detach_norm
    )


def global_contrastive_reference(
    a: Tensor,
    b: Tensor | None,
    group_a: Tensor,
    group_b: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.1,
    detach_norm: bool = True,
    process_group: ProcessGroup | None = None,
    denominator: str = "all",
    pairs: Tensor | None = None,
    present_a: Tensor | None = None,
    present_b: Tensor | None = None,
) -> Tensor:
    """Plain PyTorch form of :func:`global_contrastive`: the whole N x N matrix, for each pair."""
    given = _Arguments(
        a, b, group_a, group_b, present_a, present_b, pairs, denominator, temperature, detach_norm
    )
    return _reference(_checked(given, process_group))


def _reference(x: _Arguments) -> Tensor:
    dtype = wide(x.a.dtype)
    temperature = x.temperature.to(dtype) if isinstance(x.temperature, Tensor) else x.temperature
    with full_precision(x.a):
        u = _units(x.a, x.present_a, x.detach_norm)
        v = u if x.b is None else _units(x.b, x.present_b, x.detach_norm)
        if x.pairs is not None:
            u, v = u[x.pairs[:, 0]], v[x.pairs[:, 1]]
        logits = u @ v.mT / temperature
    group_b = x.group_a if x.group_b is None else x.group_b
    positive = x.group_a[:, None] == group_b[None, :]
    least = torch.finfo(dtype).min / 2  # not -inf, for which gradients would be NaN
    taking_part = _taking_part(x, logits)
    if taking_part is not None:
        positive = positive & taking_part
        logits = torch.where(taking_part, logits, least)
    n_positive = positive.sum(dim=(-2, -1)).clamp(min=1)
    if x.denominator == "all":
        forward = torch.logsumexp(logits, dim=-1, keepdim=True) - logits
        backward = torch.logsumexp(logits, dim=-2, keepdim=True) - logits
    else:
        others = torch.where(positive, least, logits)
        forward = torch.logaddexp(logits, torch.logsumexp(others, dim=-1, keepdim=True)) - logits
        backward = torch.logaddexp(logits, torch.logsumexp(others, dim=-2, keepdim=True)) - logits
    losses = torch.where(positive, forward + backward, 0.0).sum(dim=(-2, -1)) / (2 * n_positive)
    if x.pairs is None:
        return losses
    # A pair without a positive has loss 0.
    n_pairs = positive.expand(logits.shape).any(dim=-1).any(dim=-1).sum()
    return losses.sum() / n_pairs.clamp(min=1)


def _units(x: Tensor, present: Tensor | None, detach_norm: bool) -> Tensor:
    x = x.to(wide(x.dtype))
    if present is not None:
        x = torch.where(present[..., None], x, 0.0)  # a NaN of an absent row goes nowhere
    return unit(x, detach_norm=detach_norm)


def _taking_part(x: _Arguments, logits: Tensor) -> Tensor | None:
    """Which similarities do, ``[N, N']`` or ``[Q, N, N']``; ``None``: all."""
    sides = (x.present_a, x.present_a if x.b is None else x.present_b)
    mask = None
    for side, present in enumerate(sides):
        if present is None:
            continue
        if x.pairs is not None and present.dim() == 2:
            present = present[x.pairs[:, side]]
        present = present[..., None, :] if side else present[..., :, None]
        mask = present if mask is None else mask & present
    if x.b is not None:
        return mask
    n = x.a.shape[-2]
    other = ~torch.eye(n, dtype=torch.bool, device=x.a.device)
    if x.pairs is not None:
        other = other | (x.pairs[:, 0] != x.pairs[:, 1])[:, None, None]
    return other if mask is None else mask & other


def global_contrastive(
    a: Tensor,
    b: Tensor | None,
    group_a: Tensor,
    group_b: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.1,
    detach_norm: bool = True,
    process_group: ProcessGroup | None = None,
    denominator: str = "all",
    pairs: Tensor | None = None,
    present_a: Tensor | None = None,
    present_b: Tensor | None = None,
) -> Tensor:
    """InfoNCE between batches of embeddings, both directions, with groups of positives.

    With ``s = unit(a) unit(b)^T / temperature``, the mean over all pairs of one group of
    ``-log softmax(s)`` along the rows, the same along the columns, halved.

    Args:
        a, b: ``[N, D]`` and ``[N', D]`` of one dtype (fp32, bf16, fp16 or fp64). ``b=None``: the rows of
            ``a`` among themselves, where the similarity of a row to itself is left out of everything
            (NT-Xent); ``group_b`` and ``present_b`` are None then too.
        group_a, group_b: integer ``[N]`` and ``[N']``: rows of equal numbers are positives (the patient).
        temperature: divides the cosines (the paper's is 0.1): a positive number, or a floating-point tensor
            of shape [] on the same device, which gets a gradient if it requires one. On CUDA a
            tensor's value is not looked at: the loss is NaN where it is not positive.
        detach_norm: no gradient through the norms, as the official code does.
        process_group: contrast with the rows (N and N') of all ranks of this group, as many as each has.
            Each rank then returns the loss over all rows; averaging gradients over ranks, as DDP does, gives
            its gradient (that of the temperature is whole on each rank). ``pairs`` and ``denominator`` must
            be the same on all ranks.
        denominator: ``"all"``: the softmax goes over all similarities of the row or column.
            ``"negatives"``: each positive (i, p) is a cross-entropy of its own against those that are not
            positive: ``log(exp(s_ip) + sum_n exp(s_in)) - s_ip`` with n over the row's negatives, and the
            same over the column's (3KG). It is 0 where there are no negatives.
        pairs: integer ``[Q, 2]``: ``a`` is ``[L, N, D]`` and ``b`` ``[L', N', D]`` (a row of each lead), and
            the loss is the mean over the pairs (l, m) with at least one positive of the loss of ``a[l]``
            against ``b[m]``. The groups are those of all leads. With ``b=None``, pair (l, m) contrasts
            ``a[l]`` with ``a[m]``; a row is left out against itself alone, which is in the pairs (l, l):
            in others it is a positive of its other lead. On CUDA the numbers are not looked at:
            the loss is NaN where one is of no lead.
        present_a, present_b: bool ``[N]`` and ``[N']``, with ``pairs`` also ``[L, N]`` and ``[L', N']``:
            rows that are absent (False) take no part, neither as positives nor as negatives, and get no
            gradient, whatever they hold.

    There are kernels for all forms, which never hold an N x N' matrix. On the CPU a batch against itself
    takes half the products; absent rows and pairs without a positive take none. On CUDA a batch against
    itself takes half the products forward and two thirds backward, and absent rows cost as much as others.
    With ``denominator="negatives"`` the positives' cosines are made once more, one by one: it is meant for
    few positives a row.

    A row no longer than 1e-8 has cosine 0 with all or nearly so, and gets no gradient. Where the product of
    two rows' norms passes what fp32 holds, bf16 inputs on any device, and others on CUDA, give NaN.

    Returns:
        0-dim fp32 (fp64 for fp64 inputs); 0 where no pair is positive.

    Gradients that are small differences of large terms (rows that are nearly equal, pairs nearly aligned)
    are as precise as the reference's on the CPU, and in fp32 on CUDA. With 16-bit inputs the CUDA kernels
    round the terms to that dtype; the CPU kernels do so with bf16 where it does no harm, and otherwise
    make the gradients once more in fp32, in about three times the time.

    On CUDA fp32 is multiplied as :func:`torch.get_float32_matmul_precision` says when the forward pass runs:
    to fp32 precision where it is "highest", in TF32 otherwise (cosines within 1e-3). The CPU kernels always
    multiply to fp32 precision.

    Raises:
        ValueError, TypeError: naming the argument, what came and what is taken.

    Sources: Kiyasseh et al., CLOCS, ICML 2021, equation 2 (and CMLC, CMSMLC: ``pairs``); Oh et al., CHIL
    2022, section 3.2; Chen et al., SimCLR, ICML 2020, equation 1 (``b=None``); Gopal et al., 3KG, ML4H 2021,
    equation 1 (``denominator="negatives"``).
    """
    if isinstance(a, Tensor) and isinstance(b, Tensor) and autocasts(a) and a.dtype != b.dtype:
        common = torch.promote_types(a.dtype, b.dtype)
        a, b = a.to(common), b.to(common)
    given = _Arguments(
        a, b, group_a, group_b, present_a, present_b, pairs, denominator, temperature, detach_norm
    )
    x = _checked(given, process_group)
    op = _OP if _is_plain(x) else _PAIRS
    if not fused(op, x.a):
        return _reference(x)
    number, tensor = split_temperature(x.temperature, x.a)
    scalars = (number, x.detach_norm, tf32(x.a), *(() if tensor is None else (tensor,)))
    if op == _OP:
        return _call(x.a, x.b, x.group_a, x.group_b, *scalars)[0]
    return _call_pairs(*_as_pairs(x), x.denominator == "negatives", *scalars)[0]


def _is_plain(x: _Arguments) -> bool:
    """Whether it is two whole batches, with a softmax over all."""
    others = (x.present_a, x.present_b, x.pairs)
    return x.b is not None and x.denominator == "all" and all(other is None for other in others)


def _as_pairs(x: _Arguments) -> tuple[Tensor | None, ...]:
    """The tensors of ``global_contrastive_pairs``; a batch is that of one lead."""
    a, b, pairs = x.a, x.b, x.pairs
    if pairs is None:
        a, b = a[None], None if b is None else b[None]
        pairs = torch.zeros(1, 2, dtype=torch.int64, device=a.device)
    return a, b, x.group_a, x.group_b, x.present_a, x.present_b, pairs


@torch.library.register_fake("ecgfast::global_contrastive")
def _(a: Tensor, b: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype, n, n_b = wide(a.dtype), a.shape[0], b.shape[0]
    # On CUDA the numbers of positives and two scalars follow the inverse norms.
    saved = 2 * (n + n_b) + 2 if a.is_cuda else n + n_b
    lse = dtype if a.is_cuda else torch.float64
    shapes = (((), dtype), ((n,), lse), ((n_b,), lse), ((saved,), dtype))
    return tuple(a.new_empty(shape, dtype=kind) for shape, kind in shapes)


@torch.library.register_fake("ecgfast::global_contrastive_backward")
def _(grad_loss: Tensor, a: Tensor, b: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    with_moments = len(rest) > 8 and rest[8] is not None
    return (
        torch.empty_like(a, memory_format=torch.contiguous_format),
        torch.empty_like(b, memory_format=torch.contiguous_format),
        grad_loss.new_empty(1 if with_moments else 0, dtype=torch.float64),
    )


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    _, *statistics = output
    # A temperature that is a number is left away, in all calls alike.
    ctx.save_for_backward(*inputs[:4], *statistics, *inputs[7:])
    ctx.scalars, ctx.n_inputs = inputs[4:7], len(inputs)
    ctx.mark_non_differentiable(*statistics)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * ctx.n_inputs
    tensors = ctx.saved_tensors
    saved, temperature = tensors[:7], tensors[7:]
    *grads, moments = torch.ops.ecgfast.global_contrastive_backward(
        grad_loss, *saved, *ctx.scalars, *temperature
    )
    return (*grads, *(None,) * 5, *(temperature_gradient(moments, t) for t in temperature))


register_gradient(_OP, _setup, _backward)
_call = eager_call(_OP, _setup, _backward)


# Of pairs: a, b, group_a, group_b, present_a, present_b, pairs; negatives, temperature, detach_norm, tf32;
# and the temperature that is a tensor.
_N_TENSORS, _N_SCALARS = 7, 4


@torch.library.register_fake("ecgfast::global_contrastive_pairs")
def _(a: Tensor, b: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    dtype = wide(a.dtype)
    pairs, negatives = rest[_N_TENSORS - 3], rest[_N_TENSORS - 2]
    leads, n, _ = a.shape
    other_leads, n_b = (leads, n) if b is None else b.shape[:2]
    statistics = (2 if negatives else 1) * pairs.shape[0] * (n + n_b)
    rows = leads * n + (0 if b is None else other_leads * n_b)
    # On CUDA a number for each pair and three scalars follow the inverse norms.
    saved = rows + pairs.shape[0] + 3 if a.is_cuda else rows
    lse = a.new_empty(statistics, dtype=dtype if a.is_cuda else torch.float64)
    return a.new_empty((), dtype=dtype), lse, a.new_empty(saved, dtype=dtype)


@torch.library.register_fake("ecgfast::global_contrastive_pairs_backward")
def _(grad_loss: Tensor, a: Tensor, b: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    n_others = _N_TENSORS + 2 + _N_SCALARS - 2  # with lse and inv_norms, after a and b
    with_moments = len(rest) > n_others and rest[n_others] is not None
    return (
        a.new_empty(a.shape),
        a.new_empty(0) if b is None else b.new_empty(b.shape),
        grad_loss.new_empty(1 if with_moments else 0, dtype=torch.float64),
    )


def _setup_pairs(ctx: Any, inputs: tuple, output: tuple) -> None:
    _, *statistics = output
    temperature = inputs[_N_TENSORS + _N_SCALARS :]
    ctx.save_for_backward(*inputs[:_N_TENSORS], *statistics, *temperature)
    ctx.scalars, ctx.n_inputs = inputs[_N_TENSORS : _N_TENSORS + _N_SCALARS], len(inputs)
    ctx.mark_non_differentiable(*statistics)
    ctx.set_materialize_grads(False)


def _backward_pairs(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * ctx.n_inputs
    tensors = ctx.saved_tensors
    saved, temperature = tensors[: _N_TENSORS + 2], tensors[_N_TENSORS + 2 :]
    grad_a, grad_b, moments = torch.ops.ecgfast.global_contrastive_pairs_backward(
        grad_loss, *saved, *ctx.scalars, *temperature
    )
    others = _N_TENSORS - 2 + _N_SCALARS
    return (
        grad_a,
        None if saved[1] is None else grad_b,
        *(None,) * others,
        *(temperature_gradient(moments, t) for t in temperature),
    )


register_gradient(_PAIRS, _setup_pairs, _backward_pairs)
_call_pairs = eager_call(_PAIRS, _setup_pairs, _backward_pairs)
