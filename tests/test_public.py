"""The package's front door: every public name is there, and looking at it costs nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

import ecgfast

ROOT = Path(__file__).resolve().parents[1]


def test_every_public_name_is_there():
    for name in ecgfast.__all__:
        assert getattr(ecgfast, name) is not None
    assert set(ecgfast.__all__) == set(dir(ecgfast))
    with pytest.raises(AttributeError, match="no attribute 'Decoder'"):
        _ = ecgfast.Decoder
    for name in ecgfast.ops.__all__:
        assert callable(getattr(ecgfast.ops, name))


def test_help_waits_for_nothing():
    code = "import sys, ecgfast.cli; assert not {'torch', 'tyro', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_build_reads_the_version_and_imports_nothing():
    pytest.importorskip("setuptools")
    code = "import runpy, sys; sys.argv[1:] = ['--version']; runpy.run_path('setup.py', run_name='__main__');"
    code += "assert 'ecgfast' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split()[-1] == ecgfast.__version__
