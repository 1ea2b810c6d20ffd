"""`ecgfast predict`: what a fine-tuned model says of a store's recordings."""

from pathlib import Path

from ecgfast.commands.arguments import Argument, count


def predict(
    store: Argument[Path],
    model: Argument[Path],
    out: Argument[Path],
    leads: tuple[str, ...] = (),
    batch_size: int = 64,
    device: str = "auto",
) -> None:
    """Write a fine-tuned model's predictions for a store, a row for each recording.

    Recordings longer than the model's segment are averaged over their windows.

    Args:
        store: Folder written by `ecgfast prepare`.
        model: Run of `ecgfast finetune`, or its model folder.
        out: Table to write, .parquet or .csv: record_id, patient_id, and a column for each class (its
            probability) or quantity.
        leads: Leads to use, of the model's; none: all of them.
        batch_size: Windows at a time.
        device: auto (CUDA where there is one), cpu, cuda or cuda:N.
    """
    from ecgfast.finetuning import write_predictions

    n = write_predictions(store, model, out, leads=leads or None, batch_size=batch_size, device=device)
    print(f"{out}: {count(n, 'recording')}")
