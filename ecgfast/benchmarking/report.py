"""Results as Markdown tables, with the ratios beside the times."""

from collections.abc import Iterable, Sequence
from typing import Any

_HEAD = (
    "dtype | pass | pages | official | tuned eager | tuned compiled | **ecgfast** | vs official "
    "| vs best tuned | floor | over floor | of GEMM rate | MiB: official / tuned / **ecgfast** | of official"
)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _ratio(above: float | None, below: float | None) -> str:
    return "–" if above is None or not below else f"{_number(above / below)}x"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def _least(rows: Iterable[dict[str, Any]], key: str) -> float | None:
    return min((row[key] for row in rows if row.get(key) is not None), default=None)


def variant_of(row: dict[str, Any]) -> str:
    """The variant that a row of a result is of; earlier results have it under ``form``."""
    return row["variant"] if "variant" in row else row["form"]


def _line(group: dict[str, dict[str, Any]]) -> str:
    def get(variant: str, key: str) -> float | None:
        return group.get(variant, {}).get(key)

    tuned = [row for variant, row in group.items() if variant.startswith("tuned")]
    ours, official = get("ecgfast", "median_ms"), get("official", "median_ms")
    any_row = next(iter(group.values()))
    # The memory of the tuned variant that is fastest: one is chosen for its time.
    fastest = min(tuned, key=lambda row: row["median_ms"], default={})
    memory = [get("official", "peak_mib"), fastest.get("peak_mib"), get("ecgfast", "peak_mib")]
    cells = [
        any_row["dtype"],
        any_row["pass"].replace("_", " + "),
        any_row["pages"],
        _number(official),
        _number(get("tuned_eager", "median_ms")),
        _number(get("tuned_compiled", "median_ms")),
        f"**{_number(ours)}**",
        _ratio(official, ours),
        _ratio(_least(tuned, "median_ms"), ours),
        _number(any_row["floor_ms"]),
        _ratio(ours, any_row["floor_ms"]),
        _percent(get("ecgfast", "gemm_share")),
        f"{_number(memory[0])} / {_number(memory[1])} / **{_number(memory[2])}**",
        f"1/{_number(memory[0] / memory[2])}" if memory[0] and memory[2] else "–",
    ]
    return f"| {' | '.join(cells)} |"


def _table(result: dict[str, Any]) -> list[str]:
    groups: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for row in result["rows"]:
        groups.setdefault((row["dtype"], row["pass"], row["pages"]), {})[row["variant"]] = row
    sizes = ", ".join(f"{name} = {value}" for name, value in result["sizes"].items())
    note = "" if result["kernel"] else " (no kernel yet: ecgfast runs its reference)"
    lines = [f"## {result['op']}: {sizes}{note}", "", f"| {_HEAD} |", f"|{'---|' * 3}{'---:|' * 11}"]
    lines += [_line(group) for group in groups.values()]
    for failure in result["failed"]:
        place = " ".join(failure[key] for key in ("variant", "dtype", "pass", "pages"))
        lines.append(f"\nNot measured: {place}: {failure['error']}")
    return [*lines, ""]


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """A page with the machine, its measured rates, and a table for each result.

    Times are medians in ms. The floor is the longer of the op's unavoidable matrix products at the
    measured GEMM rate and its arguments and results at the measured copy bandwidth.
    """
    first = results[0]
    # An op's run measures the product rates that it needs.
    rates: dict[str, float] = {}
    for result in results:
        rates = result["rates"] | rates
    named = {"gemm_float32_gflops": "fp32", "gemm_bfloat16_gflops": "bf16"}
    products = [f"{rates[key]:,.0f} GFLOP/s {name}" for key, name in named.items() if key in rates]
    copied = f"{rates['copy_gb_per_s']:g} GB/s copied"
    lines = [
        f"# Ops on {first['hardware']}",
        "",
        f"torch {first['torch']}, {first['threads']} threads, commit {first['commit']}, "
        f"{first['date'][:10]}, `{first['command']}`",
        "",
        f"Measured in the same run: {', '.join([*products, copied])} (read + written).",
        "",
        'Medians in ms of interleaved runs. Pages "kept": the C allocator keeps its pages. Floor: the longer '
        "of the products that no variant can do without, at that rate, and arguments and results moved once. "
        "Of GEMM rate: the direct computation's operations in ecgfast's time over those of matrix products. "
        "MiB: extra peak memory over the arguments, results and gradients included (tuned: of the faster "
        "variant).",
        "",
    ]
    for result in results:
        lines += _table(result)
    return "\n".join(lines).rstrip() + "\n"
