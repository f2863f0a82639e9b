"""Weight gradients whose cotangents go through every primitive that a sum over time
might move through, or must not.

A weight's cotangent at each step passes through a backward rule of its own, linear,
affine or neither. The engines' sums over time are those of ``jax.lax.scan``, which adds
the gradients up one after another.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from reference import compiled

import jaxrnn
from jaxrnn import Cell, Checkpoint, Scan
from jaxrnn.engines.jaxpr import linearity
from jaxrnn.engines.recurrence.run import flat_step
from jaxrnn.engines.recurrence.weight_gradients import WeightGradientSum

T, B, D, H = 7, 2, 3, 4
R = np.random.default_rng(0)
C, POSITIVE, OTHER = R.normal(size=(H, H)), 1 + R.random((H, H)), R.normal(size=(H, H))
M, ORDER = R.random((H, H)) < 0.5, np.array([2, 0, 3, 2])
TRIANGLE = np.tril(R.normal(size=(H, H))) + 2 * np.eye(H)


def at(g):
    """An index that depends on a cotangent."""
    return jnp.argmax(g[:, 0]).astype(jnp.int32)


def by_conv(a, b):
    return lax.conv(
        a.reshape(1, 1, H, H), b.reshape(1, 1, H, H), (1, 1), "SAME"
    ).reshape(H, H)


def looped(g):
    return lax.fori_loop(0, 3, lambda _, a: jnp.sin(a) + C, g)


def while_small(g):
    return lax.while_loop(lambda a: jnp.abs(a).max() < 1e3, lambda a: 2 * a + C, g)


RULES = {
    "identity": lambda g: g,
    "name": lambda g: checkpoint_name(g, "g"),
    "add": lambda g: g + C,
    "sub": lambda g: C - g,
    "neg": lambda g: -g,
    "mul": lambda g: C * g,
    "mul_both": lambda g: g * g,
    "div": lambda g: g / C,
    "div_by": lambda g: C / (3 + jnp.abs(g)),
    "integer_pow": lambda g: g**2 + g,
    "select_yes": lambda g: jnp.where(M, g, C),
    "select_no": lambda g: jnp.where(M, C, g),
    "select_both": lambda g: jnp.where(M, 2 * g, g.T),
    "select_by": lambda g: jnp.where(jnp.abs(g) < 0.4, g, jnp.sign(C)),
    "select_by_constants": lambda g: jnp.where(g > 0, C, OTHER),
    "clipped_gradient": lambda g: jnp.where(np.abs(C) < 0.4, g, np.sign(C)),
    "clamp": lambda g: jnp.clip(g, -0.1, 0.1),
    "sign": jnp.sign,
    "round": jnp.round,
    "max": lambda g: jnp.maximum(g, C),
    "scatter_add_updates": lambda g: jnp.asarray(C).at[ORDER].add(g),
    "scatter_add_operand": lambda g: g.at[ORDER].add(C),
    "scatter_add_both": lambda g: g.at[ORDER].add(g),
    "scatter_add_index": lambda g: g.at[at(g)].add(C[0]),
    "scatter_set_operand": lambda g: g.at[0].set(C[0]),
    "scatter_set_updates": lambda g: jnp.asarray(C).at[1].set(g[0]),
    "scatter_mul": lambda g: g.at[ORDER].mul(C),
    "scatter_max": lambda g: g.at[ORDER].max(C),
    "update_slice": lambda g: lax.dynamic_update_slice(jnp.asarray(C), g[:1], (1, 0)),
    "update_slice_operand": lambda g: lax.dynamic_update_slice(
        g, jnp.asarray(C[:1]), (1, 0)
    ),
    "update_slice_both": lambda g: lax.dynamic_update_slice(g, 2 * g[:1], (1, 0)),
    "update_slice_index": lambda g: lax.dynamic_update_slice(
        jnp.asarray(C), g[:1], (at(g), jnp.int32(0))
    ),
    "dynamic_slice": lambda g: jnp.tile(lax.dynamic_slice(g, (1, 0), (2, H)), (2, 1)),
    "dynamic_slice_index": lambda g: jnp.tile(
        lax.dynamic_slice(g, (at(g) % 2, jnp.int32(0)), (2, H)), (2, 1)
    ),
    "dynamic_slice_of_constant": lambda g: jnp.tile(
        lax.dynamic_slice(jnp.asarray(C), (at(g) % 2, jnp.int32(0)), (2, H)), (2, 1)
    ),
    "gather": lambda g: g[ORDER],
    "gather_index": lambda g: g[jnp.argsort(g[:, 0])],
    "gather_of_constant": lambda g: jnp.asarray(C)[at(g) * jnp.ones(H, int)],
    "gather_filled": lambda g: g.at[ORDER + 2].get(mode="fill", fill_value=3.0),
    "gather_filled_with_zero": lambda g: g.at[ORDER + 2].get(
        mode="fill", fill_value=0.0
    ),
    "gather_clipped": lambda g: g.at[ORDER + 2].get(mode="clip"),
    "concatenate": lambda g: jnp.concatenate([g[:1], C[1:]]),
    "pad": lambda g: lax.pad(g[:2], jnp.float64(0.7), [(1, 1, 0), (0, 0, 0)]),
    "pad_value": lambda g: lax.pad(jnp.asarray(C[:2]), g[0, 0], [(1, 1, 0), (0, 0, 0)]),
    "transpose": lambda g: g.T,
    "reshape": lambda g: g.reshape(2, 8).reshape(8, 2).reshape(H, H),
    "reverse": lambda g: jnp.flip(g, 0),
    "split": lambda g: jnp.concatenate(jnp.split(g, 2)[::-1]),
    "broadcast": lambda g: jnp.broadcast_to(g[:1], (H, H)),
    "expand_dims": lambda g: lax.expand_dims(g, (0,))[0],
    "reduce_sum": lambda g: jnp.broadcast_to(g.sum(0), (H, H)),
    "reduce_max": lambda g: jnp.broadcast_to(g.max(0), (H, H)),
    "cumsum": lambda g: jnp.cumsum(g, 0),
    "cumprod": lambda g: jnp.cumprod(g, 0),
    "sort": lambda g: jnp.sort(g, 0),
    "dot_right": lambda g: g @ C,
    "dot_left": lambda g: C @ g,
    "dot_both": lambda g: g @ g,
    "dot_batched": lambda g: jnp.einsum("ij,ij->i", g, C)[:, None] * C,
    "conv": lambda g: by_conv(g, jnp.asarray(C)),
    "conv_by": lambda g: by_conv(jnp.asarray(C), g),
    "conv_both": lambda g: by_conv(g, g),
    "triangular_solve": lambda g: jax.scipy.linalg.solve_triangular(
        TRIANGLE, g, lower=True
    ),
    "triangular_solve_by": lambda g: jax.scipy.linalg.solve_triangular(
        jnp.tril(g) + 9 * jnp.eye(H), C, lower=True
    ),
    "solve": lambda g: jnp.linalg.solve(C, g),
    "solve_by": lambda g: jnp.linalg.solve(g + 9 * jnp.eye(H), C),
    "to_float32_and_back": lambda g: g.astype(jnp.float32).astype(jnp.float64),
    "to_bfloat16_and_back": lambda g: g.astype(jnp.bfloat16).astype(jnp.float64),
    "to_float16_of_a_product": lambda g: (
        (C @ g).T.astype(jnp.float32).astype(jnp.float64)
    ),
    "to_int_and_back": lambda g: (10 * g).astype(jnp.int32).astype(jnp.float64),
    "to_bool_and_back": lambda g: (g > 0).astype(jnp.float64),
    "reduce_precision": lambda g: lax.reduce_precision(g, 8, 7),
    "to_complex": lambda g: (g.astype(jnp.complex128) * (1 + 2j)).imag,
    "complex": lambda g: lax.complex(g, jnp.asarray(C)).imag + lax.complex(g, g.T).real,
    "conj": lambda g: jnp.conj(lax.complex(g, 2 * g)).imag,
    "conj_of_a_product": lambda g: (jnp.conj(lax.complex(g, g.T)) * (C + 1j)).imag,
    "complex_absolute": lambda g: jnp.abs(lax.complex(g, jnp.asarray(C))),
    "complex_dot": lambda g: (lax.complex(g, g.T) @ (C - 1j * OTHER)).imag,
    "copy": lambda g: lax.optimization_barrier(jnp.copy(g)),
    "scan": looped,
    "cond": lambda g: lax.cond(g.sum() > 0, lambda a: a + C, lambda a: a * C, g),
    "while": while_small,
    "exp": jnp.expm1,
    "constant": lambda g: jnp.asarray(C) + 0 * g[:1].astype(bool).astype(jnp.float64),
    "nothing": lambda g: jnp.zeros_like(g),
    "only_a_constant": lambda g: jnp.asarray(C),
    "two_ways": lambda g: g @ C + jnp.where(M, g.T, C) + jnp.tanh(g),
    "newton_schulz": lambda g: functools.reduce(
        lambda a, _: 1.5 * a - 0.5 * C @ (C.T @ a), range(6), g
    ),
}
PARTS = {
    name: [*RULES][i::4]
    for i, name in enumerate(["first", "second", "third", "fourth"])
}
ENGINES = {
    "default": None,
    "window": Scan(chunk=3),
    "carries": Scan(save="carries", chunk=2),
    "checkpoint": Checkpoint(3),
}


def passed(rule, weight):
    """``weight``, whose cotangent goes through ``RULES[rule]``."""

    @jax.custom_vjp
    def keep(weight):
        return weight

    keep.defvjp(lambda w: (w, None), lambda _, g: (RULES[rule](g),))
    return keep(weight)


@dataclasses.dataclass(frozen=True)
class Ruled(Cell):
    """Each recurrent weight's cotangent goes through a rule."""

    rules: tuple[str, ...]
    hidden_size: int = H

    def init(self, key, input_size):
        keys = jax.random.split(key, len(self.rules) + 1)
        weights = {
            name: 0.5 * jax.random.normal(k, (H, H), jnp.float64)
            for name, k in zip(self.rules, keys, strict=False)
        }
        return {
            "W": jax.random.normal(keys[-1], (input_size, H), jnp.float64),
            "U": weights,
        }

    def step(self, params, h, x):
        recurrent = [h @ passed(name, w) for name, w in params["U"].items()]
        return jnp.tanh(x @ params["W"] + sum(recurrent) / len(recurrent) ** 0.5)


