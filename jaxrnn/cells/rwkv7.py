"""RWKV-7: a decay a channel, and a delta rule that erases at a key of its own."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..core.cell import Gate
from ..core.dtypes import accumulator
from ..core.types import Carry, Inputs, Params
from ..core.validation import check_features, check_positive, describe_tree
from ..matrix import Terms
from .matrix_base import BuiltinMatrixCell, check_norm_epsilon, join_heads
from .ops import along, dense, layer_norm
from .rwkv7_init import draw_time_mix, rank_of

# The decay is at least exp(-exp(-1/2)) = 0.545.
FASTEST_LOG_DECAY = -math.exp(-0.5)
# The rows of shift_mix.
MIXES = ("r", "w", "k", "v", "a", "g")


class Steps(NamedTuple):
    """What the steps of RWKV-7 are computed from.

    Attributes:
        r, k, key: ``(..., N, d_k)``, the receptance, the key that is written, and the
            unit key that is erased at (kappa).
        rate: ``(..., N, d_k)``, eta.
        log_decay: ``(..., N, d_k)``.
        v: ``(..., N, d_v)``.
        gate: ``(..., H)``.
    """

    r: Array
    k: Array
    key: Array
    rate: Array
    log_decay: Array
    v: Array
    gate: Array


@dataclasses.dataclass(frozen=True)
class RWKV7(BuiltinMatrixCell):
    """The time mix of RWKV-7, whose state is decayed, erased and written a channel::

        x_j = x_t + (x_{t-1} - x_t) * mu_j            for j in r, w, k, v, a, g
        r, k, v = x_r W_r, x_k W_k, x_v W_v
        log w = -exp(-1/2) sigmoid(w_0 + tanh(x_w W_1) W_2)
        eta = sigmoid(a_0 + x_a A_1 A_2)
        kappa = (k * k_k) / |k * k_k|                                   of each head
        k~ = k * (1 + (eta - 1) * k_a)
        S_t = (Diag(w) - (eta * kappa) kappa^T) S_{t-1} + k~ v^T        y_t = S_t^T r
        h_t = (GroupNorm(y_t) + (sum of r * k~ * r_k) v) * (sigmoid(x_g G_1) G_2)
        output = h_t W_o

    Peng et al. (2025, arXiv:2503.14456), initialized as in the authors' code: the
    biases spread decays from short to long over the channels, and a layer's depth
    enters, for which tell it ``layer_index`` and ``num_layers``. W_o is zero at first,
    so that a new cell in a `residual` layer changes nothing.

    x_{t-1} is the last valid input, zero before a sequence begins and after a reset.
    In the authors' networks the values of the first layer are mixed into those of the
    others. The layer `jaxrnn.layers.rwkv7` does this; a cell in a stack of its own does
    without. `jaxrnn.layers.rwkv_block` puts the channel mix after the cell.

    Parameters, with K = N d_k: ``input_kernel (D, 2 K + H)``, blocks r, k, v;
    ``shift_mix (6, D)``, rows mu of r, w, k, v, a, g; ``decay_bias (K,)``, ``decay_down
    (D, R_w)``, ``decay_up (R_w, K)``; ``rate_bias (K,)``, ``rate_down (D, R_a)``,
    ``rate_up (R_a, K)``; ``gate_down (D, R_g)``, ``gate_up (R_g, H)``; ``erase_scale
    (K,)`` k_k, ``rate_mix (K,)`` k_a and ``bonus (N, d_k)`` r_k; ``norm_scale (H,)``,
    ``norm_bias (H,)``; ``output_kernel (H, O)``; and with ``value_residual``
    ``value_bias (H,)``, ``value_down (D, R_v)``, ``value_up (R_v, H)``. Carry:
    `MatrixState` (h, S, recent), the last being the last two inputs ``(*B, 2, D)``.
    Output: ``(*B, O)``.

    Args:
        hidden_size: H, the values of all heads side by side: ``H = N d_v``.
        num_heads: N. The authors' heads have 64 channels each.
        key_size: d_k (default: d_v).
        layer_index: the number of the layer in its network, from 0.
        num_layers: the number of layers of the network.
        decay_rank: R_w (default: ``2.5 sqrt(D)``, to a multiple of 32).
        rate_rank: R_a (default: ``2.5 sqrt(D)``, likewise).
        gate_rank: R_g (default: ``5 sqrt(D)``, likewise).
        value_rank: R_v (default: ``1.7 sqrt(D)``, likewise).
        value_residual: whether the values of the first layer are mixed in::

                v <- v + (v_first - v) * sigmoid(v_0 + x_v V_1 V_2)

            The inputs are then pairs ``(x, v_first)``, with ``v_first (*B, H)``.
        shows_values: whether the outputs are pairs ``(output, v)``, v ``(*B, H)``, as
            the first layer's are where the others set ``value_residual``.
        output_size: O (default: D, the number of input features).
        norm_epsilon: what the norm of a head adds to the variance.
        learned_initial_carry: if True, the state before the first step is a parameter.

    Raises:
        ValueError: if ``num_heads`` does not divide ``hidden_size``, if ``layer_index``
            is not below ``num_layers``, for sizes below 1, or for a ``norm_epsilon``
            that is not above 0.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.cells.RWKV7(8, num_heads=2)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 3)))
        >>> carry.S.shape, carry.recent.shape, ys.shape
        ((2, 2, 4, 4), (2, 2, 3), (5, 2, 3))
    """

    _: dataclasses.KW_ONLY
    layer_index: int = 0
    num_layers: int = 1
    decay_rank: int | None = None
    rate_rank: int | None = None
    gate_rank: int | None = None
    value_rank: int | None = None
    value_residual: bool = False
    shows_values: bool = False
    output_size: int | None = None
    norm_epsilon: float = 64e-5

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, num_layers=self.num_layers)
        check_place(type(self).__name__, self.layer_index, self.num_layers)
        check_norm_epsilon(self, self.norm_epsilon)
        names = ("decay_rank", "rate_rank", "gate_rank", "value_rank", "output_size")
        given = {name: vars(self)[name] for name in names}
        check_positive(self, **{k: n for k, n in given.items() if n is not None})

    looks_back = 2

    @property
    def blocks(self) -> dict[str, int]:
        """The columns of ``input_kernel`` by name, in their order."""
        keys = self.num_heads * self.keys
        return {"r": keys, "k": keys, "v": self.hidden_size}

    @property
    def shown_size(self) -> int:
        return self.hidden_size * (2 if self.shows_values else 1)

    def ranks(self, input_size: int) -> dict[str, int]:
        """Return the ranks of the low-rank maps by name."""
        ranks = {
            "decay": self.decay_rank or rank_of(2.5, input_size),
            "rate": self.rate_rank or rank_of(2.5, input_size),
            "gate": self.gate_rank or rank_of(5.0, input_size),
        }
        if self.value_residual:
            ranks["value"] = self.value_rank or rank_of(1.7, input_size)
        return ranks

    def init(
        self, key: Array, input_size: int, dtype: DTypeLike | None = None
    ) -> Params:
        """Draw parameters for inputs of ``input_size`` features.

        Args:
            key: a `jax.random` key.
            input_size: D, the number of input features.
            dtype: of the parameters; by default JAX's default float.

        Returns:
            The dictionary of parameters that the class docstring lists.
        """
        check_positive(self, input_size=input_size)
        params = draw_time_mix(
            key,
            inputs=input_size,
            heads=self.num_heads,
            head_keys=self.keys,
            hidden=self.hidden_size,
            outputs=self.output_size or input_size,
            ranks=self.ranks(input_size),
            place=(self.layer_index, self.num_layers),
            dtype=jnp.dtype(dtype or jnp.result_type(float)),
        )
        return self.with_initial_carry(params)

    def project(self, params: Params, x: Inputs) -> Any:
        """Return x, or x and the first layer's values, in the accumulator's dtype.

        All maps stand in `look_back`, because x is mixed with the input before it.
        """
        x, first = self.inputs_of(x)
        check_features(self, params["input_kernel"], x)
        wide = accumulator(x.dtype)
        if first is None:
            return x.astype(wide)
        if first.shape != (*x.shape[:-1], self.hidden_size):
            raise ValueError(
                f"RWKV7: v_first must be (..., H) = "
                f"{(*x.shape[:-1], self.hidden_size)}, the values of the first layer, "
                f"but it is {tuple(first.shape)}"
            )
        return x.astype(wide), first.astype(wide)

    def inputs_of(self, x: Inputs) -> tuple[Array, Array | None]:
        """Return x, and the values of the first layer where they are given."""
        if not self.value_residual:
            return x, None
        if not isinstance(x, tuple) or len(x) != 2:
            raise TypeError(
                f"RWKV7: with value_residual=True the inputs are pairs (x, v_first), "
                f"v_first being the values of the first layer, but they are "
                f"{describe_tree(x)}: jaxrnn.layers.rwkv7 makes such a network"
            )
        return x

    # ------------------------------------------------------------ looking back
    def remembered_size(self, params: Params) -> int:
        return params["shift_mix"].shape[-1]

    def remembered(self, params: Params, z: Any) -> Float[Array, "*TB D"]:
        """Return x."""
        return z[0] if self.value_residual else z

    def look_back(self, params: Params, z: Any, recent: list[Array]) -> Steps:
        """Return all that a step needs, from x and the input before it."""
        now, before = recent
        first = z[1] if self.value_residual else None
        keys = self.blocks["k"]
        kernels = jnp.split(params["input_kernel"], [keys, 2 * keys], axis=-1)
        W = dict(zip("rkv", kernels, strict=True))
        mixed = dict(zip(MIXES, _mixed(params["shift_mix"], now, before), strict=True))
        r, k, v = (_map(mixed[name], W[name]) for name in "rkv")
        if first is not None:
            share = _low_rank(params, "value", mixed["v"])
            v = v + (first - v) * jax.nn.sigmoid(share)
        decay = jax.nn.sigmoid(_low_rank(params, "decay", mixed["w"], jnp.tanh))
        rate = jax.nn.sigmoid(_low_rank(params, "rate", mixed["a"]))
        gate = _low_rank(params, "gate", mixed["g"], jax.nn.sigmoid)
        return Steps(
            r=self.split_heads(r),
            k=self.split_heads(k * (1 + (rate - 1) * along(params["rate_mix"], k))),
            key=_unit(self.split_heads(k * along(params["erase_scale"], k))),
            rate=self.split_heads(rate),
            log_decay=self.split_heads(FASTEST_LOG_DECAY * decay),
            v=self.split_heads(v),
            gate=gate,
        )

    def terms(self, params: Params, z: Steps) -> Terms:
        """Return r, k~, v, log w, and what is erased: -kappa, added at eta kappa."""
        return Terms(z.r, z.k, z.v, z.log_decay, -z.key, z.rate * z.key)

    def readout(
        self, params: Params, y: Float[Array, "*TB N V"], z: Steps
    ) -> Float[Array, "*TB H"]:
        """Return the norm of each head with the bonus, gated; and v if it is shown."""
        ones = jnp.ones((self.values,), y.dtype)
        normed = join_heads(layer_norm(y, ones, self.norm_epsilon))
        scale, bias = (along(params[f"norm_{name}"], normed) for name in _NORM)
        bonus = params["bonus"].astype(z.r.dtype)
        bonus = (z.r * z.k * bonus.reshape((1,) * (z.r.ndim - 2) + bonus.shape)).sum(-1)
        h = (scale * normed + bias + join_heads(bonus[..., None] * z.v)) * z.gate
        return jnp.concatenate([h, join_heads(z.v)], -1) if self.shows_values else h

    def output(self, params: Params, carry: Carry, x: Inputs) -> Any:
        """Return ``h W_o``, and the values if they are shown."""
        if not self.shows_values:
            return dense(carry.h, params["output_kernel"])
        h, v = jnp.split(carry.h, 2, axis=-1)
        return dense(h, params["output_kernel"]), v

    def output_features(self, params: Params, input_size: int) -> int | None:
        return None if self.shows_values else params["output_kernel"].shape[-1]

    def gate_values(self, params: Params, carry: Carry, z: Any) -> dict[str, Gate]:
        """Return w (which keeps S) and eta, ``(..., N d_k)``."""
        steps = self.looked_back(params, carry, z)
        return {
            "decay": Gate(jnp.exp(join_heads(steps.log_decay)), keeps=True),
            "rate": Gate(join_heads(steps.rate)),
        }


_NORM = ("scale", "bias")


def _mixed(mix: Float[Array, "6 D"], now: Array, before: Array) -> list[Array]:
    """Return ``x + (x_before - x) * mu`` for every row mu."""
    change = before - now
    return [now + change * along(mu, now) for mu in mix]


def _map(x: Float[Array, "*TB D"], kernel: Float[Array, "D G"]) -> Array:
    """Return ``x W``, multiplied in the kernel's dtype and returned in that of x."""
    return dense(x.astype(kernel.dtype), kernel).astype(x.dtype)


