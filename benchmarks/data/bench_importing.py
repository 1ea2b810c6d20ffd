"""Importing CinC-2021-like records: `prepare` against what the official pipeline does to them.

python -m benchmarks.data.bench_importing FOLDER --json out.json --markdown out.md
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.data.harness import compare, main, row
from benchmarks.data.official_import import import_folder
from benchmarks.data.records import write_cinc_folder
from ecgfast.data import prepare

RECORDS = int(os.environ.get("BENCH_RECORDS", "1000"))
_CLASSES = [{str(code)} for code in range(26)]
_ONCE = "from ecgfast.data import prepare; import sys; prepare(*sys.argv[1:3], progress=False)"
_PEAKS = """
import multiprocessing, resource, sys
from ecgfast.data import prepare

if __name__ == "__main__":
    prepare(*sys.argv[1:3], workers=2, progress=False)
    for process in multiprocessing.active_children():
        process.join()
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        print(resource.getrusage(who).ru_maxrss // 1024)
"""


def official(source: Path, target: Path, workers: int, resample: bool) -> None:
    """Segments in `.mat` files."""
    target.mkdir()
    import_folder(source, target, _CLASSES, workers=workers, resample=resample)


def clear(*targets: Path) -> None:
    """Remove what was written, and let the disk finish with it: no variant waits for the other's writes."""
    for target in targets:
        shutil.rmtree(target, ignore_errors=True)
    os.sync()


def run(program: str, source: Path, target: Path, cache: Path | None = None) -> tuple[float, str]:
    """Seconds of a process that imports, and what it prints."""
    shutil.rmtree(target, ignore_errors=True)
    environment = os.environ | ({"NUMBA_CACHE_DIR": str(cache)} if cache else {})
    start = time.perf_counter()
    command = [sys.executable, "-c", program, str(source), str(target)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return time.perf_counter() - start, done.stdout


def measure(folder: Path, turns: int) -> tuple[list[dict[str, Any]], str]:
    """A row per rate and number of workers."""
    store, segments = folder / "store", folder / "segments"
    rows = []
    for rate in (500, 1000):
        source = write_cinc_folder(folder / f"records{rate}", RECORDS, rate)
        for workers in (1, 2):
            variants = {
                "official": partial(official, source, segments, workers, rate != 500),
                "ecgfast": partial(prepare, source, store, workers=workers, progress=False),
            }
            what = f"{RECORDS:,} records of 10 s at {rate} Hz, {workers} processes"
            times = compare(variants, turns, before=partial(clear, store, segments))
            rows.append(row(what, times, "official", "ecgfast"))
    one = write_cinc_folder(folder / "one", 1)
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = (run(_ONCE, one, store, Path(cache))[0] for _ in range(2))
    few = write_cinc_folder(folder / "few", RECORDS // 10)
    peaks = [run(_PEAKS, source, store)[1].split() for source in (few, folder / "records500")]
    about = (
        f"Median time of whole imports, each variant in turn, warm page cache, nothing left to write from "
        f"the turn before, synced to disk by ecgfast only; official: linecache, `wfdb.rdrecord`, `loadmat`, "
        f"`resample_poly` where the rate is another, a `savemat` per 5 s. A process that imports one record "
        f"takes {cold:.1f} s with an empty Numba cache and {warm:.1f} s after that. Peak resident memory of "
        f"two processes, each with the libraries: {' and '.join(peaks[0])} MiB for {RECORDS // 10:,}, "
        f"{' and '.join(peaks[1])} MiB for {RECORDS:,} records."
    )
    return rows, about


if __name__ == "__main__":
    main("Importing records", measure)
