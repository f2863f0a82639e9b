"""Shared steps of the converters: reordering gates, folding biases, checking arrays.

Arrays are NumPy's or JAX's, including traced ones, so that a conversion can be
differentiated: for weights w of another library and ``params = convert(w)``, the
gradient with respect to w is the one that the library itself computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..cells import GRU
from ..core.arrays import is_array
from ..core.cell import Cell
from ..core.layer import Layer
from ..core.types import PyTree
from ..core.validation import describe

FLOATS = ("float16", "bfloat16", "float32", "float64")


def concatenate_gates(parts: Sequence[Any], axis: int = -1) -> Any:
    """Concatenate with NumPy if all parts are NumPy arrays, else with JAX.

    With NumPy nothing is compiled and nothing is transferred to a device.
    """
    return (
        np if all(isinstance(part, np.ndarray) for part in parts) else jnp
    ).concatenate(list(parts), axis)


def split_gates(packed: Any, blocks: int) -> list[Any]:
    """Split the last axis into its gate blocks."""
    size = packed.shape[-1] // blocks
    return [packed[..., k * size : (k + 1) * size] for k in range(blocks)]


def reorder(packed: Any, order: Sequence[int]) -> Any:
    """Reorder the gate blocks on the last axis: block ``order[k]`` becomes the k-th."""
    blocks = split_gates(packed, len(order))
    return concatenate_gates([blocks[k] for k in order])


def add_biases(where: str, one: Any, other: object) -> Any:
    """Add two biases, rounded to their dtype; refuse a sum that overflows."""
    with np.errstate(over="ignore"):
        total = one + other
    if not isinstance(total, jax.core.Tracer):
        a, b, sums = (np.asarray(a, "float64") for a in (one, other, total))
        if np.any(np.isfinite(a) & np.isfinite(b) & ~np.isfinite(sums)):
            raise ValueError(
                f"{where}: the sum of two biases overflows {total.dtype}: cast the "
                f"weights to float32 first"
            )
    return total


def fold_biases(
    where: str, cell: Cell | Layer, of_inputs: Any, of_states: Any
) -> dict[str, Any]:
    """Convert two packed biases, of x and of h, to the parameters of a cell.

    They are summed where the cell only adds them. A GRU's candidate keeps the bias of h
    apart, as ``recurrent_bias``, because the reset gate multiplies it.
    """
    if not isinstance(cell, GRU):
        return {"bias": add_biases(where, of_inputs, of_states)}
    edge = 2 * cell.hidden_size
    summed = add_biases(where, of_inputs[:edge], of_states[:edge])
    return {
        "bias": concatenate_gates([summed, of_inputs[edge:]]),
        "recurrent_bias": of_states[edge:],
    }


def unfold_biases(params: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the biases of x and of h; that of h is a GRU's recurrent bias or zero."""
    bias = params["bias"]
    if "recurrent_bias" not in params:
        return bias, np.zeros(bias.shape, bias.dtype)
    recurrent_bias = params["recurrent_bias"]
    return bias, concatenate_gates(
        [np.zeros(bias.shape[0] - recurrent_bias.shape[0], bias.dtype), recurrent_bias]
    )


def zero_biases(cell: Any, kernel: Any) -> dict[str, Any]:
    """Return zero biases for a module without any, in the dtype of its kernel."""
    zeros = np.zeros(kernel.shape[-1], kernel.dtype)
    reset_after = isinstance(cell, GRU) and cell.reset_after
    return (
        {"bias": zeros, "recurrent_bias": zeros[: cell.hidden_size]}
        if reset_after
        else {"bias": zeros}
    )


def check_zero(where: str, name: str, array: Any, why: str) -> None:
    """Check that ``array`` is zero, so that leaving it out changes nothing."""
    if isinstance(array, jax.core.Tracer):
        raise TypeError(
            f"{where}: whether {name} is zero cannot be seen inside a compiled "
            f"function, and {why}: convert outside"
        )
    if np.any(np.asarray(array)):
        largest = np.abs(np.asarray(array, "float64")).max()
        raise ValueError(
            f"{where}: {name} is not zero (up to {largest:.3g} in size), and {why}"
        )


