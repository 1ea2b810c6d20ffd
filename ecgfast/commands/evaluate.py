"""`ecgfast evaluate`: how good a model is on a store, at any sets of leads."""

from pathlib import Path
from typing import Annotated, Literal

from ecgfast.commands.arguments import Argument, File, value
from ecgfast.commands.embed import read_batch_size


def evaluate(
    store: Argument[Path],
    model: Argument[str],
    out: Argument[Path],
    protocol: Annotated[str | None, value("NAME")] = None,
    labels: File = None,
    target: Annotated[str | None, value("NAME")] = None,
    classes: tuple[str, ...] = (),
    leads: tuple[str, ...] = (),
    probes: tuple[Literal["linear", "knn"], ...] = ("linear", "knn"),
    label_shares: tuple[float, ...] = (),
    random: bool = True,
    seed: int = 0,
    validation_folds: tuple[int, ...] = (),
    test_folds: tuple[int, ...] = (),
    weights: File = None,
    draws: Annotated[int | None, value("INT")] = None,
    segment_samples: Annotated[int | None, value("INT")] = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    batch_size: str = "auto",
    device: str = "auto",
) -> None:
    """Score a model on a store's test part, beside probes on its embeddings and on a random encoder's.

    OUT gets report.json, report.md, scores.npz and figures. The same command takes a stopped evaluation up
    again, and says so where there is nothing to do.

    Args:
        store: Folder written by `ecgfast prepare`.
        model: Run of `ecgfast finetune` or `pretrain`, model folder, or official checkpoint (.pt).
        out: New or empty folder.
        protocol: Preset with its classes, parts and intervals: helme:super, ai4health, ecg-fix:super, merl,
            cinc2021, oh2022, oh2022-official, id-gallery-probe.
        labels: CSV table of your own with record_id or patient_id and columns of labels or numbers.
        target: labels (of the store, or all columns of the table), age, or a column of the table; by default
            what a fine-tuned model tells, else labels.
        classes: Labels that count; none: all.
        leads: Sets of leads: all (12, 6, 4, 3, 2 and 1), any of these, or leads with commas (I,II); none: the
            protocol's, else all.
        probes: What is learnt on the embeddings.
        label_shares: Shares of the training labels that probes are given (0.01 0.1 1).
        random: Tell the encoder with random weights beside.
        seed: Of the random encoder, and of parts that are drawn.
        validation_folds: Folds of the source to choose by; none: those of the protocol, or of the model's
            run, or the last but one, or a tenth of the patients.
        test_folds: Folds of the source to test on; all others train.
        weights: weights.csv of the CinC-2021 challenge score.
        draws: Draws of the confidence intervals; by default the protocol's, or 1,000; 0: none.
        segment_samples: Samples of a window at 500 Hz; by default the protocol's, or the model's.
        precision: bf16 is faster where the hardware has it.
        batch_size: Windows at a time; auto: as many as fit.
        device: auto (CUDA where there is one), cpu, cuda or cuda:N.
    """
    from ecgfast import assessment

    config = assessment.EvaluationConfig(
        protocol=protocol,
        labels=labels,
        target=target,
        classes=classes,
        leads=leads,
        probes=probes,
        label_shares=label_shares,
        random=random,
        seed=seed,
        validation_folds=validation_folds,
        test_folds=test_folds,
        weights=weights,
        draws=draws,
        segment_samples=segment_samples,
        precision=precision,
        batch_size=read_batch_size(batch_size),
        device=device,
    )
    if not assessment.evaluate(store, model, out, config):
        print(f"{out}: nothing to do, the evaluation is finished")
    print(assessment.summarize(out), end="")
    print(f"\n{out}: report.md, report.json, scores.npz, {assessment.figures_in(out)}")
