"""The instruments at their edges: what -inf and NaN stand for, parts of very
different size, unusual cells and dtypes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import SUBJECTS, assert_same, draw, draw_params
from test_diagnostics import XS, Linear, gradient_lags, parameter_lags

import jaxrnn
from jaxrnn import LSTM, Elman, diagnostics
from jaxrnn.core.cell import Gate

rng = np.random.default_rng
KEY = jax.random.key(0)


class TestEveryLayerHasItsOwnScale:
    """Of a stack whose upper layer forgets fast: far back its gradient, over the
    lower one's, is less than any float.
    """

    def found(self, dtype=np.float32, steps=400):
        slow, fast = (
            f * np.linalg.qr(rng(i).normal(size=(4, 4)))[0]
            for i, f in enumerate((0.99, 0.5))
        )
        params = {
            "layer_0": {"A": jnp.asarray(slow, dtype)},
            "layer_1": {"A": jnp.asarray(fast, dtype)},
        }
        xs = jnp.asarray(rng(2).normal(size=(steps, 2, 4)), dtype)
        return diagnostics.gradient_lags(
            jaxrnn.stack(Linear(4), Linear(4)), params, xs, jnp.sum
        )

    def test_the_rates_are_those_of_each(self):
        lower, upper = self.found().by_leaf
        lags = np.arange(401)[:, None]
        np.testing.assert_allclose(
            upper, np.asarray(upper)[0] + lags * np.log(0.5), rtol=1e-5, atol=1e-6
        )
        # The lower layer gets from the upper all along, at first nothing: it is zero
        # where the loss reads the upper one alone.
        assert np.isneginf(np.asarray(lower)[0]).all()
        np.testing.assert_allclose(
            np.diff(np.asarray(lower)[100:], axis=0), np.log(0.99), atol=1e-4
        )

    @pytest.mark.usefixtures("x64")
    def test_float64_where_one_scale_is_enough_agrees(self):
        wide, narrow = self.found(np.float64, 60), self.found(np.float32, 60)
        for a, b in zip(jax.tree.leaves(narrow), jax.tree.leaves(wide), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        both = np.logaddexp(*(2 * np.asarray(leaf) for leaf in wide.by_leaf)) / 2
        np.testing.assert_allclose(wide.log_norm, both, atol=1e-12)


@dataclasses.dataclass(frozen=True)
class Turning(jaxrnn.Cell):
    """A complex carry, and a step that is not holomorphic in it: s_t = w s_{t-1} + u
    conj(s_{t-1}) + x_t.
    """

    hidden_size: int = 2

    def init(self, key, input_size):
        return {"w": jnp.zeros(2, complex), "u": jnp.zeros(2, complex)}

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return jnp.zeros((*batch_shape, 2), params["w"].dtype)

    def step(self, params, carry, z):
        return params["w"] * carry + params["u"] * carry.conj() + z.astype(carry.dtype)

    def output(self, params, carry, x):
        return jnp.concatenate([carry.real, carry.imag], -1)


@pytest.mark.usefixtures("x64", "optax_promotion")
class TestComplexCarries:
    w, u = np.array([0.5 + 0.6j, -0.3 + 0.2j]), np.array([0.1 - 0.2j, 0.4 + 0.3j])
    params = {"w": w, "u": u}

    def by_hand(self):
        """[d(re, im)/d(re, im)]: of w s it is w's rotation, of u conj(s) u's after a
        mirror.
        """
        J = np.zeros((4, 4))
        for i, (w, u) in enumerate(zip(self.w, self.u, strict=True)):
            block = [
                [w.real + u.real, -w.imag + u.imag],
                [w.imag + u.imag, w.real - u.real],
            ]
            J[np.ix_([i, i + 2], [i, i + 2])] = block
        return J

    def test_a_jacobian_is_over_real_and_imaginary_parts(self):
        xs = jnp.asarray(rng(0).normal(size=(3, 2)))
        params = jax.tree.map(jnp.asarray, self.params)
        found = diagnostics.jacobians(Turning(), params, xs)
        np.testing.assert_allclose(
            found, np.broadcast_to(self.by_hand(), (3, 4, 4)), atol=1e-14
        )
        lags = diagnostics.gradient_lags(
            Turning(), params, xs, lambda y: jnp.sum(y * jnp.arange(1.0, 5.0))
        )
        row = np.arange(1.0, 5.0)
        for k in range(4):
            np.testing.assert_allclose(
                lags.log_norm[k], np.log(np.linalg.norm(row)), atol=1e-12
            )
            row = row @ self.by_hand()

    def test_the_exponents_are_those_of_the_real_matrix(self):
        params = jax.tree.map(jnp.asarray, self.params)
        found = diagnostics.lyapunov_spectrum(
            Turning(), params, jnp.zeros((3000, 2)), key=KEY
        )
        expected = np.log(np.abs(np.linalg.eigvals(self.by_hand())))
        np.testing.assert_allclose(
            np.sort(found.exponents), np.sort(expected), atol=2e-3
        )


class TestLosses:
    """A loss may be anything that can be called, and is read anew at every call."""

    def test_what_it_reads_may_change(self):
        class Loss:
            __hash__ = None
            weight = 1.0

            def __call__(self, y):
                return self.weight * y.sum()

        cell, loss = Elman(3), Loss()
        params = cell.init(KEY, 3)

        def look():
            of_all = diagnostics.gradient_map(cell, params, XS, lambda y, _: loss(y))
            lags = diagnostics.gradient_lags(cell, params, XS, loss).log_v
            return (
                lags,
                diagnostics.parameter_lags(cell, params, XS, loss).log_norm,
                of_all,
            )

        before = look()
        loss.weight = 100.0
        for was, now in zip(before, look(), strict=True):
            np.testing.assert_allclose(now, was + np.float32(np.log(100)), rtol=1e-5)

    @pytest.mark.usefixtures("plain_errors")
    @pytest.mark.parametrize(
        ("xs", "targets", "message"),
        [
            (XS[:0], None, "the sequence has no step"),
            (XS, jnp.zeros((4, 2)), "targets must be arrays"),
            (XS, 0.0, "targets must be arrays"),
        ],
    )
    def test_targets_of_a_map_are_checked(self, xs, targets, message):
        cell = Elman(3)
        with pytest.raises(ValueError, match=message):
            diagnostics.gradient_map(
                cell, cell.init(KEY, 3), xs, lambda y, t: y.sum(), targets
            )


class TestDeadDirections:
    def test_of_dead_units_the_exponent_is_no_rounding(self):
        cell = Elman(12, activation=jax.nn.relu)
        params = cell.init(KEY, 3)
        params["bias"] = params["bias"].at[:5].set(-100.0)  # dead for good
        for stride in (1, 2):
            xs = jnp.asarray(rng(1).normal(size=(60, 3)), jnp.float32)
            found = diagnostics.lyapunov_spectrum(
                cell, params, xs, key=KEY, stride=stride
            ).exponents
            assert np.isneginf(np.sort(np.asarray(found))[:5]).all()

    def test_directions_that_are_small_but_known_are_finite(self):
        sizes = np.array([1.0, 1e-3, 1e-8])
        params = {"A": jnp.asarray(np.diag(sizes), jnp.float32)}
        found = diagnostics.lyapunov_spectrum(
            Linear(3), params, jnp.zeros((50, 3)), key=KEY
        ).exponents
        np.testing.assert_allclose(found, np.log(sizes), atol=1e-3)


@pytest.mark.usefixtures("x64")
def test_masked_steps_of_a_spectrum_are_as_if_they_were_not_there():
    cell, params = SUBJECTS["lstm"], draw_params(SUBJECTS["lstm"], rng(3))
    steps, counted = rng(4).normal(size=(60, 3)), np.sort(rng(5).permutation(60)[:40])
    mask = np.zeros((60, 2), bool)
    mask[counted, 0] = mask[:, 1] = True
    xs = jnp.asarray(np.stack([np.where(mask[:, :1], steps, np.nan), steps], 1))
    found = diagnostics.lyapunov_spectrum(
        cell, params, xs, key=KEY, warmup=0, mask=jnp.asarray(mask)
    )
    for b, alone in enumerate((steps[counted], steps)):
        expected = diagnostics.lyapunov_spectrum(
            cell, params, jnp.asarray(alone), key=KEY, warmup=0
        )
        np.testing.assert_allclose(found.exponents[b], expected.exponents, rtol=1e-9)
    np.testing.assert_array_equal(found.state.steps, [40, 60])
    strided = diagnostics.lyapunov_spectrum(
        cell, params, xs, key=KEY, warmup=0, mask=jnp.asarray(mask), stride=2
    )
    np.testing.assert_allclose(strided.exponents, found.exponents, rtol=1e-7)
    nothing = diagnostics.lyapunov_spectrum(
        cell, params, xs, key=KEY, mask=jnp.zeros((60, 2), bool)
    )
    assert np.isnan(nothing.exponents).all()


@pytest.mark.usefixtures("x64")
class TestFits:
    def test_ragged_sequences_that_end_inside_the_range_are_left_out(self):
        cell, inputs = SUBJECTS["elman"], draw("elman", 1)
        lengths = jnp.asarray([5, 3, 5])
        mask = jaxrnn.mask_from_lengths(lengths, 5)
        lags = gradient_lags(cell, inputs.params, inputs.xs, jnp.sum, mask=mask)
        found = diagnostics.fit_decay(lags, (0, 5), key=KEY)
        whole = gradient_lags(cell, inputs.params, inputs.xs[:, ::2], jnp.sum)
        expected = diagnostics.fit_decay(whole, (0, 5), key=KEY)
        assert_same(found[:4], expected[:4])
        assert found.low < found.high
        every = diagnostics.fit_decay(lags, (0, 3), key=KEY)
        np.testing.assert_allclose(
            every.beta, diagnostics.fit_decay(lags.log_norm, (0, 3), key=KEY).beta
        )
        # an array: nobody knows why it is NaN
        assert np.isnan(diagnostics.fit_decay(lags.log_norm, (0, 5), key=KEY).beta)

    def test_a_gradient_that_is_not_finite_spoils_the_fit(self):
        cell = Elman(3)
        lags = diagnostics.gradient_lags(
            cell, cell.init(KEY, 3, jnp.float32), XS.at[1, 0, 0].set(jnp.nan), jnp.sum
        )
        assert np.isnan(diagnostics.fit_decay(lags, (0, 5), key=KEY)).all()

    def test_narrow_logarithms_are_fitted_in_float32(self):
        fit = diagnostics.fit_decay(
            jnp.asarray(-0.25 * np.arange(256.0)[:, None], jnp.bfloat16),
            (0, 255),
            key=KEY,
        )
        np.testing.assert_allclose(jnp.log(fit.beta), -0.25, atol=1e-3)

    def test_residual_and_interval(self):
        # log v alternates about a line: by hand, the residual is that of the
        # alternation.
        lags = np.arange(40.0)
        log_v = 1.5 - 0.2 * lags + 0.3 * (-1.0) ** lags
        line = np.polyfit(lags, log_v, 1)
        fit = diagnostics.fit_decay(jnp.asarray(log_v), (0, 39), key=KEY)
        np.testing.assert_allclose(
            fit.residual,
            np.sqrt(np.mean((log_v - np.polyval(line, lags)) ** 2)),
            rtol=1e-9,
        )
        np.testing.assert_allclose([jnp.log(fit.beta), fit.intercept], line, rtol=1e-9)
        # Two sequences of rates a and b: a resampled batch is one of (a, a), (a, b),
        # (b, b), so a wide interval is (a, b).
        two = jnp.asarray(np.stack([-0.1 * lags, -0.2 * lags], 1))
        wide = diagnostics.fit_decay(two, (0, 39), key=KEY, level=0.99)
        np.testing.assert_allclose(
            jnp.log(jnp.stack([wide.low, wide.high])), [-0.2, -0.1], rtol=1e-9
        )
        # the middle half of the draws are (a, b)
        narrow = diagnostics.fit_decay(two, (0, 39), key=KEY, level=0.4)
        np.testing.assert_allclose([narrow.low, narrow.high], narrow.beta, rtol=1e-9)


@dataclasses.dataclass(frozen=True)
class Shown(Elman):
    """A cell whose output takes a parameter directly, and that has parameters of
    very different use.
    """

    def init(self, key, input_size, dtype=None):
        return {
            **super().init(key, input_size, dtype),
            "gain": jnp.arange(1.0, self.hidden_size + 1, dtype=dtype),
        }

    def output(self, params, carry, x):
        return params["gain"] * carry


@pytest.mark.usefixtures("x64", "optax_promotion")
def test_what_the_output_takes_from_the_parameters_is_in_the_first_term():
    cell = Shown(3)
    params = cell.init(KEY, 3, jnp.float64)
    xs = jnp.asarray(rng(7).normal(size=(4, 2, 3)))

    def of_whole(p):
        return jnp.sum(jnp.square(jaxrnn.unroll(cell, p, xs)[1][-1]))

    found = diagnostics.parameter_lags(
        cell, params, xs, lambda y: jnp.sum(jnp.square(y)), terms=True
    )
    whole = jax.grad(of_whole)(params)
    assert_same(jax.tree.map(lambda a: a.sum(0), found.terms), whole)
    assert np.linalg.norm(found.terms["gain"][0]) > 0
    assert not np.asarray(found.terms["gain"][1:]).any()
    for k in range(4):
        for name, logs in found.by_leaf.items():
            with np.errstate(divide="ignore"):
                np.testing.assert_allclose(
                    logs[k], np.log(np.linalg.norm(found.terms[name][k])), atol=1e-12
                )


@pytest.mark.usefixtures("x64")
def test_a_sequence_without_a_step_adds_nothing_to_the_loss():
    """Its output is not the loss's: whatever the loss makes of it, the gradient is
    that of the others.
    """
    cell, inputs = SUBJECTS["lstm"], draw("lstm", 2)
    loss = lambda y: jnp.sum(jnp.square(y).sum(-1) + jnp.exp(y.sum()))  # noqa: E731 - elements meet
    mask = jaxrnn.mask_from_lengths(jnp.asarray([5, 0, 4]), 5)
    found = parameter_lags(cell, inputs.params, inputs.xs, loss, mask=mask, terms=True)

    def last(params):
        _, ys = jaxrnn.unroll(cell, params, inputs.xs, mask=mask)
        return loss(jnp.stack([ys[4, 0], jnp.zeros(4), ys[3, 2]]))

    assert_same(
        jax.tree.map(lambda a, b: a.sum(0) + b, found.terms, found.initial),
        jax.grad(last)(inputs.params),
    )


@pytest.mark.usefixtures("x64")
def test_lags_that_stop_before_a_ragged_sequence_begins_leave_the_whole_unknown():
    cell, inputs = SUBJECTS["gru_learned"], draw("gru_learned", 3)
    mask = jaxrnn.mask_from_lengths(jnp.asarray([5, 2, 3]), 5)
    few = parameter_lags(cell, inputs.params, inputs.xs, jnp.sum, lags=3, mask=mask)
    assert np.isnan(few.log_rest).all()
    assert np.isnan(few.log_whole)
    short = parameter_lags(
        cell, inputs.params, inputs.xs, jnp.sum, lags=3, mask=mask.at[3:].set(False)
    )
    assert np.isfinite(short.log_whole)


class TestGateEdges:
    def test_of_a_cell_with_noise_they_are_those_of_its_expectation(self):
        layer = jaxrnn.inference(jaxrnn.zoneout(LSTM(4), (0.5, 0.5)))
        params = layer.init(KEY, 3)
        found = diagnostics.gate_statistics(layer, params, XS)
        _, _, carries = jaxrnn.unroll(layer, params, XS, return_carries=True)
        first = layer.initial_carry(params, (2,))
        befores = jax.tree.map(
            lambda s, after: jnp.concatenate([s[None], after[:-1]]), first, carries
        )
        gates = layer.cell.gate_values(params, befores, layer.cell.project(params, XS))
        for name, gate in gates.items():
            np.testing.assert_allclose(
                found[name].mean, np.asarray(gate.value).mean((0, 1)), rtol=1e-5
            )

    def test_without_a_known_range_nothing_is_called_saturated(self):
        cell = Elman(4, activation=jax.nn.silu)
        found = diagnostics.gate_statistics(cell, cell.init(KEY, 3), XS)["h"]
        assert np.isnan(found.left).all()
        assert np.isnan(found.right).all()
        assert np.isfinite(found.mean).all()
        relu = Elman(4, activation=jax.nn.relu)
        found = diagnostics.gate_statistics(relu, relu.init(KEY, 3), XS)["h"]
        assert np.isfinite(found.left).all()
        assert np.isnan(found.right).all()

    def test_a_value_that_is_nan_is_not_called_unsaturated(self):
        cell = LSTM(3)
        found = diagnostics.gate_statistics(
            cell, cell.init(KEY, 3), XS.at[2, 0, 0].set(jnp.nan)
        )
        for gate in found.values():
            assert np.isnan(gate.left).all()
            assert np.isnan(gate.right).all()
            assert np.isnan(gate.mean).all()

    @pytest.mark.usefixtures("plain_errors")
    def test_values_of_another_shape_are_refused(self):
        @dataclasses.dataclass(frozen=True)
        class Odd(Elman):
            def gate_values(self, params, carry, z):
                return {"h": Gate(self.step(params, carry, z).sum(0))}

        params = Odd(4).init(KEY, 3)
        with pytest.raises(
            TypeError, match=r"Odd.gate_values must return a dict .* but h is"
        ):
            diagnostics.gate_statistics(Odd(4), params, XS)


@pytest.mark.parametrize("name", ["elman", "lstm", "stack"])
def test_every_instrument_takes_bfloat16(name):
    layer = SUBJECTS[name]
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), layer.init(KEY, 3))
    xs = jnp.asarray(rng(6).normal(size=(6, 2, 3)), jnp.bfloat16)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), (params, xs))

    def loss(y):
        return y.sum().astype(jnp.float32)

    narrow = diagnostics.gradient_lags(layer, params, xs, loss).log_norm
    assert narrow.dtype == jnp.float32
    exact = diagnostics.gradient_lags(layer, *wide, loss).log_norm
    known = np.isfinite(exact)
    np.testing.assert_array_equal(np.isfinite(narrow), known)
    np.testing.assert_allclose(
        np.asarray(narrow)[known], np.asarray(exact)[known], atol=0.1
    )
    assert np.isfinite(
        diagnostics.parameter_lags(layer, params, xs, loss).log_norm
    ).all()
    J = diagnostics.jacobians(layer, params, xs)
    np.testing.assert_allclose(J, diagnostics.jacobians(layer, *wide), atol=0.05)
    assert np.isfinite(
        diagnostics.log_singular_values(diagnostics.jacobian_products(J))[1]
    ).any()
    exponents = diagnostics.lyapunov_spectrum(layer, params, xs, key=KEY).exponents
    assert exponents.dtype == jnp.float32
    assert np.isfinite(np.asarray(exponents)[:, 0]).all()
    diagnostics.gate_statistics(layer, params, xs)


def test_where_a_gradient_is_zero_its_logarithm_has_a_derivative_of_zero():
    cell = Elman(3)
    params = cell.init(KEY, 3)
    resets = jnp.zeros((5, 2), bool).at[3].set(True)

    def nearest(p):
        return diagnostics.gradient_lags(cell, p, XS, jnp.sum, resets=resets).log_norm

    assert np.isneginf(nearest(params)[2:]).all()
    slopes = jax.grad(
        lambda p: jnp.where(jnp.isfinite(nearest(p)), nearest(p), 0).sum()
    )(params)
    for leaf in jax.tree.leaves(slopes):
        assert np.isfinite(leaf).all()
    assert np.asarray(slopes["recurrent_kernel"]).any()


@pytest.mark.parametrize(
    ("place", "value"), [("g", np.nan), ("phi", np.nan), ("phi", np.inf), ("g", np.inf)]
)
def test_what_is_not_finite_certifies_nothing(place, value):
    phi, g = -np.arange(6.0, dtype=np.float32), np.zeros(6, np.float32)
    how = {"relative_error": 0.1, "fit_range": (1, 3)}
    assert diagnostics.adaptive_truncation(phi, g, **how).certified
    (phi if place == "phi" else g)[5] = value
    found = diagnostics.adaptive_truncation(phi, g, **how)
    assert not found.certified
    assert found.k2 == 6


@pytest.mark.usefixtures("plain_errors")
def test_mistakes_are_told():
    cell = Elman(3)
    params = cell.init(KEY, 3)
    counted = {**params, "bias": jnp.zeros(3, jnp.int32)}
    with pytest.raises(TypeError, match=r"parameter_lags: params\['bias'\] is int32"):
        diagnostics.parameter_lags(cell, counted, XS, jnp.sum)
    with pytest.raises(TypeError, match="loss must be a function"):
        diagnostics.gradient_lags(cell, params, XS, 3.0)

    logs = jnp.zeros((10, 2))
    with pytest.raises(ValueError, match="resamples must be an int from 1"):
        diagnostics.fit_decay(logs, (0, 3), key=KEY, resamples=0)
    with pytest.raises(ValueError, match="J must hold square matrices"):
        diagnostics.jacobian_products(logs)
    with pytest.raises(ValueError, match="no map to draw"):
        diagnostics.plots.gradient_maps({})
    with pytest.raises(TypeError, match="fit_range must be two ints"):
        diagnostics.fit_decay(logs, (0.0, 3.5), key=KEY)
    with pytest.raises(TypeError, match="log_v must be real"):
        diagnostics.memory_horizon(jnp.arange(4))
    with pytest.raises(ValueError, match="stride must be an int from 1 to 5"):
        diagnostics.lyapunov_spectrum(cell, params, XS, key=KEY, stride=10)
    with pytest.raises(ValueError, match="mask must have shape"):
        diagnostics.lyapunov_spectrum(
            cell, params, XS, key=KEY, mask=jnp.ones((2, 5), bool)
        )


@pytest.mark.usefixtures("plain_errors")
def test_numpys_integers_are_integers():
    cell = Elman(3)
    params = cell.init(KEY, 3)
    found = diagnostics.gradient_lags(
        cell, params, XS, jnp.sum, at=np.int64(3), lags=np.int32(2)
    )
    assert_same(
        found.log_norm,
        diagnostics.gradient_lags(cell, params, XS, jnp.sum, at=3, lags=2).log_norm,
    )
    diagnostics.fit_decay(found, (np.int64(0), np.int64(2)), key=KEY)
    diagnostics.lyapunov_spectrum(
        cell, params, XS, key=KEY, count=np.int64(1), warmup=np.int64(1)
    )
