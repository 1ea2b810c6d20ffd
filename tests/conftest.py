"""Fixtures shared by all tests."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `cuda` skip where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


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
