"""The training state on the disk: the last one, the one before it, and the digests of both."""

import json
import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ecgfast.errors import EcgfastError
from ecgfast.files import move_into_place, sync, write_atomically, write_beside
from ecgfast.nn.pretrained import file_digest

_TRIES = 3  # to read, while a run that goes on replaces the states
_KEPT_DIGESTS = 3  # of the state being written, the last one and the one before it


def _save(state: Mapping[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # given the path, torch tells less of what fails
        torch.save(state, file)


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class _Damaged(Exception):
    """Why a file is not the state that was written."""


class States:
    """RUN/checkpoint/: state.pt, previous.pt and sha256.json.

    A process that dies at any moment leaves a whole state, and its digest among those of sha256.json.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.current = folder / "state.pt"
        self.previous = folder / "previous.pt"
        self.digests = folder / "sha256.json"
        # The state.pt that this process wrote or read whole, and its digest: hashing it takes long.
        self._seen: tuple[tuple[int, ...], str] | None = None

    @property
    def exist(self) -> bool:
        return self.current.exists() or self.previous.exists()

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the state; the last whole one stays where that fails.

        Raises:
            EcgfastError: it can't be written.
        """
        partial = kept = None
        try:
            kept = self._digest_if_whole(self.current)
            goes_back = kept is not None
            if goes_back:
                self.previous.unlink(missing_ok=True)  # first, so that there is never room needed for three
            else:  # a damaged state must not push out the whole one before it
                kept = self._digest_if_whole(self.previous)
            partial = write_beside(self.current, lambda path: _save(state, path))
            new = file_digest(partial)
            # A run that reads meanwhile may have opened an older state.
            known = dict.fromkeys([new, *([kept] if kept else []), *(self._known_digests() or [])])
            listed = json.dumps(list(known)[:_KEPT_DIGESTS], indent=2) + "\n"
            write_atomically(self.digests, lambda path: path.write_bytes(listed.encode()))
            if goes_back:
                move_into_place(self.current, self.previous, durable=False)
            move_into_place(partial, self.current, durable=False)
            self._seen = (_signature(self.current.stat()), new)
            sync(self.folder)
        except (OSError, RuntimeError) as error:
            if partial is not None:
                partial.unlink(missing_ok=True)
            # A full disk makes torch.save fail once more, obscurely, while it closes its archive.
            first = error.__context__ if isinstance(error.__context__, OSError) else error
            reason = str(first).splitlines()[0] if str(first) else type(first).__name__
            earlier = " (an earlier one is kept)" if kept else ""
            raise EcgfastError(
                f"{self.current}: the training state can't be written{earlier}: {reason}"
            ) from error

    def load(self) -> dict[str, Any] | None:
        """The last state that is whole, on the CPU; None if none was ever written.

        Raises:
            EcgfastError: no state is whole.
        """
        for _ in range(_TRIES):
            reasons: dict[str, list[str]] = {}
            for path in (self.current, self.previous):
                try:
                    state = self._read(path)
                except FileNotFoundError:
                    continue
                except _Damaged as reason:
                    reasons.setdefault(str(reason), []).append(str(path))
                    continue
                if reasons:
                    reason = next(iter(reasons))
                    warnings.warn(
                        f"{self.current}: no training state can be read: {reason}; the one before it, "
                        f"of step {state['step']}, is used"
                    )
                return state
            if not reasons and not self.exist:
                return None
        told = "; ".join(
            f"{' and '.join(paths)}: no training state can be read: {reason}"
            for reason, paths in reasons.items()
        )
        raise EcgfastError(f"{told}; put a copy in its place, or delete {self.folder} to start the run over")

    def _digest_if_whole(self, path: Path) -> str | None:
        try:
            if path == self.current and self._seen and self._seen[0] == _signature(path.stat()):
                return self._seen[1]
            self._read(path)
            return file_digest(path)
        except (FileNotFoundError, _Damaged):
            return None

    def _known_digests(self) -> list[str] | None:
        """The digests of the states that were written last; None where there are none to read."""
        try:
            known = json.loads(self.digests.read_text())
            if not isinstance(known, list) or not all(isinstance(name, str) for name in known):
                raise ValueError("no list of digests")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError):
            warnings.warn(
                f"{self.digests}: no list of digests can be read; "
                "the states' own checksums, which see less, are used instead"
            )
            return None
        return known

    def _read(self, path: Path) -> dict[str, Any]:
        known = self._known_digests()
        try:
            # One open file throughout: a run that goes on replaces the path while it is read.
            with path.open("rb") as file:
                self._check(file, known)
                file.seek(0)
                state = torch.load(file, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _Damaged(error.strerror or type(error).__name__) from None
        except _Damaged:
            raise
        except Exception:  # whatever torch says of it is advice to trust the file
            raise _Damaged(
                "it is no file that torch.save wrote, or one of other things than tensors"
            ) from None
        step = state.get("step") if isinstance(state, dict) else None
        if type(step) is not int or step < 0:
            raise _Damaged("it holds something else than the state of a run")
        return state

    def _check(self, file: BinaryIO, known: list[str] | None) -> None:
        if os.fstat(file.fileno()).st_size == 0:
            raise _Damaged("it is empty")
        if known is not None:
            # A run that goes on may have listed this state since, or many after it.
            if file_digest(file) not in (*known, *(self._known_digests() or [])):
                raise _Damaged(
                    f"its SHA-256 is not in {self.digests.name}: it is damaged or was replaced (delete "
                    f"{self.digests} to use it nevertheless)"
                )
            return
        try:  # an older state has no digest, but the checksums of its parts
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
        except (zipfile.BadZipFile, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
            raise _Damaged(str(error)) from None
        if damaged is not None:
            raise _Damaged(f"the checksum of {damaged} differs")
