"""The command line: `ecgfast COMMAND ...`.

This module has the table of commands, and makes errors one line and an exit code; the commands themselves
are in `ecgfast.commands`.
"""

import argparse
import contextlib
import os
import re
import select
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NoReturn

from ecgfast._suggest import did_you_mean
from ecgfast._version import __version__
from ecgfast.errors import EcgfastError

COMMANDS = {
    "synth": "write synthetic 12-lead records",
    "prepare": "import a folder of records into a store",
    "inspect": "show what a store holds, or draw a recording",
    "pretrain": "pre-train an encoder on a store",
    "finetune": "train a model on a store's labels or numbers",
    "predict": "write a fine-tuned model's predictions for a store",
    "embed": "write a store's embeddings by any model",
    "evaluate": "score a model at sets of leads, beside a random encoder",
    "compare": "put evaluations and runs into one table",
    "convert": "turn an official checkpoint into a model folder",
    "export": "write the model of a run that is not finished",
    "show-config": "print how this installation was built",
    "bench": "time the ops against other variants of them",
}
"""A line on each command; its module in `ecgfast.commands` is imported when it is given."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if found := re.match(r"unrecognized arguments: (--?[^\s=]+)", message):
            message += did_you_mean(found[1], ["--version", "--help"])
        raise EcgfastError(f"{message} ({self.prog} --help lists the options)")


def _top_parser() -> argparse.ArgumentParser:
    lines = [f"  {name:<12} {text}" for name, text in COMMANDS.items()]
    parser = _Parser(
        prog="ecgfast",
        description="Self-supervised learning on electrocardiograms.",
        epilog="commands:\n" + "\n".join(lines) + "\n\n`ecgfast COMMAND --help` shows its options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    parser.add_argument("command", metavar="COMMAND", nargs="?", help="one of those below")
    parser.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER)
    return parser


def _function(name: str, args: Sequence[str]) -> Callable[..., None]:
    """The function whose signature and docstring are a command's options and help."""
    name = name.replace("-", "_")
    module = import_module(f"ecgfast.commands.{name}")
    return module.command(args) if hasattr(module, "command") else getattr(module, name)


def _run(args: Sequence[str]) -> None:
    parser = _top_parser()
    options = parser.parse_args(args)
    if options.version:
        if options.command is not None:
            parser.error(f"unrecognized arguments: {options.command}")
        print(f"ecgfast {__version__}")
    elif options.command is None:
        parser.error("no command given")
    elif options.command not in COMMANDS:
        near = did_you_mean(options.command, COMMANDS)
        parser.error(f"COMMAND: got {options.command!r}; one of {', '.join(COMMANDS)} is taken{near}")
    else:
        from ecgfast._parsing import bind

        bind(_function(options.command, options.arguments), f"ecgfast {options.command}", options.arguments)()


def _reader_left() -> bool:
    """Whether stdout is a pipe that nobody reads any more, as in `ecgfast ... | head -1`."""
    if sys.__stdout__ is None:
        return False
    poll = select.poll()
    poll.register(sys.__stdout__, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _write_what_can_be() -> None:
    """Make stdout show characters that its encoding lacks as escapes, as stderr does, rather than fail."""
    if sys.stdout is not None and (sys.stdout.encoding or "").casefold().replace("-", "") != "utf8":
        with contextlib.suppress(AttributeError):  # some other file of the caller's
            sys.stdout.reconfigure(errors="backslashreplace")


def _flush() -> None:
    if sys.stdout is not None:  # it is where the process was started with stdout closed
        sys.stdout.flush()


def _drop_unwritten() -> None:
    """Drop what was printed and can't be written, lest Python complain of it when it exits."""
    try:
        _flush()
    except OSError:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **rest: Any) -> None:
    text = " ".join(str(message).split())
    if not issubclass(category, UserWarning):
        text = f"{category.__name__}: {text}"
    print(f"ecgfast: warning: {text}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: that of the process) and return its exit code.

    0: done; 2: bad input, told in one line on stderr; 128 + the signal: stopped by it, or by the
    end of the pipe it printed to.
    """
    _write_what_can_be()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            _run(sys.argv[1:] if argv is None else argv)
        _flush()
    except (EcgfastError, ImportError, OSError) as error:
        # Python's own ImportErrors name a module; ecgfast's tell a bad setting or installation.
        if isinstance(error, ImportError) and error.name is not None:
            raise
        if isinstance(error, BrokenPipeError) and _reader_left():
            return 128 + signal.SIGPIPE
        print(f"ecgfast: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"ecgfast: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 128 + getattr(stop, "signum", signal.SIGINT)
    finally:
        _drop_unwritten()
    return 0
