"""Real-time recurrent learning in windows: exact gradients, forward in time.

Let s be the whole carry as a vector of n real numbers, theta the P parameters, and a
window k1 steps long. Real-time recurrent learning keeps the influence::

    M = ds/dtheta    (n, P)

of all parameters, as they were used at all steps so far, on the carry. With J and F the
derivatives of the carry after a window by the carry before it and by the parameters
used inside it::

    gradient = dl/dtheta + dl/ds M          l: the losses of the window, s before it
    M <- J M + F

k1 = 1 is the algorithm of Williams & Zipser (1989, Neural Computation 1(2):270-280).
For a longer window J and F take n backward passes over it, and M is multiplied once a
window instead of once a step. With k1 = n and P of about n^2 that is O(n^3) a step
instead of O(n^4) (Schmidhuber 1992, Neural Computation 4(2):243-248).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval as pe
from jaxtyping import Array

from ..core.dtypes import accumulator
from ..core.fusion_barrier import cpu_optimization_barrier
from ..core.real_vectors import size_of
from ..core.types import Carry, Params
from ..truncation.plan import pad_sequence
from ..truncation.tbptt import Window
from .memory import check_bytes
from .windows import AbstractWindows, Stream


@dataclasses.dataclass(frozen=True)
class RTRL(AbstractWindows):
    """Real-time recurrent learning: exact gradients with memory constant in T.

    The words and methods are those of `jaxrnn.TBPTT`, and ``losses`` that work there
    work here. Instead of cutting the gradient at the beginning of a window, the
    derivative M of the carry there by all parameters is carried along::

        gradient = dl/dtheta + dl/ds M
        M <- J M + F

    where l are the losses of a window of k1 steps, s is the carry before it, and J and
    F are the derivatives of the carry after it by s and by the parameters.

    With fixed parameters the gradient is that of full backpropagation through time, up
    to rounding, for any k1, any cell or stack, masks, resets and a learned initial
    carry, also for a sequence in pieces. `update` changes the parameters after every
    window; the influence then belongs to slightly older ones.

    M has n P numbers a stream, for a carry of n real numbers (of all layers) and P
    parameters that reach it; those of a readout do not. A step costs ``n^2 P / k1 + n
    P`` operations, so k1 near n is the cheapest. The streams of a batch are computed
    one by one, in parallel.

    Args:
        losses: ``losses(params, carry, window) -> (losses (T, *B), carries)``, as for
            `jaxrnn.TBPTT`: the loss of every step and the carries after every step, as
            `jaxrnn.unroll(..., return_carries=True)` returns them. It is called with
            batch axes of size 1, and must pass ``window.mask`` and ``window.resets``
            on where the sequence has them.
        initial_carry: ``initial_carry(params, batch_shape) -> carry``, the carry before
            the first step.
        k1: the number of steps of a window.
        max_bytes: the largest influence that `init` may make, in bytes.

    Raises:
        TypeError: if ``losses`` is no function.
        ValueError: if k1 or max_bytes is no int of at least 1.

    Example::

        >>> import jax, jax.numpy as jnp, jaxrnn, jaxrnn.online
        >>> cell = jaxrnn.GRU(4)
        >>> def losses(params, carry, window):
        ...     _, ys, carries = jaxrnn.unroll(
        ...         cell, params, window.inputs, carry, mask=window.mask,
        ...         return_carries=True,
        ...     )
        ...     return jnp.square(ys - window.targets).mean(-1), carries
        >>> rtrl = jaxrnn.online.RTRL(losses, cell.initial_carry, k1=4)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> sequence = jaxrnn.Window(jnp.ones((10, 2, 3)), jnp.zeros((10, 2, 4)))
        >>> state = rtrl.init(params, sequence, batch_shape=(2,))
        >>> loss, gradient, state = rtrl.value_and_grad(params, sequence, state)
        >>> state.influence["bias"].shape
        (2, 4, 12)
        >>> tbptt = jaxrnn.TBPTT(losses, cell.initial_carry, k1=10)
        >>> full = tbptt.value_and_grad(
        ...     params, sequence, tbptt.init(params, sequence, (2,))
        ... )[1]
        >>> bool(jnp.allclose(gradient["bias"], full["bias"], atol=1e-6))
        True
    """

    def _influence_of(self, influence: Any) -> tuple[Any, int]:
        return influence, 1

    def _no_influence(
        self, params: Params, carry: Carry, window: Window, batch: tuple[int, ...]
    ) -> Any:
        """Return zeros ``(*B, n, *p)``; ``(*B, 0, *p)`` for what reaches no carry."""
        n = size_of(carry, len(batch))
        structure: Any = jax.tree.structure(params)
        leaves = jax.tree.leaves(params)
        reached = self._reaching(params, carry, window, batch)
        shapes = [
            jax.ShapeDtypeStruct(
                (*batch, n if flag else 0, *jnp.shape(p)),
                accumulator(jnp.result_type(p)),
            )
            for p, flag in zip(leaves, reached, strict=True)
        ]
        check_bytes(
            "RTRL",
            shapes,
            batch,
            self.max_bytes,
            f"the derivative of a carry of {n:,} numbers by the parameters that "
            f"reach it",
            "jaxrnn.online.Traces, which keeps a few numbers a parameter and is exact "
            "where units do not see each other, or UORO, which keeps one and is noisy",
        )
        return structure.unflatten([jnp.zeros(s.shape, s.dtype) for s in shapes])

    def _reaching(
        self, params: Params, carry: Carry, window: Window, batch: tuple[int, ...]
    ) -> list[bool]:
        """Return which parameters the carry after a window depends on."""
        steps = jnp.shape(jax.tree.leaves(window.inputs)[0])[0]
        if not steps:  # no step shows what the steps of later pieces will reach
            steps, context = 1, window.context
            window = jax.tree.map(
                lambda a: jnp.zeros((1, *a.shape[1:]), a.dtype),
                window._replace(context=None, key=None),
            )._replace(context=context)

        def last(params, carry, window, key):
            window = pad_sequence(window, steps, batch)._replace(key=key)
            initial = self.initial_carry(params, batch)
            return self.losses(params, carry, window)[1], initial

        def trace(key):
            return jax.make_jaxpr(last)(
                params, carry, window._replace(key=None), key
            ).jaxpr

        # Only their author knows whether the losses need a key or refuse one.
        try:
            jaxpr = trace(None)
        except (TypeError, ValueError) as error:
            try:
                jaxpr = trace(jax.eval_shape(lambda: jax.random.key(0)))
            except (TypeError, ValueError):
                raise error from None
        used = pe.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1]
        return list(used[: len(jax.tree.leaves(params))])

    def _pass(
        self, params: Params, influence: Any, stream: Stream
    ) -> tuple[Array, Params, Carry, Any]:
        structure: Any = jax.tree.structure(params)
        leaves = jax.tree.leaves(params)
        rows = structure.flatten_up_to(influence)
        reaching = [i for i, row in enumerate(rows) if row.shape[0]]
        stream = stream._replace(window=stream.window._replace(key=stream.key))

        def loss_of(params, vector):
            loss, _, last = self._passed(params, stream, vector)
            return loss, last

        def carry_of(some, vector):
            new = dict(enumerate(leaves)) | dict(zip(reaching, some, strict=True))
            params = structure.unflatten([new[i] for i in range(len(leaves))])
            return self._passed(params, stream, vector)[1]

        (loss, last), (gradient, d_carry) = jax.value_and_grad(
            loss_of, (0, 1), has_aux=True
        )(params, stream.vector)
        some = [leaves[i] for i in reaching]
        vector, pull = jax.vjp(carry_of, some, stream.vector)
        # J (n, n) and F (n, *p): one backward pass for each number of the new carry.
        F, J = jax.vmap(pull)(jnp.eye(len(vector), dtype=vector.dtype))
        gradient = structure.flatten_up_to(gradient)
        for i, new in zip(reaching, F, strict=True):
            M, wide = rows[i], rows[i].dtype
            gradient[i] = gradient[i].astype(wide) + _product(d_carry, M)
            rows[i] = _product(J, M) + new.astype(wide)
        return loss, structure.unflatten(gradient), last, structure.unflatten(rows)


def _product(left: Array, M: Array) -> Array:
    """Return ``left @ M`` over the first axis of ``M``, in full precision.

    M begins as zeros, which must not meet a product unseen: see
    `jaxrnn.matrix.chunkwise`.
    """
    M = cpu_optimization_barrier(M)
    return jnp.tensordot(left.astype(M.dtype), M, 1, precision="highest")
