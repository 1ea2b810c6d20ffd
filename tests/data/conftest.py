import subprocess
import sys

import pytest

from ecgfast.data import Store, prepare


@pytest.fixture
def imported(tmp_path):
    """Import a folder; returns the store."""

    def run(source, **options):
        prepare(source, tmp_path / "store", progress=False, **options)
        return Store(tmp_path / "store")

    return run


@pytest.fixture
def run_python():
    """Run a program in a process of its own; it must end well."""

    def run(program, *arguments):
        subprocess.run([sys.executable, "-c", program, *map(str, arguments)], check=True)

    return run
