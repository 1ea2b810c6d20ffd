"""Files and folders that are whole or absent whenever they are looked at: written beside, then renamed.

What is durable outlives a power cut too: the content reaches the disk before the name, and the name before
what follows.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from ecgfast.errors import EcgfastError


def partial_path(path: Path) -> Path:
    """Where the file or folder `path` grows until it is complete."""
    return path.parent / f"{path.name}.partial"


def sync(path: Path) -> None:
    """Put a file's content, or a folder's entries (names created, renamed, removed), on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_into_place(partial: Path, path: Path, *, durable: bool = True) -> None:
    """Rename a file or folder that is complete, over a file or an empty folder if one is there."""
    os.replace(partial, path)
    if durable:
        sync(path.parent)


def write_beside(
    path: Path, write: Callable[[Path], object], *, durable: bool = True, shared: bool = False
) -> Path:
    """Let `write(partial)` fill a file beside `path`; nothing stays where that fails.

    Args:
        path: Where the file is to be.
        write: Fills the file at the path that it is given.
        durable: Put its content on the disk.
        shared: Others may write `path` at the same time: the file beside it has a name of its own.

    Returns:
        The file beside, to be moved into place.
    """
    partial = _file_of_its_own(path) if shared else partial_path(path)
    try:
        write(partial)
        if shared:
            _open_to_others(partial)
        if durable:
            sync(partial)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return partial


def write_atomically(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Let `write(partial)` fill a file beside `path`, then rename it; nothing stays where that fails.

    Args:
        path: Where the file is to be.
        write: Fills the file at the path that it is given.
        durable: False for what is soon made again after a power cut.
    """
    partial = write_beside(path, write, durable=durable)
    try:
        move_into_place(partial, path, durable=durable)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


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


def _file_of_its_own(path: Path) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    return Path(name)


def _open_to_others(path: Path) -> None:
    """Let a file that was made for its owner alone be like any other: `write` may have replaced it."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)
