"""The Python of ``gpu_check.sh``, which names its commands."""

import datetime
import hashlib
import json
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Of the packages that pyproject.toml names, those that the checks import.
_NEEDED = {"pytest", "hypothesis", "numpy", "numba", "pyarrow", "safetensors", "scipy", "tqdm", "torch"}
# What is worth most first; then what else there is.
_OPS = ("patch_embed", "local_contrastive", "positional_conv", "gumbel_quantize", "global_contrastive")
# The compiled variant takes longer to compile than all else to measure.
_VARIANTS = ("official", "tuned_eager", "ecgfast")


def missing() -> list[str]:
    """Requirements of pyproject.toml that the checks need and no installed package meets."""
    import tomllib
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    every = map(Requirement, [*project["dependencies"], *project["optional-dependencies"]["dev"]])
    wanted = [r for r in every if r.name in _NEEDED]

    def met(requirement: Requirement) -> bool:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            return False
        return requirement.specifier.contains(version, prereleases=True)

    return [f"{r.name}{r.specifier}" for r in wanted if not met(r)]


def digest() -> str:
    """Of the sources of the libraries."""
    found = hashlib.sha256()
    for path in sorted([*ROOT.glob("csrc/**/*"), *ROOT.glob("cmake/*"), ROOT / "CMakeLists.txt"]):
        if path.is_file():
            found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()


def describe(work: Path, device: str) -> None:
    """Load the libraries, and note and print what they and the machine are; fails where CUDA's do not run."""
    _from_here()
    import torch

    import ecgfast
    from ecgfast.benchmarking import machine

    ecgfast.show_config()
    if device == "cuda":
        from ecgfast import ops

        keep = ops.lead_mask(torch.arange(4, device="cuda"), 12, 0.5, ops.make_rng(0, 0, "cuda"))
        want = ops.lead_mask(torch.arange(4), 12, 0.5, ops.make_rng(0, 0))
        if not torch.equal(keep.cpu(), want):
            raise SystemExit("lead_mask gives other bits on this device")
    hardware = machine.hardware(device)
    note = {"hardware": hardware, "torch": torch.__version__, "commit": machine.commit(), "device": device}
    (work / "machine.json").write_text(json.dumps(note))
    print(hardware)


def measure_ops(work: Path, device: str, names: list[str]) -> None:
    """Time the ops in bfloat16, each result written when it is there: all at one size, then at others."""
    _from_here()
    from ecgfast.benchmarking import CASES, run
    from ecgfast.benchmarking.cases import other_sizes
    from ecgfast.errors import EcgfastError

    quick = device == "cpu"
    chosen = names or sorted(CASES, key=lambda op: _OPS.index(op) if op in _OPS else len(_OPS))
    todo = [(op, "", None) for op in chosen]
    if not quick:
        todo += [(op, f"_{suffix}", s) for op in chosen for suffix, s in other_sizes(op, device).items()]
    failed = []
    for op, suffix, sizes in todo:
        try:
            result = run(
                op,
                device,
                sizes,
                dtypes=["bfloat16"],
                variants=_VARIANTS,
                pages=["plain"],
                budget_s=1.5,
                quick=quick,
                log=print,
            )
        except EcgfastError as error:
            print(error)
            failed.append(op + suffix)
        else:
            (work / "ops" / f"{op}{suffix}.json").write_text(json.dumps(result))
    print(f"results: {len(todo) - len(failed)}")
    if failed:
        raise SystemExit(f"no results: {', '.join(failed)}")


def collect(call: str, work: Path, results: Path) -> Path:
    """Write what there is so far to the call's JSON file; its path."""
    note = work / "machine.json"
    known = json.loads(note.read_text()) if note.exists() else {"hardware": "unknown", "device": "unknown"}
    named = known["hardware"] if known["device"] == "cuda" else known["device"]
    slug = re.sub(r"[^a-z0-9]+", "-", named.lower()).strip("-")
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    step = work / "step.json"
    data = known | {
        "call": call,
        "date": today,
        "parts": [_part(work, line) for line in (work / "parts.tsv").read_text().splitlines()],
        "ops": [json.loads(path.read_text()) for path in sorted((work / "ops").glob("*.json"))],
        "step": json.loads(step.read_text()) if step.exists() else None,
    }
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"{slug}-{today}-{call}.json"
    path.write_text(json.dumps(data, indent=1) + "\n")
    return path


def _part(work: Path, line: str) -> dict[str, Any]:
    name, result, seconds, last = line.split("\t")
    part = {"part": name, "result": result, "seconds": int(seconds), "last_line": last}
    log = work / "logs" / f"{name}.log"
    if result not in ("ok", "skipped"):
        part["log"] = log.read_text(errors="replace").splitlines()[-200:]
    return part


def page(data: dict[str, Any]) -> str:
    """A call's results as Markdown."""
    _from_here()
    from benchmarks.training import step as training
    from ecgfast.benchmarking import markdown

    lines = [
        f"# {data['call'].capitalize()} on {data['hardware']}, {data['date']}",
        "",
        f"torch {data.get('torch', 'unknown')}, commit {data.get('commit', 'unknown')}, "
        f"`benchmarks/gpu_check.sh {data['call']}`",
        "",
        "| part | result | s | last line |",
        "|---|---|---:|---|",
        *(
            f"| {p['part']} | {p['result']} | {p['seconds']} | {_cell(p['last_line'])} |"
            for p in data["parts"]
        ),
        "",
    ]
    sections = ["\n".join(lines)]
    if data["step"] is not None:
        sections.append(training.markdown(data["step"]))
    if data["ops"]:
        sections.append(markdown(data["ops"]))
    return "\n".join(sections)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")[:160]


def _from_here() -> None:
    sys.path.insert(0, str(ROOT))


def main(argv: list[str]) -> int:
    """Run a command of ``gpu_check.sh``."""
    match argv:
        case ["missing"]:
            print(" ".join(missing()))
        case ["digest"]:
            print(digest())
        case ["machine", work, device]:
            describe(Path(work), device)
        case ["ops", work, device, *names]:
            measure_ops(Path(work), device, names)
        case ["collect", call, work, results]:
            collect(call, Path(work), Path(results))
        case ["page", call, work, results]:
            path = collect(call, Path(work), Path(results))
            path.with_suffix(".md").write_text(page(json.loads(path.read_text())))
            print(path.with_suffix(".md"))
        case _:
            print(f"gpu_check.py: unknown command {' '.join(argv)!r}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
