"""The stem by number of leads: `python -m benchmarks.ops.by_leads [--json FILE] [--markdown FILE]`.

Variants of `patch_embed` in turn, for each number of leads and both ways to lack the others: masked in each
segment (`keep`, other leads in each) and left out of the signal and the weights (the stem's `channels`); for
the paper's four layers, and for a stem of layer 0 alone, which is all that depends on the leads. All in one
process on one thread. Times are CPU time, the least of the rounds, per segment: on a machine that
others use too they say more than wall-clock times, whose medians `ecgfast bench patch_embed --sizes K 2` has.
"""

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ecgfast._build import cpu_isa
from ecgfast.benchmarking import machine
from ecgfast.benchmarking.cases import VARIANTS, merge_sizes, variants_of
from ecgfast.benchmarking.worker import Subject

COUNTS = (12, 6, 3, 2, 1)
KINDS = ("keep", "channels")
PASSES = ("forward", "forward_backward")
DEPTHS = (4, 1)


def measure(batch: int, rounds: int, dtype: str, variants: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a dtype: layers, leads, how the others are left out, pass, variant, `min_cpu_ms`."""
    found = variants_of("patch_embed")
    cases = []
    for depth, kind, leads, pass_ in itertools.product(DEPTHS, KINDS, COUNTS, PASSES):
        given = {"B": batch, "K": leads, "D": depth} | ({"L": leads} if kind == "channels" else {})
        sizes = merge_sizes("patch_embed", given, quick=False)
        subject = Subject("patch_embed", sizes, dtype, pass_ == "forward_backward", "cpu")
        cases += [((depth, kind, leads, pass_, name), subject, found[name]) for name in variants]
    least: dict[tuple, float] = {}
    for _, subject, function in cases:
        subject(function)  # compiles, fills caches
    for _ in range(rounds):
        for key, subject, function in cases:
            begin = time.process_time()
            subject(function)
            taken = (time.process_time() - begin) * 1e3 / batch
            least[key] = min(least.get(key, taken), taken)
    names = ("layers", "others", "leads", "pass", "variant")
    return [
        {"dtype": dtype, **dict(zip(names, k, strict=True)), "min_cpu_ms": round(v, 4)}
        for k, v in least.items()
    ]


def table(result: dict[str, Any]) -> str:
    """The rows as Markdown, all variants of a case in a line; ecgfast's time also over that of 12 leads."""
    variants = result["variants"]
    names = [f"**{name}**" if name == "ecgfast" else name.replace("_", " ") for name in variants]
    lines = [
        "# The stem by number of leads",
        "",
        f"{result['hardware']}, torch {result['torch']}, commit {result['commit']}, {result['date']}.",
        "",
        f"Milliseconds of CPU time per segment (T = 2500, C = 256; {result['batch']} in a call), the least "
        f"of {result['rounds']} calls in turn, one thread. `keep`: masked in each segment, other leads "
        "in each. `channels`: the signal has the leads alone.",
        "",
        f"| dtype | layers | pass | others out by | leads | {' | '.join(names)} | ecgfast, of 12 leads |",
        f"|---|---:|---|---|---:|{'---:|' * (len(variants) + 1)}",
    ]
    groups: dict[tuple, dict[str, float]] = {}
    for row in result["rows"]:
        key = tuple(row[name] for name in ("dtype", "layers", "pass", "others", "leads"))
        groups.setdefault(key, {})[row["variant"]] = row["min_cpu_ms"]
    for dtype, layers, pass_, others, leads in sorted(groups, key=_order):
        line = groups[dtype, layers, pass_, others, leads]
        whole = groups[dtype, layers, pass_, others, COUNTS[0]].get("ecgfast")
        share = f"{100 * line['ecgfast'] / whole:.0f} %" if whole else "–"
        times = " | ".join(f"**{line[v]:.2f}**" if v == "ecgfast" else f"{line[v]:.2f}" for v in variants)
        lines.append(
            f"| {dtype} | {layers} | {pass_.replace('_', ' + ')} | `{others}` | {leads} | {times} | {share} |"
        )
    return "\n".join(lines) + "\n"


def _order(key: tuple) -> tuple:
    dtype, layers, pass_, others, leads = key
    return dtype != "float32", -layers, PASSES.index(pass_), KINDS.index(others), -leads


def main() -> None:
    """Measure, print the table, write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument(
        "--variants", nargs="+", default=["official", "tuned_eager", "ecgfast"], choices=VARIANTS
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row for dtype in given.dtypes for row in measure(given.batch, given.rounds, dtype, given.variants)
    ]
    result = {
        "hardware": machine.hardware("cpu"),
        "cpu_isa": cpu_isa(),
        "torch": torch.__version__,
        "commit": machine.commit(),
        "date": time.strftime("%Y-%m-%d"),
        "batch": given.batch,
        "rounds": given.rounds,
        "threads": 1,
        "variants": given.variants,
        "rows": rows,
    }
    page = table(result)
    print(page, end="")
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    if given.markdown:
        given.markdown.write_text(page)


if __name__ == "__main__":
    main()
