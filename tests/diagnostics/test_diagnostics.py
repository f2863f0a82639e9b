"""Instruments against explicit products of Jacobians, in float64: lags, maps,
spectra, and the marks they leave.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from reference import Lags, compiled, one_step
from subjects import (
    CAUSAL,
    FEW,
    SUBJECTS,
    T,
    assert_same,
    draw,
    draw_params,
    drawn_params,
)

import jaxrnn
from jaxrnn import GRU, LSTM, Elman, diagnostics, initializers

rng = np.random.default_rng


def quick(instrument, cell, *arguments, **options):
    """An instrument, compiled fast: arrays are arguments of the compiled program,
    the rest is part of it.
    """
    given = [*arguments, *options.values()]
    is_static = [
        callable(a) or a is None or isinstance(a, (int, jaxrnn.Scan, jaxrnn.Checkpoint))
        for a in given
    ]
    arrays = [None if static else a for a, static in zip(given, is_static, strict=True)]

    def run(arrays):
        filled = [
            g if static else a
            for g, a, static in zip(given, arrays, is_static, strict=True)
        ]
        count = len(arguments)
        named = dict(zip(options, filled[count:], strict=True))
        return getattr(diagnostics, instrument)(cell, *filled[:count], **named)

    return compiled(run)(arrays)


gradient_lags = functools.partial(quick, "gradient_lags")
parameter_lags = functools.partial(quick, "parameter_lags")


@dataclasses.dataclass(frozen=True)
class Linear(jaxrnn.Cell):
    """s_t = s_{t-1} A + x_t: what its instruments show is known in closed form."""

    hidden_size: int

    def init(self, key, input_size):
        return {"A": jax.random.normal(key, (self.hidden_size, self.hidden_size))}

    def step(self, params, carry, z):
        return carry @ params["A"] + z


@functools.cache
def jacobian_of_step(layer):
    """One streaming step of one sequence, its flags included, over the carry as one
    vector: (the new one, its Jacobian).
    """

    def step(flat, params, like, x, keep, reset):
        return ravel_pytree(
            one_step(layer, params, x, ravel_pytree(like)[1](flat), keep, reset)[0]
        )[0]

    def both(flat, *rest):
        return step(flat, *rest), jax.jacrev(step, holomorphic=jnp.iscomplexobj(flat))(
            flat, *rest
        )

    return compiled(both)


def explicit(layer, params, xs, carry, mask, resets):
    """The Jacobians of every step of one sequence, and the flat carries after it, by
    a Python loop.
    """
    flat, like = ravel_pytree(carry)[0], carry
    carries, found = [flat], []
    for t in range(len(xs)):
        flat, J = jacobian_of_step(layer)(flat, params, like, xs[t], mask[t], resets[t])
        carries.append(flat)
        found.append(np.asarray(J))
    return found, carries


def squares(weights, y):
    """A loss of one output, summed over the batch."""
    return jnp.sum(jnp.square(y @ weights))


def weights_for(y_size, seed=0):
    return jnp.asarray(rng(seed).normal(size=(y_size, 2)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CAUSAL)
def test_lags_are_norms_of_explicit_jacobian_products(name):
    layer, inputs = SUBJECTS[name], draw(name, 0)
    # every sequence's last step is valid, holes before
    mask = inputs.mask.at[-1].set(True)
    size = jax.eval_shape(
        lambda: layer.output(inputs.params, inputs.carry, inputs.xs[0])
    ).shape[-1]
    loss = functools.partial(squares, weights_for(size))
    last_row = compiled(
        jax.grad(
            lambda s, one, x: loss(
                layer.output(inputs.params, ravel_pytree(one)[1](s), x)
            )
        )
    )
    for flags in ((None, None), (mask, inputs.resets))[
        name not in FEW :
    ]:  # leaving them out has nothing to do with the cell
        found = gradient_lags(
            layer,
            inputs.params,
            inputs.xs,
            loss,
            inputs.carry,
            mask=flags[0],
            resets=flags[1],
        )
        mask_of, resets_of = (
            (np.ones((T, 3), bool) if flags[0] is None else np.asarray(mask)),
            np.zeros((T, 3), bool),
        )
        resets_of = resets_of if flags[1] is None else np.asarray(inputs.resets)
        for b in range(3):
            one = jax.tree.map(lambda a, b=b: a[b], inputs.carry)
            Js, carries = explicit(
                layer,
                inputs.params,
                inputs.xs[:, b],
                one,
                mask_of[:, b],
                resets_of[:, b],
            )
            unravel = ravel_pytree(one)[1]
            row = last_row(carries[-1], one, inputs.xs[-1, b])
            for k in range(T + 1):
                with np.errstate(divide="ignore"):
                    expected = np.log(np.linalg.norm(row))
                    by_leaf = [
                        np.log(np.linalg.norm(leaf))
                        for leaf in jax.tree.leaves(unravel(jnp.asarray(row)))
                    ]
                np.testing.assert_allclose(
                    found.log_norm[k, b],
                    expected,
                    rtol=0,
                    atol=1e-11,
                    err_msg=f"{k}, {b}",
                )
                for leaf, want in zip(
                    jax.tree.leaves(found.by_leaf), by_leaf, strict=True
                ):
                    np.testing.assert_allclose(leaf[k, b], want, rtol=0, atol=1e-11)
                if k < T:
                    row = row @ Js[T - 1 - k]
        with np.errstate(divide="ignore"):
            expected = np.log(np.exp(np.asarray(found.log_norm)).mean(1))
        np.testing.assert_allclose(found.log_v, expected, rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["lstm_all_learned", "gru_learned", "stack"])
def test_parameter_lags_are_the_terms_of_the_gradient(name):
    layer, inputs = SUBJECTS[name], draw(name, 1, batch=())
    resets = np.array([False, False, True, False, False])
    mask = np.array([True, True, True, False, True])
    y = jax.eval_shape(lambda: jaxrnn.unroll(layer, inputs.params, inputs.xs)[1])
    weights, targets = weights_for(y.shape[-1]), jnp.zeros((T, 2))
    loss = functools.partial(squares, weights)
    loss_at = lambda y, _: loss(y)  # noqa: E731 - one function for both, so that its programs are compiled once
    for flags in ((None, None), (jnp.asarray(mask), jnp.asarray(resets))):
        twin = Lags(layer, inputs.params, inputs.xs, targets, loss_at, *flags)
        found = parameter_lags(
            layer,
            inputs.params,
            inputs.xs,
            loss,
            mask=flags[0],
            resets=flags[1],
            terms=True,
        )
        total = 0.0
        for k in range(T):
            term = twin.to_params(twin.parts[T, k])
            assert_same(jax.tree.map(lambda a, k=k: a[k], found.terms), term)
            total = total + twin.parts[T, k]
            with np.errstate(divide="ignore"):
                np.testing.assert_allclose(
                    found.log_norm[k],
                    np.log(np.linalg.norm(twin.parts[T, k])),
                    atol=1e-11,
                )
                np.testing.assert_allclose(
                    found.log_sum[k], np.log(np.linalg.norm(total)), atol=1e-11
                )
                rest = sum(twin.parts[T, j] for j in range(k + 1, T + 1))
                np.testing.assert_allclose(
                    found.log_rest[k], np.log(np.linalg.norm(rest)), atol=1e-11
                )
                error = np.linalg.norm(rest) / np.linalg.norm(total + rest)
                np.testing.assert_allclose(found.truncation_error[k], error, rtol=1e-11)
        assert_same(found.initial, twin.to_params(twin.parts[T, T]))
        full = compiled(
            jax.grad(
                lambda p, f=flags: loss(
                    jaxrnn.unroll(layer, p, inputs.xs, mask=f[0], resets=f[1])[1][-1]
                )
            )
        )
        assert_same(
            jax.tree.map(lambda a, b: a.sum(0) + b, found.terms, found.initial),
            full(inputs.params),
        )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["lstm", "gru_learned", "stack"])
def test_ragged_sequences_count_from_their_own_last_step(name):
    layer, inputs, lengths = SUBJECTS[name], draw(name, 2), [5, 0, 3]
    mask = jaxrnn.mask_from_lengths(jnp.asarray(lengths), T)
    size = jax.eval_shape(
        lambda: layer.output(inputs.params, inputs.carry, inputs.xs[0])
    ).shape[-1]
    loss = functools.partial(squares, weights_for(size))
    xs = jnp.where(mask[..., None], inputs.xs, jnp.nan)
    found = gradient_lags(layer, inputs.params, xs, loss, mask=mask)
    terms = parameter_lags(layer, inputs.params, xs, loss, mask=mask, terms=True)
    total = jax.tree.map(
        jnp.zeros_like, jax.tree.map(lambda a: a[:0].sum(0), terms.terms)
    )
    for b, length in enumerate(lengths):
        assert np.isnan(found.log_norm[length + 1 :, b]).all()
        if length == 0:
            assert np.isnan(found.log_norm[:, b]).all()
            continue
        alone = gradient_lags(layer, inputs.params, xs[:length, b], loss)
        np.testing.assert_allclose(
            found.log_norm[: length + 1, b], alone.log_norm, rtol=0, atol=1e-12
        )
        own = parameter_lags(layer, inputs.params, xs[:length, b], loss, terms=True)
        total = jax.tree.map(
            lambda t, a, i: t + a.sum(0) + i, total, own.terms, own.initial
        )
    assert_same(
        jax.tree.map(lambda a, b: a.sum(0) + b, terms.terms, terms.initial), total
    )
    assert np.isfinite(found.log_v).all()


@pytest.mark.usefixtures("x64")
def test_at_and_lags_choose_the_loss_and_how_far_to_look():
    layer, inputs = SUBJECTS["lstm"], draw("lstm", 3)
    loss = functools.partial(squares, weights_for(4))
    look = functools.partial(
        gradient_lags, layer, inputs.params, loss=loss, carry=inputs.carry
    )
    early = look(xs=inputs.xs, at=2)
    assert early.log_norm.shape == (4, 3)
    assert_same(early.log_norm, look(xs=inputs.xs[:3]).log_norm)
    assert_same(look(xs=inputs.xs, at=-3, lags=2).log_norm, early.log_norm[:3])
    assert_same(look(xs=inputs.xs, at=2, lags=0).log_norm, early.log_norm[:1])
    few = parameter_lags(layer, inputs.params, inputs.xs, loss, lags=2)
    every = parameter_lags(layer, inputs.params, inputs.xs, loss)
    assert_same(few.log_sum, every.log_sum[:2])
    assert np.isnan(jax.tree.leaves(few.initial)[0]).all()
    assert np.isnan(few.truncation_error).all()
    # The output of a masked step is zero whatever the state.
    hole = gradient_lags(
        layer,
        inputs.params,
        inputs.xs,
        loss,
        at=2,
        mask=jnp.ones((T, 3), bool).at[2, 1].set(False),
    )
    assert np.isneginf(hole.log_norm[:, 1]).all()
    assert np.isfinite(hole.log_norm[:, [0, 2]]).all()


@pytest.mark.usefixtures("x64")
def test_a_reset_cuts_the_path_exactly():
    layer, inputs = SUBJECTS["gru"], draw("gru", 4)
    resets = jnp.zeros((T, 3), bool).at[3, 1].set(True)
    found = gradient_lags(
        layer,
        inputs.params,
        inputs.xs,
        functools.partial(squares, weights_for(4)),
        resets=resets,
    )
    assert np.isfinite(found.log_norm[:2, 1]).all()  # the states after steps 4 and 3
    assert np.isneginf(found.log_norm[2:, 1]).all()
    assert np.isfinite(found.log_norm[:, [0, 2]]).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "engine",
    [
        jaxrnn.Checkpoint(2),
        jaxrnn.Scan(save="carries"),
        jaxrnn.Scan(save="everything"),
    ],
)
def test_every_engine_gives_the_same_lags(engine):
    layer, inputs = SUBJECTS["stack"], draw("stack", 5)
    loss = functools.partial(squares, weights_for(2))
    plain = gradient_lags(layer, inputs.params, inputs.xs, loss, resets=inputs.resets)
    other = gradient_lags(
        layer, inputs.params, inputs.xs, loss, resets=inputs.resets, engine=engine
    )
    assert_same(jax.tree.map(jnp.exp, other), jax.tree.map(jnp.exp, plain))


@pytest.mark.usefixtures("x64")
def test_vmap_over_sequences_equals_the_batch():
    layer, inputs = SUBJECTS["lstm"], draw("lstm", 6)
    loss = functools.partial(squares, weights_for(4))
    batch = gradient_lags(layer, inputs.params, inputs.xs, loss)
    each = jax.vmap(lambda xs: gradient_lags(layer, inputs.params, xs, loss), 1, 1)(
        inputs.xs
    )
    assert_same(each.log_norm, batch.log_norm)


def test_the_log_domain_goes_on_where_floats_end():
    """A linear cell with a normal A of spectral radius 0.5: beta is 0.5, at lag
    5,000 too, in float32.
    """
    cell, steps, H = Linear(6), 5000, 6
    A = 0.5 * np.linalg.qr(rng(0).normal(size=(H, H)))[0]
    xs = jnp.asarray(rng(1).normal(size=(steps, 2, H)), jnp.float32)
    params = {"A": jnp.asarray(A, jnp.float32)}
    loss = functools.partial(squares, weights_for(H).astype(jnp.float32))
    found = gradient_lags(cell, params, xs, loss)
    np.testing.assert_allclose(
        found.log_v - found.log_v[0],
        np.arange(steps + 1) * np.log(0.5),
        rtol=1e-6,
        atol=1e-4,
    )
    fit = diagnostics.fit_decay(found.log_norm, (20, 5000), key=jax.random.key(0))
    np.testing.assert_allclose([fit.beta, fit.tau], [0.5, 1 / np.log(2)], rtol=1e-5)
    growing = gradient_lags(
        cell, {"A": 9 * params["A"]}, 1e-30 * xs, lambda y: jnp.sum(y), lags=300
    )
    assert np.isfinite(growing.log_v).all()
    np.testing.assert_allclose(
        growing.log_v[-1] - growing.log_v[0], 300 * np.log(4.5), rtol=1e-5
    )
    terms = parameter_lags(cell, params, xs, loss, lags=2000)
    assert np.isfinite(terms.log_norm).all()
    assert terms.log_norm[-1] < -1000
    np.testing.assert_allclose(np.diff(np.asarray(terms.log_sum)[50:]), 0, atol=1e-6)


def test_where_no_float_underflows_the_log_domain_is_the_linear_one():
    layer, inputs = SUBJECTS["lstm"], draw("lstm", 7)
    weights = weights_for(4).astype(jnp.float32)

    def read(nudges):
        """The textbook way: zeros added to the carry after every step, and the
        gradient with respect to them.
        """
        carry = inputs.carry
        for t in range(T):
            carry, _ = layer(inputs.params, carry, inputs.xs[t])
            carry = jax.tree.map(lambda a, e, t=t: a + e[t], carry, nudges)
        return squares(weights, layer.output(inputs.params, carry, inputs.xs[-1]))

    zeros = jax.tree.map(lambda a: jnp.zeros((T, *a.shape), a.dtype), inputs.carry)
    nudges = jax.grad(read)(zeros)
    norms = jnp.sqrt(sum(jnp.square(leaf).sum(-1) for leaf in jax.tree.leaves(nudges)))
    found = gradient_lags(
        layer,
        inputs.params,
        inputs.xs,
        functools.partial(squares, weights),
        inputs.carry,
    )
    np.testing.assert_allclose(np.exp(found.log_norm[:T]), norms[::-1], rtol=2e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["lstm", "stack", "elman"])
def test_a_gradient_map_holds_the_lags_of_every_loss(name):
    layer, inputs = SUBJECTS[name], draw(name, 8)
    mask = inputs.mask.at[0].set(True)
    size = jax.eval_shape(
        lambda: layer.output(inputs.params, inputs.carry, inputs.xs[0])
    ).shape[-1]
    weights, targets = weights_for(size), jnp.asarray(rng(3).normal(size=(T, 3, 2)))
    found = quick(
        "gradient_map",
        layer,
        inputs.params,
        inputs.xs,
        lambda y, target: jnp.sum(jnp.square(y @ weights - target)),
        targets,
        inputs.carry,
        mask=mask,
        resets=inputs.resets,
    )
    assert found.shape == (T, T + 1, 3)
    for t in range(T):
        lags = gradient_lags(
            layer,
            inputs.params,
            inputs.xs,
            lambda y, t=t: jnp.sum(jnp.square(y @ weights - targets[t])),
            inputs.carry,
            at=t,
            mask=mask,
            resets=inputs.resets,
        )
        np.testing.assert_allclose(
            found[t, : t + 2][::-1], lags.log_norm, rtol=0, atol=1e-11
        )
        assert np.isnan(found[t, t + 2 :]).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["lstm_projected", "gru", "stack"])
def test_jacobians_products_and_singular_values(name):
    layer, inputs = SUBJECTS[name], draw(name, 9)
    J = quick(
        "jacobians",
        layer,
        inputs.params,
        inputs.xs,
        inputs.carry,
        mask=inputs.mask,
        resets=inputs.resets,
    )
    products = diagnostics.jacobian_products(J)
    values = diagnostics.log_singular_values(products)
    for b in range(3):
        one = jax.tree.map(lambda a, b=b: a[b], inputs.carry)
        flags = np.asarray(inputs.mask)[:, b], np.asarray(inputs.resets)[:, b]
        expected, _ = explicit(layer, inputs.params, inputs.xs[:, b], one, *flags)
        product = np.eye(expected[0].shape[0])
        for k in range(T + 1):
            log, unit = (
                np.asarray(products.log_scale[k, b]),
                np.asarray(products.unit[k, b]),
            )
            np.testing.assert_allclose(
                np.exp(log) * unit if np.isfinite(log) else unit, product, atol=1e-12
            )
            sigma = np.linalg.svd(product, compute_uv=False)
            sure = sigma > 1e-12 * sigma[0]
            if product.any():
                np.testing.assert_allclose(
                    np.exp(values[k, b])[sure], sigma[sure], rtol=1e-6
                )
                assert not np.isfinite(values[k, b][sigma < 1e-16 * sigma[0]]).any()
            else:
                assert np.isneginf(values[k, b]).all()
            if k < T:
                np.testing.assert_allclose(
                    J[T - 1 - k, b], expected[T - 1 - k], atol=1e-12
                )
                product = product @ expected[T - 1 - k]


@pytest.mark.usefixtures("x64")
class TestLyapunov:
    def spectrum(self, cell, params, xs, **options):
        return np.asarray(
            quick(
                "lyapunov_spectrum", cell, params, xs, key=jax.random.key(0), **options
            ).exponents
        )

    def test_of_a_linear_map_they_are_the_logarithms_of_its_eigenvalues(self):
        cell, steps = Linear(5), 3000
        A = rng(0).normal(size=(5, 5)) / 2
        found = self.spectrum(
            cell, {"A": jnp.asarray(A)}, jnp.zeros((steps, 5)), warmup=1000
        )
        expected = np.sort(np.log(np.abs(np.linalg.eigvals(A))))[::-1]
        # pairs turn within their plane: 1/T
        np.testing.assert_allclose(np.sort(found)[::-1], expected, atol=3e-3)
        np.testing.assert_allclose(
            found.sum(), np.log(abs(np.linalg.det(A))), rtol=1e-10
        )

    @pytest.mark.parametrize("name", ["elman", "lstm", "gru", "stack"])
    def test_they_sum_to_the_mean_logarithm_of_the_determinant(self, name):
        layer, params = SUBJECTS[name], draw_params(SUBJECTS[name], rng(1))
        xs = jnp.asarray(rng(2).normal(size=(60, 3)))
        found = self.spectrum(layer, params, xs, warmup=10)
        J = np.asarray(quick("jacobians", layer, params, xs))[10:]
        expected = np.linalg.slogdet(J)[1].mean()
        np.testing.assert_allclose(found.sum(), expected, rtol=1e-9)

    def test_nothing_depends_on_the_stride_the_pieces_or_the_batch(self):
        cell, params = SUBJECTS["lstm"], draw_params(SUBJECTS["lstm"], rng(1))
        xs = jnp.asarray(rng(3).normal(size=(120, 2, 3)))
        look = functools.partial(diagnostics.lyapunov_spectrum, cell, params)
        whole = look(xs, key=jax.random.key(0), warmup=24)
        assert_same(
            look(xs, key=jax.random.key(0), warmup=24, stride=3).exponents,
            whole.exponents,
            1e-7,
        )
        first = look(xs[:50], key=jax.random.key(0), warmup=24)
        rest = look(xs[50:], state=first.state)
        assert_same(rest, whole)
        one = look(xs[:, 1], key=jax.random.key(0), warmup=24)
        np.testing.assert_allclose(one.exponents, whole.exponents[1], rtol=1e-9)
        few = look(xs, key=jax.random.key(0), warmup=24, count=3)
        np.testing.assert_allclose(
            few.exponents, whole.exponents[:, :3], rtol=0, atol=0.1
        )

    def test_they_do_not_depend_on_the_order_of_units_or_on_the_basis(self):
        cell, params = Elman(6, activation=jnp.tanh), draw_params(Elman(6), rng(4))
        xs, order = jnp.asarray(rng(5).normal(size=(4000, 3))), rng(6).permutation(6)
        turned = {
            "input_kernel": params["input_kernel"][:, order],
            "recurrent_kernel": params["recurrent_kernel"][order][:, order],
            "bias": params["bias"][order],
        }
        np.testing.assert_allclose(
            self.spectrum(cell, turned, xs), self.spectrum(cell, params, xs), atol=2e-3
        )
        A, Q = (
            rng(7).normal(size=(5, 5)) / 2,
            np.linalg.qr(rng(8).normal(size=(5, 5)))[0],
        )
        kept = [
            self.spectrum(
                Linear(5), {"A": jnp.asarray(a)}, jnp.zeros((4000, 5)), warmup=1000
            )
            for a in (A, Q @ A @ Q.T)
        ]
        np.testing.assert_allclose(np.sort(kept[0]), np.sort(kept[1]), atol=3e-3)

    def test_of_one_unit_it_is_the_mean_logarithm_of_its_slope(self):
        cell = Elman(1)
        params = draw_params(cell, rng(9))
        xs = jnp.asarray(rng(10).normal(size=(500, 3)))
        _, _, h = jaxrnn.unroll(cell, params, xs, return_carries=True)
        slopes = np.log(
            np.abs(params["recurrent_kernel"][0, 0]) * (1 - np.asarray(h)[:, 0] ** 2)
        )
        np.testing.assert_allclose(
            self.spectrum(cell, params, xs, warmup=0), [slopes.mean()], rtol=1e-10
        )

    def test_an_lstms_state_is_h_and_c(self):
        """With forget bias 3 the leading exponent is near zero; the block of h alone
        says that all is gone in a step.
        """
        H, full, blocks = 32, [], []
        cell = LSTM(H, forget_bias=3.0)
        for seed in range(4):
            params = cell.init(jax.random.key(seed), 4, dtype=jnp.float64)
            xs = jnp.asarray(rng(seed).normal(size=(800, 4)))
            full.append(self.spectrum(cell, params, xs, count=1)[0])
            J = np.asarray(quick("jacobians", cell, params, xs))[80:, :H, :H]
            direction, growth = rng(0).normal(size=H), []
            for J_t in J:
                direction = J_t @ (direction / np.linalg.norm(direction))
                growth.append(np.log(np.linalg.norm(direction)))
            blocks.append(np.mean(growth[50:]))
        np.testing.assert_allclose(np.mean(full), -0.012, atol=0.012)
        np.testing.assert_allclose(np.mean(blocks), -1.617, atol=0.05)

    def test_vanishing_is_what_the_leading_exponent_says(self):
        """v_k falls at the rate of the leading exponent, to within what a finite
        sequence gives.
        """
        cell = Elman(32)
        params = cell.init(jax.random.key(0), 2, dtype=jnp.float64)
        xs = jnp.asarray(rng(11).normal(size=(1500, 2)))
        lags = gradient_lags(
            cell, params, xs, functools.partial(squares, weights_for(32))
        )
        fit = diagnostics.fit_decay(lags.log_norm, (50, 1400), key=jax.random.key(0))
        np.testing.assert_allclose(
            jnp.log(fit.beta), self.spectrum(cell, params, xs, count=1)[0], atol=0.01
        )


@pytest.mark.usefixtures("x64")
class TestDecay:
    def test_a_planted_rate_lies_in_its_interval(self):
        inside = 0
        for seed in range(20):
            random = rng(seed)
            lags, beta = np.arange(101)[:, None], 0.93
            rates = np.log(beta) + 0.004 * random.normal(size=(1, 64))
            # The batch's rates differ, so the mean of the norms decays a little more
            # slowly than their median rate.
            planted = jnp.asarray(lags * rates + 0.05 * random.normal(size=(101, 64)))
            fit = diagnostics.fit_decay(planted, (10, 60), key=jax.random.key(seed))
            middle = lags[10:61, 0].astype(float)
            truth = np.exp(
                np.polyfit(
                    middle, middle * np.log(beta) + (0.004 * middle) ** 2 / 2, 1
                )[0]
            )
            inside += bool(fit.low <= truth <= fit.high)
            np.testing.assert_allclose(fit.beta, truth, atol=3e-3)
        assert inside >= 16  # of an interval of 95 %, by 20 draws

    def test_a_straight_line_is_found_exactly(self):
        found = diagnostics.fit_decay(
            jnp.asarray(-2.0 - 0.3 * np.arange(30)), (5, 29), key=jax.random.key(0)
        )
        np.testing.assert_allclose(
            [found.beta, found.tau, found.intercept, found.residual],
            [np.exp(-0.3), 1 / 0.3, -2, 0],
            atol=1e-12,
        )
        assert np.isnan(found.low)
        growing = diagnostics.fit_decay(
            jnp.asarray(0.1 * np.arange(9)), (0, 8), key=jax.random.key(0)
        )
        assert growing.tau == np.inf

    def test_only_the_range_asked_for_is_fitted(self):
        log_v = np.where(
            np.arange(50) < 10, -2.0 * np.arange(50), -20 - 0.1 * (np.arange(50) - 10)
        )
        found = diagnostics.fit_decay(
            jnp.asarray(log_v), (10, 49), key=jax.random.key(0)
        )
        np.testing.assert_allclose(jnp.log(found.beta), -0.1, atol=1e-12)

    def test_a_zero_in_the_range_is_marked(self):
        log_v = jnp.asarray([0.0, -1.0, -2.0, -np.inf])
        assert np.isnan(
            diagnostics.fit_decay(log_v, (0, 3), key=jax.random.key(0)).beta
        )
        assert np.isfinite(
            diagnostics.fit_decay(log_v, (0, 2), key=jax.random.key(0)).beta
        )

    def test_memory_horizon(self):
        log_v = jnp.log(jnp.asarray([0.5, 1.0, 0.02, 0.008, 0.02, 0.001, 0.0]))
        assert diagnostics.memory_horizon(log_v) == 5
        assert diagnostics.memory_horizon(log_v, 0.3) == 2
        assert diagnostics.memory_horizon(log_v[:5]) == np.inf
        assert np.isnan(diagnostics.memory_horizon(jnp.full(3, -jnp.inf)))


@pytest.mark.usefixtures("x64")
class TestGates:
    def test_of_an_lstm_by_hand(self):
        cell, inputs = SUBJECTS["lstm"], draw("lstm", 10)
        found = quick(
            "gate_statistics",
            cell,
            inputs.params,
            inputs.xs,
            inputs.carry,
            mask=inputs.mask,
            resets=inputs.resets,
        )
        kept = {name: [] for name in "ifgo"}
        for b in range(3):
            carry = jax.tree.map(lambda a, b=b: a[b], inputs.carry)
            for t in range(T):
                if inputs.resets[t, b]:
                    carry = cell.initial_carry(inputs.params)
                raw = (
                    inputs.xs[t, b] @ inputs.params["input_kernel"]
                    + carry.h @ inputs.params["recurrent_kernel"]
                )
                raw = np.split(np.asarray(raw + inputs.params["bias"]), 4)
                if inputs.mask[t, b]:
                    for name, a in zip("ifgo", raw, strict=True):
                        kept[name].append(
                            np.tanh(a) if name == "g" else 1 / (1 + np.exp(-a))
                        )
                    carry, _ = cell(inputs.params, carry, inputs.xs[t, b])
        for name, values in kept.items():
            values = np.stack(values)
            low = -1.0 if name == "g" else 0.0
            np.testing.assert_allclose(found[name].mean, values.mean(0))
            np.testing.assert_allclose(
                found[name].left, (values <= low + 0.1 * (1 - low)).mean(0)
            )
            np.testing.assert_allclose(
                found[name].right, (values >= 1 - 0.1 * (1 - low)).mean(0)
            )
            if name == "f":
                np.testing.assert_allclose(
                    found[name].timescale, -1 / np.log(values).mean(0)
                )
            else:
                assert np.isnan(found[name].timescale).all()

    def test_chrono_keeps_for_as_long_as_it_says(self):
        cell = LSTM(64, forget_bias=initializers.Chrono(100.0))
        params = cell.init(jax.random.key(0), 2, dtype=jnp.float64)
        times = quick("gate_statistics", cell, params, jnp.zeros((50, 2)))[
            "f"
        ].timescale
        expected = 1 / np.log1p(np.exp(-np.asarray(params["bias"][64:128])))
        np.testing.assert_allclose(times, expected, rtol=0.2)
        assert 1 < times.min() < 10 < 80 < times.max() < 101

    def test_of_stacks_and_of_units_without_gates(self):
        layer, inputs = SUBJECTS["stack"], draw("stack", 11)
        found = quick("gate_statistics", layer, inputs.params, inputs.xs, inputs.carry)
        assert {name: set(gates) for name, gates in found.items()} == {
            "layer_0": set("ifgo"),
            "layer_1": set("rzn"),
        }
        _, ys = jaxrnn.unroll(
            layer.layers[0], inputs.params["layer_0"], inputs.xs, inputs.carry[0]
        )
        upper = quick(
            "gate_statistics",
            layer.layers[1],
            inputs.params["layer_1"],
            ys,
            inputs.carry[1],
        )
        assert_same(found["layer_1"]["z"].mean, upper["z"].mean)
        irnn, own = SUBJECTS["irnn"], draw("irnn", 12)
        _, h = jaxrnn.unroll(irnn, own.params, own.xs)
        dead = quick("gate_statistics", irnn, own.params, own.xs)["h"].left
        np.testing.assert_allclose(dead, (np.asarray(h) == 0).mean((0, 1)))
        with pytest.raises(NotImplementedError, match="define gate_values"):
            quick(
                "gate_statistics", SUBJECTS["user"], draw("user", 0).params, inputs.xs
            )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CAUSAL)
def test_what_a_layer_shows_is_a_function_of_its_carries(name):
    layer, inputs = SUBJECTS[name], draw(name, 13)
    _, ys, carries = jaxrnn.unroll(layer, inputs.params, inputs.xs, return_carries=True)
    assert_same(layer.output(inputs.params, carries, inputs.xs), ys)


def test_pictures(tmp_path):
    cells = {"elman": Elman(8), "gru": GRU(8)}
    xs = jnp.asarray(rng(0).normal(size=(30, 2, 3)), jnp.float32)
    curves, maps, spectra = {}, {}, {}
    for name, cell in cells.items():
        params = drawn_params(cell, 3)
        curves[name] = gradient_lags(cell, params, xs, jnp.sum).log_v
        maps[name] = quick("gradient_map", cell, params, xs, lambda y, _: jnp.sum(y))[
            ..., 0
        ]
        spectra[name] = diagnostics.lyapunov_spectrum(
            cell, params, xs[:, 0], key=jax.random.key(1)
        ).exponents
    plots = diagnostics.plots
    figures = {
        "decay": plots.decay_curves(curves, curves, title="decay"),
        "maps": plots.gradient_maps(maps),
        "spectra": plots.spectra(spectra),
        "truncation": plots.truncation_curves(
            {"elman": (np.array([1, 2, 4]), np.array([0.5, 0.1, 0.0]))}
        ),
        "training": plots.training_curves(
            [0, 10], np.stack([curves["elman"], curves["gru"]])
        ),
    }
    for name, figure in figures.items():
        figure.savefig(tmp_path / name)
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    lines = figures["decay"].axes[0].get_lines()
    np.testing.assert_allclose(
        lines[1].get_ydata(), (curves["gru"] - curves["gru"][0]) / np.log(10), rtol=1e-6
    )


@dataclasses.dataclass(frozen=True)
class Counter(jaxrnn.Cell):
    """A carry with an integer in it."""

    hidden_size: int = 3

    def init(self, key, input_size):
        return {"w": jnp.ones(())}

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return {
            "h": jnp.zeros((*batch_shape, 3)),
            "n": jnp.zeros((*batch_shape, 1), jnp.int32),
        }

    def step(self, params, carry, z):
        return {"h": jnp.tanh(carry["h"] * params["w"] + z), "n": carry["n"] + 1}

    def output(self, params, carry, x):
        return carry["h"]


XS = jnp.asarray(rng(0).normal(size=(5, 2, 3)), jnp.float32)
MISTAKES = {
    "lags beyond T": ({"lags": 6}, "lags must lie between 0 and the 5 steps"),
    "lags beyond at": ({"at": 1, "lags": 3}, "the 2 steps that lead to the loss"),
    "lags negative": ({"lags": -1}, "lags must lie between 0"),
    "lags no int": ({"lags": 2.0}, "lags must be an int or None"),
    "at beyond T": ({"at": 5}, "at must be one of the 5 steps"),
    "loss of a vector": (
        {"loss": lambda y: y.sum(-1)},
        "loss must return a real scalar",
    ),
    "loss of integers": (
        {"loss": lambda y: jnp.argmax(y)},
        "loss must return a real scalar",
    ),
    "no step": ({"xs": XS[:0]}, "the sequence has no step"),
    "two directions": ({"cell": jaxrnn.bidirectional(Elman(3))}, "no single direction"),
    "dropout": (
        {"cell": jaxrnn.stack(Elman(3), jaxrnn.dropout(0.5))},
        "draws random numbers",
    ),
    "integer carry": (
        {"cell": Counter()},
        r"carry\['n'\] is int32, through which no gradient flows",
    ),
    "mask of another shape": ({"mask": jnp.ones((2, 5), bool)}, "mask must have shape"),
}


@pytest.mark.usefixtures("plain_errors")
@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("instrument", ["gradient_lags", "parameter_lags"])
def test_mistakes_are_told(name, instrument):
    changes, message = MISTAKES[name]
    options = {"cell": Elman(3), "xs": XS, "loss": jnp.sum, **changes}
    cell = options.pop("cell")
    params = drawn_params(cell, 3)
    with pytest.raises((ValueError, TypeError), match=message):
        getattr(diagnostics, instrument)(cell, params, **options)


@pytest.mark.usefixtures("plain_errors")
def test_other_mistakes_are_told():
    cell = Elman(3)
    params, key = drawn_params(cell, 3), jax.random.key(0)
    look = functools.partial(diagnostics.lyapunov_spectrum, cell, params, XS)
    for options, message in (
        ({}, "key must be a key"),
        ({"key": key, "count": 4}, "count must be an int from 1 to 3"),
        ({"key": key, "warmup": 6}, "warmup must be an int from 0 to 5"),
        ({"key": key, "stride": 2}, "must be multiples of stride = 2"),
        ({"key": key, "stride": 0}, "stride must be an int from 1"),
        ({"key": key, "state": look(key=key).state}, "leave out carry and key"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            look(**options)
    logs = jnp.zeros((10, 2))
    for fit_range, message in (
        ((5, 5), "at least two"),
        ((0, 10), r"lags 0..9"),
        ((-1, 3), "at least two"),
        (3, "first and the last"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            diagnostics.fit_decay(logs, fit_range, key=key)
    with pytest.raises(TypeError, match="key must be a key"):
        diagnostics.fit_decay(logs, (0, 3), key=None)
    with pytest.raises(ValueError, match="level must lie between"):
        diagnostics.fit_decay(logs, (0, 3), key=key, level=1.0)
    with pytest.raises(ValueError, match="log_v must be"):
        diagnostics.memory_horizon(logs)
    with pytest.raises(ValueError, match="share must lie"):
        diagnostics.memory_horizon(logs[:, 0], 2.0)


def test_a_gradient_that_is_not_finite_is_marked():
    params = {"A": jnp.eye(3).at[0, 0].set(jnp.nan)}
    found = gradient_lags(Linear(3), params, XS, jnp.sum)
    assert np.isnan(found.log_norm[1:]).all()
    assert np.isfinite(found.log_norm[0]).all() or np.isnan(found.log_norm[0]).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("read", ["gradient_lags", "parameter_lags"])
def test_the_instruments_have_derivatives_themselves(read):
    layer, inputs = SUBJECTS["lstm"], draw("lstm", 14)
    weights = weights_for(4)

    @jax.jit
    def number(bias):
        params = {**inputs.params, "bias": bias}
        return (
            getattr(diagnostics, read)(
                layer, params, inputs.xs, functools.partial(squares, weights)
            )
            .log_norm[3]
            .sum()
        )

    bias, direction = inputs.params["bias"], jnp.asarray(rng(15).normal(size=16))
    step = 1e-6
    difference = (number(bias + step * direction) - number(bias - step * direction)) / (
        2 * step
    )
    np.testing.assert_allclose(
        jax.grad(number)(bias) @ direction, difference, rtol=1e-6
    )


def test_what_a_truncation_leaves_out_goes_on_where_floats_end():
    A = 0.5 * np.linalg.qr(rng(0).normal(size=(4, 4)))[0]
    xs = jnp.asarray(rng(1).normal(size=(400, 2, 4)), jnp.float32)
    found = parameter_lags(Linear(4), {"A": jnp.asarray(A, jnp.float32)}, xs, jnp.sum)
    last = np.asarray(found.log_rest)[[100, 140, 300]]
    assert np.isfinite(last).all()
    np.testing.assert_allclose(
        np.diff(last), [40 * np.log(0.5), 160 * np.log(0.5)], atol=3
    )


def test_one_element_whose_gradient_is_not_finite_is_not_averaged_away():
    cell = Elman(3)
    params = drawn_params(cell, 3)
    found = gradient_lags(cell, params, XS.at[1, 0, 0].set(jnp.nan), jnp.sum)
    assert np.isnan(found.log_v).all() or np.isnan(found.log_v[1:]).all()
    assert np.isfinite(found.log_norm[:, 1]).all()


@pytest.mark.usefixtures("plain_errors")
def test_a_spectrum_goes_on_only_from_a_state_that_fits():
    cell = Elman(3)
    params = drawn_params(cell, 3)
    state = diagnostics.lyapunov_spectrum(cell, params, XS, key=jax.random.key(0)).state
    with pytest.raises(ValueError, match="the carry of the state has shape"):
        diagnostics.lyapunov_spectrum(cell, params, XS[:, :1], state=state)
    with pytest.raises(ValueError, match="holds 3 directions"):
        diagnostics.lyapunov_spectrum(cell, params, XS, state=state, count=2)
