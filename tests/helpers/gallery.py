"""What the gallery of published cells shares: twins, comparison, and length."""

import ast
import inspect
import textwrap

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn

T, B, D, H = 6, 2, 3, 4


def normal(key, *shape, scale=0.5):
    """Random numbers of a normal distribution."""
    return scale * jax.random.normal(jax.random.key(key), shape)


def flags(key=9):
    """A mask with holes whose first step is valid, and resets."""
    m, r = jax.random.split(jax.random.key(key))
    mask = jax.random.bernoulli(m, 0.7, (T, B)).at[0].set(True)
    return {"mask": mask, "resets": jax.random.bernoulli(r, 0.25, (T, B))}


def rows(step, initial, output, xs, mask, resets):
    """The twin of an unroll: every row by itself, every step by itself.

    Args:
        step: ``step(carry, x) -> carry`` for one row.
        initial: the initial carry of one row.
        output: ``output(carry, x) -> y`` for one row.
        xs: inputs, arrays ``(T, B, ...)``.
        mask, resets: ``(T, B)``.
    """

    def row(xs, mask, resets):
        carry, ys = initial, []
        for t in range(T):
            x = jax.tree.map(lambda leaf: leaf[t], xs)  # noqa: B023
            before = jax.tree.map(
                lambda s, s0: jnp.where(resets[t], s0, s),  # noqa: B023
                carry,
                initial,
            )
            carry = jax.tree.map(
                lambda new, old: jnp.where(mask[t], new, old),  # noqa: B023
                step(before, x),
                before,
            )
            ys.append(jnp.where(mask[t], output(carry, x), 0.0))
        return carry, jnp.stack(ys)

    return jax.vmap(row, 1, (0, 1))(xs, mask, resets)


def with_gradients(function, *args):
    """Values, and gradients by all floating-point arguments, of one loss."""

    def loss(*args):
        out = function(*args)
        return sum(jnp.sin(leaf + 0.3).sum() for leaf in jax.tree.leaves(out)), out

    numbers = tuple(
        i
        for i, arg in enumerate(args)
        if all(jnp.issubdtype(a.dtype, jnp.inexact) for a in jax.tree.leaves(arg))
    )
    return jax.jit(jax.grad(loss, numbers, has_aux=True))(*args)


def assert_same(ours, twin, tolerance=1e-10):
    """Both pytrees hold the same numbers."""
    ours, twin = jax.tree.leaves(ours), jax.tree.leaves(twin)
    assert len(ours) == len(twin)
    for a, b in zip(ours, twin, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def assert_is_twin(cell, params, xs, step, initial, output=lambda h, x: h, **options):
    """A cell's values and gradients are those of its twin, with mask and resets.

    ``step(params, carry, x)``, ``initial`` and ``output(carry, x)`` are the twin's, for
    one row.
    """
    given = flags()

    def ours(params, xs):
        return jaxrnn.unroll(cell, params, xs, **given, **options)

    def twin(params, xs):
        return rows(lambda s, x: step(params, s, x), initial, output, xs, **given)

    assert_same(with_gradients(ours, params, xs), with_gradients(twin, params, xs))


def lines_of_code(*things):
    """Lines of classes and functions that are neither blank nor docstring nor comment.

    Imports do not count; long lines are not possible (ruff: 88 columns).
    """
    count = 0
    for thing in things:
        source = textwrap.dedent(inspect.getsource(thing))
        documented = set()
        for node in ast.walk(ast.parse(source)):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and _is_text(body[0]):
                documented |= set(range(body[0].lineno, body[0].end_lineno + 1))
        for number, line in enumerate(source.splitlines(), 1):
            text = line.strip()
            if text and not text.startswith("#") and number not in documented:
                count += 1
    return count


def _is_text(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
