"""What the built-in cells with a matrix state share."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..core.dtypes import accumulator
from ..core.types import Carry, Params
from ..core.validation import (
    check_batch_shape,
    check_features,
    check_int,
    check_positive,
)
from ..initializers import FixedNormal, Initializer
from ..matrix import MatrixCell
from .base import BuiltinCell
from .ops import along, dense


@dataclasses.dataclass(frozen=True)
class BuiltinMatrixCell(BuiltinCell, MatrixCell):
    """A built-in cell with a matrix state a head; see `MatrixCell`.

    With ``learned_initial_carry`` the state is a parameter. h is none, because no step
    reads that of the step before, and neither is what the cell looks back at: they are
    zero before a sequence begins.
    """

    def __post_init__(self):
        MatrixCell.__post_init__(self)
        super().__post_init__()

    def zero_carry(
        self, params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike
    ) -> Carry:
        """Return zeros: h in ``dtype``, the rest in the accumulator's dtype."""
        return MatrixCell.initial_carry(self, params, batch_shape, dtype)

    def initial_carry(
        self,
        params: Params,
        batch_shape: tuple[int, ...] = (),
        dtype: DTypeLike | None = None,
    ) -> Carry:
        """Return zeros, or the learned state, before the first step."""
        if not self.learned_initial_carry:
            return super().initial_carry(params, batch_shape, dtype)
        check_batch_shape(batch_shape)
        zeros = self.zero_carry(
            params, tuple(batch_shape), dtype or params["input_kernel"].dtype
        )
        known = jax.tree.map(
            lambda leaf, zero: jnp.broadcast_to(leaf.astype(zero.dtype), zero.shape),
            self._learned(params["initial_carry"]),
            self._learned(zeros),
        )
        return zeros._replace(
            **{k: v for k, v in known._asdict().items() if v is not None}
        )

    def with_initial_carry(self, params: Params) -> Params:
        """Add ``initial_carry`` to ``params`` if ``learned_initial_carry`` is set."""
        params = super().with_initial_carry(params)
        if self.learned_initial_carry:
            learned = self._learned(params["initial_carry"])
            params = {**params, "initial_carry": learned}
        return params

    def _learned(self, carry: Any) -> Any:
        """Return the parts of a carry that are learned, and None for the others."""
        without = {name: None for name in ("h", "recent") if name in carry._fields}
        return carry._replace(**without)

    def starts_empty(self, params: Params, batch: tuple[int, ...] = ()) -> bool:
        """Whether the state before the first step is known to be zero."""
        return not self.learned_initial_carry and super().starts_empty(params, batch)


def unit_length(
    x: Float[Array, "*TB N K"], epsilon: float = 1e-6
) -> Float[Array, "*TB N K"]:
    """Return ``x / sqrt(sum of x^2 + epsilon)`` over the last axis."""
    square = (x * x).sum(-1, keepdims=True)
    return x * jax.lax.rsqrt(square + jnp.asarray(epsilon, x.dtype))


def rms_norm(
    x: Float[Array, "*TB V"], scale: Float[Array, " V"] | None, epsilon: float = 1e-5
) -> Float[Array, "*TB V"]:
    """Return ``scale * x / sqrt(mean of x^2 + epsilon)`` over the last axis."""
    square = (x * x).mean(-1, keepdims=True)
    x = x if scale is None else along(scale, x) * x
    return x * jax.lax.rsqrt(square + jnp.asarray(epsilon, x.dtype))


def check_norm_epsilon(cell: BuiltinCell, norm_epsilon: float) -> None:
    """Check what is added under the root of a norm."""
    if not is_real(norm_epsilon) or not 0 < norm_epsilon < math.inf:
        raise ValueError(
            f"{type(cell).__name__}: norm_epsilon, which the norm adds to the mean of "
            f"squares, must be a number above 0, but it is {norm_epsilon!r}"
        )


def conv_width(cell: BuiltinCell, conv: int | None) -> int:
    """Return the width of a cell's convolution, 0 for None; refuse one below 2."""
    if conv is None:
        return 0
    why = "use conv=None for no convolution"
    return check_int(type(cell).__name__, "conv", conv, 2, 2**31 - 1, why)


