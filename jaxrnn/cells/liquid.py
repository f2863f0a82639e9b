"""Liquid networks, whose steps may be any lengths of time apart."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..core.cell import Gate
from ..core.dtypes import accumulator
from ..core.types import Carry, Inputs, Params, PyTree
from ..core.validation import check_positive
from ..initializers import (
    Initializer,
    LecunNormal,
    Orthogonal,
    Uniform,
    Zeros,
    gate_blocks,
)
from .base import BuiltinCell, projected
from .ops import along, recur


@dataclasses.dataclass(frozen=True)
class _Timed(BuiltinCell):
    """A cell that is told how much time has passed since the step before."""

    _: dataclasses.KW_ONLY
    irregular: bool = False
    input_init: Initializer = LecunNormal()
    recurrent_init: Initializer = Orthogonal()
    bias_init: Initializer = Zeros()

    @property
    def feature_ndim(self) -> Any:  # type: ignore[override]
        """The feature axes: 1, or ``(1, 0)`` for ``(features, elapsed time)``."""
        return (1, 0) if self.irregular else 1

    def zero_carry(
        self, params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike
    ) -> Float[Array, "*B H"]:
        """Return zeros ``(*B, H)`` in the accumulator's dtype."""
        return jnp.zeros((*batch_shape, self.hidden_size), accumulator(dtype))

    def project(
        self, params: Params, x: Inputs
    ) -> tuple[Float[Array, "*TB G"], Float[Array, "*TB 1"]]:
        """Return ``(x W + b, elapsed time)`` in the accumulator's dtype."""
        if not self.irregular:
            z = projected(self, params, x)
            return z, jnp.ones((*z.shape[:-1], 1), z.dtype)
        features, elapsed = x
        z = projected(self, params, features)
        kinds = jnp.integer, jnp.floating
        if not any(jnp.issubdtype(elapsed.dtype, kind) for kind in kinds):
            raise TypeError(
                f"{type(self).__name__}: the elapsed time must be a real number for "
                f"each step, (T, *B), but its dtype is {elapsed.dtype}"
            )
        return z, elapsed[..., None].astype(z.dtype)

    def output(self, params: Params, carry: Carry, x: Inputs) -> Float[Array, "*TB H"]:
        """Return h in the parameters' dtype."""
        return carry.astype(params["input_kernel"].dtype)

    def output_features(self, params: Params, input_size: int) -> int:
        """Return the number of output features, H."""
        return self.hidden_size


