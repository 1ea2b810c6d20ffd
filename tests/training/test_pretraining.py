"""Whole runs of a tiny model: what they leave, and that they survive being stopped anywhere."""

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ecgfast.errors import EcgfastError
from ecgfast.nn import Encoder
from ecgfast.objectives import W2VCMSC
from ecgfast.training import Interrupted, PretrainConfig, pretrain, read_metrics
from ecgfast.training.data import open_data
from ecgfast.training.loop import Trainer
from ecgfast.training.parallel import World, resolve_device
from ecgfast.training.pretrain import make_objective, make_trainer, open_batches

CPU = World(0, 1, torch.device("cpu"))


def trainer_of(config: PretrainConfig, store: Path, world: World = CPU) -> Trainer:
    """A trainer as `pretrain` makes it, before its first update."""
    source, *_ = open_batches(open_data([store], config), config, world)
    return make_trainer(make_objective(config), source, config, world)


@pytest.fixture(scope="module")
def finished(store, tiny, tmp_path_factory):
    """A run that never stopped; no test changes it."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert pretrain(store, run, tiny, progress=False)
    return run


def assert_same(a, b):
    """Two training states, or parts of them, agree bit for bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    else:
        assert a == b


def assert_same_run(a: Path, b: Path):
    states = [torch.load(run / "checkpoint/state.pt", weights_only=True) for run in (a, b)]
    assert_same(*states)
    assert (a / "model/model.safetensors").read_bytes() == (b / "model/model.safetensors").read_bytes()
    points = [read_metrics(run / "metrics.jsonl") for run in (a, b)]
    for point in points[0] + points[1]:
        assert point.pop("segments_per_second") > 0
    assert points[0] == points[1]


def test_run_leaves_everything(finished, tiny):
    points = read_metrics(finished / "metrics.jsonl")
    assert [point["step"] for point in points] == [1, 4, 8, 10]
    terms = [metric.name for metric in W2VCMSC.metrics(tiny.model) if metric.term and metric.name != "loss"]
    assert terms == ["local", "global", "diversity", "feature_penalty"]
    for point in points:
        total = sum(point[name] for name in terms)
        assert point["loss"] == pytest.approx(total, rel=1e-5)
        assert 0 <= point["accuracy"] <= 1
        assert point["lr"] == tiny.optim.lr
    assert points[-1]["epoch"] == pytest.approx(10 / 7)
    described = json.loads((finished / "config.json").read_text())
    assert described["config"] == json.loads(json.dumps(dataclasses.asdict(tiny)))
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(finished / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss/local")] == [1, 4, 8, 10]

    model = W2VCMSC.from_pretrained(finished / "model")
    assert model.config == tiny.model
    state = torch.load(finished / "checkpoint/state.pt", weights_only=True)
    assert_same(dict(model.state_dict()), dict(state["model"]))
    encoder = Encoder.from_pretrained(finished / "model")
    assert encoder.embed(torch.zeros(1, 3, 320), leads=["I", "II", "V2"]).shape == (1, 16)


def test_resident_loader_gives_the_same_run(finished, store, tiny, tmp_path, monkeypatch):
    monkeypatch.delattr(importlib.import_module("ecgfast.training.pretrain"), "SegmentLoader")
    config = dataclasses.replace(tiny, loader="resident")
    pretrain(store, tmp_path / "run", config, progress=False)
    assert_same_run(finished, tmp_path / "run")


def test_loader_may_change_when_a_run_goes_on(finished, store, tiny, tmp_path, monkeypatch):
    update, run = Trainer.update, tmp_path / "run"

    def update_then_stop(self, batches):
        update(self, batches)
        if self.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "update", update_then_stop)
    with pytest.raises(Interrupted):
        pretrain(store, run, dataclasses.replace(tiny, loader="resident"), progress=False)
    pretrain(store, run, tiny, progress=False)
    assert_same_run(finished, run)


