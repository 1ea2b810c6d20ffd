"""`ecgfast prepare`: a folder of records becomes a store."""

import itertools
import os
from pathlib import Path
from typing import Annotated

import tyro

from ecgfast.commands.arguments import Argument, value
from ecgfast.errors import EcgfastError


def prepare(
    source: Argument[Path],
    store: Argument[Path],
    format: Annotated[str, tyro.conf.arg(metavar="FORMAT")] = "auto",
    unit: Annotated[str | None, value("UNIT")] = None,
    rename: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, value("NAME=LEAD ...")] = (),
    leads: Annotated[str | None, value("LEADS")] = None,
    workers: int = 0,
    bandpass: Annotated[tuple[float, float] | None, value("LOW HIGH")] = None,
    notch: Annotated[float | None, value("HZ")] = None,
    baseline: bool = False,
    derive_leads: bool = False,
    longest_gap: float = 0.0,
) -> None:
    """Import a folder of records into a store: microvolts at 500 Hz, leads by name.

    Args:
        source: Folder of WFDB records at any depth, PTB-XL, MIMIC-IV-ECG, CODE-15, ECG-ID or .npy files.
        store: Folder to write; taken up again if an earlier import of SOURCE was stopped.
        format: ptbxl, ptbxl100, mimic, code15, ecgid, wfdb or npy; auto: the first that SOURCE looks like.
        unit: V, mV, uV or nV, where SOURCE tells no unit (npy, code15); its usual one otherwise.
        rename: Signals of these names are these leads, such as MLII=II V=V1; may be given several times.
        leads: Leads that the signals of each record are, in its order, such as I,II,-,V1: for signals with
            other or no names; - is none.
        workers: Processes that read records; 0: one per core.
        bandpass: Lower and upper cut-off in Hz of a zero-phase Butterworth filter; 0 as the lower: low-pass.
        notch: Mains frequency in Hz to take out.
        baseline: Subtract the baseline that running medians of 0.2 and 0.6 s find.
        derive_leads: Compute absent III, aVR, aVL and aVF from I and II.
        longest_gap: Seconds of invalid samples to bridge by a line.
    """
    from ecgfast.data import Preprocessing
    from ecgfast.data import prepare as run
    from ecgfast.leads import LeadNames

    names = LeadNames.of(_pairs(rename), leads.split(",") if leads is not None else None)
    settings = Preprocessing(bandpass, notch, baseline, derive_leads, longest_gap, names)
    workers = workers or os.cpu_count() or 1
    print(run(source, store, format=format, unit=unit, preprocessing=settings, workers=workers))


def _pairs(texts: tuple[tuple[str, ...], ...]) -> dict[str, str]:
    """The pairs of `--rename NAME=LEAD ...`, in one option or several."""
    pairs: dict[str, str] = {}
    for text in itertools.chain.from_iterable(texts):
        name, equals, lead = text.rpartition("=")
        if not equals or not name.strip():
            raise EcgfastError(f"rename: must be NAME=LEAD, such as MLII=II, got {text!r}")
        if pairs.setdefault(name, lead) != lead:
            raise EcgfastError(f"rename: {name!r} must become one lead, got {pairs[name]} and {lead}")
    return pairs
