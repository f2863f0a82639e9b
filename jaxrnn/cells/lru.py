"""Linear recurrent units with a diagonal recurrence.

The LRU's is complex and the same at every step; the RG-LRU's is real and gated by the
input.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Complex, Float

from ..core.cell import Cell, Gate, LinearCell
from ..core.dtypes import accumulator
from ..core.types import Carry, Inputs, Params, PyTree
from ..core.validation import check_positive
from ..initializers import Initializer, LecunNormal, Zeros, gate_blocks
from .base import BuiltinCell, projected
from .ops import along
from .ssm import ComplexDiagonal


@dataclasses.dataclass(frozen=True)
class LRU(ComplexDiagonal):
    """The linear recurrent unit (LRU), a complex diagonal linear recurrence::

        lambda = exp(-exp(nu) + i exp(theta))       |lambda| < 1 for every nu
        s_t = lambda s_{t-1} + exp(gamma) (B x_t)   complex, elementwise
        y_t = Re(C s_t) + d x_t

    Orvieto et al. (2023, arXiv:2303.06349, section 3 and appendix A). The output is
    linear in the inputs, so stack LRUs in blocks with a nonlinearity, such as
    `residual_block`. ``engine=jaxrnn.Associative()`` computes the recurrence in
    parallel over time.

    Parameters, all real: ``nu``, ``theta``, ``gamma (H,)``, ``input_kernel (D, 2H)``
    (real and imaginary part of B), ``output_kernel (2H, D)`` (Re C over -Im C), ``skip
    (D,)``, the d above. Carry: ``s (*B, H)``, complex64 or wider. Output: ``(*B, D)``;
    it has the input's feature size, independent of the state size H.

    Args:
        hidden_size: H, the number of complex state variables.
        r_min, r_max: bounds of ``|lambda|`` at init, drawn uniformly by area on the
            ring between them. For long sequences choose r_min near 1, such as 0.9.
        max_phase: the largest phase of lambda at init. For long sequences a small
            value, such as ``pi / 10``, avoids fast oscillations.
        learned_initial_carry: must be False, for the carry is complex and parameters
            are real.

    Raises:
        ValueError: if not ``0 <= r_min < r_max <= 1`` or ``0 < max_phase <= 2 pi``, or
            if ``learned_initial_carry`` is True.

    Example::

        >>> import jax, jaxrnn
        >>> cell, xs = jaxrnn.LRU(8), jax.numpy.ones((5, 2, 3))
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, xs, engine=jaxrnn.Associative())
        >>> carry.dtype.name, carry.shape, ys.shape
        ('complex64', (2, 8), (5, 2, 3))
    """

    _: dataclasses.KW_ONLY
    r_min: float = 0.0
    r_max: float = 1.0
    max_phase: float = 2 * math.pi

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
        dtype, H, D = dtype or jnp.result_type(float), self.hidden_size, input_size
        wide = accumulator(dtype)
        k_size, k_phase, k_input, k_output, k_skip = jax.random.split(key, 5)
        ring = self.r_min, self.r_max, self.max_phase
        nu, theta, area = draw_ring((k_size, k_phase), H, ring, wide)
        # exp(gamma) = sqrt(1 - |lambda|^2) keeps the variance of the state at that of
        # its input B x for white noise. B and C are complex Gaussian, E|B|^2 = 1 / D
        # and E|C|^2 = 2 / H, half of each in either part.
        params = {
            "nu": nu,
            "theta": theta,
            "gamma": jnp.log1p(-area) / 2,
            "input_kernel": jax.random.normal(k_input, (D, 2 * H), wide)
            / math.sqrt(2 * D),
            "output_kernel": jax.random.normal(k_output, (2 * H, D), wide)
            / math.sqrt(H),
            "skip": jax.random.normal(k_skip, (D,), wide),
        }
        return {name: leaf.astype(dtype) for name, leaf in params.items()}

    def factors(
        self, params: Params
    ) -> tuple[Complex[Array, " H"], Float[Array, " H"]]:
        """Return lambda and ``exp(gamma)``, in the accumulator's precision."""
        wide = accumulator(params["nu"].dtype)
        radius = jnp.exp(-jnp.exp(params["nu"].astype(wide)))
        angle = jnp.exp(params["theta"].astype(wide))
        eigenvalues = jax.lax.complex(radius * jnp.cos(angle), radius * jnp.sin(angle))
        return eigenvalues, jnp.exp(params["gamma"].astype(wide))


