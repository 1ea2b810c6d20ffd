"""What is told of how far an import is."""

import io
import re

import pytest

from ecgfast.data import prepare
from ecgfast.data.progress import Progress, Speed, _Bar
from tests.data.made import mimic_row, write_mimic, write_record


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def run(speed, clock, seconds, rate):
    """Records at an even rate."""
    for _ in range(round(seconds * rate)):
        clock.now += 1 / rate
        speed.add(1)


@pytest.mark.parametrize("start", [0.5, 30.0])
def test_starting_up_is_no_part_of_the_speed(start):
    """Workers start, functions are compiled: 20,000 records at the rate of the first took 15 hours."""
    clock = Clock()
    speed = Speed(clock)
    clock.now = start
    speed.add(1)
    assert speed() is None
    for seconds in range(60):
        run(speed, clock, 1, 100)
        assert speed() is not None or seconds < 4
        if speed() is not None:
            assert speed() == pytest.approx(100, rel=0.02)


def test_the_speed_follows_a_change():
    clock = Clock()
    speed = Speed(clock)
    run(speed, clock, 60, 100)
    run(speed, clock, 40, 10)
    assert speed() == pytest.approx(10, rel=0.1)


def test_the_bar_has_no_estimate_before_it_is_steady():
    clock = Clock()
    speed, text = Speed(clock), io.StringIO()
    with _Bar(desc="importing", total=20_000, unit="rec", file=text, mininterval=0, ncols=100) as bar:
        bar.speed = speed

        def step(n):
            speed.add(n)
            bar.update(n)
            bar.refresh()

        clock.now = 2.7
        step(1)
        for _ in range(100):
            clock.now += 0.1
            step(20)
        shown = [line for line in text.getvalue().split("\r") if line.strip()]
    told = [re.search(r"<(.*), +(.*)rec/s", line).groups() for line in shown]
    assert told[0] == told[1] == ("?", "?")
    known = [(left, rate) for left, rate in told if left != "?"]
    assert len(known) > 50
    assert {rate for _, rate in known} == {"200.00"}
    assert known[0][0] in ("01:36", "01:37", "01:38")  # 20,000 at 200 a second, the first of them done


def test_lines_where_there_is_no_terminal(capsys, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    with Progress("importing", 2000) as progress:
        progress._speed = Speed(clock)
        for _ in range(1000):
            clock.now += 0.125
            progress.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "importing: 240 of 2,000 records, 8 a second, 03:40 left",
        "importing: 480 of 2,000 records, 8 a second, 03:10 left",
        "importing: 720 of 2,000 records, 8 a second, 02:40 left",
        "importing: 960 of 2,000 records, 8 a second, 02:10 left",
    ]


def test_short_imports_leave_logs_tidy(tmp_path, capsys):
    write_record(tmp_path / "in/a")
    prepare(tmp_path / "in", tmp_path / "store")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["wfdb", "mimic"])
def test_the_listing_is_counted(tmp_path, monkeypatch, kind):
    """Rows of tables too, which are read before the first record is known."""
    if kind == "mimic":
        write_mimic(tmp_path / "in", [mimic_row(1, i) for i in range(5)])
        write_record(tmp_path / "in/files/unlisted")
    else:
        for i in range(6):
            write_record(tmp_path / f"in/{i}")
    counts = {}

    class Counted(Progress):
        def update(self, n=1):
            counts[self._what] = counts.get(self._what, 0) + n

    monkeypatch.setattr("ecgfast.data.sources.importing.Progress", Counted)
    prepare(tmp_path / "in", tmp_path / "store")
    assert counts == {"listing": 6, "importing": 6}
