"""The folder of a run: its configuration, its training state, and who may write to it."""

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

import ecgfast
from ecgfast.errors import EcgfastError
from ecgfast.objectives import W2VCMSC
from ecgfast.training.config import PretrainConfig

_MISSING = object()
_WITHOUT_EFFECT = {"config.loader"}  # on a run's numbers


def describe_run(config: PretrainConfig, store: Path, world_size: int) -> dict[str, Any]:
    """What makes a run the same run, as JSON values: configuration, store, number of processes."""
    index = hashlib.sha256((store / "index.parquet").read_bytes()).hexdigest()
    description = {
        "task": "pretrain",
        "ecgfast_version": ecgfast.__version__,
        "store": {"path": str(store), "index_sha256": index},
        "world_size": world_size,
        "config": dataclasses.asdict(config),
    }
    return json.loads(json.dumps(description))


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flatten(item, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`name = old (now new)` for what decides a run's numbers; paths and versions may change."""
    keys = ("task", "world_size", "config")
    before = dict(_flatten({key: old.get(key) for key in keys}))
    after = dict(_flatten({key: new.get(key) for key in keys}))
    lines = []
    for name in sorted((before.keys() | after.keys()) - _WITHOUT_EFFECT):
        was, now = before.get(name, _MISSING), after.get(name, _MISSING)
        if was != now:
            shown = ["unset" if value is _MISSING else json.dumps(value) for value in (was, now)]
            lines.append(f"{name.removeprefix('config.')} = {shown[0]} (now {shown[1]})")
    if old.get("store", {}).get("index_sha256") != new["store"]["index_sha256"]:
        lines.append(f"store {old.get('store', {}).get('path')} (now {new['store']['path']})")
    return lines


def _sync(path: Path) -> None:
    """Put a file's content, or a folder's entries, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write(file)` fill a temporary file, put it on the disk, and rename it to `path`."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            write(file)
        _sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync(path.parent)


class RunFolder:
    """RUN/: config.json, checkpoint/state.pt, metrics.jsonl, tensorboard/, curves.png, model/.

    `model/` appears last: a run that has it is finished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.state = path / "checkpoint" / "state.pt"
        self.model = path / "model"

    @property
    def finished(self) -> bool:
        return self.model.is_dir()

    def check(self, description: dict[str, Any]) -> None:
        """Raise `EcgfastError` unless the folder is new, empty, or holds this very run."""
        if not self.path.exists():
            return
        if self.path.is_dir() and not any(self.path.iterdir()):
            if self.path.samefile("."):
                raise EcgfastError(
                    f"RUN: {str(self.path)!r} is the current directory, which a new run can't replace; "
                    "a folder in it is taken"
                )
            return
        try:
            old = json.loads(self.config.read_text())
            differences = _differences(old, description)
        except (OSError, ValueError, AttributeError):
            raise EcgfastError(
                f"RUN: {str(self.path)!r} exists and is no run of ecgfast (no config.json that can "
                "be read); a new or an empty folder, or a run to resume, is taken"
            ) from None
        if differences:
            more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
            raise EcgfastError(
                f"RUN: {str(self.path)!r} was started with {', '.join(differences[:3])}{more}; "
                "give the settings in its config.json, or a new folder"
            )

    def create(self, description: dict[str, Any]) -> None:
        """Make the folder with its config.json in one step, unless it is there already."""
        if self.config.exists():
            return
        target = self.path.resolve()
        partial = target.with_name(f".{target.name}.partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            (partial / self.state.parent.name).mkdir(parents=True)
            text = json.dumps(description, indent=2) + "\n"
            write_atomically(partial / self.config.name, lambda file: file.write(text.encode()))
            os.replace(partial, target)
        except OSError as error:
            raise EcgfastError(f"RUN: {str(self.path)!r} can't be made: {error.strerror}") from None

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Keep every other process out of the folder."""
        folder = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise EcgfastError(f"RUN: another process is training in {str(self.path)!r}") from None
        finally:
            os.close(folder)

    def save_state(self, state: dict[str, Any]) -> None:
        """Replace the training state on the disk; the one before stays where that fails."""
        try:
            write_atomically(self.state, lambda file: torch.save(state, file))
        except (OSError, RuntimeError) as error:
            # A full disk makes torch.save fail once more, obscurely, while it closes its archive.
            first = error.__context__ if isinstance(error.__context__, OSError) else error
            reason = str(first).splitlines()[0] if str(first) else type(first).__name__
            raise EcgfastError(
                f"{self.state}: the training state can't be written (an earlier one is kept): {reason}"
            ) from error

    def load_state(self) -> dict[str, Any] | None:
        """The last training state on the CPU, None if there is none yet."""
        if not self.state.exists():
            return None
        try:
            return torch.load(self.state, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise EcgfastError(f"{self.state}: no training state can be read: {reason}") from None

    def save_model(self, model: W2VCMSC) -> None:
        partial = self.path / "model.partial"
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)
        for path in (*partial.iterdir(), partial):
            _sync(path)
        os.replace(partial, self.model)
        _sync(self.path)
