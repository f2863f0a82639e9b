"""Data that is the same at every step and is no parameter: `unroll(context=)`."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import drawn_params

import jaxrnn
import jaxrnn.diagnostics
from jaxrnn.extending import ContextCell

T, B, D, H, S, M, V = 6, 4, 3, 4, 5, 2, 7


@dataclasses.dataclass(frozen=True)
class Attend(jaxrnn.Cell):
    """A decoder that reads a memory with additive attention (Bahdanau et al. 2015)."""

    hidden_size: int
    takes_context: ClassVar = True

    def init(self, key, input_size):
        shapes = {
            "input": (input_size, self.hidden_size),
            "recurrent": (self.hidden_size, self.hidden_size),
            "read": (M, self.hidden_size),
            "query": (self.hidden_size, M),
            "score": (M,),
            "out": (M, self.hidden_size),
        }
        keys = jax.random.split(key, len(shapes))
        return {
            name: jax.random.normal(k, shape) / 2
            for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def read(self, params, h, context):
        memory, valid = context["memory"], context["valid"]
        query = (h @ params["query"])[..., None, :]
        score = jnp.einsum("...m,m->...", jnp.tanh(memory + query), params["score"])
        share = jax.nn.softmax(jnp.where(valid, score, -1e9), axis=-1)
        return jnp.einsum("...s,...sm->...m", share, memory)

    def project(self, params, x, context):
        return x @ params["input"]

    def step(self, params, carry, z, context):
        read = self.read(params, carry, context)
        return jnp.tanh(z + carry @ params["recurrent"] + read @ params["read"])

    def output(self, params, carry, x, context):
        return carry + self.read(params, carry, context) @ params["out"]


@dataclasses.dataclass(frozen=True)
class Drifting(jaxrnn.LinearCell):
    """s_t = a s_{t-1} + x_t W, with the decay a of each sequence in the context."""

    hidden_size: int
    takes_context: ClassVar = True

    def init(self, key, input_size):
        return {"kernel": jax.random.normal(key, (input_size, self.hidden_size))}

    def affine(self, params, z, context):
        return jax.nn.sigmoid(context["memory"][..., 0, :1] + 0 * z[..., :1]), (
            z @ params["kernel"]
        )

    def step(self, params, carry, z, context):
        a, b = self.affine(params, z, context)
        return a * carry + b


class Linear(Drifting):
    """As `Drifting`, with the step of `LinearCell`: a * carry + b from `affine`."""

    step = jaxrnn.LinearCell.step


@pytest.fixture(autouse=True)
def _ranks():
    """A context ``(B, ...)`` broadcasts against outputs of all steps, (T, B, ...)."""
    with jax.numpy_rank_promotion("allow"), jax.enable_x64(True):
        yield


def given(key=0):
    x, m, v, k, r = jax.random.split(jax.random.key(key), 5)
    valid = jax.random.bernoulli(v, 0.7, (B, S)).at[:, 0].set(True)
    context = {"memory": jax.random.normal(m, (B, S, M)), "valid": valid}
    flags = {
        "mask": jax.random.bernoulli(k, 0.7, (T, B)).at[0].set(True),
        "resets": jax.random.bernoulli(r, 0.3, (T, B)),
    }
    return jax.random.normal(x, (T, B, D)), context, flags


def looped(cell, params, xs, context, mask, resets):
    """The twin: `jax.lax.scan` over the cell's own methods, row by row."""

    def row(xs, context, mask, resets):
        def step(h, now):
            x, valid, new = now
            h = jnp.where(new, 0.0, h)
            after = cell.step(params, h, cell.project(params, x, context), context)
            h = jnp.where(valid, after, h)
            y = cell.output(params, h, x, context)
            return h, jnp.where(valid, y, 0.0)

        return jax.lax.scan(step, jnp.zeros(H), (xs, mask, resets))

    return jax.vmap(row, (1, 0, 1, 1), (0, 1))(xs, context, mask, resets)


def both(function, *args):
    def loss(*args):
        out = function(*args)
        return sum(jnp.sin(leaf + 0.3).sum() for leaf in jax.tree.leaves(out)), out

    argnums = tuple(range(len(args)))
    return jax.jit(jax.grad(loss, argnums, has_aux=True))(*args)


