"""The contract of cells.

Shape letters, here and everywhere: T time, B batch (any number of axes, written
``*B``), D input features, H hidden units, V vocabulary. Time leads, batch axes follow,
features come last: ``(T, *B, D)``.

A cell is a frozen, hashable dataclass that holds static configuration only, with pure
methods::

    z_t = cell.project(params, x_t)          for all T at once, as one matmul
    s_t = cell.step(params, s_{t-1}, z_t)    the recurrence; returns the carry only
    y_t = cell.output(params, s_t, x_t)      for all T at once

``cell(params, carry, x) -> (carry, y)`` is one streaming step, in the order of
``jax.lax.scan``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Inexact

from .dtypes import floating_dtype, weaken_scalars
from .exported import register_for_export
from .flags import select
from .pickling import Static
from .types import Carry, Context, Inputs, Params, PyTree
from .validation import (
    batch_of_step,
    check_context,
    check_key,
    checked_reset,
    describe_tree,
)

DEFAULT_CHUNK = 32  # steps; more cost more work, fewer more turns of a loop


@register_for_export
class Gate(NamedTuple):
    """The activation of a gate at one step.

    A unit whose gate keeps a share v of its state at every step forgets with a time
    constant of -1/log v steps.

    Attributes:
        value: the activation, ``(*B, H)``.
        low: the lower end of its range.
        high: the upper end of its range.
        keeps: whether the state is multiplied by it, as by a forget gate.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn.extending import Gate
        >>> forget = Gate(jax.nn.sigmoid(jnp.ones((5, 2))), keeps=True)
        >>> forget.low, forget.high
        (0.0, 1.0)
        >>> f"{-1 / jnp.log(forget.value[0, 0]):.2f} steps"
        '3.19 steps'
    """

    value: Array
    low: float = 0.0
    high: float = 1.0
    keeps: bool = False


def part_named_h(carry: Carry) -> Any:
    """Return the part of a carry that is named h, or None."""
    # A carry is a pytree of any class, so that only the name can tell.
    return carry.h if hasattr(carry, "h") else None


def shown_part(carry: Carry) -> Array | None:
    """Return the part of a carry that is named h, or the only one, or None."""
    h = part_named_h(carry)
    if h is not None:
        return h
    leaves = jax.tree.leaves(carry)
    return leaves[0] if len(leaves) == 1 else None


def _hidden_size(cell: Cell) -> int | None:
    """Return the field ``hidden_size`` of a cell that has one."""
    # A user's cell may have none. A value of that name in `Cell` would become the
    # default of the field in every subclass.
    return getattr(cell, "hidden_size", None)


class Cell(Static):
    """One step of a recurrence, as static configuration and pure functions.

    A subclass is a ``@dataclasses.dataclass(frozen=True)`` and must define ``init`` and
    ``step``. By default ``project`` is the identity, ``output`` returns the carry's
    ``h`` (or the carry itself if it is a single array), and ``initial_carry`` is zeros
    of shape ``(*B, hidden_size)``. Every method takes any number of leading batch axes.

    Two class variables say what a cell is given:

    ``feature_ndim``
        The number of feature axes of one input. The default is 1, a vector. It is 0 for
        a token, and 3 for a picture ``(Y, X, C)``. For inputs that are a pytree it is a
        pytree prefix of such numbers, as in ``(0, 1)`` for tokens beside vectors. The
        axes between time and the features are batch axes.
    ``takes_context``
        If True, ``project``, ``step`` and ``output`` get one more argument, the
        ``context`` of `jaxrnn.unroll`: arrays ``(*B, ...)`` that are the same at every
        step and are no parameters, such as the memory that attention reads. Write it
        last and name it ``context``.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, jaxrnn
        >>> @dataclasses.dataclass(frozen=True)
        ... class Leaky(jaxrnn.Cell):
        ...     hidden_size: int
        ...
        ...     def init(self, key, input_size):
        ...         shape = (input_size, self.hidden_size)
        ...         return {"kernel": jax.random.normal(key, shape)}
        ...
        ...     def project(self, params, x):
        ...         return x @ params["kernel"]
        ...
        ...     def step(self, params, carry, z):
        ...         return 0.9 * carry + 0.1 * jnp.tanh(z)
        >>> cell = Leaky(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> _, ys = jaxrnn.unroll(cell, params, jnp.ones((10, 2, 3)))
        >>> ys.shape
        (10, 2, 4)
    """

    # A cell is deterministic; only layers draw random numbers.
    requires_key: ClassVar[bool] = False
    # The number of feature axes of one input: 1 for a vector, 0 for a number or a
    # token, 3 for a picture. For inputs that are a pytree, one number for all leaves or
    # a pytree prefix of numbers: (0, 1) for a pair of tokens and vectors.
    feature_ndim: ClassVar[Any] = 1
    # Whether project, step and output are given the ``context`` of `unroll`.
    takes_context: ClassVar[bool] = False
    # A cell's output depends on no later input; a layer's may.
    causal: ClassVar[bool] = True
    # Whether parts of the carry share a scale, so that one alone cannot keep a value.
    shares_scale: ClassVar[bool] = False
    # Whether ``output`` reads nothing of the carry but h, which chunks compute.
    shows_h_alone: ClassVar[bool] = False

    def chunk_on(self, platform: str) -> int:
        """Return how many steps ``run_chunks`` computes at once, if nobody says.

        A cell whose answer depends on the platform, ``"cpu"``, ``"gpu"`` or ``"tpu"``,
        is given None by the engines, and has to choose when it is compiled for one.
        """
        return DEFAULT_CHUNK

    def describe_chunks(self, platform: str) -> str:
        """Say how ``run_chunks`` computes a chunk on a platform, for `explain`."""
        return "the cell's own run_chunks"

    def init(self, key: Array, input_size: int) -> Params:
        """Draw parameters for inputs of ``input_size`` features.

        Returns a dict of arrays, with words as keys.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define init(self, key, input_size) -> params"
        )

    def check(self, params: Params) -> None:
        """Raise an error if ``params`` are not those of this cell.

        It is called at trace time. By default nothing is checked.
        """

    def initial_carry(
        self,
        params: Params,
        batch_shape: tuple[int, ...] = (),
        dtype: DTypeLike | None = None,
    ) -> Carry:
        """Return the carry before the first step: zeros, or learned parameters.

        Args:
            params: the parameters.
            batch_shape: the batch axes of the carry.
            dtype: the dtype in which the state is computed; by default that of the
                parameters.

        Returns:
            The carry, ``(*batch_shape, H)`` per leaf.
        """
        hidden_size = _hidden_size(self)
        if hidden_size is None:
            raise TypeError(
                f"{type(self).__name__} has no hidden_size, so its initial carry is "
                f"not known: "
                "give it a hidden_size field, or define initial_carry(self, params, "
                "batch_shape=(), dtype=None)"
            )
        return jnp.zeros((*batch_shape, hidden_size), dtype or floating_dtype(params))

    def project(self, params: Params, x: Inputs) -> Any:
        """Compute the part of a step that does not depend on the carry.

        It takes any leading axes, and is applied to all of time at once. By default it
        returns ``x``.
        """
        return x

    def step(self, params: Params, carry: Carry, z: PyTree) -> Carry:
        """Compute ``s_t`` from ``s_{t-1}`` and ``z_t = project(params, x_t)``.

        Args:
            params: the parameters.
            carry: ``s_{t-1}``, ``(*B, ...)`` per leaf.
            z: ``z_t``, ``(*B, ...)`` per leaf.

        Returns:
            ``s_t``, with the structure, shapes and dtypes of ``carry``.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define step(self, params, carry, z) -> carry"
        )

    def output(
        self, params: Params, carry: Carry, x: Inputs
    ) -> Inexact[Array, "*TB H"]:
        """Compute the output from the carry after a step.

        It is applied to all of time at once, so it must take any leading axes: write
        ``carry @ kernel``, not ``kernel @ carry``. By default it returns ``carry.h``,
        or the carry itself if that is a single array.
        """
        shown = shown_part(carry)
        if shown is None:
            raise TypeError(
                f"{type(self).__name__}: the carry has several parts and none is named "
                f"h, so what it shows is not known: "
                "define output(self, params, carry, x), or name the part h (where step "
                "returned (carry, y): it returns the "
                "carry alone, and output says what the cell shows)"
            )
        return shown

    def gate_values(self, params: Params, carry: Carry, z: PyTree) -> dict[str, Gate]:
        """Return the activations of a step's gates, by name.

        It is optional, and read by `jaxrnn.diagnostics.gate_statistics`. The arguments
        are those of ``step``, with any number of leading axes; a cell with
        ``takes_context`` gets the context last, ``gate_values(params, carry, z,
        context)``.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not report its gates: define "
            "gate_values(self, params, carry, z) -> a dict of jaxrnn.core.cell.Gate"
        )

    def output_features(self, params: Params, input_size: int) -> int | None:
        """Return the number of output features, or None if tracing must find it.

        A `jaxrnn.stack` asks for it when it makes parameters. It traces the cell on one
        vector of ``input_size`` features, which is not possible for other inputs or
        with a context: then the default is ``hidden_size``, if the cell has one and
        shows its carry.
        """
        traceable = self.feature_ndim in (1, None) and not self.takes_context
        if traceable or type(self).output is not Cell.output:
            return None
        return _hidden_size(self)

    def __call__(
        self,
        params: Params,
        carry: Carry,
        x: Inputs,
        *,
        reset: Bool[Array, "*B"] | None = None,
        context: Context = None,
        key: Array | None = None,
    ) -> tuple[Carry, Any]:
        """Apply one streaming step.

        Args:
            params: the parameters.
            carry: the carry before the step.
            x: the input, ``(*B, D)``, or a pytree as ``feature_ndim`` says.
            reset: ``(*B)`` bool or None. Where True, a new sequence begins: the carry
                becomes the initial one before the step.
            context: arrays ``(*B, ...)`` for a cell with ``takes_context``.
            key: a random key, for layers that require one; a cell takes none.

        Returns:
            ``(carry, y)``, the carry after the step and the output.
        """
        check_key(self, key)
        batch = None
        if reset is not None or context is not None:
            batch = batch_of_step(x, self.feature_ndim)
        check_context(self, context, batch)
        cell, params = bind_context(self, weaken_scalars(params), context)
        if reset is not None and batch is not None:
            initial = cell.initial_carry(params, batch)
            carry = select(checked_reset(reset, batch), initial, carry)
        carry = cell.step(params, carry, cell.project(params, x))
        return carry, cell.output(params, carry, x)


