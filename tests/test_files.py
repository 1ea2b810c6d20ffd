"""Files that are whole or absent."""

import os
import stat

import pytest

from ecgfast.files import move_into_place, partial_path, write_atomically, write_beside


@pytest.fixture
def calls(monkeypatch):
    """What is put on the disk and renamed, in order: names."""
    made = []
    fsync, replace = os.fsync, os.replace

    def note_sync(descriptor):
        made.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def note_replace(source, target):
        made.append(("rename", os.path.basename(source), os.path.basename(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    return made


def test_content_reaches_the_disk_before_the_name(tmp_path, calls):
    path = tmp_path / "a.json"
    write_atomically(path, lambda partial: partial.write_text("new"))
    want = [("sync", "a.json.partial"), ("rename", "a.json.partial", "a.json"), ("sync", tmp_path.name)]
    assert calls == want
    assert path.read_text() == "new"
    calls.clear()
    write_atomically(path, lambda partial: partial.write_text("newer"), durable=False)
    assert calls == want[1:2]
    assert path.read_text() == "newer"


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("fails", ["write", "rename"])
def test_nothing_stays_of_what_fails(tmp_path, durable, fails, monkeypatch):
    path = tmp_path / "a"
    path.write_text("old")

    def write(partial):
        partial.write_text("half")
        if fails == "write":
            raise KeyboardInterrupt

    def refuse(*_):
        raise OSError(28, "No space left on device")

    if fails == "rename":
        monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises((KeyboardInterrupt, OSError)):
        write_atomically(path, write, durable=durable)
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    assert path.read_text() == "old"


def test_files_beside_a_shared_place_have_names_of_their_own(tmp_path, calls):
    path = tmp_path / "a"

    def write(partial):  # as safetensors does
        partial.unlink()
        os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))

    mask = os.umask(0o027)
    try:
        two = [write_beside(path, write, shared=True) for _ in range(2)]
    finally:
        os.umask(mask)
    assert two[0] != two[1]
    assert calls == [("sync", file.name) for file in two]
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o640 for file in two)
    assert not path.exists()


def test_folders_move_over_empty_ones_alone(tmp_path, calls):
    made, place = partial_path(tmp_path / "store"), tmp_path / "store"
    assert made.name == "store.partial"
    made.mkdir()
    (made / "file").touch()
    place.mkdir()
    move_into_place(made, place)
    assert calls[-1] == ("sync", tmp_path.name)
    assert (place / "file").exists()
    made.mkdir()
    with pytest.raises(OSError, match="not empty"):
        move_into_place(made, place)
