"""Checks of arguments, which raise when a program is traced.

Each error says what was expected, what was given and how to mend it.
"""

from __future__ import annotations

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .arrays import is_array
from .foreign import optional_attribute
from .records import is_namedtuple
from .types import Carry, Context, Flags, Inputs, Params, PyTree


def check_positive(owner: object, **sizes: object) -> None:
    """Check that every named size is an int of at least 1."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, numbers.Integral) or size < 1:
            came = describe(size) if is_array(size) else repr(size)
            raise ValueError(
                f"{type(owner).__name__}: {name} must be an int of at least 1, but it "
                f"is {came}{_size_hint(name, size)}"
            )


def _size_hint(name: str, size: Any) -> str:
    """Say what mends an array, or a key, that is given for a size, or ""."""
    if name != "input_size" or not is_array(size):
        return ""
    if jnp.issubdtype(size.dtype, jax.dtypes.prng_key):
        return ": the key comes first, init(key, input_size)"
    if not size.ndim:
        return ": pass int(input_size)"
    return ": pass the number of features, xs.shape[-1]"


def check_input_size(owner: object, input_size: object) -> None:
    """Check that a layer is given no array for the number of its input features.

    Cells of one's own may take something else than an int, so only arrays are refused.
    """
    if is_array(input_size):
        check_positive(owner, input_size=input_size)


def check_auto(owner: object, **sizes: object) -> None:
    """Check options that are a positive size, None for all, or ``"auto"``."""
    for name, value in sizes.items():
        if isinstance(value, str) and value != "auto":
            raise ValueError(
                f"{type(owner).__name__}: {name} must be a size, None (all of T) or "
                f"'auto', but it is {value!r}"
            )
        if value is not None and value != "auto":
            check_positive(owner, **{name: value})


def check_int(
    what: str, name: str, value: object, least: int, most: int, of: str
) -> int:
    """Convert ``value`` to an int from ``least`` to ``most``; ``of`` says why these."""
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Integral)
        or not least <= int(value) <= most
    ):
        raise ValueError(
            f"{what}: {name} must be an int from {least} to {most} ({of}), but it is "
            f"{value!r}"
        )
    return int(value)


def check_batch_shape(batch_shape: object) -> None:
    """Check that ``batch_shape`` is a tuple (or list) of sizes."""
    if not isinstance(batch_shape, (tuple, list)):
        raise TypeError(
            f"batch_shape must be a tuple of sizes, such as (32,), but it is "
            f"{batch_shape!r}"
        )


TOKENS = (
    "turn token numbers into vectors first, with jax.nn.one_hot(xs, V) or an embedding"
)


def check_inputs(xs: Inputs, feature_ndim: PyTree = 1) -> tuple[Any, ...]:
    """Check inputs, and return their time and batch axes, ``(T, *B)``.

    The sizes are integers, or symbols under ``jax.export``.

    Args:
        xs: an array ``(T, *B, ...)`` or a pytree of such arrays.
        feature_ndim: the number of feature axes of each array, or a pytree prefix of
            such numbers; None is 1.

    Raises:
        TypeError: if ``xs`` holds something else than arrays, or no array.
        ValueError: if an array has too few axes, if ``feature_ndim`` does not fit the
            pytree, or if the arrays differ in time or batch axes.
    """
    leaves = jax.tree_util.tree_leaves_with_path(xs)
    if not leaves:
        raise TypeError(
            f"xs must be an array (T, *B, D), or a pytree of arrays (T, *B, ...), but "
            f"it is {describe_tree(xs)}, which holds no array: T is then not known"
        )
    ndims = _feature_ndims(xs, 1 if feature_ndim is None else feature_ndim)
    leads: list[tuple[Any, ...]] = []
    for (path, leaf), ndim in zip(leaves, ndims, strict=True):
        name = "xs" + jax.tree_util.keystr(path)
        if not is_array(leaf):
            inside = f", and {name} is {describe(leaf)}" if path else ""
            raise TypeError(
                f"xs must be an array {_layout(ndim)}, but it is {describe(xs)}{inside}"
            )
        check_ours(name, leaf)
        if leaf.ndim < 1 + ndim:
            raise _too_few_axes(name, leaf, ndim)
        leads.append(tuple(leaf.shape[: leaf.ndim - ndim]))
        if leads[-1] != leads[0]:
            raise ValueError(
                f"the arrays of xs must share time and batch axes (T, *B), but "
                f"xs{jax.tree_util.keystr(leaves[0][0])} has {leads[0]} and {name} has "
                f"{leads[-1]}, each without feature axes: feature_ndim says that these "
                f"are {ndims}, in the order of the leaves (most built-in cells and "
                f"layers take one array, and no pytree)"
            )
    return leads[0]


def batch_of_step(x: Inputs, feature_ndim: PyTree = 1) -> tuple[Any, ...]:
    """Check the inputs of one streaming step, and return their batch axes ``*B``."""
    return check_inputs(jax.tree.map(lambda leaf: leaf[None], x), feature_ndim)[1:]


def _feature_ndims(xs: Inputs, feature_ndim: PyTree) -> list[int]:
    """Return the number of feature axes of every leaf of ``xs``."""
    try:
        ndims = jax.tree.leaves(jax.tree.broadcast(feature_ndim, xs))
    except ValueError:
        raise ValueError(
            f"feature_ndim = {feature_ndim} must be a number, or a pytree prefix of "
            f"the inputs, but xs is {describe_tree(xs)}"
        ) from None
    for ndim in ndims:
        if isinstance(ndim, bool) or not isinstance(ndim, numbers.Integral) or ndim < 0:
            raise ValueError(
                f"feature_ndim must hold numbers of axes, ints of at least 0, but it "
                f"is {feature_ndim!r}"
            )
    return ndims


def lead_ndim(xs: Inputs, feature_ndim: PyTree) -> int:
    """Return the number of axes of inputs before their feature axes."""
    ndims = _feature_ndims(xs, 1 if feature_ndim is None else feature_ndim)
    return jax.tree.leaves(xs)[0].ndim - ndims[0]


def _layout(feature_ndim: int) -> str:
    """Return the axes of inputs, as errors show them."""
    features = ("", ", D", ", Y, X", ", Y, X, C", ", Z, Y, X, C")
    known = features[feature_ndim] if feature_ndim < len(features) else ", ..."
    return f"(T, *B{known})"


def _too_few_axes(name: str, leaf: Any, feature_ndim: int) -> Exception:
    """Return the error for an input that has no axis for time."""
    if feature_ndim != 1:
        return ValueError(
            f"{name} must be {_layout(feature_ndim)}, with time first and "
            f"{feature_ndim} feature axes last, but its shape is {tuple(leaf.shape)}"
        )
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return TypeError(
            f"{name} must hold floating-point features (T, *B, D), but its dtype is "
            f"{leaf.dtype}: {TOKENS}"
        )
    return ValueError(
        f"{name} must have time first and features last, (T, D) or (T, *B, D), but its "
        f"shape is {tuple(leaf.shape)}: for one feature add an axis with {name}[..., "
        f"None]"
    )


def check_one_array(what: str, xs: Inputs) -> None:
    """Check that inputs are one floating-point array, and not a pytree."""
    if not is_array(xs):
        raise TypeError(
            f"{what}: xs must be one array (T, *B, D), but it is {describe_tree(xs)}"
        )
    check_floating("xs", xs)


def check_floating(name: str, xs: Inputs) -> None:
    """Check that an array of features is floating-point or complex."""
    if not jnp.issubdtype(xs.dtype, jnp.inexact):
        raise TypeError(
            f"{name} must hold floating-point features (T, *B, D), but its dtype is "
            f"{xs.dtype}: {TOKENS}"
        )


def check_context(cell: Any, context: Context, batch: tuple[Any, ...] | None = None):
    """Check that a context is given if, and only if, a cell or layer takes one.

    Args:
        cell: the cell or layer.
        context: a pytree of arrays ``(*B, ...)``, or None.
        batch: the batch axes; None if they are not known.
    """
    name = type(cell).__name__
    if cell.takes_context and context is None:
        raise ValueError(
            f"{name} takes a context (takes_context is True): pass context=, a pytree "
            f"of arrays (*B, ...) that are the same at every step"
        )
    if context is None:
        return
    if not cell.takes_context:
        raise ValueError(
            f"a context was given, but {name} takes none: leave it out, or set "
            f"takes_context = True in the cell that reads it"
        )
    check_all_ours("context", context)
    for path, leaf in jax.tree_util.tree_leaves_with_path(context):
        shape = tuple(jnp.shape(leaf))
        if batch is not None and shape[: len(batch)] != batch:
            raise ValueError(
                f"context{jax.tree_util.keystr(path)} has shape {shape}, but it must "
                f"begin with the batch axes of xs, {batch}: data that all rows share "
                f"belong in params, or are broadcast with jnp.broadcast_to"
            )


def check_features(cell: Any, kernel: Array, x: Inputs) -> None:
    """Check that the features and dtype of ``x`` fit the cell's input kernel."""
    check_one_array(type(cell).__name__, x)
    if x.shape[-1] != kernel.shape[0]:
        raise ValueError(
            f"{type(cell).__name__}: the parameters were made for {kernel.shape[0]} "
            f"input features, but the inputs have "
            f"{x.shape[-1]} (shape {tuple(x.shape)}; features come last). Make them "
            f"with init(key, input_size={x.shape[-1]})"
        )
    if x.dtype != kernel.dtype:
        raise TypeError(
            f"{type(cell).__name__}: the inputs are {x.dtype} but the parameters are "
            f"{kernel.dtype}, and nothing is promoted "
            f"silently: cast one of them, e.g. xs.astype({kernel.dtype.name!r})"
        )


