import pytest

from ecgfast.data import Store, prepare


@pytest.fixture
def imported(tmp_path):
    """Import a folder; returns the store."""

    def run(source, **options):
        prepare(source, tmp_path / "store", progress=False, **options)
        return Store(tmp_path / "store")

    return run
