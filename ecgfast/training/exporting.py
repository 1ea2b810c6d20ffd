"""The model of a run that is not finished."""

from pathlib import Path

import torch

from ecgfast.errors import EcgfastError
from ecgfast.nn.config import config_from_dict
from ecgfast.nn.pretrained import check_new_folder, load_tensors, write_model
from ecgfast.objectives import W2VCMSC, W2VCMSCConfig
from ecgfast.objectives.w2v_cmsc import MODEL_TYPE
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
    config = config_from_dict(W2VCMSCConfig, description["config"].get("model"), f"{folder.config}: model")
    with torch.device("meta"):
        model = W2VCMSC(config)
    if not isinstance(state.get("model"), dict):
        raise EcgfastError(f"{folder.state}: holds no model")
    load_tensors(model, state["model"], folder.state)
    origin = {"run": str(run), "step": state["step"]}
    write_model(out, MODEL_TYPE, config.to_dict(), model.eval(), origin=origin)
    return state["step"]
