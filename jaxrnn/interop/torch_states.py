"""Conversion of the states of PyTorch's recurrent modules to carries, and back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.arrays import is_array
from ..core.cell import Cell
from ..core.layer import Layer
from ..core.types import Carry, PyTree
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


def carry_from_torch(layer: Cell | Layer, state: PyTree) -> Any:
    """Convert torch's h, or ``(h, c)`` of an LSTM, to the carry of ``layer``.

    In half precision, the parts that accumulate (c, and a GRU's h) become float32,
    exactly.

    Args:
        layer: the jaxrnn layer, as `from_torch` returns it.
        state: h, or ``(h, c)``, each ``(layers x directions, *B, H)``. For a torch Cell
            add the first axis: ``h[None]``.

    Returns:
        The carry of ``layer``.

    Raises:
        TypeError: if the state is not h alone or the pair (h, c), as the layer needs.
        ValueError: if the shapes do not fit.

    Example::

        >>> import jax.numpy as jnp, jaxrnn
        >>> h = c = jnp.zeros((1, 5, 2))
        >>> carry = jaxrnn.interop.carry_from_torch(jaxrnn.LSTM(2), (h, c))
        >>> print(type(carry).__name__, carry.h.shape)
        LSTMState (5, 2)
    """
    where, cells = "carry_from_torch", cells_of(layer, "carry_from_torch")
    pair = len(_parts(cells)) == 2
    if isinstance(state, (tuple, list)) != pair or (pair and len(state) != 2):
        wanted, received = ("the pair (h, c)" if pair else "h alone"), describe(state)
        raise TypeError(
            f"{where}: {summary(layer)} needs {wanted}, as the torch module gives it, "
            f"but got {received}"
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


def carry_to_torch(layer: Cell | Layer, carry: Carry) -> Any:
    """Convert a carry of ``layer`` to torch's h or ``(h, c)``.

    Args:
        layer: the jaxrnn layer.
        carry: its carry, with leaves ``(*B, H)``.

    Returns:
        NumPy arrays ``(layers x directions, *B, H)``, in the dtypes of the carry.

    Raises:
        TypeError, ValueError: if the carry is not that of ``layer``, or the cells are
            not equal.

    Example::

        >>> import jax.numpy as jnp, jaxrnn
        >>> layer = jaxrnn.stack(jaxrnn.GRU(2), jaxrnn.GRU(2))
        >>> carry = (jnp.zeros((5, 2)), jnp.zeros((5, 2)))
        >>> jaxrnn.interop.carry_to_torch(layer, carry).shape
        (2, 5, 2)
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
    """Return the sizes of h, or of h and c; all cells must have the same."""
    sizes = {(type(cell), cell.hidden_size, forward_size(cell)) for cell in cells}
    if len(sizes) != 1:
        raise ValueError(
            f"torch's states are of equal cells, but these are "
            f"{', '.join(map(summary, cells)) or 'none'}"
        )
    ((kind, hidden, outputs),) = sizes
    return [outputs, hidden] if kind.__name__ == "LSTM" else [outputs]


def _check_carry(where: str, layer: Cell | Layer, carry: Carry) -> None:
    """Check the carry as `jaxrnn.unroll` does.

    The batch axes and the dtype of the parameters are inferred from the first leaf.
    """
    parts = [leaf for leaf in jax.tree.leaves(carry) if is_array(leaf)] or [
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
