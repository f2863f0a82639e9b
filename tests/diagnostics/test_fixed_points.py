"""Fixed points in closed form, against a grid, of whole carries, and refusals."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn
from jaxrnn.diagnostics import fixed_points, sample_states
from jaxrnn.diagnostics.fixed_point_report import merged
from jaxrnn.diagnostics.fixed_point_search import Found

KEY = jax.random.key(5)


@dataclasses.dataclass(frozen=True)
class Linear(jaxrnn.Cell):
    """s' = s A + x B, with a full matrix A."""

    hidden_size: int

    def init(self, key, input_size):
        a, b = jax.random.split(key)
        H = self.hidden_size
        return {
            "a": 0.8 * jax.random.normal(a, (H, H)) / H**0.5,
            "b": jax.random.normal(b, (input_size, H)),
        }

    def step(self, params, carry, z):
        return carry @ params["a"] + z @ params["b"]


class Counted(NamedTuple):
    h: jax.Array
    count: jax.Array


@dataclasses.dataclass(frozen=True)
class Counting(jaxrnn.Cell):
    """h' = tanh(h / 2 + x + count), which counts its steps by an integer."""

    def init(self, key, input_size):
        return {"scale": jnp.asarray(0.5)}

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return Counted(jnp.zeros((*batch_shape, 2)), jnp.zeros(batch_shape, int))

    def step(self, params, carry, z):
        count = carry.count[..., None].astype(carry.h.dtype)
        h = jnp.tanh(params["scale"] * carry.h + z + jnp.broadcast_to(count, z.shape))
        return Counted(h, carry.count + 1)


@pytest.mark.parametrize("gain", [1.0, 2.5])
def test_a_linear_cell_in_closed_form(x64, gain):
    cell = Linear(5)
    params = cell.init(KEY, 3)
    params["a"] = gain * params["a"]
    x = jax.random.normal(jax.random.key(1), (3,))
    starts = 3 * jax.random.normal(jax.random.key(2), (7, 5))
    points = fixed_points(cell, params, x, starts)
    a, b = np.asarray(params["a"]), np.asarray(params["b"])
    expected = np.linalg.solve((np.eye(5) - a).T, np.asarray(x) @ b)
    assert len(points) == 1
    np.testing.assert_allclose(points.states[0], expected, rtol=1e-12, atol=1e-12)
    assert points.converged.all()
    assert points.starts.tolist() == [7]
    assert points.speed[0] <= 1e-14
    assert points.q[0] == 0.5 * points.speed[0] ** 2


def test_a_complex_state_in_closed_form(x64):
    cell = jaxrnn.LRU(4)
    params = cell.init(KEY, 3)
    x = jax.random.normal(jax.random.key(1), (3,))
    k_real, k_imag = jax.random.split(jax.random.key(2))
    shape = cell.initial_carry(params, (6,)).shape
    starts = jax.lax.complex(
        jax.random.normal(k_real, shape), jax.random.normal(k_imag, shape)
    )
    points = fixed_points(cell, params, x, starts)
    a, b = cell.affine(params, cell.project(params, x))
    np.testing.assert_allclose(points.states, (b / (1 - a))[None], rtol=1e-10)


def grid_search(kernel, bias, x):
    """All fixed points of tanh(s U + b + x) in numpy: squares of a fine grid whose
    corners differ in the signs of both residuals, then Newton's method from each.
    """
    line = np.linspace(-1, 1, 1201)
    corners = np.stack(np.meshgrid(line, line, indexing="ij"), -1)
    residual = np.tanh(corners @ kernel + bias + x) - corners
    sides = [residual[i : 1200 + i, j : 1200 + j] > 0 for i in (0, 1) for j in (0, 1)]
    mixed = (np.any(sides, 0) & ~np.all(sides, 0)).all(-1)
    points = []
    for s in corners[:-1, :-1][mixed]:
        for _ in range(30):
            f = np.tanh(s @ kernel + bias + x)
            jacobian = kernel.T * (1 - f**2)[:, None] - np.eye(2)
            s = s - np.linalg.solve(jacobian, f - s)
        if np.abs(np.tanh(s @ kernel + bias + x) - s).max() < 1e-13 and all(
            np.abs(s - other).max() > 1e-6 for other in points
        ):
            points.append(s)
    return np.asarray(sorted(points, key=tuple))


