"""What the fuzzer's steps are made of: small typed operations, each a pure function of
values, parameters and a number.

Types: ``V`` real vectors (*B, N), ``C`` complex ones, ``M`` real matrices (*B, N, N),
``I`` integers (*B,), ``W`` matrices (N, N) and ``P`` vectors (N,) that come from
parameters. Every operation takes any leading axes, but those that are ``mixing``: they
look at all of the batch, so they belong to a step, and to one without a mask if there
is a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

N, ROWS = 3, 5
# arrays that steps close over
CONSTANT = np.random.default_rng(0).normal(size=(4, N, N))
HALF = np.array([[True, False, True], [False, True, True], [True, True, False]])


@dataclasses.dataclass(frozen=True)
class Operation:
    """``function(params, *args, k)``, whose arguments and result have the types of
    ``takes`` and ``gives``.
    """

    function: Callable
    takes: str
    gives: str
    mixing: bool = False
    needs: tuple[str, ...] = ()


OPERATIONS: dict[str, Operation] = {}


def operation(types: str, **options: Any) -> Callable:
    takes, gives = types.split(">")

    def record(function: Callable) -> Callable:
        OPERATIONS[function.__name__] = Operation(function, takes, gives, **options)
        return function

    return record


def along(vector: Any, like: Any) -> Any:
    return jnp.broadcast_to(vector, like.shape)


def eye(like: Any) -> Any:
    return jnp.broadcast_to(jnp.eye(N, dtype=like.dtype), like.shape)


# --------------------------------------------------------------------------------------
# Identities whose backward pass is something else: of the cotangent g, and of what went
# in, w.


def _nothing(w, g):
    return g


def _first_row(w, g, how):
    index = (0,) * g.ndim
    return getattr(g.at[index], how)(jnp.asarray(0.1, g.dtype))


BACKWARDS: dict[str, Callable] = {
    "half": lambda w, g: 0.5 * g,
    "by_value": lambda w, g: g * w,
    "where_value": lambda w, g: jnp.where(jnp.abs(w) < 0.4, g, jnp.sign(w)),
    "where_zero": lambda w, g: jnp.where(jnp.abs(w) < 0.4, g, 0.0),
    "sign": lambda w, g: jnp.sign(g),
    "clip": lambda w, g: jnp.clip(g, -0.1, 0.1),
    "plus": lambda w, g: g + 0.1,
    "plus_value": lambda w, g: g + 0.1 * w,
    "minus_from": lambda w, g: 0.1 - g,
    "add_at": lambda w, g: _first_row(w, g, "add"),
    "set_at": lambda w, g: _first_row(w, g, "set"),
    "multiply_at": lambda w, g: _first_row(w, g, "multiply"),
    "float32": lambda w, g: g.astype(jnp.float32).astype(g.dtype),
    "integer": lambda w, g: jnp.round(64 * g).astype(jnp.int32).astype(g.dtype) / 64,
    "normed": lambda w, g: g / (1 + jnp.sqrt(jnp.sum(g * g))),
    "unit": lambda w, g: g / (1 + jnp.max(jnp.abs(g))),
    "sort": lambda w, g: jnp.sort(g, axis=-1),
    "pad": lambda w, g: jax.lax.pad(
        g[..., 1:], jnp.asarray(0.1, g.dtype), [(0, 0, 0)] * (g.ndim - 1) + [(1, 0, 0)]
    ),
    "concatenate": lambda w, g: jnp.concatenate(
        [jnp.full_like(g[..., :1], 0.1), g[..., 1:]], axis=-1
    ),
    "update_slice": lambda w, g: jax.lax.dynamic_update_slice(
        g, jnp.full_like(g[..., :1], 0.1), (0,) * g.ndim
    ),
    "take_fill": lambda w, g: jnp.take(
        g, np.array([0, 2, 7]), axis=-1, mode="fill", fill_value=0.1
    ),
    "complex": lambda w, g: jnp.real(
        jax.lax.complex(g, jnp.full_like(g, 0.1)) * (1 + 1j)
    ),
    "imaginary": lambda w, g: g + jnp.imag(jax.lax.complex(g, jnp.full_like(g, 0.1))),
    "cumsum": lambda w, g: jnp.cumsum(g, axis=-1),
    "reverse": lambda w, g: jnp.flip(g, -1) * 0.5,
    "mean": lambda w, g: g - jnp.mean(g, axis=-1, keepdims=True),
    "product": lambda w, g: jnp.einsum("...i,ij->...j", g, CONSTANT[0]),
    "square": lambda w, g: g * g,
    "quotient": lambda w, g: 0.1 / (1 + g * g),
    "divided": lambda w, g: g / (1 + w * w),
    "cond": lambda w, g: jax.lax.cond(
        jnp.sum(g) > 0, lambda a: a, lambda a: 0.5 * a, g
    ),
    "fori": lambda w, g: jax.lax.fori_loop(0, 2, lambda i, a: jnp.sin(a), g),
    "scan": lambda w, g: jax.lax.scan(
        lambda a, _: (0.5 * a + 0.1, None), g, None, length=2
    )[0],
    "while_loop": lambda w, g: jax.lax.while_loop(
        lambda s: s[0] < 2, lambda s: (s[0] + 1, 0.5 * s[1]), (0, g)
    )[1],
    "maximum": lambda w, g: jnp.maximum(g, -0.05),
    "power": lambda w, g: g**3,
    "softmax": lambda w, g: jax.nn.softmax(g, axis=-1),
    "reduce_precision": lambda w, g: jax.lax.reduce_precision(g, 8, 10),
    "ignores": lambda w, g: 0.1 * w,
    "ones": lambda w, g: jnp.ones_like(g),
    "select_by_sign": lambda w, g: jnp.where(g > 0, g, 0.1 * g),
    "random": lambda w, g: (
        g + 0.1 * jax.random.normal(jax.random.PRNGKey(0), g.shape, g.dtype)
    ),
}
NAMES = tuple(BACKWARDS)


def _turned(name: str) -> Callable:
    @jax.custom_vjp
    def identity(w):
        return w

    identity.defvjp(lambda w: (w, w), lambda w, g: (BACKWARDS[name](w, g),))
    return identity


TURNED = {name: _turned(name) for name in NAMES}


@operation("W>W")
def backward_of_matrix(p, w, k):
    return TURNED[NAMES[k % len(NAMES)]](w)


@operation("W>W")
def backward_of_matrix_again(p, w, k):
    return TURNED[NAMES[-1 - k % len(NAMES)]](w)


@operation("P>P")
def backward_of_vector(p, w, k):
    return TURNED[NAMES[k % len(NAMES)]](w)


@operation("V>V", mixing=True)  # some look at the whole batch
def backward_of_state(p, v, k):
    return TURNED[NAMES[k % len(NAMES)]](v)


@jax.custom_jvp
def _bent(a, b):
    return jnp.tanh(a) + b


@_bent.defjvp
def _bent_jvp(primals, tangents):
    (a, b), (da, db) = primals, tangents
    return _bent(a, b), da * (1 - 0.5 * jnp.abs(jnp.tanh(a))) + 0.9 * db


@operation("W>W")
def custom_jvp_of_matrix(p, w, k):
    return _bent(w, w)


@operation("VV>V")
def custom_jvp(p, u, v, k):
    return _bent(u, v)


# --------------------------------------------------------------------------------------
# Matrices made of parameters


def _newton_schulz(w):
    w = w / (1 + jnp.sqrt(jnp.sum(w * w)))
    for _ in range(2):
        w = 1.5 * w - 0.5 * w @ w.T @ w
    return w


def _cayley(w):
    skew = 0.3 * (w - w.T)
    return jnp.linalg.solve(
        jnp.eye(N, dtype=w.dtype) + skew, jnp.eye(N, dtype=w.dtype) - skew
    )


def _first_rows(w, k):
    return jnp.concatenate([jax.lax.dynamic_slice(w, (k % 2, 0), (2, N)), w[:1]])


PIPES: dict[str, Callable] = {
    "transpose": lambda w, k: w.T,
    "softmax": lambda w, k: jax.nn.softmax(w, axis=-1),
    "gram": lambda w, k: 0.3 * w @ w.T,
    "normed": lambda w, k: w / jnp.linalg.norm(w, axis=0, keepdims=True),
    "norm_of_all": lambda w, k: w / jnp.sqrt(jnp.sum(w * w)),
    "newton_schulz": lambda w, k: _newton_schulz(w),
    "mask": lambda w, k: jnp.where(HALF, w, 0.0),
    "mask_constant": lambda w, k: jnp.where(HALF, w, CONSTANT[1]),
    "mask_value": lambda w, k: jnp.where(jnp.abs(w) < 0.5, w, 0.1),
    "add_at": lambda w, k: w.at[k % N].add(0.3),
    "set_at": lambda w, k: w.at[k % N, 0].set(0.3),
    "multiply_at": lambda w, k: w.at[k % N].multiply(0.3),
    "slice": lambda w, k: _first_rows(w, k),
    "float32": lambda w, k: w.astype(jnp.float32).astype(w.dtype),
    "tanh": lambda w, k: jnp.tanh(w),
    "constant": lambda w, k: 0.5 * w + 0.5 * CONSTANT[k % 4],
    "product": lambda w, k: 0.5 * w @ CONSTANT[k % 4],
    "roll": lambda w, k: jnp.roll(w, 1, axis=k % 2),
    "reverse": lambda w, k: jnp.flip(w, k % 2),
    "cumsum": lambda w, k: 0.5 * jnp.cumsum(w, axis=k % 2),
    "sort": lambda w, k: jnp.sort(w, axis=k % 2),
    "cholesky": lambda w, k: (
        0.5 * jnp.linalg.cholesky(w @ w.T + jnp.eye(N, dtype=w.dtype))
    ),
    "cayley": lambda w, k: _cayley(w),
    "triangle": lambda w, k: jnp.tril(w),
    "checkpoint": lambda w, k: jax.checkpoint(lambda a: jnp.sin(a @ a))(w),
    "jit": lambda w, k: jax.jit(lambda a: jnp.sin(a) + a.T)(w),
    "fori": lambda w, k: jax.lax.fori_loop(0, 3, lambda i, a: jnp.sin(a + 0.1), w),
    "scan": lambda w, k: jax.lax.scan(
        lambda c, row: (0.5 * c + row, jnp.tanh(c + row)), w[0], w
    )[1],
    "map": lambda w, k: jax.lax.map(jnp.sin, w),
    "cond": lambda w, k: jax.lax.cond(jnp.sum(w) > 0, lambda a: a, lambda a: a.T, w),
    "stop": lambda w, k: jax.lax.stop_gradient(w),
    "round": lambda w, k: w + jax.lax.stop_gradient(jnp.round(w * 4) / 4 - w),
    "dropped": lambda w, k: jnp.where(
        jax.random.bernoulli(jax.random.PRNGKey(k), 0.7, w.shape), w, 0.0
    ),
    "exp": lambda w, k: jnp.exp(-w * w),
    "symmetric": lambda w, k: 0.5 * (w + w.T),
    "diagonal": lambda w, k: jnp.diag(jnp.diagonal(w)) + 0.1,
    "pad": lambda w, k: jax.lax.pad(
        w[1:], jnp.asarray(0.2, w.dtype), [(1, 0, 0), (0, 0, 0)]
    ),
    "while_int": lambda w, k: (
        w
        * jax.lax.while_loop(lambda i: i < 3, lambda i: i + 1, 0).astype(w.dtype)
        * 0.3
    ),
    "conv": lambda w, k: (
        jax.lax.conv(w[None, None], CONSTANT[0][None, None], (1, 1), "SAME")[0, 0] * 0.3
    ),
    "reshape": lambda w, k: w.reshape(-1)[::-1].reshape(N, N),
    "inverse": lambda w, k: jnp.linalg.inv(0.2 * w + 2 * jnp.eye(N, dtype=w.dtype)),
    "logsumexp": lambda w, k: w - jax.nn.logsumexp(w, axis=0, keepdims=True),
    "reduce_precision": lambda w, k: jax.lax.reduce_precision(w, 8, 10),
    "complex": lambda w, k: jnp.abs(jax.lax.complex(w, w + 0.3)),
    "gather": lambda w, k: w[np.array([2, 0, 0])],
}
PIPE_NAMES = tuple(PIPES)


@operation("W>W")
def matrix(p, w, k):
    return PIPES[PIPE_NAMES[k % len(PIPE_NAMES)]](w, k)


@operation("W>W")
def matrix_again(p, w, k):
    return PIPES[PIPE_NAMES[-1 - k % len(PIPE_NAMES)]](w, k)


def rounds(name: str, k: int) -> bool:
    """Whether an instruction rounds a parameter, and so its cotangent: many steps'
    at once is not each step's.
    """
    made = (
        PIPE_NAMES[k % len(PIPE_NAMES)]
        if name == "matrix"
        else PIPE_NAMES[-1 - k % len(PIPE_NAMES)]
    )
    return (
        name in ("matrix", "matrix_again") and made in ("float32", "reduce_precision")
    ) or (name == "vector" and k % 10 == 8)


@operation("WW>W")
def sum_of_matrices(p, a, b, k):
    return (a + b, a - b, a * b, a @ b, jnp.maximum(a, b), jnp.where(a > b, a, b))[
        k % 6
    ] * 0.7


@operation("PP>W")
def outer_of_vectors(p, a, b, k):
    return jnp.outer(a, b)


@operation("PW>W")
def scaled_matrix(p, a, w, k):
    return w * jnp.broadcast_to(a[:, None] if k % 2 else a[None], w.shape)


@operation("WV>W", mixing=True)
def matrix_by_state(p, w, v, k):
    """A matrix that changes with time: scaled, shifted, or chosen by all of the
    batch.
    """
    s = jnp.mean(v)
    turn = [
        lambda: w * s,
        lambda: w + s,
        lambda: jnp.where(s > 0, w, w.T),
        lambda: jax.lax.cond(s > 0, lambda a: a, lambda a: a.T, w),
        lambda: jnp.roll(w, jnp.argmax(v.reshape(-1, N)[0]), axis=0),
        lambda: jax.lax.dynamic_update_slice(
            w, jnp.full((1, N), 0.3, w.dtype), (jnp.argmax(v.reshape(-1, N)[0]), 0)
        ),
        lambda: w.at[jnp.argmax(v.reshape(-1, N)[0])].set(v.reshape(-1, N)[0]),
        lambda: w / (1 + s * s),
    ]
    return turn[k % len(turn)]()


@operation("P>P")
def vector(p, a, k):
    turn = [
        jnp.tanh,
        jax.nn.softplus,
        jnp.cumsum,
        lambda a: a[::-1],
        jnp.sort,
        lambda a: a / jnp.linalg.norm(a),
        jax.nn.softmax,
    ]
    turn += [
        lambda a: a.at[0].set(0.2),
        lambda a: a.astype(jnp.float32).astype(a.dtype),
        lambda a: CONSTANT[0] @ a,
    ]
    return turn[k % len(turn)](a)


@operation("WP>P")
def matrix_by_vector(p, w, a, k):
    return w @ a if k % 2 else a @ w


# --------------------------------------------------------------------------------------
# Products


@operation("VW>V")
def product(p, v, w, k):
    return v @ w


@operation("VW>V")
def product_turned(p, v, w, k):
    return v @ w.T if k % 2 else jnp.einsum("ij,...j->...i", w, v)


@operation("VW>V")
def layer(p, v, w, k):
    return jnp.tanh(v @ w)


@operation("VVWW>V")
def gates(p, u, v, a, b, k):
    """Two products, summed or of what was joined."""
    if k % 2:
        return jnp.tanh(jnp.concatenate([u, v], axis=-1) @ jnp.concatenate([a, b]))
    return jnp.tanh(u @ a + v @ b)


@operation("VVW>V")
def gated(p, u, v, w, k):
    a, b = jnp.split(v @ jnp.concatenate([w, w.T], axis=1), 2, axis=-1)
    return jax.nn.sigmoid(a) * u + (1 - jax.nn.sigmoid(a)) * jnp.tanh(b)


@operation("VW>V")
def tied(p, v, w, k):
    return jnp.tanh(v @ w) @ w.T


@operation("VW>V")
def attention(p, v, w, k):
    return jax.nn.softmax(v @ w.T, axis=-1) @ w


@operation("VW>V")
def product_of_part(p, v, w, k):
    return jnp.concatenate([v[..., :2] @ w[:2, :2], v[..., 2:]], axis=-1)


@operation("VW>V")
def bilinear(p, v, w, k):
    return v * jnp.einsum("...i,ij,...j->...", v, w, v)[..., None]


@operation("VW>V")
def scan_of_products(p, v, w, k):
    return jax.lax.scan(lambda s, _: (jnp.tanh(s @ w), None), v, None, length=2)[0]


@operation("VW>V")
def fori_of_products(p, v, w, k):
    return jax.lax.fori_loop(0, 2, lambda i, s: s + 0.3 * jnp.tanh(s @ w), v)


@operation("VVW>V", mixing=True)
def cond_of_products(p, u, v, w, k):
    return jax.lax.cond(
        jnp.sum(u) > 0, lambda a, w: jnp.tanh(a @ w), lambda a, w: 0.5 * a, v, w
    )


@operation("VIW>V", mixing=True)
def switch_of_products(p, v, i, w, k):
    return jax.lax.switch(
        jnp.sum(i) % 3, [lambda a: a @ w, lambda a: jnp.tanh(a @ w.T), lambda a: a], v
    )


@operation("VW>V")
def product_with_inner_map(p, v, w, k):
    return jnp.moveaxis(jax.lax.map(lambda row: jnp.sin(v @ row), w), 0, -1)


@operation("VW>V")
def checkpointed(p, v, w, k):
    return jax.checkpoint(lambda a, w: jnp.tanh(jnp.sin(a @ w) @ w))(v, w)


@operation("VW>V")
def solve(p, v, w, k):
    return (
        jnp.einsum(
            "ij,...j->...i", jnp.linalg.inv(3 * jnp.eye(N, dtype=w.dtype) + 0.3 * w), v
        )
        if k % 2
        else (
            jnp.linalg.solve(
                jnp.broadcast_to(
                    3 * jnp.eye(N, dtype=w.dtype) + 0.3 * w, (*v.shape[:-1], N, N)
                ),
                v[..., None],
            )[..., 0]
        )
    )


@operation("VP>V")
def scaled(p, v, a, k):
    return v * along(a, v)


@operation("VP>V")
def shifted(p, v, a, k):
    return v + along(a, v)


@operation("VP>V")
def convolution(p, v, a, k):
    kernel = a if k % 2 else jnp.asarray(CONSTANT[0, 0], a.dtype)
    return jax.lax.conv(
        v.reshape(-1, 1, N), kernel.reshape(1, 1, N), (1,), "SAME"
    ).reshape(v.shape)


@operation("VP>V")
def normed(p, v, a, k):
    middle = v - jnp.mean(v, axis=-1, keepdims=True)
    return (
        along(a, v)
        * middle
        / jnp.sqrt(jnp.mean(middle**2, axis=-1, keepdims=True) + 0.1)
    )


@operation("V>V", needs=("leak",))
def leaky(p, v, k):
    return v * p["leak"] if k % 2 else v + (1 - p["leak"]) * jnp.sin(v)


# --------------------------------------------------------------------------------------
# Vectors


def _scanned(v):
    return jnp.moveaxis(
        jax.lax.scan(
            lambda c, x: (0.5 * c + x, jnp.tanh(c - x)),
            v[..., 0],
            jnp.moveaxis(v, -1, 0),
        )[1],
        0,
        -1,
    )


SMOOTH: dict[str, Callable] = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "sin": jnp.sin,
    "softplus": jax.nn.softplus,
    "bell": lambda v: jnp.exp(-v * v),
    "expm1": lambda v: jnp.expm1(-jnp.abs(v)),
    "log": lambda v: jnp.log(0.5 + v * v),
    "log1p": lambda v: jnp.log1p(jnp.abs(v)),
    "root": lambda v: jnp.sqrt(0.1 + v * v),
    "abs": jnp.abs,
    "relu": jax.nn.relu,
    "square": lambda v: 0.5 * v * v,
    "softmax": lambda v: jax.nn.softmax(v, axis=-1),
    "logsumexp": lambda v: v - jax.nn.logsumexp(v, axis=-1, keepdims=True),
    "bounded": lambda v: (
        v / (1 + jnp.sqrt(jnp.sum(v * v, axis=-1, keepdims=True) + 0.01))
    ),
    "unit": lambda v: v / jnp.linalg.norm(v, axis=-1, keepdims=True),
    "mean": lambda v: jnp.broadcast_to(jnp.mean(v, axis=-1, keepdims=True), v.shape),
    "max": lambda v: v - jnp.max(v, axis=-1, keepdims=True),
    "min": lambda v: v * jnp.min(v, axis=-1, keepdims=True),
    "prod": lambda v: v + jnp.prod(v, axis=-1, keepdims=True),
    "var": lambda v: v * jnp.var(v, axis=-1, keepdims=True),
    "cumsum": lambda v: 0.5 * jnp.cumsum(v, axis=-1),
    "cumprod": lambda v: jnp.cumprod(v, axis=-1),
    "cummax": lambda v: jax.lax.cummax(v, axis=v.ndim - 1),
    "cumlogsumexp": lambda v: jax.lax.cumlogsumexp(v, axis=v.ndim - 1),
    "sort": lambda v: jnp.sort(v, axis=-1),
    "top": lambda v: jnp.concatenate([jax.lax.top_k(v, 2)[0], v[..., :1]], axis=-1),
    "reverse": lambda v: jnp.flip(v, -1),
    "roll": lambda v: jnp.roll(v, 1, axis=-1),
    "pad": lambda v: jax.lax.pad(
        v[..., 1:], jnp.asarray(0.2, v.dtype), [(0, 0, 0)] * (v.ndim - 1) + [(0, 1, 0)]
    ),
    "split": lambda v: jnp.concatenate(jnp.split(v, 3, axis=-1)[::-1], axis=-1) * 0.9,
    "add_at": lambda v: v.at[..., 0].add(0.3),
    "set_at": lambda v: v.at[..., 1].set(0.3),
    "set_from": lambda v: v.at[..., 1].set(jnp.sin(v[..., 0])),
    "add_twice": lambda v: v.at[..., np.array([0, 0])].add(0.5 * v[..., 1:]),
    "multiply_at": lambda v: v.at[..., 1].multiply(0.3),
    "max_at": lambda v: v.at[..., 1].max(v[..., 0]),
    "where": lambda v: jnp.where(v > 0, v, 0.1),
    "where_two": lambda v: jnp.where(v > 0.2, jnp.sin(v), 0.3 * v),
    "clip": lambda v: jnp.clip(v, -0.5, 0.5),
    "float32": lambda v: v.astype(jnp.float32).astype(v.dtype),
    "float16": lambda v: (
        v + jax.lax.stop_gradient(v.astype(jnp.bfloat16).astype(v.dtype))
    ),
    "integer": lambda v: (4 * v).astype(jnp.int32).astype(v.dtype) / 4 + v,
    "round": lambda v: v + jax.lax.stop_gradient(jnp.round(v * 4) / 4 - v),
    "floor": lambda v: v - jnp.floor(v),
    "sign": lambda v: jnp.sign(v) * v * v,
    "stop": lambda v: jax.lax.stop_gradient(v),
    "half_stopped": lambda v: v * jax.lax.stop_gradient(jnp.cos(v)),
    "checkpoint": lambda v: jax.checkpoint(lambda a: jnp.sin(a * a) * a)(v),
    "jit": lambda v: jax.jit(lambda a: jnp.sin(a) + 0.1)(v),
    "fori": lambda v: jax.lax.fori_loop(
        0, 3, lambda i, a: jnp.sin(a) + 0.1 * i.astype(a.dtype), v
    ),
    "scan": _scanned,
    "map": lambda v: jnp.moveaxis(jax.lax.map(jnp.cos, jnp.moveaxis(v, -1, 0)), 0, -1),
    "associative": lambda v: jax.lax.associative_scan(jnp.multiply, v, axis=v.ndim - 1),
    "while_stopped": lambda v: (
        v
        + 0.3
        * jax.lax.while_loop(
            lambda s: s[0] < 2,
            lambda s: (s[0] + 1, jnp.sin(s[1])),
            (0, jax.lax.stop_gradient(v)),
        )[1]
    ),
    "fourier": lambda v: 0.5 * jnp.abs(jnp.fft.rfft(v, axis=-1)[..., :1]) + v,
    "fourier_real": lambda v: jnp.fft.irfft(
        jnp.fft.rfft(v, axis=-1) * (0.5 + 0.3j), n=N, axis=-1
    ),
    "complex": lambda v: jnp.real(jax.lax.complex(v, v * v) ** 2),
    "complex_exp": lambda v: jnp.imag(jnp.exp(1j * v.astype(jnp.complex128))),
    "reduce_precision": lambda v: jax.lax.reduce_precision(v, 8, 10),
    "erf": jax.scipy.special.erf,
    "arctan2": lambda v: jnp.arctan2(v, 1 + jnp.flip(v, -1) ** 2),
    "power": lambda v: (1 + v * v) ** 1.5 * 0.3,
    "reciprocal": lambda v: 1 / (1 + v * v),
    "nan_to_num": lambda v: jnp.nan_to_num(v),
    "reshape": lambda v: jnp.swapaxes(
        v[..., None, :]
        * jnp.ones((2, 1), v.dtype).reshape((1,) * (v.ndim - 1) + (2, 1)),
        -1,
        -2,
    ).sum(-1),
    "dynamic_slice": lambda v: jnp.concatenate(
        [jax.lax.dynamic_slice_in_dim(v, 1, 2, v.ndim - 1), v[..., :1]], axis=-1
    ),
    "select_and_gather": lambda v: jnp.take(
        v, np.array([0, 2, 7]), axis=-1, mode="fill", fill_value=0.1
    ),
    "constant": lambda v: v * along(jnp.asarray(CONSTANT[0, 1]), v),
    "constant_product": lambda v: v @ CONSTANT[2],
    "custom_root": lambda v: jax.lax.custom_root(
        lambda x: x + 0.3 * jnp.sin(x) - v,
        v,
        lambda f, x: jax.lax.fori_loop(0, 30, lambda i, x: x - f(x) * 0.8, x),
        lambda g, y: y / jax.jvp(g, (jnp.zeros_like(y),), (jnp.ones_like(y),))[1],
    ),
    "linear_call": lambda v: (
        jnp.tanh(jnp.linalg.norm(v + 0.3, axis=-1, keepdims=True)) * v
    ),
    "inner_grad": lambda v: jax.grad(lambda a: jnp.sum(jnp.sin(a) * a * a))(v),
    "inner_jvp": lambda v: jax.jvp(jnp.sin, (v,), (v,))[1],
    "inner_vmap": lambda v: jax.vmap(
        lambda a: jnp.sin(a) * 0.9, in_axes=-1, out_axes=-1
    )(v),
}
SMOOTH_NAMES = tuple(SMOOTH)


@operation("V>V")
def unary(p, v, k):
    return SMOOTH[SMOOTH_NAMES[k % len(SMOOTH_NAMES)]](v)


@operation("V>V")
def unary_again(p, v, k):
    return SMOOTH[SMOOTH_NAMES[-1 - k % len(SMOOTH_NAMES)]](v)


@operation("VV>V")
def binary(p, u, v, k):
    turn = [
        lambda: u + v,
        lambda: u - v,
        lambda: u * v,
        lambda: u / (1 + v * v),
        lambda: jnp.where(u > 0, u, v),
        lambda: jnp.where(u > v, u, 0.3 * v),
        lambda: jnp.maximum(u, v),
        lambda: jnp.minimum(u, v),
        lambda: jax.nn.sigmoid(u) * v,
        lambda: jnp.arctan2(u, 1 + v * v),
        lambda: jnp.hypot(u, 1 + v),
        lambda: jnp.logaddexp(u, v),
        lambda: u * jnp.sum(u * v, axis=-1, keepdims=True),
        lambda: jnp.concatenate([u[..., :1], v[..., 1:]], axis=-1),
        lambda: u.at[..., 0].set(v[..., 1]),
        lambda: u.at[..., 1:].add(v[..., 1:]),
        lambda: jax.nn.sigmoid(u) * u + (1 - jax.nn.sigmoid(u)) * v,
        lambda: jnp.stack([u, v], axis=-1).max(-1),
        lambda: jax.lax.select_n(jnp.abs(u) < 0.5, u, v),
        lambda: jnp.where(u[..., :1] > 0, u, v),
    ]
    return turn[k % len(turn)]()


@operation("V>V")
def while_loop(p, v, k):
    """Of which no reverse-mode derivative exists, here or in JAX."""
    return jax.lax.while_loop(
        lambda s: s[0] < 2, lambda s: (s[0] + 1, jnp.sin(s[1])), (0, v)
    )[1]


@operation("VVV>V", mixing=True)
def cond(p, u, v, w, k):
    return jax.lax.cond(
        jnp.sum(u) > 0, lambda a, b: jnp.sin(a), lambda a, b: 0.5 * b, v, w
    )


@operation("VV>V")
def cond_of_each(p, u, v, k):
    def one(u, v):
        return jax.lax.cond(
            u[0] > 0, lambda a, b: jnp.sin(a), lambda a, b: a + 0.5 * b, u, v
        )

    return jnp.vectorize(one, signature="(n),(n)->(n)")(u, v)


@operation("V>V", mixing=True)
def batch_norm(p, v, k):
    rows = v.reshape(-1, N)
    return (
        v - along(jnp.mean(rows, axis=0), v) if k % 2 else v * jnp.sqrt(jnp.mean(v * v))
    )


@operation("VI>V", mixing=True, needs=("key",))
def noise(p, v, i, k):
    key = jax.random.fold_in(p["key"], jnp.sum(i))
    if k % 2:
        return v * jax.random.bernoulli(key, 0.7, v.shape).astype(v.dtype)
    return v + 0.3 * jax.random.normal(key, v.shape, v.dtype)


# --------------------------------------------------------------------------------------
# Integers, and what they point at


@operation("I>I")
def count(p, i, k):
    return (i + 1) % ROWS if k % 2 else (i * 3 + 2) % ROWS


@operation("V>I")
def largest(p, v, k):
    return (
        jnp.argmax(v, axis=-1).astype(jnp.int32)
        if k % 2
        else (jnp.abs(v[..., 0]) * 7).astype(jnp.int32) % ROWS
    )


@operation("VI>I")
def count_where(p, v, i, k):
    return jnp.where(v[..., k % N] > 0, i, (i + 1) % ROWS)


@operation("I>I", needs=("integers",))
def lookup(p, i, k):
    return p["integers"][i]


@operation("I>I")
def while_integers(p, i, k):
    return (
        jax.lax.while_loop(
            lambda a: jnp.any(a < ROWS), lambda a: jnp.where(a < ROWS, a + 2, a), i
        )
        % ROWS
    )


@operation("VI>V", needs=("table",))
def embedding(p, v, i, k):
    rows = p["table"][i] if k % 2 else jnp.take(p["table"], i, axis=0, mode="clip")
    return v + rows


@operation("VI>V", needs=("table",))
def one_hot(p, v, i, k):
    return v + jax.nn.one_hot(i, ROWS, dtype=v.dtype) @ p["table"]


@operation("V>V", needs=("table",))
def look_around(p, v, k):
    return jax.nn.softmax(v @ p["table"].T, axis=-1) @ p["table"]


@operation("VI>V", needs=("table",), mixing=True)
def scatter_to_table(p, v, i, k):
    table = (
        p["table"].at[i].set(v)
        if k % 3 == 0 and i.ndim == 0
        else p["table"].at[i].add(v)
    )
    return jnp.tanh(v @ table.T) @ table * 0.3


@operation("VI>V")
def take_along(p, v, i, k):
    return v * jnp.take_along_axis(v, (i % N)[..., None], axis=-1)


@operation("VVI>V")
def put_along(p, u, v, i, k):
    def one(u, v, i):
        return u.at[i % N].set(v[0]) if k % 2 else u.at[i % N].add(v[0])

    return jnp.vectorize(one, signature="(n),(n),()->(n)")(u, v, i)


@operation("VIP>V")
def scaled_by_choice(p, v, i, a, k):
    return v * a[i % N][..., None]


@operation("VIW>V")
def matrix_of_choice(p, v, i, w, k):
    """Each example has a row order of its own."""
    turned = w[
        (i[..., None] + np.arange(N, dtype=np.int32).reshape((1,) * i.ndim + (N,))) % N
    ]
    return jnp.einsum("...i,...ij->...j", v, turned)


@operation("VI>V")
def by_parity(p, v, i, k):
    return jnp.where((i % 2 == 0)[..., None], v, jnp.sin(v) + 0.1)


@operation("VI>V")
def plus_integer(p, v, i, k):
    return v + 0.1 * i[..., None].astype(v.dtype)


# --------------------------------------------------------------------------------------
# Complex vectors


@operation("VV>C")
def complex_of(p, u, v, k):
    return (
        jax.lax.complex(u, v)
        if k % 2
        else jnp.exp(1j * u.astype(jnp.complex128)) * v.astype(jnp.complex128)
    )


@operation("CC>C")
def complex_product(p, a, b, k):
    return (
        a * b,
        a + jnp.conj(b),
        a * jnp.conj(b),
        a / (2 + jnp.abs(b)).astype(a.dtype),
    )[k % 4]


@operation("C>C", needs=("complex",))
def complex_layer(p, a, k):
    made = a @ p["complex"] if k % 2 else a * jnp.broadcast_to(p["complex"][0], a.shape)
    return made / (1 + jnp.abs(made)).astype(made.dtype)


@operation("CW>C")
def complex_by_matrix(p, a, w, k):
    return a @ jax.lax.complex(w, w.T) * 0.5


@operation("C>V")
def real_part(p, a, k):
    return (
        jnp.real(a),
        jnp.imag(a),
        jnp.abs(a + (2 + 1j)),
        jnp.angle(a + 3),
        jnp.real(a * jnp.conj(a)),
    )[k % 5]


# --------------------------------------------------------------------------------------
# Matrices of the state


@operation("VV>M")
def outer(p, u, v, k):
    return u[..., :, None] * v[..., None, :]


@operation("MV>V")
def read_matrix(p, m, v, k):
    return (
        jnp.einsum("...ij,...j->...i", m, v)
        if k % 2
        else jnp.einsum("...ij,...i->...j", m, v)
    )


@operation("MVV>M")
def delta_rule(p, m, u, v, k):
    error = v - jnp.einsum("...ij,...i->...j", m, u)
    return 0.9 * m + 0.3 * u[..., :, None] * error[..., None, :]


@operation("MVI>M")
def ring(p, m, v, i, k):
    def one(m, v, i):
        return (
            m.at[i % N].set(v)
            if k % 2
            else jax.lax.dynamic_update_slice(m, v[None], (i % N, jnp.zeros_like(i)))
        )

    return jnp.vectorize(one, signature="(n,n),(n),()->(n,n)")(m, v, i)


@operation("MV>M")
def shift_in(p, m, v, k):
    return (
        jnp.concatenate([m[..., 1:, :], v[..., None, :]], axis=-2)
        if k % 2
        else jnp.roll(m, 1, axis=-2)
    )


@operation("MW>M")
def matrix_times(p, m, w, k):
    return 0.5 * m @ w if k % 2 else 0.5 * jnp.einsum("ij,...jk->...ik", w, m)


@operation("MM>M")
def matrix_by_matrix(p, a, b, k):
    return 0.3 * a @ b if k % 2 else 0.5 * (a + jnp.swapaxes(b, -1, -2))


@operation("MV>V")
def solve_state(p, m, v, k):
    return jnp.linalg.solve(eye(m) * 2 + 0.1 * jnp.tanh(m), v[..., None])[..., 0]


@operation("M>V")
def trace(p, m, k):
    return (jnp.diagonal(m, axis1=-2, axis2=-1), m.sum(-1), m.max(-2), m[..., 1, :])[
        k % 4
    ]