def test_finished_run_is_left_alone(finished, store, tiny):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert not pretrain(store, finished, tiny, progress=False)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_same_seed_same_run(finished, store, tiny, tmp_path):
    pretrain(store, tmp_path / "again", tiny, progress=False)
    assert_same_run(finished, tmp_path / "again")
    other = dataclasses.replace(tiny, seed=1)
    pretrain(store, tmp_path / "other", other, progress=False)
    losses = [
        [point["loss"] for point in read_metrics(run / "metrics.jsonl")]
        for run in (finished, tmp_path / "other")
    ]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_the_run_goes_on(finished, store, tiny, tmp_path, monkeypatch, signum):
    run = tmp_path / "stopped"
    update = Trainer.update

    def update_then_signal(self, batches):
        update(self, batches)
        if self.step in (2, 7):
            os.kill(os.getpid(), signum)

    monkeypatch.setattr(Trainer, "update", update_then_signal)
    for step in (2, 7):
        with pytest.raises(Interrupted, match=f"stopped and saved after step {step} of 10") as stop:
            pretrain(store, run, tiny, progress=False)
        assert stop.value.signum == signum
    assert not (run / "model").exists()
    assert pretrain(store, run, tiny, progress=False)
    assert_same_run(finished, run)


DIES = """
    import os, signal, sys
    import torch
    from ecgfast.nn import EncoderConfig
    from ecgfast.objectives import W2VCMSCConfig
    from ecgfast.training import OptimConfig, PretrainConfig, pretrain
    from ecgfast.training.loop import Trainer
    from ecgfast.training.run_folder import RunFolder

    store, run, moment = sys.argv[1:]
    config = CONFIG

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    update, save = Trainer.update, torch.save

    def update_or_die(trainer, batches):
        if str(trainer.step) == moment:
            die()
        update(trainer, batches)

    def save_half(state, file):
        if state["step"] == 6:
            file.write(b"half")
            file.flush()
            die()
        save(state, file)

    if moment == "checkpoint":
        torch.save = save_half
    elif moment == "end":
        RunFolder.save_model = die
    else:
        Trainer.update = update_or_die
    pretrain(store, run, config, progress=False)
"""


@pytest.mark.parametrize("moment", [2, 8, "checkpoint", "end"])
def test_killed_run_goes_on(finished, store, tiny, tmp_path, moment):
    """kill -9 before the first checkpoint, between two, within one, and before the model."""
    run = tmp_path / "killed"
    script = textwrap.dedent(DIES).replace("CONFIG", repr(tiny))
    command = [sys.executable, "-c", script, store, run, str(moment)]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert pretrain(store, run, tiny, progress=False)
    assert_same_run(finished, run)
    assert not list(run.rglob("*.partial"))


