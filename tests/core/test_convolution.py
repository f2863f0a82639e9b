"""Convolutions in a step: of every layout, and summed over time for their kernels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.experimental.xla_metadata import set_xla_metadata
from subjects import normal

import jaxrnn
from jaxrnn.core import convolution
from jaxrnn.engines.jaxpr.evaluate import eval_jaxpr
from jaxrnn.engines.loops import sequential
from jaxrnn.engines.recurrence.weight_gradients import WeightGradientSum

T, B = 5, 4


def conv(x, kernel, **options):
    """A convolution of pictures ``(B, X, Y, C)``, or of signals ``(B, X, C)``."""
    axes = "XY"[: x.ndim - 2]
    numbers = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    options = {
        "window_strides": (1,) * len(axes),
        "padding": "SAME",
        "dimension_numbers": numbers,
    } | options
    return jax.lax.conv_general_dilated(x, kernel, **options)


# The shape of the pictures without their batch, of the kernel, and the options.
FORMS = {
    "signals": ((6, 3), (3, 3, 3), {}),
    "pictures": ((4, 5, 3), (2, 3, 3, 3), {}),
    "channels_first": (
        (3, 4, 5),
        (3, 3, 2, 3),
        {"dimension_numbers": ("NCXY", "OIXY", "NCXY")},
    ),
    "batch_last": (
        (4, 3),
        (3, 3, 3),
        {"dimension_numbers": ("NXC", "IOX", "XNC")},
    ),
    "apart": ((6, 3), (3, 3, 3), {"rhs_dilation": (2,)}),
    "depthwise": ((6, 4), (3, 1, 4), {"feature_group_count": 4}),
    "groups": ((6, 4), (3, 2, 4), {"feature_group_count": 2}),
    "valid": ((6, 3), (3, 3, 3), {"padding": ((2, 0),)}),
}


@dataclasses.dataclass(frozen=True)
class Convolved(jaxrnn.Cell):
    """``h = tanh(U * h + V * x)`` with convolutions of one form, and a fast kernel."""

    form: str

    @property
    def shape(self):
        return FORMS[self.form][0]

    @property
    def kernel(self):
        return FORMS[self.form][1]

    @property
    def options(self):
        return FORMS[self.form][2]

    @property
    def feature_ndim(self):
        return len(self.shape)

    def init(self, key, input_size=None, dtype=None):
        keys = jax.random.split(key, 2)
        dtype = dtype or jnp.result_type(float)
        return {
            name: jax.random.normal(k, self.kernel, dtype) / 3
            for name, k in zip("UV", keys, strict=True)
        }

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return jnp.zeros((*batch_shape, *self.shape), params["U"].dtype)

    def project(self, params, x):
        return self.convolve(x, params["V"])

    def step(self, params, h, z):
        return jnp.tanh(self.convolve(h, params["U"]) + z)

    def convolve(self, x, kernel):
        """Convolve, with as many leading axes as there are."""
        lead = x.ndim - len(self.shape)
        y = conv(x.reshape(-1, *x.shape[lead:]), kernel, **self.options)
        if self.options.get("dimension_numbers", ("", "", "N"))[2][0] != "N":
            y = jnp.swapaxes(y, 0, 1)
        return y.reshape(*x.shape[:lead], *y.shape[1:])


def step_by_step(cell, params, xs, h):
    """The Python loop."""
    ys = []
    for x in xs:
        h = cell.step(params, h, cell.project(params, x))
        ys.append(h)
    return jnp.stack(ys)


def drawn(form, batch=(B,)):
    cell, random = Convolved(form), np.random.default_rng(0)
    params = cell.init(jax.random.key(0))
    xs, h = (
        normal(random, jax.ShapeDtypeStruct(shape, jnp.result_type(float)))
        for shape in ((T, *batch, *cell.shape), (*batch, *cell.shape))
    )
    return cell, params, xs, h


def close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12),
        found,
        expected,
    )


ENGINES = {
    "default": None,
    "chunks": jaxrnn.Scan(chunk=2),
    "carries": jaxrnn.Scan(save="carries"),
    "in_loop": jaxrnn.Scan(hoist=False),
    "checkpoint": jaxrnn.Checkpoint(2),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_may_convolve_in_any_layout(form, engine, x64):
    cell, params, xs, h = drawn(form)

    def loss(params, xs, h):
        _, ys = jaxrnn.unroll(cell, params, xs, h, engine=ENGINES[engine])
        return jnp.sin(ys).sum()

    def expected(params, xs, h):
        return jnp.sin(step_by_step(cell, params, xs, h)).sum()

    each = (0, 1, 2)
    close(
        jax.jit(jax.value_and_grad(loss, each))(params, xs, h),
        jax.jit(jax.value_and_grad(expected, each))(params, xs, h),
    )


@pytest.mark.parametrize("form", ["pictures", "batch_last"])
def test_derivatives_of_other_modes(form, x64):
    """vmap of a gradient, a mapped batch, a directional and a second derivative."""
    cell, params, xs, _ = drawn(form)

    def of(unroll):
        def loss(params, xs):
            return jnp.sin(unroll(params, xs)).sum()

        grad = jax.grad(loss)
        one = jax.vmap(grad, (None, 1))(params, xs[:, :, None])
        mapped = jax.grad(lambda p: jax.vmap(loss, (None, 1))(p, xs[:, :, None]).sum())
        along = jax.jvp(loss, (params, xs), (params, xs))
        second = jax.jvp(grad, (params, xs), (params, xs))
        again = jax.grad(lambda p: jnp.square(grad(p, xs)["U"]).sum())(params)
        return one, mapped(params), along, second, again

    def first(xs):
        return jnp.zeros(xs.shape[1:], xs.dtype)

    close(
        of(lambda p, xs: jaxrnn.unroll(cell, p, xs)[1]),
        of(lambda p, xs: step_by_step(cell, p, xs, first(xs))),
    )


@dataclasses.dataclass(frozen=True)
class FastKernel(jaxrnn.Cell):
    """A kernel that is the carry, and meets every input: no operand is a constant."""

    feature_ndim = 2

    def init(self, key, input_size=None, dtype=None):
        return {"decay": jnp.asarray(0.9, dtype or jnp.result_type(float))}

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return jnp.full((3, 2, 2), 0.1, params["decay"].dtype)

    def step(self, params, kernel, x):
        y = conv(x[None], kernel)
        new = jax.linear_transpose(lambda k: conv(x[None], k), kernel)(jnp.tanh(y))[0]
        return params["decay"] * kernel + new / y.size


@pytest.mark.parametrize("engine", ENGINES)
def test_a_kernel_that_is_the_carry(engine, x64):
    random, cell = np.random.default_rng(1), FastKernel()
    xs = normal(random, jax.ShapeDtypeStruct((T, 6, 2), jnp.float64))
    params = cell.init(jax.random.key(0))
    first = cell.initial_carry(params)

    def loop(params, xs):
        kernel, ys = first, []
        for x in xs:
            kernel = cell.step(params, kernel, x)
            ys.append(kernel)
        return jnp.stack(ys)

    def unrolled(params, xs):
        return jaxrnn.unroll(cell, params, xs, engine=ENGINES[engine])[1]

    def loss(unroll):
        return jax.value_and_grad(lambda *a: jnp.sin(unroll(*a)).sum(), (0, 1))(
            params, xs
        )

    close(loss(unrolled), loss(loop))


@pytest.mark.parametrize("form", ["signals", "pictures", "channels_first", "valid"])
@pytest.mark.parametrize("parts", [1, 2, 4, 3])
def test_sums_over_steps_are_one_convolution(form, parts, x64):
    """Of kernels' gradients; three parts do not divide the batch of four."""
    cell, params, xs, _ = drawn(form)

    def gradient(x, g):
        return jax.linear_transpose(lambda k: cell.convolve(x, k), params["U"])(g)[0]

    random = np.random.default_rng(2)
    gs = normal(random, jax.eval_shape(jax.vmap(cell.project, (None, 0)), params, xs))
    jaxpr = jax.make_jaxpr(gradient)(xs[0], gs[0])
    (eqn,) = (e for e in jaxpr.eqns if e.primitive.name == "conv_general_dilated")
    assert convolution.can_sum_over_steps(eqn)
    x_name, g_name = eqn.invars
    assert [x_name, g_name] == jaxpr.jaxpr.invars
    sums = object.__new__(WeightGradientSum)
    sums.parts = parts
    found = sums._sum_products(eqn, [xs, gs], False)
    if parts > 1:
        assert found.shape[0] == parts
        found = found.sum(0)
    each = [eqn.primitive.bind(x, g, **eqn.params) for x, g in zip(xs, gs, strict=True)]
    close(found, sum(each))


