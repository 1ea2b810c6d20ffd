"""Builds the op libraries and ``ecgfast._C`` with CMake and Ninja. Everything else is in pyproject.toml.

Environment: ``ECGFAST_CUDA_ARCHS`` ("90", "80;90", "none"), ``ECGFAST_TORCH_ROOT`` (site-packages/torch),
``ECGFAST_BUILD_DIR``, ``CMAKE_ARGS``.
"""

import importlib.util
import os
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


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
        # Unset means CMakeLists.txt's default, not what an earlier build in this folder was told.
        archs = os.environ.get("ECGFAST_CUDA_ARCHS")
        flags.append(
            "-UECGFAST_CUDA_ARCHS"
            if archs is None
            else f"-DECGFAST_CUDA_ARCHS={archs.replace(',', ';') or 'none'}"
        )
        flags += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        subprocess.run([*cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *flags], check=True)
        subprocess.run([*cmake, "--build", build], check=True)
        # A library that this build leaves out must not stay from an earlier one.
        for stale in (destination / "ecgfast").glob("libecgfast_*.so"):
            stale.unlink()
        subprocess.run([*cmake, "--install", build, "--prefix", destination, "--strip"], check=True)

    def get_outputs(self) -> list[str]:
        return []


setup(ext_modules=[Extension("ecgfast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
