"""Starting a pre-training from a model folder."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ecgfast.errors import EcgfastError
from ecgfast.nn import Encoder, EncoderConfig
from ecgfast.nn.config import config_from_dict
from ecgfast.nn.pretrained import PREPROCESSING, WEIGHTS, file_digest, load_tensors, read_model
from ecgfast.objectives.base import Objective, ObjectiveConfig

# What decides how an encoder trains, but not what it computes: a run's own.
_TRAINING = {
    *("dropout", "attention_dropout", "activation_dropout", "layer_drop"),
    *("feature_grad_mult", "dropout_input"),
}


def describe_init(folder: Path) -> dict[str, Any]:
    """The model folder that a run starts from, for the run's config.json.

    Raises:
        EcgfastError: it is no model folder.
    """
    if not (folder / WEIGHTS).is_file():
        raise EcgfastError(f"init: {str(folder)!r} is no model folder (no {WEIGHTS})")
    return {"path": str(folder), "sha256": file_digest(folder / WEIGHTS)}


def load_init(model: Objective, init: dict[str, Any]) -> None:
    """Give a model the weights of a folder: all of them, or of a model of another kind its encoder's alone.

    Args:
        model: in place.
        init: as `describe_init` returned it when the run began.

    Raises:
        EcgfastError: the folder is gone or another, or its model has other settings.
    """
    folder = Path(init["path"])
    if describe_init(folder)["sha256"] != init["sha256"]:
        raise EcgfastError(f"init: {str(folder)!r} is not the model that the run was started from")
    model_type, content, tensors, _ = read_model(folder)
    if model_type != model.model_type:
        try:
            encoder = Encoder.from_pretrained(folder)
        except EcgfastError as error:
            raise EcgfastError(f"init: {error}") from None
        _check_encoder(folder, encoder.config, model.config.encoder)
        load_tensors(model.encoder, encoder.state_dict(), folder, assign=False)
        return
    content.pop(PREPROCESSING, None)
    config = config_from_dict(type(model.config), content, f"{folder}/config.json")
    _check_encoder(folder, config.encoder, model.config.encoder)
    has, wants = asdict(config), asdict(model.config)
    changed = [name for name in has if name != "encoder" and has[name] != wants[name]]
    _refuse(folder, "model.", has, wants, _deciding(type(model), config, model.config, changed))
    load_tensors(model, tensors, folder, assign=False)


def _check_encoder(folder: Path, config: EncoderConfig, run: EncoderConfig) -> None:
    has, wants = asdict(config), asdict(run)
    different = [name for name in has if name not in _TRAINING and has[name] != wants[name]]
    _refuse(folder, "model.encoder.", has, wants, different)


def _deciding(
    kind: type[Objective], config: ObjectiveConfig, run: ObjectiveConfig, names: Iterable[str]
) -> list[str]:
    """Those of the settings without whose value in `config` the run's model has other tensors."""
    own = _shapes(kind, run)
    return [name for name in names if _shapes(kind, run, **{name: getattr(config, name)}) != own]


def _shapes(kind: type[Objective], config: ObjectiveConfig, **changes: Any) -> dict[str, torch.Size]:
    try:
        with torch.device("meta"):
            state = kind(replace(config, **changes)).state_dict()
    except EcgfastError:  # the setting goes with others only
        return {}
    return {name: value.shape for name, value in state.items()}


def _refuse(
    folder: Path, prefix: str, has: dict[str, Any], wants: dict[str, Any], different: list[str]
) -> None:
    """Raise `EcgfastError` if there are different settings, and say which options make them alike."""
    if not different:
        return
    told = [f"{prefix}{name} {has[name]!r} (the run: {wants[name]!r})" for name in different]
    options = [_option(f"{prefix}{name}".replace("_", "-"), has[name]) for name in different]
    raise EcgfastError(f"init: {str(folder)!r} has {', '.join(told)}; give {' '.join(options)}")


def _option(name: str, value: Any) -> str:
    if isinstance(value, bool):
        section, _, last = name.rpartition(".")
        return f"--{name}" if value else f"--{section}.no-{last}"
    return f"--{name} " + (" ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
