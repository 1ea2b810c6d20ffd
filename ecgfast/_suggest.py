"""Near names for one that is mistyped, for error messages."""

import difflib
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import islice

_CUTOFF = 0.6  # of difflib's ratio, which calls this a close match
_MOST = 3
_MANY = 2000
_SPREAD = 0.12  # names that are nearly as near as the nearest one are shown with it


def _plain(name: str) -> str:
    return re.sub(r"[^\w.]+", "", name.casefold().replace("_", ""))


def _initials(name: str) -> str:
    """``lr`` of ``--learning-rate`` and ``learning_rate``; nothing of a single word."""
    words = re.findall(r"[^\W_]+", name.rpartition(".")[2])
    return "".join(word[0] for word in words).casefold() if len(words) > 1 else ""


def _nearness(name: str, known: str) -> float:
    """1 for the same name, or the same last part of a dotted one; a start of it counts nearly as much."""
    initials = _initials(name)
    name, known = _plain(name), _plain(known)
    if not name or not known:
        return 0.0
    if name == known:
        return 1.0
    near = difflib.SequenceMatcher(None, name, known).ratio()
    part, last = name.rpartition(".")[2], known.rpartition(".")[2]
    if part != name or last != known:
        same = 0.97 if part == last else 0.0
        near = max(near, same, 0.95 * difflib.SequenceMatcher(None, part, last).ratio())
    if initials == last:
        near = max(near, 0.9)
    if len(part) >= 3 and part in last:
        near = max(near, 0.8 if last.startswith(part) else 0.7)
    return near


def near_names(name: str, known: Iterable[str]) -> list[str]:
    """At most three of the known names that `name` may stand for, nearest first.

    Case, hyphens and underscores don't count; of dotted names (``optim.lr``) the last part alone may do.
    """
    found = sorted(((_nearness(name, other), other) for other in dict.fromkeys(known)), key=lambda x: -x[0])
    if not found or found[0][0] < _CUTOFF:
        return []
    return [other for near, other in found[:_MOST] if near >= max(_CUTOFF, found[0][0] - _SPREAD)]


def among(name: str, known: Sequence[str]) -> Iterable[str]:
    """Those of very many names that are worth comparing with `name`, in a time that nobody notices.

    They hold it, are held by it, or are its neighbours in alphabetical order, from either end.
    """
    if len(known) <= _MANY:
        return known
    plain = name.casefold()
    holding = (other for other in known if plain in other.casefold() or other.casefold() in plain)
    found = list(islice(holding, _MANY))
    for turn in (lambda text: text, lambda text: text[::-1]):
        ordered = sorted(known, key=turn)
        at = bisect_left(ordered, turn(name), key=turn)
        found += ordered[max(at - _MANY // 10, 0) : at + _MANY // 10]
    return found


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """``; did you mean A or B?`` to end a message with, or nothing where no known name is near."""
    near = near_names(str(name), known)
    return f"; did you mean {' or '.join(near)}?" if near else ""