def is_real(value: object) -> bool:
    """Whether a value is a real number, and no bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def join_heads(x: Float[Array, "*TB N V"]) -> Float[Array, "*TB NV"]:
    """Put the heads side by side."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def of_heads(vector: Float[Array, " N"], x: Float[Array, "*TB N V"]) -> Array:
    """Return one number a head, to broadcast along x, in its dtype."""
    return along(vector, x[..., 0])[..., None]


def draw_step_bias(
    key: Array,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    least: float = 1e-3,
    most: float = 0.1,
) -> Array:
    """Draw biases whose softplus, a step size, is log-uniform from least to most.

    Not below 1e-4, as in the code of Mamba.
    """
    wide = accumulator(dtype)
    low, high = math.log(least), math.log(most)
    step = jnp.exp(jax.random.uniform(key, shape, wide, minval=low, maxval=high))
    step = jnp.maximum(step, jnp.asarray(1e-4, wide))
    return (step + jnp.log(-jnp.expm1(-step))).astype(dtype)


def draw_log_rate(
    key: Array, shape: tuple[int, ...], dtype: DTypeLike, least: float, most: float
) -> Array:
    """Draw the logarithm of rates that are uniform from least to most, without 0."""
    wide = accumulator(dtype)
    least = max(least, 1e-4)
    rate = jax.random.uniform(key, shape, wide, minval=least, maxval=most)
    return jnp.log(rate).astype(dtype)


class LowRank(NamedTuple):
    """A block of the projection of low rank, ``activation(x W) W_2``.

    Attributes:
        rank: the number of columns of W, which stand in ``input_kernel``.
        columns: the number of columns of W_2, a parameter ``NAME_kernel`` of its own.
        activation: the function between the two products; None for none.
    """

    rank: int
    columns: int
    activation: Callable[[Array], Array] | None = None


