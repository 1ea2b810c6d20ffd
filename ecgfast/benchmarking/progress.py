"""What a measuring process tells while it measures."""

import sys
from collections.abc import Callable
from typing import IO

_MARK = "progress: "  # begins lines on stderr that are no messages of an error


def report(line: str) -> None:
    """Tell the process that asked, which shows it, what is under way."""
    print(f"{_MARK}{line}", file=sys.stderr, flush=True)


def listen(stream: IO[str], log: Callable[[str], None], messages: list[str]) -> None:
    """Pass a process's lines of progress on to `log`, and keep its other lines in `messages`."""
    for line in map(str.strip, stream):
        if line.startswith(_MARK):
            log(line.removeprefix(_MARK))
        elif line:
            messages.append(line)