def close(a, b, tolerance=1e-12):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


ENGINES = [
    None,
    jaxrnn.Scan(chunk=3, save="carries"),
    jaxrnn.Scan(save="everything"),
    jaxrnn.Checkpoint(),
]


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_attention_over_a_memory_is_the_loop(engine):
    cell, (xs, context, flags) = Attend(H), given()
    params = drawn_params(cell, D)

    def run(unrolled):
        def function(params, xs, memory):
            return unrolled(params, xs, context | {"memory": memory})

        return both(function, params, xs, context["memory"])

    close(
        run(
            lambda p, x, c: jaxrnn.unroll(cell, p, x, context=c, engine=engine, **flags)
        ),
        run(lambda p, x, c: looped(cell, p, x, c, **flags)),
    )


@pytest.mark.parametrize("kind", [Drifting, Linear])
def test_linear_cells_take_a_context(kind):
    cell, (xs, context, flags) = kind(H), given()
    memory = context["memory"][..., :1]
    params = drawn_params(cell, D)
    engines = [None, jaxrnn.Scan()] + [jaxrnn.Associative(chunk=2)] * (kind is Linear)
    results = [
        both(
            lambda p, x, m: jaxrnn.unroll(
                cell,
                p,
                x,
                context={"memory": m},
                engine=engine,  # noqa: B023
                **flags,
            ),
            params,
            xs,
            memory,
        )
        for engine in engines
    ]

    def by_hand(p, x, m):
        decay = jax.nn.sigmoid(m[:, 0, :1])

        def step(s, now):
            x, valid, new = now
            s = jnp.where(new[:, None], 0.0, s)
            s = jnp.where(valid[:, None], decay * s + x @ p["kernel"], s)
            return s, jnp.where(valid[:, None], s, 0.0)

        flag = (flags["mask"], flags["resets"])
        return jax.lax.scan(step, jnp.zeros((B, H)), (x, *flag))

    for result in results:
        close(result, both(by_hand, params, xs, memory))


def test_streaming_stacks_and_context_cells_are_unroll():
    cell, (xs, context, flags) = Attend(H), given()
    params = drawn_params(cell, D)
    resets = flags["resets"]
    want = jaxrnn.unroll(cell, params, xs, context=context, resets=resets)
    bound = ContextCell(cell), (params, context)
    close(jaxrnn.unroll(*bound, xs, resets=resets), want)
    for layer, p in ((cell, params), (jaxrnn.stack(cell), {"layer_0": params})):
        carry, ys, step = layer.initial_carry(p, (B,)), [], jax.jit(layer)
        for x, reset in zip(xs, resets, strict=True):
            carry, y = step(p, carry, x, reset=reset, context=context)
            ys.append(y)
        close(jnp.stack(ys), want[1])
    layer = jaxrnn.stack(jaxrnn.GRU(D), cell)
    weights = drawn_params(layer, D) | {"layer_1": params}
    lower = jaxrnn.unroll(jaxrnn.GRU(D), weights["layer_0"], xs, mask=flags["mask"])
    close(
        jaxrnn.unroll(layer, weights, xs, context=context, mask=flags["mask"])[1],
        jaxrnn.unroll(cell, params, lower[1], context=context, mask=flags["mask"])[1],
    )


def test_noise_and_truncation_reach_a_cell_with_context():
    cell, (xs, context, flags) = Attend(H), given()
    params = drawn_params(cell, D)
    noisy = jaxrnn.zoneout(cell, 0.0)
    close(
        jaxrnn.unroll(
            noisy, params, xs, context=context, key=jax.random.key(0), **flags
        ),
        jaxrnn.unroll(cell, params, xs, context=context, **flags),
    )

    def cut(p, context):
        return jaxrnn.truncated_unroll(cell, p, xs, context=context, window=2, **flags)

    def by_hand(p, context):
        carry, outputs = jnp.zeros((B, H)), []
        for start in range(0, T, 2):
            at = slice(start, start + 2)
            carry, ys = jaxrnn.unroll(
                cell,
                p,
                xs[at],
                jax.lax.stop_gradient(carry),
                context=context,
                mask=flags["mask"][at],
                resets=flags["resets"][at],
            )
            outputs.append(ys)
        return carry, jnp.concatenate(outputs)

    def run(f):
        return both(
            lambda p, m: f(p, context | {"memory": m}), params, context["memory"]
        )

    close(run(cut), run(by_hand))


