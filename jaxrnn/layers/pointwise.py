"""Layers without a carry, applied to every step by itself: dense, norms, functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Inexact

from ..cells import ops
from ..core.dtypes import accumulator
from ..core.layer import Layer
from ..core.types import Carry, Inputs, Params, PyTree
from ..core.unroll_spec import UnrollSpec
from ..core.validation import check_features, check_params, check_positive, describe
from ..initializers import LecunNormal


def dense(
    features: int,
    activation: Callable[[Array], Array] | None = None,
    use_bias: bool = True,
) -> Dense:
    """Map the features of every step by one affine map: ``y = f(x W + b)``.

    Parameters: ``kernel`` W ``(D, features)`` and, with ``use_bias``, ``bias``
    b ``(features,)``. Carry: empty.

    Args:
        features: the number of output features.
        activation: f, an elementwise function such as ``jax.nn.gelu``, or None for the
            identity.
        use_bias: whether b is added.

    Returns:
        A layer for `stack`.

    Raises:
        ValueError: if ``features`` is not an int of at least 1.
        TypeError: if ``activation`` is neither a function nor None.

    Example::

        >>> import jax, jaxrnn
        >>> layer = jaxrnn.stack(jaxrnn.GRU(4), jaxrnn.layers.dense(2))
        >>> params = layer.init(jax.random.key(0), input_size=3)
        >>> jaxrnn.unroll(layer, params, jax.numpy.ones((5, 2, 3)))[1].shape
        (5, 2, 2)
    """
    check_function("dense: activation", activation, optional=True)
    return Dense(features, activation, use_bias)


def layer_norm(epsilon: float = 1e-5) -> Norm:
    """Normalize the features of every step to mean 0 and variance 1::

        y = scale * (x - mean(x)) / sqrt(var(x) + epsilon) + bias

    Ba, Kiros & Hinton (2016, arXiv:1607.06450). Half-precision inputs are normalized in
    float32. Parameters: ``scale (D,)``, ones at first, and ``bias (D,)``. Carry: empty.

    Args:
        epsilon: added to the variance.

    Returns:
        A layer for `stack`.

    Example::

        >>> import jax, jaxrnn
        >>> layer = jaxrnn.stack(jaxrnn.GRU(4), jaxrnn.layers.layer_norm())
        >>> params = layer.init(jax.random.key(0), input_size=3)
        >>> ys = jaxrnn.unroll(layer, params, jax.numpy.ones((5, 2, 3)))[1]
        >>> bool(jax.numpy.abs(ys.mean(-1)).max() < 1e-6)
        True
    """
    return Norm(epsilon, centered=True)


def rms_norm(epsilon: float = 1e-5) -> Norm:
    """Divide the features of every step by their root mean square::

        y = scale * x / sqrt(mean(x^2) + epsilon)

    Zhang & Sennrich (2019, arXiv:1910.07467). Half-precision inputs are normalized in
    float32. Parameters: ``scale (D,)``, ones at first. Carry: empty.

    Args:
        epsilon: added to the mean square.

    Returns:
        A layer for `stack`.

    Example::

        >>> import jax, jaxrnn
        >>> layer = jaxrnn.layers.rms_norm()
        >>> params = layer.init(jax.random.key(0), input_size=2)
        >>> ys = jaxrnn.unroll(layer, params, jax.numpy.array([[3.0, -3.0]]))[1]
        >>> print(ys.round(3))
        [[ 1. -1.]]
    """
    return Norm(epsilon, centered=False)


def group_norm(groups: int, epsilon: float = 1e-5) -> Norm:
    """Normalize the features of every step to mean 0 and variance 1 in each group::

        y = scale * (x - mean(x)) / sqrt(var(x) + epsilon) + bias     of each group

    Wu & He (2018, arXiv:1803.08494). A group is of neighboring features; behind a cell
    with heads a group is a head. Half-precision inputs are normalized in float32.
    Parameters: ``scale (D,)``, ones at first, and ``bias (D,)``. Carry: empty.

    Args:
        groups: the number of groups, a divisor of D.
        epsilon: added to the variance.

    Returns:
        A layer for `stack`. Its ``init`` raises ValueError if ``groups`` does not
        divide the number of features.

    Raises:
        ValueError: if ``groups`` is not an int of at least 1.

    Example::

        >>> import jax, jaxrnn
        >>> layer = jaxrnn.layers.group_norm(2)
        >>> params = layer.init(jax.random.key(0), input_size=4)
        >>> ys = jaxrnn.unroll(layer, params, jax.numpy.array([[1.0, 3, 20, 10]]))[1]
        >>> print(ys.round(3))
        [[-1.  1.  1. -1.]]
    """
    return Norm(epsilon, centered=True, groups=groups)


def apply(function: Callable[[Any], Any], *, feature_ndim: PyTree = None) -> Apply:
    """Apply a function to every step: ``y = f(x)``.

    It has no parameters, and an empty carry.

    Args:
        function: f. It is given all of time at once, so it must take any leading axes
            and must not mix them. Use the same object each time, since layers compare
            by value: a function with a name rather than a new lambda in every call.
        feature_ndim: the number of feature axes of one input, as for a
            `jaxrnn.Cell`, if it is not that of the layer above: 0 for a function that
            makes vectors of tokens.

    Returns:
        A layer for `stack`.

    Raises:
        TypeError: if ``function`` is no function.

    Example::

        >>> import functools
        >>> import jax, jaxrnn
        >>> layer = jaxrnn.stack(jaxrnn.MinGRU(4), jaxrnn.layers.apply(jax.nn.gelu))
        >>> params = layer.init(jax.random.key(0), input_size=3)
        >>> jaxrnn.unroll(layer, params, jax.numpy.ones((5, 2, 3)))[1].shape
        (5, 2, 4)
        >>> one_hot = functools.partial(jax.nn.one_hot, num_classes=7)
        >>> tokens = jaxrnn.layers.apply(one_hot, feature_ndim=0)
        >>> layer = jaxrnn.stack(tokens, jaxrnn.GRU(4))
        >>> params = layer.init(jax.random.key(0), input_size=7)
        >>> jaxrnn.unroll(layer, params, jax.numpy.ones((5, 2), int))[1].shape
        (5, 2, 4)
    """
    check_function("apply: function", function)
    return Apply(function, feature_ndim)


def check_function(name: str, value: object, optional: bool = False) -> None:
    """Check that a value is callable, or None where that is allowed."""
    if not callable(value) and not (optional and value is None):
        raise TypeError(
            f"{name} must be a function such as jax.nn.gelu"
            f"{' or None' if optional else ''}, but it is {describe(value)}"
        )


class AbstractStateless(Layer):
    """A layer whose output at a step is a function of the input at that step.

    A subclass defines ``output(params, carry, x)``, which does not read the carry.
    """

    def init(
        self, key: Array, input_size: int, dtype: DTypeLike | None = None
    ) -> Params:
        return {}

    def initial_carry(
        self,
        params: Params,
        batch_shape: tuple[int, ...] = (),
        dtype: DTypeLike | None = None,
    ) -> tuple[()]:
        return ()

    def unroll(self, params: Params, carry: tuple[()], xs: Inputs, spec: UnrollSpec):
        return (), self.output(params, (), xs), ()


@dataclasses.dataclass(frozen=True)
class Dense(AbstractStateless):
    """The layer that `dense` builds: a linear map of the features of every step.

    Attributes:
        features: the number of output features.
        activation: an elementwise function of the result, or None.
        use_bias: whether a bias is added.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> layer = jaxrnn.layers.dense(2, jax.nn.relu, use_bias=False)
        >>> params = {"kernel": jnp.array([[1.0, -1.0]])}
        >>> jaxrnn.unroll(layer, params, jnp.array([[3.0], [-4.0]]))[1].tolist()
        [[3.0, 0.0], [0.0, 4.0]]
    """

    features: int
    activation: Callable[[Array], Array] | None = None
    use_bias: bool = True
    feature_ndim: ClassVar[int] = 1  # type: ignore[misc]

    def __post_init__(self):
        check_positive(self, features=self.features)

    def init(
        self, key: Array, input_size: int, dtype: DTypeLike | None = None
    ) -> Params:
        check_positive(self, input_size=input_size)
        dtype = dtype or jnp.result_type(float)
        params = {"kernel": LecunNormal()(key, (input_size, self.features), dtype)}
        if self.use_bias:
            params["bias"] = jnp.zeros((self.features,), dtype)
        return params

    def check(self, params: Params) -> None:
        check_params(self, params, _shapes(self, params, "kernel"))

    def output_features(self, params: Params, input_size: int) -> int | None:
        return self.features

    def output(
        self, params: Params, carry: Carry, x: Inputs
    ) -> Inexact[Array, "*TB F"]:
        check_features(self, params["kernel"], x)
        y = ops.dense(x, params["kernel"])
        if self.use_bias:
            y = y + ops.along(params["bias"], y)
        return y if self.activation is None else self.activation(y)


@dataclasses.dataclass(frozen=True)
class Norm(AbstractStateless):
    """The layer that `layer_norm`, `rms_norm` and `group_norm` build.

    Attributes:
        epsilon: added to the mean square before the root.
        centered: whether the mean is subtracted, and a bias added.
        groups: the number of groups of features, each normalized by itself.

    Example:
        >>> import jax, jaxrnn
        >>> from jaxrnn.layers import Norm, group_norm, rms_norm
        >>> rms_norm() == Norm(1e-5, centered=False)
        True
        >>> sorted(rms_norm().init(jax.random.key(0), input_size=4))
        ['scale']
        >>> sorted(group_norm(2).init(jax.random.key(0), input_size=4))
        ['bias', 'scale']
    """

    epsilon: float
    centered: bool
    groups: int = 1
    feature_ndim: ClassVar[int] = 1  # type: ignore[misc]

    def __post_init__(self):
        check_positive(self, groups=self.groups)

    def init(
        self, key: Array, input_size: int, dtype: DTypeLike | None = None
    ) -> Params:
        check_positive(self, input_size=input_size)
        if input_size % self.groups:
            raise ValueError(
                f"group_norm: groups must divide the number of features, but "
                f"{self.groups} does not divide {input_size}"
            )
        dtype = dtype or jnp.result_type(float)
        params = {"scale": jnp.ones((input_size,), dtype)}
        if self.centered:
            params["bias"] = jnp.zeros((input_size,), dtype)
        return params

    def check(self, params: Params) -> None:
        check_params(self, params, _shapes(self, params, "scale"))

    def output_features(self, params: Params, input_size: int) -> int | None:
        return input_size

    def output(
        self, params: Params, carry: Carry, x: Inputs
    ) -> Inexact[Array, "*TB D"]:
        check_features(self, params["scale"], x)
        a = x.astype(accumulator(x.dtype))
        if self.groups > 1:
            a = a.reshape(*x.shape[:-1], self.groups, x.shape[-1] // self.groups)
        if self.centered:
            a = a - a.mean(-1, keepdims=True)
        mean_square = jnp.square(a).mean(-1, keepdims=True)
        y = a * jax.lax.rsqrt(mean_square + jnp.asarray(self.epsilon, a.dtype))
        y = y.reshape(x.shape)
        y = y * ops.along(params["scale"], y)
        if self.centered:
            y = y + ops.along(params["bias"], y)
        return y.astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Apply(AbstractStateless):
    """The layer that `apply` builds: a function of the features of every step.

    Attributes:
        function: the function, which takes any leading axes.
        feature_ndim: the number of feature axes of one input; None for inputs of any
            kind.

    Example:
        >>> import jax, jaxrnn
        >>> layer = jaxrnn.layers.apply(jax.nn.relu)
        >>> layer.init(jax.random.key(0), input_size=1), layer.initial_carry({})
        ({}, ())
        >>> jaxrnn.unroll(layer, {}, jax.numpy.array([[-1.0], [2.0]]))[1].tolist()
        [[0.0], [2.0]]
    """

    function: Callable[[Any], Any]
    # None: it takes inputs of any kind.
    feature_ndim: Any = None

    def output_features(self, params: Params, input_size: int) -> int | None:
        if self.feature_ndim != 0:
            return None
        y = jax.eval_shape(self.function, jax.ShapeDtypeStruct((1,), jnp.int32))
        return y.shape[-1]

    def output(self, params: Params, carry: Carry, x: Inputs) -> Any:
        return self.function(x)


def _shapes(layer: Layer, params: Params, name: str) -> Any:
    """Return the shapes of a layer's parameters, D being that of ``params[name]``."""
    shape = jnp.shape(params.get(name, 0.0)) if isinstance(params, dict) else ()
    input_size = shape[0] if shape else 1
    return jax.eval_shape(lambda: layer.init(jax.random.key(0), input_size))
