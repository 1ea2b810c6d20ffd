"""What several commands' signatures and messages are made of."""

from pathlib import Path
from typing import Annotated

import tyro

Argument = tyro.conf.Positional
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]


def count(n: int, thing: str) -> str:
    """``1 record``, ``2 records``."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"