def scanned(cell, params, xs, carry):
    return lax.scan(lambda h, x: (cell.step(params, h, x),) * 2, carry, xs)


def gradients(unrolling, cell):
    def loss(params, xs, carry, weights):
        last, ys = unrolling(cell, params, xs, carry)
        return (weights * ys).sum() + last.sum()

    return compiled(jax.grad(loss, (0, 1, 2)))


def arguments(cell):
    random = np.random.default_rng(1)
    shapes = [(T, B, D), (B, H), (T, B, H)]
    xs, carry, weights = (jnp.asarray(random.normal(size=shape)) for shape in shapes)
    return cell.init(jax.random.key(2), D), xs, carry, weights


@functools.cache
def found(part, engine):
    """Gradients under an engine, and those of ``lax.scan``."""
    cell = Ruled(tuple(PARTS[part]))
    given = arguments(cell)
    own = gradients(lambda *a: jaxrnn.unroll(*a, engine=ENGINES[engine]), cell)(*given)
    return own, expected(part)


@functools.cache
def expected(part):
    cell = Ruled(tuple(PARTS[part]))
    return gradients(scanned, cell)(*arguments(cell))


@pytest.mark.parametrize(
    ("part", "engine"),
    [(part, "default") for part in PARTS]
    + [("first", "carries"), ("second", "checkpoint")]
    + [
        pytest.param(part, engine, marks=pytest.mark.slow)
        for part in PARTS
        for engine in ("carries", "checkpoint")
    ],
)
def test_sums_are_those_of_lax_scan(part, engine, x64, optax_promotion):
    own, right = found(part, engine)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(own), jax.tree.leaves(right), strict=True
    ):
        np.testing.assert_allclose(
            a,
            b,
            rtol=1e-12,
            atol=1e-12 * np.abs(b).max(),
            err_msg=jax.tree_util.keystr(path),
        )


