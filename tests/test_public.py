"""The package's front door: every public name is there, and looking at it costs nothing."""

import subprocess
import sys

import pytest

import ecgfast


def test_every_public_name_is_there():
    for name in ecgfast.__all__:
        assert getattr(ecgfast, name) is not None
    assert set(ecgfast.__all__) == set(dir(ecgfast))
    with pytest.raises(AttributeError, match="no attribute 'Decoder'"):
        _ = ecgfast.Decoder
    for name in ecgfast.ops.__all__:
        assert callable(getattr(ecgfast.ops, name))


def test_help_does_not_wait_for_torch():
    code = "import sys, ecgfast.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
