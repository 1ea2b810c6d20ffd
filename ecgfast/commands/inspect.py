"""`ecgfast inspect`: what a store holds, in figures or as a page of a recording."""

from json import dumps
from pathlib import Path
from typing import Annotated

from ecgfast._outputs import PICTURES, check_output, write_whole
from ecgfast.commands.arguments import Argument, File, value
from ecgfast.errors import EcgfastError


def inspect(
    store: Argument[Path],
    record: Annotated[str | None, value("ID")] = None,
    plot: File = None,
    start: float = 0.0,
    rhythm: Annotated[str | None, value("LEAD")] = None,
    json: File = None,
    verify: bool = False,
) -> None:
    """Show what a store holds, or draw one of its recordings on ECG paper.

    Args:
        store: Folder written by `ecgfast prepare`.
        record: Id of a recording: show it alone.
        plot: File for a page of the recording, PNG, PDF or SVG by its name: its leads, a rhythm strip, heart
            rate and labels, 25 mm/s, 10 mm/mV.
        start: Second at which the page begins.
        rhythm: Lead of the rhythm strip; by default II, or I or V1, or the first that is there.
        json: File for the figures, for programs.
        verify: Read every signal and compare it with its checksum.
    """
    from ecgfast.data import Store
    from ecgfast.data.store.inspection import describe_recording, find_recording, summarize

    if plot is not None and record is None:
        raise EcgfastError("plot: want --record ID beside it")
    if plot is not None:
        check_output("plot", plot, PICTURES)
    if json is not None:
        check_output("json", json)
    opened = Store(store)
    if verify:
        opened.verify()
    if record is None:
        found = summarize(opened)
        table = str(found)
        figures = found.as_dict()
    else:
        at = find_recording(opened, record)
        figures = describe_recording(opened, at)
        table = "\n".join(f"{name:<12} {value}" for name, value in figures.items())
    if plot is not None:
        from ecgfast.plotting import plot_recording

        title = f"{figures['record']}   {figures['patient']}"
        plot_recording(
            opened.signal(at),
            opened.index["leads"][at].as_py(),
            plot,
            rate=opened.rate,
            start=start,
            rhythm=rhythm,
            title=title,
            labels=opened.index["labels"][at].as_py(),
        )
    if json is not None:
        text = dumps(figures, indent=2) + "\n"
        write_whole(json, lambda path: path.write_text(text, encoding="utf-8"))
    print(table)  # after all that may be refused
    if plot is not None:
        print(plot)
    if verify:
        print("every signal has its checksum")
