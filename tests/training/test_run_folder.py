"""What a run's folder accepts, refuses and survives."""

import pytest
import torch

from ecgfast.errors import EcgfastError
from ecgfast.training.checkpoint import RunFolder, write_atomically


def description(**config):
    return {
        "task": "pretrain",
        "world_size": 1,
        "store": {"path": "s", "index_sha256": "0"},
        "config": config,
    }


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create(description(lr=1, model={"width": 8}))
    return folder


def test_same_run_is_taken(folder):
    folder.check(description(lr=1, model={"width": 8}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lr": 2, "model": {"width": 8}}, r"started with lr = 1 \(now 2\);"),
        ({"lr": 1, "model": {"width": 4}}, r"started with model.width = 8 \(now 4\);"),
        ({"lr": 1, "model": {}}, r"model.width = 8 \(now unset\)"),
    ],
)
def test_other_configuration_is_refused(folder, config, message):
    with pytest.raises(EcgfastError, match=message):
        folder.check(description(**config))


def test_other_store_is_refused(folder):
    new = description(lr=1, model={"width": 8}) | {"store": {"path": "t", "index_sha256": "1"}}
    with pytest.raises(EcgfastError, match=r"started with store s \(now t\)"):
        folder.check(new)


def test_moved_store_is_taken(folder):
    new = description(lr=1, model={"width": 8}) | {"store": {"path": "t", "index_sha256": "0"}}
    folder.check(new)


@pytest.mark.parametrize("content", [None, "", "[]", "{", '{"config": 3}'])
def test_foreign_folder_is_refused(tmp_path, content):
    (tmp_path / "notes.txt").write_text("mine")
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(EcgfastError, match="RUN: "):
        RunFolder(tmp_path).check(description())


def test_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(EcgfastError, match="no run of ecgfast"):
        RunFolder(tmp_path / "run").check(description())


def test_unwritable_parent_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EcgfastError, match="can't be made"):
        RunFolder(tmp_path / "file" / "run").create(description())


def test_empty_folder_is_taken(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.check(description())
    folder.create(description())
    assert folder.config.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_second_process_is_kept_out(folder):
    with (
        folder.claim(),
        pytest.raises(EcgfastError, match="another process is training"),
        RunFolder(folder.path).claim(),
    ):
        pass
    with folder.claim():
        pass


def test_failed_write_keeps_the_old_state(folder):
    folder.save_state({"step": 1, "model": {"w": torch.ones(2)}})

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(folder.state, fail)
    assert folder.load_state()["step"] == 1


def test_damaged_state_is_told(folder):
    folder.state.write_bytes(b"PK\x03\x04 no checkpoint")
    with pytest.raises(EcgfastError, match=r"state\.pt: no training state can be read"):
        folder.load_state()
