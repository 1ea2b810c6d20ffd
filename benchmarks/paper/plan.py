"""What a comparison consists of: its sizes, its stores, and a command for each of its cells."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper.cells import Cell
from ecgfast.data import Store
from ecgfast.evaluation import LEAD_SETS as LEAD_SETS_BY_NAME
from ecgfast.evaluation import ByIdentity
from ecgfast.nn import Encoder, EncoderConfig
from ecgfast.objectives.registry import objective_config
from ecgfast.training import PretrainConfig
from ecgfast.training.config import OptimConfig

RANDOM, SCRATCH = "random", "scratch"
"""Baselines: the untrained encoder treated as the pre-trained ones are, and one with all weights trained."""
BY_LEAD = ("cmlc", "cmsmlc", "crlc")
"""Objectives that encode every lead alone."""
LEAD_SETS = ("12", "6", "3", "2", "1")
TRAIN_FOLDS, VALIDATION_FOLD, TEST_FOLD = (1, 2, 3, 4, 5, 6), 7, 8
MAIN = "ptbxl"


@dataclass(frozen=True)
class Preset:
    """The sizes of a comparison.

    Attributes:
        encoder: Of every model.
        updates: Of pre-training.
        batch_pairs: Pairs of segments of an update.
        by_lead: Updates and pairs of the objectives that encode every lead alone, of which a segment costs
            twelve: about the same time.
        optim: Of pre-training.
        model: Settings of objectives besides the encoder, where an objective has them.
        finetuning: Flags of `ecgfast finetune` for classes.
        identifying: The same for telling patients apart.
        stores: Further stores for pre-training, and their shares; the main one has the rest.
    """

    encoder: EncoderConfig
    updates: int
    batch_pairs: int
    by_lead: tuple[int, int]
    optim: OptimConfig
    model: dict[str, Any]
    finetuning: tuple[str, ...]
    identifying: tuple[str, ...]
    stores: dict[str, float] = field(default_factory=dict)


SMALL = Preset(
    encoder=EncoderConfig(
        stem_channels=64,
        stem_layers=5,
        width=96,
        layers=2,
        heads=4,
        ffn=256,
        conv_pos=32,
        conv_pos_groups=8,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        dropout_input=0.0,
        layer_drop=0.0,
        feature_grad_mult=1.0,
    ),
    updates=4000,
    batch_pairs=16,
    by_lead=(800, 8),
    optim=OptimConfig(lr=1e-3, warmup_steps=200, schedule="cosine"),
    model={"n_masked": 32, "entries": 64},
    finetuning=("--epochs", "12", "--batch-size", "32", "--optim.lr", "1e-3", "--optim.schedule", "cosine"),
    identifying=("--epochs", "40", "--batch-size", "32", "--optim.lr", "3e-4"),
    stores={"ludb": 0.08, "cinc": 0.04, "ecgid": 0.03},
)
"""Hours on two CPU cores: tokens of 32 samples, two layers, no dropout."""

PAPER = Preset(
    encoder=EncoderConfig(),
    updates=50_000,
    batch_pairs=64,
    by_lead=(50_000, 64),
    optim=OptimConfig(),
    model={},
    finetuning=("--epochs", "100", "--batch-size", "128", "--precision", "bf16"),
    identifying=("--epochs", "100", "--batch-size", "128", "--precision", "bf16"),
    stores=SMALL.stores,
)
"""The paper's model and settings, for GPUs."""

TINY = replace(
    SMALL,
    encoder=replace(SMALL.encoder, stem_channels=16, width=32, layers=1, ffn=32),
    updates=20,
    batch_pairs=4,
    by_lead=(20, 4),
    finetuning=("--max-steps", "10", "--batch-size", "16", "--validate-every", "10"),
    identifying=("--max-steps", "10", "--batch-size", "8", "--validate-every", "10"),
)
"""To see that everything runs."""

PRESETS = {"tiny": TINY, "small": SMALL, "paper": PAPER}

