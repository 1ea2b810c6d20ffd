"""Files and folders written so that they are whole or absent after any interruption."""

import os
from pathlib import Path

from ecgfast.errors import EcgfastError


def partial_folder(path: Path) -> Path:
    """Where the folder `path` grows until it is complete."""
    return path.parent / f"{path.name}.partial"


def check_creatable(path: Path, argument: str) -> None:
    """See to it that a finished folder can be renamed to `path`, before the work is done.

    Args:
        path: Absent, or an empty folder.
        argument: What the user calls it.

    Raises:
        EcgfastError: `path` is the current directory or above it, a mount point, the root, or a
            link.
    """
    if path.is_symlink():
        raise EcgfastError(f"{argument}: {path} is a link, want a folder to create")
    if path.name in ("", "..") or Path.cwd().is_relative_to(path.resolve()):
        raise EcgfastError(f"{argument}: can't replace the folder {path}, want one to create in it")
    if os.path.ismount(path):
        raise EcgfastError(f"{argument}: {path} is a mount point, want a folder to create in it")


def sync_folder(path: Path) -> None:
    """Put a folder's entries (names created, renamed, removed) safely on disk."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sync_file(path: Path) -> None:
    """Put a file's contents safely on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
