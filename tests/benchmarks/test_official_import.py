"""The official way to import gives the segments that ours gives, so that a ratio of times means something."""

import numpy as np
import pytest
import scipy.io

from benchmarks.data.official_import import import_folder
from benchmarks.data.records import write_cinc_folder
from ecgfast.data import Store, prepare

SAMPLES = 2500


@pytest.mark.parametrize(("rate", "workers"), [(500, 1), (500, 2), (1000, 1)])
def test_same_segments(tmp_path, rate, workers):
    source, target = write_cinc_folder(tmp_path / "in", 3, rate), tmp_path / "segments"
    target.mkdir()
    classes = [{"59118001", "0"}, {"1"}]
    import_folder(source, target, classes, workers=workers, resample=True)
    prepare(source, tmp_path / "store", progress=False)
    store = Store(tmp_path / "store")
    assert sorted(p.name for p in target.iterdir()) == [f"A{i:05d}_{k}.mat" for i in range(3) for k in (0, 1)]
    for i in range(3):
        segments = [scipy.io.loadmat(target / f"A{i:05d}_{k}.mat") for k in (0, 1)]
        signal = np.concatenate([segment["feats"] for segment in segments], axis=1)
        assert all(segment["feats"].shape == (12, SAMPLES) for segment in segments)
        # resampled, ours goes on beyond the ends along a line, theirs with zeros
        inside = slice(None) if rate == 500 else slice(20, -20)
        np.testing.assert_allclose(1e3 * signal[:, inside], store.signal(i)[:, inside], atol=0.501)
        for segment in segments:
            assert segment["label"].tolist() == [[1, 0]]
            assert (segment["age"].item(), segment["sex"].item()) == (61, 0)
            assert (segment["patient_id"].item(), segment["curr_sample_rate"].item()) == (i, 500)


def test_other_rates_are_left_out_as_in_the_original(tmp_path):
    source, target = write_cinc_folder(tmp_path / "in", 1, 1000), tmp_path / "segments"
    target.mkdir()
    import_folder(source, target, [{"1"}])
    assert not list(target.iterdir())
