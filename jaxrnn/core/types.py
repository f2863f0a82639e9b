"""Names for the pytrees that pass through every signature."""

from __future__ import annotations

from typing import Any

Params = Any  # a pytree of arrays: a dict with words as keys
# a pytree of arrays (*B, ...): an array, or a NamedTuple when it has several parts
Carry = Any
Inputs = Any  # an array (T, *B, D), or a pytree of arrays (T, *B, ...)
Context = Any  # a pytree of arrays (*B, ...) that are the same at every step
PyTree = Any  # any other pytree of arrays, an optimizer's state for instance
# a bool array (T, *B), or a jax.ShapeDtypeStruct of one where nothing is computed
Flags = Any
Size = Any  # an int, or a symbolic dimension of jax.export
