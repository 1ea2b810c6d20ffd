"""What a run learns and from which recordings: the user's own tables, protocols, identities."""

import numpy as np
import pytest

from ecgfast.data import Store
from ecgfast.errors import EcgfastError
from ecgfast.evaluation import Split
from ecgfast.finetuning import FinetuneConfig, Targets, choose_data, read_parts, recipe_config
from ecgfast.finetuning.identities import choose_identities
from ecgfast.finetuning.parts import write_parts
from ecgfast.leads import STANDARD_LEADS
from tests.finetuning.test_targets import write

NAN = np.nan
# Two recordings of each of six patients, folds 1, 1, 2, 2, 3, 3; statements of PTB-XL as labels.
ROWS = [
    (f"p{i}", [("NORM", "IMI", "SR")[(i + k) % 3]], 30.0 + i, 1 + i // 2, STANDARD_LEADS[: 12 - 6 * k])
    for i in range(6)
    for k in range(2)
]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return write(tmp_path_factory.mktemp("data") / "store", ROWS)


@pytest.fixture
def table(tmp_path):
    def make(*lines):
        path = tmp_path / "labels.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(path)

    return make


def config(**changes):
    return FinetuneConfig(**{"validation_fraction": 0.3, **changes})


def test_numbers_of_a_table_by_patient(store, table):
    """p0 has no number, p1 no row, p9 is not in the store: the patients of the others are divided."""
    path = table("patient_id,lvef", "p0,", "p2,55", "p3,35.5", "p4,60", "p5,40", "p9,50")
    data = choose_data(store, config(labels=path))
    assert (data.task, data.targets.names) == ("regression", ("lvef",))
    np.testing.assert_array_equal(data.targets.values[:, 0], [*[NAN] * 4, 55, 55, 35.5, 35.5, 60, 60, 40, 40])
    assert sorted([*data.split.train, *data.split.validation]) == list(range(4, 12))
    assert len(data.split.validation) == 2
    assert list(data.told) == [
        "left out 1: rows whose patient_id is not in the store (p9)",
        "left out 2: recordings without a row in the table (r2, r3)",
        "left out 2: recordings whose value in the table is missing (r0, r1)",
    ]


def test_several_numbers_of_a_table(store, table):
    path = table("record_id,lvef,mass", "r0,55,", "r4,60,100", "r6,,120", "r8,40,90")
    data = choose_data(store, config(labels=path, label_columns=("mass", "lvef")))
    assert data.targets.names == ("mass", "lvef")
    np.testing.assert_array_equal(data.targets.values[[0, 4, 6]], [[NAN, 55], [100, 60], [120, NAN]])
    assert "left out 1: recordings whose value in the table is missing (lvef) (r6)" in data.told


def test_classes_of_a_table(store, table):
    path = table("record_id,af,codes", *(f"r{i},{i % 2},{('10;20', '10')[i % 2]}" for i in range(12)))
    data = choose_data(store, config(labels=path, label_columns=("af",)))
    assert (data.task, data.targets.names) == ("classification", ("af",))
    np.testing.assert_array_equal(data.targets.values[:, 0], [0, 1] * 6)
    assert data.single == "leave out"
    data = choose_data(store, config(labels=path, label_lists=("codes",), classes=("20", "af")))
    np.testing.assert_array_equal(data.targets.values, [[1, 0], [0, 1]] * 6)
    assert data.single == "refuse"
    # 0 and 1 are numbers too, where they are said to be
    data = choose_data(store, config(labels=path, label_columns=("af",), task="regression"))
    assert (data.task, data.targets.values[1].tolist()) == ("regression", [1.0])


def test_another_table_is_another_run(store, table):
    lines = ["record_id,x", *(f"r{i},{i}" for i in range(12))]
    one = choose_data(store, config(labels=table(*lines))).describe()
    assert one == choose_data(store, config(labels=table(*lines))).describe()
    other = choose_data(store, config(labels=table(*lines, "r99,5"))).describe()
    assert [name for name in one if one[name] != other[name]] == ["labels_sha256"]


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        (["record_id,x", "r0,1", "r0,2"], {}, "has record_id 'r0' in lines 2 and 3, want it once"),
        (["record_id,x", "s0,1", "s1,2"], {}, "must have a record_id of the store, got such as s0, s1"),
        (["record,x", "r0,1"], {}, "must have a column record_id or patient_id, got record, x"),
        (["record_id,x", "r0,1"], {"label_columns": ("y",)}, "must be a column of .*, got 'y'"),
        (["record_id,x,y", "r0,2,A"], {}, "got 'x' of numbers and 'y' of classes"),
        (["record_id,x", "r0,2", "r1,3"], {"task": "classification"}, "must be 0/1 or lists of labels"),
        (["record_id,x", "r0,A"], {"task": "regression"}, "line 2: x must be a finite number, got 'A'"),
        (
            ["record_id,x", "r0,2"],
            {"classes": ("x",)},
            "classes: must be of labels, got columns of numbers",
        ),
        (["record_id,x", "r0,A"], {"classes": ("B",)}, "classes: must be of .*, got 'B'"),
        (["record_id,x", "r0,1", "r1,0"], {}, "must have 2 patients or more to divide, got 1"),
    ],
)
def test_bad_tables(store, table, lines, settings, message):
    with pytest.raises(EcgfastError, match=message):
        choose_data(store, config(labels=table(*lines), **settings))


