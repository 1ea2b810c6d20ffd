"""The import rules: what each part of the package may know, stated once here and checked in every module.

All imports count, also those inside functions and under TYPE_CHECKING.
"""

import ast
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from ecgfast.objectives.registry import OBJECTIVES

ROOT = Path(__file__).resolve().parents[1] / "ecgfast"

# The parts from the lowest to the highest; each may import those that are named after it, and itself.
BASE = {"errors", "leads", "units", "vcg", "files", "_suggest", "_outputs", "_version"}
MAY_IMPORT = {
    "base": set(),
    "_build": {"base"},
    "ops": {"base", "_build"},
    "nn": {"base", "ops"},
    "objectives": {"base", "ops", "nn"},
    "data": {"base"},
    "evaluation": {"base", "data"},
    "interop": {"base", "nn", "objectives"},
    "plotting": {"base", "objectives", "data"},
    "training": {"base", "ops", "nn", "objectives", "data", "plotting"},
    "finetuning": {"base", "ops", "nn", "objectives", "data", "evaluation", "interop", "training"},
    "embedding": {"base", "nn", "data", "interop", "training"},
    "assessment": {"base", "nn", "data", "plotting", "evaluation", "finetuning", "embedding"},
    "benchmarking": {"base", "_build", "ops"},
    "commands": {
        "base",
        "_build",
        "objectives",
        "data",
        "interop",
        "plotting",
        "training",
        "finetuning",
        "embedding",
        "assessment",
        "benchmarking",
    },
    "_parsing": {"base"},
    "cli": {"base", "_parsing", "commands"},
}
# The same of the rooms of `data`. Its own modules know none: any room may import them.
ROOMS = {
    "signal": set(),
    "store": {"signal"},
    "wfdb": {"signal"},
    "sources": {"signal", "store", "wfdb"},
    "synthetic": {"signal", "store"},
    "batches": {"store"},
}
# The front door, which opens every part when it is asked for, and the program.
OUTSIDE = {"ecgfast", "ecgfast.__main__"}

# A module that needs a part which the rest of its own does not, and why.
EXCEPTIONS = {
    "ecgfast.data.batches.resident": (
        "ops",
        "crops segments on the device, where the store lies, with gather_segments",
    ),
}
# Private modules that another part imports, and why.
PRIVATE = {
    ("nn", "ecgfast.ops._dispatch"): "checks and conversions of arguments, shared with the ops",
    ("objectives", "ecgfast.ops._dispatch"): "checks and conversions of arguments, shared with the ops",
}


class Import(NamedTuple):
    """One import: `module` imports `target`, or `name` from it."""

    module: str
    target: str
    name: str = ""


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in sorted(ROOT.rglob("*.py"))}
PACKAGES = {name for name, path in MODULES.items() if path.name == "__init__.py"}


def imports_in(module: str, source: str) -> Iterator[Import]:
    """What a module imports of ecgfast, wherever the statement stands; `import_module("...")` too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(module, alias.name) for alias in node.names if of_ecgfast(alias.name))
        elif isinstance(node, ast.ImportFrom):
            base = (node.module or "").split(".") if node.module else []
            if node.level:
                inside = module.split(".") if module in PACKAGES else module.split(".")[:-1]
                base = inside[: len(inside) - node.level + 1] + base
            target = ".".join(base)
            for alias in node.names if of_ecgfast(target) else ():
                whole = f"{target}.{alias.name}"
                yield Import(module, whole) if whole in MODULES else Import(module, target, alias.name)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            name = node.args[0].value if isinstance(node.args[0], ast.Constant) else ""
            if of_ecgfast(name):
                yield Import(module, name)


def of_ecgfast(name: str) -> bool:
    return name.split(".")[0] == "ecgfast"


def part_of(module: str) -> str:
    """The part of the package that a module belongs to, a name in `MAY_IMPORT`."""
    name = module.removeprefix("ecgfast").lstrip(".").partition(".")[0]
    return "base" if name in BASE else name


IMPORTS = [
    found
    for module, path in MODULES.items()
    for found in imports_in(module, path.read_text(encoding="utf-8"))
    if module not in OUTSIDE
]


def is_exception(found: Import) -> bool:
    return found.module in EXCEPTIONS and EXCEPTIONS[found.module][0] == part_of(found.target)


def goes_up(found: Import) -> bool:
    own, other = part_of(found.module), part_of(found.target)
    return other != own and other not in MAY_IMPORT[own] and not is_exception(found)


def pairs(found: Iterable[Import]) -> set[tuple[str, str]]:
    return {(one.module, one.target) for one in found}


def test_every_module_has_a_place():
    assert {part_of(module) for module in set(MODULES) - OUTSIDE} <= set(MAY_IMPORT)
    TopologicalSorter(MAY_IMPORT).prepare()  # raises where the table itself has a cycle


def test_imports_go_down():
    up = pairs(found for found in IMPORTS if goes_up(found))
    assert sorted(up) == []


def test_nothing_is_excepted_in_vain():
    used = {one.module for one in IMPORTS if is_exception(one)}
    assert set(EXCEPTIONS) == used
    private = {(part_of(one.module), one.target) for one in IMPORTS}
    assert sorted(set(PRIVATE) - private) == []


def test_nothing_is_permitted_in_vain():
    used = {(part_of(one.module), part_of(one.target)) for one in IMPORTS}
    permitted = {(own, other) for own, others in MAY_IMPORT.items() for other in others}
    by_name = {("cli", "commands")}  # a command's module follows from its name
    assert permitted - used == by_name


def test_packages_import_each_other_one_way():
    """The rooms of `data` too. Where a package has others in it, its own modules count each by itself."""

    def node(module: str) -> str:
        package = module if module in PACKAGES else module.rpartition(".")[0]
        has_rooms = any(other.startswith(f"{package}.") for other in PACKAGES)
        return module if has_rooms else package

    graph: dict[str, set[str]] = {}
    for found in IMPORTS:
        if node(found.module) != node(found.target):
            graph.setdefault(node(found.module), set()).add(node(found.target))
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_rooms_of_data_import_down():
    def room_of(module: str) -> str | None:
        inside = module.removeprefix("ecgfast.data.").split(".")[0]
        return inside if f"ecgfast.data.{inside}" in PACKAGES else None

    assert {room_of(module) for module in MODULES if part_of(module) == "data"} - {None} == set(ROOMS)
    up = {
        (found.module, found.target)
        for found in IMPORTS
        if part_of(found.module) == part_of(found.target) == "data" and found.module != "ecgfast.data"
        if room_of(found.target) not in {None, room_of(found.module), *ROOMS.get(room_of(found.module), ())}
    }
    assert sorted(up) == []


def test_nothing_imports_the_package_that_gathers_it():
    """`ecgfast` itself above all; nor do a package and a module in it import each other."""
    every = pairs(IMPORTS)
    both = {one for one in every if one[::-1] in every and one[0].startswith(f"{one[1]}.")}
    assert sorted(both | {one for one in every if one[1] == "ecgfast"}) == []


def objectives_named_in_nn() -> Iterator[tuple[str, str]]:
    """The modules of `nn` with the words in them that hold an objective's name, docstrings aside."""
    for module in (module for module in MODULES if part_of(module) == "nn"):
        for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
            word = node.value if isinstance(node, ast.Constant) else getattr(node, "id", "")
            if isinstance(word, str) and " " not in word and any(name in word for name in OBJECTIVES):
                yield module, word