def test_the_gradient_of_a_kernel_has_no_array_of_one_kernel_a_step():
    cell, params, xs, h = drawn("pictures")

    def loss(params):
        return jaxrnn.unroll(cell, params, xs, h, engine=jaxrnn.Scan(chunk=None))[
            1
        ].sum()

    program = jax.jit(jax.grad(loss)).lower(params).as_text()
    size = "x".join(map(str, (T, *cell.kernel)))
    assert f"tensor<{size}x" not in program
    assert f"feature_group_count = {T}" not in program


def test_convolutions_in_loops_have_the_layout_that_cpus_have_a_fast_one_for():
    """XLA:CPU converts to it at the top of a program, and not in a loop."""
    cell, params, xs, h = drawn("channels_first")

    def loss(params, xs):
        engine = jaxrnn.Scan(chunk=2, hoist=False)
        return jaxrnn.unroll(cell, params, xs, h, engine=engine)[1].sum()

    program = jax.jit(jax.grad(loss, (0, 1))).trace(params, xs)
    lines = program.lower(lowering_platforms=("cpu",)).as_text().splitlines()
    layouts = {
        line.split("dim_numbers = ")[1].split(", window")[0]
        for line in lines
        if "stablehlo.convolution" in line
    }
    assert layouts == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}