def test_a_grid_search_misses_no_point_more(x64):
    cell = jaxrnn.Elman(2)
    starts = jax.random.uniform(KEY, (64, 2), minval=-1, maxval=1)
    counts = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        kernel = rng.normal(size=(2, 2)) + np.diag([1.5, 1.5])
        bias, x = 0.1 * rng.normal(size=2), 0.1 * rng.normal(size=2)
        params = {
            "input_kernel": jnp.eye(2),
            "recurrent_kernel": jnp.asarray(kernel),
            "bias": jnp.asarray(bias),
        }
        points = fixed_points(cell, params, jnp.asarray(x), starts)
        found = points.states[points.converged]
        expected = grid_search(kernel, bias, x)
        np.testing.assert_allclose(
            sorted(found.tolist()), expected, rtol=0, atol=1e-9, err_msg=str(seed)
        )
        counts.append(len(expected))
    assert max(counts) >= 5  # some have saddles between attractors
    assert min(counts) >= 1


def stack_of_two():
    layer = jaxrnn.stack(jaxrnn.LSTM(3), jaxrnn.GRU(2))
    params = jax.tree.map(lambda a: 1.2 * a, layer.init(jax.random.key(0), 2))
    xs = jax.random.normal(jax.random.key(1), (12, 4, 2))
    starts = sample_states(layer, params, xs, 16, key=jax.random.key(3), noise=0.3)
    return layer, params, jnp.array([0.3, -0.2]), starts


def test_the_whole_carry_of_a_stack_stands_still(x64):
    layer, params, x, starts = stack_of_two()
    points = fixed_points(layer, params, x, starts)
    fixed = points.select(points.converged)
    assert len(fixed) >= 1
    for i in range(len(fixed)):
        carry = jax.tree.map(lambda a, i=i: jnp.asarray(a[i]), fixed.states)
        after, _ = layer(params, carry, x)
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(carry), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=4e-11)
    # c of an LSTM counts: h alone would be at rest at other c.
    assert jax.tree.structure(fixed.states) == jax.tree.structure(starts)


def test_an_optimizer_finds_what_gauss_newton_finds(x64, optax_promotion):
    cell, x = jaxrnn.Elman(2), jnp.zeros(2)
    params = {
        "input_kernel": jnp.eye(2),
        "recurrent_kernel": jnp.asarray([[1.8, 0.2], [-0.3, 1.5]]),
        "bias": jnp.zeros(2),
    }
    starts = jax.random.uniform(KEY, (24, 2), minval=-1, maxval=1)
    newton = fixed_points(cell, params, x, starts)
    slow = fixed_points(
        cell, params, x, starts, optimizer=optax.adam(0.01), tolerance=1e-9
    )
    near = np.abs(
        slow.states[slow.converged][:, None] - newton.states[newton.converged]
    ).max(-1)
    assert slow.converged.sum() >= 3
    assert (near.min(-1) <= 1e-7).all()


def test_float32_in_float32_out():
    cell, x = jaxrnn.GRU(3), jnp.zeros(2)
    params = cell.init(KEY, 2)
    points = fixed_points(cell, params, x, jax.random.normal(KEY, (5, 3)))
    assert points.states.dtype == np.float32
    assert points.converged.any()
    assert points.tolerance == pytest.approx(2.4e-5, rel=0.02)


def test_a_counter_is_held(x64):
    cell = Counting()
    params = cell.init(KEY, 2)
    starts = Counted(jax.random.normal(KEY, (6, 2)), jnp.array([0, 0, 0, 1, 1, 1]))
    x = jnp.array([0.1, -0.2])
    with pytest.raises(TypeError, match=r"count is int.*name a counter in held="):
        fixed_points(cell, params, x, starts)
    points = fixed_points(cell, params, x, starts, held=Counted(False, True))
    assert sorted(points.states.count.tolist()) == [0, 1]
    for h, count in zip(points.states.h, points.states.count, strict=True):
        np.testing.assert_allclose(
            np.tanh(h / 2 + np.asarray(x) + count), h, atol=1e-12
        )


def found(vectors, speed):
    n = len(speed)
    return Found(
        jnp.asarray(vectors), jnp.asarray(speed), jnp.zeros(n, bool), jnp.arange(n)
    )


