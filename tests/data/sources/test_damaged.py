"""Damage anywhere in a table or array ends in a clean refusal."""

import random
import time

import numpy as np
import pytest

from ecgfast.data.signal.preprocess import Preprocessing, Rejected
from ecgfast.data.sources import open_source
from ecgfast.data.store.recording import Recording
from ecgfast.errors import EcgfastError
from tests.data.made import mimic_row, ptbxl_row, sines, write_csv, write_mimic, write_ptbxl
from tests.data.sources.test_code15 import write_two_parts

PIECES = [
    b"'",
    b'"',
    b",",
    b";",
    b"\n",
    b"\r",
    b"\0",
    b"\xff",
    b"../",
    b"/",
    b"\\",
    b"-",
    b"nan",
    b"1e999",
    b"9" * 30,
]
CASES = 60


def make(folder, kind):
    """A whole source, and the file of it to damage with the length that damage is worth while in."""
    if kind == "ptbxl":
        write_ptbxl(folder, [ptbxl_row(i) for i in (1, 2)], rates=[500])
        return folder / "ptbxl_database.csv", None
    if kind == "mimic":
        write_mimic(folder, [mimic_row(1, 3), mimic_row(2, 4)])
        return folder / "record_list.csv", None
    if kind in ("exams", "tracings"):
        write_two_parts(folder)
        return (folder / "exams.csv", None) if kind == "exams" else (folder / "exams_part0.hdf5", 4096)
    folder.mkdir()
    for name in "ab":
        np.save(folder / f"{name}.npy", sines(leads=6) if kind == "records" else sines())
    if kind == "array":
        return folder / "a.npy", 128
    told = {"rate": 500, "leads": ";".join(f"V{i}" for i in range(1, 7)), "age": 7, "sex": "F", "fold": 3}
    write_csv(folder / "records.csv", [{"file": f"{name}.npy", **told, "labels": "a;b"} for name in "ab"])
    return folder / "records.csv", None


def damaged(whole, zone, draw):
    data = bytearray(whole)
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(min(zone or len(data), len(data)) or 1)
        piece = draw.choice([*PIECES, bytes([draw.randrange(256)])])
        match draw.randrange(4):
            case 0:
                data[at : at + len(piece)] = piece
            case 1:
                data[at:at] = piece
            case 2:
                del data[at : at + draw.randint(1, 30)]
            case 3:
                data[at:at] = data[:at][-40:]
    return bytes(data[: draw.randrange(len(data) + 1)] if draw.random() < 0.1 else data)


@pytest.mark.parametrize("kind", ["ptbxl", "mimic", "exams", "tracings", "array", "records"])
@pytest.mark.filterwarnings("ignore:Reading `.npy`")
def test_damage(tmp_path, kind):
    if kind in ("exams", "tracings"):
        pytest.importorskip("h5py")
    file, zone = make(tmp_path / "in", kind)
    whole = file.read_bytes()
    seed = time.time_ns()
    print("seed", seed)
    draw = random.Random(seed)
    taken = refused = 0
    for _ in range(CASES):
        file.write_bytes(damaged(whole, zone, draw))
        try:
            source = open_source(tmp_path / "in")
            for item in source.items():
                try:
                    if item.refused:
                        raise Rejected(item.refused)
                    assert isinstance(source.read(item, Preprocessing()), Recording)
                    taken += 1
                except Rejected:
                    refused += 1
        except EcgfastError:
            refused += 1
    assert taken > 0
    assert refused > 0
