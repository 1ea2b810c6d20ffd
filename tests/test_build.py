"""What was built: its configuration, its symbols, its wheel; what a build chooses, and which kernels run."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ecgfast
from ecgfast._build import build_info

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(ecgfast.__file__).parent


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        cwd=environment.get("PYTHONPATH", ROOT),
    )


@pytest.fixture(scope="module")
def setup_py():
    spec = importlib.util.spec_from_file_location("ecgfast_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cards(tmp_path, monkeypatch, setup_py):
    """Makes nvidia-smi print this; None: there is none, and no driver either."""

    def have(printed, status=0, driver=()):
        if printed is not None:
            program = tmp_path / "nvidia-smi"
            program.write_text(f"#!/bin/sh\ncat <<'END'\n{printed}\nEND\nexit {status}\n")
            program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        monkeypatch.setattr(setup_py, "_driver_capabilities", lambda: set(driver))

    return have


@pytest.mark.parametrize(
    ("printed", "architectures", "words"),
    [
        ("9.0", "90", "compute capability 9.0 (cards found: 9.0)"),
        ("8.9\n8.0\n8.9", "80;89", "compute capability 8.0, 8.9 (cards found: 8.0, 8.9)"),
        ("8.7", "86", "8.6 (cards found: 8.7)"),  # runs the code of 8.6
        ("10.3", "100", "10.0 (cards found: 10.3)"),
        ("12.1", "120", "12.0 (cards found: 12.1)"),
        ("13.0", "120", "12.0 (cards found: 13.0)"),  # compiles the PTX
        ("7.5", "none", "the card found is of 7.5, below 8.0"),
        ("7.5\n8.6", "86", "8.6 (cards found: 7.5, 8.6)"),
        ("[N/A]", "none", "no NVIDIA card was found"),
        ("NVIDIA-SMI has failed because it couldn't communicate", "none", "no NVIDIA card was found"),
        (None, "none", "no NVIDIA card was found"),
    ],
)
def test_the_default_build_is_for_the_cards_found(setup_py, cards, printed, architectures, words):
    cards(printed)
    chosen, line = setup_py.cuda_architectures(None)
    assert chosen == architectures
    assert words in line
    assert "ECGFAST_CUDA_ARCHS=all builds" in line
    assert "\n" not in line


def test_the_driver_is_asked_where_nvidia_smi_knows_no_capability(setup_py, cards):
    cards('Field "compute_cap" is not a valid field to query.', status=2, driver={80})
    assert setup_py.cuda_architectures(None)[0] == "80"


def test_without_a_driver_no_card_is_found(setup_py, monkeypatch):
    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(setup_py.ctypes, "CDLL", absent)
    assert setup_py._driver_capabilities() == set()


class Driver:
    """libcuda.so.1 of a machine with these cards."""

    def __init__(self, capabilities, broken=False):
        self.capabilities, self.broken = capabilities, broken

    def cuInit(self, flags):
        return 100 if self.broken else 0

    def cuDeviceGetCount(self, count):
        count._obj.value = len(self.capabilities)
        return 0

    def cuDeviceGetAttribute(self, value, attribute, card):
        value._obj.value = self.capabilities[card][attribute - 75]
        return 0


@pytest.mark.parametrize(
    ("driver", "found"),
    [(Driver([(9, 0), (12, 1)]), {90, 121}), (Driver([]), set()), (Driver([(9, 0)], broken=True), set())],
)
def test_what_the_driver_says(setup_py, monkeypatch, driver, found):
    monkeypatch.setattr(setup_py.ctypes, "CDLL", lambda name: driver)
    assert setup_py._driver_capabilities() == found


@pytest.mark.parametrize(
    ("asked", "architectures"),
    [
        ("all", "80;86;89;90;100;120"),
        ("ALL", "80;86;89;90;100;120"),
        ("none", "none"),
        ("", "none"),
        ("90", "90"),
        ("80;90", "80;90"),
        ("80,90 120", "80;90;120"),
        ("90a;86-real", "90a;86-real"),
    ],
)
def test_other_builds_are_asked_for(setup_py, cards, asked, architectures):
    cards("9.0")
    assert setup_py.cuda_architectures(asked)[0] == architectures


@pytest.mark.parametrize("asked", ["fast", "75", "8.0", "80;none", "sm_90", "all;90", "90x"])
def test_unknown_architectures_are_refused(setup_py, asked):
    with pytest.raises(SystemExit, match=f"ECGFAST_CUDA_ARCHS must be all, none, or .*, got '{asked}'"):
        setup_py.cuda_architectures(asked)


def test_show_config_names_what_was_built(capsys):
    ecgfast.show_config()
    shown = capsys.readouterr().out
    for key in ("compiler", "kernel flags", "CPU kernels", "CUDA kernels", "torch"):
        assert re.search(rf"^{key} +\S", shown, re.MULTILINE), key
    built = build_info()
    assert set(ecgfast.usable_cpu_isas()) <= set(built["cpu_isas"].split(","))
    assert ecgfast.cpu_isa() in ecgfast.usable_cpu_isas()
    assert built["torch_target"] == "2.10"


# Forks after the import of torch, which takes seconds, and imports ecgfast in an environment of each.
IN_ENVIRONMENTS = """
import os, sys, torch
for value in {values!r}:
    sys.stdout.flush()
    if os.fork() == 0:
        os.environ[{variable!r}] = value
        try:
            {code}
        except Exception as error:
            print(error)
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


