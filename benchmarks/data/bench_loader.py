"""Batches from a warm page cache: our loaders against the official files and `DataLoader`.

    python -m benchmarks.data.bench_loader FOLDER --json out.json --markdown out.md

FOLDER gets the made records (a store, and the same segments as `.mat` files) and keeps them for the
next time.
"""

import argparse
import json
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.data.official_loader import SegmentFiles, collate, write_segments
from ecgfast.benchmarking import machine
from ecgfast.benchmarking.report import variant_of
from ecgfast.data import AdjacentPairs, ResidentLoader, SegmentLoader, Store
from ecgfast.data.store.recording import Recording
from ecgfast.data.store.store import STORE_VERSION
from ecgfast.data.store.writer import StoreWriter
from ecgfast.leads import STANDARD_LEADS

SAMPLES = 2500
PAIRS = 64
WORKERS = 2  # threads or processes of every variant
_OFFICIAL = ("official, 2 processes", "official, 2 threads")


def make_records(folder: Path, n_recordings: int) -> tuple[Store, list[Path]]:
    """A store of 10 s of noise per recording, and the official files of the same segments."""
    if not (folder / "store").exists():
        leads = list(STANDARD_LEADS)
        settings = {"format": "ecgfast-store", "version": STORE_VERSION, "sample_rate": 500, "leads": leads}
        rng = np.random.default_rng(0)
        with StoreWriter(folder / "store", settings) as writer:
            for i in range(n_recordings):
                signal = rng.integers(-2000, 2000, (12, 2 * SAMPLES)).astype(np.int16)
                writer.add(Recording(f"{i}", f"{i}", f"{i}", signal, leads, [], None, None, 500.0))
            writer.finish()
        (folder / "mat").mkdir()
        store = Store(folder / "store")
        write_segments(folder / "mat", map(store.signal, range(len(store))), SAMPLES)
    return Store(folder / "store"), sorted((folder / "mat").iterdir())


def official_processes(files: list[Path]) -> Callable[[], Iterator[Any]]:
    """`DataLoader` with its worker processes kept from one epoch to the next."""
    batches = DataLoader(
        SegmentFiles(files),
        batch_size=2 * PAIRS,
        shuffle=True,
        num_workers=WORKERS,
        collate_fn=collate,
        persistent_workers=True,
    )
    return partial(iter, batches)


def official_threads(files: list[Path]) -> Callable[[], Iterator[Any]]:
    """The same items in threads, a batch each, two batches per thread ahead."""
    items = SegmentFiles(files)

    def assemble(index: list[int]) -> Any:
        return collate([items[i] for i in index])

    def batches() -> Iterator[Any]:
        order = torch.randperm(len(items)).split(2 * PAIRS)
        with ThreadPoolExecutor(WORKERS) as pool:
            ahead: deque[Any] = deque()
            for index in order:
                ahead.append(pool.submit(assemble, index.tolist()))
                if len(ahead) > 2 * WORKERS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    return batches


def all_variants(store: Store, files: list[Path]) -> dict[str, Callable[[], Iterator[Any]]]:
    """What is compared; each gives the batches of an epoch."""
    variants = dict(zip(_OFFICIAL, (official_processes(files), official_threads(files)), strict=True))
    for dtype in ("float32", "int16"):
        plan = AdjacentPairs(store, PAIRS, segment_samples=SAMPLES)
        variants[f"SegmentLoader, {dtype}"] = partial(iter, SegmentLoader(plan, threads=WORKERS, dtype=dtype))
        variants[f"ResidentLoader on the CPU, {dtype}"] = partial(
            iter, ResidentLoader(plan, device="cpu", dtype=dtype)
        )
    return variants


def seconds_per_segment(variant: Callable[[], Iterator[Any]]) -> float:
    """One epoch, start and end included; its batches are let go one by one."""
    n, start = 0, time.perf_counter()
    for batch in variant():
        n += len(batch[0])
    return (time.perf_counter() - start) / n


def measure(variants: dict[str, Callable[[], Iterator[Any]]], turns: int) -> list[dict[str, Any]]:
    """Medians of epochs in turn, after one epoch each that warms the page cache and compiles."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(turns + 1):
        for name, variant in variants.items():
            seconds = seconds_per_segment(variant)
            if turn > 0:
                times[name].append(seconds)
    median = {name: statistics.median(values) for name, values in times.items()}
    official = min(median[name] for name in _OFFICIAL)
    return [
        {
            "variant": name,
            "microseconds_per_segment": round(1e6 * seconds, 2),
            "segments_per_second": round(1 / seconds),
            "int16_gb_per_s": round(2 * 12 * SAMPLES / seconds / 1e9, 3),
            "times_faster_than_official": round(official / seconds, 2),
            "spread": [round(1e6 * f(times[name]), 2) for f in (min, max)],
        }
        for name, seconds in median.items()
    ]


def describe(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"# Loading on {result['hardware']}",
        "",
        f"torch {result['torch']}, commit {result['commit']}, {result['date']}, `{result['command']}`",
        "",
        f"{result['recordings']:,} recordings of 10 s, batches of 2 x {PAIRS} segments of 12 x {SAMPLES}, "
        f"{WORKERS} workers, warm page cache; medians of {result['turns']} epochs of each variant in turn. "
        f"Against the faster official variant. Copied in the same run: {result['copy_gb_per_s']} GB/s "
        "(read + written).",
        "",
        "| variant | us per segment | (least to most) | segments/s | int16 read, GB/s | vs official |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        spread = " to ".join(f"{value:.4g}" for value in row["spread"])
        lines.append(
            f"| {variant_of(row)} | {row['microseconds_per_segment']:.4g} | {spread} "
            f"| {row['segments_per_second']:,} | {row['int16_gb_per_s']:.3g} "
            f"| {row['times_faster_than_official']:.3g}x |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Make the records where they are absent, measure, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recordings", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    store, files = make_records(args.folder, args.recordings)
    command = f"python -m benchmarks.data.bench_loader FOLDER --recordings {len(store)} --turns {args.turns}"
    result = {
        "hardware": machine.hardware("cpu"),
        "torch": torch.__version__,
        "commit": machine.commit(),
        "date": time.strftime("%Y-%m-%d"),
        "command": command,
        "recordings": len(store),
        "turns": args.turns,
        "copy_gb_per_s": machine.rates("cpu", quick=False)["copy_gb_per_s"],
        "rows": measure(all_variants(store, files), args.turns),
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    text = describe(result)
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
