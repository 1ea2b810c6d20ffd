"""Files to write: checked before the work that fills them, and put in place whole."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from ecgfast.errors import EcgfastError
from ecgfast.files import write_atomically

PICTURES = ("png", "pdf", "svg")
"""Kinds of pictures, by the end of a file's name."""


def check_output(argument: str, path: Path, kinds: Sequence[str] = ()) -> None:
    """Raise `EcgfastError` unless a file can be written at `path`.

    Args:
        argument: What the path was given as, for the message.
        path: The file.
        kinds: Ends that its name may have; any if there are none.
    """
    if kinds and path.suffix.casefold().removeprefix(".") not in kinds:
        known = ", ".join(f".{kind}" for kind in kinds)
        raise EcgfastError(f"{argument}: the file's name must end in one of {known}, got {str(path)!r}")
    if path.is_dir():
        raise EcgfastError(f"{argument}: must be a file, got the folder {str(path)!r}")
    if not path.parent.is_dir():
        what = "a file stands there" if path.parent.exists() else "there is none"
        raise EcgfastError(
            f"{argument}: {str(path)!r} must be in a folder that exists, got {str(path.parent)!r}: {what}"
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise EcgfastError(f"{argument}: {str(path)!r} must be in a folder that can be written to")


def check_space(argument: str, n_bytes: float, path: Path) -> None:
    """Raise `EcgfastError` where the disk that `path` is to be on has no room for so many bytes."""
    folder = path.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        wanted, left = f"{n_bytes / 1e9:,.1f} GB", f"{free / 1e9:,.1f} GB"
        raise EcgfastError(f"{argument}: these would take {wanted} at {str(path)!r}, where {left} are free")


def make_folder(argument: str, folder: Path) -> None:
    """Make a folder for results, with those above it, and see that it can be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EcgfastError(f"{argument}: {str(folder)!r} must be a folder, got: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise EcgfastError(f"{argument}: {str(folder)!r} must be a folder that can be written to")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write(partial)` fill a file beside `path`, then put it there; nothing stays where that fails."""
    write_atomically(path, write, durable=False)
