"""The Python of ``gpu_check.sh``.

``missing`` lists the packages to install, ``report WORK RESULTS`` writes the results.
"""

import datetime
import json
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Of the development packages, those that the build and the tests need.
_NEEDED = {"pytest", "hypothesis", "setuptools", "ninja", "cmake", "pybind11"}


def missing() -> list[str]:
    """Requirements of pyproject.toml that no installed package meets."""
    import tomllib
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    developing = project["optional-dependencies"]["dev"]
    wanted = [Requirement(text) for text in project["dependencies"]]
    wanted += [r for r in map(Requirement, developing) if r.name in _NEEDED]

    def met(requirement: Requirement) -> bool:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            return False
        return requirement.specifier.contains(version, prereleases=True)

    return [f"{r.name}{r.specifier}" for r in wanted if not met(r)]


def read_parts(path: Path) -> list[dict[str, Any]]:
    """What each part of the check came to."""
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    return [{"part": n, "result": r, "seconds": int(s), "last_line": last} for n, r, s, last in rows]


def report(work: Path, results: Path) -> Path:
    """Write ``<gpu>-<date>.json`` and ``.md`` from the parts' results in ``work``; the page's path."""
    sys.path.insert(0, str(ROOT))
    import torch

    from benchmarks.training import step as training
    from ecgfast.benchmarking import machine, markdown

    device = "cuda" if torch.cuda.is_available() else "cpu"
    parts = read_parts(work / "parts.tsv")
    ops = [json.loads(path.read_text()) for path in sorted((work / "ops").glob("*.json"))]
    step_file = work / "step.json"
    step = json.loads(step_file.read_text()) if step_file.exists() else None
    hardware = machine.hardware(device)
    slug = re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-") if device == "cuda" else "cpu"
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    header = {"hardware": hardware, "torch": torch.__version__, "commit": machine.commit(), "date": today}

    results.mkdir(parents=True, exist_ok=True)
    page = results / f"{slug}-{today}.md"
    data = header | {"parts": parts, "ops": ops, "step": step}
    page.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
    lines = [
        f"# Check on {hardware}, {today}",
        "",
        f"torch {header['torch']}, commit {header['commit']}, `benchmarks/gpu_check.sh`",
        "",
        "| part | result | s | last line |",
        "|---|---|---:|---|",
        *(f"| {p['part']} | {p['result']} | {p['seconds']} | {_cell(p['last_line'])} |" for p in parts),
        "",
    ]
    sections = ["\n".join(lines)]
    if step is not None:
        sections.append(training.markdown(step))
    if ops:
        sections.append(markdown(ops))
    page.write_text("\n".join(sections))
    return page


def _cell(text: str) -> str:
    return text.replace("|", "\\|")[:160]


def main(argv: list[str]) -> int:
    """Run the command of ``gpu_check.sh``."""
    match argv:
        case ["missing"]:
            print(" ".join(missing()))
        case ["report", work, results]:
            print(report(Path(work), Path(results)))
        case _:
            print("gpu_check.py: takes missing, or report WORK RESULTS", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
