"""The objectives by their names; a name's module is imported when it is asked for."""

from importlib import import_module
from typing import Any, NamedTuple

from ecgfast._suggest import did_you_mean
from ecgfast.errors import EcgfastError
from ecgfast.objectives.base import Objective, ObjectiveConfig

DEFAULT = "w2v_cmsc_rlm"


class Entry(NamedTuple):
    """Where an objective is, and the settings that its name stands for."""

    module: str
    kind: str
    settings: dict[str, Any]


OBJECTIVES = {
    "w2v": Entry("ecgfast.objectives.w2v_cmsc", "W2V", {}),
    "cmsc": Entry("ecgfast.objectives.w2v_cmsc", "CMSC", {}),
    "w2v_cmsc": Entry("ecgfast.objectives.w2v_cmsc", "W2VCMSC", {"lead_mask_prob": 0.0}),
    DEFAULT: Entry("ecgfast.objectives.w2v_cmsc", "W2VCMSC", {}),
}
"""What `--objective` takes. A new objective is a line here."""


def objective_class(name: str) -> type[Objective]:
    """The class of the objective called `name`.

    Raises:
        EcgfastError: there is none of that name.
    """
    entry = _entry(name)
    return getattr(import_module(entry.module), entry.kind)


def objective_config(name: str, size: str, encoder: Any) -> ObjectiveConfig:
    """The settings of the objective called `name` for an encoder of a preset's size, see `sized`."""
    config = objective_class(name).Config.sized(size, encoder)
    for setting, value in _entry(name).settings.items():
        setattr(config, setting, value)
    return config


def _entry(name: str) -> Entry:
    if name not in OBJECTIVES:
        near = did_you_mean(name, OBJECTIVES)
        raise EcgfastError(f"objective: must be one of {', '.join(OBJECTIVES)}, got {name!r}{near}")
    return OBJECTIVES[name]
