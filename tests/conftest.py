"""Fixtures shared by all tests."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Processes that run beside each other share the cores: more threads than cores wait for one another. Before
# torch, whose OpenMP reads it once; the processes that tests start inherit it.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // workers)))

import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


NEEDS_SHARED = "needs ../shared"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much was not tested for want of the reference material."""
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum(NEEDS_SHARED in str(report.longrepr) for report in skipped)
    if count:
        terminalreporter.write_line(
            f"{count} tests skipped: they need the reference material, and {SHARED} is absent"
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `cuda` skip where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def find_shared(name: str) -> Path:
    """A path below ``../shared``; skips the test where that is absent, and fails it in CI where a part is."""
    path = SHARED / name
    if not path.exists():
        if SHARED.is_dir() and os.environ.get("CI") == "true":
            pytest.fail(f"{path} is absent in CI, though {SHARED} is there")
        pytest.skip(NEEDS_SHARED)
    return path


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """A file or folder of the reference material beside the repository.

    It holds real recordings and the official implementation's numbers, which are not part of the
    repository: see :func:`find_shared`.
    """
    return find_shared