@dataclasses.dataclass(frozen=True)
class LTC(_Timed):
    """The liquid time-constant network, by its fused solver::

        dh/dt = -(1/tau + f(x, h)) h + f(x, h) A,    f = sigmoid(x W + h U + b)

        h <- (h + d f(x, h) A) / (1 + d (1/tau + f(x, h))),    d = elapsed / unfolds

    Hasani et al. (2021, AAAI, arXiv:2006.04439, eq. 1-3 and algorithm 1). A step
    repeats the last line ``unfolds`` times: Euler's method, implicit in the factor h,
    so that it is stable for every elapsed time. f is the nonlinear conductance of the
    synapses and A the potential at which their current reverses; h stays between 0 and
    A once it is there, and f shortens the time constant tau.

    Inputs: ``(T, *B, D)``, one unit of time apart, or with ``irregular`` the pair
    ``(features (T, *B, D), elapsed (T, *B))``, where ``elapsed[t]``, at least 0, is the
    time since the step before t. A masked step adds no time: where steps are left out,
    add their time to the next.

    Parameters: ``input_kernel`` W ``(D, H)``, ``recurrent_kernel`` U ``(H, H)``,
    ``bias (H,)``, ``log_tau (H,)``, ``reversal`` A ``(H,)``. Carry: ``h (*B, H)``, an
    array, kept in float32 or wider because it accumulates. Output: h in the parameters'
    dtype.

    Args:
        hidden_size: H, the number of units.
        unfolds: the number of solver steps in a step.
        tau: the time constants at init, in the unit of the elapsed time.
        irregular: if True, the inputs are ``(features, elapsed)``.
        input_init: initializer of W.
        recurrent_init: initializer of U.
        bias_init: initializer of b.
        reversal_init: initializer of A.
        learned_initial_carry: if True, h before the first step is a parameter.

    Raises:
        ValueError: if ``unfolds`` is not an int of at least 1, or ``tau`` not a
            positive number.

    Example::

        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.cells.LTC(4, irregular=True)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> xs = (jnp.ones((5, 2, 3)), jnp.full((5, 2), 0.7))
        >>> carry, ys = jaxrnn.unroll(cell, params, xs)
        >>> ys.shape
        (5, 2, 4)
    """

    _: dataclasses.KW_ONLY
    unfolds: int = 6
    tau: float = 1.0
    reversal_init: Initializer = Uniform(-1.0, 1.0)

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, unfolds=self.unfolds)
        if (
            isinstance(self.tau, bool)
            or not isinstance(self.tau, numbers.Real)
            or not 0 < float(self.tau) < math.inf
        ):
            raise ValueError(
                f"LTC: tau must be a positive number, but it is {self.tau!r}"
            )

    def init(
        self, key: Array, input_size: int, dtype: DTypeLike | None = None
    ) -> Params:
        """Draw parameters for inputs of ``input_size`` features.

        Args:
            key: a `jax.random` key.
            input_size: D, the number of input features, the elapsed time not counted.
            dtype: of the parameters; by default JAX's default float.

        Returns:
            The dictionary of parameters that the class docstring lists.
        """
        check_positive(self, input_size=input_size)
        dtype, H = dtype or jnp.result_type(float), self.hidden_size
        k_input, k_recurrent, k_bias, k_reversal = jax.random.split(key, 4)
        return self.with_initial_carry(
            {
                "input_kernel": self.input_init(k_input, (input_size, H), dtype),
                "recurrent_kernel": self.recurrent_init(k_recurrent, (H, H), dtype),
                "bias": self.bias_init(k_bias, (H,), dtype),
                "log_tau": jnp.full(H, math.log(self.tau), dtype),
                "reversal": self.reversal_init(k_reversal, (H,), dtype),
            }
        )

    def step(
        self,
        params: Params,
        carry: Float[Array, "*B H"],
        z: tuple[Float[Array, "*B H"], Float[Array, "*B 1"]],
    ) -> Float[Array, "*B H"]:
        """Take ``unfolds`` steps of the fused solver."""
        h, (drive, elapsed) = carry, (part.astype(carry.dtype) for part in z)
        d = elapsed / self.unfolds
        leak = along(jnp.exp(-params["log_tau"].astype(h.dtype)), h)
        reversal = along(params["reversal"], h)
        for _ in range(self.unfolds):
            f = self._conductance(params, h, drive)
            h = (h + d * f * reversal) / (1 + d * (leak + f))
        return h

    def _conductance(self, params: Params, h: Array, z: Array) -> Array:
        """Return f."""
        return jax.nn.sigmoid(z + recur(h, params["recurrent_kernel"]).astype(h.dtype))

    def gate_values(
        self, params: Params, carry: Float[Array, "*B H"], z: PyTree
    ) -> dict[str, Gate]:
        """Return f at the beginning of the step."""
        return {"f": Gate(self._conductance(params, carry, z[0].astype(carry.dtype)))}


@dataclasses.dataclass(frozen=True)
class LecunTanh:
    """The function ``1.7159 tanh(2 x / 3)``, LeCun et al. (1998, section 4.4)."""

    def __call__(self, x: Float[Array, "*S"]) -> Float[Array, "*S"]:
        return 1.7159 * jnp.tanh(x * (2 / 3))