def test_checkify_names_the_convolution():
    cell, params, xs, h = drawn("signals")

    def loss(params, xs):
        return jaxrnn.unroll(cell, params, xs, h)[1].sum()

    bad = jnp.full_like(params["V"], jnp.inf)
    for function in (loss, jax.grad(loss)):
        checked = checkify.checkify(jax.jit(function), checkify.nan_checks)
        for params_now, words in ((params, ""), (params | {"V": bad}, "conv_general")):
            message = checked(params_now, xs)[0].get() or ""
            assert words in message
            assert bool(words) == bool(message), message


def test_it_runs_without_jit():
    cell, params, xs, h = drawn("signals")

    def loss(params):
        return jaxrnn.unroll(cell, params, xs, h, engine=jaxrnn.Scan(chunk=2))[1].sum()

    expected = jax.grad(loss)(params)
    with jax.disable_jit():
        found = jax.grad(loss)(params)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_the_context_of_an_equation_is_kept():
    """In loops and for all steps at once, as that of other equations."""
    cell, params, xs, h = drawn("signals")

    class Marked(Convolved):
        def convolve(self, x, kernel):
            with set_xla_metadata(mark="here"):
                return super().convolve(x, kernel)

    marked = Marked(cell.form)

    def loss(params, xs):
        return jaxrnn.unroll(marked, params, xs, h)[1].sum()

    def marks(function):
        return jax.jit(function).lower(params, xs).as_text().count("mark")

    assert 2 <= marks(loss) < marks(jax.grad(loss, (0, 1)))


def test_kernels_of_mixed_precision_are_summed_in_float32():
    """As near to float64 as the sum of ``lax.scan``, which rounds every step."""
    random = np.random.default_rng(3)
    kernel = jnp.asarray(random.normal(size=(3, 3, 3)) / 3, jnp.float32)
    xs = jnp.asarray(random.normal(size=(200, 4, 8, 3)), jnp.float32)

    @dataclasses.dataclass(frozen=True)
    class Mixed(jaxrnn.Cell):
        half: str
        feature_ndim = 2

        def initial_carry(self, params, batch_shape=(), dtype=None):
            return jnp.zeros((*batch_shape, 8, 3), params.dtype)

        def step(self, kernel, h, x):
            y = conv(h.astype(self.half), kernel.astype(self.half))
            return jnp.tanh(0.1 * y.astype(h.dtype) + x)

    def gradient(unroll, dtype):
        return jax.jit(jax.grad(lambda k: unroll(k, xs.astype(dtype)).sum()))(
            kernel.astype(dtype)
        )

    def by_scan(half):
        cell = Mixed(half)
        first = cell.initial_carry(kernel, (4,))

        def unroll(k, xs):
            h = first.astype(xs.dtype)
            return jax.lax.scan(lambda h, x: (cell.step(k, h, x),) * 2, h, xs)[1]

        return unroll

    with jax.enable_x64(True):
        exact = np.asarray(gradient(by_scan("float64"), jnp.float64))
    rounded = np.asarray(gradient(by_scan("bfloat16"), jnp.float32))
    found = np.asarray(
        gradient(lambda k, xs: jaxrnn.unroll(Mixed("bfloat16"), k, xs)[1], jnp.float32)
    )
    assert np.abs(found - exact).max() <= 1.5 * np.abs(rounded - exact).max()


def test_a_row_that_a_convolution_reads_is_not_recorded_in_parts():
    """On accelerators rows are recorded in parts where no matmul reads them whole."""

    def body(h, x):
        z = conv(h, jnp.ones((3, 4, 8))) + x
        return jnp.tanh(z[..., :4]), jnp.concatenate([z[..., :4], 2 * z[..., 4:]], -1)

    h, xs = jnp.zeros((2, 6, 4)), jnp.zeros((5, 2, 6, 8))
    plain = sequential.rows_that_fall_apart(body, h, xs)

    def ours(h, x):
        jaxpr = jax.make_jaxpr(body)(h, x)
        instead = convolution.own_convolutions(jaxpr.eqns)
        return eval_jaxpr(jaxpr.jaxpr, jaxpr.consts, [h, x], instead)

    assert sequential.rows_that_fall_apart(ours, h, xs) == plain
