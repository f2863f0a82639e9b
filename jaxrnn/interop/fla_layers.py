"""The layers of fla that `from_fla` converts: names, shapes and packing."""

from __future__ import annotations

from typing import Any

from ..cells import GLA, RWKV7, GatedDeltaNet
from .arithmetic import concatenate_gates
from .checkpoint import (
    Arrays,
    check_layer,
    columns,
    heads_of,
    leave_out_zeros,
    shape_of,
    taps,
)

CONVOLVED = ("q", "k", "v")
CONV_BIASES = tuple(f"{name}_conv1d.bias" for name in CONVOLVED)
# What tells the layers apart.
GDN_HAS = "a_proj.weight"
GLA_HAS = "gk_proj.0.weight"
RWKV7_HAS = "w_lora.lora.0.weight"


def convert_gated_delta_net(
    where: str,
    arrays: Arrays,
    asked: tuple[int | None, int | None],
    norm_eps: float,
    allow_neg_eigval: bool,
) -> tuple[Any, Arrays]:
    """Convert a GatedDeltaNet, with the numbers of heads of q and of v that are asked.

    Early versions of fla stored a D, too, which they did not use.
    """
    num_heads, num_v_heads = asked
    arrays = leave_out_zeros(where, arrays, CONV_BIASES)
    arrays.pop("D", None)
    keys, D = shape_of(where, arrays, "q_proj.weight", 2)
    values = shape_of(where, arrays, "v_proj.weight", 2)[0]
    heads = shape_of(where, arrays, "A_log", 1)[0]
    if num_heads is None:
        raise ValueError(
            f"{where}: num_heads is required for a GatedDeltaNet, whose weights do not "
            f"tell it: pass that of its config.json (it has {heads} heads of v, and "
            f"{keys} rows of q)"
        )
    key_size = heads_of(where, "q_proj.weight", keys, num_heads)
    value_size = heads_of(where, "v_proj.weight", values, heads)
    if num_v_heads is not None:
        _told(where, num_v_heads, heads, "A_log", "num_v_heads")
    elif num_heads < heads:
        raise ValueError(
            f"{where}: num_heads={num_heads}, but A_log has {heads} heads of v: pass "
            f"num_heads={heads}, or num_v_heads={heads}, too, if config.json has both"
        )
    if heads % num_heads:
        raise ValueError(
            f"{where}: num_heads={num_heads} does not divide the {heads} heads of v"
        )
    gate = {"g_proj.weight": (values, D)} if "g_proj.weight" in arrays else {}
    width, conv = _convolutions(where, arrays, keys, values)
    shapes = {
        "q_proj.weight": (keys, D),
        "k_proj.weight": (keys, D),
        "v_proj.weight": (values, D),
        "b_proj.weight": (heads, D),
        "a_proj.weight": (heads, D),
        **gate,
        **conv,
        "A_log": (heads,),
        "dt_bias": (heads,),
        "o_norm.weight": (value_size,),
        "o_proj.weight": (D, values),
    }
    check_layer(where, arrays, shapes, float32=("A_log", "dt_bias", "o_norm.weight"))
    cell = GatedDeltaNet(
        values,
        num_heads=heads,
        num_key_heads=None if num_heads == heads else num_heads,
        key_size=key_size,
        conv=width,
        allow_negative=allow_neg_eigval,
        use_gate=bool(gate),
        norm_epsilon=norm_eps,
    )
    names = ("q_proj", "k_proj", "v_proj", "b_proj", "a_proj")
    return cell, {
        "input_kernel": columns(arrays, *names, *(("g_proj",) if gate else ())),
        "A_log": arrays["A_log"],
        "dt_bias": arrays["dt_bias"],
        "norm_scale": arrays["o_norm.weight"],
        "output_kernel": arrays["o_proj.weight"].T,
        **_conv_kernel(arrays, width),
    }


