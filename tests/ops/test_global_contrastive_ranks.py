"""The global contrastive loss over several processes: equal to that of all rows in one."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from ecgfast.ops import global_contrastive, use_reference
from tests.ops.helpers import assert_close
from tests.ops.test_global_contrastive import make_inputs, run

COUNTS = {"equal": ([4, 4, 4], [4, 4, 4]), "uneven": ([5, 2, 4], [1, 7, 3]), "none": ([6, 0, 3], [0, 4, 2])}


def on_a_rank(rank, world, store, reference, work, queue):
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
        with use_reference(reference):
            queue.put((rank, work(rank)))
        dist.barrier()
    except Exception as error:  # the parent shows it
        queue.put((rank, error))
        raise
    finally:
        dist.destroy_process_group()


def on_ranks(world, store, work, reference=False):
    """What ``work(rank)`` gives on each of so many processes, or the error it raised there."""
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [
        context.Process(target=on_a_rank, args=(rank, world, store, reference, work, queue))
        for rank in range(world)
    ]
    for worker in workers:
        worker.start()
    results = dict(queue.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(timeout=60)
        assert not worker.is_alive(), "a rank hangs"
    return [results[rank] for rank in range(world)]


class Share:
    """A rank's part of the rows, its loss and gradients; as a class, for it to be sent to a process."""

    def __init__(self, inputs, counts, temperature, detach_norm=True):
        self.inputs, self.counts = inputs, counts
        self.temperature, self.detach_norm = temperature, detach_norm

    def __call__(self, rank):
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
            process_group=dist.group.WORLD,
        )
        (loss * 3).backward()
        return [t.detach().numpy() for t in (loss, x.grad, y.grad, tau.grad)]


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("kind", COUNTS)
def test_ranks_make_the_loss_of_all_rows(tmp_path, kind, reference):
    counts = COUNTS[kind]
    inputs = make_inputs(sum(counts[0]), sum(counts[1]), 16, torch.float32, seed=21, n_groups=5)
    whole = run(global_contrastive, *inputs, temperature=torch.tensor(0.2))
    results = on_ranks(3, tmp_path / "store", Share(inputs, counts, 0.2), reference)
    for result in results:
        assert not isinstance(result, Exception), result
    for rank, result in enumerate(results):
        loss, grad_a, grad_b, grad_tau = map(torch.from_numpy, result)
        assert_close(loss, whole[0], 1e-5, "loss")
        # Averaged over the ranks, as DDP does with gradients, they are the gradients of the whole.
        assert_close(grad_a / 3, whole[1].split(counts[0])[rank], 1e-5, "gradient of a", 1e-2)
        assert_close(grad_b / 3, whole[2].split(counts[1])[rank], 1e-5, "gradient of b", 1e-2)
        assert_close(grad_tau, whole[3], 1e-5, "gradient of the temperature")


class Wrong:
    """A call whose arguments differ on the last rank."""

    def __init__(self, change):
        self.change = change

    def __call__(self, rank):
        arguments = {
            "a": torch.randn(4, 8),
            "b": torch.randn(4, 8),
            "group_a": torch.arange(4),
            "group_b": torch.arange(4),
            "process_group": dist.group.WORLD,
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
def test_what_is_wrong_on_one_rank_is_an_error_on_all(tmp_path, change, here, there):
    first, second = on_ranks(2, tmp_path / "store", Wrong(change))
    assert second.startswith(f"global_contrastive: {here}")
    assert first.startswith(f"global_contrastive: {there or here}")


def test_what_is_wrong_under_autocast_is_an_error_on_all(tmp_path):
    change = {"b": np.zeros((4, 8), np.float32)}
    first, second = on_ranks(2, tmp_path / "store", WrongUnderAutocast(change))
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