def test_duplicates_are_merged_and_outliers_marked(plain_errors):
    vectors = [[1.0, 0.0], [0.0, 0.0], [1.0, 1e-4], [0.0, 1e-4], [0.0, 0.0], [90.0, 0]]
    speed = [0.5, 1e-9, 1e-8, 1e-7, np.nan, 1e-9]
    starts = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1], [1, 1], [-1, -1]])
    chosen, points = merged(found(vectors, speed), starts, 1e-3, 1e-3, 10.0)
    assert chosen.tolist() == [1, 2, 5]
    assert points.point_of_start.tolist() == [1, 0, 1, 0, 0, 2]
    assert points.starts.tolist() == [3, 2, 1]
    assert points.iterations.tolist() == [4, 2, 5]
    assert points.outlier.tolist() == [False, False, True]
    assert points.converged.all()
    kept = dataclasses.replace(points, states=np.arange(3)).select(
        np.array([False, True, True])
    )
    assert kept.states.tolist() == [1, 2]
    assert kept.point_of_start.tolist() == [0, -1, 0, -1, -1, 1]
    with pytest.raises(ValueError, match=r"select: which must be \(3,\) bool"):
        points.select(np.array([0, 1]))


def test_that_nothing_converged_is_said():
    cell = Linear(2)
    params = {"a": jnp.eye(2), "b": jnp.eye(2)}  # every step moves by x
    points = fixed_points(cell, params, jnp.array([3.0, 4.0]), jnp.eye(2))
    assert not points.converged.any()
    assert points.speed == pytest.approx([5.0] * 2)
    text = str(points)
    assert "No search reached a fixed point; the least speed is 5.0e+00" in text
    assert "start from others, or allow more iterations (max_iterations)" in text


def test_states_are_drawn_from_valid_steps():
    cell = jaxrnn.Elman(3)
    params = cell.init(KEY, 2)
    xs = jax.random.normal(jax.random.key(1), (6, 2, 2))
    mask = jnp.asarray(np.arange(6)[:, None] < np.array([6, 2]))
    _, _, carries = jaxrnn.unroll(cell, params, xs, return_carries=True)
    drawn = sample_states(cell, params, xs, 200, key=KEY, mask=mask)
    which = (np.asarray(drawn)[:, None, None] == np.asarray(carries)).all(-1)
    assert (which.sum((1, 2)) == 1).all()
    assert (which.any(0) == np.asarray(mask)).all()
    noisy = sample_states(cell, params, xs, 4000, key=KEY, mask=mask, noise=0.5)
    exact = sample_states(cell, params, xs, 4000, key=KEY, mask=mask)
    valid = np.asarray(carries)[np.asarray(mask)]
    spread = np.asarray(noisy - exact).std(0) / valid.std(0)
    np.testing.assert_allclose(spread, 0.5, rtol=0.05)


X, STARTS = np.zeros(2, np.float32), np.ones((4, 3), np.float32)
GRU = jaxrnn.GRU(3)
REFUSED = {
    "time": (GRU, np.zeros((5, 2), np.float32), STARTS, {}, "x must be one input"),
    "features": (GRU, np.zeros(4, np.float32), STARTS, {}, "made for 2 input features"),
    "one state": (GRU, X, STARTS[0], {}, "the carry passed in"),
    "no state": (GRU, X, STARTS[:0], {}, "of at least one state"),
    "other carry": (GRU, X, np.ones((4, 5), np.float32), {}, "the carry passed in"),
    "draws": (
        jaxrnn.layers.state_noise(GRU, 0.1),
        X,
        STARTS,
        {},
        r"draws random numbers.*jaxrnn.inference",
    ),
    "both ways": (
        jaxrnn.bidirectional(GRU, GRU),
        X,
        STARTS,
        {},
        "has no single direction",
    ),
    "no carry": (jaxrnn.layers.dense(3), X, (), {}, "there is no recurrence"),
    "all held": (GRU, X, STARTS, {"held": True}, "there is no recurrence"),
    "held": (GRU, X, STARTS, {"held": 3}, "held must be True or False for every part"),
    "tolerance": (GRU, X, STARTS, {"tolerance": -1.0}, "tolerance must be a finite"),
    "optimizer": (GRU, X, STARTS, {"optimizer": "adam"}, "must be one of optax"),
    "iterations": (GRU, X, STARTS, {"max_iterations": 0}, "max_iterations must be"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(plain_errors, name):
    cell, x, starts, options, message = REFUSED[name]
    params = cell.init(KEY, 2)
    with pytest.raises((TypeError, ValueError), match=message):
        fixed_points(cell, params, x, starts, **options)
