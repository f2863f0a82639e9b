"""The contract of engines, which run the steps of a cell over a sequence."""

from __future__ import annotations

import abc
import enum
import functools
import operator
from typing import Any, ClassVar, NamedTuple

from jaxtyping import Array, Bool

from .cell import Cell
from .time_split import TimeSplit
from .types import Carry, Flags, Inputs, Params


class Supports(enum.Flag):
    """Flags for what an engine supports.

    An engine that applies ``project`` and ``step`` of the cell that it is given, one
    step after another, supports everything: truncated and scaled gradients, contexts
    and noise come to it as cells around the cell.

    Attributes:
        NOTHING: none of these.
        ANY_CELL: every cell, not only some classes of cells.
        RESETS: resets.
        GRADIENT_SCALE: gradients that are scaled step by step.
        ALL_CARRIES: the whole carry after every step.
        FORWARD_MODE: forward-mode derivatives, and so derivatives of any order.
        WHOLE_NETWORK: several cells in one call, see `AbstractNetworkEngine`.
        EVERYTHING: all of these but ``WHOLE_NETWORK``.

    Example:
        >>> import jaxrnn
        >>> from jaxrnn.extending import Supports
        >>> Supports.FORWARD_MODE in jaxrnn.Scan.supports
        True
        >>> Supports.FORWARD_MODE in jaxrnn.CuDNN.supports
        False
    """

    NOTHING = 0
    ANY_CELL = enum.auto()  # every cell, not only some classes of cells
    RESETS = enum.auto()
    GRADIENT_SCALE = enum.auto()
    ALL_CARRIES = enum.auto()  # the whole carry after every step
    FORWARD_MODE = enum.auto()  # jvp, and so derivatives of any order
    WHOLE_NETWORK = enum.auto()  # `AbstractNetworkEngine`: several cells in one call
    EVERYTHING = ANY_CELL | RESETS | GRADIENT_SCALE | ALL_CARRIES | FORWARD_MODE


class Request(NamedTuple):
    """What a caller needs of an engine beyond values and gradients.

    Attributes:
        resets: whether the carry is reset at some steps.
        gradient_scale: whether gradients are scaled step by step.
        all_carries: whether the whole carry after every step is wanted.

    Example:
        >>> from jaxrnn.extending import Request, Supports
        >>> Request(resets=True).needs == Supports.RESETS
        True
        >>> Request().needs == Supports.NOTHING
        True
    """

    resets: bool = False
    gradient_scale: bool = False
    all_carries: bool = False

    @property
    def needs(self) -> Supports:
        """The request as the flags that an engine must support."""
        flags = (
            (self.resets, Supports.RESETS),
            (self.gradient_scale, Supports.GRADIENT_SCALE),
            (self.all_carries, Supports.ALL_CARRIES),
        )
        needed = (flag for asked, flag in flags if asked)
        return functools.reduce(operator.or_, needed, Supports.NOTHING)


