"""Mamba, whose selective state space chooses by its input what to keep."""

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
from ..core.types import Carry, Params
from ..core.validation import check_features, check_positive
from ..initializers import Initializer, Normal
from ..matrix import StateSpaceCell
from .base import BuiltinCell
from .matrix_base import conv_width, draw_step_bias
from .ops import along, dense


class Selection(NamedTuple):
    """What a step of `Mamba` is made of, in all of time at once.

    Attributes:
        u: ``(..., H)``, the input of the state space, after the convolution.
        dt: ``(..., H)``, the step size.
        B: ``(..., n)``, where the input is written.
        C: ``(..., n)``, where the state is read.
        gate: ``(..., H)``, the output gate before its activation.
    """

    u: Array
    dt: Array
    B: Array
    C: Array
    gate: Array


@dataclasses.dataclass(frozen=True)
class Mamba(BuiltinCell, StateSpaceCell):
    """Mamba, a diagonal state space (S6) whose step size, input and readout are gated::

        x, z = x_t W
        u = silu(conv(x))
        r, B, C = u W_select
        dt = softplus(r W_dt + dt_bias)
        s_t = exp(-dt exp(A_log)) * s_{t-1} + (dt u) B^T    elementwise, (H, n)
        y_t = s_t C + skip u
        h_t = y_t * silu(z)                                 output = h_t W_o

    Gu & Dao (2023, arXiv:2312.00752, algorithm 2 and section 3.4). Every one of H
    channels has a state of n numbers; where dt is large it forgets and writes, where dt
    is near 0 it keeps. B is discretized by Euler's rule, as in the authors' code. conv
    is a depthwise convolution over the last ``conv`` steps, with a bias. The published
    block is `jaxrnn.residual` around a norm and this cell, with H = 2 D.

    The states ``(T, *B, H, n)`` are never in memory at once: see
    `jaxrnn.extending.StateSpaceCell`.

    Parameters: ``input_kernel (D, 2H)``, blocks x, z; ``conv_kernel (conv, H)``, whose
    row j is of the input j steps before, and ``conv_bias (H,)``; ``select_kernel (H,
    rank + 2n)``, blocks r, B, C; ``dt_kernel (rank, H)``, ``dt_bias (H,)``; ``A_log (H,
    n)``, ``skip (H,)`` and ``output_kernel (H, O)``. Carry: `StateSpaceState` (h, s,
    recent). Output: ``(*B, O)``.

    Args:
        hidden_size: H, the number of channels; twice D in the published block.
        state_size: n, the number of state variables of a channel.
        rank: the number of features r from which dt is made (default: D / 16, rounded
            up).
        conv: the width of the convolution, or None for none.
        output_size: O (default: D, the number of input features).
        input_init: initializer of the input, select and output kernels. The default has
            the variance of the authors' code.
        learned_initial_carry: if True, h and s before the first step are parameters.

    Raises:
        ValueError: for sizes below 1, and for a ``conv`` below 2.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.cells.Mamba(8, state_size=4)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 3)))
        >>> carry.s.shape, ys.shape
        ((2, 8, 4), (5, 2, 3))
    """

    _: dataclasses.KW_ONLY
    rank: int | None = None
    conv: int | None = 4
    output_size: int | None = None
    input_init: Initializer = Normal(gain=3**-0.5)

    def __post_init__(self):
        super().__post_init__()
        StateSpaceCell.__post_init__(self)
        for name in ("rank", "output_size"):
            if vars(self)[name] is not None:
                check_positive(self, **{name: vars(self)[name]})
        conv_width(self, self.conv)

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
        dtype, H, n = dtype or jnp.result_type(float), self.hidden_size, self.state_size
        rank = self.rank or math.ceil(input_size / 16)
        outputs = self.output_size or input_size
        k_input, k_conv, k_select, k_dt, k_bias, k_output = jax.random.split(key, 6)
        rates = jnp.arange(1, n + 1, dtype=accumulator(dtype))
        params = {
            "input_kernel": self.input_init(k_input, (input_size, 2 * H), dtype),
            "select_kernel": self.input_init(k_select, (H, rank + 2 * n), dtype),
            "dt_kernel": _uniform(k_dt, (rank, H), rank, dtype),
            "dt_bias": draw_step_bias(k_bias, (H,), dtype),
            "A_log": jnp.broadcast_to(jnp.log(rates), (H, n)).astype(dtype),
            "skip": jnp.ones((H,), dtype),
            "output_kernel": self.input_init(k_output, (H, outputs), dtype),
        }
        if self.conv is not None:
            # torch's initialization of a depthwise convolution and its bias
            both = _uniform(k_conv, (self.conv + 1, H), self.conv, dtype)
            params |= {"conv_kernel": both[:-1], "conv_bias": both[-1]}
        return self.with_initial_carry(params)

    # ---------------------------------------------------------------- the carry
    def zero_carry(
        self, params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike
    ) -> Carry:
        """Return zeros: h in ``dtype``, the rest in the accumulator's dtype."""
        return StateSpaceCell.initial_carry(self, params, batch_shape, dtype)

    def initial_carry(
        self,
        params: Params,
        batch_shape: tuple[int, ...] = (),
        dtype: DTypeLike | None = None,
    ) -> Carry:
        """Return zeros, with the learned s if there is one, before the first step."""
        if not self.learned_initial_carry:
            return super().initial_carry(params, batch_shape, dtype)
        dtype = dtype or params["input_kernel"].dtype
        zeros = self.zero_carry(params, tuple(batch_shape), dtype)
        learned = params["initial_carry"]
        return zeros._replace(
            s=jnp.broadcast_to(learned.s.astype(zeros.s.dtype), zeros.s.shape),
        )

    def with_initial_carry(self, params: Params) -> Params:
        """Add ``initial_carry``, of s alone, if ``learned_initial_carry`` is set.

        No step reads the h of the step before.
        """
        params = super().with_initial_carry(params)
        learned: Any = params.get("initial_carry")
        if learned is not None:
            learned = learned._replace(h=None, recent=None)
            params = {**params, "initial_carry": learned}
        return params

    # ---------------------------------------------------------------- the inputs
    def project(self, params: Params, x: Float[Array, "*TB D"]) -> Array | Selection:
        """Return x and z, packed, or without a convolution what a step is made of."""
        check_features(self, params["input_kernel"], x)
        packed = dense(x, params["input_kernel"]).astype(accumulator(x.dtype))
        if self.looks_back:
            return packed
        return self.select(params, *jnp.split(packed, 2, axis=-1))

    @property
    def looks_back(self) -> int:
        return conv_width(self, self.conv)

    def remembered_size(self, params: Params) -> int:
        return self.hidden_size

    def remembered(
        self, params: Params, z: Float[Array, "*TB G"]
    ) -> Float[Array, "*TB H"]:
        """Return x, before the convolution."""
        return z[..., : self.hidden_size]

    def look_back(
        self, params: Params, z: Float[Array, "*TB G"], recent: list[Array]
    ) -> Selection:
        """Return what a step is made of, after the convolution."""
        kernel, bias = params["conv_kernel"], params["conv_bias"]
        u = along(bias, recent[0])
        for j, x in enumerate(recent):
            u = u + along(kernel[j], x) * x
        gate = z[..., self.hidden_size :]
        return self.select(params, u.astype(z.dtype), gate)

    def select(
        self, params: Params, u: Float[Array, "*TB H"], gate: Float[Array, "*TB H"]
    ) -> Selection:
        """Return dt, B and C, chosen by the input of the state space."""
        u = jax.nn.silu(u)
        rank = params["dt_kernel"].shape[0]
        chosen = _product(u, params["select_kernel"])
        r, B, C = jnp.split(chosen, [rank, rank + self.state_size], axis=-1)
        dt = _product(r, params["dt_kernel"])
        dt = jax.nn.softplus(dt + along(params["dt_bias"], dt))
        return Selection(u, dt, B, C, gate)

    # ---------------------------------------------------------------- the steps
    def affine(
        self, params: Params, z: Selection
    ) -> tuple[Float[Array, "*TB H n"], Float[Array, "*TB H n"]]:
        """Return the decay ``exp(-dt exp(A_log))`` and what is written, dt u B^T."""
        return self.decay(params, z.dt), (z.dt * z.u)[..., None] * z.B[..., None, :]

    def decay(
        self, params: Params, dt: Float[Array, "*TB H"]
    ) -> Float[Array, "*TB H n"]:
        """Return ``exp(-dt exp(A_log))``, which lies between 0 and 1."""
        rate = params["rate"] if "rate" in params else self.rate(params)
        rate = rate.astype(dt.dtype)
        rate = rate.reshape((1,) * (dt.ndim + 1 - rate.ndim) + rate.shape)
        return jnp.exp(-dt[..., None] * rate)

    def inside_loop(self, params: Params, batch_shape: tuple[int, ...]) -> Params:
        """Return the parameters with exp(A_log), ``(*B, H, n)``, as the rate."""
        rate = self.rate(params)
        return {**params, "rate": jnp.broadcast_to(rate, (*batch_shape, *rate.shape))}

    def rate(self, params: Params) -> Float[Array, "H n"]:
        """Return exp(A_log), in the accumulator's dtype."""
        A_log = params["A_log"]
        return jnp.exp(A_log.astype(accumulator(A_log.dtype)))

    def read(
        self, params: Params, s: Float[Array, "*TB H n"], z: Selection
    ) -> Float[Array, "*TB H"]:
        """Return ``s C``."""
        return (s * z.C[..., None, :]).sum(-1)

    def readout(
        self, params: Params, y: Float[Array, "*TB H"], z: Selection
    ) -> Float[Array, "*TB H"]:
        """Return ``(y + skip u) silu(z)``."""
        return (y + along(params["skip"], y) * z.u) * jax.nn.silu(z.gate)

    def output(
        self, params: Params, carry: Carry, x: Float[Array, "*TB D"]
    ) -> Float[Array, "*TB O"]:
        """Return ``h W_o``."""
        return dense(carry.h, params["output_kernel"])

    def gate_values(
        self, params: Params, carry: Carry, z: Array | Selection
    ) -> dict[str, Gate]:
        """Return the decay, which keeps s, ``(..., H n)``."""
        selection = self.take_in(params, carry.recent, z)[1]
        decay = self.decay(params, selection.dt)
        return {"decay": Gate(decay.reshape(*decay.shape[:-2], -1), keeps=True)}


def _product(
    x: Float[Array, "*TB F"], kernel: Float[Array, "F G"]
) -> Float[Array, "*TB G"]:
    """Return ``x @ kernel`` in the dtype of x."""
    return dense(x.astype(kernel.dtype), kernel).astype(x.dtype)


def _uniform(
    key: Array, shape: tuple[int, ...], fan_in: int, dtype: DTypeLike
) -> Array:
    """Draw uniformly between plus and minus ``1 / sqrt(fan_in)``."""
    bound = 1 / math.sqrt(fan_in)
    draw = jax.random.uniform(key, shape, accumulator(dtype), -bound, bound)
    return draw.astype(dtype)
