"""squares: frames of bouncing squares, their baseline, and a cell that learns them."""

import json

import jax
import numpy as np
import pytest

import jaxrnn
from jaxrnn import tasks
from jaxrnn.cells import ConvGRU, ConvLSTM
from jaxrnn.tasks.synthetic import squares
from jaxrnn.training import InputError


def bounce(place, speed, span):
    """One step of a square along one axis, which turns at the walls."""
    after = place + speed
    if not 0 <= after <= span:
        speed = -speed
        after = place + speed
    return after, speed


def test_squares_move_and_bounce_as_in_a_simulation():
    """The film of one square is that of a simulation from its first two frames."""
    size, length, batch = 7, 20, 30
    films = np.asarray(squares.frames(size, 1, jax.random.key(3), length, batch))
    moves = set()
    for film in films.transpose(1, 0, 2, 3):
        corners = [np.argwhere(frame).min(0) for frame in film]
        place = corners[0]
        speed = corners[1] - corners[0]
        # at a wall the first move is the one after the bounce already
        moves.add(tuple(speed))
        for t in range(1, length):
            steps = [bounce(p, s, size - 3) for p, s in zip(place, speed, strict=True)]
            place, speed = (np.array(part) for part in zip(*steps, strict=True))
            assert (place == corners[t]).all()
            expected = np.zeros((size, size))
            expected[place[0] : place[0] + 3, place[1] : place[1] + 3] = 1
            assert (film[t] == expected).all()
    assert moves == {(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)} - {(0, 0)}


def test_targets_are_the_next_frames():
    batch = squares.draw(9, 2, jax.random.key(0), 6, 4)
    assert batch.inputs.shape == (6, 4, 9, 9, 1)
    assert (batch.inputs[1:, ..., 0] == batch.targets[:-1]).all()
    counts = np.asarray(batch.counts)
    assert not counts[0].any()
    assert counts[1:].all()


def test_the_baseline_shows_the_last_frame():
    films = np.asarray(squares.frames(8, 1, jax.random.key(9), 9, 3000))
    error = ((films[2:] - films[1:-1]) ** 2).mean()
    assert squares.last_frame_error(8, 1, 8) == pytest.approx(error, rel=0.03)


@pytest.mark.parametrize("cell", ["conv-gru", "conv-lstm"])
def test_a_run_loads_and_evaluates(cell, tmp_path, optax_promotion):
    options = {"cell": cell, "hidden": 2, "size": 5, "squares": 1, "length": 3}
    budget = {"steps": 4, "report_every": 2, "evaluate_every": 4}
    _, result, _ = tasks.train(
        "squares", {**options, "batch": 2}, budget, out=tmp_path / "run"
    )
    assert np.isfinite(result["mse"])
    model, notes = tasks.load(tmp_path / "run")
    assert not notes
    kind = {"conv-gru": ConvGRU, "conv-lstm": ConvLSTM}[cell]
    assert type(model.model.layer) is kind
    assert np.isfinite(model.evaluate_length(5)["mse"])


def test_a_cell_that_takes_no_pictures_is_refused():
    with pytest.raises(InputError, match="conv-gru"):
        squares.Options(cell="conv-gruu")


@pytest.mark.slow
def test_a_quick_run_beats_the_last_frame(tmp_path, optax_promotion):
    run, result, _ = tasks.train("squares", quick=True, out=tmp_path / "run")
    assert result["mse"] < 0.5 * result["baseline"]
    assert json.loads((run.path / "config.json").read_text())["task"] == "squares"


def test_stacked_pictures_hold_their_batch_axes():
    layer = jaxrnn.stack(
        ConvGRU(2, spatial_shape=(5, 5)), ConvLSTM(3, spatial_shape=(5, 5))
    )
    params = layer.init(jax.random.key(0), 1)
    xs = squares.draw(5, 1, jax.random.key(1), 4, 2).inputs
    mask = jaxrnn.mask_from_lengths(jax.numpy.array([4, 2]), 4)
    carry, ys = jaxrnn.unroll(layer, params, xs, mask=mask)
    assert ys.shape == (4, 2, 5, 5, 3)
    assert not np.asarray(ys[2:, 1]).any()
    short = jaxrnn.unroll(layer, params, xs[:2, 1:])
    for a, b in zip(jax.tree.leaves(carry), jax.tree.leaves(short[0]), strict=True):
        np.testing.assert_allclose(a[1], b[0], rtol=1e-5, atol=1e-6)
