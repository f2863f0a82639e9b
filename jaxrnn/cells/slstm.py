"""The scalar memory of xLSTM: exponential gates, a normaliser and a stabilizer."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..core.cell import Gate, Params, accumulator
from ..core.exported import register_for_export
from ..core.validation import check_features, check_positive
from ..initializers import (
    Initializer,
    Normal,
    PowerLaw,
    Zeros,
    gate_biases,
    gate_blocks,
)
from .base import BuiltinCell
from .ops import along, dense, recur

SIGMOID, EXPONENTIAL = "sigmoid", "exponential"


@register_for_export
class SLSTMState(NamedTuple):
    """The carry of an sLSTM, each ``(*B, H)``: h, which it shows, the memory c, the
    normaliser n, and m, the logarithm of the scale that c and n are kept at: the true
    ones are ``c exp(m)`` and ``n exp(m)``.
    """

    h: Array
    c: Array
    n: Array
    m: Array


@dataclasses.dataclass(frozen=True)
class SLSTM(BuiltinCell):
    """The sLSTM of xLSTM (Beck et al. 2024, arXiv:2405.04517, section 2.2), gates
    packed i, f, z, o::

        i, f, z, o = x_t W + h_{t-1} R + b                            R block-diagonal, one block a head
        C_t = F C_{t-1} + exp(i) tanh(z)    N_t = F N_{t-1} + exp(i)  F = sigmoid(f) or exp(f)
        h_t = sigmoid(o) C_t / N_t

    computed, as there, with ``C = c exp(m)`` and ``N = n exp(m)``, which changes h in
    nothing and does not overflow::

        m_t = max(log F + m_{t-1}, i)       c_t = exp(log F + m_{t-1} - m_t) c_{t-1} + exp(i - m_t) tanh(z)    n_t alike

    While nothing was read yet, n = 0, m_t is i whatever m was: else a first i far below
    m would leave 0 / 0. (The authors' code does so where n is zero in the whole batch;
    here each unit does, so that masks and resets hold no surprise.) From the first step
    on n is at least 1, so the division is safe.

    Parameters: ``input_kernel (D, 4H)``, ``recurrent_kernel (heads, H / heads, 4H /
    heads)``, a head's gates side by side, ``bias (4H,)``. Carry: `SLSTMState` (h, c, n,
    m); the last three in float32 at least.

    Args:
        hidden_size: H.
        num_heads: blocks of the recurrent matrix; units of different heads do not see
            each other's h. A divisor of H.
        forget_gate: F is ``"sigmoid"`` or ``"exponential"``.
        recurrent_init, forget_init: zeros, and within each head biases from 5 down to
            -7 by a power law, as the authors' code begins. ``Linspace(3.0, 6.0)``,
            their other choice, keeps more.
    """  # noqa: E501

    _: dataclasses.KW_ONLY
    num_heads: int = 1
    forget_gate: str = SIGMOID
    input_init: Initializer = Normal(math.sqrt(2 / 5))
    recurrent_init: Initializer = Zeros()
    bias_init: Initializer = Zeros()
    forget_init: Initializer = PowerLaw(5.0, -7.0, 0.3)
    shares_scale: ClassVar[bool] = (
        True  # the parts of its carry mean something together only
    )

    def __post_init__(self):
        super().__post_init__()
        check_heads(self)
        check_forget_gate(self)
        if self.learned_initial_carry:
            raise ValueError(
                "SLSTM: its normaliser counts what was read, and before the first step "
                "that is nothing: leave "
                "learned_initial_carry out"
            )

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
        dtype, H, size = (
            dtype or jnp.result_type(float),
            self.hidden_size,
            self.hidden_size // self.num_heads,
        )
        k_input, k_recurrent, k_bias, k_forget = jax.random.split(key, 4)
        b_i, _, b_z, b_o = gate_biases(self.bias_init, k_bias, 4, H, dtype)
        b_f = jnp.concatenate(
            [
                self.forget_init(k, (size,), dtype)
                for k in jax.random.split(k_forget, self.num_heads)
            ]
        )
        blocks = [
            gate_blocks(self.recurrent_init, k, 4, size, size, dtype)
            for k in jax.random.split(k_recurrent, self.num_heads)
        ]
        return {
            "input_kernel": gate_blocks(
                self.input_init, k_input, 4, input_size, H, dtype
            ),
            "recurrent_kernel": jnp.stack(blocks),
            "bias": jnp.concatenate([b_i, b_f, b_z, b_o]),
        }

    def zero_carry(
        self, params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike
    ) -> SLSTMState:
        """Zeros: h in ``dtype``, the others in its accumulator's dtype."""
        shape = (*batch_shape, self.hidden_size)
        return SLSTMState(
            jnp.zeros(shape, dtype),
            *(jnp.zeros(shape, accumulator(dtype)) for _ in range(3)),
        )

    def project(
        self, params: Params, x: Float[Array, "*TB D"]
    ) -> Float[Array, "*TB G"]:
        """``x W``."""
        check_features(self, params["input_kernel"], x)
        return dense(x, params["input_kernel"])

    def step(
        self,
        params: Params,
        carry: SLSTMState,
        z: Float[Array, "*B G"],
        *,
        recurrent_h=None,
    ) -> SLSTMState:
        """One step of the equations above. ``recurrent_h`` replaces h where it meets
        R (variational dropout).
        """
        i, f, new, o, m = self._activations(params, carry, z, recurrent_h)
        c, n = f * carry.c + i * new, f * carry.n + i
        return SLSTMState((o * c / n).astype(carry.h.dtype), c, n, m)

    def _activations(
        self, params: Params, carry: SLSTMState, z: Array, recurrent_h: Array | None
    ) -> tuple[Array, ...]:
        """The scaled i and f, tanh(z), sigmoid(o), and the new m."""
        a = self._recur(
            carry.h if recurrent_h is None else recurrent_h, params["recurrent_kernel"]
        )
        i, f, new, o = jnp.split(
            a + z.astype(a.dtype) + along(params["bias"], a), 4, axis=-1
        )
        kept = log_forget(self, f) + carry.m
        m = jnp.where(carry.n == 0, i, jnp.maximum(kept, i))
        return (
            jnp.exp(i - m),
            bounded_exp(kept - m),
            jnp.tanh(new),
            jax.nn.sigmoid(o),
            m,
        )

    def _recur(
        self, h: Float[Array, "*B H"], kernel: Float[Array, "N d g"]
    ) -> Float[Array, "*B G"]:
        """``h R``, gate by gate over all heads."""
        if self.num_heads == 1:
            return recur(h, kernel[0])
        apart = h.astype(kernel.dtype).reshape(
            *h.shape[:-1], self.num_heads, self.hidden_size // self.num_heads
        )
        a = jnp.einsum(
            "...nd,ndg->...ng",
            apart,
            kernel,
            preferred_element_type=accumulator(kernel.dtype),
        )
        by_gate = jnp.swapaxes(
            a.reshape(
                *h.shape[:-1], self.num_heads, 4, self.hidden_size // self.num_heads
            ),
            -3,
            -2,
        )
        return by_gate.reshape(*h.shape[:-1], 4 * self.hidden_size)

    def gate_values(
        self, params: Params, carry: SLSTMState, z: Float[Array, "*B G"]
    ) -> dict[str, Gate]:
        """Of c / n, whatever the scale: the share i that is new, the share f that is
        kept; and z and o.
        """
        i, f, new, o, _ = self._activations(params, carry, z, None)
        n = f * carry.n + i
        return {
            "i": Gate(i / n),
            "f": Gate(f * carry.n / n, keeps=True),
            "z": Gate(new, low=-1.0),
            "o": Gate(o),
        }


