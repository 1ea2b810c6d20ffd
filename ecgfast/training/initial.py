"""Starting a pre-training from a model folder."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ecgfast.errors import EcgfastError
from ecgfast.nn import EncoderConfig
from ecgfast.nn.config import config_from_dict
from ecgfast.nn.encoder import ENCODER_TYPE
from ecgfast.nn.pretrained import WEIGHTS, file_digest, load_tensors, read_model
from ecgfast.objectives import W2VCMSC, W2VCMSCConfig
from ecgfast.objectives.w2v_cmsc import MODEL_TYPE

# What decides how an encoder trains, but not what it computes: a run's own.
_TRAINING = {
    *("dropout", "attention_dropout", "activation_dropout", "layer_drop"),
    *("feature_grad_mult", "dropout_input"),
}
_HEADS = ("final_dim", "groups", "entries", "latent_dim")


def describe_init(folder: Path) -> dict[str, Any]:
    """The model folder that a run starts from, for the run's config.json.

    Raises:
        EcgfastError: it is no model folder.
    """
    if not (folder / WEIGHTS).is_file():
        raise EcgfastError(f"init: {str(folder)!r} is no model folder (no {WEIGHTS})")
    return {"path": str(folder), "sha256": file_digest(folder / WEIGHTS)}


def load_init(model: W2VCMSC, init: dict[str, Any]) -> str:
    """Give a model the weights of a folder: all of a pre-training model's, or an encoder's alone.

    Args:
        model: in place.
        init: as `describe_init` returned it when the run began.

    Returns:
        What was loaded, for people.

    Raises:
        EcgfastError: the folder is gone or another, or its model has other settings.
    """
    folder = Path(init["path"])
    if describe_init(folder)["sha256"] != init["sha256"]:
        raise EcgfastError(f"init: {str(folder)!r} is not the model that the run was started from")
    model_type, content, tensors = read_model(folder)
    if model_type not in (MODEL_TYPE, ENCODER_TYPE):
        takes = f"{MODEL_TYPE} or {ENCODER_TYPE}"
        raise EcgfastError(f"init: {str(folder)!r} has model_type {model_type!r}, takes {takes}")
    source = f"{folder}/config.json"
    whole = model_type == MODEL_TYPE
    config = config_from_dict(W2VCMSCConfig if whole else EncoderConfig, content, source)
    encoder = config.encoder if whole else config
    _check_settings(folder, "model.encoder.", asdict(encoder), asdict(model.config.encoder), _TRAINING)
    if whole:
        free = set(asdict(config)) - set(_HEADS)
        _check_settings(folder, "model.", asdict(config), asdict(model.config), free)
    load_tensors(model if whole else model.encoder, tensors, folder, assign=False)
    return "encoder, quantizer and projections" if whole else "encoder"


def _check_settings(
    folder: Path, prefix: str, has: dict[str, Any], wants: dict[str, Any], free: set[str]
) -> None:
    different = [name for name in has if name not in free and has[name] != wants[name]]
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
