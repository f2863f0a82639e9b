"""Gradients that go forward in time with the losses, window by window.

The base of `RTRL` and `UORO`: the words and methods of `jaxrnn.TBPTT`, and the loop
over a sequence's windows. A subclass says how the influence of the parameters on the
carry is kept, and what one window of one stream adds to it.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from ..core.dtypes import accumulator
from ..core.exported import register_for_export
from ..core.flags import select
from ..core.pickling import Static
from ..core.real_vectors import (
    WHOLE_CARRY,
    check_inexact,
    features,
    from_features,
)
from ..core.types import Carry, Params, PyTree
from ..core.validation import check_positive, describe_tree
from ..truncation.plan import pad_sequence
from ..truncation.tbptt import Window
from ..truncation.validation import (
    check_differentiable,
    check_losses,
    check_losses_function,
    check_steps,
    check_streams,
    check_untracked,
)


@register_for_export
class OnlineState(NamedTuple):
    """The state of `RTRL` or `UORO` between calls.

    Attributes:
        carry: the carry after the last step, ``(*B, ...)`` per leaf.
        influence: what is kept of the derivative of that carry by the parameters; the
            class that made the state says in which form.
        fresh: ``(*B,)``, True as long as a stream's carry is the one before its first
            step. That one is computed from the parameters, so that a learned initial
            state gets its gradient.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn, jaxrnn.online
        >>> def losses(params, h, window):  # h_t = w h_{t-1} + x_t; the loss is h_t
        ...     def step(h, x):
        ...         return (params["w"] * h + x,) * 2
        ...     hs = jax.lax.scan(step, h, window.inputs)[1]
        ...     return hs, hs
        >>> rtrl = jaxrnn.online.RTRL(losses, lambda w, batch: jnp.zeros(batch), k1=1)
        >>> params, window = {"w": jnp.float32(0.5)}, jaxrnn.Window(jnp.ones(2), None)
        >>> _, _, state = rtrl.value_and_grad(params, window, rtrl.init(params, window))
        >>> float(state.carry), state.influence["w"].tolist(), bool(state.fresh)
        (1.5, [1.0], False)
    """

    carry: Carry
    influence: Any
    fresh: Bool[Array, "*B"]


class Stream(NamedTuple):
    """One window of one stream, with batch axes of size 1, and what came before it."""

    window: Window
    carry: Carry
    fresh: Array
    key: Any

    @property
    def vector(self) -> Array:
        """The carry before the window as a real vector ``(n,)``."""
        return features(self.carry, self.fresh.ndim).reshape(-1)


@dataclasses.dataclass(frozen=True)
class AbstractWindows(Static, abc.ABC):
    """What `RTRL` and `UORO` share: see there for the arguments."""

    losses: Callable[[Params, Carry, Window], tuple[Float[Array, "T *B"], Carry]]
    initial_carry: Callable[[Params, tuple[int, ...]], Carry]
    k1: int
    _: dataclasses.KW_ONLY
    max_bytes: int = 2**32

    def __post_init__(self):
        check_losses_function(self.losses, self._who)
        check_positive(self, k1=self.k1, max_bytes=self.max_bytes)

    @property
    def _who(self) -> str:
        return type(self).__name__

    @abc.abstractmethod
    def _influence_of(self, influence: Any) -> tuple[Any, int]:
        """Return what is kept for each parameter, and its axes before those of it."""

    @abc.abstractmethod
    def _no_influence(
        self, params: Params, carry: Carry, window: Window, batch: tuple[int, ...]
    ) -> Any:
        """Return the influence on a constant carry, ``(*B, ...)`` per leaf."""

    @abc.abstractmethod
    def _pass(
        self, params: Params, influence: Any, stream: Stream
    ) -> tuple[Array, Params, Carry, Any]:
        """Return the loss, its gradient, the last carry and the new influence."""

    def init(
        self, params: Params, sequence: Window, batch_shape: tuple[int, ...] = ()
    ) -> OnlineState:
        """Return the state before the first step of all sequences.

        Args:
            params: the parameters of the model, floating-point.
            sequence: a `jaxrnn.Window`, of which only the shapes and dtypes are used.
            batch_shape: the batch axes ``*B``.

        Returns:
            An `OnlineState` with the initial carry.

        Raises:
            TypeError: if a parameter or a part of the carry is not floating-point.
            ValueError: if the sequence has other batch axes, or if the influence
                takes more than ``max_bytes``.
        """
        batch = tuple(batch_shape)
        check_differentiable(params, self._who)
        check_untracked((params, sequence), self._who)
        check_streams(sequence, batch, check_steps(sequence, self._who), self._who)
        carry = self.initial_carry(params, batch)
        check_inexact(f"{self._who}: carry", carry, WHOLE_CARRY)
        if not jax.tree.leaves(carry):
            raise ValueError(
                f"{self._who}: initial_carry returns no arrays, so there is no carry "
                f"that parameters could influence"
            )
        influence = self._no_influence(params, carry, sequence, batch)
        return OnlineState(carry, influence, jnp.ones(batch, bool))

    @functools.partial(jax.jit, static_argnums=0, inline=True)
    def value_and_grad(
        self,
        params: Params,
        sequence: Window,
        state: OnlineState,
        *,
        key: Array | None = None,
    ) -> tuple[Float[Array, ""], Params, OnlineState]:
        """Compute the loss and its gradient with fixed parameters.

        The gradient is that of the losses of this sequence by the parameters, as they
        were used at every step since the state was made by `init`.

        Args:
            params: the parameters of the model, floating-point.
            sequence: a `jaxrnn.Window` with arrays ``(T, *B, ...)``.
            state: from `init`, or from the call for the piece before.
            key: a `jax.random` key if random numbers are drawn. Every stream draws its
                own.

        Returns:
            ``(loss, gradient, state)``: the mean loss over the sequence's valid steps
            (0 if there are none), its gradient, a pytree like ``params``, and the state
            for the sequence's continuation.

        Raises:
            TypeError, ValueError: if the sequence does not fit the state, if ``losses``
                does not return what it must, or if a parameter is not floating-point.
        """
        _, valid = self._measure(params, sequence, state, key)

        # Sums are kept in float32 or wider, also for bfloat16 parameters.
        def accumulate(total, loss, gradient):
            return jax.tree.map(
                lambda t, new: t + new.astype(t.dtype), total, (loss, gradient)
            )

        zero = jax.tree.map(
            lambda p: jnp.zeros(jnp.shape(p), accumulator(p.dtype)), params
        )
        (loss, gradient), state = self._scan_windows(
            lambda _: params,
            accumulate,
            (jnp.zeros((), valid.dtype), zero),
            sequence,
            state,
            key,
        )
        gradient = jax.tree.map(
            lambda g, p: (g / valid.astype(jnp.finfo(g.dtype).dtype)).astype(p.dtype),
            gradient,
            params,
        )
        return loss / valid, gradient, state

    @functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
    def update(
        self,
        optimizer: optax.GradientTransformation,
        params: Params,
        opt_state: PyTree,
        sequence: Window,
        state: OnlineState,
        *,
        key: Array | None = None,
    ) -> tuple[Params, Any, Float[Array, ""], OnlineState]:
        """Apply one optax update after every window, which is online training.

        The carry and the influence were then computed with slightly older parameters,
        so the gradient is exact in the limit of a small learning rate only. A window's
        gradient is divided by the mean number of valid steps per window, as by
        `jaxrnn.TBPTT.update`.

        Args:
            optimizer: an optax gradient transformation.
            params: the parameters of the model.
            opt_state: the optimizer's state, from ``optimizer.init(params)``.
            sequence: a `jaxrnn.Window` with arrays ``(T, *B, ...)``.
            state: from `init`, or from the call for the piece before.
            key: a `jax.random` key if random numbers are drawn.

        Returns:
            ``(params, opt_state, loss, state)``, where the loss is the mean over valid
            steps, each under the parameters of its own window.

        Raises:
            TypeError, ValueError: as `value_and_grad`.
        """
        count, valid = self._measure(params, sequence, state, key)

        def update(total, loss, gradient):
            params, opt_state, sum_of_losses = total
            gradient = jax.tree.map(
                lambda g, p: (
                    g * (count / valid).astype(jnp.finfo(g.dtype).dtype)
                ).astype(p.dtype),
                gradient,
                params,
            )
            change, opt_state = optimizer.update(gradient, opt_state, params)
            return optax.apply_updates(params, change), opt_state, sum_of_losses + loss

        zero = (params, opt_state, jnp.zeros((), valid.dtype))
        (params, opt_state, loss), state = self._scan_windows(
            lambda total: total[0], update, zero, sequence, state, key
        )
        return params, opt_state, loss / valid, state

    def _measure(
        self, params: Params, sequence: Window, state: OnlineState, key: Array | None
    ) -> tuple[int, Float[Array, ""]]:
        """Return the number of windows and of valid steps, which is at least 1."""
        if not isinstance(state, OnlineState):
            raise TypeError(
                f"{self._who}: the state must be an OnlineState, but it is "
                f"{describe_tree(state)}: make it by init of this {self._who}"
            )
        check_differentiable(params, self._who)
        check_untracked((params, sequence, state), self._who)
        steps, batch = check_steps(sequence, self._who), state.fresh.shape
        check_streams(sequence, batch, steps, self._who)
        self._check_influence(params, state)
        if sequence.gradient_scale is not None:
            raise ValueError(
                f"{self._who}: the sequence holds a gradient_scale, which would be "
                f"ignored: leave it out, or use jaxrnn.TBPTT(..., truncation=)"
            )
        valid = (
            steps * state.fresh.size
            if sequence.mask is None
            else jnp.sum(sequence.mask)
        )
        return -(-steps // self.k1), jnp.maximum(
            jnp.asarray(valid, jnp.result_type(float)), 1
        )

    def _check_influence(self, params: Params, state: OnlineState) -> None:
        """Check that a state is one of this method and of these parameters."""
        rows, axes = self._influence_of(state.influence)
        ndim = state.fresh.ndim + axes
        found: Any = jax.tree.structure(rows)
        if found != jax.tree.structure(params) or any(
            jnp.shape(row)[ndim:] != jnp.shape(p)
            for row, p in zip(
                jax.tree.leaves(rows), jax.tree.leaves(params), strict=True
            )
        ):
            raise ValueError(
                f"{self._who}: the state is that of another method or of other "
                f"parameters: its influence is {describe_tree(state.influence)}, and "
                f"the parameters are {describe_tree(params)}. Make it by init of this "
                f"{self._who}"
            )

    def _passed(self, params: Params, stream: Stream, vector: Array) -> Any:
        """Return a window's loss, and the carry after it as a vector and as it is.

        Args:
            params: the parameters.
            stream: the window, and what came before it.
            vector: the carry before it, as a vector in place of ``stream.carry``.
        """
        window, fresh, ndim = stream.window, stream.fresh, stream.fresh.ndim
        carry = from_features(vector.reshape((1,) * ndim + (-1,)), stream.carry, ndim)
        # Before a stream's first step the parameters determine the carry.
        carry = select(fresh, self.initial_carry(params, fresh.shape), carry)
        losses, carries = self.losses(params, carry, window)
        check_losses(losses, carries, carry, window.mask, self._who)
        loss = jnp.where(window.mask, losses, 0).astype(accumulator(losses.dtype)).sum()
        last = jax.tree.map(lambda a: a[-1], carries)
        return loss, features(last, ndim).reshape(-1), last

    def _scan_windows(
        self,
        params_of: Callable,
        fold: Callable,
        total: Any,
        sequence: Window,
        state: OnlineState,
        key: Array | None,
    ) -> tuple[Any, OnlineState]:
        """Scan over the windows: ``total = fold(total, loss, gradient)`` for each.

        A last window of fewer than k1 steps is computed after the others.
        """
        steps, batch = check_steps(sequence, self._who), state.fresh.shape
        context, sequence = sequence.context, sequence._replace(context=None)
        sequence = pad_sequence(sequence, steps, batch)

        def body(before, part):
            total, state = before
            index, window = part
            window_key = None if key is None else jax.random.fold_in(key, index)
            loss, gradient, state = self._all_streams(
                params_of(total), window._replace(context=context), state, window_key
            )
            return (fold(total, loss, gradient), state), None

        whole = steps // self.k1
        after: Any = (total, state)
        if whole:
            parts = jax.tree.map(
                lambda a: a[: whole * self.k1].reshape(whole, self.k1, *a.shape[1:]),
                sequence,
            )
            after, _ = jax.lax.scan(body, after, (jnp.arange(whole), parts))
        if steps % self.k1:
            rest = jax.tree.map(lambda a: a[whole * self.k1 :], sequence)
            after, _ = body(after, (whole, rest))
        return after

    def _all_streams(
        self, params: Params, window: Window, state: OnlineState, key: Array | None
    ) -> tuple[Array, Params, OnlineState]:
        """Return the loss and gradient of a window, summed over the streams."""
        batch = state.fresh.shape
        ndim, streams = len(batch), math.prod(batch)
        ones = (1,) * ndim

        def apart(tree, lead):
            """Move the streams to the front: ``(S, *lead, 1, ..., ...)``."""
            return jax.tree.map(
                lambda a: jnp.moveaxis(
                    a.reshape(*a.shape[:lead], streams, *ones, *a.shape[lead + ndim :]),
                    lead,
                    0,
                ),
                tree,
            )

        stream = Stream(
            apart(window._replace(context=None), 1)._replace(
                context=apart(window.context, 0)
            ),
            apart(state.carry, 0),
            apart(state.fresh, 0),
            None
            if key is None
            else (jax.random.split(key, streams) if batch else key[None]),
        )
        influence = jax.tree.map(
            lambda a: a.reshape(streams, *a.shape[ndim:]), state.influence
        )

        def one(influence, stream):
            return self._pass(params, influence, stream)

        loss, gradient, carry, influence = jax.vmap(one)(influence, stream)
        together = OnlineState(
            jax.tree.map(lambda a: a.reshape(*batch, *a.shape[1 + ndim :]), carry),
            jax.tree.map(lambda a: a.reshape(*batch, *a.shape[1:]), influence),
            state.fresh & ~window.mask.any(0),
        )
        gradient = jax.tree.map(lambda a: a.sum(0), gradient)
        return loss.sum().astype(jnp.result_type(float)), gradient, together
