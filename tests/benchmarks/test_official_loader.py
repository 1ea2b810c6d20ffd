"""The official way to load gives the segments that ours gives, so that a ratio of times means something."""

import json
from pathlib import Path

import numpy as np
import torch

import benchmarks
from benchmarks.data.bench_loader import SAMPLES, all_variants, describe, make_records, measure
from benchmarks.data.official_loader import SegmentFiles, collate

N = 128  # recordings: two of the benchmark's batches


def test_same_segments(tmp_path):
    store, files = make_records(tmp_path, N)
    assert len(files) == 2 * N
    signal, ids, patients = collate([SegmentFiles(files)[i] for i in (0, 1, 5)])
    want = [store.signal(i)[:, s : s + SAMPLES] for i, s in ((0, 0), (0, SAMPLES), (2, SAMPLES))]
    torch.testing.assert_close(signal, torch.from_numpy(np.stack(want)) * 1e-3)
    assert (ids.tolist(), patients.tolist()) == ([0, 1, 5], [0, 0, 2])


def test_every_variant_gives_every_segment(tmp_path):
    store, files = make_records(tmp_path, N)
    variants = all_variants(store, files)
    sums = {
        name: sum(batch[0].double().sum().item() for batch in variant()) for name, variant in variants.items()
    }
    microvolts = sum(float(store.signal(i).astype(np.int64).sum()) for i in range(N))
    for name, total in sums.items():
        want = microvolts if "int16" in name else microvolts / 1000
        assert abs(total - want) < 1e-3 * abs(want), name
    rows = measure(variants, 1)
    assert [row["variant"] for row in rows] == list(variants)
    assert all(row["times_faster_than_official"] > 0 for row in rows)


def test_earlier_results_are_read():
    """They name a row's variant under "form"."""
    folder = Path(benchmarks.__file__).parent / "results" / "cpu-sapphire-rapids-2026-11-21"
    page = (folder / "loader.md").read_text(encoding="utf-8").replace("form", "variant")
    assert describe(json.loads((folder / "loader.json").read_text(encoding="utf-8"))) == page
