"""Convolutional LSTM and GRU: recurrent cells whose state is a picture."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..core.arrays import is_array
from ..core.cell import Gate
from ..core.dtypes import accumulator
from ..core.types import Carry, Inputs, Params
from ..core.validation import check_features, check_positive
from ..initializers import (
    Initializer,
    LecunNormal,
    Orthogonal,
    Zeros,
    gate_biases,
    gate_blocks,
)
from .base import BuiltinCell
from .lstm import LSTMState
from .ops import along


@dataclasses.dataclass(frozen=True)
class _Convolutional(BuiltinCell):
    """What both cells share: sizes and their checks, kernels, and the projection."""

    _: dataclasses.KW_ONLY
    spatial_shape: tuple[int, ...]
    kernel_size: int | tuple[int, ...] = 3
    input_init: Initializer = LecunNormal()
    recurrent_init: Initializer = Orthogonal()
    bias_init: Initializer = Zeros()

    def __post_init__(self):
        super().__post_init__()
        name = type(self).__name__
        if not _are_sizes(self.spatial_shape) or not 1 <= len(self.spatial_shape) <= 3:
            raise ValueError(
                f"{name}: spatial_shape must be a tuple of 1 to 3 sizes, such as "
                f"(28, 28), but it is {self.spatial_shape!r}"
            )
        sizes = self.kernel_size
        if not _are_sizes(sizes if isinstance(sizes, tuple) else (sizes,)):
            raise ValueError(
                f"{name}: kernel_size must be an int of at least 1, or a tuple of such "
                f"ints, but it is {sizes!r}"
            )
        if isinstance(sizes, tuple) and len(sizes) != len(self.spatial_shape):
            raise ValueError(
                f"{name}: kernel_size has {len(sizes)} entries, but there are "
                f"{len(self.spatial_shape)} spatial axes: give one int for all, or one "
                f"for each"
            )

    @property
    def feature_ndim(self) -> int:  # type: ignore[override]
        """The number of feature axes of one input, the spatial ones and channels."""
        return len(self.spatial_shape) + 1

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """The size of the kernel along each spatial axis."""
        sizes = self.kernel_size
        if isinstance(sizes, tuple):
            return sizes
        return (sizes,) * len(self.spatial_shape)

    def _parameters(
        self, key: Array, input_size: int, dtype: DTypeLike, blocks: int
    ) -> tuple[Params, list[Array]]:
        """Draw the kernels, and the bias of each gate."""
        check_positive(self, input_size=input_size)
        k_input, k_recurrent, k_bias = jax.random.split(key, 3)
        H, K = self.hidden_size, self.kernel_shape

        def kernel(init: Initializer, key: Array, channels: int) -> Array:
            # The rows of a block are all entries that one output sums over, so that
            # an initializer sees the true fan-in.
            rows = math.prod(K) * channels
            block = gate_blocks(init, key, blocks, rows, H, dtype)
            return block.reshape(*K, channels, blocks * H)

        params = {
            "input_kernel": kernel(self.input_init, k_input, input_size),
            "recurrent_kernel": kernel(self.recurrent_init, k_recurrent, H),
        }
        return params, gate_biases(self.bias_init, k_bias, blocks, H, dtype)

    def _picture(
        self, params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike
    ) -> Float[Array, "..."]:
        """Return zeros ``(*B, *S, H)``."""
        shape = (*batch_shape, *self.spatial_shape, self.hidden_size)
        return jnp.zeros(shape, dtype)

    def project(self, params: Params, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return ``W * x``, the part of a step that needs no carry."""
        kernel = params["input_kernel"]
        if is_array(x) and not jnp.issubdtype(x.dtype, jnp.inexact):
            raise TypeError(
                f"{type(self).__name__}: pictures must be of floating point, but their "
                f"dtype is {x.dtype}: convert them, as xs.astype({kernel.dtype.name!r})"
                f" / 255 does for bytes"
            )
        check_features(self, kernel[(0,) * len(self.kernel_shape)], x)
        shape = tuple(x.shape[-self.feature_ndim : -1])
        if shape != self.spatial_shape:
            raise ValueError(
                f"{type(self).__name__}: the spatial axes of the inputs are {shape}, "
                f"but the cell was made for spatial_shape={self.spatial_shape}: "
                f"channels come last, (T, *B, *spatial_shape, C)"
            )
        return convolve(x, kernel)

    def output_features(self, params: Params, input_size: int) -> int:
        """Return the number of channels of the output, H."""
        return self.hidden_size


