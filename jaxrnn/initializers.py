"""Initializers that compare by value, so that equal cells do not compile again.

Each is called as ``init(key, shape, dtype)`` for ONE gate block at a time: a packed
LSTM kernel ``(D, 4H)`` is four draws side by side. This matters for orthogonal
matrices: if the packed kernel were drawn as a whole, each gate's block would have
singular values near 0.5 instead of 1, and gradients would decay faster.

Any function ``(key, shape, dtype) -> array`` may be used in place of these classes. A
closure that is created anew each time, such as ``jax.nn.initializers.orthogonal()``,
compares by identity, so that the cell which holds it compiles again.

Which one to use: the defaults of the cells. `TorchUniform` reproduces torch, `Identity`
makes the IRNN, and `Chrono`, `Linspace` and `PowerLaw` spread the time constants of a
layer's units through the biases of its gates::

    >>> import jax
    >>> from jaxrnn.initializers import Orthogonal
    >>> kernel = Orthogonal()(jax.random.key(0), (4, 4), "float32")
    >>> bool(abs(kernel @ kernel.T - jax.numpy.eye(4)).max() < 1e-5)
    True
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from .core.dtypes import accumulator

Initializer = Callable[[Array, tuple[int, ...], Any], Array]


@dataclasses.dataclass(frozen=True)
class Zeros:
    """All zeros.

    Example::

        >>> import jax
        >>> Zeros()(jax.random.key(0), (2,), "float32").tolist()
        [0.0, 0.0]
    """

    def __call__(self, key, shape, dtype):
        return jnp.zeros(shape, dtype)


@dataclasses.dataclass(frozen=True)
class LecunNormal:
    """Normal with variance 1 / fan_in, truncated at two standard deviations.

    LeCun et al. (1998); fan_in is the number of rows of the gate block.

    Example::

        >>> import jax
        >>> LecunNormal()(jax.random.key(0), (3, 4), "float32").shape
        (3, 4)
    """

    def __call__(self, key, shape, dtype):
        return jax.nn.initializers.lecun_normal()(key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class GlorotUniform:
    """U(-a, a) with ``a = sqrt(6 / (fan_in + fan_out))`` of the gate block.

    Glorot & Bengio (2010).

    Example::

        >>> import jax
        >>> GlorotUniform()(jax.random.key(0), (3, 4), "float32").shape
        (3, 4)
    """

    def __call__(self, key, shape, dtype):
        return jax.nn.initializers.glorot_uniform()(key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class Normal:
    """Normal with standard deviation ``gain / sqrt(fan_in)``.

    A random recurrent matrix then has a spectral radius near ``gain``.

    Args:
        gain: the factor of the standard deviation.

    Example::

        >>> import jax
        >>> Normal(gain=0.5)(jax.random.key(0), (4, 4), "float32").shape
        (4, 4)
    """

    gain: float = 1.0

    def __call__(self, key, shape, dtype):
        return (
            self.gain
            / math.sqrt(shape[0])
            * jax.random.normal(key, shape, accumulator(dtype))
        ).astype(dtype)


@dataclasses.dataclass(frozen=True)
class FixedNormal:
    """Normal with a standard deviation that does not depend on the shape.

    Language models are often initialized so, with 0.02.

    Args:
        stddev: the standard deviation.

    Example::

        >>> import jax
        >>> FixedNormal(0.02)(jax.random.key(0), (4, 4), "float32").shape
        (4, 4)
    """

    stddev: float = 0.02

    def __call__(self, key, shape, dtype):
        draw = jax.random.normal(key, shape, accumulator(dtype))
        return (self.stddev * draw).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Orthogonal:
    """Uniform orthogonal matrices: ``gain * Q sign(diag R)`` with ``Q R = qr(normal)``.

    Saxe et al. (2014); Mezzadri (2007). A rectangular block has orthonormal rows or
    columns, whichever are fewer.

    Args:
        gain: the factor of the matrix, its singular values.

    Example::

        >>> import jax
        >>> kernel = Orthogonal(gain=2.0)(jax.random.key(0), (3, 3), "float32")
        >>> round(float(jax.numpy.linalg.norm(kernel, 2)), 3)
        2.0
    """

    gain: float = 1.0

    def __call__(self, key, shape, dtype):
        wide = accumulator(dtype)  # qr has no half-precision form
        return jax.nn.initializers.orthogonal(self.gain)(key, shape, wide).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Identity:
    """The identity matrix times ``gain``.

    With relu and zero bias it makes `jaxrnn.Elman` the IRNN (Le, Jaitly & Hinton 2015,
    arXiv:1504.00941).

    Args:
        gain: the factor of the matrix.

    Example::

        >>> import jax
        >>> Identity()(jax.random.key(0), (2, 2), "float32").tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    gain: float = 1.0

    def __call__(self, key, shape, dtype):
        return self.gain * jnp.eye(shape[0], shape[1], dtype=dtype)