@dataclasses.dataclass(frozen=True)
class ProjectedMatrixCell(BuiltinMatrixCell):
    """A cell that projects its inputs by one kernel, and its h by another.

    A subclass names the ``blocks`` of ``input_kernel``, and which of them are
    ``convolved`` over the last `looks_back` steps; these stand first. Blocks of
    ``low_rank`` come behind them. It gives the other parameters in `own_parameters`.
    """

    _: dataclasses.KW_ONLY
    output_size: int | None = None
    input_init: Initializer = FixedNormal(0.02)

    # The blocks that the convolution runs over.
    convolved: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        super().__post_init__()
        name = type(self).__name__
        if self.output_size is not None:
            check_positive(self, output_size=self.output_size)
        check_positive(self, key_heads=self.key_heads)
        if self.num_heads % self.key_heads:
            raise ValueError(
                f"{name}: the number of heads of q and k must divide num_heads, "
                f"because each serves as many of v, but {self.key_heads} does not "
                f"divide {self.num_heads}"
            )
        check_int(
            name, "looks_back", self.looks_back, 0, 2**31 - 1, "a number of steps"
        )

    @property
    def blocks(self) -> dict[str, int]:
        """The columns of ``input_kernel`` by name, in their order."""
        raise NotImplementedError(f"{type(self).__name__} must define blocks")

    @property
    def low_rank(self) -> dict[str, LowRank]:
        """The blocks of low rank by name, in their order; by default none.

        The first product of each stands in ``input_kernel``, behind the blocks.
        """
        return {}

    def own_parameters(
        self, key: Array, input_size: int, dtype: DTypeLike
    ) -> dict[str, Array]:
        """Draw the parameters beside the kernels."""
        return {}

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
        dtype = dtype or jnp.result_type(float)
        k_input, k_conv, k_own, k_output = jax.random.split(key, 4)
        ranks = sum(block.rank for block in self.low_rank.values())
        columns = sum(self.blocks.values()) + ranks
        outputs = (self.shown_size, self.output_size or input_size)
        params = {
            "input_kernel": self.input_init(k_input, (input_size, columns), dtype),
            **self._second_kernels(k_input, dtype),
            **self.own_parameters(k_own, input_size, dtype),
            "output_kernel": self.input_init(k_output, outputs, dtype),
        }
        if self.looks_back:
            params = {**params, **self.conv_parameters(k_conv, dtype)}
        return self.with_initial_carry(params)

    def conv_parameters(self, key: Array, dtype: DTypeLike) -> dict[str, Array]:
        """Draw the parameters of `look_back`; by default those of a convolution."""
        shape = (self.looks_back, self.remembered_size({}))
        return {"conv_kernel": self.input_init(key, shape, dtype)}

    def project(
        self, params: Params, x: Float[Array, "*TB D"]
    ) -> Float[Array, "*TB G"]:
        """Return all blocks, packed, in the accumulator's dtype."""
        check_features(self, params["input_kernel"], x)
        z = dense(x, params["input_kernel"])
        if self.low_rank:
            z = self._apply_second_kernels(params, z)
        return z.astype(accumulator(x.dtype))

    def _second_kernels(self, key: Array, dtype: DTypeLike) -> dict[str, Array]:
        """Draw the second kernels of the blocks of low rank."""
        return {
            f"{name}_kernel": self.input_init(
                jax.random.fold_in(key, place), (block.rank, block.columns), dtype
            )
            for place, (name, block) in enumerate(self.low_rank.items())
        }

    def _apply_second_kernels(self, params: Params, z: Array) -> Array:
        """Replace the first products of low rank, at the end of z, by the second."""
        ranks = [block.rank for block in self.low_rank.values()]
        ends = np.cumsum([sum(self.blocks.values()), *ranks[:-1]])
        full, *reduced = jnp.split(z, ends, axis=-1)
        parts = [full]
        for (name, block), r in zip(self.low_rank.items(), reduced, strict=True):
            r = r if block.activation is None else block.activation(r)
            parts.append(dense(r, params[f"{name}_kernel"]))
        return jnp.concatenate(parts, axis=-1)

    def split(self, z: Float[Array, "*TB G"]) -> dict[str, Array]:
        """Return the blocks by name, with those of low rank."""
        low_rank = {name: block.columns for name, block in self.low_rank.items()}
        sizes = {**self.blocks, **low_rank}
        ends = np.cumsum(list(sizes.values()))[:-1]
        return dict(zip(sizes, jnp.split(z, ends, axis=-1), strict=True))

    @property
    def key_heads(self) -> int:
        """N_k, the number of heads of q and k; by default N."""
        return self.num_heads

    def split_key_heads(self, x: Float[Array, "*TB F"]) -> Float[Array, "*TB Nk K"]:
        """Split the last axis into heads of q and k."""
        return x.reshape(*x.shape[:-1], self.key_heads, self.keys)

    def spread(self, x: Float[Array, "*TB Nk K"]) -> Float[Array, "*TB N K"]:
        """Repeat heads of q or k for the heads of v that they serve."""
        times = self.num_heads // x.shape[-2]
        return x if times == 1 else jnp.repeat(x, times, axis=-2)

    # ------------------------------------------------------------ looking back
    def remembered_size(self, params: Params) -> int:
        return sum(self.blocks[name] for name in self.convolved)

    def remembered(
        self, params: Params, z: Float[Array, "*TB G"]
    ) -> Float[Array, "*TB F"]:
        """Return the blocks that are convolved, before the convolution."""
        return z[..., : self.remembered_size(params)]

    def look_back(
        self, params: Params, z: Float[Array, "*TB G"], recent: list[Array]
    ) -> Any:
        """Return z with the convolution over the blocks that are convolved."""
        kernel = params["conv_kernel"]
        y = sum(along(kernel[j], x) * x for j, x in enumerate(recent))
        rest = z[..., self.remembered_size(params) :]
        return jnp.concatenate([jnp.asarray(y, z.dtype), rest], axis=-1)

    def output(
        self, params: Params, carry: Carry, x: Float[Array, "*TB D"]
    ) -> Float[Array, "*TB O"]:
        """Return ``h W_o``."""
        return dense(carry.h, params["output_kernel"])
