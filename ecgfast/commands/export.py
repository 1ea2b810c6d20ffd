"""`ecgfast export`: the model of a run that is not finished."""

from pathlib import Path

from ecgfast.commands.arguments import Argument


def export(
    run: Argument[Path],
    out: Argument[Path],
) -> None:
    """Write the model of a run's last checkpoint, also while it trains.

    Args:
        run: Folder of `ecgfast pretrain`.
        out: New or empty folder for model.safetensors and config.json.
    """
    from ecgfast import training

    step = training.export(run, out)
    print(f"{out}: model.safetensors, config.json of step {step}")
