"""Linear recurrences: run step by step, in parallel and in parallel chunks, they
are one recurrence.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import compiled
from subjects import LINEAR, B, D, assert_same, assert_same_outcome, draw, looped
from test_engines import MODES, unrolled

import jaxrnn
from jaxrnn import GRU, LRU, LSTM, RGLRU, Associative, MinGRU, Scan
from jaxrnn.engines.loops.parallel_prefix import affine_scan

ENGINES = {
    "default": None,
    "associative": Associative(),
    "chunks": Associative(5),
    "whole": Associative(10_000),
}
RESETS = {
    "none": lambda t: t < 0,
    "first": lambda t: t == 0,
    "last": lambda t: t == len(t) - 1,
    "all": lambda t: t >= 0,
}


def flagged(inputs, steps, where):
    """``inputs`` with resets at the steps that ``where`` names, and a mask with
    holes.
    """
    resets = np.broadcast_to(RESETS[where](np.arange(steps))[:, None], (steps, B))
    return inputs._replace(resets=jnp.asarray(resets))


EVERY_LENGTH = [
    (name, steps)
    for name in ("min_gru", "lru", "user_linear")
    for steps in (1, 2, 3, 7, 257)
]


@pytest.mark.parametrize(
    ("name", "steps"),
    [*EVERY_LENGTH, ("user_linear", 0), ("min_gru", 64), ("lru", 1000)],
)
def test_every_run_is_the_python_loop_at_any_length(name, steps, x64):
    where, reverse = list(RESETS)[steps % 4], steps in (3, 64)
    inputs = flagged(draw(name, steps, steps), steps, where)
    # no steps: none to stack
    by_hand = (
        looped
        if steps
        else lambda *_: unrolled(LINEAR[name], Scan(save="everything"))(*inputs)
    )
    expected = by_hand(name, inputs, reverse)
    for engine in ENGINES.values():
        assert_same_outcome(unrolled(LINEAR[name], engine, reverse)(*inputs), expected)


@pytest.mark.parametrize("where", RESETS)
@pytest.mark.parametrize("name", LINEAR)
def test_resets_anywhere_and_masks_with_holes(name, where, x64):
    inputs, reverse = flagged(draw(name, 1, 12), 12, where), where == "last"
    expected = looped(name, inputs, reverse)
    for engine in (Associative(5), Associative(12), None):
        assert_same_outcome(unrolled(LINEAR[name], engine, reverse)(*inputs), expected)


@pytest.mark.parametrize("name", ["min_lstm", "rg_lru", "lru"])
def test_float32(name):
    inputs = draw(name, 0, 257)
    expected = unrolled(LINEAR[name], Scan(save="everything"))(*inputs)
    for engine in ENGINES.values():
        assert_same_outcome(
            unrolled(LINEAR[name], engine)(*inputs), expected, 1e-5, 1e-5
        )


@pytest.mark.parametrize("window", [4, 5])
def test_truncation(window, x64):
    inputs = draw("min_gru", 3, 12)
    expected = looped("min_gru", inputs, window=window)
    for engine in ENGINES.values():
        assert_same_outcome(
            unrolled(LINEAR["min_gru"], engine, window=window)(*inputs), expected
        )


@pytest.mark.parametrize(
    "mode",
    [m for m in MODES if m not in ("third order", "jacrev of jacrev", "linearize")],
)
@pytest.mark.parametrize("name", ["min_gru", "lru"])
def test_modes_of_differentiation(name, mode, x64):
    cell = dataclasses.replace(LINEAR[name], hidden_size=2)
    inputs, direction = (draw(cell, seed, 5, (2,)) for seed in (0, 1))
    flags = inputs.mask.at[:, 0].set(True)

    def loss(engine):
        def f(params, xs):
            here = flags[: len(xs)] if xs.ndim == 3 else flags[: len(xs), 0]
            return jnp.sum(
                jnp.sin(
                    jaxrnn.unroll(
                        cell, params, xs, mask=here, resets=~here, engine=engine
                    )[1]
                )
            )

        return f

    at = (inputs.params, inputs.xs, (direction.params, direction.xs))
    engines = (Associative(3), Scan(save="everything"))
    got, want = (compiled(lambda e=e: MODES[mode](loss(e), *at))() for e in engines)
    assert_same(got, want)


@pytest.mark.parametrize("reverse", [False, True])
def test_nothing_crosses_a_factor_of_zero(reverse):
    """Neither an infinity nor NaN, wherever in the prefix tree the two meet."""
    for cut in range(9):
        a = np.full(9, 0.5, np.float32)
        a[cut] = 0
        side = slice(cut, None) if not reverse else slice(None, cut + 1)
        b = np.full(9, np.nan, np.float32)
        b[side] = 1
        states = affine_scan(
            jnp.asarray(a), jnp.asarray(b), jnp.asarray(np.inf, jnp.float32), reverse
        )
        assert np.isfinite(states[side]).all()
        assert not np.isfinite(np.delete(states, np.arange(9)[side])).any()


def test_bfloat16_parameters_accumulate_in_float32():
    """A long average: in bfloat16 a sum of a thousand small steps stands still."""
    cell = MinGRU(4)
    params = cell.init(jax.random.key(0), 3, dtype=jnp.bfloat16)
    xs = jax.random.normal(jax.random.key(1), (500, 2, 3), jnp.bfloat16)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), params)
    expected, _ = jaxrnn.unroll(cell, wide, xs.astype(jnp.float32))
    for engine in ENGINES.values():
        unrolled = jax.jit(lambda p, x, e=engine: jaxrnn.unroll(cell, p, x, engine=e))
        last, ys = unrolled(params, xs)
        assert (last.dtype, ys.dtype) == (jnp.float32, jnp.bfloat16)
        np.testing.assert_allclose(
            last, expected, rtol=0, atol=0.02 * float(np.abs(expected).max())
        )
    lru = LRU(4)
    last, ys = jaxrnn.unroll(
        lru, lru.init(jax.random.key(0), 3, dtype=jnp.bfloat16), xs
    )
    assert (last.dtype, ys.dtype) == (jnp.complex64, jnp.bfloat16)


@pytest.mark.parametrize(
    "engine", [None, Associative()], ids=["default", "associative"]
)
@pytest.mark.parametrize("name", ["min_gru", "min_lstm", "rg_lru", "lru"])
def test_nan_in_an_input_does_not_cross_a_reset(name, engine):
    """Nor does it in the gradient: a gate that is NaN is a factor that is NaN."""
    inputs, resets = draw(name, 0, 12), jnp.zeros((12, B), bool).at[6].set(True)

    def loss(xs):
        return jaxrnn.unroll(
            LINEAR[name], inputs.params, xs, resets=resets, engine=engine
        )[1][6:].sum()

    value, gradient = jax.value_and_grad(loss)(inputs.xs.at[4].set(jnp.nan))
    assert np.isfinite(value)
    assert np.isfinite(gradient[6:]).all()


def test_second_derivatives_where_a_factor_is_zero(x64):
    """A gate that can close: by the rule of the prefix tree, a factor that is
    exactly 0 would have no derivative.
    """

    @dataclasses.dataclass(frozen=True)
    class Closing(jaxrnn.LinearCell):
        hidden_size: int = 1

        def init(self, key, input_size):
            return {"w": jnp.ones(()), "b": jnp.zeros(())}

        def affine(self, params, z):
            return params["w"] * z + params["b"], z + 1

    xs = jnp.array([0.5, 0.7, 0.0, 0.9, 0.3, 0.8])[:, None]

    def hessian(engine):
        def loss(p):
            return jnp.sum(jaxrnn.unroll(Closing(), p, xs, engine=engine)[1] ** 2)

        return jax.hessian(loss)({"w": jnp.ones(()), "b": jnp.zeros(())})

    expected = hessian(Scan(save="everything"))
    for engine in (None, Associative(), Associative(2)):
        assert_same(hessian(engine), expected)


# --------------------------------------------------------------------------------------
# identities


def test_an_rg_lru_with_fixed_gates_is_a_real_lru(x64):
    """Gates that see no input: a^(c r) and i are constants."""
    inputs = draw("rg_lru", 0, 30)
    gated = RGLRU(D)
    params = {**inputs.params, "input_kernel": jnp.zeros((D, 2 * D))}
    r, i = jnp.split(jax.nn.sigmoid(params["bias"]), 2)
    kept = jax.nn.sigmoid(params["decay"]) ** (8 * r)
    diagonal = LRU(D)
    identity, nothing = jnp.eye(D), jnp.zeros((D, D))
    same = {
        "nu": jnp.log(-jnp.log(kept)),
        "theta": jnp.full((D,), -jnp.inf),
        "gamma": jnp.log(jnp.sqrt(1 - kept**2) * i),
        "input_kernel": jnp.concatenate([identity, nothing], -1),
        "output_kernel": jnp.concatenate([identity, nothing]),
        "skip": jnp.zeros(D),
    }
    flags = {"mask": inputs.mask, "resets": inputs.resets}
    for engine in ENGINES.values():
        expected = jaxrnn.unroll(diagonal, same, inputs.xs, engine=engine, **flags)[1]
        actual = jaxrnn.unroll(gated, params, inputs.xs, engine=engine, **flags)[1]
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-14)


def test_lru_by_its_equations(x64):
    """In NumPy, line by line as in the paper; `test_cells` has the real ones."""
    random = np.random.default_rng(0)
    x, h = random.normal(size=D), random.normal(size=4) + 1j * random.normal(size=4)
    params = draw(LRU(4), 0).params
    new, y = LRU(4)(params, jnp.asarray(h), jnp.asarray(x))
    p = {k: np.asarray(v) for k, v in params.items()}
    eigenvalues = np.exp(-np.exp(p["nu"]) + 1j * np.exp(p["theta"]))
    into = p["input_kernel"][:, :4] + 1j * p["input_kernel"][:, 4:]
    np.testing.assert_allclose(
        new, eigenvalues * h + np.exp(p["gamma"]) * (x @ into), rtol=1e-12
    )
    out = p["output_kernel"][:4] - 1j * p["output_kernel"][4:]
    np.testing.assert_allclose(
        y, (np.asarray(new) @ out).real + p["skip"] * x, rtol=1e-12
    )


def test_published_initialization():
    lru = LRU(2000, r_min=0.4, r_max=0.9, max_phase=0.3)
    params = lru.init(jax.random.key(0), 3)
    eigenvalues = lru.eigenvalues(params)
    area = np.sort((np.abs(eigenvalues) ** 2 - 0.4**2) / (0.9**2 - 0.4**2))
    # Kolmogorov-Smirnov: 99.7 % of draws
    assert np.abs(area - np.linspace(0, 1, 2000)).max() < 0.04
    assert 0 <= np.angle(eigenvalues).min() < np.angle(eigenvalues).max() <= 0.3
    np.testing.assert_allclose(
        np.exp(params["gamma"]), np.sqrt(1 - np.abs(eigenvalues) ** 2), rtol=1e-5
    )
    # compiled, so that the kernels, which nothing reads, are not drawn
    decay = jax.jit(lambda key: RGLRU(2000).init(key, 2000)["decay"])
    kept = np.sort(jax.nn.sigmoid(decay(jax.random.key(0))) ** 8)
    assert np.abs((kept - 0.9) / 0.099 - np.linspace(0, 1, 2000)).max() < 0.04


def test_lru_at_the_edge_of_the_ring_is_finite():
    """|lambda| = 1 has no nu, and 1 - |lambda|^2 no logarithm."""
    for edge in ({"r_min": 0.0}, {"r_min": 0.999999, "r_max": 1.0}):
        params = LRU(500, **edge).init(jax.random.key(1), 3)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_the_slope_of_the_square_root_is_cut():
    """A unit that keeps everything: sqrt(1 - a^2) has no slope there, and one such
    unit must not spoil every gradient.
    """
    cell = RGLRU(D)
    params = {**draw("rg_lru", 0).params, "decay": jnp.full((D,), 40.0)}
    gradient = jax.grad(lambda p: jaxrnn.unroll(cell, p, jnp.ones((5, D)))[1].sum())(
        params
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


# --------------------------------------------------------------------------------------
# memory, platforms, errors


def temporaries(engine, steps, batch=8, size=256):
    """Bytes that a forward and backward pass take besides their inputs and outputs."""
    cell = MinGRU(size)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), size))
    xs = jax.ShapeDtypeStruct((steps, batch, size), jnp.float32)

    def direct(params, xs):
        a, b = cell.affine(params, cell.project(params, xs))
        return jax.lax.associative_scan(
            lambda e, l: (l[0] * e[0], l[0] * e[1] + l[1]), (a, b)
        )[1]

    def passes(params, xs, cotangent):
        unrolled = (
            direct
            if engine == "direct"
            else lambda p, x: jaxrnn.unroll(cell, p, x, engine=engine)[1]
        )
        ys, pullback = jax.vjp(unrolled, params, xs)
        return ys, pullback(cotangent)

    return (
        jax.jit(passes)
        .lower(params, xs, xs)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
    )


def test_memory():
    """At most half of what differentiating jax.lax.associative_scan takes; in
    chunks, one state a chunk.
    """
    assert temporaries(Associative(), 4096) <= temporaries("direct", 4096) / 2
    short, long = (
        temporaries(Associative(64), steps, size=64) for steps in (512, 2048)
    )
    assert long - short <= 1.05 * (2048 - 512) / 64 * 8 * 64 * 4


@pytest.mark.parametrize("name", ["min_gru", "lru"])
def test_the_default_is_a_loop_on_cpus_and_parallel_elsewhere(name):
    cell = LINEAR[name]
    params, xs = jax.eval_shape(
        lambda k: (cell.init(k, D), jax.random.normal(k, (64, B, D))), jax.random.key(0)
    )
    gradient = jax.jit(
        jax.grad(lambda p, x: jaxrnn.unroll(cell, p, x)[1].sum(), (0, 1))
    )
    text = {
        p: jax.export.export(gradient, platforms=[p])(params, xs).mlir_module()
        for p in ("cpu", "cuda", "tpu")
    }
    assert [t.count("stablehlo.while") > 0 for t in text.values()] == [
        True,
        False,
        False,
    ]


def test_what_is_not_linear_is_refused_by_name():
    for cell in (GRU(4), LSTM(4)):
        params = cell.init(jax.random.key(0), D)
        with pytest.raises(
            TypeError,
            match=rf"{type(cell).__name__} is not linear in its state.*use Scan\(\)",
        ):
            jaxrnn.unroll(cell, params, jnp.ones((5, D)), engine=Associative())
    cell = MinGRU(4)
    params, xs = cell.init(jax.random.key(0), D), jnp.ones((5, D))
    with pytest.raises(
        TypeError, match=r"scaled gradients .* use Scan\(\), or truncate with window="
    ):
        jaxrnn.truncated_unroll(
            cell, params, xs, gradient_scale=jnp.ones(5), engine=Associative()
        )
    zoned = jaxrnn.zoneout(cell, 0.1)
    with pytest.raises(
        TypeError, match=r"around MinGRU must be run step by step: use Scan\(\)"
    ):
        jaxrnn.unroll(zoned, params, xs, engine=Associative(), key=jax.random.key(0))
    with pytest.raises(ValueError, match="chunk must be"):
        Associative(0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LRU(4, r_min=0.9, r_max=0.5), "0 <= r_min < r_max <= 1"),
        (lambda: LRU(4, max_phase=7.0), "max_phase must lie in"),
        (lambda: LRU(4, learned_initial_carry=True), "its carry is complex"),
        (lambda: RGLRU(4, r_max=1.0), "0 < r_min < r_max < 1"),
    ],
)
def test_options_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_rg_lru_needs_as_many_features_as_units():
    with pytest.raises(
        ValueError,
        match=r"input features must equal hidden_size.*they are 3 and 4.*RGLRU\(3\)",
    ):
        jaxrnn.unroll(RGLRU(4), RGLRU(4).init(jax.random.key(0), 3), jnp.ones((5, 3)))


def test_a_step_of_its_own_is_run_as_it_is_and_refused_by_name():
    @dataclasses.dataclass(frozen=True)
    class Bent(type(LINEAR["user_linear"])):
        def step(self, params, carry, z):
            return jax.tree.map(jnp.tanh, super().step(params, carry, z))

    inputs = draw(Bent(4), 0)
    exported = jax.export.export(
        jax.jit(lambda xs: jaxrnn.unroll(Bent(4), inputs.params, xs)[1]),
        platforms=["cuda"],
    )
    assert "stablehlo.while" in exported(inputs.xs).mlir_module()
    with pytest.raises(TypeError, match="Bent defines a step of its own"):
        jaxrnn.unroll(Bent(4), inputs.params, inputs.xs, engine=Associative())


def test_a_linear_cell_must_say_its_affine_map():
    @dataclasses.dataclass(frozen=True)
    class Empty(jaxrnn.LinearCell):
        hidden_size: int = 2

        def init(self, key, input_size):
            return {"w": jnp.ones(2)}

    with pytest.raises(NotImplementedError, match="must define affine"):
        jaxrnn.unroll(Empty(), {"w": jnp.ones(2)}, jnp.ones((5, 2)))
