"""Inputs as `jax.lax.scan` takes them: pytrees, integers, flags, tokens, pictures."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import drawn_params

import jaxrnn
from jaxrnn import diagnostics

T, B, D, H, V = 9, 4, 3, 4, 7


@dataclasses.dataclass(frozen=True)
class Read(jaxrnn.Cell):
    """h_t = tanh(h_{t-1} U + E[token] + features W * flag)."""

    hidden_size: int
    feature_ndim: ClassVar = {"token": 0, "features": 1, "flag": 0}

    def init(self, key, input_size):
        e, w, u = jax.random.split(key, 3)
        return {
            "embedding": jax.random.normal(e, (V, self.hidden_size)),
            "kernel": jax.random.normal(w, (input_size, self.hidden_size)),
            "recurrent": jax.random.normal(u, (self.hidden_size,) * 2) / 2,
        }

    def project(self, params, x):
        read = x["features"] @ params["kernel"]
        return params["embedding"][x["token"]] + read * x["flag"][..., None].astype(
            read.dtype
        )

    def step(self, params, carry, z):
        return jnp.tanh(carry @ params["recurrent"] + z)


@dataclasses.dataclass(frozen=True)
class Picture(jaxrnn.Cell):
    """A convolution in each of two axes, with weights of two numbers."""

    channels: int
    size: tuple
    feature_ndim: ClassVar = 3

    def init(self, key, input_size):
        k, r = jax.random.split(key)
        return {
            "kernel": jax.random.normal(k, (input_size, self.channels)),
            "roll": jax.random.normal(r, (2, self.channels)),
        }

    def initial_carry(self, params, batch_shape=(), dtype=None):
        shape = (*batch_shape, *self.size, self.channels)
        return jnp.zeros(shape, dtype or params["kernel"].dtype)

    def project(self, params, x):
        return x @ params["kernel"]

    def step(self, params, carry, z):
        near = [
            jnp.roll(carry, 1, axis) * jnp.broadcast_to(w, carry.shape)
            for axis, w in zip((-3, -2), params["roll"], strict=True)
        ]
        return jnp.tanh(z + near[0] + near[1])

    def output_features(self, params, input_size):
        return self.channels


def read_inputs(key, lead=(T, B)):
    t, x, f, m, r = jax.random.split(key, 5)
    xs = {
        "token": jax.random.randint(t, lead, 0, V),
        "features": jax.random.normal(x, (*lead, D)),
        "flag": jax.random.bernoulli(f, 0.6, lead).astype(int),
    }
    flags = jax.random.bernoulli(m, 0.7, lead), jax.random.bernoulli(r, 0.2, lead)
    return xs, *flags


def looped(cell, params, xs, mask=None, resets=None):
    """The twin: `jax.lax.scan` over the cell's own methods."""
    mask_ = jnp.ones((T, B), bool) if mask is None else mask
    resets_ = jnp.zeros((T, B), bool) if resets is None else resets

    def rows(flags, leaf):
        return flags.reshape(flags.shape + (1,) * (leaf.ndim - flags.ndim))

    def step(carry, now):
        x, valid, new = now
        carry = jnp.where(rows(new, carry), 0.0, carry)
        after = cell.step(params, carry, cell.project(params, x))
        after = jnp.where(rows(valid, after), after, carry)
        return after, jnp.where(rows(valid, after), after, 0.0)

    return jax.lax.scan(step, cell.initial_carry(params, (B,)), (xs, mask_, resets_))


def both(function, params):
    """Values and gradients of a function of params."""

    def loss(params):
        out = function(params)
        return sum(jnp.sin(leaf + 0.3).sum() for leaf in jax.tree.leaves(out)), out

    (_, out), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return out, gradient


def close(a, b, tolerance=1e-12):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def subject(name):
    key = jax.random.key(3)
    xs, mask, resets = read_inputs(jax.random.key(4))
    cell = Read(H) if name == "tree" else Picture(2, (3, 2))
    if name == "pictures":
        xs = jax.random.normal(jax.random.key(5), (T, B, 3, 2, D))
    return cell, cell.init(key, D), xs, mask, resets


ENGINES = [
    None,
    jaxrnn.Scan(chunk=3, save="carries"),
    jaxrnn.Scan(save="everything"),
    jaxrnn.Checkpoint(),
]


@pytest.mark.parametrize("name", ["tree", "pictures"])
@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_engines_are_lax_scan_over_trees_and_pictures(name, engine):
    with jax.enable_x64(True):
        cell, params, xs, mask, resets = subject(name)
        ours = both(
            lambda p: jaxrnn.unroll(
                cell, p, xs, mask=mask, resets=resets, engine=engine
            ),
            params,
        )
        close(ours, both(lambda p: looped(cell, p, xs, mask, resets), params))


