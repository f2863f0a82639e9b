"""Recurrent trace units: diagonal complex recurrences for learning online."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Complex, Float

from ..core.cell import Gate, LinearCell
from ..core.dtypes import accumulator
from ..core.types import Carry, Inputs, Params
from ..core.validation import check_features, check_positive
from ..initializers import Initializer, LecunNormal, gate_blocks
from .base import BuiltinCell
from .elman import range_of
from .lru import check_ring, draw_ring
from .ops import along, dense
from .ssm import complex_of


@dataclasses.dataclass(frozen=True)
class _TraceUnits(BuiltinCell):
    """The parameters that both kinds of trace units share, and the projection."""

    _: dataclasses.KW_ONLY
    activation: Callable[[Array], Array] = jax.nn.relu
    r_min: float = 0.0
    r_max: float = 1.0
    max_phase: float = 2 * math.pi
    input_init: Initializer = LecunNormal()

    def __post_init__(self):
        super().__post_init__()
        check_ring(self, self.r_min, self.r_max, self.max_phase)

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
        dtype, H = dtype or jnp.result_type(float), self.hidden_size
        k_size, k_phase, k_input = jax.random.split(key, 3)
        nu, theta, _ = draw_ring(
            (k_size, k_phase),
            H,
            (self.r_min, self.r_max, self.max_phase),
            accumulator(dtype),
        )
        return self.with_initial_carry(
            {
                "nu": nu.astype(dtype),
                "theta": theta.astype(dtype),
                "input_kernel": gate_blocks(
                    self.input_init, k_input, 2, input_size, H, dtype
                ),
            }
        )

    def project(
        self, params: Params, x: Float[Array, "*TB D"]
    ) -> Float[Array, "*TB G"]:
        """Return ``gamma (x W)``, both parts, in the accumulator's dtype."""
        check_features(self, params["input_kernel"], x)
        z = dense(x, params["input_kernel"]).astype(accumulator(x.dtype))
        # gamma^2 = 1 - r^2 = -expm1(2 log r), without cancellation for r near 1
        log_r = -jnp.exp(params["nu"].astype(z.dtype))
        gamma = jnp.sqrt(-jnp.expm1(2 * log_r))
        return along(jnp.concatenate([gamma, gamma]), z) * z

    def rotation(self, params: Params) -> tuple[Float[Array, " H"], Float[Array, " H"]]:
        """Return ``r cos(phi)`` and ``r sin(phi)``, each ``(H,)``.

        Args:
            params: the parameters, from ``init``.
        """
        wide = accumulator(params["nu"].dtype)
        r = jnp.exp(-jnp.exp(params["nu"].astype(wide)))
        phi = jnp.exp(params["theta"].astype(wide))
        return r * jnp.cos(phi), r * jnp.sin(phi)


@dataclasses.dataclass(frozen=True)
class RTU(LinearCell, _TraceUnits):
    """Recurrent trace units with a linear recurrence (linear RTU)::

        r = exp(-exp(nu)),  phi = exp(theta),  gamma = sqrt(1 - r^2)
        s_t = r exp(i phi) s_{t-1} + gamma (x_t (W_1 + i W_2))     complex, elementwise
        y_t = [f(Re s_t) ; f(Im s_t)]

    Elelimy et al. (2024, arXiv:2409.01449, section 4). A unit is an `LRU` without its
    output maps: r < 1 for every nu, gamma follows r and is not learned, and the
    activation f is the output's. Since no unit sees another, real-time recurrent
    learning costs no more than a step. The recurrence is linear, so
    ``engine=jaxrnn.Associative()`` computes it in parallel over time; `NonlinearRTU`
    has f inside the recurrence.

    Parameters, all real: ``nu``, ``theta (H,)``, ``input_kernel (D, 2H)``, W_1 beside
    W_2. Carry: ``s (*B, H)``, complex64 or wider. Output: ``(*B, 2H)``, in the
    parameters' dtype.

    Args:
        hidden_size: H, the number of units, each with two outputs.
        activation: f, ``jax.nn.relu``, or any elementwise function.
        r_min, r_max: bounds of r at init, drawn uniformly by area on the ring between
            them.
        max_phase: the largest phi at init.
        input_init: initializer of W_1 and W_2.
        learned_initial_carry: must be False, for the carry is complex and parameters
            are real.

    Raises:
        ValueError: if not ``0 <= r_min < r_max <= 1`` or ``0 < max_phase <= 2 pi``, or
            if ``learned_initial_carry`` is True.

    Example::

        >>> import jax, jaxrnn
        >>> cell, xs = jaxrnn.cells.RTU(4), jax.numpy.ones((5, 2, 3))
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, xs, engine=jaxrnn.Associative())
        >>> carry.dtype.name, carry.shape, ys.shape
        ('complex64', (2, 4), (5, 2, 8))
    """

    def __post_init__(self):
        super().__post_init__()
        if self.learned_initial_carry:
            raise ValueError(
                "RTU: its carry is complex, but parameters are real, so the initial "
                "carry cannot be learned: leave learned_initial_carry out, or use "
                "NonlinearRTU, whose carry is real"
            )

    def zero_carry(
        self, params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike
    ) -> Complex[Array, "*B H"]:
        """Return complex zeros ``(*B, H)`` with float32 parts or wider ones."""
        shape = (*batch_shape, self.hidden_size)
        return jnp.zeros(shape, complex_of(accumulator(dtype)))

    def eigenvalues(self, params: Params) -> Complex[Array, " H"]:
        """Return ``r exp(i phi)`` ``(H,)``, the factors of the state.

        Args:
            params: the parameters, from ``init``.
        """
        return jax.lax.complex(*self.rotation(params))

    def affine(
        self, params: Params, z: Float[Array, "*TB G"]
    ) -> tuple[Complex[Array, "..."], Complex[Array, "*TB H"]]:
        """Return the factor, broadcastable over time and batch, and the addend."""
        factor = self.eigenvalues(params)
        return (
            factor.reshape((1,) * (z.ndim - 1) + factor.shape),
            jax.lax.complex(*jnp.split(z, 2, axis=-1)),
        )

    def output(
        self, params: Params, carry: Complex[Array, "*TB H"], x: Inputs
    ) -> Float[Array, "*TB G"]:
        """Return f of both parts in the parameters' dtype."""
        parts = jnp.concatenate([carry.real, carry.imag], axis=-1)
        return self.activation(parts).astype(params["input_kernel"].dtype)


