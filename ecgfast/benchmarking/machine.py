"""The machine and what it can do: its name, its instruction sets, its measured rates."""

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

import ecgfast

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
    root = Path(ecgfast.__file__).resolve().parents[1]
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
            return done.stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            pass
    return ecgfast.__version__


def synchronize(device: str) -> None:
    """Wait for the device to finish; the CPU has."""
    if device == "cuda":
        torch.cuda.synchronize()


def _best_seconds(function: Callable[[], object], device: str, repeats: int = 7) -> float:
    best = float("inf")
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def rates(device: str, quick: bool) -> dict[str, float]:
    """Measured limits: products in GFLOP/s for each dtype, and copied GB/s (read + written)."""
    n = 256 if quick else (8192 if device == "cuda" else 2048)
    found = {}
    for name in ("float32", "bfloat16"):
        a = torch.randn(n, n, device=device).to(getattr(torch, name))
        out = torch.empty_like(a)
        seconds = _best_seconds(lambda a=a, out=out: torch.mm(a, a, out=out), device)
        found[f"gemm_{name}_gflops"] = round(2 * n**3 / seconds / 1e9, 1)
    source = torch.ones(n**2 * 16, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _best_seconds(lambda: target.copy_(source), device)
    found["copy_gb_per_s"] = round(2 * source.numel() / seconds / 1e9, 2)
    return found
