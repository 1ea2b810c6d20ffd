"""The README's Python runs as it stands."""

import re
from pathlib import Path

import pytest

from ecgfast.cli import COMMANDS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_blocks_are_found():
    assert len(BLOCKS) == README.count("```python") >= 2


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(number, capsys):
    exec(compile(BLOCKS[number], f"README.md, block {number}", "exec"), {"__name__": "readme"})
    if number == 0:
        assert "of targets found among 100 negatives" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_told(command):
    assert f"ecgfast {command}" in README
