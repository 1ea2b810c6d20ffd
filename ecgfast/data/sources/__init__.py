"""What records come from: the kinds of folders that `prepare` takes, arrays, and importing them.

Where a folder fits several, the first in `FORMATS` is it: tables before bare records, and these before
arrays.
"""

from pathlib import Path

from ecgfast._suggest import did_you_mean
from ecgfast.data.signal.plausibility import MICROVOLTS, find_unit
from ecgfast.data.sources.base import About, Item, Source
from ecgfast.data.sources.code15 import Code15
from ecgfast.data.sources.mimic import MimicIvEcg
from ecgfast.data.sources.npy import Npy
from ecgfast.data.sources.ptbxl import PtbXl, PtbXl100
from ecgfast.data.sources.wfdb import EcgId, Wfdb
from ecgfast.errors import EcgfastError

__all__ = ["FORMATS", "About", "Item", "Source", "open_source"]

FORMATS: dict[str, type[Source]] = {
    source.format: source for source in (PtbXl, PtbXl100, MimicIvEcg, Code15, EcgId, Wfdb, Npy)
}
"""The sources by name of their format, the most specific first."""


def open_source(folder: Path, format: str = "auto", unit: str | None = None) -> Source:
    """The source that a folder is.

    Args:
        folder: The folder.
        format: A key of `FORMATS`, or "auto": found by looking at the folder.
        unit: V, mV, uV or nV, for signals of which the source tells no unit; None: its usual one.

    Raises:
        EcgfastError: no such folder, format or unit; the folder is not of the format, or has its own units.
    """
    if format != "auto" and format not in FORMATS:
        near = did_you_mean(format, FORMATS)
        raise EcgfastError(f"format: got {format!r}, want auto, {', '.join(FORMATS)}{near}")
    if not folder.is_dir():
        raise EcgfastError(f"source: no such folder: {folder}")
    kinds = FORMATS.values() if format == "auto" else [FORMATS[format]]
    for kind in kinds:
        if kind.detect(folder):
            return kind(folder, _unit_for(kind, unit))
    if format == "auto" and (folder / "store.json").is_file():
        raise EcgfastError(f"source: {folder} is a store already, want a folder of records")
    if format == "auto":
        raise EcgfastError(f"source: no WFDB record (.hea file) and no other known format in {folder}")
    raise EcgfastError(f"source: {folder} is not in format {format}: it has no {FORMATS[format].wants}")


def _unit_for(kind: type[Source], unit: str | None) -> str | None:
    if unit is None:
        return None
    if (found := find_unit(unit)) is None:
        raise EcgfastError(f"unit: must be one of {', '.join(MICROVOLTS)}, got {unit!r}")
    if not kind.takes_unit:
        raise EcgfastError(
            f"unit: must be left out for format {kind.format}, whose records tell it; got {unit!r}"
        )
    return found