def _are_sizes(sizes: Any) -> bool:
    """Return whether ``sizes`` is a tuple of positive ints."""
    return isinstance(sizes, tuple) and all(
        isinstance(size, int) and not isinstance(size, bool) and size > 0
        for size in sizes
    )


@dataclasses.dataclass(frozen=True)
class ConvLSTM(_Convolutional):
    """The convolutional LSTM, gates packed i, f, g, o::

        i, f = sigmoid(W * x_t + U * h_{t-1} + p . c_{t-1} + b)
        g = tanh(W_g * x_t + U_g * h_{t-1} + b_g)
        c_t = f . c_{t-1} + i . g
        o = sigmoid(W_o * x_t + U_o * h_{t-1} + p_o . c_t + b_o)
        h_t = o . tanh(c_t)

    ``*`` is a convolution with zero padding that keeps the shape (``SAME``), and ``.``
    the product of entries; the terms with p are there with ``peephole``. Shi et al.
    (2015, arXiv:1506.04214, eq. 3).

    Inputs: pictures ``(T, *B, *S, C)`` with one to three spatial axes S and the
    channels last. Masks and resets are ``(T, *B)``.

    Parameters: ``input_kernel`` W ``(*K, C, 4H)``, ``recurrent_kernel`` U ``(*K, H,
    4H)``, ``bias (4H,)``, and with peepholes ``peephole_kernel`` p ``(*S, 3H)``, blocks
    i, f, o, with a weight of its own at every place, as published. Carry:
    ``LSTMState(h, c)``, ``(*B, *S, H)`` each, c in float32 or wider. Output: h. In half
    precision the convolutions are rounded to the parameters' dtype, and the gates are
    float32.

    Args:
        hidden_size: H, the number of channels of the state.
        spatial_shape: S, the sizes of the spatial axes, such as ``(28, 28)``.
        kernel_size: K, one int for all spatial axes or a tuple of one for each.
        forget_bias: number added to b_f at init.
        peephole: if True, the gates see c.
        input_init: initializer of each block of W, given as a matrix with ``prod(K) C``
            rows.
        recurrent_init: initializer of each block of U, likewise; also of p, whose
            blocks are given as matrices with one column.
        bias_init: initializer of the biases.
        learned_initial_carry: if True, h and c before the first step are parameters.

    Raises:
        ValueError: if ``spatial_shape`` is not a tuple of 1 to 3 sizes, or
            ``kernel_size`` does not fit it.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.cells.ConvLSTM(4, spatial_shape=(6, 5))
        >>> params = cell.init(jax.random.key(0), input_size=3)  # 3 channels
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((7, 2, 6, 5, 3)))
        >>> carry.h.shape, ys.shape
        ((2, 6, 5, 4), (7, 2, 6, 5, 4))
    """

    _: dataclasses.KW_ONLY
    forget_bias: float = 1.0
    peephole: bool = False

    def init(
        self, key: Array, input_size: int, dtype: DTypeLike | None = None
    ) -> Params:
        """Draw parameters for inputs of ``input_size`` channels.

        Args:
            key: a `jax.random` key.
            input_size: C, the number of input channels.
            dtype: of the parameters; by default JAX's default float.

        Returns:
            The dictionary of parameters that the class docstring lists.
        """
        dtype = dtype or jnp.result_type(float)
        params, (b_i, b_f, b_g, b_o) = self._parameters(key, input_size, dtype, 4)
        params["bias"] = jnp.concatenate([b_i, b_f + self.forget_bias, b_g, b_o])
        if self.peephole:
            size = math.prod(self.spatial_shape) * self.hidden_size
            keys = jax.random.split(jax.random.fold_in(key, 3), 3)
            blocks = [
                self.recurrent_init(k, (size, 1), dtype).reshape(
                    *self.spatial_shape, self.hidden_size
                )
                for k in keys
            ]
            params["peephole_kernel"] = jnp.concatenate(blocks, axis=-1)
        return self.with_initial_carry(params)

    def zero_carry(
        self, params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike
    ) -> LSTMState:
        """Return zeros: h in ``dtype``, c in the accumulator's dtype."""
        return LSTMState(
            self._picture(params, batch_shape, dtype),
            self._picture(params, batch_shape, accumulator(dtype)),
        )

    def step(
        self,
        params: Params,
        carry: LSTMState,
        z: Float[Array, "..."],
        *,
        recurrent_h=None,
    ) -> LSTMState:
        """Take one step of the equations above.

        ``recurrent_h`` replaces h where it is convolved with U (variational dropout).
        """
        *_, o, c = self._activations(params, carry, z, recurrent_h)
        return LSTMState((o * jnp.tanh(c)).astype(carry.h.dtype), c)

    def _activations(
        self, params: Params, carry: LSTMState, z: Array, recurrent_h: Array | None
    ) -> tuple[Array, ...]:
        """Return i, f, g, o and the new c."""
        h, c = carry.h if recurrent_h is None else recurrent_h, carry.c
        gates = _sum_of(z, h, params, c.dtype)
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        if self.peephole:
            kernel = params["peephole_kernel"].astype(c.dtype)
            kernel = kernel.reshape((1,) * (c.ndim - kernel.ndim) + kernel.shape)
            p_i, p_f, p_o = jnp.split(kernel, 3, axis=-1)
            i, f = i + p_i * c, f + p_f * c
        i, f, g = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g)
        c = f * c + i * g
        if self.peephole:
            o = o + p_o * c
        return i, f, g, jax.nn.sigmoid(o), c

    def gate_values(
        self, params: Params, carry: LSTMState, z: Float[Array, "..."]
    ) -> dict[str, Gate]:
        """Return i, f (which keeps c), g and o."""
        i, f, g, o, _ = self._activations(params, carry, z, None)
        return {
            "i": Gate(i),
            "f": Gate(f, keeps=True),
            "g": Gate(g, low=-1.0),
            "o": Gate(o),
        }


