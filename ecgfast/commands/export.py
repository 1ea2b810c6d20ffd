"""`ecgfast export`: the model of a run that is not finished."""

from pathlib import Path

from ecgfast.commands.arguments import Argument


def export(
    run: Argument[Path],
    out: Argument[Path],
) -> None:
    """Write the model of a run, also while it trains.

    Of pre-training it is that of the last checkpoint; of fine-tuning the best by validation until then.

    Args:
        run: Folder of `ecgfast pretrain` or `ecgfast finetune`.
        out: New or empty folder for model.safetensors and config.json.
    """
    from ecgfast import finetuning, training
    from ecgfast.finetuning.config import TASK
    from ecgfast.training.run_folder import RunFolder

    fine_tuned = run.is_dir() and RunFolder(run).read_description().get("task") == TASK
    step = (finetuning if fine_tuned else training).export(run, out)
    print(f"{out}: model.safetensors, config.json of step {step}")
