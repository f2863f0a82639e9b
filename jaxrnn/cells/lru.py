"""Linear recurrent units: a diagonal recurrence, complex and fixed (LRU), or real
and gated by the input (RG-LRU).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Complex, Float

from ..core.cell import Carry, Gate, LinearCell, Params, accumulator
from ..core.validation import check_positive
from ..initializers import Initializer, LecunNormal, Zeros, gate_blocks
from .base import BuiltinCell, projected
from .ops import along
from .ssm import ComplexDiagonal


@dataclasses.dataclass(frozen=True)
class LRU(ComplexDiagonal):
    """The linear recurrent unit of Orvieto et al. (2023, arXiv:2303.06349, section 3
    and appendix A)::

        lambda = exp(-exp(nu) + i exp(theta))            stable: |lambda| < 1 whatever nu is
        s_t = lambda s_{t-1} + exp(gamma) (B x_t)        complex, elementwise
        y_t = Re(C s_t) + d x_t

    Parameters, all real: ``nu``, ``theta``, ``gamma (H,)``, ``input_kernel (D, 2H)``
    (real and imaginary part of B), ``output_kernel (2H, D)`` (Re C over -Im C), ``skip
    (D,)``, the d above. Carry: ``s (*B, H)``, complex64 at least; outputs have as many
    features as inputs.

    Args:
        hidden_size: H, complex numbers of state.
        r_min, r_max: |lambda| at init lies between them, uniformly on the ring by
            area.
        max_phase: largest phase of lambda at init.
        learned_initial_carry: refused, for the carry is complex and parameters are
            real.
    """  # noqa: E501

    _: dataclasses.KW_ONLY
    r_min: float = 0.0
    r_max: float = 1.0
    max_phase: float = 2 * math.pi

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.r_min < self.r_max <= 1:
            raise ValueError(
                f"LRU: 0 <= r_min < r_max <= 1 is needed, but they are "
                f"{self.r_min!r} and {self.r_max!r}"
            )
        if not 0 < self.max_phase <= 2 * math.pi:
            raise ValueError(
                f"LRU: max_phase must lie in (0, 2 pi], but it is {self.max_phase!r}"
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
        dtype, H, D = dtype or jnp.result_type(float), self.hidden_size, input_size
        wide = accumulator(dtype)
        k_size, k_phase, k_input, k_output, k_skip = jax.random.split(key, 5)
        low, high = self.r_min**2, self.r_max**2
        area = (
            jax.random.uniform(k_size, (H,), wide, minval=jnp.finfo(wide).eps)
            * (high - low)
            + low
        )
        area = jnp.minimum(area, 1 - 8 * jnp.finfo(wide).eps)  # |lambda| = 1 has no nu
        nu = jnp.log(-jnp.log(area) / 2)
        theta = jnp.log(
            self.max_phase
            * jax.random.uniform(k_phase, (H,), wide, minval=jnp.finfo(wide).eps)
        )
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
        """lambda, and ``exp(gamma)``."""
        wide = accumulator(params["nu"].dtype)
        size = jnp.exp(-jnp.exp(params["nu"].astype(wide)))
        angle = jnp.exp(params["theta"].astype(wide))
        return jax.lax.complex(size * jnp.cos(angle), size * jnp.sin(angle)), jnp.exp(
            params["gamma"].astype(wide)
        )


@dataclasses.dataclass(frozen=True)
class RGLRU(LinearCell, BuiltinCell):
    """The real-gated linear recurrent unit of Griffin (De et al. 2024,
    arXiv:2402.19427, eq. 1-4)::

        r_t, i_t = sigmoid(x_t W + b)
        a_t = a^(c r_t),  a = sigmoid(decay),  c = 8
        h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t x_t)

    Parameters: ``input_kernel (H, 2H)``, blocks r, i, ``bias (2H,)``, ``decay (H,)``.
    As many features come in as there are units. Carry: ``h (*B, H)``, in float32 at
    least.

    The slope of the square root is unbounded where a_t is near 1; it is cut at 1,000,
    so that one unit that keeps everything does not make the gradient of all parameters
    infinite. Values are not touched.

    Args:
        hidden_size: H, and the number of input features.
        r_min, r_max: a^c at init, uniform between them.
        learned_initial_carry: make h before the first step a parameter.
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
                f"RGLRU: 0 < r_min < r_max < 1 is needed, but they are "
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
        kept = jax.random.uniform(
            k_decay, (H,), accumulator(dtype), minval=self.r_min, maxval=self.r_max
        )
        log_a = jnp.log(kept) / POWER
        return self.with_initial_carry(
            {
                "input_kernel": gate_blocks(
                    self.input_init, k_input, 2, input_size, H, dtype
                ),
                "bias": self.bias_init(k_bias, (2 * H,), dtype),
                "decay": (log_a - jnp.log(-jnp.expm1(log_a))).astype(
                    dtype
                ),  # the logit of a
            }
        )

    def check(self, params: Params) -> None:
        """The parameters are this cell's, and made for as many features as units."""
        super().check(params)
        features = params["input_kernel"].shape[0]
        if features != self.hidden_size:
            raise ValueError(
                f"RGLRU: its gated inputs are its drive, so there must be as many "
                f"features as units, but there are {features} "
                f"and {self.hidden_size}: put a linear map before it, or choose "
                f"RGLRU({features})"
            )

    def zero_carry(
        self, params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike
    ) -> Float[Array, "*B H"]:
        """Zeros in the accumulator's dtype."""
        return jnp.zeros((*batch_shape, self.hidden_size), accumulator(dtype))

    def project(
        self, params: Params, x: Float[Array, "*TB H"]
    ) -> tuple[Float[Array, "*TB G"], Float[Array, "*TB H"]]:
        """``(x W + b, x)``, in the accumulator's dtype."""
        return projected(self, params, x), x.astype(accumulator(x.dtype))

    def affine(
        self, params: Params, z: tuple[Array, Array]
    ) -> tuple[Float[Array, "*TB H"], Float[Array, "*TB H"]]:
        """``a_t`` and ``sqrt(1 - a_t^2) i_t x_t``."""
        gates, x = z
        r, i = jnp.split(jax.nn.sigmoid(gates), 2, axis=-1)
        log_a = (
            POWER * r * along(jax.nn.log_sigmoid(params["decay"].astype(r.dtype)), r)
        )
        return jnp.exp(log_a), _root(-jnp.expm1(2 * log_a)) * i * x

    def gate_values(self, params: Params, carry: Carry, z: Any) -> dict[str, Gate]:
        """r, i, and a, which keeps h."""
        r, i = jnp.split(jax.nn.sigmoid(z[0]), 2, axis=-1)
        return {
            "r": Gate(r),
            "i": Gate(i),
            "a": Gate(self.affine(params, z)[0], keeps=True),
        }

    def output(self, params: Params, carry: Carry, x: Any) -> Float[Array, "*TB H"]:
        """h, in the parameters' dtype."""
        return carry.astype(params["input_kernel"].dtype)


POWER = 8.0  # c
STEEPEST = 1000.0


@jax.custom_jvp
def _root(x: Array) -> Array:
    """The square root, whose slope is at most 1,000."""
    return jnp.sqrt(x)


@_root.defjvp
def _root_jvp(primals, tangents):
    root = jnp.sqrt(primals[0])
    return root, tangents[0] / jnp.maximum(
        2 * root, jnp.asarray(1 / STEEPEST, root.dtype)
    )
