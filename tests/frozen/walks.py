"""Cells and layers walked in small: parameters, values and gradients, as flat numbers.

Everything is float64. First carries are states that the layer reaches from its initial
one, and parameters are those of ``init`` with a little noise, so that no bias is zero.
"""

import functools
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import names

T, B, D, H = 5, 2, 3, 4
WALKS = {
    "plain": {},
    "flags": {"mask": True, "resets": True},
    "reverse": {"mask": True, "reverse": True},
    "cut": {"window": 2},
}
FEWER = ("plain", "flags")  # of cells that differ from another one in their start only
COMPARED = [
    *("scan", "scan, gates kept", "scan, carries kept", "scan, all kept"),
    *("scan, window 2", "checkpoint 2", "associative", "associative 2"),
]
KEY = 7  # of the layers that draw


class Given(NamedTuple):
    """What goes into a walk, and the cotangents of what comes out of it."""

    params: Any
    xs: np.ndarray
    carry: Any
    cotangents: Any  # (of the last carry, of the outputs)
    mask: np.ndarray
    resets: np.ndarray


def layers() -> dict[str, Any]:
    """All cells and layers, those that draw both with and without their noise."""
    loud = names.cells(H, D)
    return loud | {f"{name}, quiet": names.quiet(loud[name]) for name in names.NOISY}


def walks_of(name: str) -> tuple[str, ...]:
    return FEWER if name.endswith("learned") else tuple(WALKS)


def paths(tree: Any) -> list[str]:
    """The names of a tree's leaves."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in found]


def drawn(tree: Any, what: str, scale: float = 1.0) -> Any:
    """Normal numbers in the shapes and dtypes of a tree, told by the words ``what``."""
    random = np.random.RandomState(zlib.crc32(what.encode()))

    def leaf(like: Any) -> jax.Array:
        numbers = random.normal(size=like.shape)
        if jnp.issubdtype(like.dtype, jnp.complexfloating):
            numbers = numbers + 1j * random.normal(size=like.shape)
        return jnp.asarray(scale * numbers, like.dtype)

    return jax.tree.map(leaf, tree)


def initial(name: str, dtype: Any = None) -> Any:
    """What ``init`` draws for a layer."""
    options = {} if dtype is None else {"dtype": dtype}
    return layers()[name].init(jax.random.key(0), D, **options)


def draw(name: str) -> Given:
    """Everything that goes into the walks of a layer."""
    layer, params = layers()[name], initial(name)
    params = jax.tree.map(jnp.add, params, drawn(params, f"{name} params", 0.1))
    like = jax.ShapeDtypeStruct((T, B, D), jnp.float64)
    before, xs = drawn(like, f"{name} before"), drawn(like, f"{name} xs")
    calm = names.quiet(layer) if name in names.NOISY else layer
    carry, _ = names.walk(calm, params, before, None, {})
    shapes = jax.eval_shape(lambda *a: names.walk(calm, *a, {}), params, xs, carry)
    flags = drawn(jax.ShapeDtypeStruct((2, T, B), jnp.float64), f"{name} flags")
    mask, resets = np.asarray(flags[0]) < 0.3, np.asarray(flags[1]) < -0.5
    return Given(params, xs, carry, drawn(shapes, f"{name} cotangents"), mask, resets)


def stored(name: str, given: Given) -> dict[str, np.ndarray]:
    """What goes in, as arrays by name: parameters by path, the rest by number."""
    found = {f"{name}/init/{p}": a for p, a in by_path(initial(name)).items()}
    found |= {f"{name}/params/{p}": a for p, a in by_path(given.params).items()}
    for part in ("xs", "carry", "cotangents", "mask", "resets"):
        found |= numbered(f"{name}/{part}", getattr(given, part))
    return found


def by_path(tree: Any) -> dict[str, np.ndarray]:
    return dict(zip(paths(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True))


def numbered(name: str, tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree.leaves(tree)
    return {f"{name}/{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}


def restored(name: str, arrays: dict[str, np.ndarray]) -> Given:
    """What `stored` was given, in the structures that the layer has today."""
    layer = layers()[name]
    key = jax.random.key(0)
    like = jax.eval_shape(lambda key: layer.init(key, D), key)
    present = {
        names.path_of(place): array for place, array in under(f"{name}/params/", arrays)
    }
    leaves = [jnp.asarray(present[path]) for path in paths(like)]
    params = jax.tree.unflatten(jax.tree.structure(like), leaves)
    carry_like = jax.eval_shape(lambda p: layer.initial_carry(p, (B,)), params)
    carry = filled(carry_like, f"{name}/carry/", arrays)
    calm = names.quiet(layer) if name in names.NOISY else layer
    xs = jnp.asarray(arrays[f"{name}/xs/0"])
    shapes = jax.eval_shape(lambda *a: names.walk(calm, *a, {}), params, xs, carry)
    cotangents = filled(shapes, f"{name}/cotangents/", arrays)
    flags = (arrays[f"{name}/{part}/0"] for part in ("mask", "resets"))
    return Given(params, xs, carry, cotangents, *flags)


def under(prefix: str, arrays: dict[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    """The arrays whose names begin so, with the rest of their names."""
    return [
        (n.removeprefix(prefix), a) for n, a in arrays.items() if n.startswith(prefix)
    ]


def filled(like: Any, prefix: str, arrays: dict[str, np.ndarray]) -> Any:
    leaves = [jnp.asarray(array) for _, array in under(prefix, arrays)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def outcome(
    name: str, walk: str, given: Given, engine: str = "default"
) -> dict[str, Any]:
    """The last carry, outputs and gradients of a walk: ``part/number`` or path."""
    layer, how = layers()[name], dict(WALKS[walk])
    flags = [given.mask if how.pop("mask", False) else None]
    flags.append(given.resets if how.pop("resets", False) else None)
    how |= {"engine": engine}

    @jax.jit
    def run(params, xs, carry, cotangents, flags):
        options = {n: f for n, f in zip(("mask", "resets"), flags) if f is not None}
        if name in names.NOISY:
            options["key"] = jax.random.key(KEY)
        function = functools.partial(names.walk, layer, how=how | options)
        values, pull = jax.vjp(function, params, xs, carry)
        return values, pull(cotangents)

    (last, ys), (by_params, by_xs, by_carry) = run(*given[:4], flags)
    found = numbered("last", last) | numbered("ys", ys)
    found |= {f"by params/{path}": array for path, array in by_path(by_params).items()}
    return found | numbered("by xs", by_xs) | numbered("by carry", by_carry)


def difference(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest error, against the largest value, or the largest gradient."""
    assert set(found) == set(expected), set(found) ^ set(expected)
    worst = 0.0
    for gradients in (False, True):
        chosen = [name for name in expected if name.startswith("by ") == gradients]
        for name in chosen:
            assert found[name].shape == expected[name].shape, name
            assert found[name].dtype == expected[name].dtype, name
        most = max(float(np.abs(expected[name]).max(initial=0)) for name in chosen)
        errors = [
            np.abs(found[name] - expected[name]).max(initial=0) for name in chosen
        ]
        worst = max(worst, max(map(float, errors)) / (most or 1.0))
    return worst