def test_a_linear_cell_with_context_and_noise_is_linear():
    layer, (xs, context, flags) = jaxrnn.layers.state_noise(Linear(H), 0.3), given()
    params = drawn_params(layer, D)
    flags |= {"key": jax.random.key(2), "context": context}
    steps, joined = (
        both(lambda p, e=e: jaxrnn.unroll(layer, p, xs, engine=e, **flags), params)
        for e in (jaxrnn.Scan(), jaxrnn.Associative(2))
    )
    close(joined, steps)


def test_tbptt_hands_the_context_to_every_window():
    cell, (xs, context, flags) = Attend(H), given()
    params = drawn_params(cell, D)

    def losses(params, carry, window):
        _, ys, carries = jaxrnn.unroll(
            cell,
            params,
            window.inputs,
            carry,
            context=window.context,
            mask=window.mask,
            resets=window.resets,
            return_carries=True,
        )
        return jnp.square(ys).sum(-1), carries

    tbptt = jaxrnn.TBPTT(losses, cell.initial_carry, k1=2, k2=T)
    sequence = jaxrnn.Window(xs, None, **flags, context=context)
    state = tbptt.init(params, sequence, (B,))
    loss, gradient, _ = jax.jit(tbptt.value_and_grad)(params, sequence, state)
    whole = jax.value_and_grad(
        lambda p: (
            jnp.square(jaxrnn.unroll(cell, p, xs, context=context, **flags)[1]).sum()
            / flags["mask"].sum(dtype=float)
        )
    )
    want = jax.jit(whole)(params)
    close((loss, gradient), want)
    wrong = sequence._replace(context={"memory": context["memory"][1:]})
    with pytest.raises(ValueError, match=r"TBPTT: the context must be arrays"):
        tbptt.value_and_grad(params, wrong, state)


def test_rows_without_a_valid_step_may_hold_anything():
    cell, (xs, context, flags) = Attend(H), given()
    params = drawn_params(cell, D)
    mask = flags["mask"].at[:, 1].set(False)

    def loss(params, memory):
        given = {"mask": mask, "context": context | {"memory": memory}}
        found = [f(cell, params, xs, **given) for f in (jaxrnn.unroll, last_output)]
        return sum(jnp.sin(a + 0.3).sum() for a in jax.tree.leaves(found)), found

    last_output, run = jaxrnn.last_output, jax.jit(jax.grad(loss, has_aux=True))
    memory = context["memory"]
    close(run(params, memory), run(params, memory.at[1].set(jnp.nan)))


def test_vmap_maps_the_context():
    cell, (xs, context, flags) = Attend(H), given()
    params = drawn_params(cell, D)
    mapped = jax.vmap(
        lambda x, c, m: jaxrnn.unroll(cell, params, x, context=c, mask=m),
        in_axes=(1, 0, 1),
        out_axes=(0, 1),
    )(xs, context, flags["mask"])
    close(
        mapped,
        jaxrnn.unroll(cell, params, xs, context=context, mask=flags["mask"]),
    )


def test_beam_search_streams_over_a_memory():
    """A beam with room for every hypothesis finds the best of all sequences."""
    with jax.enable_x64(False):
        _compare_beam_search()


