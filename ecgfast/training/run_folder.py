"""The folder of a run: its configuration, its training state, and who may write to it."""

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ecgfast._version import __version__
from ecgfast.errors import EcgfastError
from ecgfast.files import move_into_place, partial_path, sync, write_atomically
from ecgfast.nn.pretrained import file_digest
from ecgfast.training.config import LoopConfig
from ecgfast.training.states import States

Config = TypeVar("Config", bound=LoopConfig)

_MISSING = object()
_OBJECTIVE = "config.objective"  # told first of what differs, as it decides which settings there are
# How long a run goes on and what it tells on the way: these may change when it is taken up again.
_LENGTHS = ("max_steps", "epochs")
_CHANGEABLE = {f"config.{name}" for name in (*_LENGTHS, "log_every", "checkpoint_every", "loader")}


def describe_run(
    task: str,
    config: LoopConfig,
    store: Path | Sequence[Path],
    world_size: int,
    init: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What makes a run the same run, as JSON values: configuration, store, number of processes.

    Args:
        task: name of the training task.
        config: what to train and how.
        store: folder of the recordings, or several.
        world_size: processes.
        init: the model that the run starts from, as `ecgfast.training.initial.describe_init` says.
        data: what of the store it trains on, such as targets and split.
    """
    paths = [store] if isinstance(store, Path) else store
    told = [{"path": str(path), "index_sha256": file_digest(path / "index.parquet")} for path in paths]
    description = {
        "task": task,
        "ecgfast_version": __version__,
        **({"store": told[0]} if len(told) == 1 else {"stores": told}),
        "world_size": world_size,
        **({"init": init} if init is not None else {}),
        **({"data": data} if data is not None else {}),
        "config": dataclasses.asdict(config),
    }
    description = json.loads(json.dumps(description))
    return description | {"identity": _identity(description)}


def _identity(description: dict[str, Any]) -> str:
    """A digest of what decides a run's numbers, which its states carry.

    Settings under the names that they had when the run began: it is never computed again.
    """
    changeable = _changeable(description)
    parts = {name: value for name, value in _deciding(description).items() if name not in changeable}
    digests = [digest for digest, _ in _stores(description)]
    parts["store"] = digests[0] if len(digests) == 1 else digests
    parts["init"] = description.get("init", {}).get("sha256")
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _stores(description: dict[str, Any]) -> list[tuple[Any, Any]]:
    """The digests of the stores' indexes, and their paths."""
    told = description.get("stores", [description.get("store")])
    return [(store.get("index_sha256"), store.get("path")) for store in told if isinstance(store, dict)]


def _deciding(description: dict[str, Any]) -> dict[str, Any]:
    names = ["task", "world_size", "config", *(["data"] if "data" in description else [])]
    return dict(_flatten({name: description.get(name) for name in names}))


def _changeable(description: dict[str, Any]) -> set[str]:
    """The settings that may change: not the length of a run whose learning rate follows from it."""
    schedule = description["config"].get("optim", {}).get("schedule", "constant")
    fixed = set() if schedule == "constant" else {f"config.{name}" for name in _LENGTHS}
    return _CHANGEABLE - fixed


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flatten(item, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`name = old (now new)` for what decides a run's numbers; paths and versions may change."""
    before, after = _deciding(old), _deciding(new)
    lines = []
    names = (before.keys() | after.keys()) - _changeable(new)
    for name in sorted(names, key=lambda name: (name != _OBJECTIVE, name)):
        was, now = before.get(name, _MISSING), after.get(name, _MISSING)
        if was != now:
            shown = ["unset" if value is _MISSING else json.dumps(value) for value in (was, now)]
            lines.append(f"{name.removeprefix('config.')} = {shown[0]} (now {shown[1]})")
    stores = [_stores(old), _stores(new)]
    if [digest for digest, _ in stores[0]] != [digest for digest, _ in stores[1]]:
        was, now = (", ".join(str(path) for _, path in some) for some in stores)
        lines.append(f"{'store' if len(stores[0]) == 1 else 'stores'} {was} (now {now})")
    was, now = old.get("init") or {}, new.get("init") or {}
    # Once a run has started, the model that it started from need not be named again.
    if now and was.get("sha256") != now["sha256"]:
        lines.append(f"init {was.get('path', 'unset')} (now {now['path']})")
    return lines


def _clear(path: Path) -> None:
    """Remove what a process that died left at `path`, or whatever else is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Saved(Protocol):
    """A model that writes its own folder."""

    def save_pretrained(self, folder: Path) -> None:
        """Write `model.safetensors` and `config.json`."""


class RunFolder:
    """RUN/: config.json, checkpoint/, metrics.jsonl, tensorboard/, curves.png, model/.

    `model/` appears last: a run that has it is finished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.states = States(path / "checkpoint")
        self.state = self.states.current
        self.model = path / "model"

    @property
    def finished(self) -> bool:
        return self.model.is_dir()

    def read_description(self) -> dict[str, Any]:
        """What config.json says of the run.

        Raises:
            EcgfastError: the folder is no run.
        """
        try:
            old = json.loads(self.config.read_text())
            if not isinstance(old, dict) or not isinstance(old.get("config"), dict) or not _stores(old):
                raise ValueError("no description of a run")
        except (OSError, ValueError):
            raise EcgfastError(
                f"RUN: {str(self.path)!r} exists and is no run of ecgfast (no config.json that can be read)"
            ) from None
        return old

    def find(self) -> dict[str, Any] | None:
        """The description of the run that the folder holds; None if it is new or empty.

        Raises:
            EcgfastError: it is something else.
        """
        if not self.path.exists():
            return None
        if self.path.is_dir() and not any(self.path.iterdir()):
            if self.path.samefile("."):
                raise EcgfastError(
                    f"RUN: {str(self.path)!r} is the current directory, which a new run can't replace; "
                    "name a folder in it"
                )
            return None
        try:
            old = self.read_description()
        except EcgfastError as error:
            raise EcgfastError(f"{error}; RUN must be a new or empty folder, or a run to resume") from None
        if self.model.exists() and not self.model.is_dir():
            raise EcgfastError(f"RUN: {str(self.model)!r} must be a folder or absent, got a file")
        return old

    def check(self, old: dict[str, Any], description: dict[str, Any]) -> None:
        """Raise `EcgfastError` unless the run `old` of this folder is the one described."""
        if differences := _differences(old, description):
            more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
            raise EcgfastError(
                f"RUN: {str(self.path)!r} was started with {', '.join(differences[:3])}{more}; "
                f"give its settings (--config {self.config}), or a new folder"
            )

    def create(self, description: dict[str, Any]) -> None:
        """Make the folder with its config.json in one step, unless it is there already."""
        if self.config.exists():
            return
        target = self.path.resolve()
        partial = target.with_name(f".{target.name}.partial")
        try:
            _clear(partial)
            (partial / self.states.folder.name).mkdir(parents=True)
            self._write_description(partial / self.config.name, description)
            move_into_place(partial, target, durable=False)
        except OSError as error:
            raise EcgfastError(f"RUN: {str(self.path)!r} can't be made: {error.strerror}") from None

    def _write_description(self, path: Path, description: dict[str, Any]) -> None:
        text = json.dumps(description, indent=2) + "\n"
        write_atomically(path, lambda partial: partial.write_bytes(text.encode()))

    def adopt(self, old: dict[str, Any], description: dict[str, Any], step: int) -> None:
        """Record settings that change when a run is taken up at `step`, the old ones in `history`."""
        was, now = old["config"], description["config"]
        changes = {
            name: [was.get(name), now[name]]
            for name in sorted(name.removeprefix("config.") for name in _CHANGEABLE)
            if was.get(name) != now[name]
        }
        if changes:
            history = old.get("history", [])
            history = history if isinstance(history, list) else [history]  # an edited file loses nothing
            config = was | {name: new for name, (_, new) in changes.items()}
            self._write_description(
                self.config,
                old | {"config": config, "history": [*history, {"step": step, "changes": changes}]},
            )

    def reopen(self, step: int) -> None:
        """Put a finished run's model aside, as `model-STEP`: the run goes on."""
        aside = self.path / f"model-{step}"
        _clear(aside)
        move_into_place(self.model, aside)

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
        """Replace the training state on the disk, see `States.save`."""
        self.states.save(state)

    def load_state(self) -> dict[str, Any] | None:
        """The last whole training state on the CPU, None if there is none yet, see `States.load`."""
        return self.states.load()

    def save_model(self, model: Saved) -> None:
        """Put the finished model into `model/`, whole or not at all."""
        partial = partial_path(self.model)
        _clear(partial)
        model.save_pretrained(partial)
        for path in (*partial.iterdir(), partial):
            sync(path)
        move_into_place(partial, self.model)


def had_length(old: dict[str, Any], config: Config) -> Config:
    """`config` with the length that the run `old` was given."""
    return dataclasses.replace(
        config, **{name: old["config"].get(name, getattr(config, name)) for name in _LENGTHS}
    )