def check_flags(
    name: str, flags: object, want: tuple[Any, ...], axes: str = "(T, *B)"
) -> None:
    """Check that ``mask`` or ``resets`` is a bool array of shape ``want``.

    ``axes`` is what the error calls them.
    """
    if not is_array(flags):
        raise TypeError(
            f"{name} must be a bool array of shape {axes} = {want}, but it is "
            f"{describe(flags)}"
        )
    check_ours(name, flags)
    if tuple(flags.shape) != want:
        hint = "" if axes == "(*B)" else _swap_hint(name, tuple(flags.shape), want)
        if not hint and name == "mask" and tuple(flags.shape) == want[1:]:
            hint = ": make a mask of lengths with jaxrnn.mask_from_lengths(lengths, T)"
        if (
            not hint
            and 2 <= flags.ndim < len(want)
            and flags.shape == want[: flags.ndim]
        ):
            hint = (
                "; where the last axes of the inputs are features, as those of a "
                "picture, and no batch axes, the cell says how many with feature_ndim"
            )
        raise ValueError(
            f"{name} must have shape {axes} = {want}, but its shape is "
            f"{tuple(flags.shape)}{hint}"
        )
    if flags.dtype != bool:
        raise TypeError(
            f"{name} must be bool, but its dtype is {flags.dtype}: pass {name} != 0 or "
            f"{name}.astype(bool)"
        )