@dataclasses.dataclass(frozen=True)
class ConvGRU(_Convolutional):
    """The convolutional GRU, gates packed r, z, n::

        r, z = sigmoid(W * x_t + U * h_{t-1} + b)
        n = tanh(W_n * x_t + U_n * (r . h_{t-1}) + b_n)
        h_t = (1 - z) . n + z . h_{t-1}

    ``*`` is a convolution with zero padding that keeps the shape (``SAME``), and ``.``
    the product of entries. Ballas et al. (2016, arXiv:1511.06432, section 2.2), whose z
    is 1 - z here, as in `GRU`; the reset is before U_n, as in
    ``GRU(reset_after=False)``.

    Inputs: pictures ``(T, *B, *S, C)`` with one to three spatial axes S and the
    channels last. Masks and resets are ``(T, *B)``.

    Parameters: ``input_kernel`` W ``(*K, C, 3H)``, ``recurrent_kernel`` U ``(*K, H,
    3H)``, ``bias (3H,)``. Carry: ``h (*B, *S, H)``, an array, kept in float32 or wider.
    Output: h in the parameters' dtype. In half precision the convolutions are rounded
    to that dtype, and the gates are float32.

    Args:
        hidden_size: H, the number of channels of the state.
        spatial_shape: S, the sizes of the spatial axes, such as ``(28, 28)``.
        kernel_size: K, one int for all spatial axes or a tuple of one for each.
        update_bias: number added to the update gate's bias at init. A z near 1 keeps
            the state.
        input_init: initializer of each block of W, given as a matrix with ``prod(K) C``
            rows.
        recurrent_init: initializer of each block of U, likewise.
        bias_init: initializer of the biases.
        learned_initial_carry: if True, h before the first step is a parameter.

    Raises:
        ValueError: if ``spatial_shape`` is not a tuple of 1 to 3 sizes, or
            ``kernel_size`` does not fit it.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.cells.ConvGRU(4, spatial_shape=(8,), kernel_size=5)
        >>> params = cell.init(jax.random.key(0), input_size=3)  # 3 channels
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((7, 2, 8, 3)))
        >>> carry.shape, ys.shape
        ((2, 8, 4), (7, 2, 8, 4))
    """

    _: dataclasses.KW_ONLY
    update_bias: float = 0.0

    def init(
        self, key: Array, input_size: int, dtype: DTypeLike | None = None
    ) -> Params:
        """Draw parameters for inputs of ``input_size`` channels.

        Args:
            key: a `jax.random` key.
            input_size: C, the number of input channels.
            dtype: of the parameters; by default JAX's default float.

        Returns:
            The dictionary of parameters that the class docstring lists.
        """
        dtype = dtype or jnp.result_type(float)
        params, (b_r, b_z, b_n) = self._parameters(key, input_size, dtype, 3)
        params["bias"] = jnp.concatenate([b_r, b_z + self.update_bias, b_n])
        return self.with_initial_carry(params)

    def zero_carry(
        self, params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike
    ) -> Float[Array, "..."]:
        """Return zeros ``(*B, *S, H)`` in the accumulator's dtype."""
        return self._picture(params, batch_shape, accumulator(dtype))

    def step(
        self,
        params: Params,
        carry: Float[Array, "..."],
        z: Float[Array, "..."],
        *,
        recurrent_h=None,
    ):
        """Take one step of the equations above.

        ``recurrent_h`` replaces h where it is convolved with U (variational dropout).
        """
        _, update, n = self._activations(params, carry, z, recurrent_h)
        return (1 - update) * n + update * carry

    def _activations(
        self, params: Params, carry: Array, z: Array, recurrent_h: Array | None
    ) -> tuple[Array, Array, Array]:
        """Return r, z and n."""
        H, h = self.hidden_size, carry if recurrent_h is None else recurrent_h
        z, kernel = z.astype(carry.dtype), params["recurrent_kernel"]
        z = z + along(params["bias"], z)

        def recur(h: Array, kernel: Array) -> Array:
            return convolve(h.astype(kernel.dtype), kernel).astype(carry.dtype)

        gates = z[..., : 2 * H] + recur(h, kernel[..., : 2 * H])
        r, update = jnp.split(jax.nn.sigmoid(gates), 2, axis=-1)
        n = jnp.tanh(z[..., 2 * H :] + recur(r * h, kernel[..., 2 * H :]))
        return r, update, n

    def gate_values(
        self, params: Params, carry: Float[Array, "..."], z: Float[Array, "..."]
    ) -> dict[str, Gate]:
        """Return r, z (which keeps h) and n."""
        r, update, n = self._activations(params, carry, z, None)
        return {"r": Gate(r), "z": Gate(update, keeps=True), "n": Gate(n, low=-1.0)}

    def output(self, params: Params, carry: Carry, x: Inputs) -> Float[Array, "..."]:
        """Return h in the parameters' dtype."""
        return carry.astype(params["recurrent_kernel"].dtype)


def _sum_of(z: Array, h: Array, params: Params, dtype: DTypeLike) -> Array:
    """Return ``z + U * h + b`` in ``dtype``."""
    kernel = params["recurrent_kernel"]
    gates = z.astype(dtype) + convolve(h.astype(kernel.dtype), kernel).astype(dtype)
    return gates + along(params["bias"], gates)


def convolve(x: Float[Array, "..."], kernel: Float[Array, "..."]) -> Array:
    """Convolve pictures ``(..., *S, C)`` with ``kernel (*K, C, G)``, padded to SAME.

    As everywhere in the field it is a cross-correlation: the kernel is not flipped.

    Args:
        x: the pictures, with any leading axes.
        kernel: the kernel, with one to three spatial axes.

    Returns:
        ``(..., *S, G)``, in the dtype of ``x``.
    """
    rank = kernel.ndim - 2
    lead, shape = x.shape[: x.ndim - rank - 1], x.shape[x.ndim - rank - 1 :]
    axes = "ZYX"[-rank:]
    y = jax.lax.conv_general_dilated(
        x.reshape(math.prod(lead), *shape),
        kernel,
        window_strides=(1,) * rank,
        padding="SAME",
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
    )
    return y.reshape(*lead, *y.shape[1:])
