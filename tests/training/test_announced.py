"""Lines about work that takes longer than a moment."""

import re
import time

from jaxrnn.training import announced


def test_quick_work_says_nothing(capsys):
    with announced.announced("reading", 10, "rows") as work:
        work.done = 10
    assert capsys.readouterr() == ("", "")


def test_slow_work_says_what_it_does_and_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setattr(announced, "FIRST", 0.05)
    monkeypatch.setattr(announced, "LEAST", 0.05)
    monkeypatch.setattr(announced, "NEXT", (0.1,))
    with announced.announced("preparing"):
        with announced.announced("reading a.csv", 4000, "rows") as work:
            work.done = 1000
            time.sleep(0.3)
            work.done = 4000
        time.sleep(0.2)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "reading a.csv: 25% of 4,000 rows, 0 s"
    inner = [line for line in lines if line.startswith("reading")]
    assert 2 <= len(inner) <= 5
    assert inner[-1] == "reading a.csv: 100% of 4,000 rows, 0 s"
    # the outer one speaks when the inner one is over
    assert lines[: len(inner)] == inner
    assert all(re.fullmatch(r"preparing: \d s", line) for line in lines[len(inner) :])
    assert len(lines) > len(inner)


def test_work_of_unknown_size():
    work = announced.Work("reading", None, "rows")
    assert work.line() == "reading: 0 s"
    work.done = 1234
    assert work.line() == "reading: 1,234 rows, 0 s"