@dataclasses.dataclass(frozen=True)
class Wide(Cell):
    """A weight that is larger than all that a step stores, and is not used by a
    product: its gradient is a running sum of the loop.
    """

    hidden_size: int = H

    def init(self, key, input_size):
        return {"w": jax.random.normal(key, (64, input_size, H), jnp.float64)}

    def step(self, params, h, x):
        seen = jnp.sin(params["w"] * x[..., None, :, None])
        return jnp.tanh(h + (seen * h[..., None, None, :]).mean((-3, -2)))


@pytest.mark.parametrize("engine", ["default", "carries", "checkpoint"])
def test_a_running_sum_is_that_of_lax_scan(engine, x64, optax_promotion):
    cell = Wide()
    given = arguments(cell)
    own = gradients(lambda *a: jaxrnn.unroll(*a, engine=ENGINES[engine]), cell)(*given)
    right = gradients(scanned, cell)(*given)
    for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(b).max())


def test_the_table_names_every_primitive_that_is_taken_as_linear(x64, optax_promotion):
    cell = Ruled(tuple(RULES))
    params, xs, carry, _ = arguments(cell)
    step, _ = flat_step(cell, params, carry, (xs, None, None))
    met = {eqn.primitive.name for eqn in step.adjoint.eqns}
    claimed = {*linearity.ALL.split(), *linearity.SOME, *linearity.PRODUCTS}
    # other names of what is met
    assert claimed - met <= {
        "copy_p",
        "expand_dims",
        "copy",
    }


