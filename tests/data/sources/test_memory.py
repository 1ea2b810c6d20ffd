"""The peak memory of an import does not grow with the number of records."""

import subprocess
import sys

import pytest

from tests.data.made import sines, write_record

PEAKS = """
import multiprocessing, resource, sys
from pathlib import Path
from ecgfast.data import prepare, synthetic_store

if __name__ == "__main__":
    what, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if what == "import":
        prepare(folder / f"in{count}", folder / "store", workers=2, progress=False)
    else:
        options = dict(records=1, seconds=10.0, seed=0, workers=2, progress=False)
        synthetic_store(folder / "store", patients=count, **options)
    for process in multiprocessing.active_children():
        process.join()
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        print(resource.getrusage(who).ru_maxrss // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit")
@pytest.mark.parametrize("what", ["import", "synth"])
def test_peak_memory_is_flat(tmp_path, what):
    few, many = 200, 800  # 600 recordings are 72 MB
    peaks = []
    for count in (few, many):
        folder = tmp_path / str(count)
        write_record(folder / f"in{count}/r0", sines(5000))
        header = (folder / f"in{count}/r0.hea").read_text()
        for i in range(1, count):  # all of the same samples
            (folder / f"in{count}/r{i}.hea").write_text(header.replace("r0 ", f"r{i} ", 1))
        command = [sys.executable, "-c", PEAKS, what, str(folder), str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append([int(line) for line in done.stdout.split()])
    for least, most in zip(*peaks, strict=True):
        assert most < least + 24, peaks