def lines_in_environments(variable, values, code):
    """The line that the code prints where the variable has each of the values."""
    done = run_python(IN_ENVIRONMENTS.format(values=values, variable=variable, code=code))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_isa_can_be_forced():
    isas = ecgfast.usable_cpu_isas()
    code = "import ecgfast; print(ecgfast.cpu_isa())"
    *forced, refused = lines_in_environments("ECGFAST_CPU_ISA", [*isas, "mmx"], code)
    assert forced == isas
    assert refused.startswith("ECGFAST_CPU_ISA must be one of")
    with pytest.raises(ValueError, match=r"set_cpu_isa: name must be one of .*, got 'mmx'"):
        ecgfast.set_cpu_isa("mmx")


def test_reference_ops_can_be_chosen_for_a_process():
    code = "from ecgfast.ops._dispatch import fused; print(fused('lead_mask', torch.zeros(1)))"
    reference, kernels, refused = lines_in_environments("ECGFAST_OPS", ["reference", "fused", "fast"], code)
    assert (reference, kernels) == ("False", "True")
    assert "ECGFAST_OPS must be" in refused


def test_the_op_libraries_export_nothing_and_carry_no_paths():
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm")
    for library in PACKAGE.glob("libecgfast_*.so"):
        listed = subprocess.run(
            [nm, "-D", "--defined-only", library], capture_output=True, text=True, check=True
        )
        assert listed.stdout.strip() == "", library
        assert str(ROOT).encode() not in library.read_bytes(), library


# Of libtorch 2.10.0, that may be named by binaries which load in it: what its libtorch_cpu.so exports of the
# stable ABI, and of libtorch_cuda.so what its headers declare.
STABLE_ABI = (ROOT / "tests" / "fixtures" / "torch-2.10-stable-abi.txt").read_text().split()
OTHERS = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__"}  # weak, of GCC


def undefined_symbols(library):
    """What a library needs of others, without what has a version: that is of the C and C++ libraries."""
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True
    )
    names = {line.split()[-1] for line in listed.stdout.splitlines()}
    return {name for name in names if "@" not in name} - OTHERS


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
@pytest.mark.parametrize("name", ["libecgfast_cpu.so", "libecgfast_cuda.so"])
def test_the_libraries_need_what_the_oldest_torch_has(name):
    """Built with a newer torch's headers, they load in 2.10."""
    if not (PACKAGE / name).exists():
        pytest.skip(f"{name} is not built")
    needed = undefined_symbols(PACKAGE / name)
    assert "torch_call_dispatcher" in needed or name.endswith("cuda.so")
    assert not needed - set(STABLE_ABI), sorted(needed - set(STABLE_ABI))


def test_no_isa_shares_code_with_another():
    """A weak symbol of one ISA's objects could be linked in place of another's."""
    nm = shutil.which("nm")
    objects = sorted(ROOT.glob("build/cmake-*/CMakeFiles/kernels_*.dir/**/*.o"))
    if nm is None or not objects:
        pytest.skip("no build folder")
    for path in objects:
        listed = subprocess.run([nm, "-C", path], capture_output=True, text=True, check=True).stdout
        shared = [line for line in listed.splitlines() if re.search(r" [WVu] ", line)]
        assert not shared, f"{path.name}: {shared[:3]}"


def test_a_wheel_holds_everything_and_runs(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ROOT,
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        tmp_path,
    ]
    built = re.sub(",", ";", build_info()["cuda_architectures"]) or "none"
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"ECGFAST_CUDA_ARCHS": built}
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob(f"ecgfast-{ecgfast.__version__}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {"ecgfast/libecgfast_cpu.so", "ecgfast/benchmarking/variants/official.py"} <= set(names)
    assert not [n for n in names if n.startswith(("tests/", "benchmarks/", "csrc/"))]
    code = (
        "import torch, ecgfast; x = torch.randn(2, 5, 8);"
        "loss, _ = ecgfast.ops.local_contrastive(x, x, negatives='all'); print(ecgfast.__file__, loss.shape)"
    )
    done = run_python(code, PYTHONPATH=str(tmp_path / "site"))
    assert str(tmp_path) in done.stdout, done.stderr
