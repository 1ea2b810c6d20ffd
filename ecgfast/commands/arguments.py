"""What several commands' signatures and messages are made of."""

from pathlib import Path
from typing import Annotated, Any

import tyro

Argument = tyro.conf.Positional
"""``store: Argument[Path]`` is given by its place, and called STORE in the help."""


def value(metavar: str) -> Any:
    """For ``Annotated``: the help calls an option's value `metavar`, and shows no default of None."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


File = Annotated[Path | None, value("FILE")]
Folder = Annotated[Path | None, value("FOLDER")]


def count(n: int, thing: str) -> str:
    """``1 record``, ``2 records``."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"