def _low_rank(params: Params, name: str, x: Array, activation: Any = None) -> Array:
    """Return ``b + f(x W_down) W_up``; the gate has no b."""
    inner = _map(x, params[f"{name}_down"])
    y = _map(inner if activation is None else activation(inner), params[f"{name}_up"])
    bias = params.get(f"{name}_bias")
    return y if bias is None else y + along(bias, y)


def _unit(x: Float[Array, "*TB N K"]) -> Float[Array, "*TB N K"]:
    """Return ``x / max(|x|, 1e-12)`` over the last axis; its derivative is finite."""
    square = (x * x).sum(-1, keepdims=True)
    least = jnp.asarray(1e-24, x.dtype)
    return x * jax.lax.rsqrt(jnp.maximum(square, least))


def check_place(name: str, layer_index: object, num_layers: int) -> None:
    """Check that ``layer_index`` is the number of a layer.

    Raises:
        ValueError: if it is not.
    """
    is_int = isinstance(layer_index, int) and not isinstance(layer_index, bool)
    if not is_int or not 0 <= layer_index < num_layers:  # type: ignore[operator]
        raise ValueError(
            f"{name}: layer_index must be an int from 0 to {num_layers - 1}, because "
            f"num_layers is {num_layers}, but it is {layer_index!r}"
        )
