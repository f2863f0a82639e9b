"""Worded checks: each raises at trace time, and says what was expected, what came and how to mend it."""

from __future__ import annotations

import numbers
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def check_positive(owner: Any, **sizes: Any) -> None:
    """Every named size is an int >= 1."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, numbers.Integral) or size < 1:
            raise ValueError(f"{type(owner).__name__}: {name} must be an int of at least 1, but it is {size!r}")


def check_int(what: str, name: str, value: Any, least: int, most: int, of: str) -> int:
    """``value`` as an int from ``least`` to ``most``; ``of`` says what bounds it."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not least <= int(value) <= most:
        raise ValueError(f"{what}: {name} must be an int from {least} to {most} ({of}), but it is {value!r}")
    return int(value)


def check_batch_shape(batch_shape: Any) -> None:
    """A tuple of sizes."""
    if not isinstance(batch_shape, (tuple, list)):
        raise TypeError(f"batch_shape must be a tuple of sizes, such as (32,), but it is {batch_shape!r}")


def check_inputs(xs: Any) -> None:
    """``xs`` is an inexact array of rank 2 or more."""
    if not hasattr(xs, "shape") or not hasattr(xs, "dtype"):
        raise TypeError(f"xs must be an array (T, *B, D), but it is {describe(xs)}")
    if not jnp.issubdtype(xs.dtype, jnp.inexact):
        raise TypeError(
            f"xs must hold floating-point features (T, *B, D), but its dtype is {xs.dtype}: "
            "turn token numbers into vectors first, with jax.nn.one_hot(xs, V) or an embedding"
        )
    if xs.ndim < 2:
        raise ValueError(
            f"xs must have time first and features last, (T, D) or (T, *B, D), but its shape is {tuple(xs.shape)}: "
            "for one feature add an axis with xs[..., None]"
        )


def check_features(cell: Any, kernel: Array, x: Array) -> None:
    """``x``'s features and dtype fit the cell's input kernel."""
    if x.shape[-1] != kernel.shape[0]:
        raise ValueError(
            f"{type(cell).__name__}: the parameters were made for {kernel.shape[0]} input features, but the inputs have "
            f"{x.shape[-1]} (shape {tuple(x.shape)}; features come last). Make them with init(key, input_size={x.shape[-1]})"
        )
    if x.dtype != kernel.dtype:
        raise TypeError(
            f"{type(cell).__name__}: the inputs are {x.dtype} but the parameters are {kernel.dtype}, and nothing is promoted "
            f"silently: cast one of them, e.g. xs.astype({kernel.dtype.name!r})"
        )


def check_flags(name: str, flags: Any, xs: Array) -> None:
    """``mask`` or ``resets`` is bool and ``(T, *B)``."""
    want = tuple(xs.shape[:-1])
    if not hasattr(flags, "shape"):
        raise TypeError(f"{name} must be a bool array of shape (T, *B) = {want}, but it is {describe(flags)}")
    if tuple(flags.shape) != want:
        hint = ""
        if tuple(flags.shape) == want[1:2] + want[:1] + want[2:]:
            hint = f": time comes first, so pass {name}.T"
        elif name == "mask" and tuple(flags.shape) == want[1:]:
            hint = ": make a mask of lengths with jaxrnn.mask_from_lengths(lengths, T)"
        raise ValueError(f"{name} must have shape (T, *B) = {want}, but its shape is {tuple(flags.shape)}{hint}")
    if flags.dtype != bool:
        raise TypeError(f"{name} must be bool, but its dtype is {flags.dtype}: pass {name} != 0 or {name}.astype(bool)")


def check_scale(scale: Any, xs: Array) -> None:
    """``gradient_scale`` is floating-point and ``(T, *B)``."""
    want = tuple(xs.shape[:-1])
    if not hasattr(scale, "shape") or not hasattr(scale, "dtype"):
        raise TypeError(f"gradient_scale must be an array of shape (T, *B) = {want}, but it is {describe(scale)}")
    if tuple(scale.shape) != want:
        raise ValueError(f"gradient_scale must have shape (T, *B) = {want}, but its shape is {tuple(scale.shape)}")
    if not jnp.issubdtype(scale.dtype, jnp.floating):
        raise TypeError(
            f"gradient_scale must be floating-point, but its dtype is {scale.dtype}: pass gradient_scale.astype('float32')"
        )