def check_ring(cell: Cell, r_min: float, r_max: float, max_phase: float) -> None:
    """Check the bounds of eigenvalues at init.

    Raises:
        ValueError: if not ``0 <= r_min < r_max <= 1`` or ``0 < max_phase <= 2 pi``.
    """
    name = type(cell).__name__
    if not 0 <= r_min < r_max <= 1:
        raise ValueError(
            f"{name}: r_min and r_max must satisfy 0 <= r_min < r_max <= 1, but are "
            f"{r_min!r} and {r_max!r}"
        )
    if not 0 < max_phase <= 2 * math.pi:
        raise ValueError(
            f"{name}: max_phase must lie in (0, 2 pi], but it is {max_phase!r}"
        )


def draw_ring(
    keys: tuple[Array, Array],
    size: int,
    ring: tuple[float, float, float],
    dtype: DTypeLike | None,
) -> tuple[Float[Array, " H"], Float[Array, " H"], Float[Array, " H"]]:
    """Draw eigenvalues ``exp(-exp(nu) + i exp(theta))`` uniformly by area on a ring.

    Args:
        keys: the keys of the modulus and of the phase.
        size: H, the number of eigenvalues.
        ring: the least and largest modulus, and the largest phase.
        dtype: of the results.

    Returns:
        nu, theta and the squared modulus, ``(H,)`` each.
    """
    # A point is uniform by area on the ring r_min <= |lambda| <= r_max if |lambda|^2 is
    # uniform between the squares of the bounds. Then |lambda| = exp(-exp(nu)) gives
    # nu = log(-log(|lambda|^2) / 2), and the phase is exp(theta). `area` below is
    # |lambda|^2; draws begin at eps, for log(0).
    low, high = ring[0] ** 2, ring[1] ** 2
    modulus, phase = (
        jax.random.uniform(key, (size,), dtype, minval=jnp.finfo(dtype).eps)
        for key in keys
    )
    area = modulus * (high - low) + low
    # |lambda| = 1 would need nu = -inf.
    area = jnp.minimum(area, 1 - 8 * jnp.finfo(dtype).eps)
    return jnp.log(-jnp.log(area) / 2), jnp.log(ring[2] * phase), area


