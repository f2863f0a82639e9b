"""Labels of groups, followed through equations, against what moves when a group moves.

A label must never be wrong. For most operations it is exact, too: `MANY` only where a
result depends on more than one group.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxrnn.engines.jaxpr.dependence import MANY, NONE, follow

GROUPS = 3


def dot(over, batch=((), ()), **options):
    return lambda a, b: lax.dot_general(a, b, (over, batch), **options)


def scanned(a, b):
    def step(carry, x):
        return jnp.tanh(carry + x), carry[..., :1] * x

    return lax.scan(step, a, b, length=2)


def looped(a):
    return lax.while_loop(
        lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.roll(s[1], 1, 0)), (0, a)
    )[1]


def as_columns(a):
    return lax.reshape(a, (6,), dimensions=(1, 0))


def padded(a):
    return lax.pad(a, 0.0, [(1, 0, 1), (0, 2, 0)])


def mapped_inside(a, b):
    return jax.vmap(lambda x: jax.jit(jnp.dot)(x, b))(a)


def one_matrix(a, b):
    return lax.conv_general_dilated(a[:, None], b, (1,), "SAME")


V, M, S = (3,), (2, 3), ()
EXACT = {  # a function, and the shapes of its arguments
    "product of numbers": (dot(((), ())), S, S),
    "product of vectors": (dot(((0,), (0,))), V, V),
    "outer product": (dot(((), ())), V, (2,)),
    "vector by matrix": (dot(((0,), (0,))), V, (3, 2)),
    "matrix by vector": (dot(((1,), (0,))), M, V),
    "matrices": (dot(((1,), (1,))), M, (4, 3)),
    "product over two axes": (dot(((0, 1), (1, 0))), M, (3, 2)),
    "batched product": (dot(((2,), (1,)), ((0,), (0,))), (2, 2, 3), (2, 3, 2)),
    "product of a batch": (dot(((), ()), ((0,), (0,))), V, V),
    "inside a map": (mapped_inside, M, V),
    "reshape": (lambda a: a.reshape(3, 2), M),
    "reshape by columns": (as_columns, M),
    "to a vector": (jnp.ravel, M),
    "transpose": (jnp.transpose, M),
    "transpose of three axes": (lambda a: a.transpose(2, 0, 1), (2, 3, 4)),
    "broadcast": (lambda a: jnp.broadcast_to(a[:, None], (3, 2)) * 2, V),
    "elementwise": (lambda a, b: jnp.tanh(a) * b, M, M),
    "with a number": (lambda a, b: jnp.exp(a) / (2 + b), M, S),
    "sum": (lambda a: a.sum(1), M),
    "sum of everything": (jnp.sum, M),
    "largest": (lambda a: a.max(0), M),
    "softmax": (lambda a: jax.nn.softmax(a, 0), (3, 2)),
    "reverse": (lambda a: a[::-1], M),
    "slice": (lambda a: a[:, 1:], M),
    "slice by steps": (lambda a: a[::2, ::2], (4, 5)),
    "concatenate": (lambda a, b: jnp.concatenate([a, b], 1), M, M),
    "stack": (lambda a, b: jnp.stack([a, b], 1), M, M),
    "unstack": (lambda a: jnp.unstack(a, axis=1), M),
    "tile": (lambda a: jnp.tile(a, (2, 1)), M),
    "repeat": (lambda a: jnp.repeat(a, 2, 1), M),
    "a name": (lambda a: checkpoint_name(a, "state"), M),
    "pad": (padded, M),
    "split": (lambda a: jnp.split(a, [1], 1), M),
    "roll": (lambda a: jnp.roll(a, 1, 0), M),
    "a call": (lambda a: jax.jit(jax.checkpoint(jnp.sin))(a), M),
    "a custom derivative": (jax.nn.silu, M),
    "cond": (lambda a: lax.cond(True, jnp.sin, jnp.cos, a), M),
}
CAREFUL = {  # whose labels may be `MANY` where the truth is one group
    "at a place": (lambda a: lax.dynamic_slice(a, (1, 0), (1, 3)), M),
    "select": (lambda a, b: jnp.where(a[:1] > b[:1], a[1:], b[1:]), M, M),
    "imaginary part": (lambda a, b: lax.complex(a, b).imag, M, M),
    "cumulative sum": (lambda a: jnp.cumsum(a, 1), M),
    "sort": (lambda a: jnp.sort(a, 1), M),
    "gather": (lambda a: a[jnp.array([1, 0, 1])], M),
    "scatter": (lambda a, b: a.at[1].set(b), M, V),
    "update at a place": (
        lambda a, b: lax.dynamic_update_slice(a, b, (1, 0)),
        M,
        (1, 3),
    ),
    "negative padding": (lambda a: lax.pad(a, 0.0, [(-1, 0, 0), (0, 1, 0)]), M),
    "index of the largest": (lambda a: jnp.argmax(a, 1), M),
    "convolution": (one_matrix, (2, 5), (3, 1, 2)),
    "scan": (scanned, V, (2, 3)),
    "while": (looped, M),
    "inverse": (jnp.linalg.inv, (2, 2)),
    "sum by a variadic reduction": (
        lambda a: lax.reduce(a, 0.0, lax.add, (1,)),
        M,
    ),
    "sum of windows": (
        lambda a: lax.reduce_window(a, 0.0, lax.add, (1, 2), (1, 1), "VALID"),
        M,
    ),
}
CASES = {**EXACT, **CAREFUL}


def groups_of_results(function, arguments, labels):
    """The groups that each number of each result moves with, as sets of numbers."""
    rng = np.random.default_rng(1)
    run = jax.jit(lambda *a: jax.tree.leaves(function(*a)))
    want = run(*arguments)
    found = [np.zeros((*np.shape(y), GROUPS), bool) for y in want]
    for group in range(GROUPS):
        for _ in range(3):
            other = [
                np.where(k == group, rng.normal(size=a.shape), a)
                for a, k in zip(arguments, labels, strict=True)
            ]
            for each, a, b in zip(found, want, run(*other), strict=True):
                each[..., group] |= np.asarray(a) != np.asarray(b)
    return found


@pytest.mark.parametrize("marked", ["all", "first", "last"])
@pytest.mark.parametrize("name", CASES)
def test_labels_are_never_wrong(name, marked, x64):
    function, *shapes = CASES[name]
    rng = np.random.default_rng(0)
    arguments = [rng.normal(size=shape) for shape in shapes]
    labels = [
        rng.integers(NONE, GROUPS, size=shape, dtype=np.int32) for shape in shapes
    ]
    if marked != "all":
        alone = 0 if marked == "first" else len(shapes) - 1
        labels = [
            a if i == alone else np.full_like(a, NONE) for i, a in enumerate(labels)
        ]
    closed = jax.make_jaxpr(function)(*arguments)
    given = [None if (a == NONE).all() else a for a in labels]
    results = follow(closed.jaxpr, given)
    truth = groups_of_results(function, arguments, labels)
    for label, moved, var in zip(results, truth, closed.jaxpr.outvars, strict=True):
        label = np.full(var.aval.shape, NONE) if label is None else label
        assert label.shape == var.aval.shape
        count = moved.sum(-1)
        allowed = np.arange(GROUPS) == label[..., None]
        assert not (moved & ~allowed)[label != MANY].any()
        if name in EXACT:
            assert (count[label == MANY] > 1).all()
            assert (count[label >= 0] == 1).all()
