"""Whether a store was made as a model's training data were: what `store.json` says of both, compared."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ecgfast.errors import EcgfastError

Described = Mapping[str, Any]

# Which signals were taken for which leads, and which recordings were long enough: no property of a signal.
_ASIDE = {"renamed", "leads_by_position", "min_seconds", "longest_gap_seconds", "sources"}
# What `store.json` says beside its preprocessing: compared where both tell it.
_BESIDE = ("sample_rate", "unit", "leads")


def describe_differences(model: Described | Sequence[Described] | None, store: Described) -> list[str]:
    """What differs between a model's training data and a store, a line for people each.

    Args:
        model: `preprocessing` in the model's `config.json`: as in `store.json`, or a list of several stores';
            None: it doesn't tell.
        store: `preprocessing` in `store.json`; where it has `sample_rate`, `unit` and `leads` beside, these
            are compared too.

    Returns:
        No line where a store of the training was made like this one; else the differences to the one that is
        most like it.

    Raises:
        EcgfastError: the model's is neither.
    """
    if model is None:
        return []
    several = [model] if isinstance(model, Mapping) else list(model) if _is_list(model) else [None]
    if not several or not all(isinstance(one, Mapping) for one in several):
        raise EcgfastError(
            f"preprocessing: must be an object or a list of objects, got {type(model).__name__}"
        )
    return min((_differences(one, store) for one in several), key=len)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _differences(model: Described, store: Described) -> list[str]:
    lines = []
    theirs, own = _steps(model), _steps(store)
    for name in sorted(theirs.keys() | own.keys()):
        if theirs.get(name) != own.get(name):
            was, here = (steps.get(name, f"no {name}") for steps in (theirs, own))
            lines.append(f"{was} in the model's training, {here} here")
    # What the model does not tell is not compared: official checkpoints and older models tell less.
    for name in sorted(model.keys() - _ASIDE - {"filters"}):
        if name in _BESIDE and (name not in store or _within(model[name], store[name])):
            continue
        if name not in store or _plain(model[name]) != _plain(store[name]):
            was, here = (_words(described.get(name, "untold")) for described in (model, store))
            lines.append(f"{name.replace('_', ' ')} {was} in the model's training, {here} here")
    return lines


def _steps(described: Described) -> dict[str, str]:
    """The filters in words, by their kind."""
    found = {}
    for step in described.get("filters") or ():
        if not isinstance(step, Mapping):
            found[str(step)] = str(step)
        elif "bandpass" in step:
            low, high = step["bandpass"]
            found["band-pass"] = f"band-pass {low:g} to {high:g} Hz"
        elif "notch" in step:
            found["notch"] = f"notch at {step['notch']:g} Hz"
        elif "baseline" in step:
            found["baseline removal"] = "baseline removal"
        else:
            text = json.dumps(step, sort_keys=True)
            found[text] = text
    return found


def _within(some: Any, leads: Any) -> bool:
    """Whether both are lists of leads, and the one has none that the other lacks."""
    return _is_list(some) and _is_list(leads) and set(some) <= set(leads)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _words(value: Any) -> str:
    if isinstance(value, str | int | float):
        return f"{value}"
    if _is_list(value):
        return ", ".join(map(str, value)) or "none"
    return json.dumps(value)