@dataclasses.dataclass(frozen=True)
class RGLRU(LinearCell, BuiltinCell):
    """The real-gated linear recurrent unit (RG-LRU) of Griffin::

        r_t, i_t = sigmoid(x_t W + b)
        a_t = a^(c r_t),  a = sigmoid(decay),  c = 8
        h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t x_t)

    De et al. (2024, arXiv:2402.19427, eq. 1-4). As in Griffin, put a linear map before
    it; ``engine=jaxrnn.Associative()`` computes the recurrence in parallel over time.

    Parameters: ``input_kernel`` W ``(H, 2H)``, blocks r, i, ``bias (2H,)``, ``decay
    (H,)``. The inputs must have H features, because they are added to the state. Carry:
    ``h (*B, H)``, in float32 or wider. Output: h in the parameters' dtype.

    The gradient of the square root is unbounded where a_t is near 1. It is clipped at
    1,000, so that one unit that keeps everything does not make the gradient of all
    parameters infinite. Values are not changed.

    Args:
        hidden_size: H, also the number of input features.
        r_min, r_max: bounds of a^c at init, drawn uniformly between them.
        input_init: initializer of each block of W.
        bias_init: initializer of b.
        learned_initial_carry: if True, h before the first step is a parameter.

    Raises:
        ValueError: if not ``0 < r_min < r_max < 1``.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.RGLRU(4)
        >>> params = cell.init(jax.random.key(0), input_size=4)
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 4)))
        >>> ys.shape
        (5, 2, 4)
    """

    _: dataclasses.KW_ONLY
    r_min: float = 0.9
    r_max: float = 0.999
    input_init: Initializer = LecunNormal()
    bias_init: Initializer = Zeros()

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.r_min < self.r_max < 1:
            raise ValueError(
                f"RGLRU: r_min and r_max must satisfy 0 < r_min < r_max < 1, but are "
                f"{self.r_min!r} and {self.r_max!r}"
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
        dtype, H = dtype or jnp.result_type(float), self.hidden_size
        k_input, k_bias, k_decay = jax.random.split(key, 3)
        # a^c is uniform in [r_min, r_max], and decay is the logit of a:
        # log(a / (1 - a)) = log a - log(-expm1(log a)), exact also for a near 1.
        a_to_c = jax.random.uniform(
            k_decay, (H,), accumulator(dtype), minval=self.r_min, maxval=self.r_max
        )
        log_a = jnp.log(a_to_c) / POWER
        return self.with_initial_carry(
            {
                "input_kernel": gate_blocks(
                    self.input_init, k_input, 2, input_size, H, dtype
                ),
                "bias": self.bias_init(k_bias, (2 * H,), dtype),
                "decay": (log_a - jnp.log(-jnp.expm1(log_a))).astype(dtype),
            }
        )

    def check(self, params: Params) -> None:
        """Check the parameters, and that they were made for H input features."""
        super().check(params)
        features = params["input_kernel"].shape[0]
        if features != self.hidden_size:
            raise ValueError(
                f"RGLRU: the number of input features must equal hidden_size, because "
                f"the gated input is added to the state, but they are {features} and "
                f"{self.hidden_size}: put a linear map before it, or choose "
                f"RGLRU({features})"
            )

    def zero_carry(
        self, params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike
    ) -> Float[Array, "*B H"]:
        """Return zeros ``(*B, H)`` in the accumulator's dtype."""
        return jnp.zeros((*batch_shape, self.hidden_size), accumulator(dtype))

    def project(
        self, params: Params, x: Float[Array, "*TB H"]
    ) -> tuple[Float[Array, "*TB G"], Float[Array, "*TB H"]]:
        """Return ``(x W + b, x)`` in the accumulator's dtype."""
        return projected(self, params, x), x.astype(accumulator(x.dtype))

    def affine(
        self, params: Params, z: tuple[Array, Array]
    ) -> tuple[Float[Array, "*TB H"], Float[Array, "*TB H"]]:
        """Return the factor ``a_t`` and the addend ``sqrt(1 - a_t^2) i_t x_t``."""
        gates, x = z
        r, i = jnp.split(jax.nn.sigmoid(gates), 2, axis=-1)
        # log a_t = c r_t log sigmoid(decay), and 1 - a_t^2 = -expm1(2 log a_t): no
        # cancellation where a_t is near 1.
        log_a = (
            POWER * r * along(jax.nn.log_sigmoid(params["decay"].astype(r.dtype)), r)
        )
        return jnp.exp(log_a), _root(-jnp.expm1(2 * log_a)) * i * x

    def gate_values(self, params: Params, carry: Carry, z: PyTree) -> dict[str, Gate]:
        """Return r, i, and a (which keeps h)."""
        r, i = jnp.split(jax.nn.sigmoid(z[0]), 2, axis=-1)
        return {
            "r": Gate(r),
            "i": Gate(i),
            "a": Gate(self.affine(params, z)[0], keeps=True),
        }

    def output(self, params: Params, carry: Carry, x: Inputs) -> Float[Array, "*TB H"]:
        """Return h in the parameters' dtype."""
        return carry.astype(params["input_kernel"].dtype)


POWER = 8.0  # c of the paper
STEEPEST = 1000.0  # the bound of the square root's gradient


@jax.custom_jvp
def _root(x: Array) -> Array:
    """Compute the square root, with its gradient clipped at `STEEPEST`."""
    return jnp.sqrt(x)


@_root.defjvp
def _root_jvp(primals, tangents):
    """Multiply the tangent by the clipped derivative."""
    root = jnp.sqrt(primals[0])
    # The derivative is 1 / (2 root); the bound below makes it STEEPEST at most.
    return root, tangents[0] / jnp.maximum(
        2 * root, jnp.asarray(1 / STEEPEST, root.dtype)
    )
