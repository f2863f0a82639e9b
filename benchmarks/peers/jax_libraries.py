"""Peers on JAX: flax linen, haiku, equinox and keras, each with its own recurrent
layer, its own layout and our weights.

A mapping takes weights in jaxrnn's layout: gates i, f, g, o (LSTM) and r, z, n (GRU),
    kernels (in, out).
"""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp

import jaxrnn

from ..harness.workload import GATES, Work
from .adapters import JaxModel, SkipEntryError, require


def flax(work: Work, time_major: bool) -> JaxModel:
    """``flax.linen.RNN`` over OptimizedLSTMCell, GRUCell or SimpleCell."""
    nn = require("flax.linen")
    cell = {"LSTM": nn.OptimizedLSTMCell, "GRU": nn.GRUCell, "Elman": nn.SimpleCell}[
        work.kind
    ]
    layer = nn.RNN(cell(work.shape.H), time_major=time_major)
    return JaxModel(
        forward=layer.apply,
        mapping=lambda weights: {"params": {"cell": _flax_weights(work.kind, weights)}},
        batch_first=not time_major,
    )


def _flax_weights(kind: str, weights: dict) -> dict:
    """One dense layer per gate; an LSTM's bias stands on h, a GRU's on x and for n
    on h too.
    """
    W, U, b = (
        jnp.split(weights[k], GATES[kind], -1)
        for k in ("input_kernel", "recurrent_kernel", "bias")
    )
    if kind == "Elman":
        return {"i": {"kernel": W[0], "bias": b[0]}, "h": {"kernel": U[0]}}
    cell = {}
    for gate, w, u, bias in zip(
        "ifgo" if kind == "LSTM" else "rzn", W, U, b, strict=True
    ):
        cell[f"i{gate}"], cell[f"h{gate}"] = {"kernel": w}, {"kernel": u}
        cell[f"{'h' if kind == 'LSTM' else 'i'}{gate}"]["bias"] = bias
    if kind == "GRU":
        cell["hn"]["bias"] = weights["recurrent_bias"]
    return cell


def haiku(work: Work) -> JaxModel:
    """``haiku.dynamic_unroll`` over LSTM, GRU (reset before) or VanillaRNN (relu)."""
    hk = require("haiku")
    H, B = work.shape.H, work.shape.B
    core = {"LSTM": hk.LSTM, "GRU": hk.GRU, "Elman": hk.VanillaRNN}[work.kind]

    def network(xs):
        layer = core(H)
        return hk.dynamic_unroll(layer, xs, layer.initial_state(B))[0]

    forward = hk.without_apply_rng(hk.transform(network)).apply
    if work.kind == "LSTM":
        return JaxModel(forward=forward, mapping=_haiku_lstm)
    if work.kind == "GRU":
        note = (
            "reset before: another function than the other GRUs, of as many operations"
        )
        return JaxModel(
            forward=forward,
            mapping=_haiku_gru,
            reference=jaxrnn.GRU(H, reset_after=False),
            note=note,
        )
    return JaxModel(
        forward=forward,
        mapping=_haiku_vanilla,
        reference=jaxrnn.Elman(H, activation=jax.nn.relu),
        note="relu instead of tanh, two biases: slightly less work",
    )


def _haiku_lstm(weights: dict) -> dict:
    """One kernel under [x; h], gates i, g, f, o, and 1 added to f's bias when it is
    applied.
    """
    W, U, b = (
        jnp.split(weights[k], 4, -1)
        for k in ("input_kernel", "recurrent_kernel", "bias")
    )
    order = (0, 2, 1, 3)
    kernel = jnp.concatenate(
        [jnp.concatenate([part[k] for k in order], -1) for part in (W, U)], 0
    )
    return {
        "lstm/linear": {"w": kernel, "b": jnp.concatenate([b[0], b[2], b[1] - 1, b[3]])}
    }


