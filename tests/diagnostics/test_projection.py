"""Principal axes against a plain decomposition, the flow, and the pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_fixed_points import KEY

import jaxrnn
from jaxrnn.diagnostics import (
    fixed_points,
    linearize,
    plane_flow,
    plots,
    project_states,
)
from jaxrnn.diagnostics.state_plots import eigenvalues, state_plane


def trained():
    cell = jaxrnn.LSTM(3)
    params = jax.tree.map(lambda a: 2 * a, cell.init(KEY, 2))
    return cell, params, jax.random.normal(jax.random.key(1), (9, 5, 2))


def test_axes_are_those_of_the_singular_vectors(x64):
    cell, params, xs = trained()
    mask = jnp.asarray(np.arange(9)[:, None] < np.array([9, 4, 9, 2, 7]))
    states = project_states(cell, params, xs, axes=3, mask=mask)
    _, _, carries = jaxrnn.unroll(cell, params, xs, mask=mask, return_carries=True)
    vectors = np.concatenate([carries.h, carries.c], -1)
    np.testing.assert_allclose(states.vectors, vectors, atol=1e-14)
    counted = vectors[np.asarray(mask)]
    _, sizes, rows = np.linalg.svd(counted - counted.mean(0), full_matrices=False)
    np.testing.assert_allclose(states.center, counted.mean(0), atol=1e-14)
    np.testing.assert_allclose(states.axes @ states.axes.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(
        np.abs((states.axes * rows[:3]).sum(-1)), 1, rtol=0, atol=1e-9
    )
    np.testing.assert_allclose(
        states.shares, np.square(sizes[:3]) / np.square(sizes).sum(), rtol=1e-9
    )
    assert (states.axes[range(3), np.abs(states.axes).argmax(-1)] > 0).all()
    np.testing.assert_allclose(
        states.coordinates, (vectors - states.center) @ states.axes.T, atol=1e-13
    )


def test_arrows_are_steps_of_the_cell(x64):
    cell, params, xs = trained()
    states = project_states(cell, params, xs)
    x = jnp.array([0.4, -0.1])
    flow = plane_flow(cell, params, x, states, size=4)
    assert flow.places.shape == flow.arrows.shape == (4, 4, 2)
    for place, arrow in zip(
        flow.places.reshape(-1, 2), flow.arrows.reshape(-1, 2), strict=True
    ):
        vector = states.center + place @ states.axes
        carry = jaxrnn.LSTMState(jnp.asarray(vector[:3]), jnp.asarray(vector[3:]))
        after, _ = cell(params, carry, x)
        moved = np.concatenate([after.h, after.c]) - vector
        np.testing.assert_allclose(states.axes @ moved, arrow, atol=1e-12)
    low = states.coordinates.reshape(-1, 2).min(0)
    assert (flow.places.reshape(-1, 2).min(0) < low).all()


def test_pictures_are_drawn():
    cell, params, xs = trained()
    states = project_states(cell, params, xs)
    x = jnp.array([0.4, -0.1])
    starts = jax.tree.map(lambda a: a.reshape(-1, 3), cell.initial_carry(params, (4,)))
    points = linearize(cell, params, x, fixed_points(cell, params, x, starts))
    flow = plane_flow(cell, params, x, states, size=4)
    axis = state_plane(states, points, flow, title="States").axes[0]
    assert axis.get_title(loc="left") == "States"
    assert "first principal component (" in axis.get_xlabel()
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert sum(int(label[label.index("(") + 1 : -1]) for label in labels) == len(points)
    drawn = eigenvalues(points).axes[0].collections
    assert sum(len(each.get_offsets()) for each in drawn) == 6 * len(points)


REFUSED = {
    "axes": ({"axes": 7}, {}, "axes must be an int from 1 to 6"),
    "plane": ({"axes": 1}, {}, "a plane has two axes, but the states have 1"),
    "size": ({}, {"size": 1}, "size must be an int from 2"),
    "margin": ({}, {"margin": -0.5}, "margin must be a finite number"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(plain_errors, name):
    of_states, of_flow, message = REFUSED[name]
    cell, params, xs = trained()

    def measured():
        states = project_states(cell, params, xs, **of_states)
        plane_flow(cell, params, jnp.zeros(2), states, **of_flow)

    with pytest.raises(ValueError, match=message):
        measured()


# --------------------------------------------------------------------------------------
# Unit by unit


def drawn(values, **options):
    figure = plots.units_over_time(values, **options)
    return [axis.get_images()[0] for axis in figure.axes[: len(values)]]


def test_each_unit_is_a_row_and_each_step_a_column():
    gates = np.random.default_rng(0).random((7, 3))
    states = np.random.default_rng(1).normal(size=(7, 4))
    gate, state = drawn({"gate": gates, "state": states}, sort=False)
    np.testing.assert_array_equal(gate.get_array(), gates.T)
    np.testing.assert_array_equal(state.get_array(), states.T)
    assert gate.get_clim() == (0, 1)
    largest = np.abs(states).max()
    assert state.get_clim() == (-largest, largest)


def test_units_are_sorted_by_the_step_at_which_they_are_largest():
    values = np.eye(5)[:, [3, 0, 4, 2, 1]]  # unit i is largest at the step in its place
    (image,) = drawn({"states": values})
    np.testing.assert_array_equal(image.get_array(), np.eye(5))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "there is nothing to draw"),
        ({"h": np.zeros((4, 2, 3))}, r"'h' must be \(T, H\).*choose a sequence"),
        ({"h": np.zeros((4, 0))}, "must be"),
        ({"h": np.zeros((4, 2)), "z": np.zeros((5, 2))}, "the same number of steps"),
    ],
)
def test_what_cannot_be_drawn_unit_by_unit(values, message):
    with pytest.raises(ValueError, match=message):
        plots.units_over_time(values)
