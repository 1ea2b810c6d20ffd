"""The folder of an evaluation: of which arguments it is, and who works in it."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ecgfast.assessment.results import read_json, write_json
from ecgfast.errors import EcgfastError

SETTINGS = "settings.json"


@contextmanager
def claimed(out: Path, identity: dict[str, Any]) -> Iterator[None]:
    """The folder of an evaluation of these arguments, for this process alone.

    Raises:
        EcgfastError: it is of other arguments or something else, or another process is at work in it.
    """
    settings = out / SETTINGS
    if out.exists() and not out.is_dir():
        raise EcgfastError(f"OUT: {str(out)!r} must be a folder, got a file")
    if out.is_dir() and any(out.iterdir()) and not settings.is_file():
        if {entry.name for entry in out.iterdir()} - {"lock", "settings.json.partial"}:
            raise EcgfastError(
                f"OUT: {str(out)!r} must be new, empty or an evaluation, got other files in it"
            )
    elif settings.is_file() and (different := _differences(read_json(settings), identity)):
        raise EcgfastError(f"OUT: {str(out)!r} is of other arguments: {'; '.join(different)}")
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise EcgfastError(f"OUT: another process is at work in {str(out)!r}") from None
        if not settings.is_file():
            write_json(settings, identity)
        yield


# What may differ when an evaluation goes on, since no number depends on it.
_ASIDE = ("ecgfast_version", "store.path", "model.path", "config.device", "config.labels.path")


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    before, after = flat(old), flat(new)
    names = sorted((before.keys() | after.keys()) - set(_ASIDE) - {"config.weights.path"})
    return [
        f"{name.removeprefix('config.')} = {before.get(name)} (now {after.get(name)})"
        for name in names
        if before.get(name) != after.get(name)
    ]


def flat(value: dict[str, Any], start: str = "") -> dict[str, Any]:
    """Nested settings with dotted names."""
    found = {}
    for name, item in value.items():
        if isinstance(item, dict):
            found |= flat(item, f"{start}{name}.")
        else:
            found[f"{start}{name}"] = item
    return found
