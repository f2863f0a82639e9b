"""The scalar memory of xLSTM: exponential gates, a normalizer and a stabilizer."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..core.cell import Gate
from ..core.dtypes import accumulator, largest_exponent
from ..core.exported import register_for_export
from ..core.types import Params
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
    """The carry of an sLSTM: output, memory, normalizer and stabilizer.

    c and n are stored at a scale whose logarithm is m: the unscaled values are
    ``c exp(m)`` and ``n exp(m)``.

    Attributes:
        h: ``(*B, H)``, the output.
        c: ``(*B, H)``, the memory.
        n: ``(*B, H)``, the normalizer.
        m: ``(*B, H)``, the stabilizer.

    Example:
        >>> import jax, jaxrnn
        >>> cell = jaxrnn.SLSTM(4, num_heads=2)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> xs = jax.random.normal(jax.random.key(1), (5, 2, 3))
        >>> state, ys = jaxrnn.unroll(cell, params, xs)
        >>> bool((abs(state.c / state.n) < 1).all())  # a weighted mean of tanh(z)
        True
    """

    h: Array
    c: Array
    n: Array
    m: Array


@dataclasses.dataclass(frozen=True)
class SLSTM(BuiltinCell):
    """The sLSTM of xLSTM, a scalar memory per unit, gates packed i, f, z, o::

        i, f, z, o = x_t W + h_{t-1} R + b          R block-diagonal, one block per head
        C_t = F C_{t-1} + exp(i) tanh(z)            F = sigmoid(f) or exp(f)
        N_t = F N_{t-1} + exp(i)
        h_t = sigmoid(o) C_t / N_t

    Beck et al. (2024, arXiv:2405.04517, section 2.2). As in the paper it is computed
    with ``C = c exp(m)`` and ``N = n exp(m)``, which does not change h and cannot
    overflow::

        m_t = max(log F + m_{t-1}, i)
        c_t = exp(log F + m_{t-1} - m_t) c_{t-1} + exp(i - m_t) tanh(z)
        n_t = exp(log F + m_{t-1} - m_t) n_{t-1} + exp(i - m_t)

    As long as nothing has been read, n is 0 and m_t is i whatever m was; otherwise a
    first i far below m would give 0 / 0. (The authors' code does so where n is zero in
    the whole batch. Here each unit decides for itself, so that masks and resets do not
    change the result.) From the first step on n is at least 1, so the division is safe.

    h enters the gates, so steps cannot be taken in parallel; `MLSTM` is the memory of
    xLSTM for which they can.

    Parameters: ``input_kernel`` W ``(D, 4H)``, ``recurrent_kernel`` R ``(heads, H /
    heads, 4H / heads)``, each head's gates side by side, ``bias (4H,)``. Carry:
    `SLSTMState` (h, c, n, m), the last three in float32 or wider. Output: h.

    Args:
        hidden_size: H, the number of hidden units.
        num_heads: the number of blocks of R, a divisor of H. Units of different heads
            do not see each other's h.
        forget_gate: whether F is ``"sigmoid"`` or ``"exponential"``.
        input_init: initializer of each block of W.
        recurrent_init: initializer of each block of R, zeros as in the authors' code.
        bias_init: initializer of the biases of i, z and o.
        forget_init: initializer of the forget gate's bias within each head. By default
            from 5 down to -7 by a power law, as in the authors' code.
            ``Linspace(3.0, 6.0)``, their other choice, gives longer memories.
        learned_initial_carry: must be False, for the normalizer is zero before the
            first step.

    Raises:
        ValueError: if ``num_heads`` does not divide ``hidden_size``, for an unknown
            ``forget_gate``, or if ``learned_initial_carry`` is True.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.SLSTM(4, num_heads=2)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 3)))
        >>> params["recurrent_kernel"].shape, ys.shape
        ((2, 2, 8), (5, 2, 4))
    """

    _: dataclasses.KW_ONLY
    num_heads: int = 1
    forget_gate: str = SIGMOID
    input_init: Initializer = Normal(math.sqrt(2 / 5))
    recurrent_init: Initializer = Zeros()
    bias_init: Initializer = Zeros()
    forget_init: Initializer = PowerLaw(5.0, -7.0, 0.3)
    # c and n are meaningful only together with m: no part may be replaced on its own.
    shares_scale: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        check_heads(self)
        check_forget_gate(self)
        if self.learned_initial_carry:
            raise ValueError(
                "SLSTM: its normalizer sums over the steps read so far and is zero "
                "before the first, so the initial carry cannot be learned: leave "
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
        """Return zeros: h in ``dtype``, c, n and m in the accumulator's dtype."""
        shape = (*batch_shape, self.hidden_size)
        return SLSTMState(
            jnp.zeros(shape, dtype),
            *(jnp.zeros(shape, accumulator(dtype)) for _ in range(3)),
        )

    def project(
        self, params: Params, x: Float[Array, "*TB D"]
    ) -> Float[Array, "*TB G"]:
        """Return ``x W``, the part of a step that needs no carry."""
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
        """Take one step of the equations above.

        ``recurrent_h`` replaces h where it is multiplied by R (variational dropout).
        """
        i, f, tanh_z, o, m = self._activations(params, carry, z, recurrent_h)
        c, n = f * carry.c + i * tanh_z, f * carry.n + i
        return SLSTMState((o * c / n).astype(carry.h.dtype), c, n, m)

    def _activations(
        self, params: Params, carry: SLSTMState, z: Array, recurrent_h: Array | None
    ) -> tuple[Array, ...]:
        """Return exp(i - m_t), exp(log F + m_{t-1} - m_t), tanh(z), sigmoid(o), m_t."""
        a = self._recur(
            carry.h if recurrent_h is None else recurrent_h, params["recurrent_kernel"]
        )
        i, f, z, o = jnp.split(
            a + z.astype(a.dtype) + along(params["bias"], a), 4, axis=-1
        )
        log_kept = log_forget(self, f) + carry.m  # log F + m_{t-1}
        m = jnp.where(carry.n == 0, i, jnp.maximum(log_kept, i))
        return (
            jnp.exp(i - m),
            # Where n == 0 this exponent may be large; the factor then multiplies 0.
            bounded_exp(log_kept - m),
            jnp.tanh(z),
            jax.nn.sigmoid(o),
            m,
        )

    def _recur(
        self, h: Float[Array, "*B H"], kernel: Float[Array, "N d g"]
    ) -> Float[Array, "*B G"]:
        """Return ``h R``, packed gate by gate (i, f, z, o), each over all heads."""
        if self.num_heads == 1:
            return recur(h, kernel[0])
        h_by_head = h.astype(kernel.dtype).reshape(
            *h.shape[:-1], self.num_heads, self.hidden_size // self.num_heads
        )
        a = jnp.einsum(
            "...nd,ndg->...ng",
            h_by_head,
            kernel,
            preferred_element_type=accumulator(kernel.dtype),
        )
        # (*B, head, gate, unit) -> (*B, gate, head, unit), the order of z and bias.
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
        """Return i and f as shares of c / n, which do not depend on m, and z and o.

        i is the share of c / n that is new in this step, f the share that is kept.
        """
        i, f, tanh_z, o, _ = self._activations(params, carry, z, None)
        n = f * carry.n + i
        return {
            "i": Gate(i / n),
            "f": Gate(f * carry.n / n, keeps=True),
            "z": Gate(tanh_z, low=-1.0),
            "o": Gate(o),
        }


def log_forget(cell: Any, f: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """Return log F, the logarithm of the forget gate."""
    return jax.nn.log_sigmoid(f) if cell.forget_gate == SIGMOID else f


def bounded_exp(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Compute exp(x), with x clipped at `largest_exponent`.

    It is for factors that are above 1 only where they multiply zero, which an infinite
    factor would turn into NaN.
    """
    return jnp.exp(jnp.minimum(x, jnp.asarray(largest_exponent(x.dtype), x.dtype)))


def check_heads(cell: Any) -> None:
    """Check that ``num_heads`` divides ``hidden_size``."""
    check_positive(cell, num_heads=cell.num_heads)
    if cell.hidden_size % cell.num_heads:
        raise ValueError(
            f"{type(cell).__name__}: hidden_size must be a multiple of num_heads, but "
            f"they are {cell.hidden_size} and {cell.num_heads}"
        )


def check_forget_gate(cell: Any) -> None:
    """Check that ``forget_gate`` is one of the two options."""
    if cell.forget_gate not in (SIGMOID, EXPONENTIAL):
        raise ValueError(
            f"{type(cell).__name__}: forget_gate must be {SIGMOID!r} or "
            f"{EXPONENTIAL!r}, but it is {cell.forget_gate!r}"
        )
