"""Truncation of the layers that call `unroll` themselves: it must not be forgotten."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.typing import ArrayLike

from ..core.cell import Cell
from ..core.layer import Layer
from ..core.types import Inputs, Params
from ..core.unroll_spec import UnrollSpec

_CUT: contextvars.ContextVar[tuple[Layer, UnrollSpec] | None] = contextvars.ContextVar(
    "jaxrnn_cut", default=None
)


@contextlib.contextmanager
def truncation_scope(
    layer: Layer | None, spec: UnrollSpec, xs: Inputs
) -> Iterator[None]:
    """Note that a layer runs under truncation, for calls of `unroll` inside it.

    Such a call would not know of the truncation; see `check_truncated`. For a cell
    (``layer`` is None) nothing is noted: an `unroll` in its step runs over another
    sequence.

    The XLA metadata are part of the key of jit's cache. So a function in the layer's
    code that was compiled without truncation is traced again.
    """
    cut = spec.gradient_scale is not None or (
        spec.window is not None and spec.window < jax.tree.leaves(xs)[0].shape[0]
    )
    token = _CUT.set((layer, spec) if layer is not None and cut else None)
    foreign = (
        layer is not None and cut and not type(layer).__module__.startswith("jaxrnn.")
    )
    asked = "gradient_scale" if spec.window is None else f"window={spec.window}"
    try:
        with (
            set_xla_metadata(jaxrnn_truncation=asked)
            if foreign
            else contextlib.nullcontext()
        ):
            yield
    finally:
        _CUT.reset(token)


def check_truncated(
    what: str,
    cell: Cell | Layer,
    params: Params,
    window: int | None,
    gradient_scale: ArrayLike | None,
) -> None:
    """Check that a call of `unroll` inside a truncated layer truncates, too.

    Raises:
        ValueError: if the cell has a carry, and the call does not cut its gradient as
            the enclosing `truncated_unroll` does.
    """
    if (cut := _CUT.get()) is None or not jax.tree.leaves(
        jax.eval_shape(cell.initial_carry, params)
    ):
        return
    layer, spec = cut
    asked = f"window={spec.window}" if spec.gradient_scale is None else "gradient_scale"
    if spec.window is not None and window is not None and window <= spec.window:
        return
    if spec.gradient_scale is not None and gradient_scale is not None:
        return
    name = asked.partition("=")[0]
    raise ValueError(
        f"{type(layer).__name__}.unroll calls jaxrnn.{what} on {type(cell).__name__}, "
        f"which does not know that the whole is "
        f"run by truncated_unroll with {asked}, so the gradient would not be cut: "
        f"where spec.{name} is not None call "
        f"jaxrnn.truncated_unroll(..., {name}=spec.{name}) there"
    )
