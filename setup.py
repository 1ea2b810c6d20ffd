"""Builds the op libraries and ``ecgfast._C`` with CMake and Ninja. Everything else is in pyproject.toml.

Environment: ``ECGFAST_CUDA_ARCHS`` ("all", "none", "90", "80;90"; unset: what this machine's cards run),
``ECGFAST_TORCH_ROOT`` (site-packages/torch), ``ECGFAST_BUILD_DIR``, ``CMAKE_ARGS``.
"""

import ctypes
import importlib.util
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# Compute capabilities, times ten, that "all" builds for. Each brings PTX, which newer cards compile.
ARCHITECTURES = (80, 86, 89, 90, 100, 120)


def torch_root() -> Path:
    """The torch whose headers to build with; torch itself is never imported.

    Under pip's build isolation torch is not on sys.path, but the target environment's site-packages,
    where it is installed, can still be told from sys.prefix.
    """
    spec = importlib.util.find_spec("torch")
    candidates = [
        os.environ.get("ECGFAST_TORCH_ROOT"),
        Path(spec.origin).parent if spec and spec.origin else None,
        *(Path(sysconfig.get_path(key)) / "torch" for key in ("purelib", "platlib")),
        Path(sysconfig.get_path("purelib", vars={"base": sys.base_prefix})) / "torch",
        Path(site.getusersitepackages()) / "torch",
    ]
    for candidate in filter(None, candidates):
        if (Path(candidate) / "include/torch/csrc/stable/library.h").exists():
            return Path(candidate)
    raise SystemExit(
        "ecgfast: building needs torch >= 2.10 installed in this environment (pip install torch), "
        "or ECGFAST_TORCH_ROOT=<site-packages>/torch"
    )


def cmake_command() -> list[str]:
    """CMake from PyPI where it is installed, else the system's."""
    if importlib.util.find_spec("cmake"):
        return [sys.executable, "-m", "cmake"]
    if system := shutil.which("cmake"):
        return [system]
    raise SystemExit("ecgfast: building needs CMake >= 3.25 (pip install cmake)")


def cards_found() -> list[int]:
    """The compute capabilities, times ten, of this machine's NVIDIA cards, by nvidia-smi or the driver."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        told = ""
    found = re.findall(r"^\s*(\d+)\.(\d)\s*$", told, re.MULTILINE)
    return sorted({10 * int(major) + int(minor) for major, minor in found} or _driver_capabilities())


def _driver_capabilities() -> set[int]:
    # An old nvidia-smi does not know the field, and containers may lack the program.
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return set()
    count, value = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return set()
    found = set()
    for card in range(count.value):
        capability = 0
        for attribute, weight in ((75, 10), (76, 1)):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
            if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, card):
                break
            capability += weight * value.value
        else:
            found.add(capability)
    return found


def cuda_architectures(wanted: str | None) -> tuple[str, str]:
    """CMake's list of CUDA architectures for a value of ``ECGFAST_CUDA_ARCHS``, and a line that says so."""
    everything = ";".join(map(str, ARCHITECTURES))
    if wanted is not None:
        names = [name for name in re.split(r"[;,\s]+", wanted.strip().lower()) if name]
        if names in ([], ["none"]):
            return "none", "no CUDA kernels, as ECGFAST_CUDA_ARCHS asks"
        if names == ["all"]:
            return everything, f"CUDA kernels for compute capability {_listed(ARCHITECTURES)}"
        for name in names:
            number = re.fullmatch(r"(\d+)[af]?(-real|-virtual)?", name)
            if number is None or int(number[1]) < ARCHITECTURES[0]:
                raise SystemExit(
                    "ecgfast: ECGFAST_CUDA_ARCHS must be all, none, or compute capabilities of 8.0 or more "
                    f"without their points, such as 80;90, got {wanted!r}"
                )
        return ";".join(names), f"CUDA kernels for {', '.join(names)}, as ECGFAST_CUDA_ARCHS asks"
    cards = cards_found()
    usable = [card for card in cards if card >= ARCHITECTURES[0]]
    if not usable:
        why = f"the card found is of {_listed(cards)}, below 8.0" if cards else "no NVIDIA card was found"
        return "none", f"no CUDA kernels, as {why}; ECGFAST_CUDA_ARCHS=all builds them for every card"
    # A card between two runs the older one's code; one newer than all compiles the newest PTX.
    chosen = sorted({max(a for a in ARCHITECTURES if a <= card) for card in usable})
    for_cards = f"CUDA kernels for compute capability {_listed(chosen)} (cards found: {_listed(cards)})"
    return ";".join(map(str, chosen)), f"{for_cards}; ECGFAST_CUDA_ARCHS=all builds for every card"


def _listed(capabilities: Iterable[int]) -> str:
    return ", ".join(f"{c // 10}.{c % 10}" for c in capabilities)


class CMakeBuild(build_ext):
    """Configures, builds and installs all native targets at once."""

    def run(self) -> None:
        import pybind11

        tag = f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
        default = ROOT / "build" / f"cmake-{tag}"
        build = Path(os.environ.get("ECGFAST_BUILD_DIR", default)).resolve()
        build.mkdir(parents=True, exist_ok=True)
        destination = ROOT if self.inplace else Path(self.build_lib).resolve()
        options = {
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "ECGFAST_TORCH_ROOT": torch_root(),
        }
        if importlib.util.find_spec("ninja"):
            import ninja

            options["CMAKE_MAKE_PROGRAM"] = Path(ninja.BIN_DIR) / "ninja"
        cmake = cmake_command()
        # An isolated build leaves its temporary ninja's path in the cache.
        flags = [] if "CMAKE_MAKE_PROGRAM" in options else ["-UCMAKE_MAKE_PROGRAM"]
        flags += [f"-D{key}={value}" for key, value in options.items()]
        architectures, line = cuda_architectures(os.environ.get("ECGFAST_CUDA_ARCHS"))
        print(f"ecgfast: {line}", flush=True)
        flags.append(f"-DECGFAST_CUDA_ARCHS={architectures}")
        flags += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        subprocess.run([*cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *flags], check=True)
        subprocess.run([*cmake, "--build", build], check=True)
        # A library that this build leaves out must not stay from an earlier one.
        for stale in (destination / "ecgfast").glob("libecgfast_*.so"):
            stale.unlink()
        subprocess.run([*cmake, "--install", build, "--prefix", destination, "--strip"], check=True)

    def get_outputs(self) -> list[str]:
        return []


if __name__ == "__main__":
    setup(ext_modules=[Extension("ecgfast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
