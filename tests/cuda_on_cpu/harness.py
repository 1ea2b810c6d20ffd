"""Builds drivers of CUDA kernels against the emulator in ``emulator/`` and calls them through ctypes."""

import ctypes
import fcntl
import functools
import hashlib
import os
import re
import shutil
import site
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = ROOT / "build" / "cuda_on_cpu"
SCHEDULES = ("fwd", "rev", "rand:7")
TF32 = 3  # as Dtype: float32 tensors whose products are in TF32
UNDER_ASAN = os.environ.get("ECGFAST_EMULATE_UNDER_ASAN") == "1"

# fno-gnu-unique: several drivers are loaded into one process, each with its own emulator.
FLAGS = [
    "-std=c++17",
    "-O1",
    "-g1",  # lines for the sanitizer's reports; all else takes a fifth of the compiler's time
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-fno-gnu-unique",
    "-fno-strict-aliasing",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
]
ASAN_FLAGS = ("-fsanitize=address", "-fno-omit-frame-pointer")


class EmulatorError(RuntimeError):
    """What the emulator found wrong with a kernel."""


def unavailable(reason: str) -> None:
    """Skips the test, or fails it where nothing may be missing."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def _nvcc_root(nvcc: str) -> Path | None:
    # nvcc on the path may be a script that calls the real one: ask it where its toolkit is.
    dry = subprocess.run(
        [nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True, check=False
    )
    top = re.search(r"^#\$ TOP=(.+)$", dry.stderr, re.MULTILINE)
    return Path(top[1].strip()) if top else None


def toolkit_roots() -> Iterator[Path]:
    """Folders that may be a CUDA toolkit: the environment's, nvcc's, the usual ones, PyPI's wheels."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            yield Path(os.environ[name])
    nvcc = shutil.which("nvcc")
    if nvcc and (root := _nvcc_root(nvcc)):
        yield root
    yield from sorted(Path("/usr/local").glob("cuda*"))
    for packages in (*site.getsitepackages(), *sys.path):
        yield from sorted(Path(packages).glob("nvidia/cu*"))


@functools.cache
def cuda_include() -> Path | None:
    for root in toolkit_roots():
        if (root / "include" / "cuda_bf16.h").is_file():
            return root / "include"
    return None


def _content_key(source: Path, command: list[str]) -> str:
    files = [
        source,
        *HERE.glob("emulator/*.h"),
        *ROOT.glob("csrc/cuda/*.cu*"),
        *ROOT.glob("csrc/cuda/*.h"),
        *ROOT.glob("csrc/common/*.h"),
    ]
    key = hashlib.sha256(repr(command).encode())
    for file in sorted(files):
        key.update(file.name.encode() + b"\0" + file.read_bytes())
    return key.hexdigest()[:16]


def compile_driver(name: str, *, defines: tuple[str, ...] = (), asan: bool = UNDER_ASAN) -> Path:
    """The shared library of ``drivers/<name>.cpp``, built when anything it is made of has changed."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        unavailable("the emulator needs g++")
    if os.uname().machine != "x86_64":
        unavailable("the emulator switches stacks on x86-64 only")
    include = cuda_include()
    if include is None:
        unavailable("no CUDA headers: set CUDA_HOME, or install nvcc or the nvidia-cuda-runtime wheel")
    source = HERE / "drivers" / f"{name}.cpp"
    options = [*FLAGS, *(ASAN_FLAGS if asan else ()), *(f"-D{d}" for d in defines)]
    command = [compiler, *options, "-isystem", str(include), str(source)]
    library = CACHE / f"{name}-{_content_key(source, command)}.so"
    if not library.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with library.with_suffix(".lock").open("w") as lock:  # another process may be building it
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not library.exists():
                part = library.with_suffix(".part")
                built = subprocess.run(
                    [*command, "-o", str(part)], capture_output=True, text=True, check=False
                )
                assert built.returncode == 0, built.stderr
                part.replace(library)
    return library


class Driver:
    """A loaded driver: its functions return None or a message, which is raised as EmulatorError."""

    def __init__(self, name: str, *, defines: tuple[str, ...] = ()) -> None:
        self._library = ctypes.CDLL(str(compile_driver(name, defines=defines)))

    def schedule(self, order: str) -> None:
        self.call("emu_set_schedule", order.encode())

    def call(self, function: str, *arguments: object) -> None:
        f = getattr(self._library, function)
        f.restype = ctypes.c_char_p
        message = f(*arguments)
        if message is not None:
            raise EmulatorError(message.decode())


def asan_environment() -> dict[str, str]:
    """The environment of a Python process that loads drivers built under AddressSanitizer."""
    # libstdc++ too: the runtime looks for the function that throws exceptions when it starts.
    libraries = [_library_path(name) for name in ("libasan.so", "libstdc++.so")]
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "ECGFAST_EMULATE_UNDER_ASAN": "1",
    }


def _library_path(name: str) -> str:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        unavailable("the emulator needs g++")
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    if not path.is_absolute():
        unavailable(f"g++ has no {name}")
    return str(path)
