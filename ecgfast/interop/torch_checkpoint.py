"""Reads the zip files that `torch.save` writes, without torch's unpickler and tensor by tensor."""

import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from ecgfast.errors import EcgfastError
from ecgfast.interop.inert_pickle import Global, InertUnpickler

# Settings and names, no tensors: the largest published checkpoint holds half a megabyte of them.
_MAX_PICKLE_BYTES = 64 << 20

_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    size: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that has not been read yet."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class TorchCheckpoint:
    """A checkpoint file open for reading.

    Attributes:
        root: what was saved, as plain data: dicts, lists, `StoredTensor` for tensors, and
            `ecgfast.interop.inert_pickle.Inert` for objects of any class.

    Raises:
        EcgfastError: the file is absent, is no checkpoint of torch >= 1.6, is damaged, or refers to
            a name that a checkpoint has no use for.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        if not self._path.is_file():
            raise EcgfastError(f"{path}: no such file")
        try:
            self._zip = zipfile.ZipFile(self._path)
        except (OSError, zipfile.BadZipFile):
            raise EcgfastError(
                f"{path}: is no checkpoint of torch 1.6 or later (those are zip files)"
            ) from None
        try:
            self._prefix = self._find_prefix()
            self.root = self._read_root()
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._zip.close()

    def read(self, tensor: StoredTensor) -> Tensor:
        """Read one tensor; its own memory, contiguous."""
        storage = tensor.storage
        wanted = storage.size * storage.dtype.itemsize
        data = self._entry(f"data/{storage.key}", wanted)
        if len(data) != wanted:
            raise EcgfastError(
                f"{self._path}: storage {storage.key} has {len(data)} bytes, {wanted} are declared"
            )
        if not math.prod(tensor.shape):
            return torch.empty(tensor.shape, dtype=storage.dtype)
        flat = torch.frombuffer(bytearray(data), dtype=storage.dtype)
        return flat.as_strided(tensor.shape, tensor.stride, tensor.offset).clone(
            memory_format=torch.contiguous_format
        )

    def _find_prefix(self) -> str:
        names = [n for n in self._zip.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")]
        if len(names) != 1:
            raise EcgfastError(f"{self._path}: is a zip file but no torch checkpoint (no data.pkl)")
        return names[0].removesuffix("data.pkl")

    def _entry(self, name: str, limit: int) -> bytes:
        try:
            info = self._zip.getinfo(self._prefix + name)
            # torch stores; a compressed entry could grow to any size.
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > limit:
                raise EcgfastError(f"{self._path}: {name} is compressed or larger than declared")
            return self._zip.read(info)
        except KeyError:
            raise EcgfastError(f"{self._path}: is damaged: {name} is missing") from None
        except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise EcgfastError(f"{self._path}: is damaged: {error}") from None

    def _read_root(self) -> Any:
        if self._prefix + "byteorder" in self._zip.namelist():
            order = self._entry("byteorder", 16)
            if order != b"little":
                raise EcgfastError(f"{self._path}: has byte order {order!r}, takes little")
        data = self._entry("data.pkl", _MAX_PICKLE_BYTES)
        try:
            return InertUnpickler(_rebuild, _persistent, tuple(_STORAGES)).load(data)
        except EcgfastError as error:
            raise EcgfastError(f"{self._path}: {error}") from None
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise EcgfastError(f"{self._path}: is damaged: data.pkl: {error}") from None


def _persistent(pid: Any) -> _Storage:
    kind, storage, key, _, size = pid
    if kind != "storage" or not isinstance(storage, Global) or storage.name not in _STORAGES:
        raise ValueError("a persistent id that is no storage")
    if not isinstance(key, str) or not key.isalnum() or not _is_count(size):
        raise ValueError("a storage with a strange key or size")
    return _Storage(key, _STORAGES[storage.name], size)


def _rebuild(name: str, args: tuple) -> StoredTensor:
    if name == "_rebuild_parameter":
        tensor = args[0]
        if not isinstance(tensor, StoredTensor):
            raise TypeError("a parameter that is no tensor")
        return tensor
    storage, offset, shape, stride = args[:4]
    if not isinstance(storage, _Storage):
        raise TypeError("a tensor without storage")
    if len(shape) != len(stride) or not all(map(_is_count, (offset, *shape, *stride))):
        raise ValueError("a tensor with a strange shape")
    # Not beyond the storage, nor larger than it: a stride of 0 could ask for any amount of memory.
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    if math.prod(shape) > storage.size or (math.prod(shape) and last >= storage.size):
        raise ValueError("a tensor that does not fit its storage")
    return StoredTensor(storage, offset, tuple(shape), tuple(stride))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48
