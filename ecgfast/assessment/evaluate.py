"""Evaluation of a model on a store at several sets of leads."""

import dataclasses
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecgfast._version import __version__
from ecgfast.assessment.config import EvaluationConfig
from ecgfast.assessment.figures import draw_figures
from ecgfast.assessment.folder import claimed
from ecgfast.assessment.lead_sets import LeadSet, choose_lead_sets
from ecgfast.assessment.leakage import check_unseen, division_of_run
from ecgfast.assessment.probes import Parts, probe
from ecgfast.assessment.reports import markdown
from ecgfast.assessment.results import (
    EMBEDDING,
    LINEAR,
    MODEL,
    OWN,
    RANDOM,
    Result,
    leads_name,
    read_results,
    write_arrays,
    write_json,
    write_results,
)
from ecgfast.assessment.task import (
    LABELS,
    Task,
    choose_division,
    identities_task,
    labels_task,
    protocol_task,
)
from ecgfast.data import Store
from ecgfast.embedding import (
    OpenedModel,
    Windows,
    cover_recordings,
    embed_windows,
    mean_over_units,
    open_model,
    random_model,
    with_a_lead,
)
from ecgfast.errors import EcgfastError
from ecgfast.evaluation import (
    Bootstrap,
    ChallengeWeights,
    classification_report,
    compare_classifiers,
    find_protocol,
    identification_report,
    regression_report,
    take_share,
    tune_thresholds,
)
from ecgfast.files import write_atomically
from ecgfast.finetuning import Classifier
from ecgfast.nn.pretrained import file_digest

FORMAT, VERSION = "ecgfast-evaluation", 1
CLASSIFIER = "ecgfast_classifier"


def evaluate(
    store: Path | str,
    model: Path | str,
    out: Path | str,
    config: EvaluationConfig | None = None,
    *,
    progress: bool = True,
) -> bool:
    """Score a model on a store's test part, at each set of leads, and leave a report in the folder `out`.

    A fine-tuned model's own scores, with thresholds tuned on validation, stand beside those of probes on its
    encoder's embeddings, and beside the same probes on an encoder of the same architecture with random
    weights. Every recording is encoded once for each set of leads and encoder, which `out` keeps: an
    evaluation that was stopped or killed goes on when it is called again, and ends with the same numbers.

    Args:
        store: Folder written by `ecgfast prepare`.
        model: Model folder, run of pre-training or fine-tuning, or official checkpoint.
        out: New or empty folder, or that of an evaluation with the same arguments. It gets `report.json`,
            `report.md`, `scores.npz`, `heatmap.png`, `roc.png` and `reliability.png`, as the task has them.
        config: What to score by; None: a fine-tuned model's own targets, else the store's labels.
        progress: Show on stderr how far it is.

    Returns:
        False if the evaluation was finished before, True otherwise.

    Raises:
        EcgfastError: a store, model or table that can't be evaluated; a patient in two parts; a model that
            was fine-tuned on patients of the test part; `out` is something else or of other arguments.

    Warns:
        UserWarning: the store was made otherwise than that of the training; recordings are left out.
    """
    config = EvaluationConfig() if config is None else config
    found = _Evaluation(Path(store), model, Path(out), config, progress=progress)
    return found.run()


