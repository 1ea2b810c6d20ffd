"""Times variants of the same work in turn, and writes the results."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ecgfast.benchmarking import machine


def compare(
    variants: dict[str, Callable[[], Any]],
    turns: int,
    calls: int = 1,
    before: Callable[[], Any] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds per call of every variant: `turns` times in turn, after one call each that warms up.

    `before` runs ahead of every turn of a variant, and does not count.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for variant in variants.values():
        before()
        variant()
    for _ in range(turns):
        for name, variant in variants.items():
            before()
            start = time.perf_counter()
            for _ in range(calls):
                variant()
            times[name].append((time.perf_counter() - start) / calls)
    return times


def row(what: str, times: dict[str, list[float]], official: str, ours: str) -> dict[str, Any]:
    """Medians in milliseconds and their ratio."""
    theirs, own = statistics.median(times[official]), statistics.median(times[ours])
    spread = [round(1e3 * f(times[ours]), 3) for f in (min, max)]
    return {
        "what": what,
        "official_ms": round(1e3 * theirs, 3),
        "ecgfast_ms": round(1e3 * own, 3),
        "ecgfast_spread_ms": spread,
        "ratio": round(theirs / own, 1),
    }


def main(title: str, measure: Callable[[Path, int], tuple[list[dict[str, Any]], str]]) -> None:
    """Run `measure(folder, turns)` as a command; it returns rows and a paragraph on what they are."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="for records and stores that are made; they stay there")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    rows, about = measure(options.folder, options.turns)
    module = sys.modules["__main__"].__spec__.name
    result = {
        "title": title,
        "about": about,
        "hardware": machine.hardware("cpu"),
        "commit": machine.commit(),
        "numpy": np.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python -m {module} FOLDER --turns {options.turns}",
        "rows": rows,
    }
    print(describe(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(describe(result), encoding="utf-8")


def describe(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"# {result['title']} on {result['hardware']}",
        "",
        f"Commit {result['commit']}, NumPy {result['numpy']}, {result['date']}, `{result['command']}`",
        "",
        result["about"],
        "",
        "| what | official, ms | ecgfast, ms | (least to most) | ratio |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        spread = " to ".join(f"{value:g}" for value in row["ecgfast_spread_ms"])
        medians = f"{row['official_ms']:g} | {row['ecgfast_ms']:g}"
        lines.append(f"| {row['what']} | {medians} | {spread} | {row['ratio']:g} |")
    return "\n".join(lines) + "\n"
