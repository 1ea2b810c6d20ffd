"""Model folders in the Hugging Face layout: `model.safetensors` and `config.json`."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ecgfast.errors import EcgfastError

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def write_model(folder: Path | str, model_type: str, config: Mapping[str, Any], module: nn.Module) -> None:
    """Write a model folder; what was there before stays whole until both files are complete.

    Raises:
        EcgfastError: the folder cannot be made or written.
    """
    folder = Path(folder)
    tensors = {name: value.detach().contiguous() for name, value in module.state_dict().items()}
    text = json.dumps({"model_type": model_type, **config}, indent=2) + "\n"
    fresh = not folder.exists()
    written: dict[str, str] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_beside(folder, WEIGHTS, lambda path: save_file(tensors, path, {"format": "pt"}), written)
        _write_beside(folder, CONFIG, lambda path: Path(path).write_text(text), written)
        for name in (WEIGHTS, CONFIG):
            os.replace(written[name], folder / name)
            del written[name]
    except (OSError, SafetensorError) as error:
        raise EcgfastError(f"{folder}: cannot be written: {error}") from None
    finally:
        for path in written.values():
            Path(path).unlink(missing_ok=True)
        if fresh and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _write_beside(folder: Path, name: str, write: Callable[[str], Any], written: dict[str, str]) -> None:
    handle, path = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    written[name] = path
    os.close(handle)
    write(path)
    # mkstemp makes files for the owner alone; a model folder is to be shared like any other file.
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(path, 0o666 & ~umask)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def read_model(folder: Path | str) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """The model type, configuration and tensors of a model folder. Nothing in it is executed.

    Raises:
        EcgfastError: the folder is absent or is not a model folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise EcgfastError(f"{folder}: no such model folder")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise EcgfastError(f"{folder}: is not a model folder: no {name}")
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise EcgfastError(f"{folder / CONFIG}: is not readable JSON: {error}") from None
    model_type = config.pop("model_type", None) if isinstance(config, dict) else None
    if not isinstance(model_type, str):
        raise EcgfastError(f"{folder / CONFIG}: has no model_type")
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise EcgfastError(f"{folder / WEIGHTS}: is not a safetensors file: {error}") from None
    return model_type, config, tensors


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], source: Path | str) -> None:
    """Load tensors that must be exactly the module's own; the module may be on the meta device.

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
    module.load_state_dict(copies, assign=True)
