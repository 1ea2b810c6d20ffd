"""The protocols that people compare by, as presets: classes, parts, thresholds, hyper-parameters, and their
source.

`find_protocol("helme:super")` gives one; `protocol.prepare(index)` applies it to a store's index and says
what it left out and why. A preset states what its authors do; where ours differs on purpose, `differs` says
how.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from ecgfast._suggest import did_you_mean
from ecgfast.errors import EcgfastError
from ecgfast.evaluation.bootstrap import Bootstrap
from ecgfast.evaluation.labels import LeftOut, MultiLabel, describe_left_out, store_labels
from ecgfast.evaluation.lead_sets import LEAD_SETS
from ecgfast.evaluation.ptbxl import TASKS, Statements
from ecgfast.evaluation.segments import ByIdentity, BySegment, IdentitySplit, SegmentSplit
from ecgfast.evaluation.splits import ByFolds, ByFoldsOrPatient, ByPatient, HoldOut, LastFolds, Split

CINC2021_CLASSES = (
    "164889003",
    "164890007",
    "6374002",
    "426627000",
    "733534002|164909002",
    "713427006|59118001",
    "270492004",
    "713426002",
    "39732003",
    "445118002",
    "164947007",
    "251146004",
    "111975006",
    "698252002",
    "426783006",
    "284470004|63593006",
    "10370003",
    "365413008",
    "427172004|17338001",
    "164917005",
    "47665007",
    "427393009",
    "426177001",
    "427084000",
    "164934002",
    "59931005",
)
"""The 26 classes of the challenge's `weights.csv`, in its order; SNOMED CT codes, equivalent ones joined."""

Division = ByFolds | HoldOut | LastFolds | ByPatient | ByFoldsOrPatient | BySegment | ByIdentity
"""How parts are made."""

_PAPER_SETS = ("12", "6", "3", "2", "1")


