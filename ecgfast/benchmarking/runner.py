"""Starts the measuring processes and puts their answers together."""

import contextlib
import datetime
import json
import math
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ecgfast._build import cpu_isa, has_kernel
from ecgfast._outputs import check_output, make_folder, write_whole
from ecgfast._suggest import did_you_mean
from ecgfast.benchmarking import machine
from ecgfast.benchmarking.cases import CASES, VARIANTS, Sizes, merge_sizes, other_sizes
from ecgfast.benchmarking.progress import listen
from ecgfast.benchmarking.report import markdown
from ecgfast.errors import EcgfastError

PAGES = ("plain", "kept")
Log = Callable[[str], None]

# glibc never maps large blocks apart and never gives the heap's end back: pages stay, faulted in once.
_KEEP_PAGES = (
    "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776:glibc.malloc.top_pad=67108864"
)
_KERNELS_OF = {
    "masks": ("lead_mask", "span_mask"),
    "nt_xent": ("global_contrastive_pairs",),
    "lead_pairs": ("global_contrastive_pairs",),
}


def _environment(pages: str) -> dict[str, str]:
    """The worker's environment: the user's, with this ecgfast importable and the allocator's mode set."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    if pages == "kept":
        env["GLIBC_TUNABLES"] = _KEEP_PAGES
    root = str(Path(__file__).resolve().parents[2])
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH")]))
    return env


def _ask(request: dict[str, Any], pages: str, log: Log) -> dict[str, Any]:
    """One worker's answer; `log` is told what it does meanwhile."""
    command = [sys.executable, "-m", "ecgfast.benchmarking.worker"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes, text=True, env=_environment(pages)) as worker:  # noqa: S603
        messages: list[str] = []
        listener = threading.Thread(target=listen, args=(worker.stderr, log, messages))
        listener.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # it ended before; its exit code tells
                worker.stdin.write(json.dumps(request))
                worker.stdin.close()
            answer = worker.stdout.read()
        except BaseException:
            worker.kill()
            raise
        finally:
            listener.join()
    if worker.returncode:
        last = (messages or ["no message"])[-1]
        what = f"{request['op']} ({request['task']}, {pages})"
        raise EcgfastError(f"bench: measuring {what} ended with {worker.returncode}: {last}")
    return json.loads(answer.strip().splitlines()[-1])


def _choose(name: str, given: Sequence[str] | None, possible: Sequence[str]) -> list[str]:
    """The given values in the order of the possible ones, all of which are the default."""
    for value in given or ():
        if value not in possible:
            near = did_you_mean(value, possible)
            raise EcgfastError(f"bench: {name} must be of {', '.join(possible)}, got {value!r}{near}")
    return [value for value in possible if not given or value in given]


def _check_op(op: str) -> None:
    if op not in CASES:
        near = did_you_mean(op, [*CASES, "all"])
        raise EcgfastError(f"bench: OP must be one of {', '.join(CASES)} or all, got {op!r}{near}")


def _check_device(device: str) -> None:
    if device not in ("cpu", "cuda"):
        near = did_you_mean(device, ("cpu", "cuda"))
        raise EcgfastError(f"bench: device must be cpu or cuda, got {device!r}{near}")
    if device == "cuda" and not torch.cuda.is_available():
        raise EcgfastError("bench: device cuda asked for, but torch finds no CUDA device")


def _peaks(
    request: dict[str, Any], variants: Sequence[str], log: Log
) -> dict[tuple[str, str, str], float | None]:
    found = {}
    for variant in variants:
        for dtype in request["dtypes"]:
            for pass_ in request["passes"]:
                one = request | {"task": "memory", "variant": variant, "dtype": dtype, "pass": pass_}
                log(f"{request['op']}: memory of {variant}, {dtype}, {pass_}")
                found[variant, dtype, pass_] = _ask(one, "plain", log)["peak_mib"]
    return found


def _floor_ms(floor: dict[str, Any], rates: dict[str, float]) -> float:
    """The longer of the products at the measured rate and the bytes at the measured bandwidth."""
    flops = rates.get(f"gemm_{floor['dtype']}_gflops", float("inf")) * 1e6
    return round(max(floor["flop"] / flops, floor["bytes"] / (rates["copy_gb_per_s"] * 1e6)), 4)


def _gemm_share(floor: dict[str, Any], rates: dict[str, float], ms: float) -> float | None:
    """The direct computation's operations in this time, over what matrix products would do in it."""
    flops = rates.get(f"gemm_{floor['dtype']}_gflops")
    if not flops or not floor["direct_flop"]:
        return None
    return round(floor["direct_flop"] / (ms * 1e6) / flops, 4)


