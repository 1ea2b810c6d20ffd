"""What a run's folder accepts, refuses and survives."""

import errno
import io
from pathlib import Path

import pytest
import torch

from ecgfast.errors import EcgfastError
from ecgfast.files import write_atomically
from ecgfast.training.run_folder import RunFolder


def description(**config):
    return {
        "task": "pretrain",
        "world_size": 1,
        "store": {"path": "s", "index_sha256": "0"},
        "config": config,
    }


def check(folder, new):
    old = folder.find()
    if old is not None:
        folder.check(old, new)


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create(description(lr=1, model={"width": 8}))
    return folder


def test_same_run_is_taken(folder):
    check(folder, description(lr=1, model={"width": 8}))
    check(folder, description(lr=1, model={"width": 8}, loader="resident"))


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
        check(folder, description(**config))


def test_other_store_is_refused(folder):
    new = description(lr=1, model={"width": 8}) | {"store": {"path": "t", "index_sha256": "1"}}
    with pytest.raises(EcgfastError, match=r"started with store s \(now t\)"):
        check(folder, new)


def test_moved_store_is_taken(folder):
    new = description(lr=1, model={"width": 8}) | {"store": {"path": "t", "index_sha256": "0"}}
    check(folder, new)


@pytest.mark.parametrize("content", [None, "", "[]", "{", '{"config": 3}'])
def test_foreign_folder_is_refused(tmp_path, content):
    (tmp_path / "notes.txt").write_text("mine")
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(EcgfastError, match="RUN: "):
        check(RunFolder(tmp_path), description())


def test_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(EcgfastError, match="no run of ecgfast"):
        check(RunFolder(tmp_path / "run"), description())


def test_unwritable_parent_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EcgfastError, match="can't be made"):
        RunFolder(tmp_path / "file" / "run").create(description())


def test_empty_folder_is_taken(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    check(folder, description())
    folder.create(description())
    assert folder.config.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", [".", "../here", ""])
def test_current_directory_is_refused(tmp_path, monkeypatch, name):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(EcgfastError, match="is the current directory") as error:
        check(RunFolder(Path(name)), description())
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_root_is_refused():
    with pytest.raises(EcgfastError, match="no run of ecgfast"):
        check(RunFolder(Path("/")), description())


def test_run_goes_on_in_the_current_directory(folder, monkeypatch):
    monkeypatch.chdir(folder.path)
    here = RunFolder(Path())
    check(here, description(lr=1, model={"width": 8}))
    here.create(description())


def test_link_to_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    folder = RunFolder(tmp_path / "link" / ".." / "link")
    check(folder, description())
    folder.create(description())
    assert (tmp_path / "run" / "config.json").exists()


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

    def fail(path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(folder.state, fail)
    assert folder.load_state()["step"] == 1


class FullDisk(io.BytesIO):
    """Takes the first bytes and no more."""

    def write(self, data):
        if self.tell() > 64:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_full_disk_is_told_and_keeps_the_old_state(folder, monkeypatch):
    folder.save_state({"step": 1})
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda state, file: save(state, FullDisk()))
    with pytest.raises(EcgfastError, match=r"state\.pt: .* can't be written .*No space left") as error:
        folder.save_state({"step": 2, "w": torch.ones(1000)})
    assert "\n" not in str(error.value)
    assert folder.load_state()["step"] == 1
    assert sorted(path.name for path in folder.state.parent.iterdir()) == ["sha256.json", "state.pt"]


def test_damaged_state_is_told(folder):
    folder.state.write_bytes(b"PK\x03\x04 no checkpoint")
    with pytest.raises(EcgfastError, match=r"state\.pt: no training state can be read"):
        folder.load_state()


def test_a_file_where_a_process_that_died_left_a_folder(folder, tmp_path):
    class Model:
        def save_pretrained(self, path):
            path.mkdir()
            (path / "config.json").write_text("{}")

    (folder.path / "model.partial").write_text("")
    folder.save_model(Model())
    assert (folder.model / "config.json").is_file()
    (folder.path / "model-7").write_text("")
    folder.reopen(7)
    assert (folder.path / "model-7" / "config.json").is_file()
    (tmp_path / ".new.partial").write_text("")
    RunFolder(tmp_path / "new").create(description())
    assert RunFolder(tmp_path / "new").config.is_file()


def test_a_file_in_place_of_the_model_is_told_before_work(folder):
    folder.model.write_text("")
    with pytest.raises(EcgfastError, match="model' must be a folder or absent, got a file"):
        check(folder, description())


@pytest.mark.parametrize("history", [5, None, "x", {"a": 1}])
def test_an_odd_history_is_kept(folder, history):
    old = folder.read_description() | {"history": history}
    lengths = dict.fromkeys(("max_steps", "epochs", "log_every", "checkpoint_every", "loader"), 7)
    folder.adopt(old, description(**lengths), 3)
    assert folder.read_description()["history"][0] == history
    assert folder.read_description()["history"][1]["step"] == 3
