"""One measurement in a process of its own: a request as JSON on stdin, the answer on the last line of stdout.

The process decides how the C allocator treats pages, so every pages mode is a process; so is, on the CPU,
every peak of memory, whose highest mark must not be another variant's.
"""

import contextlib
import ctypes
import functools
import gc
import json
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ecgfast.benchmarking import machine
from ecgfast.benchmarking.cases import CASES, flatten, merge_sizes, variants_of
from ecgfast.benchmarking.progress import report

_MIB = 2**20
# A fast variant may run several times per turn while it takes less than this share of the slowest one.
_TURN_SHARE = 0.1
_MOST_PER_TURN = 5
_SLOW_MS = 2500.0  # of a call, from which there is no other before the rounds


class Subject:
    """One op at one size, dtype and pass: its arguments, and a call of any of its variants."""

    def __init__(self, op: str, sizes: dict[str, int], dtype: str, backward: bool, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        made = CASES[op].inputs(sizes, getattr(torch, dtype), generator)
        self.arguments = _to_device(made, device)
        self.leaves = [t for t in flatten(self.arguments) if t.requires_grad] if backward else []
        self.read_bytes = CASES[op].read_bytes(sizes) if CASES[op].read_bytes else None
        self.cotangents: list[torch.Tensor] | None = None

    def __call__(self, function: Callable[..., Any]) -> Any:
        if not self.leaves:
            with torch.no_grad():
                return function(*self.arguments)
        outputs = [t for t in flatten(function(*self.arguments)) if t.requires_grad]
        if self.cotangents is None:
            self.cotangents = [torch.randn_like(t) for t in outputs]
        return torch.autograd.grad(outputs, self.leaves, self.cotangents)

    def least_bytes(self, function: Callable[..., Any]) -> tuple[int, int]:
        """Bytes that must be moved (arguments and results once each), and bytes of the results."""
        with torch.no_grad():
            outputs = list(flatten(function(*self.arguments)))
        arguments = sum(t.nbytes for t in flatten(self.arguments))
        moved = arguments if self.read_bytes is None else self.read_bytes
        results = sum(t.nbytes for t in [*outputs, *self.leaves])  # a gradient is as large as its leaf
        if self.leaves:
            moved += sum(t.nbytes for t in outputs if t.is_floating_point())
        return moved + results, results


def _to_device(tree: Any, device: str) -> Any:
    if isinstance(tree, torch.Tensor):
        return tree.detach().to(device).requires_grad_(tree.requires_grad)
    if isinstance(tree, list | tuple):
        return type(tree)(_to_device(item, device) for item in tree)
    return tree


@functools.cache
def _flush() -> torch.Tensor:
    """Memory whose filling empties the L2 of a GPU, and takes it longer than the host to queue most calls."""
    gpu = torch.cuda.get_device_properties()
    return torch.empty(min(64 * gpu.L2_cache_size, gpu.total_memory // 8), dtype=torch.uint8, device="cuda")


def _timed(subject: Subject, function: Callable[..., Any], device: str) -> float:
    """Milliseconds of one call, its results' release included.

    On CUDA the device's, from an empty L2: what the host does counts where the device waits for it.
    """
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        _flush().zero_()
        start.record()
        subject(function)
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    begin = time.perf_counter()
    subject(function)
    return (time.perf_counter() - begin) * 1e3


def _limit_memory() -> None:
    """Make an allocation past the machine's free memory fail here, before it hurts anything else."""
    available = Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + int(int(available) * 1024 * 0.9)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def time_variants(request: dict[str, Any], dtype: str, direction: str) -> tuple[list[dict], list[dict]]:
    """Medians of all variants, run in turn (A B C D A B C D ...) until the time is spent."""
    op, device = request["op"], request["device"]
    subject = Subject(op, request["sizes"], dtype, direction == "forward_backward", device)
    found = variants_of(op)
    functions = {variant: found[variant] for variant in request["variants"] if variant in found}
    failed, cost = [], {}
    for variant, function in functions.items():
        try:
            subject(function)
            cost[variant] = _timed(subject, function, device)
            if cost[variant] < _SLOW_MS:
                cost[variant] = min(cost[variant], _timed(subject, function, device))
            else:
                report(f"{dtype}, {direction}: {variant} takes {cost[variant] / 1e3:.1f} s a call")
        except (RuntimeError, MemoryError) as error:
            reason = str(error).split("\n")[0][:200]
            failed.append({"variant": variant, "dtype": dtype, "pass": direction, "error": reason})
            if device == "cuda":
                torch.cuda.empty_cache()
    samples: dict[str, list[float]] = {variant: [] for variant in cost}
    faults: dict[str, list[float]] = {variant: [] for variant in cost}
    share = _TURN_SHARE * max(cost.values(), default=0)
    turns = {v: max(1, min(_MOST_PER_TURN, int(share / max(c, 1e-3)))) for v, c in cost.items()}
    deadline = time.perf_counter() + request["budget_s"]
    # Where one round takes longer than all of the time, one is enough.
    slow = sum(cost.values()) > max(request["budget_s"], 1.0) * 1e3
    least_rounds = 1 if slow else request["least_rounds"]
    rounds = 0
    while cost and rounds < request["most_rounds"]:
        if time.perf_counter() > deadline and rounds >= least_rounds:
            break
        for variant, turn in turns.items():
            for _ in range(turn):
                before = _faults()
                samples[variant].append(_timed(subject, functions[variant], device))
                faults[variant].append(_faults() - before)
        rounds += 1
    rows = [
        {
            "variant": variant,
            "dtype": dtype,
            "pass": direction,
            "median_ms": round(statistics.median(taken), 4),
            "min_ms": round(min(taken), 4),
            "repeats": len(taken),
            "page_faults": statistics.median(faults[variant]),
        }
        for variant, taken in samples.items()
    ]
    if device == "cuda":
        for row in rows:
            row["peak_mib"] = round(_peak_on_cuda(subject, functions[row["variant"]]), 2)
    return rows, failed


def rated_dtypes(op: str, dtypes: Sequence[str]) -> list[str]:
    """Those of the dtypes in which the op multiplies matrices: their product rate is a limit."""
    case = CASES[op]
    multiplies = any((*case.products(case.sizes), *(case.direct or case.products)(case.sizes)))
    return [name for name in dtypes if multiplies and getattr(torch, name).is_floating_point]


def task_time(request: dict[str, Any]) -> dict[str, Any]:
    """All dtypes and passes of one op under this process's allocator."""
    if request["device"] == "cpu" and sys.platform == "linux":
        _limit_memory()
    answer: dict[str, Any] = {"rows": [], "failed": [], "floors": []}
    if request["measure_rates"]:
        dtypes = rated_dtypes(request["op"], request["dtypes"])
        answer["rates"] = machine.rates(request["device"], request["quick"], dtypes, report)
    ours = variants_of(request["op"])["ecgfast"]
    for dtype in request["dtypes"]:
        for direction in request["passes"]:
            report(f"{dtype}, {direction}")
            rows, failed = time_variants(request, dtype, direction)
            answer["rows"] += rows
            answer["failed"] += failed
            backward = direction == "forward_backward"
            subject = Subject(request["op"], request["sizes"], dtype, backward, request["device"])
            moved, results = subject.least_bytes(ours)
            floor = {"dtype": dtype, "pass": direction, "bytes": moved, "result_bytes": results}
            case = CASES[request["op"]]
            floor["flop"] = case.products(request["sizes"])[backward]
            floor["direct_flop"] = (case.direct or case.products)(request["sizes"])[backward]
            answer["floors"].append(floor)
    return answer


def _status_kib(field: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0])


def _trim() -> None:
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _peak_on_cpu(subject: Subject, function: Callable[..., Any], compiled: bool) -> float | None:
    """MiB of resident memory that a call adds at its highest.

    Counted from before the first call, so that workspaces which a variant keeps are its own; for a
    compiled one from after it, since the first call holds the compiler too.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    _trim()
    before = _status_kib("VmRSS")
    subject(function)
    _trim()
    if compiled:
        before = _status_kib("VmRSS")
    else:
        # Made by the first call and held by the op's caller: the gradients of its outputs.
        before += sum(t.nbytes for t in subject.cotangents or []) // 1024
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark restarts from here
    subject(function)
    return (_status_kib("VmHWM") - before) / 1024


def _peak_on_cuda(subject: Subject, function: Callable[..., Any]) -> float:
    """MiB of torch's allocator that a call adds at its highest; it has been called before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    subject(function)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / _MIB


def task_memory(request: dict[str, Any]) -> dict[str, Any]:
    """The extra peak memory of one variant, dtype and pass, over its inputs, on the CPU."""
    op, variant, dtype, direction = (request[key] for key in ("op", "variant", "dtype", "pass"))
    backward = direction == "forward_backward"
    if sys.platform == "linux":
        _limit_memory()
    function = variants_of(op)[variant]
    # Small sizes first: libraries load their code and make their threads, which is not the op's memory.
    small = Subject(op, merge_sizes(op, None, quick=True), dtype, backward, "cpu")
    small(function)
    subject = Subject(op, request["sizes"], dtype, backward, "cpu")
    try:
        peak = _peak_on_cpu(subject, function, variant == "tuned_compiled")
    except (RuntimeError, MemoryError) as error:
        return {"peak_mib": None, "error": str(error).split("\n")[0][:200]}
    return {"peak_mib": None if peak is None else round(max(peak, 0.0), 2)}


def main() -> None:
    """Answer the request on stdin."""
    warnings.filterwarnings("ignore", module=r"torch\..*")
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    answer = {"time": task_time, "memory": task_memory}[request["task"]](request)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
