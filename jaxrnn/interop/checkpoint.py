"""Weights of one layer out of a checkpoint of torch: selection, checks and layout.

The converters of published layers share it. A source is a state_dict, of tensors or of
plain arrays, or the path of a safetensors file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..core.arrays import is_array
from ..core.validation import describe
from . import safetensors_file
from .arithmetic import (
    check_dtypes,
    check_names,
    check_shapes,
    check_zero,
    concatenate_gates,
)
from .torch_spec import plain

Arrays = dict[str, Any]
HALVES = ("float16", "bfloat16")


def read_layer(where: str, source: Any, prefix: str, markers: Iterable[str]) -> Arrays:
    """Return the arrays under ``prefix``, whose dot may be left out.

    Args:
        where: the function that an error names.
        source: a state_dict, or the path of a safetensors file.
        prefix: what precedes the names of the layer.
        markers: names of which every layer that can be converted has one.

    Raises:
        TypeError: if ``source`` is neither.
        ValueError: if no marker is under ``prefix``; the error names prefixes that have
            one.
    """
    if isinstance(source, (str, os.PathLike)):
        source = safetensors_file.read(source, prefix)
    elif not isinstance(source, Mapping):
        raise TypeError(
            f"{where}: expected a state_dict (model.state_dict()) or the path of a "
            f"safetensors file, but it is {describe(source)}"
        )
    markers = tuple(markers)
    if prefix and not any(prefix + marker in source for marker in markers):
        prefix = prefix if prefix.endswith(".") else f"{prefix}."
    own = {
        name.removeprefix(prefix): value
        for name, value in source.items()
        if name.startswith(prefix)
    }
    if not any(marker in own for marker in markers):
        places = sorted(_places(source, markers), key=_by_numbers)
        found = ", ".join(repr(place) for place in places[:4])
        more = f" and {len(places) - 4} more" if len(places) > 4 else ""
        hint = (
            f"Such layers are under prefix={found}{more}"
            if places
            else f"It begins with {', '.join(sorted(source)[:6]) or 'nothing'}"
        )
        raise ValueError(
            f"{where}: there is no {' and no '.join(markers)} under prefix={prefix!r}: "
            f"these are not the weights of a layer that can be converted. {hint}"
        )
    return {name: plain(where, name, value) for name, value in own.items()}


def _places(names: Iterable[str], markers: tuple[str, ...]) -> set[str]:
    """Return the prefixes that have a marker."""
    return {
        name.removesuffix(marker)
        for name in names
        for marker in markers
        if name == marker or name.endswith(f".{marker}")
    }


def _by_numbers(place: str) -> list[tuple[int, str]]:
    """Return a key that sorts layer 2 before layer 10."""
    parts = place.split(".")
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def shape_of(where: str, arrays: Arrays, name: str, ndim: int) -> tuple[int, ...]:
    """Return the shape of an array that sizes are read from.

    Raises:
        ValueError: if it is missing, or does not have ``ndim`` axes.
    """
    if name not in arrays:
        raise ValueError(f"{where}: missing {name}")
    # what is no array is named by the check of dtypes
    shape = tuple(np.shape(arrays[name]))
    if len(shape) != ndim:
        raise ValueError(
            f"{where}: {name} must have {ndim} axes, but its shape is {shape}"
        )
    return shape


def check_layer(
    where: str,
    arrays: Arrays,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    float32: Iterable[str] = (),
    hint: str = "",
) -> None:
    """Check names, dtypes and shapes of all arrays of a layer.

    Args:
        where: the function that an error names.
        arrays: the arrays of the layer.
        shapes: the names that are expected, with their shapes.
        float32: names that may be float32 where the others are narrower, as those who
            train such layers keep them.
        hint: the end of an error about names or shapes.

    Raises:
        TypeError, ValueError: if something differs.
    """
    check_names(where, arrays, shapes, hint)
    wide = {name for name in float32 if str(_dtype(arrays.get(name))) == "float32"}
    others = {name: value for name, value in arrays.items() if name not in wide}
    narrow = all(str(_dtype(value)) in HALVES for value in others.values())
    check_dtypes(where, others if narrow else arrays)
    check_shapes(where, arrays, shapes, hint)


def _dtype(value: Any) -> Any:
    """Return the dtype of an array; None for what is none."""
    return value.dtype if is_array(value) else None


def leave_out_zeros(where: str, arrays: Arrays, names: Iterable[str]) -> Arrays:
    """Return the arrays without biases that the cell lacks, which must be zero."""
    for name in names:
        if name in arrays:
            check_zero(where, name, arrays[name], "the cell has no such bias")
    return {name: value for name, value in arrays.items() if name not in set(names)}


def heads_of(where: str, what: str, size: int, heads: int) -> int:
    """Return the size of a head.

    Raises:
        ValueError: if the number of heads does not divide ``size``.
    """
    if heads < 1 or size % heads:
        raise ValueError(
            f"{where}: {what} has {size} rows, which {heads} heads do not divide"
        )
    return size // heads


def columns(arrays: Arrays, *names: str) -> Any:
    """Return the kernels of linear maps side by side, transposed to (in, out)."""
    return concatenate_gates([arrays[f"{name}.weight"].T for name in names])


def taps(arrays: Arrays, *names: str) -> Any:
    """Return the kernels of depthwise convolutions side by side, ``(width, F)``.

    torch's last entry is of the present input; here it is the first.
    """
    kernels = [arrays[f"{name}.weight"][:, 0, ::-1].T for name in names]
    return concatenate_gates(kernels)