class AbstractEngine(abc.ABC):
    """Runs the steps of one cell over a sequence.

    A subclass is a frozen dataclass of options and final: it defines ``run`` and
    declares what it ``supports``. An engine whose steps go through the recurrence of
    this library (`jaxrnn.engines.engine.LoopEngine`) defines ``schedule`` instead.
    An engine that a user names runs, or raises an error that says why not and what to
    do; only the default engine falls back.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, jaxrnn
        >>> from jaxrnn.extending import AbstractEngine, Supports
        >>> @dataclasses.dataclass(frozen=True)
        ... class Plain(AbstractEngine):
        ...     supports = Supports.ANY_CELL | Supports.ALL_CARRIES
        ...
        ...     def run(self, cell, params, carry, xs, mask=None, resets=None,
        ...             reverse=False):
        ...         if mask is not None:
        ...             raise ValueError("Plain takes no mask: use Scan()")
        ...         def step(carry, x):
        ...             carry = cell.step(params, carry, cell.project(params, x))
        ...             return carry, carry
        ...         return jax.lax.scan(step, carry, xs, reverse=reverse)
        >>> cell, xs = jaxrnn.Elman(4), jax.random.normal(jax.random.key(1), (5, 3))
        >>> params = cell.init(jax.random.key(0), 3)
        >>> _, ys = jaxrnn.unroll(cell, params, xs, engine=Plain())
        >>> bool(jnp.allclose(ys, jaxrnn.unroll(cell, params, xs)[1], atol=1e-6))
        True
    """

    supports: ClassVar[Supports] = Supports.EVERYTHING

    @property
    def time_split(self) -> TimeSplit | None:
        """How time is split over devices, where each runs its own stretch, or None."""
        return None

    @abc.abstractmethod
    def run(
        self,
        cell: Cell,
        params: Params,
        carry: Carry,
        xs: Inputs,
        mask: Bool[Array, "T *B"] | None = None,
        resets: Bool[Array, "T *B"] | None = None,
        reverse: bool = False,
    ) -> tuple[Carry, Carry]:
        """Apply ``cell`` at every step.

        Args:
            cell: the cell whose ``project`` and ``step`` are applied.
            params: the parameters of the cell.
            carry: the carry before the first step, ``(*B, ...)`` per leaf.
            xs: a pytree of inputs ``(T, *B, ...)``; T may be 0. At masked steps they
                are valid already, whatever the padding held.
            mask: where False, the carry holds. Outputs there become zero later.
            resets: where True, the carry becomes the initial one before the step.
            reverse: whether the steps run from the last input to the first.

        Returns:
            The last carry, and the carries after every step, ``(T, *B, ...)`` per
            leaf, each at the place of its input. A part of the carry that the engine
            does not know at every step is None there.

        Raises:
            TypeError, ValueError: at trace time, where the engine does not support the
                cell or the arrays.
        """

    def unsupported_reason(self, cell: Cell, request: Request) -> str | None:
        """Say why the engine does not support a request, by `supports`.

        Args:
            cell: the cell that is to run.
            request: what is needed beyond values and gradients.

        Returns:
            A text, or None if the engine supports it.
        """
        missing = request.needs & ~self.supports
        names = [str(flag.name).lower() for flag in Supports if flag in missing]
        if not names:
            return None
        return f"{type(self).__name__} does not support {' and '.join(names)}"


class AbstractNetworkEngine(AbstractEngine):
    """An engine that also runs several cells, as of a stack, in one call.

    Example:
        >>> import jax, jaxrnn
        >>> from jaxrnn.extending import AbstractNetworkEngine, Supports
        >>> engine, cell = jaxrnn.CuDNN(), jaxrnn.Elman(4)
        >>> isinstance(engine, AbstractNetworkEngine)
        True
        >>> Supports.WHOLE_NETWORK in engine.supports
        True
        >>> params, xs = cell.init(jax.random.key(0), 3), jax.numpy.ones((5, 3))
        >>> type(engine.refusal(cell, params, cell.initial_carry(params), xs))
        <class 'TypeError'>
    """

    @abc.abstractmethod
    def run_network(
        self,
        params: Params,
        carries: list[Any],
        xs: Inputs,
        mask: Bool[Array, "T *B"] | None,
        reverse: bool,
        bidirectional: bool,
    ) -> tuple[list[Any], Any]:
        """Apply all cells of a network.

        Args:
            params: the parameters of the stack, the bidirectional pair or the stack of
                such pairs.
            carries: the cells' carries, layer by layer, forward before backward.
            xs: the inputs, ``(T, *B, D)``.
            mask: where False, carries hold and outputs are zero.
            reverse: whether the steps run from the last input to the first.
            bidirectional: whether every layer is a pair of directions.

        Returns:
            The last carries, and the outputs of the last layer.
        """

    @abc.abstractmethod
    def refusal(
        self,
        cell: Cell,
        params: Params,
        carry: Carry,
        xs: Inputs,
        mask: Flags | None = None,
        resets: Flags | None = None,
    ) -> TypeError | ValueError | None:
        """Return the error that ``run`` would raise for these arguments, or None.

        Args:
            cell, params, carry, xs, mask, resets: as for `run`.

        Returns:
            The error, which is not raised.
        """
