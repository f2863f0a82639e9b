"""Progress on terminals of 60, 80 and 120 columns, and as lines in a pipe."""

import io

import pytest
from rich.console import Console

from jaxrnn.training.progress import Report, make_bar, packed

NUMBERS = (
    "bits_per_char 4.082",
    "learning_rate 0.004701",
    "14,797 tokens/s",
    "gradient_norm 0.1234",
)


def screen(width):
    """A bar on a terminal of this width, and a function that reads it."""
    progress = make_bar(Console(file=io.StringIO(), width=width, force_terminal=True))

    def shown():
        plain = Console(file=io.StringIO(), width=width)
        plain.print(progress.get_renderable())
        return plain.file.getvalue().splitlines()

    return Report(progress), shown


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("step", ["step 350/2000", "step 123456/1000000"])
def test_bar_and_numbers_hold(width, step):
    report, shown = screen(width)
    assert shown()[0].startswith("compiling ")
    report.advance(0.175, step, 20.4, NUMBERS)
    bar, *numbers = shown()
    assert all(len(line) <= width for line in (bar, *numbers))
    assert bar.startswith(step + " ")
    assert " 18%" in bar
    assert "0:00:00" in bar
    assert "━" in bar
    assert bar.index(" 18%") - len(step) >= 15  # where the bar has its place
    assert [w for line in numbers for w in line.rstrip().split("  ")] == list(NUMBERS)
    # and whatever is printed meanwhile leaves it as it is
    report.line("step 350  20 s  validation  accuracy 0.5")
    assert shown()[0] == bar


def test_a_bar_at_the_end_is_full():
    report, shown = screen(60)
    report.advance(1.2, "step 2000/2000", 99.0, NUMBERS[:1])
    assert "100%" in shown()[0]


def test_in_a_pipe_it_is_one_line(capsys):
    Report().advance(0.5, "step 10/20", 3.4, NUMBERS[:2])
    assert capsys.readouterr().out == (
        "step 10/20  3 s  bits_per_char 4.082  learning_rate 0.004701\n"
    )


def test_words_are_packed_whole():
    assert packed(["ab", "cd", "efg"], 6) == ["ab  cd", "efg"]
    assert packed(["ab", "x" * 9], 4) == ["ab", "x" * 9]
    assert packed([], 4) == []