def test_the_clipped_gradient_of_the_issue(x64):
    """Where the weight is clipped, its gradient is the sign at every one of the six
    steps.
    """

    @jax.custom_vjp
    def keep(w):
        return w

    keep.defvjp(
        lambda w: (w, w), lambda w, g: (jnp.where(jnp.abs(w) < 0.4, g, jnp.sign(w)),)
    )

    @dataclasses.dataclass(frozen=True)
    class Clipped(Cell):
        hidden_size: int = H

        def step(self, p, h, x):
            return jnp.tanh(x @ p["W"] + h @ keep(p["U"]))

    random = np.random.default_rng(3)
    params = {
        "W": jnp.asarray(random.normal(size=(D, H))),
        "U": jnp.asarray(random.normal(size=(H, H))),
    }
    xs = jnp.asarray(random.normal(size=(6, B, D)))
    grad = jax.grad(lambda p: jaxrnn.unroll(Clipped(), p, xs)[1].sum())(params)["U"]
    clipped = np.abs(params["U"]) >= 0.4
    np.testing.assert_array_equal(
        np.asarray(grad)[clipped], 6 * np.sign(params["U"])[clipped]
    )


@pytest.mark.parametrize(
    ("dtype", "scale"), [("float16", 1000.0), ("bfloat16", 1000.0)]
)
@pytest.mark.parametrize("factor", [None, 2.0**-10])
def test_sums_in_half_precision_stay_in_range(dtype, scale, factor):
    """Each step's product fits float16, which their sum leaves: under loss scaling,
    and where a factor comes after it.
    """

    @dataclasses.dataclass(frozen=True)
    class Half(Cell):
        hidden_size: int = 3

        def step(self, p, h, x):
            W, U = (p[name].astype(dtype) for name in "WU")
            W = W if factor is None else W * jnp.asarray(factor, dtype)
            return jnp.tanh(
                (x.astype(dtype) @ W + h.astype(dtype) @ U).astype(jnp.float32)
            )

    random = np.random.default_rng(0)
    params = {
        "W": 0.05 * random.normal(size=(2, 3)),
        "U": 0.05 * random.normal(size=(3, 3)),
    }
    params["W"] /= factor or 1
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    xs = jnp.ones((200, B, 2))

    def right(p):
        return lax.scan(
            lambda h, x: (Half().step(p, h, x),) * 2, jnp.zeros((B, 3)), xs
        )[1]

    own, wanted = (
        jax.grad(lambda p, f=f: (f(p) * scale).sum())(params)
        for f in (lambda p: jaxrnn.unroll(Half(), p, xs)[1], right)
    )
    for name in "WU":
        assert np.isfinite(wanted[name]).all()
        np.testing.assert_allclose(
            own[name], wanted[name], rtol=2e-2, atol=1e-2 * np.abs(wanted[name]).max()
        )