def log_forget(cell: Any, f: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """The logarithm of the forget gate."""
    return jax.nn.log_sigmoid(f) if cell.forget_gate == SIGMOID else f


def bounded_exp(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """exp(x), or that of `largest_exponent`: of a factor that is above 1 only where
    it multiplies nothing.
    """
    return jnp.exp(jnp.minimum(x, jnp.asarray(largest_exponent(x.dtype), x.dtype)))


def largest_exponent(dtype: DTypeLike) -> float:
    """x such that exp(x), its square and its inverse's square are far from the ends
    of ``dtype``: 40 in float32.
    """
    return 0.45 * math.log(float(jnp.finfo(dtype).max))


def check_heads(cell: Any) -> None:
    """``heads`` divides ``hidden_size``."""
    check_positive(cell, num_heads=cell.num_heads)
    if cell.hidden_size % cell.num_heads:
        raise ValueError(
            f"{type(cell).__name__}: hidden_size must be a multiple of num_heads, but "
            f"they "
            f"are {cell.hidden_size} and {cell.num_heads}"
        )


def check_forget_gate(cell: Any) -> None:
    """``forget_gate`` is one of the two."""
    if cell.forget_gate not in (SIGMOID, EXPONENTIAL):
        raise ValueError(
            f"{type(cell).__name__}: forget_gate must be {SIGMOID!r} or "
            f"{EXPONENTIAL!r}, but it is {cell.forget_gate!r}"
        )