def check_carry(cell: Any, carry: Any, expected: Any, made_by: str) -> None:
    """``carry`` has the structure, shapes and dtypes of ``expected``; the error names the leaf."""
    name = cell if isinstance(cell, str) else type(cell).__name__
    got_tree: Any = jax.tree.structure(carry)
    want_tree: Any = jax.tree.structure(expected)
    if got_tree != want_tree:
        raise TypeError(
            f"{name}: {made_by} has the structure {got_tree}, but this cell's carry is {want_tree}: "
            "is it another cell's? initial_carry(params, batch_shape) makes the right one"
        )
    for (path, got), want in zip(jax.tree_util.tree_leaves_with_path(carry), jax.tree.leaves(expected), strict=True):
        part = f"{jax.tree_util.keystr(path)} of " if path else ""
        if tuple(jnp.shape(got)) != tuple(want.shape):
            raise ValueError(
                f"{name}: {part}{made_by} has shape {tuple(jnp.shape(got))}, expected {tuple(want.shape)} = (*B, ...) with "
                "the batch axes of xs"
            )
        if jnp.result_type(got) != want.dtype:
            raise TypeError(
                f"{name}: {part}{made_by} is {jnp.result_type(got)}, expected {want.dtype}: carries are not promoted "
                f"silently; cast it with .astype({want.dtype.name!r})"
            )


def check_params(cell: Any, params: Any, expected: dict[str, Any]) -> None:
    """``params`` is a dict with the names and shapes of ``expected``; the error names the entry. Dtypes are the caller's."""
    name = type(cell).__name__
    if not isinstance(params, dict) or set(params) != set(expected):
        came = f"a dict of {sorted(params)}" if isinstance(params, dict) else describe(params)
        raise TypeError(
            f"{name}: its params are a dict of {sorted(expected)}, but got {came}: init(key, input_size) makes the right one"
        )
    for (path, want), leaf in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(params), strict=False):
        if tuple(jnp.shape(leaf)) != tuple(want.shape):
            raise ValueError(
                f"{name}: params{jax.tree_util.keystr(path)} has shape {tuple(jnp.shape(leaf))}, expected {tuple(want.shape)}: "
                "are they another cell's? cell.init(key, input_size) makes the right ones"
            )


def check_key_given(what: str, key: Any) -> None:
    """A key was given to what draws random numbers."""
    if key is None or not (hasattr(key, "dtype") and (jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.dtype == "uint32")):
        raise TypeError(f"{what}: key must be a key such as jax.random.key(0), but it is {describe(key)}")


def check_key(cell: Any, key: Any) -> None:
    """A key is given exactly when randomness happens."""
    if cell.draws and key is None:
        raise ValueError(
            f"{type(cell).__name__} draws random numbers (dropout or zoneout), so it needs key=jax.random.key(...); "
            "to run it without randomness use jaxrnn.inference(layer)"
        )
    if key is not None and not (
        hasattr(key, "dtype") and (jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.dtype == "uint32")
    ):
        raise TypeError(f"key must be a key such as jax.random.key(0), but it is {describe(key)}")
    if key is not None and not cell.draws:
        raise ValueError(
            f"a key was given, but {type(cell).__name__} draws no random numbers: leave the key out (a layer made by "
            "jaxrnn.inference draws none; to train with dropout use the layer it was made from)"
        )


def describe(value: Any) -> str:
    """A short word for any value: its type, and for arrays shape and dtype."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} of shape {tuple(value.shape)} and dtype {value.dtype}"
    return f"a {type(value).__name__}" if not isinstance(value, type) else f"the class {value.__name__}"
