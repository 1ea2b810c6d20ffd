"""The forms of the global contrastive loss beside that of two whole batches.

A batch against itself, pairs of leads, absent rows, and each positive against the negatives alone.
"""

import itertools
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ecgfast.ops import global_contrastive, global_contrastive_reference
from tests.ops.helpers import generator

BOTH = (global_contrastive, global_contrastive_reference)


def cosines(x, y, detach_norm):
    norms = [t.norm(dim=-1, keepdim=True) for t in (x, y)]
    if detach_norm:
        norms = [n.detach() for n in norms]
    return (x / norms[0]) @ (y / norms[1]).T


def loop_loss(a, b, group_a, group_b=None, *, temperature=0.1, detach_norm=True, denominator="all",
              pairs=None, present_a=None, present_b=None):  # fmt: skip
    """The definition, similarity by similarity."""
    alone = b is None
    if alone:
        b, group_b, present_b = a, group_a, present_a
    if pairs is None:
        return one_loss(cosines(a, b, detach_norm) / temperature, group_a, group_b, denominator, alone,
                        present_a, present_b)  # fmt: skip
    losses = []
    for lead, other in pairs.tolist():
        here, there = (
            None if p is None else p if p.dim() == 1 else p[i]
            for p, i in ((present_a, lead), (present_b, other))
        )
        s = cosines(a[lead], b[other], detach_norm) / temperature
        loss = one_loss(s, group_a, group_b, denominator, alone and lead == other, here, there)
        if loss is not None:
            losses.append(loss)
    return sum(losses) / len(losses) if losses else None


def one_loss(s, group_a, group_b, denominator, without_diagonal, present_a, present_b):
    n, m = s.shape

    def takes_part(i, j):
        return (
            not (without_diagonal and i == j)
            and (present_a is None or bool(present_a[i]))
            and (present_b is None or bool(present_b[j]))
        )

    terms = []
    for i, j in itertools.product(range(n), range(m)):
        if not takes_part(i, j) or group_a[i] != group_b[j]:
            continue
        row = [k for k in range(m) if takes_part(i, k)]
        column = [k for k in range(n) if takes_part(k, j)]
        if denominator == "negatives":
            row = [j] + [k for k in row if group_b[k] != group_a[i]]
            column = [i] + [k for k in column if group_a[k] != group_b[j]]
        terms.append(torch.logsumexp(s[i, row], 0) - s[i, j])
        terms.append(torch.logsumexp(s[column, j], 0) - s[i, j])
    return sum(terms) / len(terms) if terms else None