@pytest.mark.parametrize("name", ["tree", "pictures"])
def test_streaming_with_resets_is_unroll(name):
    with jax.enable_x64(True):
        cell, params, xs, _, resets = subject(name)
        for layer, p in (
            (cell, params),
            (jaxrnn.stack(cell), {"layer_0": params}),
        ):
            carry, ys = layer.initial_carry(p, (B,)), []
            for t in range(T):
                x = jax.tree.map(lambda leaf: leaf[t], xs)  # noqa: B023
                carry, y = layer(p, carry, x, reset=resets[t])
                ys.append(y)
            close((carry, jnp.stack(ys)), jaxrnn.unroll(layer, p, xs, resets=resets))


@pytest.mark.parametrize("name", ["tree", "pictures"])
def test_padding_of_any_dtype_has_no_effect(name):
    with jax.enable_x64(True):
        cell, params, xs, mask, _ = subject(name)

        def padded(leaf):
            bad = jnp.nan if jnp.issubdtype(leaf.dtype, jnp.inexact) else 10**6
            rows = mask.reshape(mask.shape + (1,) * (leaf.ndim - 2))
            return jnp.where(rows, leaf, jnp.asarray(bad, leaf.dtype))

        def run(xs):
            return both(lambda p: jaxrnn.unroll(cell, p, xs, mask=mask), params)

        close(run(xs), run(jax.tree.map(padded, xs)))


@pytest.mark.parametrize("name", ["tree", "pictures"])
def test_layers_take_what_their_first_part_takes(name):
    with jax.enable_x64(True):
        cell, params, xs, mask, resets = subject(name)
        flags = {"mask": mask, "resets": resets}
        forward, back = (
            jaxrnn.unroll(cell, params, xs, mask=mask),
            jaxrnn.unroll(cell, params, xs, mask=mask, reverse=True),
        )
        layer = jaxrnn.bidirectional(cell)
        _, ys = jaxrnn.unroll(
            layer, {"forward": params, "backward": params}, xs, mask=mask
        )
        close(ys, jnp.concatenate([forward[1], back[1]], axis=-1))
        noisy = jaxrnn.zoneout(cell, 0.3)
        out = jaxrnn.unroll(noisy, params, xs, key=jax.random.key(1), **flags)
        assert out[1].shape == forward[1].shape
        kept = jaxrnn.unroll(jaxrnn.inference(noisy), params, xs, **flags)
        assert kept[1].shape == forward[1].shape
        top = jaxrnn.stack(
            cell,
            jaxrnn.dropout(0.5),
            jaxrnn.Elman(H) if name == "tree" else Picture(1, (3, 2)),
        )
        weights = drawn_params(top, D)
        _, ys = jaxrnn.unroll(top, weights, xs, key=jax.random.key(2), **flags)
        assert ys.shape[:2] == (T, B)
        assert ys.ndim == forward[1].ndim


def test_a_stack_says_where_axes_change_their_meaning(plain_errors):
    one_hot = functools.partial(jax.nn.one_hot, num_classes=D)
    pictures = jaxrnn.stack(Picture(2, (3, 2)))
    xs = jnp.ones((T, B, 3, 2, D))
    params = drawn_params(pictures, D)["layer_0"]
    layers = jaxrnn.layers
    gru, conv, shift = jaxrnn.GRU(H), layers.causal_conv(2), layers.shift(2)
    above = {layer: drawn_params(layer, 2) for layer in (gru, conv, shift)}
    for layer, words in (
        (gru, r"stack: GRU has feature_ndim = 1, .* 2 axes of time and batch"),
        (conv, r"CausalConv: the inputs must be vectors .* \(9, 4, 3, 2, 2\)"),
        (shift, r"Shift: the inputs must be vectors"),
    ):
        with pytest.raises(ValueError, match=words):
            jaxrnn.unroll(
                jaxrnn.stack(*pictures.layers, layer),
                {"layer_0": params, "layer_1": above[layer]},
                xs,
            )
    with pytest.raises(ValueError, match=r"stack: GRU .*feature_ndim=0\) does for"):
        jaxrnn.unroll(
            jaxrnn.stack(layers.apply(one_hot), gru),
            {"layer_0": {}, "layer_1": drawn_params(gru, D)},
            jnp.ones((T, B), int),
        )


