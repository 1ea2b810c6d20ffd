"""Pre-trains, fine-tunes and evaluates every objective at every lead set and seed, and writes the table.

    python -m benchmarks.paper.run OUT --preset small --data ../shared/data --jobs 2

Every cell is an `ecgfast` command, whose log is under OUT/cells. Stopped or killed, the same command goes on;
`--hours` stops it by itself. OUT/table.md, OUT/table.json and OUT/figure.png tell what is there so far.
"""

import argparse
import sys
import time
from pathlib import Path

from benchmarks.paper.cells import Outcome, Runner
from benchmarks.paper.plan import IDENTITY, LEAD_SETS, PRESETS, Plan
from benchmarks.paper.table import write_tables
from ecgfast.objectives.registry import OBJECTIVES


def run(plan: Plan, jobs: int, deadline: float | None = None) -> Outcome:
    """Run what is left of a comparison and write its tables.

    Args:
        plan: What to compare.
        jobs: Commands at a time.
        deadline: Time (`time.monotonic`) from which on no command is begun; None: never.
    """
    runner = Runner(plan.out, jobs, deadline)
    first = runner.run(plan.preparation())
    if first.failed or first.left:
        return first
    if IDENTITY in plan.preset.stores:
        second = runner.run([plan.divide_identities()])
        if second.failed or second.left:
            return second
    plan.write_inputs()
    outcome = runner.run(list(plan.cells()))
    write_tables(plan, outcome)
    return outcome


def main(argv: list[str] | None = None) -> int:
    """Run the comparison; 1 where a cell failed or is left."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder, or that of the same comparison")
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the records")
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--leads", nargs="+", choices=LEAD_SETS, default=list(LEAD_SETS), help="lead sets")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="commands at a time, which share the cores")
    parser.add_argument("--hours", type=float, help="begin no command after so many hours")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    plan = Plan(
        args.out.resolve(), args.data.resolve(), PRESETS[args.preset], args.objectives, args.leads, args.seeds
    )
    deadline = None if args.hours is None else time.monotonic() + 3600 * args.hours
    outcome = run(plan, args.jobs, deadline)
    hours = sum(outcome.done.values()) / 3600
    print(
        f"{len(outcome.done)} cells done in {hours:.1f} h of {args.jobs} jobs, "
        f"{len(outcome.failed)} failed, {len(outcome.left)} left"
    )
    return 1 if outcome.failed or outcome.left else 0


if __name__ == "__main__":
    sys.exit(main())
