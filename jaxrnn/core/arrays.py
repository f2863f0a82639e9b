"""What counts as an array."""

from __future__ import annotations

from typing import Any, TypeGuard

from jaxtyping import Array


def is_array(value: object) -> TypeGuard[Array]:
    """Whether a value has a shape and a dtype.

    True for arrays of JAX, NumPy and other libraries, for tracers and for
    ``jax.ShapeDtypeStruct``; False for Python numbers, lists and None. This is the one
    place that asks by attributes, because these types have no common base class.
    """
    return hasattr(value, "shape") and hasattr(value, "dtype")


def plain_numbers(scores: dict[str, Any]) -> dict[str, Any]:
    """Convert JAX and NumPy scalars to Python numbers, for JSON."""
    return {
        name: value.item() if is_array(value) else value
        for name, value in scores.items()
    }
