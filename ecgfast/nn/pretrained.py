"""Model folders in the Hugging Face layout: `model.safetensors` and `config.json`."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ecgfast.errors import EcgfastError
from ecgfast.files import move_into_place, write_beside

ENCODER_TYPE = "ecgfast_encoder"
"""Kind of a model folder that is an encoder alone."""
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
DIGEST = "weights_sha256"
ORIGIN = "origin"
ENCODER_PREFIX = "encoder_prefix"
REPLACED = "replaced"
PREPROCESSING = "preprocessing"
_NOT_OF_THE_MODEL = (DIGEST, ORIGIN, ENCODER_PREFIX, REPLACED)


def file_digest(file: Path | str | BinaryIO) -> str:
    """SHA-256 of a file, or of what is left of an open one, in hexadecimal."""
    if isinstance(file, str | Path):
        with open(file, "rb") as opened:
            return file_digest(opened)
    digest = hashlib.sha256()
    while part := file.read(1 << 20):
        digest.update(part)
    return digest.hexdigest()


def check_new_folder(argument: str, folder: Path) -> None:
    """Raise `EcgfastError` unless the folder is empty or does not exist."""
    wants = "want a new or empty folder"
    try:
        if folder.is_symlink() and not folder.exists():
            raise EcgfastError(f"{argument}: {folder} is a link to nothing, {wants}")
        if folder.exists() and not folder.is_dir():
            raise EcgfastError(f"{argument}: {folder} is there and is no folder, {wants}")
        if folder.is_dir() and any(folder.iterdir()):
            raise EcgfastError(f"{argument}: {folder} is not empty, {wants}")
    except OSError as error:
        raise EcgfastError(f"{argument}: can't look into {folder}: {error.strerror}") from None


def write_model(
    folder: Path | str,
    model_type: str,
    config: Mapping[str, Any],
    module: nn.Module,
    *,
    encoder_prefix: str = "",
    origin: Mapping[str, Any] | None = None,
    preprocessing: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Write a model folder; a process that dies meanwhile leaves the model that was there, or the new one.

    Args:
        folder: made if need be.
        model_type: kind of the model, for `config.json`.
        config: its configuration.
        module: its parameters.
        encoder_prefix: how the names of its encoder's parameters begin, where it is more than an encoder; its
            `config` then has the encoder's as `encoder`.
        origin: where it is from, kept in `config.json` for people.
        preprocessing: how the data were made that it was trained on, kept in `config.json`: as a store's
            `store.json` tells it, with rate, unit, leads and sources; a list where stores were made
            differently. `read_model` gives it with the configuration.

    Raises:
        EcgfastError: the folder cannot be made or written.
    """
    folder = Path(folder)
    tensors = {name: value.detach().contiguous() for name, value in module.state_dict().items()}
    content = {"model_type": model_type, **config}
    told = {ENCODER_PREFIX: encoder_prefix, ORIGIN: origin, PREPROCESSING: preprocessing}
    content |= {name: value for name, value in told.items() if value}
    fresh = not folder.exists()
    weights: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        weights = write_beside(
            folder / WEIGHTS, lambda path: save_file(tensors, path, {"format": "pt"}), shared=True
        )
        digest = file_digest(weights)
        if (replaced := _replaced(folder)) is not None:
            # Until the new weights are in place, the old ones must be read with their own configuration.
            _replace_config(folder, content | {DIGEST: digest, REPLACED: replaced})
        move_into_place(weights, folder / WEIGHTS, durable=False)
        _replace_config(folder, content | {DIGEST: digest})
    except (OSError, SafetensorError) as error:
        raise EcgfastError(f"{folder}: cannot be written: {error}") from None
    finally:
        if weights is not None:
            weights.unlink(missing_ok=True)
        if fresh and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _replaced(folder: Path) -> dict[str, Any] | None:
    """The content of the `config.json` that belongs to the weights in a folder, with their digest."""
    try:
        digest = _digest(folder)
        content = _of_weights(_read_config(folder), digest)
        if content.get(DIGEST) is not None:
            _check_digest(folder, digest, content[DIGEST])
    except EcgfastError:
        return None  # no model that can be read stands there
    return content | {DIGEST: digest}


