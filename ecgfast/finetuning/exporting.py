"""The best model so far of a run of fine-tuning that is not finished."""

from pathlib import Path

import torch

from ecgfast.errors import EcgfastError
from ecgfast.finetuning.classifier import Classifier, ClassifierConfig
from ecgfast.finetuning.config import TASK
from ecgfast.nn.config import config_from_dict
from ecgfast.nn.pretrained import check_new_folder, load_tensors
from ecgfast.training.run_folder import RunFolder


def export(run: Path | str, out: Path | str) -> int:
    """Write the best model by validation of a run's last checkpoint, while it trains or after it was stopped.

    Args:
        run: folder of `finetune`.
        out: new or empty folder for `model.safetensors` and `config.json`, as `RUN/model` has them.

    Returns:
        The step at which the model was the best.

    Raises:
        EcgfastError: `run` is no such run, it has not validated before its last checkpoint or that is
            damaged, or `out` holds something.
    """
    folder, out = RunFolder(Path(run)), Path(out)
    description = folder.read_description()
    if (task := description.get("task")) != TASK:
        raise EcgfastError(f"RUN: must be a run of ecgfast finetune, got {str(run)!r} of {task}")
    check_new_folder("OUT", out)
    state = folder.load_state()
    best = {} if state is None else state.get("validation", {})
    if not best:
        raise EcgfastError(
            f"RUN: {str(run)!r} must have validated before its last checkpoint (--validate-every, "
            "--checkpoint-every), got no model yet"
        )
    if not isinstance(told := description.get("classifier"), dict):
        raise EcgfastError(
            f"RUN: must be of a version that tells of its classifier in {folder.config}, got an earlier "
            "one's; end the run to get its model"
        )
    with torch.device("meta"):
        model = Classifier(config_from_dict(ClassifierConfig, told, f"{folder.config}: classifier"))
    load_tensors(model, best["model"], folder.state)
    origin = {"run": str(run), "step": best["step"], "score": best["score"]}
    model.save_pretrained(out, origin=origin)
    return best["step"]