def _swap_hint(name: str, shape: tuple[Any, ...], want: tuple[Any, ...]) -> str:
    """Say what mends an array that fits if time and batch are swapped, or ""."""
    if len(want) < 2 or shape != (want[1], want[0], *want[2:]):
        return ""
    return (
        f": time comes first, so pass {name}.T, or jnp.swapaxes(xs, 0, 1) if it is xs "
        f"that has the batch first, as in torch (batch_first) and Keras"
    )


def checked_reset(reset: Flags | None, batch: tuple[Any, ...]) -> Any:
    """Check the ``reset`` of a streaming call, and return it as an array."""
    if isinstance(reset, bool):
        reset = np.asarray(reset)
    check_flags("reset", reset, batch, "(*B)")
    return jnp.asarray(reset)


def check_scale(scale: object, want: tuple[Any, ...]) -> None:
    """Check that ``gradient_scale`` is floating-point of shape ``want = (T, *B)``."""
    if not is_array(scale):
        raise TypeError(
            f"gradient_scale must be an array of shape (T, *B) = {want}, but it is "
            f"{describe(scale)}"
        )
    check_ours("gradient_scale", scale)
    if tuple(scale.shape) != want:
        raise ValueError(
            f"gradient_scale must have shape (T, *B) = {want}, but its shape is "
            f"{tuple(scale.shape)}"
            f"{_swap_hint('gradient_scale', tuple(scale.shape), want)}"
        )
    if not jnp.issubdtype(scale.dtype, jnp.floating):
        raise TypeError(
            f"gradient_scale must be floating-point, but its dtype is {scale.dtype}: "
            f"pass gradient_scale.astype('float32')"
        )


def check_ours(name: str, value: object) -> None:
    """Check that an array is one of JAX or numpy, and not of another library."""
    if _is_foreign(value):
        raise TypeError(
            f"{name} is {describe(value)}, but it must be an array of JAX or numpy: "
            f"{_repair(name, value)}"
        )


