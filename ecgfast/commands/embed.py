"""`ecgfast embed`: a store's embeddings by any model."""

from pathlib import Path
from typing import Annotated, Literal

from ecgfast.commands.arguments import Argument, value
from ecgfast.errors import EcgfastError


def embed(
    store: Argument[Path],
    model: Argument[str],
    out: Argument[Path],
    pooling: Literal["mean", "none"] = "mean",
    leads: tuple[str, ...] = (),
    records: tuple[str, ...] = (),
    segment_samples: Annotated[int | None, value("INT")] = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    batch_size: str = "auto",
    seed: int = 0,
    like: Annotated[str | None, value("MODEL")] = None,
    preset: Annotated[str | None, value("NAME")] = None,
    device: str = "auto",
) -> None:
    """Write an embedding of each recording of a store.

    The same command takes a stopped one up again. Recordings longer than a segment are encoded window by
    window; leads that are absent count as zero, and cost nothing.

    Args:
        store: Folder written by `ecgfast prepare`.
        model: Model folder, run of `ecgfast pretrain` or `finetune`, official checkpoint (.pt), or random.
        out: .npy (rows in the order of the store, or of --records) or .parquet (record_id, patient_id,
            embedding or tokens).
        pooling: mean over the tokens and windows of a recording, or none: every token.
        leads: Leads to use, of the model's; none: all of them.
        records: Ids of the recordings; none: all.
        segment_samples: Samples of a window at 500 Hz; by default the model's.
        precision: bf16 is faster where the hardware has it.
        batch_size: Windows at a time; auto: as many as fit.
        seed: Of the weights of random.
        like: Model whose architecture random has.
        preset: Preset of pre-training whose encoder random is: demo, small or paper.
        device: auto (CUDA where there is one), cpu, cuda or cuda:N.
    """
    from ecgfast.embedding import open_model, write_embeddings

    shape = write_embeddings(
        store,
        open_model(model, seed=seed, like=like, preset=preset),
        out,
        pooling=pooling,
        leads=leads or None,
        records=records,
        segment_samples=segment_samples,
        precision=precision,
        batch_size=read_batch_size(batch_size),
        device=device,
    )
    print(f"{out}: {' x '.join(f'{n:,}' for n in shape)}")


def read_batch_size(text: str) -> int | None:
    """The value of --batch-size; None: auto."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise EcgfastError(f"batch_size: must be auto or a whole number of 1 or more, got {text!r}")
    return int(text)
