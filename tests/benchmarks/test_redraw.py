"""The pictures of benchmarks are drawn from the numbers beside them."""

import json
import shutil

import pytest

from benchmarks.gradients import decay_picture
from benchmarks.harness import redraw, report
from benchmarks.harness.save_run import RESULTS

pytest.importorskip("matplotlib")

DRAWN = [path.stem for path in sorted(RESULTS.glob("*.png"))]
NUMBERS = [stem for stem in DRAWN if (RESULTS / f"{stem}.json").exists()]


@pytest.mark.parametrize("stem", NUMBERS)
def test_a_picture_is_drawn_from_its_numbers(tmp_path, stem):
    path = shutil.copy(RESULTS / f"{stem}.json", tmp_path)
    assert redraw.redraw(tmp_path / f"{stem}.json")
    assert (tmp_path / f"{stem}.png").read_bytes().startswith(b"\x89PNG"), path


def test_a_result_without_a_picture_is_left_alone(tmp_path):
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"benchmark": "other"}))
    assert not redraw.redraw(path)
    assert not path.with_suffix(".png").exists()


def decay(**changed):
    """Two cells, of which one vanishes and one does not learn the task."""
    rows = [("tanh, gain 1", -3.0, [400, 600, 800]), ("GRU", -0.1, [None, None, None])]
    return {
        "shape": {"H": 4, "T": 20, "seeds": 3},
        "updates": 1000,
        "initial": [
            {"name": name, "beta": 0.5, "mean_log_v": [slope * k for k in range(21)]}
            for name, slope, _ in rows
        ],
        "trained": [
            {
                "name": name,
                "task": "adding",
                "length": 20,
                "solved_after": after,
                "diverged": False,
                "final": 0.2,
            }
            for name, _, solved in rows
            for after in solved
        ],
    } | changed


def words_of(result):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4))
    decay_picture.draw(result, "a machine", figure)
    return [[text.get_text() for text in axes.texts] for axes in figure.axes], figure


def test_each_line_of_the_decay_is_named_where_it_ends():
    (lines, bars), figure = words_of(decay())
    assert sorted(lines) == ["GRU: 0.500", "tanh, gain 1: 0.500"]
    # The bars stand in the order of the ends of the lines, the lowest first.
    names = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert names == ["tanh, gain 1", "GRU"]
    assert bars == ["600", "not learned"]
    assert "a machine" in figure.get_suptitle()


def test_a_training_that_diverged_or_was_solved_by_some_says_so():
    rows = decay()["trained"]
    rows[0] |= {"solved_after": None}
    rows[3] |= {"diverged": True}
    (_, bars), _ = words_of(decay(trained=rows))
    assert bars == ["600, 2 of 3", "diverges"]


def test_without_trainings_there_are_lines_alone():
    (lines,), figure = words_of(decay(trained=[]))
    assert len(lines) == 2
    assert "learned" not in figure.get_suptitle()


def test_marks_stand_where_the_values_are():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    report.dots(axes, ["a", "b"], {"jaxrnn": [2.0, None], "torch": [0.5, 4.0]})
    marks = {line.get_label(): line.get_xydata().tolist() for line in axes.lines[:2]}
    assert marks == {"jaxrnn": [[2.0, 0.0]], "torch": [[0.5, 0.0], [4.0, 1.0]]}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
