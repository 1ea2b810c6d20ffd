"""Reading one 10 s 12-lead record, header included, in physical units: ours against `wfdb.rdrecord`.

python -m benchmarks.data.bench_reading FOLDER --json out.json --markdown out.md
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import wfdb

from benchmarks.data.harness import compare, main, row
from benchmarks.data.records import write_cinc_folder, write_record
from ecgfast.data.wfdb.header import check_files, read_header
from ecgfast.data.wfdb.signals import read_signals


def read(path: Path) -> np.ndarray:
    """Millivolts, float64 [leads, n]."""
    header = read_header(path.with_suffix(".hea"))
    check_files(path.parent, header)
    return read_signals(path.parent, header, list(range(len(header.lines))))


def measure(folder: Path, turns: int) -> tuple[list[dict[str, Any]], str]:
    """A row per format."""
    records = {f"format {form}": write_record(folder, form) for form in ("16", "212")}
    records["CinC `.mat`"] = write_cinc_folder(folder / "one", 1) / "A00000"
    rows = []
    for what, path in records.items():
        np.testing.assert_array_equal(read(path), wfdb.rdrecord(str(path)).p_signal.T)
        variants = {"official": partial(wfdb.rdrecord, str(path)), "ecgfast": partial(read, path)}
        rows.append(row(what, compare(variants, turns, calls=20), "official", "ecgfast"))
    about = (
        "Median time per record on one core, warm page cache, 20 calls of each variant in turn; "
        "official: `wfdb.rdrecord`. Both give the same numbers, which is checked first."
    )
    return rows, about


if __name__ == "__main__":
    main("Reading records", measure)