def convert_gla(
    where: str,
    arrays: Arrays,
    num_heads: int | None,
    norm_eps: float,
    divisor: float,
) -> tuple[Any, Arrays]:
    """Convert a GatedLinearAttention."""
    arrays = leave_out_zeros(where, arrays, CONV_BIASES)
    keys, D = shape_of(where, arrays, "q_proj.weight", 2)
    values = shape_of(where, arrays, "v_proj.weight", 2)[0]
    rank = shape_of(where, arrays, GLA_HAS, 2)[0]
    names = ("g_norm_swish_gate.weight", "g_norm.weight")
    norm = next((name for name in names if name in arrays), names[0])
    value_size = shape_of(where, arrays, norm, 1)[0]
    heads = _told(where, num_heads, values // value_size, f"v_proj.weight and {norm}")
    heads_of(where, "v_proj.weight", values, heads)
    key_size = heads_of(where, "q_proj.weight", keys, heads)
    gate = {"g_proj.weight": (values, D)} if "g_proj.weight" in arrays else {}
    width, conv = _convolutions(where, arrays, keys, values)
    shapes = {
        "q_proj.weight": (keys, D),
        "k_proj.weight": (keys, D),
        "v_proj.weight": (values, D),
        **gate,
        "gk_proj.0.weight": (rank, D),
        "gk_proj.1.weight": (keys, rank),
        "gk_proj.1.bias": (keys,),
        **conv,
        norm: (value_size,),
        "o_proj.weight": (D, values),
    }
    hint = "Heads that share k and v (num_kv_heads) do not convert"
    shared = tuple(arrays["q_proj.weight"].shape) != tuple(
        shape_of(where, arrays, "k_proj.weight", 2)
    )
    check_layer(where, arrays, shapes, float32=(norm,), hint=hint if shared else "")
    cell = GLA(
        values,
        num_heads=heads,
        key_size=key_size,
        gate_rank=rank,
        gate_divisor=divisor,
        conv=width,
        use_gate=bool(gate),
        norm_epsilon=norm_eps,
    )
    gated = ("g_proj",) if gate else ()
    packed = (*(f"{name}_proj" for name in CONVOLVED), *gated, "gk_proj.0")
    return cell, {
        "input_kernel": columns(arrays, *packed),
        "alpha_kernel": arrays["gk_proj.1.weight"].T,
        "alpha_bias": arrays["gk_proj.1.bias"],
        "norm_scale": arrays[norm],
        "output_kernel": arrays["o_proj.weight"].T,
        **_conv_kernel(arrays, width),
    }


# The names of fla's low-rank maps, with those of the parameters.
LOW_RANK = {"w": "decay", "a": "rate", "g": "gate", "v": "value"}
SHIFTS = tuple(f"x_{name}" for name in "rwkvag")


def convert_rwkv7(
    where: str, arrays: Arrays, num_heads: int | None, norm_eps: float
) -> tuple[Any, Arrays]:
    """Convert an RWKV7Attention; early versions of fla stored all x_* in x_x."""
    keys, D = shape_of(where, arrays, "r_proj.weight", 2)
    values = shape_of(where, arrays, "v_proj.weight", 2)[0]
    heads, key_size = shape_of(where, arrays, "r_k", 2)
    _told(where, num_heads, heads, "r_k")
    heads_of(where, "v_proj.weight", values, heads)
    low_rank = [name for name in LOW_RANK if name != "v" or _has(arrays, "v_lora")]
    outputs = {"w": keys, "a": keys, "g": values, "v": values}
    ranks = {
        name: shape_of(where, arrays, f"{name}_lora.lora.0.weight", 2)[0]
        for name in low_rank
    }
    shapes: dict[str, tuple[int, ...]] = {
        "r_proj.weight": (keys, D),
        "k_proj.weight": (keys, D),
        "v_proj.weight": (values, D),
        "k_k": (keys,),
        "k_a": (keys,),
        "r_k": (heads, keys // heads),
        "g_norm.weight": (values,),
        "g_norm.bias": (values,),
        "o_proj.weight": (D, values),
    }
    for name, rank in ranks.items():
        shapes |= {
            f"{name}_lora.lora.0.weight": (rank, D),
            f"{name}_lora.lora.2.weight": (outputs[name], rank),
        }
        if name != "g":
            shapes[f"{name}_lora.lora.2.bias"] = (outputs[name],)
    together = "x_x" in arrays
    shapes |= {"x_x": (6, D)} if together else dict.fromkeys(SHIFTS, (1, 1, D))
    check_layer(where, arrays, shapes, float32=("g_norm.weight", "g_norm.bias"))
    cell = RWKV7(
        values,
        num_heads=heads,
        key_size=key_size,
        decay_rank=ranks["w"],
        rate_rank=ranks["a"],
        gate_rank=ranks["g"],
        value_rank=ranks.get("v"),
        value_residual="v" in ranks,
        norm_epsilon=key_size * norm_eps,
    )
    rows = [arrays[name].reshape(1, D) for name in SHIFTS if not together]
    return cell, {
        "input_kernel": columns(arrays, "r_proj", "k_proj", "v_proj"),
        "shift_mix": arrays["x_x"] if together else concatenate_gates(rows, 0),
        "erase_scale": arrays["k_k"],
        "rate_mix": arrays["k_a"],
        "bonus": arrays["r_k"],
        "norm_scale": arrays["g_norm.weight"],
        "norm_bias": arrays["g_norm.bias"],
        "output_kernel": arrays["o_proj.weight"].T,
        **_low_rank(arrays, ranks),
    }


def _low_rank(arrays: Arrays, ranks: dict[str, int]) -> Arrays:
    """Return the parameters of RWKV-7's low-rank maps."""
    params = {}
    for name in ranks:
        for part, entry in (("down", "0.weight"), ("up", "2.weight")):
            kernel = arrays[f"{name}_lora.lora.{entry}"]
            params[f"{LOW_RANK[name]}_{part}"] = kernel.T
        if name != "g":
            params[f"{LOW_RANK[name]}_bias"] = arrays[f"{name}_lora.lora.2.bias"]
    return params


def _has(arrays: Arrays, module: str) -> bool:
    """Whether there are weights of a module."""
    return any(name.startswith(f"{module}.") for name in arrays)


def _told(
    where: str, given: int | None, found: int, by: str, name: str = "num_heads"
) -> int:
    """Return the number of heads that weights tell.

    Raises:
        ValueError: if another number was given.
    """
    if given is not None and given != found:
        raise ValueError(
            f"{where}: {name}={given}, but by the shapes of {by} there are {found}"
        )
    return found


def _convolutions(
    where: str, arrays: Arrays, keys: int, values: int
) -> tuple[int | None, dict[str, tuple[int, ...]]]:
    """Return the width of the short convolutions, or None, and their shapes."""
    if not any(_has(arrays, f"{name}_conv1d") for name in CONVOLVED):
        return None, {}
    width = shape_of(where, arrays, "q_conv1d.weight", 3)[2]
    sizes = dict(zip(CONVOLVED, (keys, keys, values), strict=True))
    return width, {
        f"{name}_conv1d.weight": (size, 1, width) for name, size in sizes.items()
    }


def _conv_kernel(arrays: Arrays, width: int | None) -> Arrays:
    """Return the kernel of the convolution, if there is one."""
    if width is None:
        return {}
    names = [f"{name}_conv1d" for name in CONVOLVED]
    return {"conv_kernel": taps(arrays, *names)}
