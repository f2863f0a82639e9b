"""Conversion of weights of fla (flash-linear-attention): GDN, GLA and RWKV-7."""

from __future__ import annotations

from typing import Any

from ..core.cell import Cell
from ..core.types import Params
from .arithmetic import on_device
from .checkpoint import read_layer
from .fla_layers import (
    GDN_HAS,
    GLA_HAS,
    RWKV7_HAS,
    convert_gated_delta_net,
    convert_gla,
    convert_rwkv7,
)


def from_fla(
    source: Any,
    *,
    norm_eps: float,
    prefix: str = "",
    num_heads: int | None = None,
    num_v_heads: int | None = None,
    allow_neg_eigval: bool = False,
    gate_logit_normalizer: float | None = None,
) -> tuple[Cell, Params]:
    """Convert the weights of a layer of fla to a cell and its parameters.

    Layers of flash-linear-attention (github.com/fla-org) that convert are
    GatedDeltaNet, GatedLinearAttention and RWKV7Attention, which become
    `GatedDeltaNet`, `GLA` and `RWKV7`; their names tell which it is. Kernels are
    transposed and packed, and those of convolutions reversed in time. Sequences are
    ``(T, *B, D)``, where fla's are ``(B, T, D)``. The dtype is kept.

    What the weights do not tell is said by options with the names of fla's
    ``config.json``. Options that are not here are expected at their defaults:
    ``gate_fn`` of a GLA, for example, is swish, and there is no ``feature_map`` and no
    ``clamp_min``.

    An RWKV7Attention with a ``v_lora``, that is, of any layer but the first, becomes a
    cell with ``value_residual``, whose inputs are pairs of x and the first layer's
    values. The first layer shows them with
    ``dataclasses.replace(cell, shows_values=True)`` and the same parameters. With
    ``fuse_norm``, fla divides kappa by ``sqrt(|kappa|^2 + 1e-6)``; the cell, like the
    authors' code and fla without ``fuse_norm``, by ``|kappa|``.

    Args:
        source: a state_dict, of tensors or of plain arrays (also traced ones, so that
            the conversion can be differentiated); or the path of a safetensors file,
            or of the ``.index.json`` of several (package ``safetensors``).
        norm_eps: of the output norm, which the weights do not tell. The configurations
            of fla have 1e-6 for Gated DeltaNet and GLA, and 1e-5 for RWKV-7.
        prefix: the place of the layer in its model: what precedes ``q_proj.weight``,
            such as ``"model.layers.0.attn."``.
        num_heads: the number of heads of q and k. Required for a GatedDeltaNet, whose
            weights do not tell it; the others' do, and must agree.
        num_v_heads: of a GatedDeltaNet, the number of heads of v, if q and k have
            fewer (default: as many, as in fla).
        allow_neg_eigval: whether beta of a GatedDeltaNet is doubled.
        gate_logit_normalizer: of a GLA (default: 16, as in fla).

    Returns:
        ``(cell, params)``.

    Raises:
        TypeError: for weights that are not floating-point or have several dtypes (but
            ``A_log``, ``dt_bias`` and norms may be float32 beside half precision),
            float64 without ``jax_enable_x64``, or a source that is neither.
        ValueError: for missing, unexpected or wrongly shaped weights, and for options
            that are missing or not the layer's.

    Example::

        >>> import numpy as np, jaxrnn
        >>> shapes = {"q_proj.weight": (4, 6), "k_proj.weight": (4, 6)}
        >>> shapes |= {"v_proj.weight": (8, 6), "g_proj.weight": (8, 6)}
        >>> shapes |= {"gk_proj.0.weight": (2, 6), "gk_proj.1.weight": (4, 2)}
        >>> shapes |= {"gk_proj.1.bias": (4,), "g_norm_swish_gate.weight": (4,)}
        >>> shapes |= {"o_proj.weight": (6, 8)}
        >>> weights = {name: np.zeros(s, "float32") for name, s in shapes.items()}
        >>> cell, params = jaxrnn.interop.from_fla(weights, norm_eps=1e-6)
        >>> print(type(cell).__name__, cell.num_heads, params["input_kernel"].shape)
        GLA 2 (6, 26)
    """
    where = "from_fla"
    arrays = read_layer(where, source, prefix, (GDN_HAS, GLA_HAS, RWKV7_HAS))
    if allow_neg_eigval and GDN_HAS not in arrays:
        raise ValueError(
            f"{where}: allow_neg_eigval is GatedDeltaNet's, but these are not its "
            f"weights: leave it out"
        )
    if num_v_heads is not None and GDN_HAS not in arrays:
        raise ValueError(
            f"{where}: num_v_heads is GatedDeltaNet's, but these are not its weights: "
            f"leave it out"
        )
    if gate_logit_normalizer is not None and GLA_HAS not in arrays:
        raise ValueError(
            f"{where}: gate_logit_normalizer is GLA's, but these are not its weights: "
            f"leave it out"
        )
    if GDN_HAS in arrays:
        cell, params = convert_gated_delta_net(
            where, arrays, (num_heads, num_v_heads), norm_eps, allow_neg_eigval
        )
    elif GLA_HAS in arrays:
        divisor = 16.0 if gate_logit_normalizer is None else gate_logit_normalizer
        cell, params = convert_gla(where, arrays, num_heads, norm_eps, divisor)
    else:
        cell, params = convert_rwkv7(where, arrays, num_heads, norm_eps)
    params = on_device(params)
    cell.check(params)
    return cell, params
