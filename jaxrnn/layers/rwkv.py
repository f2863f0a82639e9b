"""RWKV-7: its channel mix, and the whole network with values that cross its layers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Inexact

from ..cells import ops
from ..cells.rwkv7 import RWKV7, check_place
from ..cells.rwkv7_init import shift_mix
from ..core.layer import Layer
from ..core.types import Carry, Inputs, Params
from ..core.unroll_spec import UnrollSpec
from ..core.validation import (
    check_features,
    check_int,
    check_params,
    check_positive,
)
from ..initializers import Uniform
from ..unrolling import unroll_part
from .compose import check_parts, init_in
from .convolution import AbstractRecentInputs
from .pointwise import layer_norm
from .pre_norm import MatchFeatures

Run = Callable[[Any, Params, int, Any], Any]


def rwkv_channel_mix(
    expansion: int = 4, *, layer_index: int = 0, num_layers: int = 1
) -> ChannelMix:
    """Mix the features of every input, and of the one before it, as RWKV-7 does::

        k = x_t + (x_{t-1} - x_t) * mu
        y_t = relu(k W_k)^2 W_v

    Peng et al. (2025, arXiv:2503.14456). It stands behind `jaxrnn.cells.RWKV7`, as an
    MLP does in other networks. Initialized as in the authors' code: W_v is zero at
    first, and mu depends on the depth of the layer.

    Parameters: ``shift_mix (D,)`` mu, ``key_kernel (D, expansion D)`` and
    ``value_kernel (expansion D, D)``. Carry: the last two inputs ``(*B, 2, D)``, the
    newest last; zeros at first and after a reset. Output: ``(T, *B, D)``.

    Args:
        expansion: how many times as many hidden units there are as features.
        layer_index: the number of the layer in its network, from 0.
        num_layers: the number of layers of the network.

    Returns:
        A layer for `unroll` and `stack`.

    Raises:
        ValueError: for sizes below 1, or if ``layer_index`` is not below
            ``num_layers``.

    Example::

        >>> import jax, jaxrnn
        >>> layer = jaxrnn.layers.rwkv_channel_mix()
        >>> params = layer.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(layer, params, jax.numpy.ones((5, 2, 3)))
        >>> carry.shape, ys.shape
        ((2, 2, 3), (5, 2, 3))
    """
    return ChannelMix(expansion, layer_index, num_layers)


def rwkv7(
    width: int,
    *,
    layers: int,
    num_heads: int | None = None,
    expansion: int = 4,
) -> RWKV7Network:
    """Build the network of RWKV-7, whose first values are mixed into all others::

        e = norm(x), or norm(x W_e + b_e) if x does not have ``width`` features
        for every layer:
            e = e + time_mix(norm(e), v_first)
            e = e + channel_mix(norm(e))
        y = norm(e)

    Peng et al. (2025, arXiv:2503.14456). time_mix is a `jaxrnn.cells.RWKV7`, v_first
    the values of the first one, and channel_mix a `rwkv_channel_mix`; all norms are
    layer norms. A `stack` of `rwkv_block` is the same network without v_first.

    Parameters: ``embedding``, those of `match_features`, ``input_norm``,
    ``output_norm``, and ``layer_0`` and so on, each ``{"time_norm", "time_mix",
    "channel_norm", "channel_mix"}``. Carry: for every layer the carries of its two
    mixes. Output: ``(T, *B, width)``.

    Args:
        width: the number of features between layers.
        layers: L, the number of layers.
        num_heads: of every time mix (default: heads of 64 features, or one).
        expansion: how many times as many hidden units a channel mix has.

    Returns:
        A layer for `unroll` and `stack`.

    Raises:
        ValueError: for sizes below 1, or if ``num_heads`` does not divide ``width``.

    Example::

        >>> import jax, jaxrnn
        >>> layer = jaxrnn.layers.rwkv7(8, layers=2, num_heads=2)
        >>> params = layer.init(jax.random.key(0), input_size=3)
        >>> jaxrnn.unroll(layer, params, jax.numpy.ones((5, 2, 3)))[1].shape
        (5, 2, 8)
    """
    most = 2**31 - 1
    check_int("rwkv7", "width", width, 1, most, "the features between layers")
    check_int("rwkv7", "layers", layers, 1, most, "the number of layers")
    heads = heads_of_64(width) if num_heads is None else num_heads
    time = [
        RWKV7(
            width,
            num_heads=heads,
            layer_index=i,
            num_layers=layers,
            value_residual=i > 0,
            shows_values=i == 0 and layers > 1,
        )
        for i in range(layers)
    ]
    places = [{"layer_index": i, "num_layers": layers} for i in range(layers)]
    channel = [rwkv_channel_mix(expansion, **place) for place in places]
    return RWKV7Network(width, tuple(time), tuple(channel))


def heads_of_64(width: int) -> int:
    """Return the number of heads of 64 features, or 1 where 64 does not divide."""
    return width // 64 if width % 64 == 0 else 1


@dataclasses.dataclass(frozen=True)
class ChannelMix(AbstractRecentInputs):
    """The layer that `rwkv_channel_mix` builds: an MLP of the last two inputs.

    Attributes:
        expansion: how many times as many hidden units there are as features.
        layer_index: the number of the layer in its network, from 0.
        num_layers: the number of layers of the network.

    Example:
        >>> import jax, jaxrnn
        >>> layer = jaxrnn.layers.rwkv_channel_mix(expansion=2)
        >>> params = layer.init(jax.random.key(0), input_size=3)
        >>> params["key_kernel"].shape, bool((params["value_kernel"] == 0).all())
        ((3, 6), True)
    """

    expansion: int = 4
    layer_index: int = 0
    num_layers: int = 1

    def __post_init__(self):
        check_positive(self, expansion=self.expansion, num_layers=self.num_layers)
        check_place("rwkv_channel_mix", self.layer_index, self.num_layers)

    def init(
        self, key: Array, input_size: int, dtype: DTypeLike | None = None
    ) -> Params:
        check_positive(self, input_size=input_size)
        dtype = dtype or jnp.result_type(float)
        bound, hidden = 0.5 / math.sqrt(input_size), self.expansion * input_size
        exponent = (1 - self.layer_index / self.num_layers) ** 4
        draw = Uniform(-bound, bound)
        return {
            "shift_mix": jnp.asarray(shift_mix(exponent, input_size), dtype),
            "key_kernel": draw(key, (input_size, hidden), dtype),
            "value_kernel": jnp.zeros((hidden, input_size), dtype),
        }

    def check(self, params: Params) -> None:
        mix = params.get("shift_mix", 0.0) if isinstance(params, dict) else 0.0
        features = (jnp.shape(mix) or (1,))[0]
        shapes = jax.eval_shape(lambda: self.init(jax.random.key(0), features))
        check_params(self, params, shapes)

    def initial_carry(
        self,
        params: Params,
        batch_shape: tuple[int, ...] = (),
        dtype: DTypeLike | None = None,
    ) -> Inexact[Array, "*B 2 D"]:
        mix = params["shift_mix"]
        return jnp.zeros((*batch_shape, 2, mix.shape[0]), dtype or mix.dtype)

    def check_inputs(self, params: Params, xs: Inputs) -> None:
        check_features(self, params["key_kernel"], xs)

    def of_lags(self, params: Params, lags: list[Array]) -> Array:
        now, before = lags
        mixed = now + (before - now) * ops.along(params["shift_mix"], now)
        hidden = jnp.square(jax.nn.relu(ops.dense(mixed, params["key_kernel"])))
        return ops.dense(hidden, params["value_kernel"])


@dataclasses.dataclass(frozen=True)
class RWKV7Network(Layer):
    """The layer that `rwkv7` builds: time mixes and channel mixes in turn.

    Attributes:
        width: the number of features between layers.
        time_mixes: a `jaxrnn.cells.RWKV7` for each layer; the first shows its values to
            all others.
        channel_mixes: a `ChannelMix` for each layer.

    Example:
        >>> import jaxrnn
        >>> layer = jaxrnn.layers.rwkv7(8, layers=2, num_heads=2)
        >>> [time.value_residual for time in layer.time_mixes]
        [False, True]
        >>> sorted(layer.parts())
        ['embedding', 'input_norm', 'layer_0', 'layer_1', 'output_norm']
        >>> sorted(layer.parts()["layer_0"])
        ['channel_mix', 'channel_norm', 'time_mix', 'time_norm']
    """

    width: int
    time_mixes: tuple[RWKV7, ...]
    channel_mixes: tuple[ChannelMix, ...]
    feature_ndim: ClassVar[int] = 1  # type: ignore[misc]

    def parts(self) -> dict[str, Any]:
        """Return the parts of the network by the names of their parameters."""
        norm: Any = layer_norm()
        return {
            "embedding": MatchFeatures(self.width),
            "input_norm": norm,
            **{
                f"layer_{i}": {
                    "time_norm": norm,
                    "time_mix": time,
                    "channel_norm": norm,
                    "channel_mix": channel,
                }
                for i, (time, channel) in enumerate(
                    zip(self.time_mixes, self.channel_mixes, strict=True)
                )
            },
            "output_norm": norm,
        }

    def init(
        self, key: Array, input_size: int, dtype: DTypeLike | None = None
    ) -> Params:
        def draw(parts, key):
            keys = jax.random.split(key, len(parts))
            return {
                name: draw(part, k)
                if isinstance(part, dict)
                else init_in(part, k, self.width, dtype)
                for (name, part), k in zip(parts.items(), keys, strict=True)
            }

        k_embedding, k_rest = jax.random.split(key)
        embedding, *rest = self.parts().items()
        first = init_in(embedding[1], k_embedding, input_size, dtype)
        return {"embedding": first, **draw(dict(rest), k_rest)}

    def check(self, params: Params) -> None:
        parts = self.parts()
        one = dict.fromkeys(parts, parts["embedding"])
        if not isinstance(params, dict) or set(params) != set(parts):
            check_parts(self, params, one)
        for name, part in parts.items():
            if isinstance(part, dict):
                check_parts(self, params[name], part)
            else:
                part.check(params[name])

    def initial_carry(
        self,
        params: Params,
        batch_shape: tuple[int, ...] = (),
        dtype: DTypeLike | None = None,
    ) -> tuple[Carry, ...]:
        return tuple(
            tuple(
                mix.initial_carry(params[f"layer_{i}"][name], batch_shape, dtype)
                for name, mix in (("time_mix", time), ("channel_mix", channel))
            )
            for i, (time, channel) in enumerate(
                zip(self.time_mixes, self.channel_mixes, strict=True)
            )
        )

    def unroll(
        self, params: Params, carry: tuple[Carry, ...], xs: Inputs, spec: UnrollSpec
    ) -> tuple[Carry, Array, Carry]:
        lasts: list[Any] = []
        everywhere: list[Any] = []

        def run(mix, own, place, x):
            layer, half = divmod(place, 2)
            last, y, carries = unroll_part(mix, own, carry[layer][half], x, spec, place)
            lasts.append(last)
            everywhere.append(carries)
            return y

        ys = self.apply(params, xs, run)
        return _in_pairs(lasts), ys, _in_pairs(everywhere)

    def output(self, params: Params, carry: tuple[Carry, ...], x: Inputs) -> Array:
        def run(mix, own, place, x):
            layer, half = divmod(place, 2)
            return mix.output(own, carry[layer][half], x)

        return self.apply(params, x, run)

    def apply(self, params: Params, x: Inputs, run: Run) -> Array:
        """Return the outputs; ``run(mix, params, place, x)`` gives those of a mix.

        Mixes are numbered in their order, two a layer.
        """
        norm: Any = layer_norm()
        e = MatchFeatures(self.width).output(params["embedding"], (), x)
        e = norm.output(params["input_norm"], (), e)
        first = None
        for i, time in enumerate(self.time_mixes):
            own = params[f"layer_{i}"]
            normed = norm.output(own["time_norm"], (), e)
            inputs = (normed, first) if time.value_residual else normed
            y = run(time, own["time_mix"], 2 * i, inputs)
            if time.shows_values:
                y, first = y
            e = e + y
            normed = norm.output(own["channel_norm"], (), e)
            mix = self.channel_mixes[i]
            e = e + run(mix, own["channel_mix"], 2 * i + 1, normed)
        return norm.output(params["output_norm"], (), e)

    def output_features(self, params: Params, input_size: int) -> int | None:
        return self.width


def _in_pairs(values: list[Any]) -> tuple[Any, ...]:
    return tuple(zip(values[::2], values[1::2], strict=True))