def test_gradient_is_divided_by_all_masked_tokens(store, tiny):
    encoder = dataclasses.replace(tiny.model.encoder, dropout=0.0, attention_dropout=0.0, dropout_input=0.0)
    model = dataclasses.replace(tiny.model, encoder=encoder, dropout_features=0.0, n_masked=None)
    config = dataclasses.replace(tiny, model=model, accumulation=3)
    trainer = trainer_of(config, store)
    tokens = 0
    batches = trainer.batches()
    for _ in range(config.accumulation):
        losses = trainer.model(next(batches), trainer.rng)
        losses.total.backward()
        tokens += losses.size
    want = [p.grad / tokens for p in trainer.parameters]
    trainer.optimizer.zero_grad()

    seen = []
    trainer.optimizer.step = lambda: seen.extend(p.grad.clone() for p in trainer.parameters)
    trainer.update(trainer.batches())
    torch.testing.assert_close(seen, want)
    norm = torch.cat([g.flatten() for g in want]).norm().item()
    assert trainer.read_metrics()["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert trainer.rng.tolist() == [config.seed, 1]


def test_batches_go_on_from_any_step(store, tiny):
    config = dataclasses.replace(tiny, accumulation=2)
    trainer = trainer_of(config, store)
    batches = trainer.batches()
    ids = [next(batches).sample_ids for _ in range(8)]
    batches.close()
    trainer.step = 2
    batches = trainer.batches()
    assert_same([next(batches).sample_ids for _ in range(4)], ids[4:])
    batches.close()


def test_bf16_trains(store, tiny, tmp_path):
    config = dataclasses.replace(tiny, precision="bf16", max_steps=4)
    pretrain(store, tmp_path / "run", config, progress=False)
    assert len(read_metrics(tmp_path / "run/metrics.jsonl")) == 2
    state = torch.load(tmp_path / "run/checkpoint/state.pt", weights_only=True)
    assert all(p.dtype == torch.float32 for p in state["model"].values() if p.is_floating_point())


def test_lead_subset_trains(store, tiny, tmp_path):
    encoder = dataclasses.replace(tiny.model.encoder, leads=("V2", "I"), n_leads=2)
    model = dataclasses.replace(tiny.model, encoder=encoder)
    config = dataclasses.replace(tiny, model=model, max_steps=2)
    pretrain(store, tmp_path / "run", config, progress=False)
    assert Encoder.from_pretrained(tmp_path / "run/model").config.leads == ("V2", "I")


def test_lost_loss_stops_the_run(store, tiny, tmp_path):
    config = dataclasses.replace(tiny, optim=dataclasses.replace(tiny.optim, lr=1e30))
    with pytest.raises(EcgfastError, match=r"became .* in a new run folder"):
        pretrain(store, tmp_path / "run", config, progress=False)
    assert not (tmp_path / "run/model").exists()


@pytest.mark.parametrize("part", ["weights", "moments"])
def test_lost_weights_are_not_saved(store, tiny, tmp_path, monkeypatch, part):
    """They go bad after the last log point before a checkpoint, in the update that it would save."""
    update = Trainer.update

    def update_and_lose(self, batches):
        update(self, batches)
        if self.step == 6:
            weight = self.parameters[0]
            lost = weight if part == "weights" else self.optimizer.state[weight]["exp_avg_sq"]
            lost.detach().fill_(float("nan"))

    monkeypatch.setattr(Trainer, "update", update_and_lose)
    with pytest.raises(EcgfastError, match="the largest weight or moment became nan by step 6"):
        pretrain(store, tmp_path / "run", dataclasses.replace(tiny, log_every=100), progress=False)
    assert torch.load(tmp_path / "run/checkpoint/state.pt", weights_only=True)["step"] == 3


@pytest.fixture
def gloo():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_frozen_stem_trains_in_ddp(store, tiny, gloo):
    encoder = dataclasses.replace(tiny.model.encoder, feature_grad_mult=0.0)
    config = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, encoder=encoder))
    trainer = trainer_of(config, store, World(0, 2, torch.device("cpu")))
    assert isinstance(trainer.replica.forward, torch.nn.parallel.DistributedDataParallel)
    before = trainer.model.encoder.stem.convs[0].weight.clone()
    batches = trainer.batches()
    for _ in range(2):
        trainer.update(batches)
    batches.close()
    assert torch.equal(trainer.model.encoder.stem.convs[0].weight, before)
    assert trainer.largest() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "tpu"}, "device: got 'tpu'"),
        ({"device": "cuda:99"}, "device: got 'cuda:99'"),
        ({"batch_pairs": 100}, "fewer than one batch of 100"),
        ({"accumulation": 100, "epochs": 1}, "at least one update of 100 batches"),
        ({"segment_samples": 400}, "too short"),
        ({"segment_samples": 112}, "make 7 tokens; at least 8"),
        ({"model": {"n_masked": 21}}, "make 20 tokens; at least 21"),
        ({"optim": {"warmup_steps": -1}}, "optim.warmup_steps: got -1"),
    ],
)
def test_bad_settings_leave_nothing(store, tiny, tmp_path, changes, message):
    def start():
        parts = {k: dataclasses.replace(getattr(tiny, k), **v) for k, v in changes.items() if type(v) is dict}
        pretrain(store, tmp_path / "run", dataclasses.replace(tiny, **changes | parts), progress=False)

    with pytest.raises(EcgfastError, match=message):
        start()
    assert not (tmp_path / "run").exists()


def test_missing_store_leaves_nothing(tiny, tmp_path):
    with pytest.raises(EcgfastError, match="no such folder"):
        pretrain(tmp_path / "none", tmp_path / "run", tiny)
    assert not list(tmp_path.iterdir())


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


