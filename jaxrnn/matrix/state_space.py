"""The contract of cells with a large, linear state that is read and not shown."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from ..core.dtypes import accumulator, floating_dtype
from ..core.exported import register_for_export
from ..core.flags import select
from ..core.types import Carry, Params, PyTree
from ..core.validation import check_positive
from .chunkwise import last_shown, spoiled_steps
from .elementwise import Recurrence, StepInputs, advance, run_elementwise
from .looking_back import LookingBack
from .state_space_checks import check_affine, check_read, check_shown
from .stretch import ElementwiseStretch, Ends


@register_for_export
class StateSpaceState(NamedTuple):
    """The carry of a `StateSpaceCell`.

    Attributes:
        h: ``(*B, H)``, what the cell shows of the last step.
        s: the state, by default ``(*B, H, n)``, in float32 or wider.
        recent: ``(*B, W, F)``, what the last W steps left for later ones, the newest
            last; None for a cell that looks back at nothing.

    Example:
        >>> import jax, jaxrnn
        >>> cell = jaxrnn.cells.Mamba(8, state_size=4)
        >>> def begin(key):
        ...     return cell.initial_carry(cell.init(key, input_size=3), (2,))
        >>> state = jax.eval_shape(begin, jax.random.key(0))
        >>> state.h.shape, state.s.shape, state.recent.shape
        ((2, 8), (2, 8, 4), (2, 4, 8))
    """

    h: Array
    s: Any
    recent: Array | None = None


@dataclasses.dataclass(frozen=True)
class StateSpaceCell(LookingBack):
    """A cell with a large state of which each step shows a reading only::

        s_t = a_t * s_{t-1} + b_t        elementwise, (H, n)
        y_t = read(s_t, z_t)             (H,)

    A subclass defines ``init``, ``affine`` and ``read``. They may depend on the inputs
    and the parameters, but a and b not on the state. `jaxrnn.LinearCell` is the same
    without ``read``: there every state is an output, and all of them are kept in memory
    for the gradient. Here the states are read where they are computed. `Associative`,
    the default engine of such cells, keeps one state a chunk and computes a chunk again
    for its gradient. So memory grows with T by inputs, outputs and T / chunk states.

    Within a chunk the steps run one after another on a CPU, and by parallel prefixes on
    other platforms. The prefixes multiply the factors of a chunk, and the products must
    be finite; ``|a| <= 1`` is safe.

    Optionally a subclass defines ``readout``, which makes h of y; ``output``, which
    makes the output of h, and may read nothing else of the carry; `look_back`; and
    ``initial_carry``, for a state of another form: a pytree of arrays ``(*B, ...)``,
    which may be complex. ``read`` then defines how it is read.

    Mamba (Gu & Dao 2023, arXiv:2312.00752) is such a cell.

    Args:
        hidden_size: H, the number of features that are shown.
        state_size: n, the number of state variables behind each of them.

    Raises:
        ValueError: for a size below 1.

    Example::

        >>> import dataclasses, jax, jax.numpy as jnp, jaxrnn
        >>> from jaxrnn.extending import StateSpaceCell
        >>> @dataclasses.dataclass(frozen=True)
        ... class Averages(StateSpaceCell):
        ...     def init(self, key, input_size):
        ...         shape = (self.hidden_size, self.state_size)
        ...         return {"weights": jax.random.normal(key, shape)}
        ...
        ...     def affine(self, params, z):
        ...         a = jnp.linspace(0.5, 0.99, self.state_size)
        ...         a = jnp.broadcast_to(a, (*z.shape, self.state_size))
        ...         return a, (1 - a) * z[..., None]
        ...
        ...     def read(self, params, s, z):
        ...         return jnp.einsum("hn,...hn->...h", params["weights"], s)
        >>> cell = Averages(3, state_size=8)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> carry, ys = jaxrnn.unroll(cell, params, jnp.ones((10, 2, 3)))
        >>> carry.s.shape, ys.shape
        ((2, 3, 8), (10, 2, 3))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    state_size: int = 16

    # What chunks compute is h; the other parts of the carry are known at their ends.
    shows_h_alone: ClassVar[bool] = True

    def __post_init__(self):
        check_positive(self, hidden_size=self.hidden_size, state_size=self.state_size)

    def affine(self, params: Params, z: PyTree) -> tuple[Any, Any]:
        """Return ``(a, b)``, each like the state or broadcastable to it.

        ``z`` is ``project(params, x)``, or what ``look_back`` makes of it, with any
        leading axes.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define affine(self, params, z) -> (a, b)"
        )

    def read(self, params: Params, s: Any, z: PyTree) -> Float[Array, "*TB H"]:
        """Return y from the state after a step; it takes any leading axes."""
        raise NotImplementedError(
            f"{type(self).__name__} must define read(self, params, s, z) -> y"
        )

    def readout(
        self, params: Params, y: Float[Array, "*TB H"], z: PyTree
    ) -> Float[Array, "*TB H"]:
        """Return h from what was read; by default y.

        It takes any leading axes, and is applied to all of time at once. Gates and what
        goes around the state stand here.
        """
        return y

    def inside_loop(self, params: Params, batch_shape: tuple[int, ...]) -> Params:
        """Return the parameters as ``affine`` and ``read`` get them in a loop.

        By default they are the same. Where ``affine`` reads a parameter of the size of
        a state, this is the place to give it the batch axes: its gradient is then
        summed over the batch after the loop, and by devices that share a batch once,
        not in every chunk.
        """
        return params

    # ---------------------------------------------------------------- the carry
    def initial_carry(
        self,
        params: Params,
        batch_shape: tuple[int, ...] = (),
        dtype: DTypeLike | None = None,
    ) -> Carry:
        """Return zeros: h in ``dtype``, the rest in float32 or wider.

        A subclass may return other numbers, but for ``recent``, which is zero.
        """
        dtype = jnp.dtype(dtype or floating_dtype(params))
        batch = tuple(batch_shape)
        shape = (*batch, self.hidden_size)
        return StateSpaceState(
            jnp.zeros(shape, dtype),
            jnp.zeros((*shape, self.state_size), accumulator(dtype)),
            self.empty_recent(params, batch, dtype),
        )

    # ---------------------------------------------------------------- the steps
    def step(self, params: Params, carry: Carry, z: PyTree) -> Carry:
        """Take one step of the equations above."""
        recent, z = self.take_in(params, carry.recent, z)
        recurrence = self._recurrence(params, carry)
        s = advance(*recurrence.affine(z), carry.s)
        h = check_shown(
            self, self.readout(params, recurrence.read(s, z), z), carry.h.shape
        )
        return carry._replace(h=h.astype(carry.h.dtype), s=s, recent=recent)

    def _recurrence(self, params: Params, carry: Carry) -> Recurrence:
        """Return ``affine`` and ``read``, with checks of what they return."""
        state, batch = carry.s, carry.h.shape[:-1]
        return Recurrence(
            lambda z: check_affine(self, self.affine(params, z), state),
            lambda s, z: check_read(self, self.read(params, s, z), batch),
        )

    def describe_chunks(self, platform: str) -> str:
        steps = "one after another" if platform == "cpu" else "by parallel prefixes"
        return f"the steps of a chunk run {steps}; one state a chunk is kept"

    def run_chunks(
        self,
        params: Params,
        carry: Carry,
        zs: PyTree,
        mask: Bool[Array, "T *B"] | None,
        resets: Bool[Array, "T *B"] | None,
        chunk: int | None,
        reverse: bool,
    ) -> tuple[Carry, Float[Array, "T *B H"]]:
        """Apply ``step`` over a sequence, computing ``chunk`` steps at once.

        The results are those of ``step``, and one step is taken by it.

        Args:
            params: the parameters, from ``init``.
            carry: the carry before the first step.
            zs: ``project(params, xs)``.
            mask: False where a step keeps the carry, or None.
            resets: True where the initial carry replaces the carry before a step, or
                None.
            chunk: the number of consecutive steps that are computed at once; None takes
                what ``chunk_on`` says for a CPU.
            reverse: whether to run from the last step to the first.

        Returns:
            The last carry, and h after every step. At masked steps h is not that of the
            held carry; `unroll` sets outputs to zero there.
        """
        steps, batch = jax.tree.leaves(zs)[0].shape[0], carry.h.shape[:-1]
        if steps == 0:
            return carry, jnp.zeros((0, *carry.h.shape), carry.h.dtype)
        if steps == 1:
            return self.run_one_step(params, carry, zs, mask, resets)
        fresh = carry
        if resets is not None:
            fresh = self.initial_carry(params, batch, carry.h.dtype)
        recent, zs, bad = self.read_inputs(
            params, carry.recent, zs, len(batch), mask, resets, reverse
        )
        spoiled = spoiled_steps(bad, resets, reverse)
        live = ~bad if mask is None else mask & ~bad
        s, ys = run_elementwise(
            self._recurrence(self.inside_loop(params, batch), carry),
            carry.s,
            fresh.s,
            StepInputs(zs, live, resets),
            chunk=chunk or self.chunk_on("cpu"),
            reverse=reverse,
        )
        hs = check_shown(self, self.readout(params, ys, zs), (steps, *carry.h.shape))
        hs = hs.astype(carry.h.dtype)
        hs = jnp.where(spoiled[..., None], jnp.nan, hs)
        at_end = spoiled[0 if reverse else -1]
        s = select(
            at_end, jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), s), s
        )
        initial_h = None if resets is None else fresh.h
        shown = last_shown(carry.h, hs, mask, resets, initial_h, reverse)
        return carry._replace(h=shown, s=s, recent=recent), hs

    # ------------------------------------------------------- time over devices
    def parts(self, carry: Carry) -> tuple[Any, Array | None]:
        return carry.s, carry.recent

    def with_parts(self, carry: Carry, state: Any, recent: Array | None) -> Carry:
        return carry._replace(s=state, recent=recent)

    def stretch(
        self,
        params: Params,
        carry: Carry,
        zs: PyTree,
        mask: Bool[Array, "T *B"] | None,
        resets: Bool[Array, "T *B"] | None,
        reverse: bool,
    ) -> ElementwiseStretch:
        batch, s = carry.h.shape[:-1], carry.s
        _, zs, bad = self.read_inputs(
            params, carry.recent, zs, len(batch), mask, resets, reverse
        )
        recurrence = self._recurrence(self.inside_loop(params, batch), carry)
        zeros, ones = (
            jax.tree.map(like, s) for like in (jnp.zeros_like, jnp.ones_like)
        )
        cut, fresh = jnp.zeros(batch, bool), zeros
        if resets is not None:
            fresh = self.initial_carry(params, batch, carry.h.dtype).s
            cut = resets.any(0)

        def affine(z):
            a, b = recurrence.affine(z)
            return (a, a), (b, jax.tree.map(lambda x: jnp.zeros((), x.dtype), s))

        def read_nothing(state, z):
            leaf = jax.tree.leaves(state)[0]
            lead = leaf.shape[: leaf.ndim - jax.tree.leaves(s)[0].ndim + len(batch)]
            return jnp.zeros((*lead, 0), leaf.dtype)

        # What the steps make of zero, and of ones if they add nothing.
        (b, a), _ = run_elementwise(
            Recurrence(affine, read_nothing),
            (zeros, ones),
            (fresh, zeros),
            StepInputs(zs, ~bad if mask is None else mask & ~bad, resets),
            chunk=self.chunk_on("cpu"),
            reverse=reverse,
        )
        spoiled = spoiled_steps(bad, resets, reverse)[0 if reverse else -1]
        return ElementwiseStretch(a, b, Ends(cut, spoiled))
