"""Parses a command's arguments with tyro, and turns its error boxes into one line each."""

import contextlib
import dataclasses
import functools
import inspect
import io
import os
import re
import shutil
import sys
import textwrap
from ast import literal_eval
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tyro

from ecgfast._suggest import did_you_mean
from ecgfast.errors import EcgfastError

_HELP = ("-h", "--help")
_asked: list[tyro.constructors.PrimitiveTypeInfo] = []
_READABLE = tyro.constructors.ConstructorRegistry()


@_READABLE.primitive_rule
def _readable(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """Tyro's own rule for a type, with a readable name of its values in the help."""
    if _asked and info is _asked[-1]:
        return None  # the rules after this one are tyro's
    _asked.append(info)
    try:
        spec = tyro.constructors.ConstructorRegistry.get_primitive_spec(info)
    finally:
        _asked.pop()
    if isinstance(spec, tyro.constructors.PrimitiveConstructorSpec):
        return dataclasses.replace(spec, metavar=_metavar(spec.metavar))
    return spec


def _metavar(shown: str) -> str:
    """``INT|None`` of ``{None}|INT``, ``STR ...`` of ``[STR [STR ...]]``; others as they are."""
    if found := re.fullmatch(r"\{None\}\|(.*)", shown):
        return f"{found[1].strip('{}') if ' ' in found[1] else found[1]}|None"
    if found := re.fullmatch(r"\[(.*) \[\1 \.\.\.\]\]", shown):
        return f"{found[1]} ..."
    return shown


def bind(function: Callable[..., Any], prog: str, args: Sequence[str]) -> Callable[[], Any]:
    """A command's function with the arguments in `args`, to be called; prints its help where they ask for it.

    Raises:
        EcgfastError: the arguments don't fit; one line, with the near names of one that is mistyped.
    """
    # tyro keeps the line breaks of a description, wherever its own fall.
    function.__doc__ = re.sub(r"(?<=\S)\n {8,}(?=\S)", " ", inspect.cleandoc(function.__doc__ or ""))

    @functools.wraps(function)
    def bound(*positional: Any, **keywords: Any) -> Callable[[], Any]:
        return functools.partial(function, *positional, **keywords)

    if any(arg in _HELP for arg in args):
        plain = {"TERM": "dumb"} if os.environ.get("NO_COLOR") else {}
        with _environment(**plain), contextlib.redirect_stdout(_Folded(sys.stdout)):
            return _call(bound, prog, args)
    errors, unused = _Text(), _Text()
    try:
        # So wide that no line of an error is broken. What tyro draws depends on stdout, also on stderr.
        with (
            contextlib.redirect_stdout(unused),
            contextlib.redirect_stderr(errors),
            _environment(COLUMNS="10000"),
        ):
            return _call(bound, prog, args)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
    message = _one_line(errors.getvalue(), args, lambda: _help(bound, prog))
    raise EcgfastError(f"{message} ({prog} --help lists the options)")


def _call(function: Callable[..., Any], prog: str, args: Sequence[str]) -> Any:
    with _READABLE:
        return tyro.cli(function, prog=prog, args=args, config=(tyro.conf.PositionalMetavarFromFieldName,))


class _Folded:
    """A file in which lines too long for the terminal are broken between words, as tyro does in boxes."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        width = shutil.get_terminal_size().columns
        lines = (
            textwrap.fill(line, width, subsequent_indent="  " * line.startswith("- "))
            if len(line) > width and "\x1b" not in line
            else line
            for line in text.split("\n")
        )
        return self._file.write("\n".join(lines))


class _Text(io.TextIOWrapper):
    """Text in memory that is written as to a file: in UTF-8, without colours."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    def getvalue(self) -> str:
        return self.buffer.getvalue().decode()


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables by which tyro knows the terminal, set for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def _help(function: Callable[..., Any], prog: str) -> str:
    text = _Text()
    # Wide enough for every name, and too narrow for boxes side by side.
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit), _environment(COLUMNS="100"):
        _call(function, prog, ["--help"])
    return text.getvalue()


def _options(help_text: str) -> list[str]:
    """The options that a help text describes."""
    heads = re.findall(r"^│ (?:-h, )?((?:--[\w.-]+(?:, )?)+)", help_text, re.MULTILINE)
    return [name for head in heads for name in head.rstrip(", ").split(", ")]