class LinearCell(Cell):
    """A cell that is linear in its state: ``s_t = a_t * s_{t-1} + b_t``, elementwise.

    A subclass defines ``affine`` instead of ``step``. a and b may depend on the inputs
    and the parameters, but not on the state. `jaxrnn.Associative` runs such cells in
    parallel. It multiplies the factors of many steps, and their products must be
    finite; ``|a| <= 1`` is safe.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, jaxrnn
        >>> @dataclasses.dataclass(frozen=True)
        ... class Average(jaxrnn.LinearCell):
        ...     hidden_size: int
        ...
        ...     def init(self, key, input_size):
        ...         return {"decay": jnp.full(self.hidden_size, 0.5)}
        ...
        ...     def affine(self, params, z):
        ...         return params["decay"], (1 - params["decay"]) * z
        >>> cell = Average(1)
        >>> params = cell.init(jax.random.key(0), 1)
        >>> _, ys = jaxrnn.unroll(cell, params, jnp.ones((3, 1)))
        >>> print(ys[:, 0])
        [0.5   0.75  0.875]
    """

    def affine(self, params: Params, z: PyTree) -> tuple[Any, Any]:
        """Return ``(a, b)``, each like the carry or broadcastable to it.

        ``z`` is ``project(params, x)``, with any leading axes.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define affine(self, params, z) -> (a, b)"
        )

    def step(self, params: Params, carry: Carry, z: PyTree, *context: object) -> Carry:
        """Return ``a * carry + b``."""
        a, b = self.affine(params, z, *context)
        return jax.tree.map(
            lambda a, b, s: jnp.asarray(a, s.dtype) * s + jnp.asarray(b, s.dtype),
            a,
            b,
            carry,
        )


@dataclasses.dataclass(frozen=True)
class AbstractWrappedCell(Cell):
    """A cell that wraps another one and changes its step.

    Attributes:
        cell: the wrapped cell.
        purpose: for error messages, what a wrapper is for that the user did not write:
            for example the scaled gradients of ``gradient_scale``.

    Example:
        >>> import dataclasses, jax.numpy as jnp, jaxrnn
        >>> from jaxrnn.extending import AbstractWrappedCell
        >>> @dataclasses.dataclass(frozen=True)
        ... class Halved(AbstractWrappedCell):
        ...     def step(self, params, carry, z):
        ...         return 0.5 * self.cell.step(params, carry, z)
        >>> params = {"input_kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1),
        ...           "recurrent_kernel": jnp.ones((1, 1))}
        >>> carry, _ = jaxrnn.unroll(Halved(jaxrnn.Elman(1)), params, jnp.ones((1, 1)))
        >>> f"{carry[0]:.3f}"  # tanh(1) / 2
        '0.381'
    """

    cell: Cell
    purpose: ClassVar[str] = ""

    @property
    def feature_ndim(self) -> Any:  # type: ignore[override]
        return self.cell.feature_ndim

    def initial_carry(
        self,
        params: Params,
        batch_shape: tuple[int, ...] = (),
        dtype: DTypeLike | None = None,
    ) -> Carry:
        return self.cell.initial_carry(params, batch_shape, dtype)

    def project(self, params: Params, x: Inputs) -> Any:
        return self.cell.project(params, x)

    def output(self, params: Params, carry: Carry, x: Inputs) -> Any:
        return self.cell.output(params, carry, x)


def unwrap(cell: Cell) -> Cell:
    """Return the cell inside a wrapper, or the cell itself.

    Args:
        cell: a cell, wrapped or not.

    Returns:
        ``cell.cell`` of an `AbstractWrappedCell`, else ``cell``.

    Example:
        >>> import jaxrnn
        >>> from jaxrnn.extending import AbstractWrappedCell, unwrap
        >>> cell = jaxrnn.GRU(4)
        >>> unwrap(AbstractWrappedCell(cell)) == cell == unwrap(cell)
        True
    """
    return cell.cell if isinstance(cell, AbstractWrappedCell) else cell


@dataclasses.dataclass(frozen=True)
class ContextCell(AbstractWrappedCell):
    """A cell with ``takes_context`` as a cell without: its context is in its params.

    Its parameters are ``(params of the cell, context)``. Engines, which know cells as
    ``init`` and ``step`` only, unroll it in place of the cell, and whatever takes a
    cell and parameters, such as a diagnostic, takes it as well.

    Attributes:
        cell: a cell with ``takes_context``.

    Raises:
        TypeError: if ``cell`` takes no context.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, jaxrnn
        >>> from jaxrnn.extending import ContextCell
        >>> @dataclasses.dataclass(frozen=True)
        ... class Biased(jaxrnn.Cell):
        ...     hidden_size: int
        ...     takes_context = True
        ...
        ...     def step(self, params, carry, z, context):
        ...         return jnp.tanh(params * carry + z + context)
        >>> xs, context = jnp.ones((5, 2, 3)), jnp.ones((2, 3))
        >>> cell, params = Biased(3), jnp.asarray(0.5)
        >>> _, ys = jaxrnn.unroll(cell, params, xs, context=context)
        >>> _, same = jaxrnn.unroll(ContextCell(cell), (params, context), xs)
        >>> bool((ys == same).all())
        True
    """

    def __post_init__(self):
        if not (isinstance(self.cell, Cell) and self.cell.takes_context):
            name = type(self.cell).__name__
            raise TypeError(
                f"ContextCell is for a cell with takes_context = True, but {name} "
                f"takes no context: use it as it is"
            )

    def init(self, key: Array, input_size: int) -> Params:
        name = type(self.cell).__name__
        raise TypeError(
            f"ContextCell({name}(...)) draws no parameters, because a context is part "
            f"of its own: they are (cell.init(key, input_size), context), with the "
            f"init of {name}"
        )

    def check(self, params: Params) -> None:
        if not (isinstance(params, (tuple, list)) and len(params) == 2):
            raise TypeError(
                f"ContextCell({type(self.cell).__name__}(...)): its params are a pair, "
                f"(params of the cell, context), but got {describe_tree(params)}"
            )
        self.cell.check(params[0])

    def initial_carry(
        self,
        params: Params,
        batch_shape: tuple[int, ...] = (),
        dtype: DTypeLike | None = None,
    ) -> Carry:
        return self.cell.initial_carry(params[0], batch_shape, dtype)

    def project(self, params: Params, x: Inputs) -> Any:
        if type(self.cell).project is Cell.project:
            return x
        return _taking_context(self.cell.project)(params[0], x, params[1])

    def step(self, params: Params, carry: Carry, z: PyTree, **options: object) -> Carry:
        step = _taking_context(self.cell.step)
        return step(params[0], carry, z, params[1], **options)

    def output(self, params: Params, carry: Carry, x: Inputs) -> Any:
        if type(self.cell).output is Cell.output:
            return self.cell.output(params[0], carry, x)
        return _taking_context(self.cell.output)(params[0], carry, x, params[1])

    def gate_values(self, params: Params, carry: Carry, z: PyTree) -> dict[str, Gate]:
        if type(self.cell).gate_values is Cell.gate_values:
            return self.cell.gate_values(params[0], carry, z)
        gate_values = _taking_context(self.cell.gate_values)
        return gate_values(params[0], carry, z, params[1])


def _taking_context(method: Any) -> Any:
    """Return a method of a cell with ``takes_context``, typed as one that takes it."""
    return method


def bind_context(cell: Cell, params: Params, context: Context) -> tuple[Cell, Params]:
    """Return a cell without context that computes the same, and its parameters."""
    return (
        (ContextCell(cell), (params, context)) if cell.takes_context else (cell, params)
    )


def without_context(cell: object) -> Any:
    """Return the cell that a `ContextCell` holds, or the cell itself."""
    return cell.cell if isinstance(cell, ContextCell) else cell


def is_linear(cell: object) -> bool:
    """Whether a cell is a `LinearCell` that does not override ``step``."""
    cell = without_context(cell)
    return isinstance(cell, LinearCell) and type(cell).step is LinearCell.step


def is_chunkwise(cell: object) -> bool:
    """Whether a cell defines ``run_chunks``, which computes chunks of steps."""
    return _owner(cell, "run_chunks") is not None


def unsupported_chunkwise_reason(cell: Any) -> str | None:
    """Say why an inherited ``run_chunks`` does not compute a cell's steps, or None.

    A subclass of the class that defines it may override ``step``, or ``output``.
    ``run_chunks`` calls the other methods, but it relies on the output being h; a cell
    with ``shows_h_alone`` says that its ``output`` reads nothing else of the carry.
    """
    kinds = type(cell).__mro__
    chunks = _owner(cell, "run_chunks")
    for name in ("step",) if cell.shows_h_alone else ("step", "output"):
        owner = _owner(cell, name)
        if (
            chunks is not None
            and owner is not None
            and kinds.index(owner) < kinds.index(chunks)
        ):
            return (
                f"{owner.__name__} overrides {name}, which "
                f"{chunks.__name__}.run_chunks does not call"
            )
    return None


def overrides(cell: Any, kind: type, names: Iterable[str]) -> bool:
    """Whether a subclass of ``kind`` defines one of some names anew."""
    kinds = type(cell).__mro__
    below = kinds[: kinds.index(kind)]
    return any(name in vars(subclass) for subclass in below for name in names)


def _owner(cell: Any, name: str) -> Any:
    """Return the class that defines a method, or None."""
    return next((kind for kind in type(cell).__mro__ if name in vars(kind)), None)
