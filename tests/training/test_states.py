"""Damaged training states: always an error that says what to do, or the state before it."""

import json
import os
import random
import warnings

import pytest
import torch

import ecgfast.training.states as training_states
from ecgfast.errors import EcgfastError
from ecgfast.training.states import States


def state(step: int) -> dict:
    torch.manual_seed(step)
    return {"step": step, "model": {"w": torch.randn(50)}, "ranks": []}


@pytest.fixture
def states(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    return States(tmp_path / "checkpoint")


def told(states: States) -> str:
    with pytest.raises(EcgfastError) as error:
        states.load()
    text = str(error.value)
    assert "\n" not in text
    assert "weights_only" not in text
    assert "pickle" not in text
    assert str(states.current) in text
    assert f"delete {states.folder} to start the run over" in text
    return text


@pytest.mark.parametrize("listed", [True, False], ids=["digests", "none, as earlier versions"])
def test_every_flipped_bit_is_seen(states, listed):
    states.save(state(1))
    if not listed:
        states.digests.unlink()
    whole = states.current.read_bytes()
    seed = 11
    print("seed", seed)
    draw = random.Random(seed)
    content = whole.index(state(1)["model"]["w"].numpy().tobytes())
    # Without digests the archive's own checksums cover the content, not the padding between.
    places = range(len(whole)) if listed else range(content, content + 200)
    for place in draw.sample(places, 100):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        states.current.write_bytes(damaged)
        told(states)
    states.current.write_bytes(whole)
    assert states.load()["step"] == 1


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 no checkpoint", b"\x80\x02]q\x00.", b"junk" * 1000, "cut", "list", "stepless"],
)
def test_other_content(states, listed, content):
    states.save(state(1))
    if not listed:
        states.digests.unlink()
    if content == "cut":
        content = states.current.read_bytes()[:-100]
    if isinstance(content, bytes):
        states.current.write_bytes(content)
    else:
        torch.save([1, 2] if content == "list" else {"model": {}}, states.current)
    told(states)


def test_other_objects_are_refused(states, tmp_path):
    class Call:
        def __reduce__(self):
            return (print, ("called",))

    states.save(state(1))
    states.digests.unlink()
    torch.save({"step": 1, "x": Call()}, states.current)
    assert "of other things than tensors" in told(states)


def test_the_state_before_is_used(states):
    states.save(state(1))
    states.save(state(2))
    states.save(state(3))
    states.current.write_bytes(b"junk")
    with pytest.warns(UserWarning, match=r"state\.pt: .* damaged .* of step 2, is used"):
        assert states.load()["step"] == 2
    states.current.unlink()
    assert states.load()["step"] == 2
    states.previous.write_bytes(b"")
    with pytest.raises(EcgfastError, match="it is empty"):
        states.load()
    states.save(state(4))
    assert states.load()["step"] == 4


def test_a_damaged_list_of_digests(states):
    """The states' own checksums take its place: a whole state stays readable."""
    states.save(state(1))
    for content in ("[", "{}", "[1]", "\0", "[" * 100_000):
        states.digests.write_text(content)
        with pytest.warns(UserWarning, match=r"sha256\.json: no list of digests"):
            assert states.load()["step"] == 1
    states.digests.unlink()
    assert states.load()["step"] == 1
    states.save(state(2))
    assert len(json.loads(states.digests.read_text())) == 2
    states.current.unlink()
    assert states.load()["step"] == 1


def test_killed_between_any_two_renames(states, monkeypatch):
    """Whatever was done when the process died, a whole state can be read, and then written."""

    class Killed(BaseException):
        pass

    def run(count: int) -> int:
        calls = 0

        def counted(function):
            def call(*args, **options):
                nonlocal calls
                if calls == count:
                    raise Killed
                calls += 1
                return function(*args, **options)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", counted(os.replace))
            patch.setattr(os, "fsync", counted(os.fsync))
            try:
                states.save(state(3))
            except Killed:
                return 1
            return 0

    for count in range(20):
        states.save(state(1))
        states.save(state(2))
        killed = run(count)
        assert states.load()["step"] in ((2, 3) if killed else (3,))
        if not killed:
            break
    assert 5 < count < 19


def test_first_write_that_fails_names_no_earlier_state(states, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(EcgfastError, match=r"can't be written: .*No space left") as error:
        states.save(state(1))
    assert "earlier" not in str(error.value)


@pytest.mark.parametrize("content", [b"junk", b"", None, "list"])
@pytest.mark.parametrize("restarted", [True, False])
@pytest.mark.parametrize("listed", [True, False])
def test_the_only_whole_state_outlives_writes_that_fail(states, monkeypatch, content, restarted, listed):
    states.save(state(1))
    states.save(state(2))
    if content is None:
        states.current.unlink()
    elif content == "list":
        torch.save([1, 2], states.current)
    else:
        states.current.write_bytes(content)
    if not listed:
        states.digests.unlink()
    if restarted:
        states = States(states.folder)
    real_replace = os.replace

    def fail(*_):
        raise OSError(28, "No space left on device")

    def fail_last(source, target):
        if target == states.current:
            fail()
        real_replace(source, target)

    for where, name, broken in ((torch, "save", fail), *[(os, "replace", fail_last)] * 5):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, broken)
            with pytest.raises(EcgfastError, match=r"an earlier one is kept.*No space left"):
                states.save(state(3))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert states.load()["step"] == 1
    states.save(state(4))
    assert states.load()["step"] == 4
    states.current.write_bytes(b"junk")
    with pytest.warns(UserWarning, match="of step 1, is used"):
        assert states.load()["step"] == 1


def test_no_earlier_state_is_named_where_none_is_whole(states, monkeypatch):
    states.save(state(1))
    states.current.write_bytes(b"junk")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(EcgfastError, match="No space left") as error:
        states.save(state(2))
    assert "one is kept" not in str(error.value)


def test_a_save_does_not_hash_the_state_before_again(states, monkeypatch):
    states.save(state(1))
    hashed = []
    whole = training_states.file_digest
    monkeypatch.setattr(training_states, "file_digest", lambda file: hashed.append(file) or whole(file))
    states.save(state(2))
    assert len(hashed) == 1


def test_a_reason_of_both_states_is_told_once(states):
    states.save(state(1))
    states.save(state(2))
    states.current.write_bytes(b"junk")
    states.previous.write_bytes(b"junk")
    text = told(states)
    assert str(states.previous) in text
    assert text.count("SHA-256") == 1
