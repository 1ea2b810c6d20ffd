"""Reads a pickle as data: no name in it is ever imported, nothing in it is ever called.

A pickle is a program for a stack machine, with instructions to import a name and to call it. This
is such a machine without those two: a name stays a `Global`, a call of it an `Inert` record. Names
outside a short list end the reading all the same, so a hostile file is told from a damaged one.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ecgfast.errors import EcgfastError


class Readable(Protocol):
    """What pickletools needs of a file."""

    def read(self, n: int, /) -> bytes: ...

    def readline(self) -> bytes: ...


class Global(NamedTuple):
    """A name that the pickle refers to; just the name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Inert:
    """An object the pickle describes: its class, constructor arguments, state and contents."""

    kind: Global
    args: tuple
    state: Any = None
    contents: list = field(default_factory=list)


_MAPPINGS = ("dict", "OrderedDict", "defaultdict", "Counter")
_BUILTINS = (
    *("dict", "list", "set", "tuple", "frozenset", "bool", "int", "float", "complex", "str", "bytes"),
    *("bytearray", "range", "slice", "object", "type"),
    # What protocols 0 to 2 call `int`, `str` and `range`.
    *("long", "unicode", "xrange"),
)
_DTYPES = (
    *("bool", "uint8", "int8", "int16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
)
_ARRAYS = ("scalar", "_reconstruct")
# Names of plain data, and of how types are written: `List[int]` is a call of `getitem`.
_NAMES = {
    "collections": ("OrderedDict", "defaultdict", "Counter", "deque"),
    "builtins": _BUILTINS,
    "__builtin__": _BUILTINS,
    "argparse": ("Namespace",),
    "copyreg": ("_reconstructor",),
    "copy_reg": ("_reconstructor",),
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "types": ("GenericAlias", "NoneType", "SimpleNamespace", "UnionType"),
    "operator": ("getitem", "or_"),
    "_operator": ("getitem", "or_"),
    "pathlib": ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
    "pathlib._local": ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
    "numpy": ("dtype", "ndarray", "bool_", *_DTYPES),
    "numpy.core.multiarray": _ARRAYS,
    "numpy._core.multiarray": _ARRAYS,
    "numpy.core.numeric": ("_frombuffer",),
    "numpy._core.numeric": ("_frombuffer",),
    "_codecs": ("encode",),
    "torch": ("device", "Size", *_DTYPES),
    "torch.nn.parameter": ("Parameter",),
    "torch.storage": ("UntypedStorage", "_UntypedStorage"),
    "torch._tensor": ("_rebuild_from_type_v2",),
    "torch._utils": (
        *("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter"),
        *("_rebuild_parameter_with_state", "_rebuild_sparse_tensor"),
    ),
}
_PACKAGES = ("omegaconf", "typing", "enum", "fairseq_signals", "fairseq_cli")
# How Python 3.11 writes a member of an enumeration: getattr(class, name).
_GETATTR = (("builtins", "getattr"), ("__builtin__", "getattr"))

_MARK = object()


class InertUnpickler:
    """Runs a pickle's instructions on plain data.

    Args:
        rebuild: called for a reduced global of `torch._utils` (name, arguments); returns what stands
            for it.
        persistent: called with a persistent id; returns what stands for it.
        storages: names of module `torch` to take besides, its storage classes.
    """

    def __init__(
        self,
        rebuild: Callable[[str, tuple], Any],
        persistent: Callable[[Any], Any],
        storages: tuple[str, ...],
    ) -> None:
        self._rebuild = rebuild
        self._persistent = persistent
        self._storages = storages
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def load(self, data: bytes | Readable) -> Any:
        """The object that the pickle describes; a file stands behind it afterwards.

        Raises:
            EcgfastError: it refers to a name that a checkpoint has no use for.
            ValueError, TypeError, LookupError: it is no sound pickle.
        """
        for opcode, argument, _ in pickletools.genops(data):
            name = opcode.name
            if name == "STOP":
                (result,) = self._stack
                return result
            if name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name]())
            elif name in _LITERALS:
                self._stack.append(argument)
            elif name not in ("PROTO", "FRAME"):
                step = getattr(self, "_" + name.lower(), None)
                if step is None:
                    raise EcgfastError(f"holds the pickle instruction {name}, which no checkpoint needs")
                step(argument)
        raise ValueError("no end")

    def _pop_mark(self) -> list[Any]:
        for start in range(len(self._stack) - 1, -1, -1):
            if self._stack[start] is _MARK:
                items = self._stack[start + 1 :]
                del self._stack[start:]
                return items
        raise ValueError("no mark")

    def _mark(self, _: None) -> None:
        self._stack.append(_MARK)

    def _pop(self, _: None) -> None:
        self._stack.pop()

    def _binput(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    _put = _long_binput = _binput

    def _memoize(self, _: None) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _binget(self, index: int) -> None:
        self._stack.append(self._memo[index])

    _get = _long_binget = _binget

    def _tuple(self, _: None) -> None:
        self._stack.append(tuple(self._pop_mark()))

    def _pop_tuple(self, n: int) -> None:
        if len(self._stack) < n:
            raise ValueError("empty stack")
        self._stack[-n:] = [tuple(self._stack[-n:])]

    def _tuple1(self, _: None) -> None:
        self._pop_tuple(1)

    def _tuple2(self, _: None) -> None:
        self._pop_tuple(2)

    def _tuple3(self, _: None) -> None:
        self._pop_tuple(3)

    def _list(self, _: None) -> None:
        self._stack.append(self._pop_mark())

    def _dict(self, _: None) -> None:
        items = self._pop_mark()
        self._stack.append({})
        self._update(items)

    def _frozenset(self, _: None) -> None:
        self._stack.append(self._pop_mark())

    def _append(self, _: None) -> None:
        item = self._stack.pop()
        self._extend([item])

    def _appends(self, _: None) -> None:
        self._extend(self._pop_mark())

    _additems = _appends

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Inert):
            target = target.contents
        if not isinstance(target, list):
            raise TypeError("appends to what is no list")
        target.extend(items)

    def _setitem(self, _: None) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._update([key, value])

    def _setitems(self, _: None) -> None:
        self._update(self._pop_mark())

    def _update(self, flat: list[Any]) -> None:
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        target = self._stack[-1]
        if isinstance(target, Inert):
            target.contents.extend(pairs)
        elif isinstance(target, dict):
            target.update(_with_plain_keys(pairs))
        else:
            raise TypeError("sets items of what is no dict")

    def _global(self, argument: str) -> None:
        self._push_global(*argument.split(" ", 1))

    def _stack_global(self, _: None) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._push_global(module, name)

    def _push_global(self, module: str, name: str) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is no text")
        known = name in _NAMES.get(module, ()) or _is_of_packages(module) or (module, name) in _GETATTR
        if not known and not (module == "torch" and name in self._storages):
            raise _refused(Global(module, name))
        self._stack.append(Global(module, name))

    def _reduce(self, _: None) -> None:
        args, kind = self._stack.pop(), self._stack.pop()
        if not isinstance(kind, Global) or not isinstance(args, tuple):
            raise TypeError("calls what is no name")
        self._stack.append(self._make(kind, args))

    _newobj = _reduce

    def _newobj_ex(self, _: None) -> None:
        self._stack.pop()  # keyword arguments
        self._reduce(None)

    def _make(self, kind: Global, args: tuple) -> Any:
        if kind in _GETATTR:
            return _enum_member(kind, args)
        if kind.module == "torch._tensor" and len(args) >= 3:  # of the function, the class, its arguments
            kind, _, args = args[:3]
            if not isinstance(kind, Global) or not isinstance(args, tuple):
                raise TypeError("a tensor of a strange class")
        if kind.module == "torch._utils":
            return self._rebuild(kind.name, args)
        if kind.name in _MAPPINGS and not _is_of_packages(kind.module):
            pairs = args[0] if args and isinstance(args[0], list) else []
            return dict(_with_plain_keys(pairs))
        if kind.name == "_reconstructor" and args and isinstance(args[0], Global):
            return Inert(args[0], ())
        return Inert(kind, args)

    def _build(self, _: None) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif not isinstance(target, dict):  # attributes of a dict, such as a state dict's versions
            raise TypeError("sets attributes of what has none")

    def _binpersid(self, _: None) -> None:
        self._stack.append(self._persistent(self._stack.pop()))


def _is_of_packages(module: str) -> bool:
    return module.partition(".")[0] in _PACKAGES


def _refused(name: Global) -> EcgfastError:
    return EcgfastError(f"refers to {name}, which a checkpoint has no use for")


def _enum_member(kind: Global, args: tuple) -> Inert:
    if len(args) != 2 or not isinstance(args[0], Global) or not _is_of_packages(args[0].module):
        raise _refused(kind)
    return Inert(args[0], args[1:])


def _with_plain_keys(pairs: list[Any]) -> list[Any]:
    """The pairs, whose keys hash at once: nested tuples can take for ever."""
    for key, _ in pairs:
        if key is not None and not isinstance(key, str | bytes | int | float | Global | Inert):
            raise TypeError("a key that is no scalar")
    return pairs


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    # A list stands for a set: its members need not be hashable here.
    "EMPTY_SET": list,
    "EMPTY_TUPLE": tuple,
}
_LITERALS = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
