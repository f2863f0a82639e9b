"""The continuous-time recurrent network of computational neuroscience."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..core.cell import Gate
from ..core.dtypes import accumulator
from ..core.types import Inputs, Params
from ..core.validation import check_positive
from ..initializers import Initializer, LecunNormal, Normal, Zeros
from .base import BuiltinCell, projected
from .elman import range_of
from .ops import along, recur


@dataclasses.dataclass(frozen=True)
class CTRNN(BuiltinCell):
    """A continuous-time recurrent network (CTRNN), by Euler's method::

        tau ds/dt = -s + f(s) U + x W + b

        s_t = (1 - a) s_{t-1} + a (f(s_{t-1}) U + x_t W + b),    a = dt / tau
        y_t = f(s_t)

    s holds the currents of the units and y their firing rates. Song, Yang & Wang (2016,
    "Training excitatory-inhibitory recurrent neural networks for cognitive tasks", PLoS
    Computational Biology 12(2):e1004792).

    With ``dale`` each unit excites or inhibits all others (Dale's law)::

        U = S |V|,    S = diag(1, ..., 1, -1, ..., -1)

    The first ``round(dale H)`` units excite, the others inhibit. V, which may have any
    signs, is what is learned, so the law holds after every update. The paper
    rectifies V instead, which leaves weights at zero without a gradient. The noise of
    the paper is a layer, `jaxrnn.layers.state_noise`.

    Parameters: ``input_kernel`` W ``(D, H)``, ``recurrent_kernel`` U, or V with
    ``dale``, ``(H, H)`` with one row for each sending unit, ``bias (H,)``, and with
    ``learned_tau`` also ``rate_logit (H,)``, which is log(a / (1 - a)). Carry: ``s (*B,
    H)``, an array, kept in float32 or wider because it accumulates. Output: f(s) in the
    parameters' dtype.

    Args:
        hidden_size: H, the number of units.
        dt: the length of a step, in the unit of ``tau``, such as milliseconds.
        tau: the time constant, one number or a tuple of one for each unit; at least
            ``dt``.
        learned_tau: if True, each unit learns its own time constant, from ``tau`` on.
            It stays above ``dt``, where Euler's method is stable.
        activation: f, ``jax.nn.relu`` as published, or any elementwise function.
        dale: the share of excitatory units, from 0 to 1, such as 0.8; None for units
            without a sign. Kernels drawn by ``recurrent_init`` are then scaled so that
            excitation and inhibition cancel on average: with E excitatory and I
            inhibitory units, their rows by sqrt(I / E) and sqrt(E / I), which leaves
            the sum of squares as it is.
        autapses: if False, no unit projects to itself: the diagonal of U is zero.
        input_init: initializer of W.
        recurrent_init: initializer of U or V. ``Normal(gain)`` with a gain above 1
            makes a network with tanh and without ``dale`` chaotic.
        bias_init: initializer of b.
        learned_initial_carry: if True, s before the first step is a parameter.

    Raises:
        ValueError: if not ``0 < dt <= tau`` (``dt < tau`` with ``learned_tau``), if a
            tuple ``tau`` does not have H entries, or if ``dale`` is not in [0, 1].

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.cells.CTRNN(10, dt=10.0, tau=50.0, dale=0.8)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, rates = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 3)))
        >>> rates.shape
        (5, 2, 10)
        >>> U = cell.recurrent_weights(params)
        >>> bool((U[:8] >= 0).all()), bool((U[8:] <= 0).all())
        (True, True)
    """

    _: dataclasses.KW_ONLY
    dt: float = 1.0
    tau: float | tuple[float, ...] = 5.0
    learned_tau: bool = False
    activation: Callable[[Array], Array] = jax.nn.relu
    dale: float | None = None
    autapses: bool = True
    input_init: Initializer = LecunNormal()
    recurrent_init: Initializer = Normal()
    bias_init: Initializer = Zeros()

    def __post_init__(self):
        super().__post_init__()
        taus = self.tau if isinstance(self.tau, tuple) else (self.tau,)
        if not all(map(_is_number, (self.dt, *taus))):
            raise TypeError(
                f"CTRNN: dt must be a number, and tau a number or a tuple of one for "
                f"each unit, but they are {self.dt!r} and {self.tau!r}"
            )
        if isinstance(self.tau, tuple) and len(taus) != self.hidden_size:
            raise ValueError(
                f"CTRNN: tau has {len(taus)} entries, but there are "
                f"{self.hidden_size} units: give one number for all, or one for each"
            )
        if not 0 < self.dt <= min(taus) or not math.isfinite(max(taus)):
            raise ValueError(
                f"CTRNN: dt and tau must satisfy 0 < dt <= tau, because Euler's method "
                f"oscillates with longer steps, but they are {self.dt!r} and "
                f"{self.tau!r}"
            )
        if self.learned_tau and min(taus) == self.dt:
            raise ValueError(
                f"CTRNN: a learned tau must begin above dt, but both are {self.dt!r}"
            )
        if self.dale is not None and (
            not _is_number(self.dale) or not 0 <= self.dale <= 1
        ):
            raise ValueError(
                f"CTRNN: dale must be the share of excitatory units, from 0 to 1, or "
                f"None for units without a sign, but it is {self.dale!r}"
            )

    @property
    def excitatory(self) -> int:
        """The number of excitatory units; all of them without ``dale``."""
        share = 1 if self.dale is None else self.dale
        return round(share * self.hidden_size)

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
        k_input, k_recurrent, k_bias = jax.random.split(key, 3)
        recurrent = self.recurrent_init(k_recurrent, (H, H), dtype)
        if 0 < self.excitatory < H:
            # Rows scaled by e and i balance if e E = i I, and keep the sum of squares
            # if e^2 E + i^2 I = E + I: e = sqrt(I / E) and i = 1 / e.
            e = math.sqrt((H - self.excitatory) / self.excitatory)
            scales = np.where(np.arange(H) < self.excitatory, e, 1 / e)
            recurrent = recurrent * jnp.asarray(scales[:, None], dtype)
        params = {
            "input_kernel": self.input_init(k_input, (input_size, H), dtype),
            "recurrent_kernel": recurrent,
            "bias": self.bias_init(k_bias, (H,), dtype),
        }
        if self.learned_tau:
            share = self.dt / np.broadcast_to(np.asarray(self.tau, float), (H,))
            params["rate_logit"] = jnp.asarray(np.log(share / (1 - share)), dtype)
        return self.with_initial_carry(params)

    def zero_carry(
        self, params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike
    ) -> Float[Array, "*B H"]:
        """Return zeros ``(*B, H)`` in the accumulator's dtype."""
        return jnp.zeros((*batch_shape, self.hidden_size), accumulator(dtype))

    def recurrent_weights(self, params: Params) -> Float[Array, "H H"]:
        """Return U ``(H, H)``, with the signs and the diagonal that the units have.

        Args:
            params: the parameters, from ``init``.
        """
        kernel = params["recurrent_kernel"]
        if self.dale is not None:
            signs = np.where(np.arange(self.hidden_size) < self.excitatory, 1, -1)
            kernel = jnp.abs(kernel) * jnp.asarray(signs[:, None], kernel.dtype)
        if not self.autapses:
            others = 1 - np.eye(self.hidden_size)
            kernel = kernel * jnp.asarray(others, kernel.dtype)
        return kernel

    def time_constants(self, params: Params) -> Float[Array, " H"]:
        """Return tau ``(H,)``, in the unit of ``dt``.

        Args:
            params: the parameters, from ``init``.
        """
        return self.dt / self._shares(params)

    def _shares(self, params: Params) -> Float[Array, " H"]:
        """Return a = dt / tau in the accumulator's dtype."""
        wide = accumulator(params["input_kernel"].dtype)
        if self.learned_tau:
            return jax.nn.sigmoid(params["rate_logit"].astype(wide))
        share = self.dt / np.asarray(self.tau, float)
        return jnp.broadcast_to(jnp.asarray(share, wide), (self.hidden_size,))

    def project(
        self, params: Params, x: Float[Array, "*TB D"]
    ) -> Float[Array, "*TB H"]:
        """Return ``x W + b`` in the accumulator's dtype."""
        return projected(self, params, x)

    def step(
        self, params: Params, carry: Float[Array, "*B H"], z: Float[Array, "*B H"]
    ) -> Float[Array, "*B H"]:
        """Return ``(1 - a) s + a (f(s) U + z)``."""
        share = along(self._shares(params), carry)
        drive = recur(self.activation(carry), self.recurrent_weights(params))
        return (1 - share) * carry + share * (drive + z).astype(carry.dtype)

    def output(self, params: Params, carry: Array, x: Inputs) -> Float[Array, "*TB H"]:
        """Return the rates f(s) in the parameters' dtype."""
        return self.activation(carry).astype(params["input_kernel"].dtype)

    def gate_values(
        self, params: Params, carry: Float[Array, "*B H"], z: Float[Array, "*B H"]
    ) -> dict[str, Gate]:
        """Return f(s): the cell has no gate, but saturated rates stop the gradient."""
        rates = self.activation(self.step(params, carry, z))
        return {"h": Gate(rates, *range_of(self.activation))}


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