def test_truncation_cuts_trees():
    with jax.enable_x64(True):
        cell, params, xs, mask, resets = subject("tree")

        def windows(p):
            carry, outputs = cell.initial_carry(p, (B,)), []
            for start in range(0, T, 2):
                part = jax.tree.map(
                    lambda leaf: leaf[start : start + 2],  # noqa: B023
                    (xs, mask, resets),
                )
                carry, ys = jaxrnn.unroll(
                    cell,
                    p,
                    part[0],
                    jax.lax.stop_gradient(carry) if start else carry,
                    mask=part[1],
                    resets=part[2],
                )
                outputs.append(ys)
            return carry, jnp.concatenate(outputs)

        ours = both(
            lambda p: jaxrnn.truncated_unroll(
                cell, p, xs, window=2, mask=mask, resets=resets
            ),
            params,
        )
        close(ours, both(windows, params))


def test_tbptt_takes_trees():
    with jax.enable_x64(True):
        cell, params, xs, mask, resets = subject("tree")

        def losses(params, carry, window):
            _, ys, carries = jaxrnn.unroll(
                cell,
                params,
                window.inputs,
                carry,
                mask=window.mask,
                resets=window.resets,
                return_carries=True,
            )
            return jnp.square(ys).sum(-1), carries

        tbptt = jaxrnn.TBPTT(losses, cell.initial_carry, k1=3, k2=T)
        sequence = jaxrnn.Window(xs, None, mask, resets)
        state = tbptt.init(params, sequence, (B,))
        loss, gradient, _ = tbptt.value_and_grad(params, sequence, state)
        want = jax.value_and_grad(
            lambda p: (
                jnp.where(
                    mask[..., None], looped(cell, p, xs, mask, resets)[1] ** 2, 0.0
                ).sum()
                / mask.sum(dtype=float)
            )
        )(params)
        close((loss, gradient), want)


def test_diagnostics_take_trees():
    with jax.enable_x64(True):
        cell, params, xs, mask, _ = subject("tree")
        spectrum = diagnostics.lyapunov_spectrum(
            cell, params, xs, mask=mask, key=jax.random.key(0)
        )
        carry, total = cell.initial_carry(params, (B,)), 0.0
        for t in range(T):
            x = jax.tree.map(lambda leaf: leaf[t], xs)  # noqa: B023
            jacobian = jax.vmap(
                jax.jacobian(lambda s, x: cell.step(params, s, cell.project(params, x)))
            )(carry, x)
            sizes = jnp.linalg.slogdet(jacobian)[1]
            total = total + jnp.where(mask[t], sizes, 0.0)
            new = cell.step(params, carry, cell.project(params, x))
            carry = jnp.where(mask[t][:, None], new, carry)
        # The exponents add up to the mean logarithm of the volume.
        close(spectrum.exponents.sum(-1), total / mask.sum(0, dtype=total.dtype), 1e-10)


def test_an_array_and_its_tree_are_the_same():
    """A vector in a dict is the same sequence as the vector itself."""
    with jax.enable_x64(True):

        @dataclasses.dataclass(frozen=True)
        class Boxed(jaxrnn.Elman):
            def project(self, params, x):
                return super().project(params, x["x"])

        xs = jax.random.normal(jax.random.key(0), (T, B, D))
        params = drawn_params(jaxrnn.Elman(H), D)
        close(
            both(lambda p: jaxrnn.unroll(Boxed(H), p, {"x": xs}), params),
            both(lambda p: jaxrnn.unroll(jaxrnn.Elman(H), p, xs), params),
        )


def test_vmap_over_trees():
    with jax.enable_x64(True):
        cell, params, xs, mask, resets = subject("tree")
        mapped = jax.vmap(
            lambda x, m, r: jaxrnn.unroll(cell, params, x, mask=m, resets=r),
            in_axes=1,
            out_axes=(0, 1),
        )(xs, mask, resets)
        close(mapped, jaxrnn.unroll(cell, params, xs, mask=mask, resets=resets))


