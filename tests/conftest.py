"""Fixtures shared by all tests."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """A file or folder of the reference material beside the repository.

    It holds real recordings and the official implementation's numbers, which are not part of the
    repository: tests skip where it is absent, and fail in CI, where it must be there.
    """

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            if os.environ.get("CI") == "true":
                pytest.fail(f"{path} is absent in CI")
            pytest.skip(f"{path} is absent")
        return path

    return find
