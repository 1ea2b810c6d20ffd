"""The global contrastive loss over several processes: equal to that of all rows in one."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from ecgfast.ops import global_contrastive, use_reference
from tests.ops.helpers import assert_close
from tests.ops.test_global_contrastive import make_inputs, run
from tests.ops.test_global_contrastive_forms import FORMS, make
from tests.ops.test_global_contrastive_forms import run as run_form

COUNTS = {"equal": ([4, 4, 4], [4, 4, 4]), "uneven": ([5, 2, 4], [1, 7, 3]), "none": ([6, 0, 3], [0, 4, 2])}


def serve(rank, world, store, tasks, results):
    """Runs what comes as a task until None does, in a process group with a second one of ranks 0 and 1."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    pair = dist.new_group([0, 1])
    for work, reference, everybody in iter(tasks.get, None):
        try:
            with use_reference(reference):
                results.put((rank, work(rank, dist.group.WORLD if everybody else pair)))
        except Exception as error:  # the parent shows it
            results.put((rank, error))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory):
    """What ``work(rank, group)`` gives on each of three or of two processes, or the error it raised there."""
    world, store = 3, tmp_path_factory.mktemp("ranks") / "store"
    context = torch.multiprocessing.get_context("spawn")
    tasks, results = [context.Queue() for _ in range(world)], context.Queue()
    workers = [
        context.Process(target=serve, args=(rank, world, store, tasks[rank], results), daemon=True)
        for rank in range(world)
    ]
    for worker in workers:
        worker.start()

    def run_on(ranks, work, reference=False):
        for queue in tasks[:ranks]:
            queue.put((work, reference, ranks == world))
        found = dict(results.get(timeout=120) for _ in range(ranks))
        return [found[rank] for rank in range(ranks)]

    yield run_on
    for queue in tasks:
        queue.put(None)
    for worker in workers:
        worker.join(timeout=60)
        assert not worker.is_alive(), "a rank hangs"


class Share:
    """A rank's part of the rows, its loss and gradients; as a class, for it to be sent to a process."""

    def __init__(self, inputs, counts, temperature, detach_norm=True):
        self.inputs, self.counts = inputs, counts
        self.temperature, self.detach_norm = temperature, detach_norm

    def __call__(self, rank, group):
        a, b, group_a, group_b = self.inputs
        x, group_x = a.split(self.counts[0])[rank].clone(), group_a.split(self.counts[0])[rank]
        y, group_y = b.split(self.counts[1])[rank].clone(), group_b.split(self.counts[1])[rank]
        tau = torch.tensor(self.temperature, requires_grad=True)
        loss = global_contrastive(
            x.requires_grad_(),
            y.requires_grad_(),
            group_x,
            group_y,
            temperature=tau,
            detach_norm=self.detach_norm,
            process_group=group,
        )
        (loss * 3).backward()
        return [t.detach().numpy() for t in (loss, x.grad, y.grad, tau.grad)]


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("kind", COUNTS)
def test_ranks_make_the_loss_of_all_rows(on_ranks, kind, reference):
    counts = COUNTS[kind]
    inputs = make_inputs(sum(counts[0]), sum(counts[1]), 16, torch.float32, seed=21, n_groups=5)
    whole = run(global_contrastive, *inputs, temperature=torch.tensor(0.2))
    results = on_ranks(3, Share(inputs, counts, 0.2), reference)
    for result in results:
        assert not isinstance(result, Exception), result
    for rank, result in enumerate(results):
        loss, grad_a, grad_b, grad_tau = map(torch.from_numpy, result)
        assert_close(loss, whole[0], 1e-5, "loss")
        # Averaged over the ranks, as DDP does with gradients, they are the gradients of the whole.
        assert_close(grad_a / 3, whole[1].split(counts[0])[rank], 1e-5, "gradient of a", 1e-2)
        assert_close(grad_b / 3, whole[2].split(counts[1])[rank], 1e-5, "gradient of b", 1e-2)
        assert_close(grad_tau, whole[3], 1e-5, "gradient of the temperature")


