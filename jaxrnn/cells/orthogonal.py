"""The recurrent network whose recurrent matrix stays orthogonal in training."""

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
from ..initializers import Initializer, LecunNormal, Uniform
from .base import BuiltinCell, projected
from .elman import range_of
from .ops import along, recur


@dataclasses.dataclass(frozen=True)
class OrthogonalRNN(BuiltinCell):
    """The orthogonal recurrent network by the scaled Cayley transform (scoRNN)::

        W = D (I - A) (I + A)^-1          A skew-symmetric, D = diag(-1, .., 1, ..)
        a_t = x_t V + h_{t-1} W
        h_t = sign(a_t) relu(|a_t| + b)   modReLU, the default
        h_t = f(a_t + b)                  with ``modrelu=False``

    Helfrich, Willmott & Ye (2018, arXiv:1707.09520). W is orthogonal for every A, so an
    optimizer may change A as it likes: no update leads away, and no projection leads
    back. A step neither stretches nor shrinks the state, so its gradient vanishes or
    explodes through the activation alone. W is built once for a whole sequence, not at
    every step.

    The Cayley transform reaches every orthogonal matrix without an eigenvalue -1; the
    signs D, chosen once, make up for those.

    Parameters: ``input_kernel`` V ``(D, H)``, ``skew (H (H - 1) / 2,)``, the entries of
    A below its diagonal, row by row, ``bias (H,)``. Carry: ``h (*B, H)``, an array,
    kept in float32 or wider, as is W, which rounding would make less orthogonal.
    Output: h in the parameters' dtype.

    Args:
        hidden_size: H, the number of hidden units.
        negative: the share of units whose sign in D is -1, from 0 to 1.
        modrelu: if True, the activation is modReLU, whose b is learned.
        activation: f, used with ``modrelu=False``: ``jnp.tanh``, or any elementwise
            function.
        input_init: initializer of V.
        bias_init: initializer of b.
        max_angle: at init the eigenvalues of (I - A) (I + A)^-1 are ``exp(+-i t)`` with
            t uniform from 0 to ``max_angle``, below pi; pi/2 as published.
        learned_initial_carry: if True, h before the first step is a parameter.

    Raises:
        ValueError: if ``negative`` is not in [0, 1], or ``max_angle`` not in [0, pi).

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.cells.OrthogonalRNN(4)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 3)))
        >>> W = cell.recurrent_weights(params)
        >>> bool(abs(W.T @ W - jax.numpy.eye(4)).max() < 1e-5)
        True
    """

    _: dataclasses.KW_ONLY
    negative: float = 0.5
    modrelu: bool = True
    activation: Callable[[Array], Array] = jnp.tanh
    input_init: Initializer = LecunNormal()
    bias_init: Initializer = Uniform(-0.01, 0.01)
    max_angle: float = math.pi / 2

    def __post_init__(self):
        super().__post_init__()
        below_pi = math.nextafter(math.pi, 0)
        for name, value, most, allowed in (
            ("negative", self.negative, 1, "from 0 to 1"),
            ("max_angle", self.max_angle, below_pi, "from 0 to below pi"),
        ):
            if (
                isinstance(value, bool)
                or not isinstance(value, numbers.Real)
                or not 0 <= float(value) <= most
            ):
                raise ValueError(
                    f"OrthogonalRNN: {name} must be a number {allowed}, but it is "
                    f"{value!r}"
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
        k_input, k_angle, k_bias = jax.random.split(key, 3)
        # The block [[0, -s], [s, 0]] of A has eigenvalues +-i s, and those of its
        # Cayley transform are (1 -+ i s) / (1 +- i s) = exp(-+ i t) with s = tan(t/2).
        rows, columns = np.tril_indices(H, -1)
        paired = (rows % 2 == 1) & (columns == rows - 1)
        angle = jax.random.uniform(
            k_angle, (H // 2,), accumulator(dtype), maxval=self.max_angle
        )
        skew = jnp.zeros(rows.size, dtype)
        skew = skew.at[np.flatnonzero(paired)].set(jnp.tan(angle / 2).astype(dtype))
        return self.with_initial_carry(
            {
                "input_kernel": self.input_init(k_input, (input_size, H), dtype),
                "skew": skew,
                "bias": self.bias_init(k_bias, (H,), dtype),
            }
        )

    def zero_carry(
        self, params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike
    ) -> Float[Array, "*B H"]:
        """Return zeros ``(*B, H)`` in the accumulator's dtype."""
        return jnp.zeros((*batch_shape, self.hidden_size), accumulator(dtype))

    def recurrent_weights(self, params: Params) -> Float[Array, "H H"]:
        """Return the orthogonal W ``(H, H)``, in float32 or wider.

        Args:
            params: the parameters, from ``init``.
        """
        H, skew = self.hidden_size, params["skew"]
        skew = skew.astype(accumulator(skew.dtype))
        lower = jnp.zeros((H, H), skew.dtype).at[np.tril_indices(H, -1)].set(skew)
        units = np.arange(H) < round(self.negative * H)
        signs = jnp.asarray(np.where(units, -1, 1)[:, None], skew.dtype)
        return signs * cayley(lower - lower.T)

    def project(
        self, params: Params, x: Float[Array, "*TB D"]
    ) -> Float[Array, "*TB H"]:
        """Return ``x V``, plus b without modReLU, in the accumulator's dtype."""
        bias = params["bias"]
        if self.modrelu:
            bias = jnp.zeros_like(bias)
        return projected(self, params | {"bias": bias}, x)

    def step(
        self,
        params: Params,
        carry: Float[Array, "*B H"],
        z: Float[Array, "*B H"],
        *,
        recurrent_h=None,
    ):
        """Take one step of the equations above.

        ``recurrent_h`` replaces h where it is multiplied by W (variational dropout).
        """
        h = carry if recurrent_h is None else recurrent_h
        a = recur(h, self.recurrent_weights(params)) + z
        if self.modrelu:
            h = jnp.sign(a) * jax.nn.relu(jnp.abs(a) + along(params["bias"], a))
        else:
            h = self.activation(a)
        return h.astype(carry.dtype)

    def output(self, params: Params, carry: Array, x: Inputs) -> Float[Array, "*TB H"]:
        """Return h in the parameters' dtype."""
        return carry.astype(params["input_kernel"].dtype)

    def gate_values(
        self, params: Params, carry: Float[Array, "*B H"], z: Float[Array, "*B H"]
    ) -> dict[str, Gate]:
        """Return h: the cell has no gate, but its saturation stops the gradient."""
        h = self.step(params, carry, z)
        bounds = (-math.inf, math.inf) if self.modrelu else range_of(self.activation)
        return {"h": Gate(h, *bounds)}


@jax.custom_jvp
def cayley(skew: Float[Array, "H H"]) -> Float[Array, "H H"]:
    """Compute ``(I - A) (I + A)^-1``, orthogonal for a skew-symmetric A."""
    # (I - A) (I + A)^-1 = (2 I - (I + A)) (I + A)^-1 = 2 (I + A)^-1 - I
    identity = jnp.eye(skew.shape[0], dtype=skew.dtype)
    return 2 * jnp.linalg.inv(identity + skew) - identity


@cayley.defjvp
def _cayley_jvp(primals, tangents):
    """Differentiate by two products with W in place of another inverse.

    ``dW = -2 M dA M`` with ``M = (I + A)^-1 = (I + W) / 2``. It is linear in dA with
    constant matrices, so a gradient is summed over time before it passes.
    """
    W = cayley(*primals)
    shifted = W + jnp.eye(W.shape[0], dtype=W.dtype)
    return W, -shifted @ tangents[0] @ shifted / 2