def _of_weights(content: dict[str, Any], digest: str) -> dict[str, Any]:
    """The content that belongs to the weights of this digest: while they are replaced, there are two."""
    replaced = content.pop(REPLACED, None)
    return replaced if isinstance(replaced, dict) and replaced.get(DIGEST) == digest else content


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise EcgfastError(f"{folder / CONFIG}: is not readable JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise EcgfastError(f"{folder / CONFIG}: has no model_type")
    return content


def _replace_config(folder: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2) + "\n"
    config = write_beside(folder / CONFIG, lambda path: path.write_text(text), shared=True)
    try:
        move_into_place(config, folder / CONFIG, durable=False)
    finally:
        config.unlink(missing_ok=True)


class ModelFolder(NamedTuple):
    """What a model folder holds.

    Attributes:
        model_type: kind of the model.
        config: its configuration.
        tensors: its parameters and buffers by name.
        encoder_prefix: how the names of its encoder's begin; empty: the model is an encoder; None: it says
            nothing of one.
    """

    model_type: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    encoder_prefix: str | None


def read_model(folder: Path | str) -> ModelFolder:
    """What a model folder holds. Nothing in it is executed.

    Raises:
        EcgfastError: the folder is absent, is not a model folder, or its weights are not those that
            `config.json` was written with.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise EcgfastError(f"{folder}: no such model folder")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise EcgfastError(f"{folder}: is not a model folder: no {name}")
    content = _read_config(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise EcgfastError(f"{folder / WEIGHTS}: is not a safetensors file: {error}") from None
    if content.get(DIGEST) is not None:  # there were no digests at first
        digest = _digest(folder)
        content = _of_weights(content, digest)
        _check_digest(folder, digest, content.get(DIGEST))
    model_type = content.pop("model_type")
    config = {name: value for name, value in content.items() if name not in _NOT_OF_THE_MODEL}
    return ModelFolder(model_type, config, tensors, _encoder_prefix(folder, model_type, content))


def _encoder_prefix(folder: Path, model_type: str, content: Mapping[str, Any]) -> str | None:
    if model_type == ENCODER_TYPE:
        return ""
    # At first folders did not say it.
    prefix = content.get(ENCODER_PREFIX, "encoder." if isinstance(content.get("encoder"), dict) else None)
    if not isinstance(prefix, str | None):
        raise EcgfastError(f"{folder / CONFIG}: {ENCODER_PREFIX} must be a text, got {prefix!r}")
    return prefix


def _digest(folder: Path) -> str:
    try:
        return file_digest(folder / WEIGHTS)
    except OSError as error:
        raise EcgfastError(f"{folder / WEIGHTS}: can't be read: {error.strerror}") from None


def _check_digest(folder: Path, digest: str, told: Any) -> None:
    # At first there were two digests while a model was replaced.
    if digest not in (told if isinstance(told, list) else [told]):
        raise EcgfastError(
            f"{folder / WEIGHTS}: is damaged or was replaced: its SHA-256 is not the one in {CONFIG}; "
            f"if you replaced it on purpose, take {DIGEST} out of {CONFIG}"
        )


def load_tensors(
    module: nn.Module, tensors: Mapping[str, Tensor], source: Path | str, *, assign: bool = True
) -> None:
    """Load tensors that must be exactly the module's own.

    Args:
        module: it may be on the meta device where its parameters are to be replaced.
        tensors: by the module's names.
        source: where they are from, for messages.
        assign: replace the module's parameters; otherwise copy into them, on their device.

    Raises:
        EcgfastError: a tensor is missing, unknown, or of another shape.
    """
    own = module.state_dict()
    for what, names in (
        ("lacks", own.keys() - tensors.keys()),
        ("has", tensors.keys() - own.keys()),
    ):
        if names:
            some = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            kind = "tensors of the model" if what == "lacks" else "tensors unknown to the model"
            raise EcgfastError(f"{source}: {what} {len(names)} {kind}: {some}")
    for name, value in own.items():
        if value.shape != tensors[name].shape:
            got, takes = tuple(tensors[name].shape), tuple(value.shape)
            raise EcgfastError(f"{source}: {name} has shape {got}, the model takes {takes}")
    copies = {k: tensors[k].to(v.dtype, copy=True) for k, v in own.items()}
    module.load_state_dict(copies, assign=assign)
