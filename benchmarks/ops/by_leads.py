"""The stem by number of leads: `python -m benchmarks.ops.by_leads [--json FILE] [--markdown FILE]`.

Variants of `patch_embed` in turn, for each number of leads and both ways to lack the others: masked in each
segment (`keep`, other leads in each) and left out of the signal and the weights (the stem's `channels`). All
in one process on one thread. Times are CPU time, the least of the rounds, per segment: on a machine that
others use too they say more than wall-clock times, whose medians `ecgfast bench patch_embed --sizes K 2` has.
"""

import argparse
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


def measure(batch: int, rounds: int, dtype: str, variants: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a dtype: the leads, how the others are left out, the pass, the variant, `min_cpu_ms`."""
    found = variants_of("patch_embed")
    cases = []
    for kind in KINDS:
        for leads in COUNTS:
            sizes = {"B": batch, "K": leads} | ({"L": leads} if kind == "channels" else {})
            for pass_ in PASSES:
                whole = merge_sizes("patch_embed", sizes, quick=False)
                subject = Subject("patch_embed", whole, dtype, pass_ == "forward_backward", "cpu")
                cases += [((kind, leads, pass_, name), subject, found[name]) for name in variants]
    least: dict[tuple, float] = {}
    for _, subject, function in cases:
        subject(function)  # compiles, fills caches
    for _ in range(rounds):
        for key, subject, function in cases:
            begin = time.process_time()
            subject(function)
            taken = (time.process_time() - begin) * 1e3 / batch
            least[key] = min(least.get(key, taken), taken)
    names = ("others", "leads", "pass", "variant")
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
        f"| dtype | pass | others are left out by | leads | {' | '.join(names)} | ecgfast, of its 12 leads |",
        f"|---|---|---|---:|{'---:|' * (len(variants) + 1)}",
    ]
    groups: dict[tuple, dict[str, float]] = {}
    for row in result["rows"]:
        key = (row["dtype"], row["pass"], row["others"], row["leads"])
        groups.setdefault(key, {})[row["variant"]] = row["min_cpu_ms"]
    for dtype, pass_, others, leads in sorted(groups, key=_order):
        line = groups[dtype, pass_, others, leads]
        whole = groups[dtype, pass_, others, COUNTS[0]].get("ecgfast")
        share = f"{100 * line['ecgfast'] / whole:.0f} %" if whole else "–"
        times = " | ".join(f"**{line[v]:.2f}**" if v == "ecgfast" else f"{line[v]:.2f}" for v in variants)
        lines.append(f"| {dtype} | {pass_.replace('_', ' + ')} | `{others}` | {leads} | {times} | {share} |")
    return "\n".join(lines) + "\n"


def _order(key: tuple) -> tuple:
    dtype, pass_, others, leads = key
    return dtype != "float32", PASSES.index(pass_), KINDS.index(others), -leads


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