TELLS = """
    import hashlib, importlib, sys
    from pathlib import Path
    from ecgfast.nn import EncoderConfig
    from ecgfast.objectives import CMSCConfig, W2VCMSCConfig, W2VConfig
    from ecgfast.training import OptimConfig, PretrainConfig, pretrain

    module = importlib.import_module("ecgfast.training.pretrain")
    store, out = map(Path, sys.argv[1:])
    train = module.train

    def train_and_tell(trainer, *rest, **options):
        train(trainer, *rest, **options)
        digest = hashlib.sha256()
        for p in trainer.model.state_dict().values():
            digest.update(p.numpy().tobytes())
        ids = [i for batch in trainer.source.loader for i in batch.sample_ids.tolist()]
        (out / f"rank{trainer.world.rank}").write_text(f"{digest.hexdigest()} {ids}")

    module.train = train_and_tell
    pretrain(store, out / "run", CONFIG, progress=False)
"""


def train_with_two(config: PretrainConfig, store: Path, out: Path) -> None:
    """Two processes over gloo leave out/run, and out/rank0 and out/rank1 tell what they held."""
    script = out / "train.py"
    script.write_text(textwrap.dedent(TELLS).replace("CONFIG", repr(config)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    child = subprocess.run(
        [*command, script, store, out],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert child.returncode == 0, child.stderr


def test_global_batch_of_two_is_that_of_one(store, tiny, tmp_path):
    """Two processes with a pair each train like one with both, but for rounding."""
    encoder = dataclasses.replace(tiny.model.encoder, dropout=0.0, attention_dropout=0.0, dropout_input=0.0)
    # The diversity is that of each process's codes.
    model = dataclasses.replace(tiny.model, encoder=encoder, dropout_features=0.0, diversity_weight=0.0)
    # A large eps: Adam would make a rounding error of a small gradient a whole step.
    optim = dataclasses.replace(tiny.optim, lr=1e-2, eps=1e-2)
    held = {"validation_fraction": 0.3, "validate_every": 1}
    one = dataclasses.replace(tiny, model=model, optim=optim, max_steps=3, log_every=1, **held)
    two = dataclasses.replace(one, batch_pairs=1, global_batch=True)
    train_with_two(two, store, tmp_path)
    pretrain(store, tmp_path / "one", one, progress=False)
    runs = [tmp_path / name for name in ("run", "one")]
    points = [read_metrics(run / "metrics.jsonl") for run in runs]
    for name in ("loss", "global", "grad_norm", "validation_loss", "validation_global"):
        told = [[point[name] for point in some] for some in points]
        assert told[0] == pytest.approx(told[1], rel=1e-4), name
    weights = [torch.load(run / "checkpoint/state.pt", weights_only=True)["model"] for run in runs]
    torch.testing.assert_close(*map(dict, weights), rtol=1e-4, atol=1e-5)


def test_two_processes_hold_the_same_model(store, tiny, tmp_path):
    """DDP over gloo: the ranks see different data, end with the same weights, and resume."""
    config = dataclasses.replace(tiny, accumulation=2, batch_pairs=1, max_steps=5)
    train_with_two(config, store, tmp_path)
    told = [(tmp_path / f"rank{rank}").read_text().split(" ", 1) for rank in (0, 1)]
    assert told[0][0] == told[1][0]
    ids = [set(json.loads(text)) for _, text in told]
    assert ids[0]
    assert not ids[0] & ids[1]
    points = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [point["step"] for point in points] == [1, 4, 5]
    state = torch.load(tmp_path / "run/checkpoint/state.pt", weights_only=True)
    assert len(state["ranks"]) == 2
    assert not torch.equal(state["ranks"][0]["torch"], state["ranks"][1]["torch"])
    with pytest.raises(EcgfastError, match=r"world_size = 2 \(now 1\)"):
        pretrain(store, tmp_path / "run", config, progress=False)


@pytest.mark.cuda
def test_update_never_waits_for_the_device(store, tiny):
    world = World(0, 1, torch.device("cuda", 0))
    config = dataclasses.replace(tiny, device="cuda", accumulation=2)
    trainer = trainer_of(config, store, world)
    batches = trainer.batches()
    trainer.update(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer.update(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    batches.close()