READ = Read(H)
TREE, *_ = read_inputs(jax.random.key(4))
REFUSED = {
    "another tree": (
        lambda: {"token": TREE["token"]},
        ValueError,
        r"feature_ndim = \{.*\} must be a number, or a pytree prefix .* a dict",
    ),
    "T differs": (
        lambda: TREE | {"features": TREE["features"][1:]},
        ValueError,
        r"must share time and batch axes .* xs\['features'\] has \(8, 4\)",
    ),
    "a rank too many": (
        lambda: TREE | {"token": TREE["token"][..., None]},
        ValueError,
        r"must share time and batch axes .*\(9, 4, 1\)",
    ),
    "a rank too few": (
        lambda: TREE | {"features": TREE["features"][:, 0, 0]},
        ValueError,
        r"must share|time first",
    ),
    "a list": (
        lambda: TREE | {"token": TREE["token"].tolist()},
        ValueError,
        r"feature_ndim|must be an array",
    ),
    "no array": (dict, TypeError, r"which holds no array: T is then not known"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_inputs_that_do_not_fit_are_refused_in_words(case, plain_errors):
    xs, kind, words = REFUSED[case]
    params = drawn_params(READ, D)
    with pytest.raises((kind, TypeError), match=words):
        jaxrnn.unroll(READ, params, xs())


@dataclasses.dataclass(frozen=True)
class Drawing(jaxrnn.Cell):
    """A cell whose inputs are random keys, one for each step, and vectors."""

    hidden_size: int
    feature_ndim: ClassVar = (0, 1)

    def init(self, key, input_size):
        return {"kernel": jax.random.normal(key, (input_size, self.hidden_size))}

    def project(self, params, x):
        keys, vectors = x
        drawn = jax.vmap(jax.random.normal)(keys.reshape(-1)).reshape(keys.shape)
        return vectors @ params["kernel"] + drawn[..., None]

    def step(self, params, carry, z):
        return jnp.tanh(0.5 * carry + z)


def test_padding_of_random_keys_is_replaced_like_any_other():
    with jax.enable_x64(True):
        cell, (tree, mask, resets) = Drawing(H), read_inputs(jax.random.key(4))
        xs = jax.random.split(jax.random.key(5), (T, B)), tree["features"]
        params = drawn_params(cell, D)
        flags = {"mask": mask, "resets": resets}
        for row in (mask, mask.at[:, 1].set(False)):
            flags["mask"] = row
            ours = both(lambda p: jaxrnn.unroll(cell, p, xs, **flags), params)
            close(ours, both(lambda p: looped(cell, p, xs, **flags), params))


def test_a_feature_ndim_that_counts_no_axes_is_refused_in_words(plain_errors):
    for ndim in (-1, "1", 1.0, {"token": 0, "features": True, "flag": 0}):
        kind = dataclasses.make_dataclass("Odd", [], bases=(Read,), frozen=True)
        kind.feature_ndim = ndim
        cell = kind(H)
        with pytest.raises(ValueError, match="feature_ndim must hold numbers of axes"):
            jaxrnn.unroll(cell, drawn_params(cell, D), TREE)


def test_a_reset_that_does_not_fit_is_refused_in_words(plain_errors):
    gru = jaxrnn.GRU(H)
    weights, params = (drawn_params(c, D) for c in (gru, READ))
    for layer, p, xs in (
        (READ, params, TREE),
        (gru, weights, jnp.ones((T, B, D))),
        (jaxrnn.stack(gru), {"layer_0": weights}, jnp.ones((T, B, D))),
    ):
        x = jax.tree.map(lambda leaf: leaf[0], xs)
        carry = layer.initial_carry(p, (B,))
        with pytest.raises(
            ValueError, match=rf"reset must have shape \(\*B\) = \({B},"
        ):
            layer(p, carry, x, reset=jnp.ones(B + 1, bool))
        with pytest.raises(TypeError, match=r"reset must be bool"):
            layer(p, carry, x, reset=jnp.ones(B))
        x, carry = jax.tree.map(lambda leaf: leaf[0], (x, carry))
        again = jax.tree.map(lambda leaf: leaf + 1, carry)
        close(layer(p, again, x, reset=True), layer(p, carry, x))


def test_built_in_cells_say_that_they_take_one_array(plain_errors):
    cell = jaxrnn.GRU(H)
    params = drawn_params(cell, D)
    with pytest.raises(TypeError, match=r"GRU: xs must be one array .* a dict"):
        jaxrnn.unroll(cell, params, {"x": jnp.ones((T, B, D))})
    with pytest.raises(ValueError, match=r"most built-in cells .* take one array"):
        jaxrnn.unroll(cell, params, TREE)
    with pytest.raises(TypeError, match=r"one_hot"):
        jaxrnn.unroll(cell, params, jnp.ones((T, B), int))
    layer = jaxrnn.residual(Read(D))
    params = drawn_params(layer, D)
    with pytest.raises(TypeError, match=r"residual: xs must be one array"):
        jaxrnn.unroll(layer, params, TREE)


def test_a_mask_of_pictures_without_their_axes_counted_names_feature_ndim(plain_errors):
    """Otherwise the sides of a picture count as batch axes; a mask has none of them."""
    cell = jaxrnn.GRU(4)
    params, xs = cell.init(jax.random.key(0), 3), jnp.zeros((5, 2, 6, 6, 3))
    with pytest.raises(
        ValueError, match=r"mask must have shape .*\(5, 2\); .*feature_"
    ):
        jaxrnn.unroll(cell, params, xs, mask=jnp.ones((5, 2), bool))
