"""The figure of a comparison: scores by lead set, a line for each method."""

from pathlib import Path

from benchmarks.paper.plan import RANDOM, SCRATCH, Plan
from benchmarks.paper.table import FINETUNED, PROBED, Score

_TITLES = {FINETUNED: "fine-tuned, stem frozen", PROBED: "linear probe"}
_GREY = {RANDOM: "0.2", SCRATCH: "0.6"}


def draw(plan: Plan, kinds: dict[str, dict[tuple[str, str], Score]], file: Path) -> None:
    """Draw macro AUROC over lead sets; bars are standard deviations over the seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(kinds), 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for ax, (kind, scores) in zip(axes, kinds.items(), strict=True):
        shown = [method for method in plan.methods if any(key[0] == method for key in scores)]
        for place, method in enumerate(shown):
            at = [i for i, leads in enumerate(plan.lead_sets) if (method, leads) in scores]
            own = [scores[method, plan.lead_sets[i]] for i in at]
            shift = 0.5 * (place / max(1, len(shown) - 1) - 0.5)  # so that bars don't hide each other
            color, style = (_GREY[method], "--") if method in _GREY else (f"C{place}", "-")
            ax.errorbar(
                [i + shift for i in at],
                [score.mean for score in own],
                [score.spread for score in own],
                label=method,
                color=color,
                linestyle=style,
                marker="o",
                markersize=4,
                capsize=2,
                linewidth=1.2,
            )
        ax.set_xticks(range(len(plan.lead_sets)), plan.lead_sets)
        ax.set_xlabel("leads")
        ax.set_title(_TITLES[kind])
        ax.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("macro AUROC of five superclasses, test fold")
    axes[-1].legend(fontsize=8, loc="lower left")
    figure.savefig(file, dpi=130)