@dataclass(frozen=True)
class Recipe:
    """How something is trained under a protocol.

    Attributes:
        what: What is trained, for people.
        optimizer: Name of the optimiser.
        lr: Learning rate.
        weight_decay: Decoupled weight decay.
        batch_size: Segments or recordings.
        epochs: Passes over the training part.
        schedule: Of the learning rate.
        betas: Of Adam.
        eps: Of Adam.
        extra: All else, names and values; several values are a grid.
    """

    what: str
    optimizer: str
    lr: float | None = None
    weight_decay: float = 0.0
    batch_size: int | None = None
    epochs: int | None = None
    schedule: str = "constant"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    extra: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Protocol:
    """What is compared, on what, and how.

    Attributes:
        name: Of the preset, with its task: "helme:super".
        task: "multi-label" or "identification".
        labels: Where the classes come from: a task of PTB-XL (`ptbxl.TASKS`), "cinc2021", "store" (all labels
            that the store has), or "" for identification.
        division: How the parts are made.
        min_records: Classes that fewer recordings have are left out.
        keep_unlabelled: Recordings without a label of the task count, with every target 0.
        origins: Databases whose recordings count, each with the form of its record names; empty: all.
        segment_seconds: Length of a segment or crop, None where the model's own.
        unit: What is scored: "recording" (the mean of its windows) or "segment".
        threshold: From which score on a class is told in the challenge score; None: not part of the protocol.
        metrics: What is told.
        lead_sets: Names of `LEAD_SETS`.
        label_shares: Shares of the training labels that probes are given.
        recipes: How models are trained.
        bootstrap: How intervals are drawn.
        random_encoder: An untrained encoder is told beside.
        source: Paper and code.
        differs: What is done otherwise here, and why.
    """

    name: str
    task: str
    labels: str
    division: Division
    source: str
    metrics: tuple[str, ...]
    min_records: int = 1
    keep_unlabelled: bool = False
    origins: tuple[tuple[str, str], ...] = ()
    segment_seconds: float | None = None
    unit: str = "recording"
    threshold: float | None = None
    lead_sets: tuple[str, ...] = ("12",)
    label_shares: tuple[float, ...] = (1.0,)
    recipes: tuple[Recipe, ...] = ()
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    random_encoder: bool = True
    differs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if unknown := [name for name in self.lead_sets if name not in LEAD_SETS]:
            raise EcgfastError(f"lead_sets: must be of {', '.join(LEAD_SETS)}, got {unknown[0]!r}")

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Its classes in their order, where they are always the same; None where they are the store's."""
        if self.labels == "cinc2021":
            return CINC2021_CLASSES
        if self.labels in TASKS:
            return tuple(sorted(set(Statements.standard().classes_of(self.labels).values())))
        return None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self) | {"division": str(self.division), "classes": self.classes}

    def prepare(
        self, index: pa.Table, *, statements: Statements | None = None, division: Division | None = None
    ) -> "Prepared":
        """Apply the protocol to a store.

        Args:
            index: `Store.index`.
            statements: PTB-XL's, for its tasks; None: those of PTB-XL 1.0.3 (see `Statements.of_store`).
            division: Another than the protocol's, such as `LastFolds()` for a part of PTB-XL without folds 9
                and 10; it is told as a difference.

        Raises:
            EcgfastError: the store has none of the labels, folds or recordings that it takes, or a patient is
                in two parts.
        """
        if division is not None and division != self.division:
            told = f"parts are not the protocol's, which are: {self.division}"
            return replace(self, division=division, differs=(*self.differs, told)).prepare(
                index, statements=statements
            )
        recordings, left_out = self._of_origins(index)
        targets = None
        if self.task == "multi-label":
            statements = statements or Statements.standard()
            targets = self._targets(index.take(recordings), statements)
            left_out |= targets.left_out | self._classless(index, statements)
            recordings = recordings[targets.recordings]
            targets = replace(targets, recordings=recordings, left_out={})
        parts = self.division.split(index, recordings)
        left_out |= parts.left_out
        kept = {reason: ids for reason, ids in left_out.items() if ids}
        told = [f"{self.name}: {self.source}", f"parts: {self.division}", *self._sizes(parts)]
        if self.labels in TASKS:
            told.append(f"statements of {statements.source}")
        if targets is not None:
            told.append(f"{len(targets.classes)} classes")
        told += [*describe_left_out(kept), *_without_positives(targets, parts), *self.differs]
        return Prepared(self, targets, parts, kept, tuple(told))

    def _of_origins(self, index: pa.Table) -> tuple[np.ndarray, LeftOut]:
        if not self.origins:
            return np.arange(index.num_rows), {}
        form = re.compile("|".join(form for _, form in self.origins))
        records = index["record_id"].to_pylist()
        wanted = np.array([bool(form.fullmatch(name.rpartition("/")[2])) for name in records])
        names = " and ".join(name for name, _ in self.origins)
        if not wanted.any():
            raise EcgfastError(
                f"store: must have recordings of {names} for {self.name}, got such as {records[0]}"
            )
        others = [records[i] for i in np.flatnonzero(~wanted)]
        return np.flatnonzero(wanted), {f"recordings of other databases than {names}": others}

    def _classless(self, index: pa.Table, statements: Statements) -> LeftOut:
        """Labels of the store that nothing is known of."""
        there = {label for labels in index["labels"].to_pylist() for label in labels}
        if self.labels == "cinc2021":
            return {"labels that the challenge does not score": sorted(there - set(_synonyms()))}
        if self.labels in TASKS:
            reason = f"labels that are no statement of {statements.source}"
            return {reason: sorted(there - set(statements.rows))}
        return {}

    def _targets(self, index: pa.Table, statements: Statements) -> MultiLabel:
        classes: Sequence[str] | None = None
        synonyms = None
        if self.labels == "cinc2021":
            classes = CINC2021_CLASSES
            synonyms = _synonyms()
        elif self.labels in TASKS:
            synonyms = statements.classes_of(self.labels)
            classes = sorted(set(synonyms.values()))
        targets = store_labels(
            index,
            classes,
            synonyms=synonyms,
            min_records=self.min_records,
            keep_unlabelled=self.keep_unlabelled,
            absent="leave out",
        )
        if self.labels != "cinc2021" or targets.classes == CINC2021_CLASSES:
            return targets
        # The challenge score takes all 26, also where no recording has one: outputs count.
        matrix = np.zeros((len(targets.matrix), len(CINC2021_CLASSES)), dtype=bool)
        matrix[:, [CINC2021_CLASSES.index(name) for name in targets.classes]] = targets.matrix
        left_out = {reason: ids for reason, ids in targets.left_out.items() if "classes" not in reason}
        return replace(targets, classes=CINC2021_CLASSES, matrix=matrix, left_out=left_out)

    def _sizes(self, parts: Split | SegmentSplit | IdentitySplit) -> list[str]:
        if isinstance(parts, Split):
            sizes = ", ".join(f"{part} {len(which):,}" for part, which in parts.parts().items())
            return [f"recordings: {sizes}"]
        if isinstance(parts, SegmentSplit):
            sizes = [len(part.recording) for part in (parts.train, parts.validation, parts.test)]
            shared = f"{len(parts.shared_patients):,} patients are in several parts, so results flatter"
            return ["segments: train {:,}, validation {:,}, test {:,}".format(*sizes), shared]
        chosen_by = 0 if parts.validation is None else len(parts.validation.patients)
        tested = 0 if parts.test is None else len(parts.test.patients)
        sizes = f"{chosen_by:,} for validation, {tested:,} to test on"
        return [f"{len(parts.train):,} recordings to train on; patients: {sizes}"]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A protocol applied to a store.

    Attributes:
        protocol: The protocol.
        targets: Of the recordings that count, in the store's numbers; None for identification. Rows of
            `targets.matrix` are those of `targets.recordings`: see `rows`.
        parts: For training, validation and test.
        left_out: Ids of what is left out, by the reason.
        told: What was done and left out, line by line, for people.
    """

    protocol: Protocol
    targets: MultiLabel | None
    parts: Split | SegmentSplit | IdentitySplit
    left_out: LeftOut
    told: tuple[str, ...]

    def rows(self, recordings: np.ndarray) -> np.ndarray:
        """The targets of some of its recordings, bool [n, C].

        Args:
            recordings: Numbers in the store, such as `parts.test`.

        Raises:
            EcgfastError: one has no targets.
        """
        if self.targets is None:
            raise EcgfastError(f"{self.protocol.name}: has no targets")
        known = self.targets.recordings
        at = np.minimum(np.searchsorted(known, recordings), len(known) - 1)
        if (odd := np.flatnonzero(known[at] != recordings)).size:
            raise EcgfastError(f"recordings: must have targets, got {np.asarray(recordings)[odd[0]]}")
        return self.targets.matrix[at]


def _synonyms() -> dict[str, str]:
    return {code: name for name in CINC2021_CLASSES for code in name.split("|")}


def _without_positives(targets: MultiLabel | None, parts: Split | SegmentSplit | IdentitySplit) -> list[str]:
    """Classes that a part has one value only of: known before anything is trained."""
    if targets is None or not isinstance(parts, Split):
        return []
    lines = []
    for name, recordings in parts.parts().items():
        rows = targets.matrix[np.isin(targets.recordings, recordings)]
        none = [c for c, k in zip(targets.classes, rows.sum(axis=0), strict=True) if k in (0, len(rows))]
        if none and len(rows):
            lines.append(f"{name}: {len(none)} classes have one value only: {', '.join(none)}")
    return lines


def find_protocol(name: str) -> Protocol:
    """A preset by its name, such as "cinc2021"; those for PTB-XL take a task, as in "helme:super".

    Args:
        name: Of `PROTOCOLS`; without a task its first one.

    Raises:
        EcgfastError: there is none of that name.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    first = next((known for known in PROTOCOLS if known.partition(":")[0] == name), None)
    if first is None:
        raise EcgfastError(
            f"protocol: must be of {', '.join(PROTOCOLS)}, got {name!r}{did_you_mean(name, PROTOCOLS)}"
        )
    return PROTOCOLS[first]


