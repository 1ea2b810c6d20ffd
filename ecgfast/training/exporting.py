"""The model of a run that is not finished."""

from pathlib import Path

import torch

from ecgfast.errors import EcgfastError
from ecgfast.nn.pretrained import check_new_folder, load_tensors
from ecgfast.objectives.registry import DEFAULT, objective_class
from ecgfast.training.config import model_config
from ecgfast.training.run_folder import RunFolder


def export(run: Path | str, out: Path | str) -> int:
    """Write the model of a run's last checkpoint, while the run trains, or after it was stopped.

    Args:
        run: folder of `pretrain`.
        out: new or empty folder for `model.safetensors` and `config.json`, as `RUN/model` has them.

    Returns:
        The step of the checkpoint.

    Raises:
        EcgfastError: `run` is no run, has no checkpoint yet or a damaged one, or `out` holds something.
    """
    run, out = Path(run), Path(out)
    if not run.is_dir():
        raise EcgfastError(f"RUN: {str(run)!r}: no such folder")
    folder = RunFolder(run)
    description = folder.read_description()
    if (task := description.get("task", "pretrain")) != "pretrain":
        raise EcgfastError(f"RUN: must be a run of ecgfast pretrain, got {str(run)!r} of {task}")
    check_new_folder("OUT", out)
    state = folder.load_state()
    if state is None:
        if folder.finished:
            raise EcgfastError(f"RUN: {str(run)!r} has no checkpoint any more; its model is {folder.model}")
        every = description["config"].get("checkpoint_every")
        raise EcgfastError(
            f"RUN: {str(run)!r} has no checkpoint yet; it writes one every {every} steps "
            "(--checkpoint-every) and when Ctrl-C stops it"
        )
    objective = description["config"].get("objective", DEFAULT)
    try:
        kind = objective_class(objective)
    except EcgfastError as error:
        raise EcgfastError(f"{folder.config}: {error}") from None
    config = model_config(objective, description["config"].get("model"), f"{folder.config}: model")
    with torch.device("meta"):
        model = kind(config)
    if not isinstance(state.get("model"), dict):
        raise EcgfastError(f"{folder.state}: holds no model")
    load_tensors(model, state["model"], folder.state)
    model.preprocessing = description.get("preprocessing")
    origin = {"run": str(run), "step": state["step"]}
    model.eval().save_pretrained(out, origin=origin)
    return state["step"]
