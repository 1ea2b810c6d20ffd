"""Errors that tell a user what was wrong with an input."""

_LONGEST = 500  # characters of an error that is told in one line


class EcgfastError(ValueError):
    """Bad input outside the ops: a file, a folder, a lead name, a configuration.

    The command line prints its one-line message and exits with code 2.
    """


def printable(text: str) -> str:
    """Text of a file for people: what isn't printable, such as a line feed, is escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def one_line(error: BaseException) -> str:
    """An error's whole message in one line; with the error's name where it says little without."""
    text = " ".join(str(error).split())
    if not text or isinstance(error, LookupError):  # a KeyError's message is the key alone
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    text = printable(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
