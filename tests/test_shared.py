"""What tests do where the reference material beside the repository is absent, or a part of it."""

import pytest

from tests import conftest


@pytest.mark.parametrize("ci", ["true", "false"])
def test_all_of_it_may_be_absent(tmp_path, monkeypatch, ci):
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(conftest, "SHARED", tmp_path / "shared")
    with pytest.raises(pytest.skip.Exception, match=conftest.NEEDS_SHARED):
        conftest.find_shared("data/ludb")


def test_in_ci_no_part_may_be_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(conftest, "SHARED", tmp_path)
    (tmp_path / "golden").mkdir()
    monkeypatch.setenv("CI", "true")
    assert conftest.find_shared("golden") == tmp_path / "golden"
    with pytest.raises(pytest.fail.Exception, match=r"data/ludb is absent in CI, though .* is there"):
        conftest.find_shared("data/ludb")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception):
        conftest.find_shared("data/ludb")
