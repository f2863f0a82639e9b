"""Layers that read the last few inputs: a causal convolution, and a shift in time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Inexact

from ..cells import ops
from ..core.dtypes import accumulator
from ..core.layer import Layer
from ..core.types import Inputs, Params
from ..core.unroll_spec import UnrollSpec
from ..core.validation import (
    check_features,
    check_int,
    check_one_array,
    check_params,
    check_positive,
)
from ..initializers import Initializer, Uniform
from .pointwise import check_function
from .recent_inputs import check_carry_dtype, unroll_recent_inputs


def causal_conv(
    width: int,
    activation: Callable[[Array], Array] | None = None,
    *,
    use_bias: bool = True,
    kernel_init: Initializer | None = None,
) -> CausalConv:
    """Convolve every feature with the last ``width`` inputs (depthwise, causal)::

        y_t = f(b + sum over j of w_j * x_{t-j}),   j = 0, ..., width - 1

    It stands before the recurrence in Mamba, Griffin, xLSTM and gated DeltaNets, mostly
    with a width of 4. Parameters: ``kernel (width, D)``, whose row j is w_j, and with
    ``use_bias`` the ``bias (D,)``. Carry: the last ``width`` inputs
    ``(*B, width, D)``, the newest last, as they came and before any activation; zeros
    at first. At a reset they become zeros. A masked step is not in the convolution:
    x_{t-1} is the last valid input before step t. No engine runs it, because nothing in
    it is recurrent; with ``return_carries`` and scaled gradients it runs step by step.

    Args:
        width: the number of inputs that an output depends on, at least 2.
        activation: f, an elementwise function such as ``jax.nn.silu``, or None.
        use_bias: whether b is added.
        kernel_init: initializer of the kernel. By default uniform within ``1 /
            sqrt(width)``, as torch draws it.

    Returns:
        A layer for `unroll` and `stack`.

    Raises:
        ValueError: if ``width`` is not an int of at least 2.
        TypeError: if ``activation`` or ``kernel_init`` is neither a function nor None.

    Example::

        >>> import jax, jaxrnn
        >>> conv = jaxrnn.layers.causal_conv(4, jax.nn.silu)
        >>> layer = jaxrnn.stack(conv, jaxrnn.MinGRU(8))
        >>> params = layer.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(layer, params, jax.numpy.ones((5, 2, 3)))
        >>> carry[0].shape, ys.shape
        ((2, 4, 3), (5, 2, 8))
    """
    why = "a width of 1 reads no earlier input, which layers.dense does as well"
    width = check_int("causal_conv", "width", width, 2, 2**31 - 1, why)
    check_function("causal_conv: activation", activation, optional=True)
    check_function("causal_conv: kernel_init", kernel_init, optional=True)
    return CausalConv(width, activation, use_bias, kernel_init)


def shift(features: int) -> Shift:
    """Delay the inputs by one step: ``y_t = x_{t-1}``, and zeros at first.

    With `concat` a layer above sees the current and the previous input, as by the token
    shift of RWKV (Peng et al. 2023, arXiv:2305.13048). It has no parameters. Carry: the
    last two inputs ``(*B, 2, features)``, the newest last, so that the output is a
    function of the carry. After a reset the previous input is zero; masked steps are
    left out, as in `causal_conv`.

    Args:
        features: the number of input features. Without parameters it could not be known
            otherwise when the first carry is made.

    Returns:
        A layer for `unroll` and `stack`. Its ``init`` raises ValueError if the inputs
        have another number of features.

    Raises:
        ValueError: if ``features`` is not an int of at least 1.

    Example::

        >>> import jax, jaxrnn
        >>> layer = jaxrnn.layers.shift(1)
        >>> params = layer.init(jax.random.key(0), input_size=1)
        >>> xs = jax.numpy.array([[1.0], [2.0], [3.0]])
        >>> jaxrnn.unroll(layer, params, xs)[1].ravel().tolist()
        [0.0, 1.0, 2.0]
    """
    return Shift(features)


class AbstractRecentInputs(Layer):
    """A layer whose output is a function of the last few inputs, and whose carry they
    are.

    A subclass defines ``initial_carry`` and ``of_lags``.
    """

    feature_ndim: ClassVar[int] = 1  # type: ignore[misc]

    def of_lags(self, params: Params, lags: list[Array]) -> Array:
        """Compute the outputs from ``[x_t, x_{t-1}, ...]``, with any leading axes."""
        raise NotImplementedError

    def check_inputs(self, params: Params, xs: Inputs) -> None:
        """Raise an error if the inputs do not fit."""

    def unroll(self, params: Params, carry: Array, xs: Array, spec: UnrollSpec):
        self.check_inputs(params, xs)
        name = type(self).__name__
        check_carry_dtype(name, carry, xs)
        if xs.ndim != carry.ndim:
            raise ValueError(
                f"{name}: the inputs must be vectors (T, *B, D) with the batch axes "
                f"{tuple(carry.shape[:-2])}, but their shape is {tuple(xs.shape)}: "
                f"flatten the features of a layer of pictures below it"
            )
        last, lags, carries = unroll_recent_inputs(carry, xs, spec)
        return last, self.of_lags(params, lags), carries

    def output_features(self, params: Params, input_size: int) -> int | None:
        return input_size

    def output(
        self, params: Params, carry: Inexact[Array, "*TB W D"], x: Inputs
    ) -> Inexact[Array, "*TB D"]:
        width = carry.shape[-2]
        lags = [carry[..., width - 1 - j, :].astype(x.dtype) for j in range(width)]
        return self.of_lags(params, lags)


@dataclasses.dataclass(frozen=True)
class CausalConv(AbstractRecentInputs):
    """The layer that `causal_conv` builds: a depthwise convolution of the last inputs.

    Attributes:
        width: the number of inputs that an output depends on.
        activation: an elementwise function of the result, or None.
        use_bias: whether a bias is added.
        kernel_init: the initializer of the kernel, or None for uniform numbers.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> layer = jaxrnn.layers.causal_conv(2, use_bias=False)
        >>> params = {"kernel": jnp.array([[0.5], [0.25]])}  # of x_t and x_{t-1}
        >>> xs = jnp.array([[4.0], [8.0], [0.0]])
        >>> jaxrnn.unroll(layer, params, xs)[1].ravel().tolist()
        [2.0, 5.0, 2.0]
    """

    width: int
    activation: Callable[[Array], Array] | None = None
    use_bias: bool = True
    kernel_init: Initializer | None = None

    def init(
        self, key: Array, input_size: int, dtype: DTypeLike | None = None
    ) -> Params:
        check_positive(self, input_size=input_size)
        dtype = dtype or jnp.result_type(float)
        bound = 1 / math.sqrt(self.width)
        shape = (self.width, input_size)
        draw = self.kernel_init or Uniform(-bound, bound)
        params = {"kernel": draw(key, shape, dtype)}
        if self.use_bias:
            params["bias"] = jnp.zeros((input_size,), dtype)
        return params

    def check(self, params: Params) -> None:
        kernel = params.get("kernel", 0.0) if isinstance(params, dict) else 0.0
        features = (jnp.shape(kernel) or (1,))[-1]
        expected = {"kernel": _shape(self.width, features)}
        if self.use_bias:
            expected["bias"] = _shape(features)
        check_params(self, params, expected)

    def initial_carry(
        self,
        params: Params,
        batch_shape: tuple[int, ...] = (),
        dtype: DTypeLike | None = None,
    ) -> Inexact[Array, "*B W D"]:
        kernel = params["kernel"]
        return jnp.zeros((*batch_shape, *kernel.shape), dtype or kernel.dtype)

    def check_inputs(self, params: Params, xs: Inputs) -> None:
        check_features(self, params["kernel"][0], xs)

    def of_lags(self, params: Params, lags: list[Array]) -> Array:
        wide = accumulator(lags[0].dtype)
        y = jnp.zeros((), wide).reshape((1,) * lags[0].ndim)
        if self.use_bias:
            y = ops.along(params["bias"].astype(wide), lags[0].astype(wide))
        for j, x in enumerate(lags):
            x = x.astype(wide)
            y = y + ops.along(params["kernel"][j], x) * x
        y = y.astype(lags[0].dtype)
        return y if self.activation is None else self.activation(y)


@dataclasses.dataclass(frozen=True)
class Shift(AbstractRecentInputs):
    """The layer that `shift` builds: the inputs, one step later.

    Attributes:
        features: the number of input features.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> layer = jaxrnn.layers.shift(1)
        >>> carry, ys = jaxrnn.unroll(layer, {}, jnp.array([[1.0], [2.0], [3.0]]))
        >>> carry.ravel().tolist()  # the last two inputs, the newest last
        [2.0, 3.0]
    """

    features: int

    def __post_init__(self):
        check_positive(self, features=self.features)

    def init(
        self, key: Array, input_size: int, dtype: DTypeLike | None = None
    ) -> Params:
        if input_size != self.features:
            raise ValueError(_other_size(self.features, input_size))
        return {}

    def initial_carry(
        self,
        params: Params,
        batch_shape: tuple[int, ...] = (),
        dtype: DTypeLike | None = None,
    ) -> Inexact[Array, "*B 2 D"]:
        shape = (*batch_shape, 2, self.features)
        return jnp.zeros(shape, dtype or jnp.result_type(float))

    def check_inputs(self, params: Params, xs: Inputs) -> None:
        check_one_array("shift", xs)
        if xs.shape[-1] != self.features:
            raise ValueError(_other_size(self.features, xs.shape[-1]))

    def of_lags(self, params: Params, lags: list[Array]) -> Array:
        return lags[1]


def _shape(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.result_type(float))


def _other_size(features: int, input_size: int) -> str:
    """Return the error of a shift that meets inputs of another size."""
    return (
        f"shift: it was made for inputs of {features} features, but they have "
        f"{input_size}: write shift({input_size})"
    )