@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_narrow_weights_in_wide_steps_keep_their_products(dtype):
    """``matmul(h, U)`` in narrow numbers, summed in wide ones: one product over
    time, not T matrices.
    """

    @dataclasses.dataclass(frozen=True)
    class Mixed(Cell):
        hidden_size: int = 16

        def step(self, p, h, x):
            narrow = p["U"].astype(dtype)
            a = jnp.matmul(h.astype(dtype), narrow, preferred_element_type=jnp.float32)
            return jnp.tanh(x + a)

    params = {"U": jnp.asarray(R.normal(size=(16, 16)), jnp.float32)}
    xs = jnp.asarray(R.normal(size=(5, B, 16)), jnp.float32)
    step, _ = flat_step(Mixed(), params, jnp.zeros((B, 16)), (xs, None, None))
    sums = linear_sums(step)
    assert sums.products
    assert not sums.direct[0]


def linear_sums(step):
    program = step.adjoint
    return WeightGradientSum(program, [v for v in program.d_params if v is not None])


def test_sums_through_iterations_are_linear_in_their_number():
    """The text of the program grows by the same for each iteration that a recurrent
    weight is made by.
    """

    @dataclasses.dataclass(frozen=True)
    class Orthogonalised(Cell):
        iterations: int
        hidden_size: int = 8

        def step(self, p, h, x):
            U = p["U"]
            for _ in range(self.iterations):
                U = 1.5 * U - 0.5 * U @ U.T @ U
            return jnp.tanh(x + h @ U)

    def lines(count):
        def loss(U, xs):
            return jaxrnn.unroll(Orthogonalised(count), {"U": U}, xs)[1].sum()

        text = jax.jit(jax.grad(loss)).lower(jnp.eye(8), jnp.ones((5, 2, 8))).as_text()
        return len(text.splitlines())

    counts = [lines(k) for k in (1, 2, 3, 6)]
    each = counts[1] - counts[0]
    assert counts[2] - counts[1] == each
    assert counts[3] - counts[2] <= 3 * each + 3


@jax.custom_vjp
def of_state(a):
    """Its gradient is that of a square, whatever the cotangent is."""
    return a


of_state.defvjp(lambda a: (a, a), lambda a, g: (0.1 * a,))


@jax.custom_vjp
def of_nothing(a):
    return a


of_nothing.defvjp(lambda a: (a, ()), lambda _, g: (jnp.ones_like(g),))