_PTBXL_FOLDS = ByFolds(train=tuple(range(1, 9)), validation=(9,), test=(10,))
_AREAS = ("macro_auroc",)
_AREAS_BOTH = ("macro_auroc", "macro_auprc")
_CHALLENGE = ("challenge", "macro_auroc", "macro_auprc", "macro_f1")

_HELME = Protocol(
    name="helme",
    task="multi-label",
    labels="all",
    division=_PTBXL_FOLDS,
    metrics=_AREAS,
    bootstrap=Bootstrap(draws=100, confidence=0.9),
    source="Strodthoff et al., IEEE JBHI 25:5 (2021), arXiv 2004.13701; "
    "github.com/helme/ecg_ptbxl_benchmarking",
    differs=(
        "intervals are of draws by patient; the authors draw records, and again where a class "
        "has no positive",
    ),
)
_AI4HEALTH = Protocol(
    name="ai4health",
    task="multi-label",
    labels="store",
    division=LastFolds(),
    metrics=_AREAS,
    min_records=10,
    segment_seconds=2.5,
    recipes=(
        Recipe("linear head on the mean over tokens", "AdamW", 1e-3, 1e-3, 64, 100),
        Recipe(
            "frozen encoder, 16-head attention with a learnable query",
            "AdamW",
            1e-3,
            1e-3,
            64,
            100,
            extra=(("heads", 16),),
        ),
        Recipe(
            "finetune",
            "AdamW",
            1e-3,
            1e-3,
            64,
            100,
            extra=(("lr_factor_head", 1.0), ("lr_factor_predictor", 0.1), ("lr_factor_encoder", 0.01)),
        ),
    ),
    source="AI4HealthUOL/ecg-fm-benchmarking: random crops in training, non-overlapping chunks with averaged "
    "sigmoids in the test, best epoch by validation macro AUROC",
)
_ECG_FIX = Protocol(
    name="ecg-fix",
    task="multi-label",
    labels="all",
    division=_PTBXL_FOLDS,
    metrics=(*_AREAS_BOTH, "p_auroc", "p_auprc"),
    label_shares=(0.01, 0.1, 1.0),
    recipes=(
        Recipe(
            "one-vs-rest logistic regression on frozen embeddings, chosen by validation log loss",
            "logistic regression",
            extra=(
                ("scaling", (False, True)),
                ("C", (0.01, 0.1, 1.0, 10.0)),
                ("class_weight", (None, "balanced")),
            ),
        ),
    ),
    source="ECG-FIX: frozen embeddings under one grid of logistic regressions, the random encoder beside",
)
_MERL = Protocol(
    name="merl",
    task="multi-label",
    labels="super",
    division=_PTBXL_FOLDS,
    metrics=_AREAS,
    label_shares=(0.01, 0.1, 1.0),
    recipes=(Recipe("linear probe", "Adam", 1e-3, 1e-4, 16, 100),),
    source="Liu et al., ICML 2024, arXiv 2403.06659; github.com/cheliu-computation/MERL-ICML2024",
    differs=("shares of the training labels are of whole patients, each within the next greater one",),
)
_OH2022 = Protocol(
    name="oh2022",
    task="multi-label",
    labels="cinc2021",
    division=ByPatient((0.8, 0.1, 0.1)),
    metrics=_CHALLENGE,
    keep_unlabelled=True,
    origins=(("CPSC2018", r"A\d{4}"), ("Georgia", r"E\d{5}")),
    segment_seconds=5.0,
    threshold=0.5,
    lead_sets=_PAPER_SETS,
    recipes=(
        Recipe(
            "finetune, convolutional stem frozen, linear head on the mean over tokens",
            "Adam",
            5e-5,
            0.0,
            128,
            100,
            betas=(0.9, 0.98),
            extra=(("activation_dropout", 0.1), ("loss", "BCE / entries"), ("head", "Xavier, bias 0")),
        ),
    ),
    source="Oh et al., CHIL 2022, arXiv 2203.06889; fairseq-signals 6b9e137, diagnosis.yaml",
    differs=("divided by patient and scored by recording; oh2022-official divides and scores segments",),
)
_CINC2021 = Protocol(
    name="cinc2021",
    task="multi-label",
    labels="cinc2021",
    division=ByFoldsOrPatient(ByPatient((0.8, 0.1, 0.1))),
    metrics=_CHALLENGE,
    keep_unlabelled=True,
    threshold=0.5,
    lead_sets=tuple(LEAD_SETS),
    source="Reyna et al., Computing in Cardiology 48 (2021); github.com/physionetchallenges/evaluation-2021",
    differs=("the challenge's own test set is not public: the store is divided instead",),
)
_IDENTITY = Protocol(
    name="id-gallery-probe",
    task="identification",
    labels="",
    division=ByIdentity(),
    metrics=("rank_1", "rank_5", "eer", "tar_at_far_1e_2", "tar_at_far_1e_3"),
    segment_seconds=5.0,
    lead_sets=_PAPER_SETS,
    recipes=(
        Recipe(
            "finetune, convolutional stem frozen, ArcFace on the mean over tokens",
            "Adam",
            3e-5,
            0.0,
            128,
            schedule="tri-stage 0.1/0.2/0.7, final 0.01",
            betas=(0.9, 0.98),
            extra=(("arcface_scale", 192.0), ("arcface_margin", 1.0)),
        ),
    ),
    source="Oh et al., CHIL 2022, arXiv 2203.06889; fairseq-signals 6b9e137, identification.yaml",
    differs=(
        "the patients tested on are never trained on, and unit embeddings are compared; the "
        "authors train on every recording as an identity and test on all PTB-XL patients with two recordings",
    ),
)


def _for_ptbxl(base: Protocol, tasks: Sequence[str]) -> list[Protocol]:
    return [replace(base, name=f"{base.name}:{task}", labels=task) for task in tasks]


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        *_for_ptbxl(_HELME, TASKS),
        _AI4HEALTH,
        *_for_ptbxl(_AI4HEALTH, TASKS),
        *_for_ptbxl(_ECG_FIX, TASKS),
        *_for_ptbxl(_MERL, ("super", "sub", "form", "rhythm")),
        _CINC2021,
        _OH2022,
        replace(
            _OH2022,
            name="oh2022-official",
            division=BySegment((0.8, 0.1, 0.1)),
            unit="segment",
            differs=(
                "as published: segments of a recording lie in training and test, each scored by itself",
            ),
        ),
        _IDENTITY,
    )
}
"""The presets by name."""
