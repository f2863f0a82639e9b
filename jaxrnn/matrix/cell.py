"""The contract of cells with a matrix state."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from ..core.cell import Gate
from ..core.dtypes import accumulator, floating_dtype
from ..core.exported import register_for_export
from ..core.flags import select
from ..core.types import Carry, Params, PyTree
from ..core.validation import check_positive
from .checks import check_scale, check_terms
from .chunkwise import (
    CHUNK,
    CHUNK_ELSEWHERE,
    last_shown,
    reads_first,
    run_chunkwise,
    spoiled_steps,
)
from .decay import like
from .looking_back import LookingBack
from .matrix_stretch import Flagged, stretch_of_terms
from .state_space_checks import check_shown
from .stretch import MatrixStretch
from .terms import (
    MatrixMemory,
    Terms,
    log_decay,
    map_terms,
    rotate,
    spread_heads,
    take_step,
)


@register_for_export
class MatrixState(NamedTuple):
    """The carry of a `MatrixCell`.

    Attributes:
        h: ``(*B, H)``, what the cell shows of the last step.
        S: ``(*B, heads, d_k, d_v)``, the matrix state, in float32 or wider.
        recent: ``(*B, W, F)``, what the last W steps left for later ones, the newest
            last; None for a cell that looks back at nothing.

    Example:
        >>> import jax, jaxrnn
        >>> cell = jaxrnn.cells.GatedDeltaNet(8, num_heads=2)
        >>> def begin(key):
        ...     return cell.initial_carry(cell.init(key, input_size=3), (5,))
        >>> state = jax.eval_shape(begin, jax.random.key(0))
        >>> state.h.shape, state.S.shape, state.S.dtype
        ((5, 8), (5, 2, 4, 4), dtype('float32'))
    """

    h: Array
    S: Array
    recent: Array | None = None


@dataclasses.dataclass(frozen=True)
class MatrixCell(LookingBack):
    """A cell whose state is a matrix a head, decayed, erased and written at each step::

        S_t = (Diag(exp g_t) + b_t a_t^T) S_{t-1} + k_t v_t^T        y_t = S_t^T q_t

    A subclass defines ``init`` and ``terms``, which returns q, k, v and, as far as the
    cell has them, g, a and b: see `Terms`. They may depend on the inputs and the
    parameters, but not on the state. Streaming, masks, resets, truncation and a form
    that computes a chunk of steps by matrix products (`jaxrnn.Associative`, the default
    engine of such cells) follow from that. It is exact: the results are those of the
    steps up to rounding, whatever decays and keys are.

    Linear attention, RetNet, Mamba-2, GLA, DeltaNet, Gated DeltaNet, KDA and RWKV-7
    are such cells (Yang et al. 2024, arXiv:2406.06484 and arXiv:2412.06464).

    Optionally a subclass defines ``readout``, which makes h of y; ``output``, which
    makes the output of h, and may read nothing else of the carry; and `look_back`.
    Steps whose terms are not finite are left out of chunks, and what they spoil is NaN.
    A class whose terms are finite wherever z is may say ``finite_terms = True``: chunks
    then do not look. A subclass of it says so anew, since its terms may be others.

    Args:
        hidden_size: H, the values of all heads side by side: ``H = heads * d_v``.
        num_heads: the number of heads of v, a divisor of H.
        key_size: d_k (default: H / heads).

    Raises:
        ValueError: if ``num_heads`` does not divide ``hidden_size``, or for a
            ``key_size`` below 1.

    Example::

        >>> import dataclasses, jax, jax.numpy as jnp, jaxrnn
        >>> @dataclasses.dataclass(frozen=True)
        ... class Delta(jaxrnn.MatrixCell):
        ...     def init(self, key, input_size):
        ...         shape = (input_size, 3 * self.hidden_size)
        ...         return {"kernel": jax.random.normal(key, shape)}
        ...
        ...     def project(self, params, x):
        ...         return x @ params["kernel"]
        ...
        ...     def terms(self, params, z):
        ...         q, k, v = map(self.split_heads, jnp.split(z, 3, axis=-1))
        ...         k = k / jnp.sqrt((k * k).sum(-1, keepdims=True) + 1e-6)
        ...         return jaxrnn.Terms(q, k, v, a=-k)
        >>> cell = Delta(8, num_heads=2)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> carry, ys = jaxrnn.unroll(cell, params, jnp.ones((10, 2, 3)))
        >>> carry.S.shape, ys.shape
        ((2, 2, 4, 4), (10, 2, 8))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    num_heads: int = 1
    key_size: int | None = None

    # Whether the query reads S_t ("after") or S_{t-1} ("before").
    reads: ClassVar[str] = "after"
    # What chunks compute is h; the other parts of the carry are known at their ends.
    shows_h_alone: ClassVar[bool] = True
    # Whether terms are finite wherever z is, so that chunks need not look. A class says
    # so for itself alone: a subclass may have other terms.
    finite_terms: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.finite_terms = vars(cls).get("finite_terms", False)

    def __post_init__(self):
        check_positive(self, hidden_size=self.hidden_size, num_heads=self.num_heads)
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"{type(self).__name__}: num_heads must divide hidden_size, because "
                f"every head has as many values, but {self.num_heads} does not divide "
                f"{self.hidden_size}"
            )
        if self.key_size is not None:
            check_positive(self, key_size=self.key_size)

    @property
    def keys(self) -> int:
        """d_k, the number of features of a key."""
        return self.key_size or self.values

    @property
    def values(self) -> int:
        """d_v, the number of features of a value."""
        return self.hidden_size // self.num_heads

    @property
    def written_values(self) -> int:
        """The number of features of a value that is written; by default d_v."""
        return self.values

    @property
    def micro_steps(self) -> int:
        """The number of micro steps, each of which erases and writes, in a step.

        If there are several, k, v, a and b have an axis of so many before that of the
        heads. g may have it; without it, the state decays before the first.
        """
        return 1

    def split_heads(self, x: Float[Array, "*TB F"]) -> Float[Array, "*TB N F/N"]:
        """Split the last axis into heads: ``(..., heads, F / heads)``."""
        return x.reshape(*x.shape[:-1], self.num_heads, x.shape[-1] // self.num_heads)

    def terms(self, params: Params, z: PyTree) -> Terms:
        """Return the terms of steps from ``z = project(params, x)``.

        It takes any leading axes, and must not depend on the carry.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define terms(self, params, z) -> "
            f"jaxrnn.Terms(q, k, v, ...)"
        )

    def readout(
        self, params: Params, y: Float[Array, "*TB N V"], z: PyTree
    ) -> Float[Array, "*TB H"]:
        """Return h from what the queries read; by default the heads side by side.

        It takes any leading axes. Norms and output gates stand here.
        """
        return y.reshape(*y.shape[:-2], y.shape[-2] * y.shape[-1])

    def looked_back(self, params: Params, carry: Carry, z: PyTree) -> PyTree:
        """Return what ``terms`` is given at a step, from the carry before it.

        It is ``z = project(params, x)`` itself for a cell that looks back at nothing.
        It takes any leading axes.
        """
        return self.take_in(params, self.unpack(carry)[2], z)[1]

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
        recent = self.empty_recent(params, batch, dtype)
        S = jnp.zeros(
            (*batch, self.num_heads, self.keys, self.written_values),
            accumulator(dtype),
        )
        return MatrixState(jnp.zeros((*batch, self.shown_size), dtype), S, recent)

    @property
    def shown_size(self) -> int:
        """The number of features of h, which ``readout`` returns; by default H."""
        return self.hidden_size

    def starts_empty(self, params: Params, batch: tuple[int, ...] = ()) -> bool:
        """Whether the state before the first step is known to be zero."""
        return self.begins_with_zeros(params, batch, 0)

    def unpack(self, carry: Carry) -> tuple[Array, MatrixMemory, Array | None]:
        """Return h, the matrix state, and what later steps look back at."""
        return carry.h, MatrixMemory(carry.S), carry.recent

    def pack(self, h: Array, memory: MatrixMemory, recent: Array | None) -> Carry:
        """Return the carry with these parts."""
        return MatrixState(h, memory.S, recent)

    # ---------------------------------------------------------------- the steps
    def step(self, params: Params, carry: Carry, z: PyTree) -> Carry:
        """Take one step of the equations above."""
        h, memory, recent = self.unpack(carry)
        recent, z = self.take_in(params, recent, z)
        terms = self.checked_terms(params, z)
        check_scale(self, terms, memory)
        memory, y = self._take_steps(memory, terms)
        shown = check_shown(self, self.shown(params, y, memory.m, z), h.shape)
        return self.pack(shown.astype(h.dtype), memory, recent)

    def _take_steps(self, memory: MatrixMemory, terms: Terms):
        """Take all micro steps of a step."""
        if self.micro_steps == 1:
            return take_step(memory, terms, self.reads)
        y = None
        for j in range(self.micro_steps):
            memory, y = take_step(memory, _micro_step(terms, j), self.reads)
        return memory, y

    def shown(
        self, params: Params, y: Array, m: Array | None, z: PyTree
    ) -> Float[Array, "*TB H"]:
        """Return h; a cell with write strengths is given m as well."""
        return self.readout(params, y, z)

    def checked_terms(self, params: Params, z: PyTree) -> Terms:
        """Return the terms, after a check of their shapes."""
        terms = self.terms(params, z)
        check_terms(self, terms)
        return terms

    def chunk_on(self, platform: str) -> int:
        return CHUNK if platform == "cpu" else CHUNK_ELSEWHERE

    def describe_chunks(self, platform: str) -> str:
        return "its steps join as matrix products"

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

        The results are those of ``step``, and one step is taken by it. Chunks, or
        blocks of chunks, are recomputed for their gradient, so that beyond inputs and
        outputs memory grows with T by one state a chunk, or a block.

        Args:
            params: the parameters, from ``init``.
            carry: the carry before the first step.
            zs: ``project(params, xs)``.
            mask: False where a step keeps the carry, or None.
            resets: True where the initial carry replaces the carry before a step, or
                None.
            chunk: the number of consecutive steps that are computed at once; None takes
                what ``chunk_on`` says for a CPU, and for a GPU on all other platforms.
            reverse: whether to run from the last step to the first.

        Returns:
            The last carry, and h after every step. At masked steps h is not that of the
            held carry; `unroll` sets outputs to zero there.
        """
        h, memory, recent = self.unpack(carry)
        steps, batch = jax.tree.leaves(zs)[0].shape[0], h.shape[:-1]
        if steps == 0:
            return carry, jnp.zeros((0, *h.shape), h.dtype)
        if steps == 1:
            return self.run_one_step(params, carry, zs, mask, resets)
        initial_h = initial = None
        if resets is not None:
            fresh = self.initial_carry(params, batch, h.dtype)
            initial_h, initial, _ = self.unpack(fresh)
            if self.starts_empty(params, batch):
                initial = None
        recent, zs, bad = self.read_inputs(
            params, recent, zs, len(batch), mask, resets, reverse
        )
        given, terms_of = self._given(params, zs)
        first = jax.tree.map(lambda z: z[0], zs)
        y, m = what_is_read(self, memory, batch)
        shows_outside = reads_first(self.shown, params, y, m, first)

        def show(y, m, given):
            if shows_outside:
                return y, m
            return self.shown(params, y, m, given[0]).astype(h.dtype)

        memory, (hs, bad_terms) = run_chunkwise(
            terms_of,
            show,
            memory,
            initial,
            given,
            self._live(mask, bad),
            resets,
            chunk=chunk,
            reverse=reverse,
            reads=self.reads,
            micro_steps=self.micro_steps,
            check=not self.finite_terms,
            usual=(self.chunk_on("cpu"), self.chunk_on("gpu")),
        )
        if shows_outside:
            ys, ms = hs
            hs = self.shown(params, ys, ms, zs).astype(h.dtype)
        bad = bad if bad_terms is None else bad | bad_terms
        spoiled = spoiled_steps(bad, resets, reverse)
        hs = jnp.where(spoiled[..., None], jnp.nan, hs)
        at_end = spoiled[0 if reverse else -1]
        memory = select(
            at_end, jax.tree.map(lambda s: jnp.full_like(s, jnp.nan), memory), memory
        )
        shown = last_shown(h, hs, mask, resets, initial_h, reverse)
        return self.pack(shown, memory, recent), hs

    def _live(self, mask: Array | None, bad: Array) -> Array | None:
        """Return where steps count, or None if all may.

        A step that is not finite reads zeros, and what it makes of them is replaced by
        NaN afterwards, so that it need not be left out where its terms are finite.
        """
        if mask is None:
            return None if self.finite_terms else ~bad
        return mask & ~bad

    def _given(self, params: Params, zs: PyTree) -> tuple[Any, Any]:
        """Return what of all steps is given to the loop over chunks, and the function
        that makes terms of it there.

        What depends on parameters is computed before that loop: inside, devices that
        share a batch would sum its gradient in every chunk.
        """
        first = jax.tree.map(lambda z: z[0], zs)
        needs_params = reads_first(self.checked_terms, params, first)

        def terms_of(given):
            z, terms = given
            return self.checked_terms(params, z) if terms is None else terms

        return (zs, self.checked_terms(params, zs) if needs_params else None), terms_of

    # ------------------------------------------------------- time over devices
    def parts(self, carry: Carry) -> tuple[MatrixMemory, Array | None]:
        return self.unpack(carry)[1:]

    def with_parts(self, carry: Carry, state: Any, recent: Array | None) -> Carry:
        return self.pack(self.unpack(carry)[0], state, recent)

    def stretch(
        self,
        params: Params,
        carry: Carry,
        zs: PyTree,
        mask: Bool[Array, "T *B"] | None,
        resets: Bool[Array, "T *B"] | None,
        reverse: bool,
    ) -> MatrixStretch:
        h, memory, recent = self.unpack(carry)
        batch = h.shape[:-1]
        _, zs, bad = self.read_inputs(
            params, recent, zs, len(batch), mask, resets, reverse
        )
        initial = None
        if resets is not None and not self.starts_empty(params, batch):
            fresh = self.initial_carry(params, batch, h.dtype)
            initial = self.unpack(fresh)[1]
        given, terms_of = self._given(params, zs)
        live = ~bad if mask is None else mask & ~bad
        return stretch_of_terms(
            terms_of,
            memory,
            initial,
            given,
            Flagged(live, bad, resets),
            micro_steps=self.micro_steps,
            reverse=reverse,
        )

    # ---------------------------------------------------------------- diagnostics
    def transition(self, params: Params, z: PyTree) -> Float[Array, "*TB N K K"]:
        """Return the matrix by which a step multiplies the state of every head::

            M_t = (Diag(exp g_t) + b_t a_t^T) R(-turn_t)

        Of a step with micro steps it is their product. It takes any leading axes. The
        Jacobian of the whole state is M_t for each of the d_v columns. ``z`` is
        ``project(params, x)``, and of a cell that looks back what `looked_back` makes
        of it.
        """
        terms = self.checked_terms(params, z)
        M = None
        for j in range(self.micro_steps):
            now = terms if self.micro_steps == 1 else _micro_step(terms, j)
            step = _transition(spread_heads(now, now.v.dtype))
            M = step if M is None else step @ M
        return M  # type: ignore[return-value]

    def gate_values(self, params: Params, carry: Carry, z: PyTree) -> dict[str, Gate]:
        """Return the decay exp(g), which keeps the state."""
        terms = self.checked_terms(params, self.looked_back(params, carry, z))
        if terms.g is None:
            return {}
        g = jnp.exp(log_decay(terms.g))
        lead = terms.q.shape[:-2]  # g may have an axis of micro steps behind them
        flat = g.reshape(*lead, math.prod(g.shape[len(lead) :]))
        return {"decay": Gate(flat, keeps=True)}


def what_is_read(
    cell: MatrixCell, memory: MatrixMemory, batch: tuple[int, ...]
) -> tuple[Any, Any]:
    """Return the shapes of what a step reads, and of m."""
    shape = (*batch, cell.num_heads, cell.written_values)
    m = memory.m
    return (
        jax.ShapeDtypeStruct(shape, memory.S.dtype),
        None if m is None else jax.ShapeDtypeStruct(m.shape, m.dtype),
    )


def _micro_step(terms: Terms, place: int) -> Terms:
    """Return the terms of a micro step; g without an axis for them is of the first."""
    rank = terms.k.ndim

    def at(x):
        if x.ndim == rank:
            return x[..., place, :, :]
        return x if place == 0 else jnp.zeros_like(x)

    return map_terms(at, terms)._replace(q=terms.q)


def _transition(terms: Terms) -> Array:
    """Return ``(Diag(exp g) + b a^T) R(-turn)``; all terms have as many heads as v."""
    eye = like(jnp.eye(terms.k.shape[-1], dtype=terms.v.dtype), terms.k[..., None])
    M = eye if terms.g is None else jnp.exp(log_decay(terms.g))[..., None] * eye
    if terms.a is not None:
        b = terms.k if terms.b is None else terms.b
        M = M + b[..., :, None] * terms.a[..., None, :]
    M = jnp.broadcast_to(M, (*terms.k.shape, terms.k.shape[-1]))
    return M if terms.turn is None else rotate(M, terms.turn[..., None, :])