@dataclasses.dataclass(frozen=True)
class TorchUniform:
    """U(-1/sqrt(H), 1/sqrt(H)), torch's for each kernel and bias of RNN, LSTM and GRU.

    torch adds nothing to the forget gate's bias, so its LSTM with ``u =
    TorchUniform(H)`` is ``LSTM(H, forget_bias=0.0, input_init=u, recurrent_init=u,
    bias_init=u)``.

    Args:
        hidden_size: H, the number of hidden units.

    Example::

        >>> import jax
        >>> bool(abs(TorchUniform(4)(jax.random.key(0), (9,), "float32")).max() < 0.5)
        True
    """

    hidden_size: int

    def __call__(self, key, shape, dtype):
        bound = 1 / math.sqrt(self.hidden_size)
        return jax.random.uniform(key, shape, dtype, -bound, bound)


@dataclasses.dataclass(frozen=True)
class Chrono:
    """Gate biases for memories of up to ``max_time`` steps (chrono initialization)::

        b = log(U(1, max_time - 1))

    Tallec & Ollivier (2018, arXiv:1804.11188, eq. 16). The time constant of a unit is 1
    + exp(b) steps, from 2 to ``max_time``. Cells apply it to the gate that keeps the
    state: b_f = b and b_i = -b in an LSTM, b_z = b in a GRU. Use it if the length of
    the dependencies is known.

    Args:
        max_time: the longest memory in steps, more than 2.

    Raises:
        ValueError: if ``max_time`` is not above 2.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.LSTM(4, forget_bias=Chrono(100))
        >>> cell.init(jax.random.key(0), 3)["bias"].shape
        (16,)
    """

    max_time: float

    def __post_init__(self):
        if not self.max_time > 2:
            raise ValueError(
                f"Chrono: max_time must be more than 2 steps, but it is "
                f"{self.max_time!r}"
            )

    def __call__(self, key, shape, dtype):
        return jnp.log(jax.random.uniform(key, shape, dtype, 1.0, self.max_time - 1.0))


