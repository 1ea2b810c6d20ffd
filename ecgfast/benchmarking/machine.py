"""The machine and what it can do: its name, its instruction sets, its measured rates."""

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ecgfast._version import __version__

_ISA_FLAGS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX512-BF16",
    "amx_bf16": "AMX-BF16",
    "asimd": "NEON",
    "sve": "SVE",
    "bf16": "BF16",
}


def _cpuinfo(key: str) -> str:
    try:
        found = re.search(rf"^{key}\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1].strip() if found else ""


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def isa() -> str:
    """The CPU's vector instruction sets that matter here, and whether AMX is among them."""
    flags = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    names = [name for flag, name in _ISA_FLAGS.items() if flag in flags]
    if "avx2" in flags and "amx_bf16" not in flags:
        names.append("no AMX")
    return ", ".join(names) or platform.machine()


def hardware(device: str) -> str:
    """CPU model, cores and instruction sets, or the GPU's name."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    model = _cpuinfo("model name") or platform.processor() or platform.machine()
    return f"{re.sub(r'[ ]+', ' ', model)}, {cores()} cores ({isa()})"


def commit() -> str:
    """``git describe`` of the checkout that is running, else ecgfast's version."""
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
            return done.stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            pass
    return __version__


def synchronize(device: str) -> None:
    """Wait for the device to finish; the CPU has."""
    if device == "cuda":
        torch.cuda.synchronize()


_MOST_S = 2.0  # that repeats of one measurement may take together
_PROBE = 256  # order of the products by which larger ones are foreseen


def _best_seconds(function: Callable[[], object], device: str, repeats: int = 7) -> float:
    """The shortest of several calls, fewer where they would take more than two seconds together."""
    best, deadline = float("inf"), time.perf_counter() + _MOST_S
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() + best > deadline:
            break
    return best


def _product_seconds(n: int, dtype: str, device: str) -> float:
    a = torch.randn(n, n, device=device).to(getattr(torch, dtype))
    out = torch.empty_like(a)
    return _best_seconds(lambda: torch.mm(a, a, out=out), device)


def _product_rate(largest: int, dtype: str, device: str) -> float:
    """GFLOP/s of a product of this order, or of the largest that doesn't take seconds.

    A CPU without products in bfloat16 does them element by element, hundreds of times slower than in float32.
    """
    n = _PROBE
    seconds = _product_seconds(n, dtype, device)
    while n < largest and 8 * seconds < _MOST_S / 2:  # an order twice as large takes eight times as long
        n *= 2
        seconds = _product_seconds(n, dtype, device)
    return round(2 * n**3 / seconds / 1e9, 1)


def rates(
    device: str,
    quick: bool = False,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, float]:
    """Measured limits: products in GFLOP/s for each dtype asked for, and copied GB/s (read + written).

    Takes a few seconds for each, however slow the machine is.

    Args:
        device: "cpu" or "cuda".
        quick: small sizes.
        dtypes: names of the dtypes of products; none: copies alone.
        log: told of each measurement.

    Returns:
        ``gemm_<dtype>_gflops`` for each of ``dtypes``, and ``copy_gb_per_s``.
    """
    n = _PROBE if quick else (8192 if device == "cuda" else 2048)
    found = {}
    for name in dtypes:
        log(f"the rate of products in {name}")
        found[f"gemm_{name}_gflops"] = _product_rate(n, name, device)
    log("the rate of copies")
    source = torch.ones(n**2 * 16, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _best_seconds(lambda: target.copy_(source), device)
    found["copy_gb_per_s"] = round(2 * source.numel() / seconds / 1e9, 2)
    return found
