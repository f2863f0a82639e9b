"""Complex diagonal recurrences: what the LRU and S5 share, and S5."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Complex, Float

from ..core.cell import LinearCell, Params, accumulator
from ..core.validation import check_features, check_positive
from .base import BuiltinCell
from .ops import along, dense

LEGS, LIN = "legs", "lin"


@dataclasses.dataclass(frozen=True)
class ComplexDiagonal(LinearCell, BuiltinCell):
    """``s_t = a s_{t-1} + g (B x_t)`` and ``y_t = Re(C s_t) + d x_t``, elementwise,
    with complex a and g that are the same at every step: a subclass tells them in
    ``factors``, and draws the parameters.

    Parameters, all real: ``input_kernel (D, 2H)`` (real and imaginary part of B),
    ``output_kernel (2H, D)`` (Re C over -Im C), ``skip (D,)``, the d above, and the
    subclass's own. Carry: ``s (*B, H)``, complex64 at least; outputs have as many
    features as inputs.
    """

    def __post_init__(self):
        super().__post_init__()
        if self.learned_initial_carry:
            name = type(self).__name__
            raise ValueError(
                f"{name}: its carry is complex, and parameters are real: leave "
                f"learned_initial_carry out"
            )

    def factors(self, params: Params) -> tuple[Complex[Array, " H"], Array]:
        """a, and g."""
        raise NotImplementedError

    def zero_carry(
        self, params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike
    ) -> Complex[Array, "*B H"]:
        """Complex zeros, of float32 parts at least."""
        return jnp.zeros(
            (*batch_shape, self.hidden_size), complex_of(accumulator(dtype))
        )

    def project(
        self, params: Params, x: Float[Array, "*TB D"]
    ) -> Complex[Array, "*TB H"]:
        """``g (B x)``."""
        check_features(self, params["input_kernel"], x)
        real, imaginary = jnp.split(
            dense(x, params["input_kernel"]).astype(accumulator(x.dtype)), 2, axis=-1
        )
        scale = self.factors(params)[1].reshape(
            (1,) * (x.ndim - 1) + (self.hidden_size,)
        )
        if jnp.iscomplexobj(scale):
            return scale * jax.lax.complex(real, imaginary)
        return jax.lax.complex(scale * real, scale * imaginary)

    def eigenvalues(self, params: Params) -> Complex[Array, " H"]:
        """a: how each number of the state is turned and shrunk in a step."""
        return self.factors(params)[0]

    def affine(
        self, params: Params, z: Complex[Array, "*TB H"]
    ) -> tuple[Complex[Array, "..."], Complex[Array, "*TB H"]]:
        """a, the same at every step, and z."""
        return self.eigenvalues(params).reshape(
            (1,) * (z.ndim - 1) + (self.hidden_size,)
        ), z

    def output(
        self, params: Params, carry: Complex[Array, "*TB H"], x: Float[Array, "*TB D"]
    ) -> Float[Array, "*TB D"]:
        """``Re(C s) + d x``, in the parameters' dtype."""
        kernel = params["output_kernel"]
        parts = jnp.concatenate([carry.real, carry.imag], axis=-1).astype(kernel.dtype)
        return dense(parts, kernel) + along(params["skip"], x) * x