def _haiku_gru(weights: dict) -> dict:
    """Gates z, r, a, with z the other way round: h = (1 - z) h + z a."""
    (Wr, Wz, Wn), (Ur, Uz, Un), (br, bz, bn) = (
        jnp.split(weights[k], 3, -1)
        for k in ("input_kernel", "recurrent_kernel", "bias")
    )
    join = lambda *parts: jnp.concatenate(parts, -1)  # noqa: E731
    return {
        "gru": {
            "w_i": join(-Wz, Wr, Wn),
            "w_h": join(-Uz, Ur, Un),
            "b": join(-bz, br, bn),
        }
    }


def _haiku_vanilla(weights: dict) -> dict:
    bias = weights["bias"]
    return {
        "vanilla_rnn/linear": {"w": weights["input_kernel"], "b": bias},
        "vanilla_rnn/linear_1": {
            "w": weights["recurrent_kernel"],
            "b": jnp.zeros_like(bias),
        },
    }


def equinox(work: Work) -> JaxModel:
    """A scan over ``equinox.nn.LSTMCell`` or ``GRUCell``, which know no batch, under
    vmap: as its documentation writes it.
    """
    eqx = require("equinox")
    if work.kind == "Elman":
        raise SkipEntryError("equinox has no simple recurrent cell")
    drawn = {"LSTM": eqx.nn.LSTMCell, "GRU": eqx.nn.GRUCell}[work.kind](
        work.shape.I, work.shape.H, key=jax.random.key(0)
    )

    def arrays(cell):
        return [cell.weight_ih, cell.weight_hh, cell.bias] + (
            [cell.bias_n] if work.kind == "GRU" else []
        )

    def mapping(weights):
        names = ["input_kernel", "recurrent_kernel", "bias"] + (
            ["recurrent_bias"] if work.kind == "GRU" else []
        )
        return eqx.tree_at(
            arrays, drawn, [jnp.asarray(weights[name]).T for name in names]
        )

    def one_sequence(cell, xs):
        zeros = jnp.zeros(work.shape.H, xs.dtype)

        def step(state, x):
            state = cell(x, state)
            return state, state[0] if work.kind == "LSTM" else state

        return jax.lax.scan(step, (zeros, zeros) if work.kind == "LSTM" else zeros, xs)[
            1
        ]

    return JaxModel(
        forward=jax.vmap(one_sequence, in_axes=(None, 1), out_axes=1), mapping=mapping
    )


def keras(work: Work) -> JaxModel:
    """``keras.layers.LSTM``, ``GRU`` or ``SimpleRNN`` on the JAX backend,
    batch-first, by ``stateless_call``.
    """
    # Keras reads its backend when it is imported, and takes tensorflow by default.
    os.environ.setdefault("KERAS_BACKEND", "jax")
    ks = require("keras")
    if ks.backend.backend() != "jax":
        raise SkipEntryError(
            f"keras was imported on the {ks.backend.backend()} backend: set "
            f"KERAS_BACKEND=jax"
        )
    B, T, I, H = work.shape
    layer = {
        "LSTM": ks.layers.LSTM,
        "GRU": ks.layers.GRU,
        "Elman": ks.layers.SimpleRNN,
    }[work.kind](H, return_sequences=True)
    layer.build((B, T, I))
    constants = [variable.value for variable in layer.non_trainable_variables]
    return JaxModel(
        forward=lambda weights, xs: layer.stateless_call(weights, constants, xs)[0],
        mapping=lambda weights: _keras_weights(work.kind, weights),
        batch_first=True,
        note="batch-first only: it transposes to time-major inside",
    )


def _keras_weights(kind: str, weights: dict) -> list:
    """LSTM gates i, f, c, o as ours; a GRU's z, r, h, with a bias for x and one for
    h.
    """
    W, U, b = (
        jnp.asarray(weights[k]) for k in ("input_kernel", "recurrent_kernel", "bias")
    )
    if kind != "GRU":
        return [W, U, b]

    def turn(a):
        return jnp.concatenate([a[..., H : 2 * H], a[..., :H], a[..., 2 * H :]], -1)

    H = U.shape[0]
    recurrent = jnp.concatenate([jnp.zeros(2 * H, b.dtype), weights["recurrent_bias"]])
    return [turn(W), turn(U), jnp.stack([turn(b), recurrent])]
