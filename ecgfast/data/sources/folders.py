"""Going through a folder of records."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ecgfast.errors import EcgfastError


def walk_folders(top: Path, below: str = "") -> Iterator[tuple[str, list[str]]]:
    """The folders of a source, each once, in an order that depends on its contents alone.

    Links to folders are followed, wherever they lead, after what lies in the source itself. A folder that was
    met before is left out: a link back ends there, and nothing is read twice. So are stores, and those that
    an import is writing.

    Args:
        top: The source.
        below: Path of the folder in it to walk.

    Yields:
        The path of a folder, relative to the source and "" for itself, and the names of its files, sorted.

    Raises:
        EcgfastError: a folder can't be listed.
    """

    def refuse(error: OSError) -> None:
        raise EcgfastError(f"source: can't list {error.filename}: {error.strerror}") from error

    seen: set[tuple[int, int]] = set()
    waiting = [below]
    while waiting:
        linked: list[str] = []
        for start in waiting:
            for path, folders, files in os.walk(top / start, onerror=refuse):
                status = os.stat(path)
                place = status.st_dev, status.st_ino
                name = Path(path).relative_to(top).as_posix()
                name = "" if name == "." else name
                if place in seen or (name and _is_store(path, folders, files)):
                    folders.clear()
                    continue
                seen.add(place)
                folders.sort()
                links = (folder for folder in folders if os.path.islink(os.path.join(path, folder)))
                linked += (os.path.join(name, folder) for folder in links)
                yield name, sorted(files)
        waiting = linked


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is a regular file, or a link to one: others may be endless, or wait for a writer."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):  # ValueError: a name with a null byte
        return False


def _is_store(path: str, folders: list[str], files: list[str]) -> bool:
    """Whether the folder is a store, or one that an import is writing or was."""
    if "store.json" in files and "index.parquet" in files:
        return True
    return path.endswith(".partial") and "lock" in files and ("settings.json" in files or "store" in folders)
