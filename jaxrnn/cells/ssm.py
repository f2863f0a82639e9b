"""Complex diagonal recurrences: the base class of the LRU and S5, and S5 itself."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Complex, Float

from ..core.cell import LinearCell
from ..core.dtypes import accumulator
from ..core.types import Params
from ..core.validation import check_features, check_positive
from .base import BuiltinCell
from .ops import along, dense

LEGS, LIN = "legs", "lin"


@dataclasses.dataclass(frozen=True)
class ComplexDiagonal(LinearCell, BuiltinCell):
    """A linear recurrence with a complex diagonal matrix, the same at every step::

        s_t = a s_{t-1} + g (B x_t)         elementwise
        y_t = Re(C s_t) + d x_t

    A subclass returns a and g from ``factors``, and draws the parameters in ``init``.

    Parameters, all real: ``input_kernel (D, 2H)`` (real and imaginary part of B),
    ``output_kernel (2H, D)`` (Re C over -Im C), ``skip (D,)``, the d above, and the
    subclass's own. Carry: ``s (*B, H)``, complex64 or wider. Output: ``(*B, D)``; it
    has the input's feature size, independent of the state size H.
    """

    def __post_init__(self):
        super().__post_init__()
        if self.learned_initial_carry:
            name = type(self).__name__
            raise ValueError(
                f"{name}: its carry is complex, but parameters are real, so the "
                f"initial carry cannot be learned: leave learned_initial_carry out"
            )

    def factors(self, params: Params) -> tuple[Complex[Array, " H"], Array]:
        """Return a ``(H,)``, complex, and g ``(H,)``, real or complex."""
        raise NotImplementedError

    def zero_carry(
        self, params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike
    ) -> Complex[Array, "*B H"]:
        """Return complex zeros ``(*B, H)`` with float32 parts or wider ones."""
        return jnp.zeros(
            (*batch_shape, self.hidden_size), complex_of(accumulator(dtype))
        )

    def project(
        self, params: Params, x: Float[Array, "*TB D"]
    ) -> Complex[Array, "*TB H"]:
        """Return ``g (B x)``, complex."""
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
        """Return a ``(H,)``, the eigenvalues of the state matrix.

        A step rotates each state variable by the phase of its eigenvalue, and scales it
        by the modulus.

        Args:
            params: the parameters, from ``init``.
        """
        return self.factors(params)[0]

    def affine(
        self, params: Params, z: Complex[Array, "*TB H"]
    ) -> tuple[Complex[Array, "..."], Complex[Array, "*TB H"]]:
        """Return a, broadcastable over time and batch, and z."""
        return self.eigenvalues(params).reshape(
            (1,) * (z.ndim - 1) + (self.hidden_size,)
        ), z

    def output(
        self, params: Params, carry: Complex[Array, "*TB H"], x: Float[Array, "*TB D"]
    ) -> Float[Array, "*TB D"]:
        """Return ``Re(C s) + d x`` in the parameters' dtype."""
        kernel = params["output_kernel"]
        # Re(C s) = Re C Re s - Im C Im s: one real product with both parts of s.
        parts = jnp.concatenate([carry.real, carry.imag], axis=-1).astype(kernel.dtype)
        return dense(parts, kernel) + along(params["skip"], x) * x


