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

from benchmarks.baselines.official_import import import_folder
from benchmarks.data.harness import compare, main, row
from benchmarks.data.records import write_cinc_folder
from ecgfast.data import prepare

RECORDS = int(os.environ.get("BENCH_RECORDS", "1000"))
_CLASSES = [{str(code)} for code in range(26)]
_ONCE = "from ecgfast.data import prepare; import sys; prepare(*sys.argv[1:3], progress=False)"
_PEAK = f"{_ONCE}; import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"


def official(source: Path, target: Path, workers: int, resample: bool) -> None:
    """Segments in `.mat` files."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    import_folder(source, target, _CLASSES, workers=workers, resample=resample)


def ours(source: Path, target: Path, workers: int) -> None:
    """A store."""
    shutil.rmtree(target, ignore_errors=True)
    prepare(source, target, workers=workers, progress=False)


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
            forms = {
                "official": partial(official, source, segments, workers, rate != 500),
                "ecgfast": partial(ours, source, store, workers),
            }
            what = f"{RECORDS:,} records of 10 s at {rate} Hz, {workers} processes"
            rows.append(row(what, compare(forms, turns), "official", "ecgfast"))
    one = write_cinc_folder(folder / "one", 1)
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = (run(_ONCE, one, store, Path(cache))[0] for _ in range(2))
    few = write_cinc_folder(folder / "few", RECORDS // 10)
    peaks = [int(run(_PEAK, source, store)[1]) / 1024 for source in (few, folder / "records500")]
    about = (
        f"Median time of whole imports, each form in turn, warm page cache, synced to disk by ecgfast only; "
        f"official: linecache, `wfdb.rdrecord`, `loadmat`, `resample_poly` where the rate is another, a "
        f"`savemat` per 5 s. A process that imports one record takes {cold:.1f} s with an empty Numba cache "
        f"and {warm:.1f} s after that. Peak resident memory: {peaks[0]:.0f} MiB for {RECORDS // 10:,}, "
        f"{peaks[1]:.0f} MiB for {RECORDS:,} records."
    )
    return rows, about


if __name__ == "__main__":
    main("Importing records", measure)
