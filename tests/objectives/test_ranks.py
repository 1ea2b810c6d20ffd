"""A batch over two processes has the loss and the gradients that it has in one."""

import pytest
import torch
import torch.distributed as dist

from ecgfast import ops
from ecgfast.objectives import Views
from tests.objectives.test_contrast import make, make_views

# A contrast with itself whose number of positives counts, one of pairs of leads, one over two segments.
CASES = {"3kg": 12, "cmlc": 3, "cmsmlc": 3, "crlc": 4, "simclr": 3}


def batch(name: str) -> tuple:
    model = make(name, n_leads=CASES[name], lead_mask_prob=0.2)
    views = make_views(8, n_leads=CASES[name], samples=32, patients=[0, 1, 1, 2] * 2)
    return model, views._replace(sample_ids=torch.tensor([0, 2, 4, 6, 1, 3, 5, 7]))


def gradients(model) -> dict:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def serve(rank, store, results):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for name in CASES:
        model, views = batch(name)
        # Each rank has the halves of two pairs, or two segments and two.
        mine = [2 * rank, 2 * rank + 1, 4 + 2 * rank, 5 + 2 * rank]
        part = Views(*(x[mine] for x in views[:3]))
        losses = model(part, ops.make_rng(1, 2), process_group=dist.group.WORLD)
        loss = losses.total / losses.size
        loss.backward()
        for gradient in gradients(model).values():
            dist.all_reduce(gradient)
            gradient /= 2
        found = {key: value.numpy() for key, value in gradients(model).items()}
        results.put((rank, name, float(loss.detach()), found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def on_two(tmp_path_factory):
    """Loss and gradients by rank and name."""
    store = tmp_path_factory.mktemp("ranks") / "store"
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=serve, args=(rank, store, results), daemon=True) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=180) for _ in range(2 * len(CASES))]
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    return {(rank, name): rest for rank, name, *rest in found}


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_are_one(name, on_two):
    model, views = batch(name)
    losses = model(views, ops.make_rng(1, 2))
    (losses.total / losses.size).backward()
    for rank in (0, 1):
        loss, found = on_two[rank, name]
        assert loss == pytest.approx(float(losses.total.detach() / losses.size), rel=1e-6)
        for key, gradient in gradients(model).items():
            torch.testing.assert_close(torch.from_numpy(found[key]), gradient, rtol=1e-5, atol=1e-7)