@dataclasses.dataclass(frozen=True)
class Linspace:
    """Evenly spaced values from ``low`` to ``high``, both included.

    Used for forget biases, it spreads the time constants of the units.

    Args:
        low: the first value.
        high: the last value.

    Example::

        >>> import jax
        >>> Linspace(0.0, 1.0)(jax.random.key(0), (3,), "float32").tolist()
        [0.0, 0.5, 1.0]
    """

    low: float
    high: float

    def __call__(self, key, shape, dtype):
        return (
            jnp.linspace(
                self.low, self.high, math.prod(shape), dtype=accumulator(dtype)
            )
            .astype(dtype)
            .reshape(shape)
        )


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """``first + (last - first) (j / (n - 1))^exponent`` for unit j of n.

    With ``exponent < 1`` most values lie near ``last``.

    Args:
        first: the first value.
        last: the last value.
        exponent: of the power law.

    Example::

        >>> import jax
        >>> PowerLaw(0.0, 4.0, 2.0)(jax.random.key(0), (3,), "float32").tolist()
        [0.0, 1.0, 4.0]
    """

    first: float
    last: float
    exponent: float

    def __call__(self, key, shape, dtype):
        size = math.prod(shape)
        fraction = jnp.linspace(0, 1, size, dtype=accumulator(dtype)).reshape(shape)
        values = self.first + (self.last - self.first) * fraction**self.exponent
        return values.astype(dtype)


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Uniform in [low, high).

    Args:
        low: the lower bound.
        high: the upper bound.

    Example::

        >>> import jax
        >>> Uniform(0.0, 1.0)(jax.random.key(0), (3,), "float32").shape
        (3,)
    """

    low: float
    high: float

    def __call__(self, key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, self.low, self.high)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter for `parameters`: what it is drawn from, and its shape.

    Args:
        initializer: ``(key, shape, dtype) -> array``.
        shape: the shape of the parameter, or of one gate's block of it.
        gates: the number of gates whose blocks lie side by side in the last axis. Each
            is drawn by itself.
        fan_in: the number of inputs that a unit sums up, where it is not the size of
            the first axis of a matrix: of a convolution kernel ``(3, C, H)``, 3 C. The
            block is then drawn as a matrix ``(fan_in, size / fan_in)``.

    Raises:
        TypeError: for an initializer that cannot be called, or a shape that is none.
        ValueError: for a number of gates below 1, or a ``fan_in`` that does not divide
            the size.

    Example:
        >>> import jax
        >>> kernel = Parameter(Orthogonal(), (4, 4), gates=3)
        >>> kernel.draw(jax.random.key(0), "float32").shape
        (4, 12)
    """

    initializer: Initializer
    shape: tuple[int, ...]
    gates: int = 1
    fan_in: int | None = None

    def __post_init__(self):
        if not callable(self.initializer):
            raise TypeError(
                f"an initializer is a function (key, shape, dtype) -> array, such as "
                f"Orthogonal(), but it is {self.initializer!r}"
            )
        if isinstance(self.initializer, type):
            raise TypeError(
                f"an initializer is a function (key, shape, dtype) -> array, but it is "
                f"the class {self.initializer.__name__}: write "
                f"{self.initializer.__name__}()"
            )
        if not isinstance(self.shape, tuple) or not all(
            isinstance(n, int) and n >= 0 for n in self.shape
        ):
            raise TypeError(
                f"a shape is a tuple of sizes, such as (D, H) or (H,), but it is "
                f"{self.shape!r}"
            )
        if self.gates < 1 or (self.gates > 1 and not self.shape):
            raise ValueError(
                f"gates must be at least 1, and their blocks need an axis to lie in, "
                f"but gates is {self.gates} and the shape of a block {self.shape}"
            )
        if self.fan_in is not None and (
            self.fan_in < 1 or math.prod(self.shape) % self.fan_in
        ):
            raise ValueError(
                f"fan_in must divide the size of a block, but it is {self.fan_in} and "
                f"the block {self.shape} has {math.prod(self.shape)} numbers"
            )

    def draw(self, key: Array, dtype: DTypeLike | None) -> Array:
        """Draw the parameter: ``(*shape[:-1], gates * shape[-1])``."""
        if self.gates == 1:
            return self._block(key, dtype)
        keys = jax.random.split(key, self.gates)
        return jnp.concatenate([self._block(k, dtype) for k in keys], axis=-1)

    def _block(self, key: Array, dtype: DTypeLike | None) -> Array:
        shape = self.shape
        if self.fan_in is not None:
            shape = (self.fan_in, math.prod(self.shape) // self.fan_in)
        block = self.initializer(key, shape, dtype)
        if jnp.shape(block) != shape:
            raise ValueError(
                f"{self.initializer!r} returned an array of shape {jnp.shape(block)} "
                f"when asked for {shape}"
            )
        return block.reshape(self.shape)


def parameters(
    key: Array, specs: Mapping[str, Any], dtype: DTypeLike | None = None
) -> dict[str, Any]:
    """Draw all parameters of a cell, each with a key of its own.

    A parameter's numbers depend on ``key`` and its name alone: neither on the order of
    ``specs``, nor on which others there are.

    Args:
        key: a `jax.random` key.
        specs: for each name a `Parameter`, its arguments as a tuple, such as
            ``(Orthogonal(), (H, H))`` or ``(Orthogonal(), (H, H), 3)`` for three gates,
            or such a mapping for parameters inside.
        dtype: of the parameters; by default JAX's default float.

    Returns:
        A dict of arrays with the names of ``specs``.

    Raises:
        TypeError, ValueError: for a spec that is none; the error names the parameter.

    Example:
        >>> import jax
        >>> D, H = 3, 4
        >>> params = parameters(
        ...     jax.random.key(0),
        ...     {
        ...         "input_kernel": (LecunNormal(), (D, H), 2),
        ...         "recurrent_kernel": (Orthogonal(), (H, H), 2),
        ...         "bias": (Zeros(), (H,), 2),
        ...     },
        ... )
        >>> {name: array.shape for name, array in params.items()}
        {'input_kernel': (3, 8), 'recurrent_kernel': (4, 8), 'bias': (8,)}
    """
    dtype = jnp.result_type(float) if dtype is None else dtype
    drawn: dict[str, Any] = {}
    for name, spec in specs.items():
        own = jax.random.fold_in(key, zlib.crc32(str(name).encode()))
        try:
            drawn[name] = (
                parameters(own, spec, dtype)
                if isinstance(spec, Mapping)
                else _parameter_of(spec).draw(own, dtype)
            )
        except (TypeError, ValueError) as error:
            raise type(error)(f"parameters: {name}: {error}") from error
    return drawn


def _parameter_of(spec: Any) -> Parameter:
    """Return a spec as a `Parameter`."""
    if isinstance(spec, Parameter):
        return spec
    if not isinstance(spec, tuple) or not 2 <= len(spec) <= 4:
        raise TypeError(
            f"a parameter is (initializer, shape), (initializer, shape, gates), "
            f"(initializer, shape, gates, fan_in) or a Parameter, but it is {spec!r}"
        )
    return Parameter(*spec)


def gate_blocks(
    init: Initializer,
    key: Array,
    gates: int,
    rows: int,
    columns: int,
    dtype: DTypeLike | None,
) -> Array:
    """Draw a packed kernel ``(rows, gates * columns)``, each gate's block by itself.

    Args:
        init: the initializer of a block.
        key: a `jax.random` key.
        gates: the number of gates.
        rows: the rows of a block.
        columns: the columns of a block.
        dtype: of the kernel.

    Returns:
        The blocks side by side.

    Example:
        >>> import jax
        >>> from jaxrnn.initializers import Identity, gate_blocks
        >>> gate_blocks(Identity(), jax.random.key(0), 2, 2, 2, "float32").tolist()
        [[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]]
    """
    return jnp.concatenate(
        [init(k, (rows, columns), dtype) for k in jax.random.split(key, gates)], axis=-1
    )


def gate_biases(
    init: Initializer, key: Array, gates: int, size: int, dtype: DTypeLike | None
) -> list[Array]:
    """Draw one bias ``(size,)`` per gate, each by itself.

    Args:
        init: the initializer of a bias.
        key: a `jax.random` key.
        gates: the number of gates.
        size: the number of units.
        dtype: of the biases.

    Returns:
        A list with a bias for each gate.

    Example:
        >>> import jax
        >>> from jaxrnn.initializers import Linspace, gate_biases
        >>> biases = gate_biases(Linspace(0.0, 1.0), jax.random.key(0), 2, 3, "float32")
        >>> [bias.tolist() for bias in biases]
        [[0.0, 0.5, 1.0], [0.0, 0.5, 1.0]]
    """
    return [init(k, (size,), dtype) for k in jax.random.split(key, gates)]
