"""Reads the files that `torch.save` writes, without torch's unpickler and tensor by tensor."""

import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor
from typing_extensions import Self

from ecgfast.errors import EcgfastError
from ecgfast.interop.inert_pickle import Global, Inert, InertUnpickler

# Settings and names, no tensors: the largest published checkpoint holds half a megabyte of them.
_MAX_PICKLE_BYTES = 64 << 20

# What files of torch before 1.6, and of `_use_new_zipfile_serialization=False`, begin with.
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

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
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    size: int

    @property
    def n_bytes(self) -> int:
        return self.size * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that has not been read yet."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _File(Protocol):
    """A checkpoint's pickle and storages; errors are those of damaged files, without the path."""

    root: Any

    def read(self, storage: _Storage) -> bytes: ...

    def close(self) -> None: ...


class TorchCheckpoint:
    """A checkpoint file open for reading.

    Attributes:
        root: what was saved, as plain data: dicts, lists, `StoredTensor` for tensors, and
            `ecgfast.interop.inert_pickle.Inert` for objects of any class.

    Raises:
        EcgfastError: the file is absent, is no checkpoint of torch (a zip file, or one of the form
            before torch 1.6), is damaged, or refers to a name that a checkpoint has no use for.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        if not self._path.is_file():
            raise EcgfastError(f"{path}: no such file")
        self._file = self._open()
        self.root = self._file.root

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def read(self, tensor: StoredTensor) -> Tensor:
        """Read one tensor; its own memory, contiguous."""
        storage = tensor.storage
        try:
            data = self._file.read(storage)
        except EcgfastError as error:
            raise EcgfastError(f"{self._path}: {error}") from None
        if len(data) != storage.n_bytes:
            raise EcgfastError(
                f"{self._path}: storage {storage.key} has {len(data)} bytes, {storage.n_bytes} are declared"
            )
        if not math.prod(tensor.shape):
            return torch.empty(tensor.shape, dtype=storage.dtype)
        flat = torch.frombuffer(bytearray(data), dtype=storage.dtype)
        return flat.as_strided(tensor.shape, tensor.stride, tensor.offset).clone(
            memory_format=torch.contiguous_format
        )

    def _open(self) -> _File:
        try:
            if zipfile.is_zipfile(self._path):
                return _ZipFile(self._path)
            if _LegacyFile.is_one(self._path):
                return _LegacyFile(self._path)
        except EcgfastError as error:
            raise EcgfastError(f"{self._path}: {error}") from None
        except (OSError, zipfile.BadZipFile) as error:
            raise EcgfastError(f"{self._path}: is no checkpoint that can be read: {error}") from None
        raise EcgfastError(f"{self._path}: is no checkpoint of torch, or was cut off")


class _ZipFile:
    """What torch >= 1.6 writes: a zip file of data.pkl and a stored entry for each storage."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        try:
            self._prefix = self._find_prefix()
            self.root = self._read_root()
        except BaseException:
            self._zip.close()
            raise

    def close(self) -> None:
        self._zip.close()

    def read(self, storage: _Storage) -> bytes:
        return self._entry(f"data/{storage.key}", storage.n_bytes)

    def _find_prefix(self) -> str:
        names = [n for n in self._zip.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")]
        if len(names) != 1:
            raise EcgfastError("is a zip file but no torch checkpoint (no data.pkl)")
        return names[0].removesuffix("data.pkl")

    def _entry(self, name: str, limit: int) -> bytes:
        try:
            info = self._zip.getinfo(self._prefix + name)
            # torch stores; a compressed entry could grow to any size.
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > limit:
                raise EcgfastError(f"{name} is compressed or larger than declared")
            return self._zip.read(info)
        except KeyError:
            raise EcgfastError(f"is damaged: {name} is missing") from None
        except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise EcgfastError(f"is damaged: {error}") from None

    def _read_root(self) -> Any:
        if self._prefix + "byteorder" in self._zip.namelist():
            order = self._entry("byteorder", 16)
            if order != b"little":
                raise EcgfastError(f"has byte order {order!r}, takes little")
        return _unpickle(io.BytesIO(self._entry("data.pkl", _MAX_PICKLE_BYTES)), "data.pkl")


class _LegacyFile:
    """What torch < 1.6 writes: five pickles one after another, then the storages."""

    def __init__(self, path: Path) -> None:
        self._size = path.stat().st_size
        self._storages: dict[str, _Storage] = {}
        self._starts: dict[str, int] = {}
        self._file = path.open("rb")
        try:
            _unpickle(self._file, "its magic number")
            protocol = _unpickle(self._file, "its protocol")
            system = _unpickle(self._file, "its system")
            if protocol != _LEGACY_PROTOCOL or not isinstance(system, dict):
                raise EcgfastError(f"has protocol {str(protocol)[:20]}, takes {_LEGACY_PROTOCOL}")
            if system.get("little_endian") is not True:
                raise EcgfastError("has another byte order than little")
            self.root = _unpickle(self._file, "its content", self._persistent)
            self._find_storages(_unpickle(self._file, "its list of storages"))
        except BaseException:
            self._file.close()
            raise

    @staticmethod
    def is_one(path: Path) -> bool:
        with path.open("rb") as file:
            try:
                return _unpickle(file, "") == _LEGACY_MAGIC
            except EcgfastError:
                return False

    def close(self) -> None:
        self._file.close()

    def read(self, storage: _Storage) -> bytes:
        if storage.key not in self._starts:
            raise EcgfastError(f"is damaged: storage {storage.key} is missing")
        self._file.seek(self._starts[storage.key])
        return self._file.read(storage.n_bytes)

    def _persistent(self, pid: Any) -> _Storage:
        storage = _persistent(pid)
        return self._storages.setdefault(storage.key, storage)

    def _find_storages(self, keys: Any) -> None:
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise EcgfastError("is damaged: its list of storages is none")
        for key in keys:
            storage = self._storages.get(key)
            declared = self._file.read(8)
            if storage is None or len(declared) < 8 or struct.unpack("<q", declared)[0] != storage.size:
                raise EcgfastError(f"is damaged: storage {key[:40]} is not the one declared")
            self._starts[key] = self._file.tell()
            if self._starts[key] + storage.n_bytes > self._size:
                raise EcgfastError(f"is damaged: storage {key[:40]} was cut off")
            self._file.seek(storage.n_bytes, os.SEEK_CUR)


class _Clipped:
    """What is left of a file, for pickletools: no more is asked for than is there, whatever is declared."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        start = file.tell()
        self._left = min(file.seek(0, os.SEEK_END) - start, _MAX_PICKLE_BYTES)
        file.seek(start)

    def _count(self, data: bytes) -> bytes:
        self._left -= len(data)
        return data

    def read(self, n: int) -> bytes:
        return self._count(self._file.read(min(n, self._left)))

    def readline(self) -> bytes:
        return self._count(self._file.readline(self._left))


def _unpickle(file: BinaryIO, what: str, persistent: Callable[[Any], _Storage] | None = None) -> Any:
    try:
        return InertUnpickler(_rebuild, persistent or _persistent, tuple(_STORAGES)).load(_Clipped(file))
    except (ValueError, TypeError, LookupError, RecursionError, OverflowError) as error:
        if isinstance(error, EcgfastError):
            raise
        raise EcgfastError(f"is damaged: {what}: {error}") from None


def _persistent(pid: Any) -> _Storage:
    kind, storage, key, _, size = pid[:5]  # older files have one more
    if kind != "storage" or not isinstance(storage, Global) or storage.name not in _STORAGES:
        raise ValueError("a persistent id that is no storage")
    if not isinstance(key, str) or not key.isalnum() or not _is_count(size):
        raise ValueError("a storage with a strange key or size")
    return _Storage(key, _STORAGES[storage.name], size)


def _rebuild(name: str, args: tuple) -> StoredTensor | Inert:
    if name.startswith("_rebuild_parameter"):
        tensor = args[0]
        if not isinstance(tensor, StoredTensor):
            raise TypeError("a parameter that is no tensor")
        return tensor
    if name not in ("_rebuild_tensor", "_rebuild_tensor_v2"):
        return Inert(Global("torch._utils", name), args)
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