@dataclasses.dataclass(frozen=True)
class CfC(_Timed):
    """The closed-form continuous-time network (CfC)::

        u = act(x_t W + h_{t-1} U + b)              the backbone
        f, s, g, n = u V + c                        four heads
        m = sigmoid(-(f elapsed + s))
        h_t = m * tanh(g) + (1 - m) * tanh(n)       mode "default"
        h_t = m * tanh(g) + tanh(n)                 mode "no_gate"

        f = u V + c                                 mode "pure", with one head
        h_t = A - A exp(-(|w| + |f|) elapsed) f

    Hasani et al. (2022, Nature Machine Intelligence 4:992-1003, arXiv:2106.13898). In
    place of the solver of an `LTC` the elapsed time enters a gate: with time it moves
    from one candidate to the other, at a rate f that the state and the inputs choose.
    The shift s is that of the authors' code; without it the gate is the paper's. Mode
    ``"pure"`` is the closed-form solution itself, as in their code: with time the state
    goes to A, at a rate of at least ``|w|``.

    Inputs: ``(T, *B, D)``, one unit of time apart, or with ``irregular`` the pair
    ``(features (T, *B, D), elapsed (T, *B))``, where ``elapsed[t]`` is the time since
    the step before t. A masked step adds no time: where steps are left out, add their
    time to the next.

    Parameters: ``input_kernel`` W ``(D, M)``, ``recurrent_kernel`` U ``(H, M)``,
    ``bias (M,)``, ``head_kernel`` V ``(M, 4H)``, packed f, s, g, n, ``head_bias`` c
    ``(4H,)``. Without a backbone the heads are ``x W + h U + b`` with M = 4H. Mode
    ``"pure"`` has one head, V ``(M, H)``, and besides ``rate`` w and ``rest_state`` A,
    both ``(H,)`` and 1 at init (at 0 the gradient of ``|w|`` is 0). Carry:
    ``h (*B, H)``, an array, kept in float32 or wider. Output: h in the parameters'
    dtype.

    Args:
        hidden_size: H, the number of units.
        backbone_size: M, the number of units of the backbone, or None to leave it out.
        activation: act of the backbone, LeCun's tanh as published.
        mode: ``"default"``, ``"no_gate"`` for the form without ``1 - m``, or ``"pure"``
            for the closed-form solution.
        irregular: if True, the inputs are ``(features, elapsed)``.
        input_init: initializer of W, and of V.
        recurrent_init: initializer of U.
        bias_init: initializer of the biases.
        learned_initial_carry: if True, h before the first step is a parameter.

    Raises:
        ValueError: if ``backbone_size`` is not an int of at least 1 or None, or for
            another ``mode``.

    Example::

        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.cells.CfC(4, backbone_size=8, irregular=True)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> xs = (jnp.ones((5, 2, 3)), jnp.full((5, 2), 0.7))
        >>> carry, ys = jaxrnn.unroll(cell, params, xs)
        >>> ys.shape
        (5, 2, 4)
    """

    _: dataclasses.KW_ONLY
    backbone_size: int | None = 128
    activation: Callable[[Array], Array] = LecunTanh()
    mode: str = "default"

    def __post_init__(self):
        super().__post_init__()
        if self.backbone_size is not None:
            check_positive(self, backbone_size=self.backbone_size)
        if self.mode not in ("default", "no_gate", "pure"):
            raise ValueError(
                f"CfC: mode must be 'default', 'no_gate' or 'pure', but it is "
                f"{self.mode!r}"
            )

    @property
    def _heads(self) -> int:
        """Return the number of heads."""
        return 1 if self.mode == "pure" else 4

    def init(
        self, key: Array, input_size: int, dtype: DTypeLike | None = None
    ) -> Params:
        """Draw parameters for inputs of ``input_size`` features.

        Args:
            key: a `jax.random` key.
            input_size: D, the number of input features, the elapsed time not counted.
            dtype: of the parameters; by default JAX's default float.

        Returns:
            The dictionary of parameters that the class docstring lists.
        """
        check_positive(self, input_size=input_size)
        dtype, H = dtype or jnp.result_type(float), self.hidden_size
        k_input, k_recurrent, k_bias, k_head, k_head_bias = jax.random.split(key, 5)
        heads, backbone = self._heads, self.backbone_size
        blocks, size = (heads, H) if backbone is None else (1, backbone)
        params = {
            "input_kernel": gate_blocks(
                self.input_init, k_input, blocks, input_size, size, dtype
            ),
            "recurrent_kernel": gate_blocks(
                self.recurrent_init, k_recurrent, blocks, H, size, dtype
            ),
            "bias": self.bias_init(k_bias, (blocks * size,), dtype),
        }
        if self.backbone_size is not None:
            params |= {
                "head_kernel": gate_blocks(
                    self.input_init, k_head, heads, size, H, dtype
                ),
                "head_bias": self.bias_init(k_head_bias, (heads * H,), dtype),
            }
        if self.mode == "pure":
            params |= {"rate": jnp.ones(H, dtype), "rest_state": jnp.ones(H, dtype)}
        return self.with_initial_carry(params)

    def step(
        self,
        params: Params,
        carry: Float[Array, "*B H"],
        z: tuple[Float[Array, "*B G"], Float[Array, "*B 1"]],
        *,
        recurrent_h=None,
    ):
        """Take one step of the equations above.

        ``recurrent_h`` replaces h where it is multiplied by U (variational dropout).
        """
        if self.mode == "pure":
            left, f = self._decay(params, carry, z, recurrent_h)
            A = along(params["rest_state"], f)
            return A - A * left * f
        m, g, n = self._activations(params, carry, z, recurrent_h)
        return m * g + ((1 - m) * n if self.mode == "default" else n)

    def _activations(
        self, params: Params, carry: Array, z: PyTree, recurrent_h: Array | None
    ) -> tuple[Array, Array, Array]:
        """Return m, tanh(g) and tanh(n)."""
        u, elapsed = self._head_values(params, carry, z, recurrent_h)
        f, s, g, n = jnp.split(u, 4, axis=-1)
        return jax.nn.sigmoid(-(f * elapsed + s)), jnp.tanh(g), jnp.tanh(n)

    def _decay(
        self, params: Params, carry: Array, z: PyTree, recurrent_h: Array | None
    ) -> tuple[Array, Array]:
        """Return exp(-(|w| + |f|) elapsed) and f, of mode "pure"."""
        f, elapsed = self._head_values(params, carry, z, recurrent_h)
        rate = jnp.abs(along(params["rate"], f)) + jnp.abs(f)
        return jnp.exp(-rate * elapsed), f

    def _head_values(
        self, params: Params, carry: Array, z: PyTree, recurrent_h: Array | None
    ) -> tuple[Array, Array]:
        """Return all heads side by side, and the elapsed time."""
        h = carry if recurrent_h is None else recurrent_h
        z, elapsed = (part.astype(carry.dtype) for part in z)
        u = z + recur(h, params["recurrent_kernel"]).astype(carry.dtype)
        if self.backbone_size is not None:
            u = recur(self.activation(u), params["head_kernel"]).astype(carry.dtype)
            u = u + along(params["head_bias"], u)
        return u, elapsed

    def gate_values(
        self, params: Params, carry: Float[Array, "*B H"], z: PyTree
    ) -> dict[str, Gate]:
        """Return m, and the candidates g and n; in mode "pure" the share left of f."""
        if self.mode == "pure":
            return {"left": Gate(self._decay(params, carry, z, None)[0])}
        m, g, n = self._activations(params, carry, z, None)
        return {"m": Gate(m), "g": Gate(g, low=-1.0), "n": Gate(n, low=-1.0)}