def test_nn_knows_no_objective():
    assert sorted(set(objectives_named_in_nn())) == []


def private_package(found: Import) -> str:
    """The package to which what is imported is private; that of all, `ecgfast`, if it is public."""
    whole = [*found.target.split("."), *filter(None, [found.name])]
    for i, name in enumerate(whole):
        if name.startswith("_") and not name.startswith("__"):
            package = ".".join(whole[:i])
            return package if package in PACKAGES else package.rpartition(".")[0]
    return "ecgfast"


def test_private_names_stay_in_their_package():
    """Those of `ecgfast` itself are all its parts'."""
    outside = {
        (part_of(found.module), found.target, found.module)
        for found in IMPORTS
        if not f"{found.module}.".startswith(f"{private_package(found)}.")
    }
    assert sorted(one for one in outside if one[:2] not in PRIVATE) == []


@pytest.mark.parametrize(
    ("source", "target", "name"),
    [
        ("import ecgfast", "ecgfast", ""),
        ("import torch, ecgfast.ops as o", "ecgfast.ops", ""),
        ("from ecgfast import ops", "ecgfast.ops", ""),
        ("from ecgfast import Encoder", "ecgfast", "Encoder"),
        ("from ecgfast.nn import Encoder", "ecgfast.nn", "Encoder"),
        ("from ecgfast.ops import _dispatch", "ecgfast.ops._dispatch", ""),
        ("def f():\n    from ecgfast.ops._dispatch import wide", "ecgfast.ops._dispatch", "wide"),
        ("if TYPE_CHECKING:\n    from ecgfast.data import Store", "ecgfast.data", "Store"),
        ("from . import stem", "ecgfast.nn.stem", ""),
        ("from .config import EncoderConfig", "ecgfast.nn.config", "EncoderConfig"),
        ("from ..leads import N_LEADS", "ecgfast.leads", "N_LEADS"),
        ("import importlib\nimportlib.import_module('ecgfast.training')", "ecgfast.training", ""),
    ],
)
def test_every_way_to_import_is_seen(source, target, name):
    assert list(imports_in("ecgfast.nn.encoder", source)) == [Import("ecgfast.nn.encoder", target, name)]


@pytest.mark.parametrize(
    ("found", "broken"),
    [
        (Import("ecgfast.nn.stem", "ecgfast.ops"), False),
        (Import("ecgfast.ops.lead_mask", "ecgfast.nn"), True),
        (Import("ecgfast.nn.encoder", "ecgfast.objectives.base"), True),
        (Import("ecgfast.data.store.store", "ecgfast.ops"), True),
        (Import("ecgfast.data.batches.resident", "ecgfast.ops"), False),
        (Import("ecgfast.training.loop", "ecgfast.cli"), True),
        (Import("ecgfast.errors", "ecgfast.leads"), False),
        (Import("ecgfast.errors", "ecgfast.data"), True),
        (Import("ecgfast.training.run_folder", "ecgfast"), True),
    ],
)
def test_what_goes_up(found, broken):
    assert goes_up(found) == broken


@pytest.mark.parametrize(
    ("target", "name", "package"),
    [
        ("ecgfast.ops._dispatch", "wide", "ecgfast.ops"),
        ("ecgfast.nn.encoder", "_padding", "ecgfast.nn"),
        ("ecgfast.nn", "_padding", "ecgfast.nn"),
        ("ecgfast._suggest", "did_you_mean", "ecgfast"),
        ("ecgfast._version", "__version__", "ecgfast"),
        ("ecgfast.nn", "Encoder", "ecgfast"),
    ],
)
def test_whose_private_names_are(target, name, package):
    assert private_package(Import("ecgfast.cli", target, name)) == package