def _compare_beam_search():
    cell, (_, context, _) = Attend(H), given()
    params = cell.init(jax.random.key(1), V)
    readout = jax.random.normal(jax.random.key(2), (H, V)) * 2

    def step(carry, token):
        carry, y = cell(params, carry, jax.nn.one_hot(token, V), context=context)
        return carry, y @ readout

    start = jnp.zeros(B, jnp.int32)
    beams = jaxrnn.beam_search(
        step, cell.initial_carry(params, (B,)), start, end=1, width=V * V, length=2
    )
    pairs = jnp.stack(jnp.meshgrid(jnp.arange(V), jnp.arange(V)), -1).reshape(-1, 2)

    def score(pair):
        tokens = jnp.stack([start, jnp.full(B, pair[0])])
        _, ys = jaxrnn.unroll(cell, params, jax.nn.one_hot(tokens, V), context=context)
        logp = jax.nn.log_softmax(ys @ readout)
        first, second = logp[0, :, pair[0]], logp[1, :, pair[1]]
        return first + jnp.where(pair[0] == 1, 0.0, second)

    best = jax.vmap(score)(pairs).max(0)
    close(beams.scores[:, 0], best.astype(beams.scores.dtype), 1e-5)


def test_explain_shows_a_cell_with_context():
    cell, (xs, context, flags) = Attend(H), given()
    params = drawn_params(cell, D)
    row = jaxrnn.explain(cell, params, xs, context=context, **flags).rows[0]
    assert row.error is None
    assert "Attend" in str(jaxrnn.explain(cell, params, xs, context=context))


@dataclasses.dataclass(frozen=True)
class Forgetful(Attend):
    """Its methods do not take the context that it declares."""

    def step(self, params, carry, z):
        return carry


def test_what_a_context_cell_holds_is_said(plain_errors):
    with pytest.raises(TypeError, match="GRU takes no context: use it as it is"):
        ContextCell(jaxrnn.GRU(H))
    cell = ContextCell(Attend(H))
    with pytest.raises(TypeError, match=r"\(cell\.init\(key, input_size\), context\)"):
        cell.init(jax.random.key(0), D)
    params = drawn_params(Attend(H), D)
    with pytest.raises(TypeError, match=r"its params are a pair, .* got a dict"):
        jaxrnn.unroll(cell, params, jnp.ones((T, B, D)))


def test_a_missing_or_unused_context_is_refused_in_words(plain_errors):
    cell, (xs, context, _) = Attend(H), given()
    params = drawn_params(cell, D)
    carry = cell.initial_carry(params, (B,))
    gru = jaxrnn.GRU(H)
    weights = drawn_params(gru, D)
    with pytest.raises(ValueError, match=r"Attend takes a context .* pass context="):
        jaxrnn.unroll(cell, params, xs)
    with pytest.raises(ValueError, match=r"Attend takes a context .* pass context="):
        cell(params, carry, xs[0])
    with pytest.raises(ValueError, match=r"a context was given, but GRU takes none"):
        jaxrnn.unroll(gru, weights, xs, context=context)
    with pytest.raises(ValueError, match=r"but Stack takes none"):
        jaxrnn.unroll(jaxrnn.stack(gru), {"layer_0": weights}, xs, context=context)
    short = context | {"memory": context["memory"][1:]}
    with pytest.raises(ValueError, match=r"context\['memory'\] .* batch axes of xs"):
        jaxrnn.unroll(cell, params, xs, context=short)
    for layer, p, s in (
        (cell, params, carry),
        (jaxrnn.stack(cell), {"layer_0": params}, (carry,)),
    ):
        with pytest.raises(ValueError, match=r"context\['memory'\] .* batch axes of"):
            layer(p, s, xs[0], context=short)
    with pytest.raises(TypeError, match=r"context\['memory'\] .* strings"):
        jaxrnn.unroll(cell, params, xs, context={"memory": "text"})
    with pytest.raises(TypeError, match=r"Associative: Attend is not linear"):
        jaxrnn.unroll(cell, params, xs, context=context, engine=jaxrnn.Associative())
    for measure in (
        lambda: jaxrnn.diagnostics.jacobians(cell, params, xs),
        lambda: jaxrnn.diagnostics.lyapunov_spectrum(
            cell, params, xs, key=jax.random.key(0)
        ),
    ):
        with pytest.raises(
            ValueError, match=r"Attend takes a context .* pass context="
        ):
            measure()
    with pytest.raises(TypeError, match=r"Forgetful.step fails on"):
        jaxrnn.unroll(Forgetful(H), params, xs, context=context)