IDENTITY = "ecgid"
"""Store of the second task, patients told apart by lead I alone; those tested are in no training."""
CHALLENGE = "cinc"
"""Store of the challenge's records, which has some of PTB-XL, perhaps of the test fold."""
_OF_PTBXL = "HR"
TUNED_IDENTITY = "identify-tuned"
_FOLD_FLAGS = ("--validation-folds", str(VALIDATION_FOLD), "--test-folds", str(TEST_FOLD))
_IDENTITY_PARTS = ByIdentity()


@dataclass(frozen=True)
class Plan:
    """A comparison in the folder `out`.

    Attributes:
        out: Folder.
        data: Folder with `ptbxl_subset`, `ludb`, `cinc` and `ecgid`, or with PTB-XL as `ptbxl_subset`.
        preset: Sizes.
        objectives: Names.
        lead_sets: Names.
        seeds: Of weights, batches and draws.
    """

    out: Path
    data: Path
    preset: Preset
    objectives: Sequence[str]
    lead_sets: Sequence[str] = LEAD_SETS
    seeds: Sequence[int] = (0, 1, 2)

    @property
    def methods(self) -> tuple[str, ...]:
        """The objectives and the untrained baselines."""
        return (*self.objectives, RANDOM, SCRATCH)

    def store(self, name: str) -> Path:
        """A store's folder."""
        return self.out / "stores" / name

    def model(self, method: str, seed: int) -> Path:
        """What fine-tuning starts from."""
        if method in (RANDOM, SCRATCH):
            return self.out / "models" / f"{RANDOM}-seed{seed}"
        return self.out / "pretrain" / method / f"seed{seed}"

    def result(self, kind: str, method: str, seed: int, leads: str | None = None) -> Path:
        """The folder of an evaluation."""
        of_leads = [] if leads is None else [f"leads{leads}"]
        return self.out.joinpath(kind, method, f"seed{seed}", *of_leads)

    def preparation(self) -> list[Cell]:
        """Import the records."""
        sources = {MAIN: self.data / "ptbxl_subset"}
        sources |= {name: self._source(name) for name in self.preset.stores}
        return [
            Cell(f"prepare/{name}", ("prepare", str(source), str(self.store(name))))
            for name, source in sources.items()
        ]

    def _source(self, name: str) -> Path:
        """The records of a further store, without those that PTB-XL has too."""
        if name != CHALLENGE:
            return self.data / name
        folder = self.out / "sources" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted((self.data / name).iterdir()):
            if file.suffix in (".hea", ".mat") and not file.name.startswith(_OF_PTBXL):
                link = folder / file.name
                if not link.is_symlink():
                    link.symlink_to(file.resolve())
        return folder

    def divide_identities(self) -> Cell:
        """Write the part of the second task's records that pre-training may see, and its import."""
        index = Store(self.store(IDENTITY)).index
        parts = _IDENTITY_PARTS.split(index)
        assert parts.validation is not None
        held = {*parts.validation.patients, *parts.test.patients}
        folder = self.out / "sources" / f"{IDENTITY}-train"
        folder.mkdir(parents=True, exist_ok=True)
        for patient in sorted(set(index["patient_id"].to_pylist()) - held):
            link = folder / patient
            if not link.is_symlink():
                link.symlink_to((self.data / IDENTITY / patient).resolve())
        name = f"{IDENTITY}-train"
        return Cell(f"prepare/{name}", ("prepare", str(folder), str(self.store(name))))

    def write_inputs(self) -> None:
        """Write what the commands read: configurations of pre-training, and models with random weights."""
        folder = self.out / "configs"
        folder.mkdir(parents=True, exist_ok=True)
        for objective in self.objectives:
            for seed in self.seeds:
                config = self._pretraining(objective, seed)
                text = json.dumps(asdict(config), indent=1) + "\n"
                (folder / f"{objective}-seed{seed}.json").write_text(text, encoding="utf-8")
        for seed in self.seeds:
            folder = self.model(RANDOM, seed)
            if not folder.is_dir():
                torch.manual_seed(seed)
                Encoder(self.preset.encoder).save_pretrained(folder)

    def _pretraining(self, objective: str, seed: int) -> PretrainConfig:
        preset = self.preset
        model = objective_config(objective, "demo", preset.encoder)
        has = {entry.name for entry in fields(model)}
        own = {name: value for name, value in preset.model.items() if name in has}
        further = tuple(preset.stores.values())
        updates, pairs = preset.by_lead if objective in BY_LEAD else (preset.updates, preset.batch_pairs)
        return PretrainConfig(
            objective=objective,
            model=replace(model, **own),
            optim=preset.optim,
            batch_pairs=pairs,
            accumulation=1,
            epochs=10**6,
            max_steps=updates,
            seed=seed,
            log_every=100,
            checkpoint_every=500,
            offsets="random",
            store_weights=(1 - sum(further), *further) if further else (),
            train_folds=TRAIN_FOLDS,
            validation_folds=(VALIDATION_FOLD,),
            exclude_folds=(TEST_FOLD,),
            validate_every=max(1, updates // 10),
        )

    def cells(self) -> Iterator[Cell]:
        """Pre-training, fine-tuning and evaluation, seed by seed: a comparison of one seed is whole first."""
        for seed in self.seeds:
            for objective in self.objectives:
                yield self._pretrain(objective, seed)
            for method in self.methods:
                yield from self._downstream(method, seed)

    def _pretrain(self, objective: str, seed: int) -> Cell:
        names = [f"{name}-train" if name == IDENTITY else name for name in self.preset.stores]
        further = ("--also", *(str(self.store(name)) for name in names)) if names else ()
        config = str(self.out / "configs" / f"{objective}-seed{seed}.json")
        paths = (str(self.store(MAIN)), str(self.model(objective, seed)))
        name = f"pretrain/{objective}/seed{seed}"
        return Cell(name, ("pretrain", *paths, *further, "--config", config))

    def _downstream(self, method: str, seed: int) -> Iterator[Cell]:
        model = str(self.model(method, seed))
        trained = () if method in (RANDOM, SCRATCH) else (f"pretrain/{method}/seed{seed}",)
        main = str(self.store(MAIN))
        protocol = ("--protocol", "helme:super", *_FOLD_FLAGS)
        if method != SCRATCH:  # the same weights as the random encoder's
            out = str(self.result("probe", method, seed))
            flags = ("--leads", *self.lead_sets, "--probes", "linear", "--no-random", "--seed", str(seed))
            yield Cell(
                f"probe/{method}/seed{seed}", ("evaluate", main, model, out, *protocol, *flags), trained
            )
        freeze = "none" if method == SCRATCH else "stem"
        for leads in self.lead_sets:
            where = f"{method}/seed{seed}/leads{leads}"
            run = str(self.result("finetune", method, seed, leads))
            flags = ("--freeze", freeze, "--leads", *LEAD_SETS_BY_NAME[leads], "--seed", str(seed))
            command = ("finetune", main, model, run, *protocol, *flags, *self.preset.finetuning)
            yield Cell(f"finetune/{where}", command, trained)
            out = str(self.result("evaluate", method, seed, leads))
            flags = ("--leads", leads, "--no-random", "--probes")
            yield Cell(
                f"evaluate/{where}", ("evaluate", main, run, out, *protocol, *flags), (f"finetune/{where}",)
            )
        yield from self._identification(method, seed, freeze, trained)

    def _identification(
        self, method: str, seed: int, freeze: str, trained: tuple[str, ...]
    ) -> Iterator[Cell]:
        """The second task: by the encoder's own embeddings, and after fine-tuning with ArcFace."""
        model, store = str(self.model(method, seed)), str(self.store(IDENTITY))
        protocol = ("--protocol", "id-gallery-probe")
        flags = (*protocol, "--leads", "1", "--no-random")
        if method != SCRATCH:
            out = str(self.result("identify", method, seed))
            yield Cell(f"identify/{method}/seed{seed}", ("evaluate", store, model, out, *flags), trained)
        run, out = (str(self.result(kind, method, seed)) for kind in ("finetune-identity", TUNED_IDENTITY))
        how = ("--freeze", freeze, "--leads", "I", "--seed", str(seed), *self.preset.identifying)
        name = f"finetune-identity/{method}/seed{seed}"
        yield Cell(name, ("finetune", store, model, run, *protocol, *how), trained)
        yield Cell(f"{TUNED_IDENTITY}/{method}/seed{seed}", ("evaluate", store, run, out, *flags), (name,))