@dataclasses.dataclass(frozen=True)
class S5(ComplexDiagonal):
    """The S5 state space model, one block of it (Smith et al. 2023, arXiv:2208.04933,
    section 3)::

        ds/dt = lambda s + B x      y = 2 Re(C s) + d x             H numbers of a conjugate-symmetric state of 2H

    held constant between steps (zero-order hold) that are ``dt = exp(log_step)`` apart,
    one dt a number::

        s_t = exp(lambda dt) s_{t-1} + (exp(lambda dt) - 1) / lambda (B x_t)

    Parameters, all real: ``eigenvalue_real``, ``eigenvalue_imaginary``, ``log_step
    (H,)``, ``input_kernel (D, 2H)`` (real and imaginary part of B), ``output_kernel
    (2H, D)`` (2 Re C over -2 Im C), ``skip (D,)``, the d above. Carry: ``s (*B, H)``,
    complex64 at least; outputs have as many features as inputs.

    Args:
        hidden_size: H, complex numbers of state.
        spectrum: lambda at init: ``"legs"``: those of the normal part of HiPPO-LegS of
            size 2H, one of each conjugate pair, B and C in the basis of its
            eigenvectors; ``"lin"``: ``-1/2 + i pi n`` (S4D-Lin of Gu et al. 2022,
            arXiv:2206.11893).
        shortest, longest: dt at init lies between them, uniformly by its logarithm.
        clip: hold the real part of lambda at -0.0001 or below, so that no state can
            grow. Off by default, as in the authors' code; they advise it for sequences
            without end.
    """  # noqa: E501

    _: dataclasses.KW_ONLY
    spectrum: str = LEGS
    shortest: float = 0.001
    longest: float = 0.1
    clip: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.spectrum not in (LEGS, LIN):
            raise ValueError(
                f"S5: spectrum must be {LEGS!r} or {LIN!r}, but it is {self.spectrum!r}"
            )
        if not 0 < self.shortest <= self.longest:
            raise ValueError(
                f"S5: 0 < shortest <= longest is needed, but they are "
                f"{self.shortest!r} and {self.longest!r}"
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
        k_step, k_input, k_output, k_skip = jax.random.split(key, 4)
        low, high = math.log(self.shortest), math.log(self.longest)
        if self.spectrum == LEGS:
            values, vectors = legs(H)
            of_input = jax.random.normal(k_input, (D, 2 * H), wide) / math.sqrt(
                2 * H
            )  # in the basis of LegS
            B = [
                of_input @ jnp.asarray(part, wide)
                for part in (vectors.real, -vectors.imag)
            ]
            real, imaginary = jax.random.normal(
                k_output, (2, D, 2 * H), wide
            ) / math.sqrt(2 * H)
            v_real, v_imaginary = (
                jnp.asarray(vectors.real, wide),
                jnp.asarray(vectors.imag, wide),
            )
            C = [
                real @ v_real - imaginary @ v_imaginary,
                real @ v_imaginary + imaginary @ v_real,
            ]
        else:  # as large as those
            values = -0.5 + 1j * math.pi * np.arange(H)
            B = list(jax.random.normal(k_input, (2, D, H), wide) / math.sqrt(4 * H))
            C = list(jax.random.normal(k_output, (2, D, H), wide) / math.sqrt(2 * H))
        params = {
            "eigenvalue_real": jnp.asarray(values.real, wide),
            "eigenvalue_imaginary": jnp.asarray(values.imag, wide),
            "log_step": low + (high - low) * jax.random.uniform(k_step, (H,), wide),
            "input_kernel": jnp.concatenate(B, axis=-1),
            "output_kernel": 2 * jnp.concatenate([C[0].T, -C[1].T]),
            "skip": jax.random.normal(k_skip, (D,), wide),
        }
        return {name: leaf.astype(dtype) for name, leaf in params.items()}

    def factors(
        self, params: Params
    ) -> tuple[Complex[Array, " H"], Complex[Array, " H"]]:
        """``exp(lambda dt)``, and ``(exp(lambda dt) - 1) / lambda``."""
        wide = accumulator(params["log_step"].dtype)
        real, imaginary, log_step = (
            params[name].astype(wide)
            for name in ("eigenvalue_real", "eigenvalue_imaginary", "log_step")
        )
        if self.clip:
            real = jnp.minimum(real, jnp.asarray(-1e-4, wide))
        step = jnp.exp(log_step)
        z = jax.lax.complex(real * step, imaginary * step)
        return jnp.exp(z), hold(z) * step.astype(z.dtype)


def hold(z: Complex[Array, "*S"]) -> Complex[Array, "*S"]:
    """``(exp(z) - 1) / z``, which is 1 at zero, without cancellation near it."""
    near = jnp.abs(z.real) + jnp.abs(z.imag) < 1e-2
    small, large = jnp.where(near, z, 0), jnp.where(near, 1, z)
    series = 1 + small / 2 * (
        1
        + small
        / 3
        * (1 + small / 4 * (1 + small / 5 * (1 + small / 6 * (1 + small / 7))))
    )
    return jnp.where(near, series, (jnp.exp(large) - 1) / large)


def legs(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues ``(size,)`` and vectors ``(2 size, size)`` of the normal part of
    HiPPO-LegS, one of each conjugate pair.

    LegS (Gu et al. 2020) has ``A_nk = -sqrt((2n + 1)(2k + 1))`` for n > k and ``-(n +
    1)`` for n = k; with ``p p^T, p_n = sqrt(n + 1/2)`` added it is -1/2 on the diagonal
    and skew elsewhere.
    """
    n = np.arange(2 * size)
    product = np.sqrt(np.outer(n + 0.5, n + 0.5))
    skew = np.triu(product, 1) - np.tril(product, -1)
    imaginary, vectors = np.linalg.eigh(
        -1j * skew
    )  # ascending, and symmetric about zero
    return -0.5 + 1j * imaginary[size:], vectors[:, size:]


def complex_of(dtype: DTypeLike) -> Any:
    """The complex dtype with parts of ``dtype``."""
    return jnp.complex128 if jnp.dtype(dtype) == jnp.float64 else jnp.complex64
