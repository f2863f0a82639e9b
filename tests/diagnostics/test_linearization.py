"""Linear maps near points: eigenvalues, modes, kinds, and how far they predict."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_fixed_points import KEY, Linear, stack_of_two

import jaxrnn
from jaxrnn.diagnostics import fixed_points, jacobians, linear_error, linearize


def rotation(decay, angle, *rest):
    """A matrix A of a `Linear` cell: a damped turn, and modes by themselves."""
    a = np.diag([0.0, 0.0, *rest])
    c, s = decay * np.cos(angle), decay * np.sin(angle)
    a[:2, :2] = [[c, -s], [s, c]]
    return a


def test_a_stack_against_explicit_jacobians(x64):
    layer, params, x, starts = stack_of_two()
    points = fixed_points(layer, params, x, starts)
    linear = linearize(layer, params, x, points)
    n = 2 * 3 + 2
    for i in range(len(points)):
        carry = jax.tree.map(lambda a, i=i: jnp.asarray(a[i]), points.states)
        (explicit,) = jacobians(layer, params, x[None], carry)
        np.testing.assert_allclose(linear.jacobian[i], explicit, atol=1e-13)
        values = np.asarray(jnp.linalg.eigvals(explicit))
        gaps = np.abs(linear.eigenvalues[i][:, None] - values)
        assert (gaps.min(0) <= 1e-11).all()
        assert (gaps.min(1) <= 1e-11).all()

        def after(x, carry=carry):
            leaves = jax.tree.leaves(layer(params, carry, x)[0])
            return jnp.concatenate([leaf.reshape(-1) for leaf in leaves])

        of_input = jax.jacrev(after)(x)
        np.testing.assert_allclose(linear.input_jacobian[i], of_input, atol=1e-13)
        np.testing.assert_allclose(
            linear.left[i] @ linear.right[i], np.eye(n), atol=1e-9
        )
        np.testing.assert_allclose(
            linear.left[i] @ linear.jacobian[i],
            linear.eigenvalues[i][:, None] * linear.left[i],
            atol=1e-9,
        )
        np.testing.assert_allclose(
            linear.jacobian[i] @ linear.right[i],
            linear.eigenvalues[i] * linear.right[i],
            atol=1e-9,
        )
    sizes = np.abs(linear.eigenvalues)
    assert (np.diff(sizes, axis=-1) <= 1e-9).all()
    np.testing.assert_allclose(linear.speed, points.speed, atol=1e-15)
    np.testing.assert_allclose(
        linear.selected_input, linear.left @ linear.input_jacobian
    )


def test_time_constants_and_frequencies(x64):
    cell, x = Linear(4), jnp.array([0.3, -0.2])
    params = {
        "a": jnp.asarray(rotation(0.9, 2 * np.pi / 8, 0.5, 1.25)),
        "b": jax.random.normal(KEY, (2, 4)),
    }
    points = fixed_points(cell, params, x, jax.random.normal(KEY, (3, 4)))
    linear = linearize(cell, params, x, points)
    np.testing.assert_allclose(
        np.abs(linear.eigenvalues[0]), [1.25, 0.9, 0.9, 0.5], rtol=1e-12
    )
    np.testing.assert_allclose(
        linear.time_constants[0],
        [1 / np.log(1.25), *[-1 / np.log(0.9)] * 2, 1 / np.log(2)],
        rtol=1e-10,
    )
    np.testing.assert_allclose(linear.frequencies[0], [0, 1 / 8, -1 / 8, 0], atol=1e-12)
    assert linear.kinds == ("saddle of index 1",)
    assert (linear.unstable[0], linear.stable[0]) == (1, 3)
    assert "saddle of index 1" in str(linear)


def test_an_attractor_a_repeller_and_what_moves(x64):
    cell, x = jaxrnn.Elman(1), jnp.zeros(1)
    params = {
        "input_kernel": jnp.ones((1, 1)),
        "recurrent_kernel": jnp.full((1, 1), 2.0),
        "bias": jnp.zeros(1),
    }
    starts = jnp.array([[-0.9], [0.1], [0.8]])
    points = fixed_points(cell, params, x, starts)
    kinds = dict(
        zip(
            points.states[:, 0].round(2).tolist(),
            linearize(cell, params, x, points).kinds,
            strict=True,
        )
    )
    assert kinds == {-0.96: "attractor", 0.0: "repeller", 0.96: "attractor"}
    # Beyond the fold one pair of points is gone; where it was, the state is slow.
    x = jnp.array([0.6])
    points = fixed_points(cell, params, x, starts)
    assert sorted(linearize(cell, params, x, points).kinds)[0] == "attractor"
    (ghost,) = points.select(points.stationary).states
    assert -0.9 < ghost < -0.5
    assert any(
        kind.startswith("slow point, ")
        for kind in linearize(cell, params, x, points).kinds
    )


def test_a_line_attractor_needs_its_neighbors(x64):
    cell, x = Linear(3), jnp.zeros(2)
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    starts = jax.random.normal(KEY, (20, 3))

    def kinds(*eigenvalues, count=20):
        a = turned @ np.diag(eigenvalues) @ turned.T
        params = {"a": jnp.asarray(a), "b": jnp.ones((2, 3))}
        points = fixed_points(cell, params, x, starts[:count])
        return set(linearize(cell, params, x, points).kinds)

    assert kinds(1.0, 0.5, -0.3) == {"line attractor"}
    assert kinds(1.0, 1.0, -0.3) == {"slow manifold of dimension 2"}
    assert kinds(0.995, 0.5, -0.3) == {"attractor"}  # one point, though a slow one
    assert kinds(1.0, 0.5, -0.3, count=5) == {"attractor"}  # too few to say
    assert kinds(1.0, 1.5, -0.3) == {"saddle of index 1"}  # a line that repels


def test_the_prediction_of_a_linear_cell_is_exact(x64):
    cell, x = Linear(4), jnp.array([0.3, -0.2])
    params = {
        "a": jnp.asarray(rotation(0.9, 0.7, 0.5, 1.1)),
        "b": jax.random.normal(KEY, (2, 4)),
    }
    # Not only at fixed points, but also where the state drifts.
    states = jax.random.normal(jax.random.key(1), (5, 4))
    compared = linear_error(cell, params, x, states, key=KEY, steps=10, directions=3)
    assert compared.error.shape == (11, 5)
    np.testing.assert_allclose(compared.error, 0, atol=1e-11)
    np.testing.assert_allclose(compared.size[0], 1, rtol=1e-9)
    linear = linearize(cell, params, x, states)
    d = np.asarray(jax.random.normal(jax.random.key(2), (5, 4)))
    predicted = linear.predict(d, 10)
    s = states + d
    for k in range(11):
        np.testing.assert_allclose(predicted[k], s, atol=1e-11)
        s = cell.step(params, s, jnp.broadcast_to(x, (5, 2)))


def test_the_error_of_a_network_is_of_second_order(x64):
    cell, x = jaxrnn.GRU(4), jnp.array([0.3, -0.2])
    params = jax.tree.map(lambda a: 2 * a, cell.init(KEY, 2))
    starts = jax.random.normal(jax.random.key(1), (6, 4))
    points = fixed_points(cell, params, x, starts)
    points = points.select(points.converged)

    def after(size):
        compared = linear_error(
            cell, params, x, points, key=KEY, size=size, steps=4, directions=3
        )
        assert (compared.error[0] <= 1e-8).all()
        return compared.error[4]

    ratio = after(1e-3) / after(1e-4)
    np.testing.assert_allclose(ratio, 10, rtol=0.05)


REFUSED = {
    "slow": ({"slow": -1.0}, "slow must be a finite number"),
    "held": ({"held": "c"}, "held must be True or False"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_linearize_refuses(plain_errors, name):
    options, message = REFUSED[name]
    cell = jaxrnn.GRU(3)
    with pytest.raises(ValueError, match=message):
        linearize(cell, cell.init(KEY, 2), jnp.zeros(2), jnp.ones((4, 3)), **options)


def test_what_linear_error_refuses(plain_errors):
    cell = jaxrnn.GRU(3)
    arguments = (cell, cell.init(KEY, 2), jnp.zeros(2), jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="steps must be an int from 1"):
        linear_error(*arguments, key=KEY, steps=0)
    with pytest.raises(TypeError, match="key"):
        linear_error(*arguments, key=None)