@dataclasses.dataclass(frozen=True)
class S5(ComplexDiagonal):
    """The S5 state space model, one block of it::

        ds/dt = lambda s + B x              H of the 2H state variables,
        y = 2 Re(C s) + d x                 which come in conjugate pairs

    discretized with x held constant (zero-order hold) over each step, whose length ``dt
    = exp(log_step)`` is learned for each state variable::

        s_t = exp(lambda dt) s_{t-1} + (exp(lambda dt) - 1) / lambda (B x_t)

    Smith et al. (2023, arXiv:2208.04933, section 3). The output is linear in the
    inputs, so stack S5 cells in blocks with a nonlinearity, such as `residual_block`.
    ``engine=jaxrnn.Associative()`` computes the recurrence in parallel over time.

    Parameters, all real: ``eigenvalue_real``, ``eigenvalue_imaginary``, ``log_step
    (H,)``, ``input_kernel (D, 2H)`` (real and imaginary part of B), ``output_kernel
    (2H, D)`` (2 Re C over -2 Im C), ``skip (D,)``, the d above. Carry: ``s (*B, H)``,
    complex64 or wider. Output: ``(*B, D)``; it has the input's feature size,
    independent of the state size H.

    Args:
        hidden_size: H, the number of complex state variables.
        spectrum: lambda at init. ``"legs"`` (the default, as published): the
            eigenvalues of the normal part of HiPPO-LegS of size 2H, one of each
            conjugate pair, with B and C in the basis of its eigenvectors. ``"lin"``:
            ``-1/2 + i pi n`` (S4D-Lin of Gu et al. 2022, arXiv:2206.11893).
        shortest, longest: bounds of dt at init, drawn log-uniformly between them.
        clip: if True, clip the real part of lambda at -0.0001, so that no state can
            grow. False by default, as in the authors' code; they advise True for
            sequences of unbounded length.
        learned_initial_carry: must be False, for the carry is complex and parameters
            are real.

    Raises:
        ValueError: for an unknown ``spectrum``, for bounds other than ``0 < shortest <=
            longest``, or if ``learned_initial_carry`` is True.

    Example::

        >>> import jax, jaxrnn
        >>> cell, xs = jaxrnn.S5(8), jax.numpy.ones((5, 2, 3))
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, xs, engine=jaxrnn.Associative())
        >>> carry.shape, ys.shape
        ((2, 8), (5, 2, 3))
    """

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
                f"S5: the bounds of dt must satisfy 0 < shortest <= longest, but are "
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
        # B and C below are lists of the real and the imaginary part.
        if self.spectrum == LEGS:
            # B (real) and C (complex) are drawn in the basis of LegS, where the state
            # has 2H variables, and changed to that of the eigenvectors V: B becomes
            # V^* B and C becomes C V, of which the H columns of `vectors` are kept.
            values, vectors = legs(H)
            of_input = jax.random.normal(k_input, (D, 2 * H), wide) / math.sqrt(2 * H)
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
        else:
            # The eigenvectors are orthonormal, so these variances equal those above.
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
        """Return ``exp(lambda dt)`` and ``(exp(lambda dt) - 1) / lambda``."""
        wide = accumulator(params["log_step"].dtype)
        real, imaginary, log_step = (
            params[name].astype(wide)
            for name in ("eigenvalue_real", "eigenvalue_imaginary", "log_step")
        )
        if self.clip:
            real = jnp.minimum(real, jnp.asarray(-1e-4, wide))
        step = jnp.exp(log_step)
        # With z = lambda dt, (exp(lambda dt) - 1) / lambda = dt (exp(z) - 1) / z.
        z = jax.lax.complex(real * step, imaginary * step)
        return jnp.exp(z), hold(z) * step.astype(z.dtype)


def hold(z: Complex[Array, "*S"]) -> Complex[Array, "*S"]:
    """Compute ``(exp(z) - 1) / z``, which is 1 at zero, without cancellation there."""
    # Near zero the Taylor series 1 + z/2! + z^2/3! + ... by Horner's rule. Each branch
    # gets harmless arguments where the other is selected, so that gradients are finite.
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
    """Diagonalize the normal part of HiPPO-LegS, keeping one of each conjugate pair.

    LegS (Gu et al. 2020) has ``A_nk = -sqrt((2n + 1)(2k + 1))`` for n > k, ``-(n + 1)``
    for n = k and 0 for n < k. With ``p p^T, p_n = sqrt(n + 1/2)`` added it is -1/2 on
    the diagonal and skew-symmetric elsewhere, hence normal.

    Args:
        size: H, half the size of the matrix.

    Returns:
        The eigenvalues ``(size,)`` and eigenvectors ``(2 size, size)`` with positive
        imaginary part.
    """
    n = np.arange(2 * size)
    product = np.sqrt(np.outer(n + 0.5, n + 0.5))
    skew = np.triu(product, 1) - np.tril(product, -1)
    # For skew-symmetric S, -i S is Hermitian; the eigenvalues of S are i times its own,
    # which `eigh` returns in ascending order, symmetric about zero.
    imaginary, vectors = np.linalg.eigh(-1j * skew)
    return -0.5 + 1j * imaginary[size:], vectors[:, size:]


def complex_of(dtype: DTypeLike) -> Any:
    """Return the complex dtype whose parts have ``dtype``."""
    return jnp.complex128 if jnp.dtype(dtype) == jnp.float64 else jnp.complex64