class _Evaluation:
    """An evaluation on its way."""

    def __init__(
        self, store: Path, model: Path | str, out: Path, config: EvaluationConfig, *, progress: bool
    ) -> None:
        self.config, self.out, self.progress = config, out, progress
        self.store = Store(store)
        self.model = open_model(model)
        self.classifier = (
            Classifier.from_pretrained(self.model.folder)
            if self.model.kind == CLASSIFIER and self.model.folder is not None
            else None
        )
        self.told = self.model.warn_of_preprocessing(self.store)
        if self.model.preprocessing is None:
            self.told.append("the model does not tell how its training data were made")
        self.task = self._choose_task()
        self.told += check_unseen(
            self.model.run_folder,
            self.model.run,
            self.store,
            self.task,
            classifier=self.classifier is not None,
        )
        own = self.classifier.config.leads if self.classifier else self.model.encoder.config.leads
        recordings = np.unique(self.task.recording[self.task.used])
        self.lead_sets, told = choose_lead_sets(
            config.leads, self.task.lead_sets or ("all",), own, self.store, recordings
        )
        self.told += told
        self.outputs_own = self._own_columns()
        self.segment_samples = (
            config.segment_samples or self.task.segment_samples or self.model.segment_samples
        )
        if self.segment_samples != self.model.segment_samples:
            self.told.append(
                f"windows have {self.segment_samples} samples, those of the model's training "
                f"{self.model.segment_samples}"
            )
        self.random = random_model(self.model, config.seed) if config.random else None
        self.shares = config.label_shares or self.task.label_shares

    def run(self) -> bool:
        """Do what is left to do; False: nothing."""
        identity = self._identity()
        with claimed(self.out, identity):
            if (self.out / "report.json").is_file():
                return False
            parts = self.out / "parts"
            parts.mkdir(exist_ok=True)
            found = []
            for number, one in enumerate(self.lead_sets, 1):
                if (kept := read_results(parts, one.name)) is None:
                    self._say(f"{leads_name(one.name)} ({number} of {len(self.lead_sets)})")
                    results, units, extra = self._at(one)
                    write_results(parts, one.name, results, units, extra)
                    kept = read_results(parts, one.name)
                    assert kept is not None  # it was written just now
                found.append(kept)
            self._report(found)
        return True

    def _say(self, text: str) -> None:
        if self.progress:
            print(text, file=sys.stderr, flush=True)

    def _choose_task(self) -> Task:
        config = self._completed()
        weights = None if config.weights is None else ChallengeWeights.read(config.weights)
        of_run = division_of_run(self.model.run_folder, self.model.run, self.store)
        asked = bool(config.validation_folds or config.test_folds)
        division: Any = of_run
        if asked or of_run is None:
            division = choose_division(self.store, config.validation_folds, config.test_folds, config.seed)
        own = division if asked or of_run is not None else None
        if config.protocol is None:
            target, classes = self._target(config)
            task = labels_task(
                self.store, target, division, table=config.labels, classes=classes, weights=weights
            )
        elif find_protocol(config.protocol).task == "identification" and of_run is not None and not asked:
            settings = self.model.run["config"] if self.model.run else {}
            tested = of_run.split(self.store.index).test
            task = identities_task(self.store, tested, self.model.segment_samples, settings.get("seed", 0))
        else:
            task = protocol_task(
                self.store, config.protocol, own, weights, classifier=self.classifier is not None
            )
        if config.draws is not None:
            task = dataclasses.replace(
                task, bootstrap=dataclasses.replace(task.bootstrap, draws=config.draws)
            )
        self.told += task.told
        if task.kind != "identification" and not len(task.validation):
            self.told.append("no validation part: probes take middle settings, and no threshold is tuned")
        return task

    def _completed(self) -> EvaluationConfig:
        """The configuration; where it names no target, that of the model's fine-tuning."""
        config = self.config
        named = config.protocol or config.labels or config.target or config.classes
        if named or self.classifier is None:
            return config
        settings = (self.model.run or {}).get("config", {})
        protocol = settings.get("protocol")
        if self.classifier.config.task == "identification":
            protocol = protocol or "id-gallery-probe"
        if protocol:
            return dataclasses.replace(config, protocol=protocol)
        if table := settings.get("labels"):
            if not Path(table).is_file():
                raise EcgfastError(f"labels: must be given (--labels FILE), the run's {table!r} is not there")
            columns = settings.get("label_columns") or ()
            target = columns[0] if len(columns) == 1 else None
            return dataclasses.replace(config, labels=Path(table), target=target)
        return config

    def _target(self, config: EvaluationConfig) -> tuple[str, tuple[str, ...]]:
        """The target, and the classes that count: by default what a fine-tuned model tells."""
        if self.classifier is None or config.target is not None or config.classes:
            return config.target or LABELS, config.classes
        names = self.classifier.config.names
        if self.classifier.config.task == "regression":
            return names[0], ()
        return LABELS, names if config.labels is None else ()

    def _own_columns(self) -> list[int] | None:
        """Which of a classifier's outputs are the task's classes; None: it does not tell them."""
        if self.classifier is None or self.task.kind == "identification":
            return None
        described = self.classifier.config
        lacking = [name for name in self.task.names if name not in described.names]
        if described.task != self.task.kind or lacking:
            what = f"no output for {', '.join(lacking[:3])}" if lacking else f"outputs of {described.task}"
            self.told.append(f"left out: the model's own scores, as it has {what}")
            return None
        return [described.names.index(name) for name in self.task.names]

    def _identity(self) -> dict[str, Any]:
        config = dataclasses.asdict(self.config)
        for name in ("labels", "weights"):
            if config[name] is not None:
                config[name] = {"path": str(config[name]), "sha256": file_digest(config[name])}
        identity = {
            "format": FORMAT,
            "version": VERSION,
            "ecgfast_version": __version__,
            "store": {
                "path": str(self.store.path),
                "index_sha256": file_digest(self.store.path / "index.parquet"),
            },
            "model": {"path": self.model.name, "sha256": self.model.digest},
            "config": config,
        }
        return json.loads(json.dumps(identity, default=str))

    def _at(self, one: LeadSet) -> tuple[list[Result], np.ndarray, dict[str, Any]]:
        """The results at a set of leads, the test's units that have them, and what is told of the set."""
        has = with_a_lead(self.store, one.leads)
        parts = {
            name: part[has[self.task.recording[part]]]
            for name, part in (
                ("train", self.task.train),
                ("validation", self.task.validation),
                ("test", self.task.test),
            )
        }
        if not len(parts["test"]):
            raise EcgfastError(f"leads: must be of the test part's recordings, which have none of {one.name}")
        used = np.sort(np.concatenate(list(parts.values())))
        windows = self._windows(used)
        results: list[Result] = []
        models = [(MODEL, self.model), *([(RANDOM, self.random)] if self.random else [])]
        for encoder, model in models:
            rows = self._encode(encoder, model, one, windows)
            results += self._methods(encoder, one, rows, windows, used, parts)
        sizes = {name: len(part) for name, part in parts.items()}
        extra = {
            "leads": one.name,
            "lead_names": list(one.leads),
            "sizes": sizes,
            "versus_random": self._versus_random(results, parts["test"]),
        }
        return results, parts["test"], extra

    def _windows(self, used: np.ndarray) -> Windows:
        shortest = 1 << self.model.encoder.config.stem_layers
        recording = self.task.recording[used]
        if self.task.start is None:
            return cover_recordings(self.store, recording, self.segment_samples, shortest)
        length = np.full(len(used), self.segment_samples)
        return Windows(np.arange(len(used)), recording, self.task.start[used], length)

    def _encode(self, encoder: str, model: OpenedModel, one: LeadSet, windows: Windows) -> np.ndarray:
        """The pooled windows, float32 [w, E]: from the folder, as far as they are there."""
        return embed_windows(
            self.store,
            model.encoder,
            windows,
            leads=one.leads,
            segment_samples=self.segment_samples,
            precision=self.config.precision,
            batch_size=self.config.batch_size,
            device=self.config.device,
            progress=self.progress,
            keep=self.out / "embeddings" / f"{encoder}-{one.name}",
            identity={"model": model.digest},
        )

    def _methods(
        self,
        encoder: str,
        one: LeadSet,
        rows: np.ndarray,
        windows: Windows,
        used: np.ndarray,
        parts: dict[str, np.ndarray],
    ) -> Iterator[Result]:
        embeddings = mean_over_units(rows, windows.unit)
        at = {name: np.searchsorted(used, part) for name, part in parts.items()}
        if self.task.kind == "identification":
            yield self._identified(encoder, one, embeddings, parts["test"])
            return
        if encoder == MODEL and self.outputs_own is not None:
            outputs = mean_over_units(self._own_outputs(rows), windows.unit)
            told = [outputs[at[name]] for name in ("validation", "test")]
            yield self._scored((one.name, MODEL, OWN, 1.0), *told, parts, {}, ())
        recordings = self.task.recording
        for share in self.shares:
            train = parts["train"]
            if share < 1:
                if self.task.start is not None:
                    raise EcgfastError("label_shares: must be 1 for a protocol of segments")
                taken = take_share(self.store.index, recordings[train], share, seed=self.config.seed)
                train = train[np.isin(recordings[train], taken)]
            given = Parts(
                embeddings[np.searchsorted(used, train)],
                self.task.targets[train],
                embeddings[at["validation"]],
                self.task.targets[parts["validation"]],
                embeddings[at["test"]],
            )
            for kind in self.config.probes:
                grid = "ecg-fix" if self.task.name.startswith("ecg-fix") else ""
                found = probe(
                    kind,
                    given,
                    self.task.names,
                    classification=self.task.kind == "classification",
                    grid=grid,
                )
                where = (one.name, encoder, kind, share)
                yield self._scored(where, found.validation, found.test, parts, found.chosen, found.told)

    def _own_outputs(self, rows: np.ndarray) -> np.ndarray:
        """The classifier's outputs of pooled windows, for the task's classes: [w, K]."""
        assert self.classifier is not None  # it has columns
        assert self.outputs_own is not None
        classifier = self.classifier.cpu().eval()
        with torch.inference_mode():
            outputs = classifier.outputs(classifier.head(torch.from_numpy(rows)))
        return outputs.numpy()[:, self.outputs_own]

    def _scored(
        self,
        where: tuple[str, str, str, float],
        validation: np.ndarray,
        test: np.ndarray,
        parts: dict[str, np.ndarray],
        chosen: dict[str, Any],
        told: Sequence[str],
    ) -> Result:
        truth = self.task.targets[parts["test"]]
        patients = self._patients(parts["test"])
        if self.task.kind == "regression":
            report = regression_report(
                truth[:, 0], test[:, 0], patients=patients, bootstrap=self.task.bootstrap
            )
            return Result(*where, report.as_dict(), chosen, tuple(told), test)
        thresholds = None
        if len(parts["validation"]):
            thresholds = tune_thresholds(self.task.targets[parts["validation"]], validation)
        scores = classification_report(
            truth,
            test,
            self.task.names,
            patients=patients,
            thresholds=thresholds,
            weights=self.task.weights,
            bootstrap=self.task.bootstrap,
        )
        return Result(*where, scores.as_dict(), chosen, tuple(told), test)

    def _identified(self, encoder: str, one: LeadSet, embeddings: np.ndarray, test: np.ndarray) -> Result:
        gallery = test < self.task.n_gallery
        patients = self._patients(test)
        recordings = self.task.recording[test]
        report = identification_report(
            embeddings[gallery],
            patients[gallery],
            embeddings[~gallery],
            patients[~gallery],
            gallery_recordings=recordings[gallery],
            probe_recordings=recordings[~gallery],
        )
        return Result(one.name, encoder, EMBEDDING, 1.0, report.as_dict())

    def _patients(self, units: np.ndarray) -> np.ndarray:
        return self.store.patient_numbers()[self.task.recording[units]]

    def _versus_random(self, results: Sequence[Result], test: np.ndarray) -> list[dict[str, Any]]:
        """Of each method of the model, its difference to the same probe on the random encoder."""
        if self.task.kind != "classification" or self.task.bootstrap.draws == 0:
            return []
        # A p-value is 2 / (draws + 1) at least: some protocols draw too few for one.
        draws = self.config.draws or max(self.task.bootstrap.draws, Bootstrap().draws)
        bootstrap = dataclasses.replace(self.task.bootstrap, draws=draws)
        beside = {(r.probe, r.share): r for r in results if r.encoder == RANDOM}
        rows = []
        for result in results:
            probe_kind = LINEAR if result.probe == OWN else result.probe
            other = beside.get((probe_kind, result.share))
            if result.encoder == RANDOM or other is None:
                continue
            compared = compare_classifiers(
                self.task.targets[test],
                result.scores,
                other.scores,
                self.task.names,
                patients=self._patients(test),
                bootstrap=bootstrap,
            )
            rows.append(
                {
                    "method": result.method,
                    "against": other.method,
                    "auroc": dataclasses.asdict(compared.auroc),
                    "p_auroc": compared.p_auroc,
                    "auprc": dataclasses.asdict(compared.auprc),
                    "p_auprc": compared.p_auprc,
                }
            )
        return rows

    def _report(self, found: list[tuple[list[Result], np.ndarray, dict[str, Any]]]) -> None:
        results = [result for of_set, _, _ in found for result in of_set]
        records = self.store.index["record_id"].to_pylist()
        arrays: dict[str, np.ndarray] = {
            result.key: result.scores for result in results if result.scores is not None
        }
        for _, units, extra in found:
            arrays[f"units|{extra['leads']}"] = units
        arrays["targets"] = self.task.targets
        arrays["recording"] = self.task.recording
        arrays["patients"] = self.store.patient_numbers()[self.task.recording]
        tested = [records[i] for i in self.task.recording[self.task.test]]
        identity = self._identity()
        content = {
            **identity,
            "task": {
                "name": self.task.name,
                "kind": self.task.kind,
                "names": list(self.task.names),
                "bootstrap": dataclasses.asdict(self.task.bootstrap),
                "segment_samples": self.segment_samples,
                "n_test": len(tested),
            },
            "told": self.told,
            "lead_sets": [extra for _, _, extra in found],
            "results": [result.as_dict() for result in results],
        }
        write_atomically(self.out / "scores.npz", lambda path: write_arrays(path, arrays))
        try:
            draw_figures(self.out, content, results, arrays)
        except (OSError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            warnings.warn(f"{self.out}: a figure can't be drawn: {error!r}")
        text = markdown(content, results)
        write_atomically(self.out / "report.md", lambda path: path.write_text(text, encoding="utf-8"))
        write_json(self.out / "report.json", content)


def summarize(out: Path | str) -> str:
    """The table of a finished evaluation, for people.

    Raises:
        EcgfastError: there is none.
    """
    file = Path(out) / "report.md"
    if not file.is_file():
        raise EcgfastError(f"OUT: {str(out)!r} must be a finished evaluation, got none")
    return file.read_text(encoding="utf-8")


def figures_in(out: Path | str) -> str:
    """Names of the figures of a finished evaluation, for people."""
    return ", ".join(sorted(file.name for file in Path(out).glob("*.png")))
