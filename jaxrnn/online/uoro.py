"""Unbiased online recurrent optimization: an influence of rank one.

Tallec & Ollivier (2018, arXiv:1702.05043, algorithm 1). The influence M of `RTRL` is
replaced by the product of a vector s~ (n,) and a row theta~ (P,), whose expectation is
M. With random signs v (n,), one draw for every window::

    s~     <- r0 J s~ + r1 v
    theta~ <- theta~ / r0 + v F / r1
    r0 = sqrt(|theta~| / |J s~|),   r1 = sqrt(|v F| / |v|)

The expectation of the product of both is ``J M + F``, because that of ``v v^T`` is the
identity and that of v is zero. The factors r0 and r1 do not change it, since they are
the same for v and -v; they keep the two parts of similar size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..core.dtypes import accumulator
from ..core.real_vectors import features, size_of
from ..core.types import Carry, Params, PyTree
from ..truncation.tbptt import Window
from .memory import check_bytes
from .windows import AbstractWindows, OnlineState, Stream

EPSILON = 1e-7  # as published; it keeps the factors finite


@dataclasses.dataclass(frozen=True)
class UORO(AbstractWindows):
    """Unbiased online recurrent optimization: noisy gradients with the cost of a step.

    The words and methods are those of `RTRL`, whose influence M is replaced by a
    product of rank one with expectation M::

        gradient = dl/dtheta + (dl/ds . s~) theta~
        s~ <- r0 J s~ + r1 v,   theta~ <- theta~ / r0 + v F / r1

    Here v are random signs, and r0 and r1 keep both parts of similar size (Tallec &
    Ollivier 2018, arXiv:1702.05043). So the expected gradient is that of full
    backpropagation, whatever the model, and the state of a stream is ``n + P``
    numbers. The noise is large: often larger than the gradient, and growing with the
    memory that the task needs. Noise is injected once a window, so there is less of it
    for a larger k1.

    The methods need ``key``, from which the signs are drawn. A state holds the signs'
    traces, so a continuation needs a key of its own.

    Args:
        losses: as for `RTRL`.
        initial_carry: ``initial_carry(params, batch_shape) -> carry``.
        k1: the number of steps of a window.
        max_bytes: the largest state that `init` may make, in bytes.

    Raises:
        TypeError: if ``losses`` is no function.
        ValueError: if k1 or max_bytes is no int of at least 1.

    Example::

        >>> import jax, jax.numpy as jnp, jaxrnn, jaxrnn.online
        >>> cell = jaxrnn.GRU(4)
        >>> def losses(params, carry, window):
        ...     _, ys, carries = jaxrnn.unroll(
        ...         cell, params, window.inputs, carry, return_carries=True
        ...     )
        ...     return jnp.square(ys - window.targets).mean(-1), carries
        >>> uoro = jaxrnn.online.UORO(losses, cell.initial_carry, k1=5)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> sequence = jaxrnn.Window(jnp.ones((10, 2, 3)), jnp.zeros((10, 2, 4)))
        >>> state = uoro.init(params, sequence, batch_shape=(2,))
        >>> loss, gradient, state = uoro.value_and_grad(
        ...     params, sequence, state, key=jax.random.key(1)
        ... )
        >>> gradient["bias"].shape
        (12,)
    """

    def _measure(
        self, params: Params, sequence: Window, state: OnlineState, key: Array | None
    ) -> tuple[int, Float[Array, ""]]:
        if key is None:
            raise ValueError(
                "UORO draws random signs, so it needs key=jax.random.key(...)"
            )
        return super()._measure(params, sequence, state, key)

    def _influence_of(self, influence: Any) -> tuple[Any, int]:
        pair = isinstance(influence, tuple) and len(influence) == 2
        return (influence[1] if pair else None), 0

    def _no_influence(
        self, params: Params, carry: Carry, window: Window, batch: tuple[int, ...]
    ) -> Any:
        """Return zeros: s~ ``(*B, n)``, and theta~ ``(*B, *p)`` for each parameter."""
        dtype = features(carry, len(batch)).dtype
        vector = jax.ShapeDtypeStruct((*batch, size_of(carry, len(batch))), dtype)
        rows = jax.tree.map(
            lambda p: jax.ShapeDtypeStruct(
                (*batch, *jnp.shape(p)), accumulator(jnp.result_type(p))
            ),
            params,
        )
        check_bytes(
            "UORO",
            jax.tree.leaves((vector, rows)),
            batch,
            self.max_bytes,
            "a number for each parameter",
            "a smaller model",
        )
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (vector, rows))

    def _pass(
        self, params: Params, influence: Any, stream: Stream
    ) -> tuple[Array, Params, Carry, Any]:
        k_losses, k_signs = jax.random.split(stream.key)
        stream = stream._replace(window=stream.window._replace(key=k_losses))
        signs = jax.random.rademacher(k_signs, stream.vector.shape, stream.vector.dtype)
        return self._pass_with(params, influence, stream, signs)

    def _pass_with(
        self, params: Params, influence: Any, stream: Stream, signs: Array
    ) -> tuple[Array, Params, Carry, Any]:
        """Do as `_pass`, with given signs v ``(n,)``."""
        vector, theta = influence

        def passed(params, before):
            loss, after, last = self._passed(params, stream, before)
            return (loss, after), last

        (loss, _), pull, last = jax.vjp(passed, params, stream.vector, has_aux=True)
        gradient, d_carry = pull((jnp.ones_like(loss), jnp.zeros_like(vector)))
        along = jnp.vdot(d_carry, vector)
        gradient = jax.tree.map(
            lambda g, t: g.astype(t.dtype) + along.astype(t.dtype) * t, gradient, theta
        )
        moved = _moved(
            lambda before: passed(params, before)[0][1], stream.vector, vector
        )
        row, _ = pull((jnp.zeros_like(loss), signs))
        return loss, gradient, last, _rank_one((moved, theta), (signs, row))


def _moved(after: Callable[[Array], Array], before: Array, vector: Array) -> Array:
    """Return ``J s~``: the change of the carry after a window along ``vector``."""
    try:
        return jax.jvp(after, (before,), (vector,))[1]
    except (TypeError, NotImplementedError) as error:
        # The backward pass of the same function was traced before.
        raise ValueError(
            f"UORO needs the derivative of a window in forward mode, too, which these "
            f"losses do not have ({str(error).splitlines()[0]}): give a function with "
            f"jax.custom_vjp a rule by jax.custom_jvp, or use jaxrnn.online.RTRL"
        ) from error


def _rank_one(old: tuple[Array, Params], new: tuple[Array, Params]) -> Any:
    """Return one product of a vector and a row for the sum of two, unbiased."""
    dtype = old[0].dtype
    r0, r1 = (
        jnp.sqrt((_norm(row, dtype) + EPSILON) / (_norm(vector, dtype) + EPSILON))
        for vector, row in (old, new)
    )
    return r0 * old[0] + r1 * new[0], jax.tree.map(
        lambda a, b: a / r0.astype(a.dtype) + b.astype(a.dtype) / r1.astype(a.dtype),
        old[1],
        new[1],
    )


def _norm(tree: PyTree, dtype: DTypeLike) -> Array:
    """Return the Euclidean norm of all numbers of a pytree."""
    squares = [jnp.square(leaf.astype(dtype)).sum() for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(jnp.stack(squares).sum())
