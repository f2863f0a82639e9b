"""`compare_cells` and `jaxrnn cells`: the same data for all, figures that are right, a
table and a file.
"""

import json

import numpy as np
import pytest

import jaxrnn
from jaxrnn import tasks
from jaxrnn.cli import main
from jaxrnn.tasks.cell_costs import measure_costs
from jaxrnn.tasks.models.own_cell import labelled
from jaxrnn.tasks.runner import TASKS
from jaxrnn.training import InputError

pytestmark = pytest.mark.usefixtures("optax_promotion")
SMALL = {"hidden": 4, "length": 8, "batch": 2, "rounds": 1, "steps": 2}


def test_cells_side_by_side(tmp_path):
    cells = {"mine": jaxrnn.Elman(4), "named": "elman", "both": BOTH}
    results, lines = tasks.compare_cells(
        cells, {**SMALL, "tasks": ("adding",)}, out=tmp_path
    )
    assert json.loads((tmp_path / "cells.json").read_text()) == json.loads(
        json.dumps(results)
    )
    assert (tmp_path / "decay.png").read_bytes().startswith(b"\x89PNG")
    mine, named, both = results["cells"].values()
    # Equal cells get equal data and initial parameters, so they learn the same.
    assert mine["scores"] == named["scores"]
    assert mine["gradients"] == named["gradients"]
    assert mine["cell"] == jaxrnn.Elman(4).to_config()
    assert named["cell"] == "elman"
    assert mine["parameters"] == 4 * 4 + 4 * 4 + 4
    assert mine["milliseconds"] > 0
    assert 0 < mine["gradients"]["beta"] < 1.5
    assert len(mine["gradients"]["log_v_over_v0"]) == 9
    # A layer that reads later inputs has no decay, but everything else.
    assert "error" in both["gradients"]
    assert 0 <= both["scores"]["adding"]["mse"] < 9
    head, baseline, first, *_ = lines
    assert " ".join(head.split()) == "cell parameters adding mse beta tau ms MB"
    assert baseline.split() == ["(no", "memory)", "0.1667"]
    assert first.split()[:2] == ["mine", "36"]
    assert lines[-2:] == [
        f"written: {tmp_path / 'cells.json'}",
        f"picture: {tmp_path / 'decay.png'}",
    ]


BOTH = jaxrnn.bidirectional(jaxrnn.Elman(2))


@pytest.mark.slow
def test_a_score_is_that_of_as_many_plain_updates():
    options = {**SMALL, "tasks": ("parity",), "length": 6}
    results, _ = tasks.compare_cells(["gru"], options)
    quick = TASKS["parity"].Options.QUICK
    experiment, _ = TASKS["parity"].prepare(
        TASKS["parity"].Options(**{**quick, "cell": "gru", "hidden": 4})
    )
    state = experiment.start()
    for progress in (0.5, 1.0):
        state = experiment.advance(state, np.float32(progress))
    assert results["cells"]["gru"]["scores"]["parity"] == {
        "score": "accuracy",
        **experiment.evaluate(state),
    }


def test_costs_are_those_of_the_compiled_program():
    costs = measure_costs(
        {"short": jaxrnn.Elman(4), "long": jaxrnn.LSTM(64)},
        steps=64,
        batch=4,
        input_size=3,
        rounds=2,
    )
    assert costs["short"].parameters == 3 * 4 + 4 * 4 + 4
    assert costs["long"].parameters == 4 * (3 * 64 + 64 * 64 + 64)
    assert costs["long"].temporary_bytes > 64 * 4 * 64 * 4 > 0
    assert costs["long"].temporary_bytes > costs["short"].temporary_bytes
    assert all(cost.compile_seconds > 0 for cost in costs.values())


@pytest.mark.slow
def test_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["cells", "--cell", "gru", "--cell", "elman", "lstm:chrono"]
    assert main([*words, "--steps", "2", "--length", "8", "--batch", "2"]) == 0
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "runs/cells/cells.json").read_text())
    assert list(found["cells"]) == ["gru", "elman", "lstm:chrono"]
    for cell in found["cells"].values():
        assert list(cell["scores"]) == ["copy", "adding", "parity"]
    for word in ("copy loss", "adding mse", "parity accuracy", "lstm:chrono"):
        assert word in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cell", "lstn"], "did you mean lstm?"),
        (["--cell", "nowhere_at_all:Mine"], "there is no module 'nowhere_at_all'"),
        (["--cell", "gru", "--tasks", "hello"], "--tasks: there is no 'hello'"),
        (["--cell", "gru", "--length", "2"], "--length must be at least 6"),
        ([], "the following arguments are required: --cell"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, words, message):
    assert main(["cells", *words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_no_cell_and_no_such_option(plain_errors):
    with pytest.raises(InputError, match="name at least one"):
        tasks.compare_cells([])
    for wrong in (("lstm",), (jaxrnn.GRU(3),), ([], jaxrnn.GRU(3))):
        with pytest.raises(InputError, match="takes one dict or list of cells"):
            tasks.compare_cells(*wrong)
    with pytest.raises(InputError, match="did you mean rounds"):
        tasks.compare_cells(["gru"], {"round": 3})


def test_labels_of_equal_names_are_numbered():
    first, second = jaxrnn.Elman(3), jaxrnn.Elman(4)
    assert labelled([first, "gru", second, "gru"]) == {
        "Elman": first,
        "gru": "gru",
        "Elman (2)": second,
        "gru (2)": "gru",
    }