def _one_line(box: str, args: Sequence[str], get_help: Callable[[], str]) -> str:
    """What tyro's error box says, without its title and its advice, and with near names."""
    lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines()]
    body: list[str] = []
    for line in lines[1:]:
        if re.fullmatch("─*", line):
            break
        body.append(line)
    text = " ".join(body) or " ".join(lines)
    if text.startswith(("Unrecognized", "Missing")):
        help_text = get_help()
        known = _options(help_text)
        given = [arg.split("=")[0] for arg in args if re.match(r"--?[^\W\d]", arg)]
        unknown = [name for name in dict.fromkeys(given) if name.replace("_", "-") not in known]
        if known and unknown:  # also the likely reason where something is missing
            return _unknown_options(unknown, known)
        if text.startswith("Unrecognized"):
            return _too_many(text, args, help_text)
    return _bad_value(re.sub(r"\[/?bold\]", "", text), body)


def _unknown_options(unknown: Sequence[str], known: Sequence[str]) -> str:
    text = f"Unrecognized options: {', '.join(unknown)}"
    if len(unknown) == 1:
        return text + did_you_mean(unknown[0], known)
    hints = [
        did_you_mean(name, known).replace("did you mean", f"for {name} did you mean") for name in unknown
    ]
    return text + "".join(hints)


def _too_many(text: str, args: Sequence[str], help_text: str) -> str:
    """The message on values without an option: given to a flag, or too many."""
    flags = set(re.findall(r"^│ (--[\w.-]+), --", help_text, re.MULTILINE))
    left = text.partition(": ")[2].split(", ")
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        name, equals, value = arg.replace("_", "-").partition("=")
        value = value if equals else following
        if name in flags and value in left:
            return f"{name} is a flag and must have no value, got {value!r}"
    usage = re.search(
        r"^usage: .*?(?:\[OPTIONS\]|\[-h\])(?: \[OPTIONS\])?([^\[\n]*)", help_text, re.MULTILINE
    )
    takes = usage[1].strip() if usage else ""
    return f"{text}; besides options it takes {takes or 'nothing'}"


_KINDS = {"FLOAT": ("a number", "numbers"), "INT": ("an integer", "integers"), "STR": ("a word", "words")}


def _kind(metavar: str) -> str:
    """A metavar such as {None}|{FLOAT FLOAT} in words."""
    kinds = []
    for part in metavar.split("|"):
        words = part.strip("{}").split()
        one, many = _KINDS.get(words[0], ("", "")) if len(set(words)) == 1 else ("", "")
        kinds.append((one if len(words) == 1 else many and f"{len(words)} {many}") or " ".join(words))
    return " or ".join(kinds)


def _words(shown: str) -> Any:
    """The text or the texts that a message shows; as shown where the message was not split at their end."""
    try:
        return literal_eval(shown)
    except (SyntaxError, ValueError):
        return shown if shown[:1] in "'\"" else [shown]


def _bad_value(text: str, body: Sequence[str]) -> str:
    """The message on a missing or bad value: ARGUMENT must be ..., got ..."""
    if found := re.match(
        r"invalid choice (['\"].*['\"]) for argument '(.*)'\. Expected one of (\(.*\))\.", text
    ):
        got, choices = _words(found[1]), _words(found[3])
        return f"{found[2]} must be one of {', '.join(choices)}, got {got!r}{did_you_mean(got, choices)}"
    if found := re.match(r"Missing value for argument '(.*)'\. Expected (\d+) values\.", text):
        name = found[1] if found[1].startswith("-") else found[1].upper()
        n, got = ("a value", "none") if found[2] == "1" else (f"{found[2]} values", "fewer")
        return f"{name} must have {n}, got {got}"
    if text.startswith("Missing from ") and len(body) > 2:
        meaning = body[2].removesuffix("(required)").rstrip(" .")
        if meaning[1:2].islower():
            meaning = meaning[:1].lower() + meaning[1:]
        return f"missing: {', '.join(body[1::2])}" + (f", {meaning}" if len(body) == 3 else "")
    text = text.removeprefix("Error parsing ")
    if found := re.match(r"(\S+): invalid literal for int\(\) with base 10: (.*)", text):
        return f"{found[1]} must be an integer, got {found[2]}"
    if found := re.match(r"(\S+): could not convert string to float: (.*)", text):
        return f"{found[1]} must be a number, got {found[2]}"
    if found := re.match(r"(\S+): no type matching (.*) could be instantiated from (\[.*?\])\.", text):
        got = " ".join(_words(found[3])) or "nothing"
        return f"{found[1]} must be {_kind(found[2])}, got {got}"
    if found := re.match(r"(\S+): Could not parse arguments (\[.*?\]) into tuple type \S*?\[(.*)\]", text):
        metavar = found[3].replace(",", "").upper()
        return f"{found[1]} must be {_kind(metavar)}, got {' '.join(_words(found[2]))}"
    return re.sub(r"^config[\w.]*: ", "", text)  # a configuration's own check, which names the setting
