"""The objectives by their names; a name's module is imported when it is asked for."""

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple

from ecgfast._suggest import did_you_mean
from ecgfast.errors import EcgfastError
from ecgfast.nn.config import EncoderConfig
from ecgfast.objectives.base import Objective, ObjectiveConfig, Size

DEFAULT = "w2v_cmsc_rlm"


class Entry(NamedTuple):
    """Where an objective is, what it is in a line of help, and the settings that its name stands for."""

    module: str
    kind: str
    summary: str
    settings: Mapping[str, Any] = MappingProxyType({})


OBJECTIVES = {
    "w2v": Entry("ecgfast.objectives.w2v_cmsc", "W2V", "local loss (wav2vec 2.0)"),
    "cmsc": Entry("ecgfast.objectives.w2v_cmsc", "CMSC", "global loss of adjacent segments (CLOCS)"),
    "cmlc": Entry("ecgfast.objectives.lead_by_lead", "CMLC", "global loss of the leads of a segment (CLOCS)"),
    "cmsmlc": Entry(
        "ecgfast.objectives.lead_by_lead", "CMSMLC", "global loss of leads of adjacent segments (CLOCS)"
    ),
    "simclr": Entry("ecgfast.objectives.simclr", "SimCLR", "global loss of noisy views of a segment"),
    "3kg": Entry("ecgfast.objectives.three_kg", "ThreeKG", "global loss of views with a turned dipole"),
    "crlc": Entry("ecgfast.objectives.crlc", "CRLC", "global loss of disjoint sets of leads"),
    "w2v_cmsc": Entry(
        "ecgfast.objectives.w2v_cmsc", "W2VCMSC", "local and global loss", {"lead_mask_prob": 0.0}
    ),
    DEFAULT: Entry(
        "ecgfast.objectives.w2v_cmsc",
        "W2VCMSC",
        "the same with random lead masking, as in the paper",
    ),
}
"""What `--objective` takes. A new objective is a line here."""


def objective_class(name: str) -> type[Objective]:
    """The class of the objective called `name`.

    Raises:
        EcgfastError: there is none of that name.
    """
    entry = _entry(name)
    return getattr(import_module(entry.module), entry.kind)


def objective_config(name: str, size: Size, encoder: EncoderConfig) -> ObjectiveConfig:
    """The settings of the objective called `name` for an encoder of a preset's size, see `sized`."""
    return replace(objective_class(name).Config.sized(size, encoder), **_entry(name).settings)


def _entry(name: str) -> Entry:
    if not isinstance(name, str) or name not in OBJECTIVES:
        near = did_you_mean(name, OBJECTIVES) if isinstance(name, str) else ""
        raise EcgfastError(f"objective: must be one of {', '.join(OBJECTIVES)}, got {name!r}{near}")
    return OBJECTIVES[name]