def test_a_protocol_says_classes_and_parts(store):
    """SR is no superclass: its recordings are left out; MI is that of IMI. The store lacks folds 9 and 10."""
    with pytest.raises(EcgfastError, match="for validation in 9, the store's folds are 1 to 3"):
        choose_data(store, config(protocol="helme:super"))
    told = config(protocol="helme:super", validation_folds=(2,), test_folds=(3,))
    data = choose_data(store, told)
    assert data.targets.names == ("MI", "NORM")
    labels = [row[1][0] for row in ROWS]
    known = [i for i in range(12) if labels[i] != "SR"]
    assert [part.tolist() for part in data.split.parts().values()] == [
        [i for i in known if ROWS[i][3] == fold] for fold in (1, 2, 3)
    ]
    np.testing.assert_array_equal(data.targets.values[known, 1], [labels[i] == "NORM" for i in known])
    assert any("recordings without a label of the task" in line for line in data.left_out)
    assert any("parts are not the protocol's" in line for line in data.told)
    assert data.single == "keep"


def test_recipes_are_settings():
    paper = recipe_config("oh2022")
    assert paper == FinetuneConfig(protocol="oh2022")  # the paper's are the defaults
    identity = recipe_config("id-gallery-probe")
    assert (identity.optim.lr, identity.optim.schedule, identity.optim.stages) == (
        3e-5,
        "tri_stage",
        (0.1, 0.2, 0.7),
    )
    assert (identity.optim.final_scale, identity.arcface_scale, identity.arcface_margin) == (0.01, 192.0, 1.0)
    assert identity.is_identification


def test_identities(store):
    """Of six patients two are to be recognised in validation and two in the test, one crop a recording."""
    by_fold = config(task="identification", segment_samples=320, validation_folds=(2,), test_folds=(3,))
    data = choose_identities(store, by_fold, list(range(12)))
    assert [part.tolist() for part in data.split.parts().values()] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]
    assert data.classes.tolist() == [0, 0, 1, 1] + [-1] * 8
    assert data.crops.patients == ("p2", "p3")
    assert (data.crops.gallery.recording.tolist(), data.crops.probe.recording.tolist()) == ([4, 6], [5, 7])
    each = choose_identities(
        store, config(**{**by_fold.__dict__, "identities": "recordings"}), list(range(12))
    )
    assert each.classes.tolist() == [0, 1, 2, 3] + [-1] * 8
    assert each.describe() != data.describe()
    drawn = config(task="identification", segment_samples=320, validation_fraction=0.4, seed=1)
    data = choose_identities(store, drawn, list(range(12)))
    owner = store.patient_numbers()
    assert not set(owner[data.split.train]) & set(owner[data.split.validation])
    assert len(data.split.test) == 0


def test_identities_that_are_refused(store):
    with pytest.raises(EcgfastError, match="must give validation two patients with two recordings"):
        choose_identities(store, config(task="identification", segment_samples=900), list(range(12)))
    by_fold = config(task="identification", segment_samples=320, validation_folds=(1,), test_folds=(2, 3))
    with pytest.raises(EcgfastError, match="folds: must leave a fold to train on, got all of"):
        choose_identities(store, by_fold, list(range(12)))
    # V1 is in the first recordings alone
    alone = config(task="identification", segment_samples=320, validation_folds=(2,))
    with pytest.raises(EcgfastError, match="validation_folds: must have two patients with two"):
        choose_identities(store, alone, [6])
    short = config(protocol="id-gallery-probe", segment_samples=320)
    with pytest.raises(EcgfastError, match="segment_samples: must be 2500 for id-gallery-probe, got 320"):
        choose_identities(store, short, [0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "helme:soup"}, "protocol: must be of .*, got 'helme:soup'"),
        ({"protocol": "helme:super", "classes": ("MI",)}, "classes: must be left out beside the protocol"),
        ({"protocol": "helme:super", "task": "regression"}, "task: must be classification for helme:super"),
        ({"protocol": "helme:super", "test_fraction": 0.1}, "test_fraction: must be 0 beside the protocol"),
        ({"task": "identification", "target": "age"}, "target: must be left out beside identification"),
        ({"labels": "x.csv", "target": "age"}, "target: must be left out beside a table of labels"),
        ({"label_columns": ("x",)}, "label_columns: must have labels, a table, beside it"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "must leave some patients to train on"),
        (
            {"validation_folds": (1,), "test_fraction": 0.1},
            "must be 0 beside validation_folds",
        ),
        ({"lead_mask_prob": 1.5}, r"lead_mask_prob takes a number in \[0, 1\], got 1.5"),
        ({"task": "ranking"}, "task: must be auto or classification or .*, got 'ranking'"),
    ],
)
def test_settings_that_do_not_go_together(settings, message):
    with pytest.raises(EcgfastError, match=message):
        config(**settings)


def test_segments_are_no_recordings(tmp_path):
    rows = [(f"p{i}", ["426783006"], None, None, STANDARD_LEADS) for i in range(40)]
    named = write(tmp_path / "store", rows, names=[f"A{i:04}" for i in range(40)], samples=5000)
    with pytest.raises(EcgfastError, match="protocol: must divide recordings, got 'oh2022-official'"):
        choose_data(named, config(protocol="oh2022-official"))


def test_parts_are_named(store, tmp_path):
    write_parts(tmp_path, store, Split(np.array([0, 1]), np.array([4]), np.array([6, 7])))
    assert read_parts(tmp_path) == {"train": ["r0", "r1"], "validation": ["r4"], "test": ["r6", "r7"]}
    (tmp_path / "parts.json").write_text("[]")
    with pytest.raises(EcgfastError, match=r"RUN: must have a parts.json that can be read"):
        read_parts(tmp_path)


def test_given_targets_are_taken_as_they_are(store):
    given = Targets(np.arange(12, dtype=np.float32)[:, None], ("x",))
    data = choose_data(store, config(), given, Split([0, 1], [4], [6]))
    assert data.targets is given
    assert data.split.test.dtype == np.int64
    assert (data.task, data.single) == ("regression", "refuse")
