"""Conversion of weights of state-spaces/mamba: Mamba and Mamba-2."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..cells import Mamba, Mamba2
from ..core.cell import Cell
from ..core.types import Params
from .arithmetic import concatenate_gates, on_device
from .checkpoint import (
    Arrays,
    check_layer,
    columns,
    heads_of,
    leave_out_zeros,
    read_layer,
    shape_of,
    taps,
)

BIASES = ("in_proj.bias", "out_proj.bias")


def from_mamba(
    source: Any, *, prefix: str = "", ngroups: int | None = None
) -> tuple[Cell, Params]:
    """Convert the weights of a Mamba or Mamba-2 layer to a cell and its parameters.

    Layers are those of state-spaces/mamba, the modules Mamba and Mamba2, which become
    `Mamba` and `Mamba2`; their names tell which it is. Kernels are transposed, the
    columns of Mamba-2 reordered from z, x, B, C, dt to x, B, C, z, dt, and the
    kernels of convolutions reversed in time; a convolution without a bias gets zeros.
    Sequences are ``(T, *B, D)``, where mamba's are ``(B, T, D)``. The dtype is kept.

    Options that the weights do not tell and that are not here are expected at their
    defaults: the gate of Mamba-2 stands before its norm (``norm_before_gate=False``),
    whose epsilon is 1e-5, and ``dt_limit`` does not bound dt. Not convertible are
    ``D_has_hdim``, a ``d_ssm`` below the inner width, and ``rmsnorm=False``.

    Args:
        source: a state_dict, of tensors or of plain arrays (also traced ones, so that
            the conversion can be differentiated); or the path of a safetensors file,
            or of the ``.index.json`` of several (package ``safetensors``).
        prefix: the place of the layer in its model: what precedes ``in_proj.weight``,
            such as ``"backbone.layers.0.mixer."``.
        ngroups: the number of groups of heads that share B and C in a Mamba-2 (default:
            1, as in mamba).

    Returns:
        ``(cell, params)``.

    Raises:
        TypeError: for weights that are not floating-point or have several dtypes (but
            ``A_log``, ``D``, the bias of dt and the norm may be float32 beside half
            precision), float64 without ``jax_enable_x64``, or a source that is neither.
        ValueError: for missing, unexpected or wrongly shaped weights, biases of linear
            maps that are not zero, and ``ngroups`` with a Mamba.

    Example::

        >>> import numpy as np, jaxrnn
        >>> shapes = {"in_proj.weight": (16, 4), "conv1d.weight": (8, 1, 4)}
        >>> shapes |= {"conv1d.bias": (8,), "x_proj.weight": (5, 8)}
        >>> shapes |= {"dt_proj.weight": (8, 1), "dt_proj.bias": (8,), "D": (8,)}
        >>> shapes |= {"A_log": (8, 2), "out_proj.weight": (4, 8)}
        >>> weights = {name: np.zeros(s, "float32") for name, s in shapes.items()}
        >>> cell, params = jaxrnn.interop.from_mamba(weights)
        >>> print(type(cell).__name__, cell.state_size, params["input_kernel"].shape)
        Mamba 2 (4, 16)
    """
    where = "from_mamba"
    arrays = read_layer(where, source, prefix, ("x_proj.weight", "dt_bias"))
    arrays = leave_out_zeros(where, arrays, BIASES)
    if "dt_bias" in arrays:
        cell, params = _mamba2(where, arrays, 1 if ngroups is None else ngroups)
    elif ngroups is not None:
        raise ValueError(
            f"{where}: ngroups is Mamba-2's, but these are the weights of Mamba: leave "
            f"it out"
        )
    else:
        cell, params = _mamba(where, arrays)
    params = on_device(params)
    cell.check(params)
    return cell, params


def _mamba(where: str, arrays: Arrays) -> tuple[Any, Arrays]:
    """Convert a Mamba."""
    H, state = shape_of(where, arrays, "A_log", 2)
    D = shape_of(where, arrays, "in_proj.weight", 2)[1]
    rank = shape_of(where, arrays, "dt_proj.weight", 2)[1]
    width = shape_of(where, arrays, "conv1d.weight", 3)[2]
    arrays = _with_conv_bias(arrays)
    shapes = {
        "in_proj.weight": (2 * H, D),
        "conv1d.weight": (H, 1, width),
        "conv1d.bias": (H,),
        "x_proj.weight": (rank + 2 * state, H),
        "dt_proj.weight": (H, rank),
        "dt_proj.bias": (H,),
        "A_log": (H, state),
        "D": (H,),
        "out_proj.weight": (D, H),
    }
    check_layer(where, arrays, shapes, float32=("A_log", "D", "dt_proj.bias"))
    cell = Mamba(H, state_size=state, rank=rank, conv=width)
    return cell, {
        "input_kernel": columns(arrays, "in_proj"),
        "conv_kernel": taps(arrays, "conv1d"),
        "conv_bias": arrays["conv1d.bias"],
        "select_kernel": columns(arrays, "x_proj"),
        "dt_kernel": columns(arrays, "dt_proj"),
        "dt_bias": arrays["dt_proj.bias"],
        "A_log": arrays["A_log"],
        "skip": arrays["D"],
        "output_kernel": columns(arrays, "out_proj"),
    }


def _mamba2(where: str, arrays: Arrays, groups: int) -> tuple[Any, Arrays]:
    """Convert a Mamba2."""
    D, H = shape_of(where, arrays, "out_proj.weight", 2)
    heads = shape_of(where, arrays, "dt_bias", 1)[0]
    convolved, _, width = shape_of(where, arrays, "conv1d.weight", 3)
    if (convolved - H) % 2 or convolved <= H:
        raise ValueError(
            f"{where}: conv1d.weight has {convolved} rows, but with {H} columns of "
            f"out_proj.weight it has those of x, and as many of B as of C. A d_ssm "
            f"below the inner width does not convert"
        )
    heads_of(where, "norm.weight", H, heads)
    key_size = heads_of(where, "B in conv1d.weight", (convolved - H) // 2, groups)
    heads_of(where, "dt_bias", heads, groups)
    arrays = _with_conv_bias(arrays)
    shapes = {
        "in_proj.weight": (H + convolved + heads, D),
        "conv1d.weight": (convolved, 1, width),
        "conv1d.bias": (convolved,),
        "dt_bias": (heads,),
        "A_log": (heads,),
        "D": (heads,),
        "norm.weight": (H,),
        "out_proj.weight": (D, H),
    }
    check_layer(
        where,
        arrays,
        shapes,
        float32=("A_log", "D", "dt_bias", "norm.weight"),
        hint="D_has_hdim, a d_ssm below the inner width and rmsnorm=False do not "
        "convert",
    )
    cell = Mamba2(H, num_heads=heads, num_groups=groups, key_size=key_size, conv=width)
    rows = arrays["in_proj.weight"]
    gate, inner, dt = rows[:H], rows[H : H + convolved], rows[H + convolved :]
    return cell, {
        "input_kernel": concatenate_gates([inner, gate, dt], 0).T,
        "conv_kernel": taps(arrays, "conv1d"),
        "conv_bias": arrays["conv1d.bias"],
        "dt_bias": arrays["dt_bias"],
        "A_log": arrays["A_log"],
        "D": arrays["D"],
        "norm_scale": arrays["norm.weight"],
        "output_kernel": columns(arrays, "out_proj"),
    }


def _with_conv_bias(arrays: Arrays) -> Arrays:
    """Return the arrays with zeros for a convolution without a bias."""
    kernel = arrays["conv1d.weight"]
    return {"conv1d.bias": np.zeros(kernel.shape[0], kernel.dtype), **arrays}
