"""Indices of stores made by hand, without signals."""

import ast
import csv

import pyarrow as pa

from ecgfast.data.store.store import INDEX_SCHEMA
from ecgfast.leads import STANDARD_LEADS


def made_index(rows):
    """The index of a store with the given rows; what a row doesn't tell has a usual value."""
    usual = {
        "source": "",
        "shard": 0,
        "offset": 0,
        "n_samples": 5000,
        "leads": list(STANDARD_LEADS),
        "labels": [],
        "age": None,
        "sex": None,
        "fold": None,
        "source_rate": 500.0,
        "checksum": 0,
    }
    full = [usual | {"patient_id": row["record_id"]} | row for row in rows]
    return pa.Table.from_pylist(full, schema=INDEX_SCHEMA)


def ptbxl_index(folder):
    """The index that an import of a folder in PTB-XL's layout has, without reading signals."""
    with (folder / "ptbxl_database.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return made_index(
        {
            "record_id": row["filename_hr"],
            "patient_id": row["patient_id"].removesuffix(".0"),
            "labels": list(ast.literal_eval(row["scp_codes"])),
            "fold": int(row["strat_fold"]),
        }
        for row in rows
    )


def cinc_index(folder):
    """The index that an import of the challenge's records has, without reading signals."""
    rows = []
    for header in sorted(folder.glob("*.hea")):
        text = header.read_text(encoding="utf-8").splitlines()
        codes = next(line for line in text if line.startswith("#Dx")).partition(":")[2]
        samples = int(text[0].split()[3])
        rows.append(
            {
                "record_id": header.stem,
                "labels": [code.strip() for code in codes.split(",")],
                "n_samples": samples,
            }
        )
    return made_index(rows)