def check_no_biases(where: str, params: Mapping[str, Any], whose: str) -> None:
    """Check that all biases are zero, for a target module without biases."""
    for name in ("bias", "recurrent_bias"):
        if name in params:
            check_zero(where, name, params[name], f"{whose} has none")


def check_names(
    where: str, found: Iterable[str], expected: Iterable[str], hint: str = ""
) -> None:
    """Check that the names are the expected ones; list missing and extra names."""
    found, expected = set(found), set(expected)
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing or extra:
        problems = [
            f"{what} {', '.join(names)}"
            for what, names in (("missing", missing), ("not expected", extra))
            if names
        ]
        raise ValueError(f"{where}: {'; '.join(problems)}{hint and '. ' + hint}")


def check_shapes(
    where: str,
    arrays: Mapping[str, Any],
    expected: Mapping[str, tuple[int, ...]],
    hint: str = "",
) -> None:
    """Check the shape of each array; list expected and actual ones that differ."""
    wrong = [
        f"{name}: expected {shape}, found {tuple(arrays[name].shape)}"
        for name, shape in expected.items()
        if tuple(arrays[name].shape) != tuple(shape)
    ]
    if wrong:
        raise ValueError(
            f"{where}: wrong shapes: {'; '.join(wrong)}{hint and '. ' + hint}"
        )


def check_matrix(where: str, name: str, array: Any) -> None:
    """Check that a kernel is a matrix, because the sizes are read from its shape."""
    if not is_array(array):
        raise TypeError(
            f"{where}: {name} must be an array, but it is {describe(array)}"
        )
    if array.ndim != 2:
        raise ValueError(
            f"{where}: {name} must be a matrix, but its shape is {tuple(array.shape)}"
        )


def check_concrete(where: str, tree: PyTree, what: str = "parameters") -> None:
    """Check that no leaf is traced, for a target outside JAX."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree)):
        raise TypeError(
            f"{where}: the {what} have no values inside a compiled or differentiated "
            f"function: convert outside"
        )


def check_dtypes(where: str, arrays: Mapping[str, Any], what: str = "weights") -> None:
    """Check that all arrays have one floating-point dtype that JAX keeps exactly."""
    for name, array in arrays.items():
        if not is_array(array):
            raise TypeError(
                f"{where}: {name} must be an array, but it is {describe(array)}"
            )
    dtypes = {name: str(array.dtype) for name, array in arrays.items()}
    strange = [
        f"{name} is {dtype}" for name, dtype in dtypes.items() if dtype not in FLOATS
    ]
    if any(dtype.startswith("torch.") for dtype in dtypes.values()):
        raise TypeError(
            f"{where}: these are torch tensors ({', '.join(strange)}): pass "
            f"tensor.detach().numpy()"
        )
    if strange:
        hint = (
            "quantized weights are integers and scales, and are not converted; give "
            "the weights from before quantization"
            if what == "weights"
            else "cast them"
        )
        raise TypeError(
            f"{where}: {what} must be floating-point ({', '.join(FLOATS)}), but "
            f"{', '.join(strange)}: {hint}"
        )
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{name} is {dtype}" for name, dtype in dtypes.items())
        raise TypeError(
            f"{where}: the {what} have several dtypes, and nothing is promoted "
            f"silently: {listed}. Cast them to one"
        )
    if "float64" in dtypes.values() and jnp.asarray(np.zeros(0)).dtype != np.float64:
        raise TypeError(
            f"{where}: the {what} are float64, which JAX would round to float32: cast "
            f"them yourself (a torch module with "
            ".float(), an array with .astype('float32')), or convert under "
            "jax.enable_x64(True)"
        )


def own_copy(value: object) -> Any:
    """Copy to a new JAX array.

    Another library may write to its arrays or donate them to a compiled function.
    """
    return jnp.array(value, copy=True)


def on_device(params: Mapping[str, Any]) -> dict[str, Any]:
    """Copy every entry to a JAX array of its own."""
    return {name: own_copy(value) for name, value in params.items()}
