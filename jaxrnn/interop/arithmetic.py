"""What the converters share: gate blocks reordered, biases folded and unfolded, names,
shapes and dtypes checked.

Arrays here are NumPy's or JAX's, traced ones included, so that a conversion can be
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
from ..core.validation import describe

FLOATS = ("float16", "bfloat16", "float32", "float64")


def concatenate_gates(parts: Sequence[Any], axis: int = -1) -> Any:
    """Concatenated by NumPy where all are NumPy's: nothing is compiled and nothing
    goes to a device.
    """
    return (
        np if all(isinstance(part, np.ndarray) for part in parts) else jnp
    ).concatenate(list(parts), axis)


def split_gates(packed: Any, blocks: int) -> list[Any]:
    """The gate blocks on the last axis, apart."""
    size = packed.shape[-1] // blocks
    return [packed[..., k * size : (k + 1) * size] for k in range(blocks)]


def reorder(packed: Any, order: Sequence[int]) -> Any:
    """The gate blocks on the last axis in another order: block ``order[k]`` comes
    k-th.
    """
    blocks = split_gates(packed, len(order))
    return concatenate_gates([blocks[k] for k in order])


def add_biases(where: str, one: Any, other: Any) -> Any:
    """The sum of two biases, rounded to their dtype; one that overflows there is
    refused.
    """
    with np.errstate(over="ignore"):
        total = one + other
    if not isinstance(total, jax.core.Tracer):
        first, second, sums = (np.asarray(a, "float64") for a in (one, other, total))
        if np.any(np.isfinite(first) & np.isfinite(second) & ~np.isfinite(sums)):
            raise ValueError(
                f"{where}: the sum of two biases overflows {total.dtype}: cast the "
                f"weights to float32 first"
            )
    return total


def fold_biases(
    where: str, cell: Any, of_inputs: Any, of_states: Any
) -> dict[str, Any]:
    """Two packed biases, of x and of h, as the cell's: summed where they are simply
    added.

    A GRU's candidate keeps the bias of h apart, because the reset gate multiplies it:
        ``recurrent_bias``.
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
    """The cell's bias on x, and for h zeros but for a GRU's ``recurrent_bias``."""
    bias = params["bias"]
    if "recurrent_bias" not in params:
        return bias, np.zeros(bias.shape, bias.dtype)
    apart = params["recurrent_bias"]
    return bias, concatenate_gates(
        [np.zeros(bias.shape[0] - apart.shape[0], bias.dtype), apart]
    )


def zero_biases(cell: Any, kernel: Any) -> dict[str, Any]:
    """The biases of a module that has none, in the dtype of its packed kernel."""
    zeros = np.zeros(kernel.shape[-1], kernel.dtype)
    after = isinstance(cell, GRU) and cell.reset_after
    return (
        {"bias": zeros, "recurrent_bias": zeros[: cell.hidden_size]}
        if after
        else {"bias": zeros}
    )


def check_zero(where: str, name: str, array: Any, why: str) -> None:
    """``array`` is zero throughout, so that leaving it out changes nothing."""
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
    """All biases are zero, where the module they go to has none."""
    for name in ("bias", "recurrent_bias"):
        if name in params:
            check_zero(where, name, params[name], f"{whose} has none")


def check_names(
    where: str, found: Iterable[str], expected: Iterable[str], hint: str = ""
) -> None:
    """Exactly the expected names came; the error names those that lack and those
    that are too many.
    """
    found, expected = set(found), set(expected)
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing or extra:
        words = [
            f"{what} {', '.join(names)}"
            for what, names in (("missing", missing), ("not expected", extra))
            if names
        ]
        raise ValueError(f"{where}: {'; '.join(words)}{hint and '. ' + hint}")


def check_shapes(
    where: str,
    arrays: Mapping[str, Any],
    expected: Mapping[str, tuple[int, ...]],
    hint: str = "",
) -> None:
    """Each array has its expected shape; the error gives both for every one that has
    not.
    """
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
    """A kernel has two axes: the sizes are read off it."""
    if not hasattr(array, "ndim"):
        raise TypeError(
            f"{where}: {name} must be an array, but it is {describe(array)}"
        )
    if array.ndim != 2:
        raise ValueError(
            f"{where}: {name} must be a matrix, but its shape is {tuple(array.shape)}"
        )


def check_concrete(where: str, tree: Any, what: str = "parameters") -> None:
    """Nothing is traced: what it goes to lies outside JAX."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree)):
        raise TypeError(
            f"{where}: the {what} have no values inside a compiled or differentiated "
            f"function: convert outside"
        )


def check_dtypes(where: str, arrays: Mapping[str, Any], what: str = "weights") -> None:
    """All are floating-point, of one dtype, which JAX holds as it stands."""
    for name, array in arrays.items():
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
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


def own_copy(value: Any) -> Any:
    """A JAX array with memory of its own: another library writes to its arrays, or
    gives them away to a compiled step.
    """
    return jnp.array(value, copy=True)


def on_device(params: Mapping[str, Any]) -> dict[str, Any]:
    """Every entry as a JAX array of its own."""
    return {name: own_copy(value) for name, value in params.items()}