@dataclasses.dataclass(frozen=True)
class NonlinearRTU(_TraceUnits):
    """Recurrent trace units with the activation in the recurrence (nonlinear RTU)::

        r = exp(-exp(nu)),  phi = exp(theta),  gamma = sqrt(1 - r^2)
        u_t = f(r cos(phi) u_{t-1} - r sin(phi) v_{t-1} + gamma (x_t W_1))
        v_t = f(r sin(phi) u_{t-1} + r cos(phi) v_{t-1} + gamma (x_t W_2))
        h_t = [u_t ; v_t]

    Elelimy et al. (2024, arXiv:2409.01449, section 4). It is the complex recurrence of
    `RTU` in real arithmetic, with f applied to both parts at every step.

    Parameters: ``nu``, ``theta (H,)``, ``input_kernel (D, 2H)``, W_1 beside W_2. Carry:
    ``h (*B, 2H)``, an array, kept in float32 or wider because it accumulates. Output:
    h in the parameters' dtype.

    Args:
        hidden_size: H, the number of units, each with two outputs.
        activation: f, ``jax.nn.relu``, or any elementwise function.
        r_min, r_max, max_phase, input_init: as in `RTU`.
        learned_initial_carry: if True, h before the first step is a parameter.

    Raises:
        ValueError: if not ``0 <= r_min < r_max <= 1`` or ``0 < max_phase <= 2 pi``.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.cells.NonlinearRTU(4)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 3)))
        >>> carry.shape, ys.shape
        ((2, 8), (5, 2, 8))
    """

    def zero_carry(
        self, params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike
    ) -> Float[Array, "*B G"]:
        """Return zeros ``(*B, 2H)`` in the accumulator's dtype."""
        return jnp.zeros((*batch_shape, 2 * self.hidden_size), accumulator(dtype))

    def step(
        self, params: Params, carry: Float[Array, "*B G"], z: Float[Array, "*B G"]
    ) -> Float[Array, "*B G"]:
        """Take one step of the equations above."""
        u, v = jnp.split(carry, 2, axis=-1)
        cosine, sine = (along(part, u) for part in self.rotation(params))
        turned = jnp.concatenate([cosine * u - sine * v, sine * u + cosine * v], -1)
        return self.activation(turned + z.astype(carry.dtype))

    def output(self, params: Params, carry: Carry, x: Inputs) -> Float[Array, "*TB G"]:
        """Return h in the parameters' dtype."""
        return carry.astype(params["input_kernel"].dtype)

    def gate_values(
        self, params: Params, carry: Float[Array, "*B G"], z: Float[Array, "*B G"]
    ) -> dict[str, Gate]:
        """Return h: the cell has no gate, but its saturation stops the gradient."""
        return {"h": Gate(self.step(params, carry, z), *range_of(self.activation))}