def make(form, seed=0, dtype=torch.float64, n=9, m=7, d=5, leads=(3, 2)):
    """Arguments of the function for one of FORMS."""
    g = generator(seed)
    paired = "pairs" in form
    alone = "alone" in form
    lead = ((leads[0],), (leads[1],)) if paired else ((), ())
    a = torch.randn(*lead[0], n, d, generator=g, dtype=torch.float64).to(dtype)
    b = None if alone else torch.randn(*lead[1], m, d, generator=g, dtype=torch.float64).to(dtype)
    args = {"a": a, "b": b, "group_a": torch.randint(0, max(2, n // 2), (n,), generator=g)}
    if not alone:
        args["group_b"] = torch.randint(0, max(2, n // 2), (m,), generator=g)
    if "negatives" in form:
        args["denominator"] = "negatives"
    if paired:
        ends = (leads[0], leads[0] if alone else leads[1])
        every = list(itertools.product(range(ends[0]), range(ends[1])))
        args["pairs"] = torch.tensor([*every[::2], every[0], every[-1]])
    if "absent" in form:
        shape = lead if "lead" in form else ((), ())
        args["present_a"] = torch.rand(*shape[0], n, generator=g) < 0.7
        if not alone:
            args["present_b"] = torch.rand(*shape[1], m, generator=g) < 0.7
    return args


FORMS = [
    "negatives",
    "absent",
    "absent negatives",
    "alone",
    "alone negatives",
    "alone absent",
    "alone absent negatives",
    "pairs",
    "pairs negatives",
    "pairs absent",
    "pairs absent by lead",
    "pairs absent by lead negatives",
    "pairs alone",
    "pairs alone negatives",
    "pairs alone absent by lead",
    "pairs alone absent by lead negatives",
]


def run(function, args, factor=3.0, **kwargs):
    args = args | kwargs
    leaves = {
        name: args[name].detach().clone().requires_grad_()
        for name in ("a", "b", "temperature")
        if isinstance(args.get(name), torch.Tensor)
    }
    loss = function(**(args | leaves))
    (loss * factor).backward()
    return {"loss": loss.detach()} | {name: leaf.grad for name, leaf in leaves.items()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("detach_norm", [True, False])
def test_every_form_is_the_definition(form, detach_norm):
    args = make(form)
    tau = torch.tensor(0.3, dtype=torch.float64)
    want = run(loop_loss, args, temperature=tau, detach_norm=detach_norm)
    for function in BOTH:
        got = run(function, args, temperature=tau, detach_norm=detach_norm)
        for name, value in want.items():
            torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-12)


def test_ntxent_of_four_rows_by_hand():
    # Views of sample 0: e1 and e2; of sample 1: e1 and e2. At temperature 1 each row has similarity 1 with
    # one row of the other sample and 0 with its other two, its positive among them. So each of the four terms
    # is log(e^0 + e^1 + e^0) - 0 = log(2 + e). With itself, a row would have had 2 + 2 e.
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    for function in BOTH:
        loss = function(rows, None, torch.tensor([0, 0, 1, 1]), temperature=1.0)
        torch.testing.assert_close(loss.item(), math.log(2 + math.e), rtol=1e-6, atol=0)


def test_a_patient_of_two_recordings_by_hand():
    # s at temperature 1, patients of the rows 0, 0, 1 and of the columns 0, 0, 1:
    #     1 0 | 0
    #     0 1 | 1
    #     ----+--
    #     1 0 | 0
    # Each positive (i, p) has log(e^s_ip + sum over negatives) - s_ip. Along the rows, with negatives
    # {0}, {1} and {1, 0}:
    #     (0,0) log(e + 1) - 1   (0,1) log(1 + 1)   (1,0) log(1 + e)   (1,1) log(e + e) - 1 = log 2
    #     (2,2) log(1 + e + 1)
    # Along the columns, with negatives {1}, {0} and {0, 1}:
    #     (0,0) log(e + e) - 1 = log 2   (1,0) log(1 + e)   (0,1) log(1 + 1)   (1,1) log(e + 1) - 1
    #     (2,2) log(1 + 1 + e)
    # Either way the five add up to 2 log(1 + e) - 1 + 2 log 2 + log(2 + e).
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    b = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    group = torch.tensor([0, 0, 1])
    want = (2 * math.log(1 + math.e) - 1 + 2 * math.log(2) + math.log(2 + math.e)) / 5
    for function in BOTH:
        loss = function(a, b, group, group, temperature=1.0, denominator="negatives")
        torch.testing.assert_close(loss.item(), want, rtol=1e-6, atol=0)


def test_pairs_of_leads_by_hand():
    # Two patients, three leads, temperature 1. Lead 0 is (e1, e2), lead 1 the same, lead 2 (e2, e1).
    # Pair (0, 1): every positive has similarity 1, the other row 0: log(e + 1) - 1. Pairs (0, 2) and (1, 2):
    # positives 0, the other 1: log(1 + e). The mean of the three is log(1 + e) - 1/3.
    e = torch.eye(2)
    leads = torch.stack([e, e, e.flip(0)])
    pairs = torch.tensor([[0, 1], [0, 2], [1, 2]])
    for function in BOTH:
        loss = function(leads, None, torch.tensor([4, 9]), temperature=1.0, pairs=pairs)
        torch.testing.assert_close(loss.item(), math.log(1 + math.e) - 1 / 3, rtol=1e-6, atol=0)
        # Lead 2 absent in both: its pairs have no positive, and leave the mean.
        present = torch.tensor([[True, True], [True, True], [False, False]])
        loss = function(leads, None, torch.tensor([4, 9]), temperature=1.0, pairs=pairs, present_a=present)
        torch.testing.assert_close(loss.item(), math.log(1 + math.e) - 1, rtol=1e-6, atol=0)


@pytest.mark.parametrize("form", [f for f in FORMS if "absent" in f])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_absent_rows_hold_does_not_matter(form, dtype):
    args = make(form, dtype=dtype)
    spoiled = dict(args)
    for side in ("a", "b"):
        present = args.get(f"present_{side}")
        if present is None:
            continue
        spoiled[side] = torch.where(present[..., None], args[side], torch.nan)
    for function in BOTH:
        want, got = run(function, args), run(function, spoiled)
        for name, value in want.items():
            assert torch.equal(got[name], value), name
        for side in ("a", "b"):
            present = args.get(f"present_{side}")
            if present is not None:
                assert not got[side][(~present).expand(got[side].shape[:-1])].any()


@pytest.mark.parametrize(
    ("form", "change"),
    [
        ("alone", {"a": torch.zeros(0, 4), "group_a": torch.zeros(0, dtype=torch.int64)}),
        ("alone", {"group_a": torch.arange(9)}),
        ("alone negatives", {"group_a": torch.zeros(9, dtype=torch.int64)}),
        ("absent", {"present_a": torch.zeros(9, dtype=torch.bool)}),
        ("negatives", {"group_a": torch.zeros(9, dtype=torch.int64), "group_b": torch.zeros(7, dtype=int)}),
        ("pairs", {"pairs": torch.zeros(0, 2, dtype=torch.int64)}),
        ("pairs", {"group_a": torch.arange(9) + 100}),
        ("pairs alone", {"pairs": torch.tensor([[1, 1]]), "group_a": torch.arange(9)}),
    ],
)
def test_no_positive_or_no_negative_is_no_loss(form, change):
    for function in BOTH:
        got = run(function, make(form, dtype=torch.float32) | change)
        assert got.pop("loss") == 0
        assert not any(grad.any() for grad in got.values())


BAD = [
    ("alone", {"group_b": torch.arange(9)}, r"group_b must be None where b is None, got \[9\] int64"),
    ("alone", {"present_b": torch.ones(9).bool()}, "present_b must be None where b is None, got"),
    ("absent", {"group_b": None}, "group_b must be a tensor, got None"),
    ("absent", {"present_a": torch.ones(3).bool()}, r"present_a must have shape \[9\], got \[3\] bool"),
    ("absent", {"present_b": torch.ones(7)}, r"present_b must be bool, got \[7\] float32"),
    ("absent", {"present_a": torch.ones(3, 9).bool()}, r"present_a must have shape \[9\], got \[3, 9\]"),
    ("pairs", {"present_a": torch.ones(9, 3).bool()}, r"present_a must have shape \[3, 9\], got \[9, 3\]"),
    ("alone", {"denominator": "some"}, "denominator must be 'all' or 'negatives', got 'some'"),
    ("alone", {"denominator": None}, "denominator must be 'all' or 'negatives', got None"),
    ("alone", {"pairs": torch.zeros(1, 2).long()}, r"a must have shape \[L, N, D\], got \[9, 5\]"),
    ("pairs", {"pairs": None}, r"a must have shape \[N, D\], got \[3, 9, 5\]"),
    ("pairs", {"b": torch.zeros(7, 5).double()}, r"b must have shape \[\?, \?, 5\], got \[7, 5\]"),
    ("pairs", {"pairs": torch.zeros(4, 3).long()}, r"pairs must have shape \[Q, 2\], got \[4, 3\]"),
    ("pairs", {"pairs": torch.zeros(4, 2)}, "pairs must be int64, .*, got .* float32"),
    ("pairs", {"pairs": torch.tensor([[0, -1]])}, "pairs must not be negative, got -1"),
    ("pairs", {"pairs": torch.tensor([[3, 0]])}, "pairs must be below 3 for a, got 3"),
    ("pairs", {"pairs": torch.tensor([[2, 2]])}, "pairs must be below 2 for b, got 2"),
    ("pairs alone", {"pairs": torch.tensor([[2, 3]])}, "pairs must be below 3 for b, got 3"),
    ("pairs", {"group_a": torch.zeros(3, 9).long()}, r"group_a must have shape \[9\], got \[3, 9\]"),
]


@pytest.mark.parametrize(("form", "change", "message"), BAD)
def test_bad_input(form, change, message):
    for function in BOTH:
        with pytest.raises((ValueError, TypeError), match=f"^global_contrastive: {message}"):
            function(**make(form) | change)


@pytest.mark.parametrize("form", ["alone absent negatives", "pairs absent by lead"])
def test_in_a_compiled_graph(form):
    torch._dynamo.reset()
    compiled = torch.compile(global_contrastive, backend="aot_eager", fullgraph=True, dynamic=True)
    for n in (9, 12):
        args = make(form, dtype=torch.float32, n=n)
        want, got = run(global_contrastive, args), run(compiled, args)
        for name, value in want.items():
            torch.testing.assert_close(got[name], value)


@pytest.mark.parametrize("form", FORMS)
def test_under_transforms(form):
    args = make(form)
    want = run(global_contrastive, args, factor=1.0)
    grad = torch.func.grad(lambda a: global_contrastive(**args | {"a": a}))(args["a"])
    torch.testing.assert_close(grad, want["a"])
    batch = torch.stack([args["a"], 2 * args["a"].flip(-1)])
    losses = torch.vmap(lambda a: global_contrastive(**args | {"a": a}))(batch)
    for x, loss in zip(batch, losses, strict=True):
        torch.testing.assert_close(global_contrastive(**args | {"a": x}), loss)


@pytest.mark.parametrize("form", ["alone", "pairs", "pairs alone"])
def test_floating_point_operations(form):
    args = make(form, dtype=torch.float32)
    n = len(args["pairs"]) if "pairs" in form else 1
    rows = 9 if args["b"] is None else 7
    with FlopCounterMode(display=False) as counter:
        run(global_contrastive, args)
    assert counter.get_total_flops() == 3 * 2 * n * 9 * rows * 5