def check_all_ours(name: str, tree: PyTree, variable: str | None = None) -> None:
    """Check that every leaf of a pytree is an array of JAX or numpy, or a number.

    Args:
        name: what the error calls the pytree.
        tree: the pytree.
        variable: the expression for it in the suggested repair (default: ``name``).
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if _is_foreign(leaf) or isinstance(leaf, (str, bytes)):
            key_path = jax.tree_util.keystr(path)
            repair = (
                _repair((variable or name) + key_path, leaf)
                if _is_foreign(leaf)
                else "strings are configuration: make it a field of the cell"
            )
            raise TypeError(
                f"{name}{key_path} is {describe(leaf)}, but it must be an array of JAX "
                f"or numpy, or a number: {repair}"
            )


def _is_foreign(value: object) -> bool:
    """Return whether ``value`` is an array of a library with dtypes of its own."""
    if isinstance(value, (jax.Array, np.ndarray, np.generic, type)):
        return False
    dtype = optional_attribute(value, "dtype")
    return (
        dtype is not None
        and not isinstance(dtype, np.dtype)
        and not jnp.issubdtype(_kind(dtype), jax.dtypes.extended)
    )


def _kind(dtype: Any) -> Any:
    """Return the dtype as JAX knows it; one of another library becomes ``object``."""
    try:
        return jax.dtypes.canonicalize_dtype(dtype, allow_extended_dtype=True)
    except TypeError:  # such as torch.float32
        return np.dtype(object)


def _repair(name: str, value: object) -> str:
    """Return the advice to convert an array of another library."""
    detached = ".detach()" if optional_attribute(value, "requires_grad") else ""
    return (
        f"pass jnp.asarray({name}{detached}), or jnp.from_dlpack({name}{detached}), "
        f"which does not copy"
    )


def check_carry(
    cell: Any,
    carry: Carry,
    expected: Carry,
    made_by: str,
    lead: tuple[Any, ...] = (),
) -> None:
    """Check that ``carry`` has the structure, shapes and dtypes of ``expected``.

    Args:
        cell: the cell, or the name that the error begins with.
        carry: the carry to check.
        expected: a pytree of arrays or `jax.ShapeDtypeStruct`.
        made_by: what the error calls the carry, such as "the carry passed in".
        lead: the time and batch axes of xs, if they are known.

    Raises:
        TypeError, ValueError: the error names the leaf that differs.
    """
    name = cell if isinstance(cell, str) else type(cell).__name__
    check_all_ours(f"{name}: {made_by}", carry, "carry")
    got_tree: Any = jax.tree.structure(carry)
    want_tree: Any = jax.tree.structure(expected)
    if got_tree != want_tree:
        raise TypeError(
            f"{name}: {made_by} is {describe_tree(carry)}, but this cell's carry is "
            f"{describe_tree(expected)}: "
            "is it another cell's? initial_carry(params, batch_shape) makes the right "
            "one"
        )
    for (path, got), want in zip(
        jax.tree_util.tree_leaves_with_path(carry),
        jax.tree.leaves(expected),
        strict=True,
    ):
        part = f"{jax.tree_util.keystr(path)} of " if path else ""
        if tuple(jnp.shape(got)) != tuple(want.shape):
            raise ValueError(
                f"{name}: {part}{made_by} has shape {tuple(jnp.shape(got))}, expected "
                f"{tuple(want.shape)} = (*B, ...) with the batch axes of xs"
                f"{_batch_first_hint(jnp.shape(got), want.shape, lead)}"
            )
        if jnp.result_type(got) != want.dtype:
            raise TypeError(
                f"{name}: {part}{made_by} is {jnp.result_type(got)}, expected "
                f"{want.dtype}: carries are not promoted silently; cast it with "
                f".astype({want.dtype.name!r})"
            )


def _batch_first_hint(
    got: tuple[Any, ...], want: tuple[Any, ...], lead: tuple[Any, ...]
) -> str:
    """Say what mends a carry that fits if time and batch of xs are swapped, or ""."""
    if len(lead) < 2 or tuple(got) != (lead[0], *want[1:]):
        return ""
    return (
        f". It fits if xs, which begins with (T, *B) = {lead}, has the batch first: "
        f"time comes first here, so pass jnp.swapaxes(xs, 0, 1)"
    )


def describe_tree(tree: PyTree) -> str:
    """Describe a pytree briefly: names, shapes, and dtypes that are not real floats."""
    if is_array(tree):
        kind = (
            "" if jnp.issubdtype(_kind(tree.dtype), jnp.floating) else f" {tree.dtype}"
        )
        return f"{tuple(tree.shape)}{kind}"
    if is_namedtuple(tree):
        parts = ", ".join(
            f"{name} {describe_tree(part)}"
            for name, part in zip(tree._fields, tree, strict=True)
        )
        return f"{type(tree).__name__}({parts})"
    if isinstance(tree, (tuple, list)):
        parts = ", ".join(map(describe_tree, tree))
        return (
            f"a {type(tree).__name__} of {len(tree)} [{parts}]"
            if tree
            else f"an empty {type(tree).__name__}"
        )
    if isinstance(tree, dict):
        return (
            "a dict {"
            + ", ".join(
                f"{name!r}: {describe_tree(part)}" for name, part in tree.items()
            )
            + "}"
        )
    return describe(tree)


def check_params(cell: Any, params: Params, expected: dict[str, Any]) -> None:
    """Check that ``params`` is a dict with the names and shapes of ``expected``.

    Dtypes are not checked.

    Raises:
        TypeError, ValueError: the error names the entry that differs.
    """
    name = type(cell).__name__
    if not isinstance(params, dict) or set(params) != set(expected):
        got = (
            f"a dict of {sorted(params)}"
            if isinstance(params, dict)
            else describe(params)
        )
        raise TypeError(
            f"{name}: its params are a dict of {sorted(expected)}, but got {got}: "
            f"init(key, input_size) makes the right one"
        )
    wanted, found = map(jax.tree_util.tree_leaves_with_path, (expected, params))
    if len(found) != len(wanted):
        own, given = (
            {jax.tree_util.keystr(path) for path, _ in leaves}
            for leaves in (wanted, found)
        )
        raise ValueError(
            f"{name}: params has the parts {sorted(given - own)} too many and "
            f"{sorted(own - given)} too few: init(key, input_size) makes the right ones"
        )
    for (path, want), (_, leaf) in zip(wanted, found, strict=True):
        if tuple(jnp.shape(leaf)) != tuple(want.shape):
            raise ValueError(
                f"{name}: params{jax.tree_util.keystr(path)} has shape "
                f"{tuple(jnp.shape(leaf))}, expected {tuple(want.shape)}: "
                "are they another cell's? cell.init(key, input_size) makes the right "
                "ones"
            )


def check_key_given(what: str, key: Array | None) -> None:
    """Check that a key was given to a function that draws random numbers."""
    if key is None or not (
        is_array(key)
        and (jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.dtype == "uint32")
    ):
        raise TypeError(
            f"{what}: key must be a key such as jax.random.key(0), but it is "
            f"{describe(key)}"
        )


def check_key(cell: Any, key: Array | None) -> None:
    """Check that a key is given if, and only if, the layer draws random numbers."""
    if cell.requires_key and key is None:
        raise ValueError(
            f"{type(cell).__name__} draws random numbers (dropout, zoneout or state "
            f"noise), so it needs key=jax.random.key(...); "
            "to run it without randomness use jaxrnn.inference(layer)"
        )
    if key is not None and not (
        is_array(key)
        and (jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.dtype == "uint32")
    ):
        raise TypeError(
            f"key must be a key such as jax.random.key(0), but it is {describe(key)}"
        )
    if key is not None and not cell.requires_key:
        raise ValueError(
            f"a key was given, but {type(cell).__name__} draws no random numbers: "
            f"leave the key out (a layer made by "
            "jaxrnn.inference draws none; to train with dropout use the layer it was "
            "made from)"
        )


def describe(value: object) -> str:
    """Describe a value briefly: its type, and for arrays shape and dtype."""
    if _is_foreign(value) and is_array(value):
        kind = type(value)
        return (
            f"a {kind.__module__.partition('.')[0]} {kind.__name__} of shape "
            f"{tuple(value.shape)} and dtype {value.dtype}"
        )
    if is_array(value):
        kinds: Any = (jax.Array, np.ndarray)
        what = "an array" if isinstance(value, kinds) else f"a {type(value).__name__}"
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            what = "a key"
        return f"{what} of shape {tuple(value.shape)} and dtype {value.dtype}"
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"
