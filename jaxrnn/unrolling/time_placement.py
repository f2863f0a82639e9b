"""Where the steps of an unroll lie: time may be split over devices."""

from __future__ import annotations

from ..core.cell import Cell
from ..core.explicit_mesh import axes_of
from ..core.layer import Layer
from ..core.types import Carry, Inputs, Params
from ..core.unroll_spec import UnrollSpec
from ..core.validation import check_inputs
from ..engines import Across
from ..engines.across.on_mesh import AcrossMesh


def placed(
    cell: Cell | Layer, params: Params, xs: Inputs, carry: Carry, spec: UnrollSpec
) -> UnrollSpec:
    """Return what is asked of an unroll, with the engine for where its steps lie.

    Where the type of the inputs splits time over an explicit mesh, it is `Across`
    around the engine that was asked for, on whole arrays.

    Raises:
        ValueError: if time is split, but not over devices that are there; or if the
            unroll is truncated, too.
    """
    axes = axes_of(xs)
    if axes is not None and axes[0] is not None:
        across = _across(spec, axes[0])
        _check_whole(spec)
        batch_ndim = len(check_inputs(xs, cell.feature_ndim)) - 1
        return spec.replace(engine=AcrossMesh(across, axes[1 : 1 + batch_ndim]))
    if spec.time_split is not None:
        spec.time_split.check((params, xs, carry, spec.mask, spec.resets))
        _check_whole(spec)
    return spec


def _across(spec: UnrollSpec, axis: str | tuple[str, ...]) -> Across:
    """Return the engine for inputs whose type splits time over ``axis``."""
    asked = spec.engine
    if not isinstance(asked, Across):
        return Across(axis, asked)
    if asked.axis != axis:
        raise ValueError(
            f"Across: axis is {asked.axis!r}, but the type of the inputs splits time "
            f"over {axis!r}: leave engine out, or name that axis"
        )
    return asked


def _check_whole(spec: UnrollSpec) -> None:
    """Check that gradients are not cut."""
    if spec.window is not None or spec.gradient_scale is not None:
        asked = "gradient_scale" if spec.window is None else f"window={spec.window}"
        raise ValueError(
            f"Across: truncated_unroll with {asked} cuts gradients between steps, "
            f"which devices that split time do not follow: use unroll, whose gradient "
            f"is whole, or split the batch"
        )