WITHOUT_COTANGENTS = {
    "a product": lambda p, h, x: of_state(h @ p["U"]),
    "behind": lambda p, h, x: jnp.tanh(of_state(h @ p["U"])),
    "before": lambda p, h, x: of_state(jnp.tanh(h @ p["U"])),
    "with inputs": lambda p, h, x: of_state(h @ p["U"] + x),
    "of inputs": lambda p, h, x: of_state(x @ p["U"]) + h,
    "of units": lambda p, h, x: of_state(h * p["u"] + x),
    "constant": lambda p, h, x: of_nothing(h @ p["U"]),
    "of the weights": lambda p, h, x: h @ of_state(p["U"]) + x,
}


@pytest.mark.parametrize("batch", [(), (2,)], ids=["one", "batch"])
@pytest.mark.parametrize("place", WITHOUT_COTANGENTS)
def test_weight_gradients_that_no_cotangent_enters(place, batch, x64):
    """A ``jax.custom_vjp`` may ignore its cotangent. Then the sum over time is one of
    products of the carries, which have to be kept.
    """

    @dataclasses.dataclass(frozen=True)
    class Own(Cell):
        hidden_size: int = 3

        def step(self, p, h, x):
            return WITHOUT_COTANGENTS[place](p, h, x)

    random = np.random.default_rng(0)
    cell, lead = Own(), (1,) * len(batch)
    shapes = {"U": (3, 3), "u": (*lead, 3), "h": (*batch, 3), "xs": (5, *batch, 3)}
    p = {name: jnp.asarray(random.normal(size=shape)) for name, shape in shapes.items()}
    h, xs = p.pop("h"), p.pop("xs")
    weights = jnp.asarray(random.normal(size=xs.shape))

    def gradients(unrolled):
        def loss(p, h, xs):
            return (unrolled(p, h, xs) * weights).sum()

        return compiled(jax.grad(loss, (0, 1, 2)))(p, h, xs)

    def right(p, h, xs):
        return lax.scan(lambda h, x: (cell.step(p, h, x),) * 2, h, xs)[1]

    expected = gradients(right)
    for engine in (Scan(save="dots"), Scan(save="carries"), Checkpoint(2)):
        found = gradients(
            lambda p, h, xs, e=engine: jaxrnn.unroll(cell, p, xs, h, engine=e)[1]
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14),
            found,
            expected,
        )


@jax.custom_vjp
def limited(w):
    """Its gradient of every step is clipped."""
    return w


limited.defvjp(lambda w: (w, ()), lambda _, g: (jnp.clip(g, -0.1, 0.1),))


@pytest.mark.parametrize("again", [False, True], ids=["weights", "weights twice"])
def test_rules_of_weights_see_the_cotangent_of_every_step_under_lax_scan(again, x64):
    """A step with an inner loop is left to ``lax.scan``: what depends on the weights
    alone must not be computed before it, or the rule would see the sum over time.
    """

    @dataclasses.dataclass(frozen=True)
    class Iterated(Cell):
        hidden_size: int = 3

        def step(self, p, h, x):
            w = limited(p["U"])
            x = x @ limited(p["U"]) if again else x
            return lax.fori_loop(0, 2, lambda i, s: s + 0.3 * jnp.tanh(s @ w + x), h)

    random = np.random.default_rng(0)
    cell, p = Iterated(), {"U": jnp.asarray(random.normal(size=(3, 3)))}
    h, xs = (jnp.asarray(random.normal(size=shape)) for shape in ((2, 3), (6, 2, 3)))

    def gradient(unrolled):
        return compiled(jax.grad(lambda p, xs: unrolled(p, xs).sum(), (0, 1)))(p, xs)

    def right(p, xs):
        return lax.scan(lambda h, x: (cell.step(p, h, x),) * 2, h, xs)[1]

    expected = gradient(right)
    for engine in (None, Scan(hoist=False), Scan(save="carries")):
        found = gradient(
            lambda p, xs, e=engine: jaxrnn.unroll(cell, p, xs, h, engine=e)[1]
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14),
            found,
            expected,
        )