def run(
    op: str,
    device: str = "cpu",
    sizes: Sizes | None = None,
    *,
    dtypes: Sequence[str] | None = None,
    passes: Sequence[str] | None = None,
    variants: Sequence[str] | None = None,
    pages: Sequence[str] | None = None,
    budget_s: float = 10.0,
    quick: bool = False,
    log: Log = lambda line: None,
) -> dict[str, Any]:
    """Measure one op.

    Each pages mode is a process in which all variants run in turn; on the CPU each peak of memory is a
    process, in the plain mode (Linux: highest resident memory over that before the op; CUDA: torch's
    allocator).

    Args:
        op: a name in ``CASES``.
        device: "cpu" or "cuda" (there one pages mode: torch's allocator always keeps).
        sizes: sizes in place of the case's defaults.
        dtypes, passes, variants, pages: what to measure; None: everything.
        budget_s: seconds for each dtype, pass and pages mode; at least 5 rounds are run.
        quick: tiny sizes and few rounds, to see that everything runs.
        log: told of each step.

    Returns:
        ``{"op", "device", "hardware", "torch", "commit", "sizes", "rows": [{"variant", "dtype", "pass",
        "pages", "median_ms", "peak_mib", ...}], ...}``, ready for JSON. Variants that failed (for want of
        memory, say) are listed under ``failed`` and have no row.

    Raises:
        EcgfastError: naming the argument, what came and what is taken.
    """
    _check_op(op)
    _check_device(device)
    if not 0 <= budget_s < math.inf:
        raise EcgfastError(f"bench: budget must be a number of seconds of at least 0, got {budget_s}")
    case = CASES[op]
    # A case without a choice of dtype or pass (the masks) takes no notice of one.
    dtypes = _choose("dtype", dtypes, case.dtypes) if len(case.dtypes) > 1 else list(case.dtypes)
    passes = _choose("pass", passes, case.passes) if len(case.passes) > 1 else list(case.passes)
    variants = _choose("variant", variants, VARIANTS)
    modes = ["plain"] if device == "cuda" or platform.libc_ver()[0] != "glibc" else list(PAGES)
    request = {
        "op": op,
        "device": device,
        "sizes": merge_sizes(op, sizes, quick, device),
        "dtypes": dtypes,
        "passes": passes,
        "variants": variants,
        "threads": machine.cores(),
        "budget_s": 0.0 if quick else budget_s,
        "least_rounds": 2 if quick else 5,
        "most_rounds": 200,
        "quick": quick,
        "measure_rates": True,
        "task": "time",
    }
    answers = {}
    for mode in _choose("pages", pages, modes):
        log(f"{op}: timing, pages {mode}")
        answers[mode] = _ask(request, mode, lambda line: log(f"{op}: {line}"))
        request["measure_rates"] = False
    first = next(iter(answers.values()))
    peaks = {}
    if device == "cpu":  # on CUDA the rows have them
        timed = [v for v in variants if any(row["variant"] == v for row in first["rows"])]
        peaks = _peaks(request, timed, log)
    return _result(request, answers, first, peaks)


def _result(
    request: dict[str, Any],
    answers: dict[str, dict[str, Any]],
    first: dict[str, Any],
    peaks: dict[tuple[str, str, str], float | None],
) -> dict[str, Any]:
    op, device, rates = request["op"], request["device"], first["rates"]
    floors = {(f["dtype"], f["pass"]): f for f in first["floors"]}
    rows, failed = [], []
    for mode, answer in answers.items():
        failed += [failure | {"pages": mode} for failure in answer["failed"]]
        for row in answer["rows"]:
            dtype, pass_ = row["dtype"], row["pass"]
            floor = floors[dtype, pass_]
            measured = {
                "variant": row["variant"],
                "dtype": dtype,
                "pass": pass_,
                "pages": mode,
                "median_ms": row["median_ms"],
                "peak_mib": peaks.get((row["variant"], dtype, pass_)),
            }
            extra = {
                "floor_ms": _floor_ms(floor, rates),
                "gemm_share": _gemm_share(floor, rates, row["median_ms"]),
                "result_mib": round(floor["result_bytes"] / 2**20, 3),
            }
            rows.append(measured | extra | row)
    return {
        "op": op,
        "device": device,
        "hardware": machine.hardware(device),
        "torch": torch.__version__,
        "commit": machine.commit(),
        "sizes": request["sizes"],
        "rows": rows,
        "failed": failed,
        "kernel": all(has_kernel(name, device) for name in _KERNELS_OF.get(op, (op,))),
        "cpu_isa": cpu_isa(),
        "threads": request["threads"],
        "rates": rates,
        "floors": first["floors"],
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name.replace("__main__.py", "ecgfast"), *sys.argv[1:]]),
    }


def bench(
    op: str,
    *,
    device: str = "cpu",
    sizes: Sizes | None = None,
    json_file: Path | None = None,
    json_dir: Path | None = None,
    markdown_file: Path | None = None,
    log: Log = lambda line: None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Measure an op, or with "all" every op at every default size, and write what was asked for.

    ``json_file`` takes one op's result; ``json_dir`` a file per op and size; ``markdown_file`` a table. Their
    folders are made if they are absent. ``options`` are those of :func:`run`.

    Raises:
        EcgfastError: an option out of its values, or a file that can't be written; nothing is measured then.
    """
    if op == "all":
        if json_file is not None or sizes:
            raise EcgfastError(
                "bench: all writes many files of many sizes: give --json-dir, no --json or sizes"
            )
        todo = [(name, "", None) for name in CASES]
        todo += [(name, f"_{suffix}", s) for name in CASES for suffix, s in other_sizes(name, device).items()]
    else:
        _check_op(op)
        todo = [(op, "", sizes)]
    _check_device(device)
    for argument, path in (("json", json_file), ("markdown", markdown_file)):
        if path is not None:
            make_folder(argument, path.parent)
            check_output(argument, path)
    if json_dir is not None:
        make_folder("json_dir", json_dir)
    results = []
    for name, suffix, chosen in todo:
        if options.get("quick") and suffix:
            continue
        results.append(run(name, device, chosen, log=log, **options))
        for path in filter(None, [json_file, json_dir and json_dir / f"{name}{suffix}.json"]):
            _write(path, json.dumps(results[-1], indent=1) + "\n")
    if markdown_file is not None:
        _write(markdown_file, markdown(results))
    return results


def _write(path: Path, text: str) -> None:
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))
