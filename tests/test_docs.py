"""The documentation's example is true: it trains from the command line, with its own metrics everywhere."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "adding-an-objective.md"

# What an entry in the registry does, for a package that is not edited here.
ADD = """
import sys
from ecgfast.objectives import registry
{line}
from ecgfast.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A folder with the page's file as a module, and the program with the page's line."""
    folder = tmp_path_factory.mktemp("objective")
    file, line = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (folder / "amplitude.py").write_text(file)
    name, entry = line.strip().rstrip(",").split(": ", 1)
    entry = entry.replace("ecgfast.objectives.amplitude", "amplitude").replace("Entry(", "registry.Entry(")
    (folder / "program.py").write_text(ADD.format(line=f"registry.OBJECTIVES[{name}] = {entry}"))
    return folder


def run(folder: Path, *args: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(
        [sys.executable, str(folder / "program.py"), *args],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_added_objective_trains(example):
    steps = (
        ("synth", "records", "--patients", "8", "--seconds", "5"),
        ("prepare", "records", "store", "--workers", "1"),
        ("pretrain", "store", "run", "--objective", "amplitude", "--preset", "demo", "--max-steps", "20"),
    )
    for step in steps:
        done = run(example, *step)
        assert done.returncode == 0, done.stderr
    assert re.search(r"error \d\.\d{3} mV within 0\.1 mV \d+%", done.stderr)
    points = [json.loads(line) for line in (example / "run/metrics.jsonl").open()]
    assert points[-1]["step"] == 20
    assert set(points[-1]) >= {"loss", "within", "grad_norm"}
    assert points[-1]["loss"] < points[0]["loss"]
    assert re.search(r"^within +\d+\.\d% +\d+\.\d%", done.stdout, re.MULTILINE)
    assert (example / "run/curves.png").stat().st_size > 10_000
    config = json.loads((example / "run/model/config.json").read_text())
    assert (config["model_type"], config["encoder_prefix"]) == ("ecgfast_amplitude", "encoder.")
    help_text = run(example, "pretrain", "--objective", "amplitude", "--help").stdout
    assert "- amplitude: amplitude of masked tokens" in help_text
    assert "--model.mask-prob" in help_text
    assert "--model.n-negatives" not in help_text


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_paths_that_the_documentation_names_exist(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:ecgfast|tests|csrc|docs|data|training|objectives)/[\w/.]+)`", text)
    missing = [
        name
        for name in named
        if not (ROOT / name).exists() and not (ROOT / "ecgfast" / name).exists() and "amplitude" not in name
    ]
    assert named
    assert not missing
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert all((page.parent / link).exists() for link in links)
