"""States of PyTorch's recurrent modules as carries, and back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.validation import check_carry, describe
from .arithmetic import check_concrete, check_dtypes, check_shapes, own_copy
from .structure import (
    cells_of,
    forward_size,
    get_cell_carries,
    set_cell_carries,
    summary,
)
from .torch_spec import plain


def carry_from_torch(layer: Any, state: Any) -> Any:
    """torch's h, or ``(h, c)`` of an LSTM, each ``(layers x directions, *B, H)``, as
    the carry of ``layer``.

    Of a torch Cell, add the first axis: ``h[None]``. Under half precision what
        accumulates becomes float32, exactly.
    """
    where, cells = "carry_from_torch", cells_of(layer, "carry_from_torch")
    pair = len(_parts(cells)) == 2
    if isinstance(state, (tuple, list)) != pair or (pair and len(state) != 2):
        wanted, came = ("the pair (h, c)" if pair else "h alone"), describe(state)
        raise TypeError(
            f"{where}: {summary(layer)} needs {wanted}, as the torch module gives it, "
            f"but got {came}"
        )
    arrays = [
        plain(where, name, value)
        for name, value in zip("hc", state if pair else [state])
    ]
    check_dtypes(where, dict(zip("hc", arrays)), "states")
    batch = tuple(arrays[0].shape[1:-1])
    expected = {
        name: (len(cells), *batch, size) for name, size in zip("hc", _parts(cells))
    }
    check_shapes(
        where,
        dict(zip("hc", arrays)),
        expected,
        "The first axis counts layers times directions",
    )
    return set_cell_carries(
        layer, zip(*(list(own_copy(array)) for array in arrays), strict=True)
    )


def carry_to_torch(layer: Any, carry: Any) -> Any:
    """A carry of ``layer`` as torch's h or ``(h, c)``, NumPy arrays ``(layers x
    directions, *B, H)``, in the carry's dtypes.
    """
    where = "carry_to_torch"
    _parts(cells_of(layer, where))
    check_concrete(where, carry, "parts of the carry")
    _check_carry(where, layer, carry)
    states = [
        np.stack([np.asarray(part) for part in parts])
        for parts in zip(*get_cell_carries(layer, carry), strict=True)
    ]
    return tuple(states) if len(states) == 2 else states[0]


def _parts(cells: list[Any]) -> list[int]:
    """The sizes of h, or of h and c, which must be those of every cell."""
    sizes = {(type(cell), cell.hidden_size, forward_size(cell)) for cell in cells}
    if len(sizes) != 1:
        raise ValueError(
            f"torch's states are of equal cells, but these are "
            f"{', '.join(map(summary, cells)) or 'none'}"
        )
    ((kind, hidden, outputs),) = sizes
    return [outputs, hidden] if kind.__name__ == "LSTM" else [outputs]


def _check_carry(where: str, layer: Any, carry: Any) -> None:
    """As `jaxrnn.unroll` checks it; nothing but the carry's first part tells its
    batch axes and the parameters' dtype.
    """
    parts = [leaf for leaf in jax.tree.leaves(carry) if hasattr(leaf, "dtype")] or [
        jnp.zeros(0)
    ]
    dtype = (
        jnp.result_type(parts[0])
        if jnp.issubdtype(parts[0].dtype, jnp.floating)
        else jnp.dtype(jnp.float32)
    )

    def first() -> Any:
        params = jax.tree.map(
            lambda leaf: leaf.astype(dtype), layer.init(jax.random.key(0), 1)
        )
        return layer.initial_carry(params, tuple(parts[0].shape[:-1]))

    check_carry(where, carry, jax.eval_shape(first), "the carry")