class ShareOfForm:
    """A rank's part of the arguments of one of FORMS."""

    def __init__(self, args, counts):
        self.args, self.counts = args, counts

    def part(self, name, rank):
        x = self.args[name]
        if x is None or name in ("denominator", "pairs"):
            return x
        dim = x.dim() - (2 if name in ("a", "b") else 1)
        return x.split(self.counts[1 if name.endswith("b") else 0], dim)[rank].clone()

    def __call__(self, rank, group):
        args = {name: self.part(name, rank) for name in self.args}
        leaves = [args[name].requires_grad_() for name in ("a", "b") if args[name] is not None]
        loss = global_contrastive(**args, process_group=group)
        loss.backward()
        return [loss.item(), *(leaf.grad.numpy() for leaf in leaves)]


@pytest.mark.parametrize("form", FORMS)
def test_ranks_make_every_form_of_all_rows(on_ranks, form):
    args = make(form, dtype=torch.float32)
    counts = [5, 0, 4], [1, 4, 2]
    whole = run_form(global_contrastive, args, factor=1.0)
    for rank, result in enumerate(on_ranks(3, ShareOfForm(args, counts))):
        assert not isinstance(result, Exception), result
        loss, *grads = result
        assert loss == pytest.approx(whole["loss"].item(), rel=1e-5)
        for name, grad, split in zip("ab", grads, counts, strict=False):
            want = whole[name].split(split, whole[name].dim() - 2)[rank]
            assert_close(torch.from_numpy(grad) / 3, want, 1e-5, name, 1e-2)


class Wrong:
    """A call whose arguments differ on the last rank."""

    def __init__(self, change):
        self.change = change

    def __call__(self, rank, group):
        arguments = {
            "a": torch.randn(4, 8),
            "b": torch.randn(4, 8),
            "group_a": torch.arange(4),
            "group_b": torch.arange(4),
            "process_group": group,
        }
        if rank == 1:
            arguments |= self.change
        try:
            global_contrastive(**arguments)
        except (TypeError, ValueError) as error:
            return str(error)
        return "no error"


class WrongUnderAutocast(Wrong):
    def __call__(self, *args):
        with torch.autocast("cpu", torch.bfloat16):
            return super().__call__(*args)


@pytest.mark.parametrize(
    ("change", "here", "there"),
    [
        (
            {"a": torch.zeros(4, 6), "b": torch.zeros(4, 6)},
            r"a must have the same number of columns D on all ranks, got [8, 6]",
            None,
        ),
        (
            {"a": torch.zeros(4, 8).double(), "b": torch.zeros(4, 8).double()},
            "a must have the same dtype on all ranks, got float32, float64",
            None,
        ),
        (
            {"denominator": "negatives"},
            "denominator must have the same value on all ranks, got [0, 1]",
            None,
        ),
        (
            {"b": None, "group_b": None},
            "b must have the same dimensions on all ranks, got [2, 0]",
            None,
        ),
        (
            {"present_b": torch.ones(4, dtype=torch.bool)},
            "present_b must have the same dimensions on all ranks, got [0, 1]",
            None,
        ),
        (
            {"group_a": torch.arange(3)},
            "group_a must have shape [4], got [3] int64 on cpu",
            "the arguments on rank 1 are wrong: see the error there",
        ),
        (
            {"a": "rows"},
            "a must be a tensor, got",
            "the arguments on rank 1 are wrong: see the error there",
        ),
        (
            {"temperature": -1.0},
            "temperature must be positive, got -1.0",
            "the arguments on rank 1 are wrong: see the error there",
        ),
    ],
)
def test_what_is_wrong_on_one_rank_is_an_error_on_all(on_ranks, change, here, there):
    first, second = on_ranks(2, Wrong(change))
    assert second.startswith(f"global_contrastive: {here}")
    assert first.startswith(f"global_contrastive: {there or here}")


def test_what_is_wrong_under_autocast_is_an_error_on_all(on_ranks):
    change = {"b": np.zeros((4, 8), np.float32)}
    first, second = on_ranks(2, WrongUnderAutocast(change))
    assert second.startswith("global_contrastive: b must be a tensor, got ndarray")
    assert first.startswith("global_contrastive: the arguments on rank 1 are wrong: see the error there")


def test_process_group_of_one_rank(tmp_path):
    a, b, group_a, group_b = make_inputs(9, 9, 16, torch.float32, seed=1)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        whole = run(global_contrastive, a, b, group_a, group_b, process_group=dist.group.WORLD)
    finally:
        dist.destroy_process_group()
    alone = run(global_contrastive, a, b, group_a, group_b)
    assert all(torch.equal(x, y) for x, y in zip(whole, alone, strict=True))
