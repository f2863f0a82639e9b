"""Truncated backpropagation through time, TBPTT(k1, k2): the loss on the newest k1
steps, gradients over the last k2.

Naming of Sutskever (2013, thesis); BPTT(h; h') of Williams & Peng (1990) with h = k2,
h' = k1. Windows end at e = k1, 2 k1, ..., T (the last may be shorter); each begins at
s0 = max(0, min(end of the window before, e - k2)), its carry held constant there. With
``G(t, k)`` the part of the gradient of loss l_t that reaches the parameters as they
were used k steps earlier, the window's gradient is the sum of ``G(t, k)`` over its
newest steps t and all k < t - s0. Every loss counts exactly once. k1 = k2 is what most
programs ship: windows, each with its own loss.

The window is a fixed shape of k2 steps for the whole sequence, so it compiles once: the
steps before the sequence begins are masked, and the state between calls holds the last
k2 - k1 steps beside the carry that stood before them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from ..core.cell import Carry, Params, accumulator, expand_flags, select
from ..core.exported import register_for_export
from ..core.pickling import Static
from ..core.validation import check_positive
from .plan import pad_sequence, window_masks
from .validation import (
    check_axis,
    check_differentiable,
    check_losses,
    check_sequence,
    check_steps,
    check_truncation,
    check_window_is_read,
)


@register_for_export
class Window(NamedTuple):
    """A stretch of a sequence: arrays with time leading, or pytrees of them.

    ``inputs`` and ``targets`` are whatever the losses want, ``(T, *B, ...)``; ``mask``
    and ``resets`` are bool ``(T, *B)`` (None: all steps valid, no resets). `TBPTT`
    fills ``mask``, ``resets`` and ``key`` in before it calls the losses, and
    ``gradient_scale (T, *B)`` if it has a ``truncation``, which draws it.
    """

    inputs: Any
    targets: Any
    mask: Any = None
    resets: Any = None
    key: Any = None
    gradient_scale: Any = None


@register_for_export
class TBPTTState(NamedTuple):
    """What one call hands to the next: the carry k2 - k1 steps back, and those steps.

    ``fresh (*B,)`` is True while a stream's carry is still the one before its first
    step, which is made anew from the parameters in each window, so that a learned
    initial state gets its gradient.
    """

    carry: Carry
    history: Window
    fresh: Bool[Array, "*B"]


@dataclasses.dataclass(frozen=True)
class TBPTT(Static):
    """TBPTT(k1, k2) of any model: windows of one sequence, or of an endless one that
    comes in pieces.

    The methods compile once for each TBPTT and each shape, whether they are called
    eagerly or inside ``jit``. A sequence may come in pieces: where each piece's T is a
    multiple of k1 the windows, and so the gradients, are those of the sequence in one;
    else a short window ends each piece. The layers must be causal: a `bidirectional`
    one has no carry to hand on.

    Args:
        losses: ``losses(params, carry, window) -> (losses (T, *B), carries)``: the loss
            of every step and the carries after every step, as `unroll(...,
            return_carries=True)` gives them. It passes ``window.mask`` and
            ``window.resets`` on to `unroll`. Its parameters are the whole model's, its
            inputs any pytree.
        initial_carry: ``initial_carry(params, batch_shape) -> carry`` before the first
            step.
        k1: newest steps of a window, whose losses count.
        k2: steps of a window over which gradients flow (default k1). k2 >= T is full
            BPTT, whatever k1.
        axis_name: name of a mapped axis (of `jax.shard_map` with ``check_vma=False``,
            say) over which the streams are split: losses, valid steps and gradients are
            summed over it, so that every device has those of the whole batch. Each
            draws its own random numbers, so the noise, if there is any, depends on the
            number of devices.
        truncation: `ARTBP`, to cut each window's gradient at random places as well: the
            losses then pass ``gradient_scale=window.gradient_scale`` on to
            `truncated_unroll` (in place of `unroll`), and ``key`` is needed. The
            expected gradient is that of the same TBPTT without it, so it is unbiased
            where a window reaches the beginning of the sequence, k1 >= T or k2 >= T,
            and only there. Each window is cut anew: nothing is remembered of cuts in
            the window before. It costs noise, and saves neither time nor memory.

    Example::

        def losses(params, carry, window): _, ys, carries = jaxrnn.unroll(cell,
            params["cell"], window.inputs, carry, mask=window.mask,
                                           resets=window.resets, return_carries=True)
            return jnp.square(ys @ params["readout"] - window.targets).mean(-1), carries

        tbptt = jaxrnn.TBPTT(losses, lambda params, batch:
        cell.initial_carry(params["cell"], batch), k1=16, k2=64)
        state = tbptt.init(params, Window(xs, targets), batch_shape=(32,))
        loss, gradients, state = tbptt.value_and_grad(params, Window(xs, targets),
        state)
    """

    losses: Callable[[Params, Carry, Window], tuple[Float[Array, "T *B"], Carry]]
    initial_carry: Callable[[Params, tuple[int, ...]], Carry]
    k1: int
    k2: int = None  # type: ignore[assignment]  # as k1
    axis_name: str | None = None
    truncation: Any = None

    def __post_init__(self):
        check_truncation(self.truncation)
        if self.k2 is None:
            object.__setattr__(self, "k2", self.k1)
        check_positive(self, k1=self.k1, k2=self.k2)
        if self.k2 < self.k1:
            raise ValueError(
                f"TBPTT: k2 = {self.k2} is less than k1 = {self.k1}: the oldest "
                f"{self.k1 - self.k2} of every {self.k1} losses "
                "would get no gradient at all. Take k2 >= k1"
            )

    def init(
        self, params: Params, sequence: Window, batch_shape: tuple[int, ...] = ()
    ) -> TBPTTState:
        """The state before the first step of all streams; ``sequence`` only gives
        the shapes of its arrays.
        """
        overlap = self.k2 - self.k1
        empty = jax.tree.map(
            lambda a: jnp.zeros((overlap, *jnp.shape(a)[1:]), jnp.result_type(a)),
            sequence._replace(key=None),
        )
        flags = jnp.zeros((overlap, *batch_shape), bool)
        return TBPTTState(
            carry=self.initial_carry(params, tuple(batch_shape)),
            history=empty._replace(mask=flags, resets=flags),
            fresh=jnp.ones(batch_shape, bool),
        )

    @functools.partial(jax.jit, static_argnums=0, inline=True)
    def value_and_grad(
        self,
        params: Params,
        sequence: Window,
        state: TBPTTState,
        *,
        key: Array | None = None,
    ) -> tuple[Float[Array, ""], Params, TBPTTState]:
        """Gradients of all windows, summed, with the parameters held still: exact, and
        full BPTT where k2 >= T.

        Returns ``(loss, gradients, state)``: the mean loss over the sequence's valid
        steps (0 if there are none), its truncated gradient, and the state for the
        sequence's continuation.
        """
        _, valid = self._measure(sequence, state, key)
        check_differentiable(params)

        def accumulate(
            total, loss, gradient
        ):  # in float32 at least, also for bfloat16 parameters
            return jax.tree.map(
                lambda t, new: t + new.astype(t.dtype), total, (loss, gradient)
            )

        zero = jax.tree.map(
            lambda p: jnp.zeros(jnp.shape(p), accumulator(p.dtype)), params
        )
        (loss, gradient), state = self._walk(
            lambda _: params,
            accumulate,
            (jnp.zeros((), valid.dtype), zero),
            sequence,
            state,
            key,
        )
        loss, gradient = self._sum((loss, gradient))
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
        opt_state: Any,
        sequence: Window,
        state: TBPTTState,
        *,
        key: Array | None = None,
    ) -> tuple[Params, Any, Float[Array, ""], TBPTTState]:
        """One optax update after every window: online, each carry having been made with
        slightly older parameters.

        A window's gradient is divided by the mean number of valid steps per window, not
        by its own number, so that a short last window weighs as little as it should: at
        a vanishing learning rate the updates add up to the number of windows times the
        gradient of the sequence's mean loss.

        Returns ``(params, opt_state, loss, state)``, the loss being the mean over valid
        steps, each under the parameters of its own window.
        """
        count, valid = self._measure(sequence, state, key)

        def update(total, loss, gradient):
            params, opt_state, sum_of_losses = total
            loss, gradient = self._sum((loss, gradient))
            gradient = jax.tree.map(
                lambda g: g * (count / valid).astype(jnp.finfo(g.dtype).dtype), gradient
            )
            change, opt_state = optimizer.update(gradient, opt_state, params)
            return optax.apply_updates(params, change), opt_state, sum_of_losses + loss

        zero = (params, opt_state, jnp.zeros((), valid.dtype))
        (params, opt_state, loss), state = self._walk(
            lambda total: total[0], update, zero, sequence, state, key
        )
        return params, opt_state, loss / valid, state

    def _measure(
        self, sequence: Window, state: TBPTTState, key: Array | None
    ) -> tuple[int, Float[Array, ""]]:
        """The number of windows, and the number of valid steps (at least 1, so that
        an empty batch has loss 0).
        """
        check_axis(self.axis_name, state.fresh)
        check_truncation(self.truncation, sequence, key)
        check_sequence(
            sequence, state, self.k1, self.k2, steps := check_steps(sequence)
        )
        valid = (
            steps * state.fresh.size
            if sequence.mask is None
            else jnp.sum(sequence.mask)
        )
        valid = self._sum(jnp.asarray(valid, jnp.result_type(float)))
        return -(-steps // self.k1), jnp.maximum(valid, 1)

    def _sum(self, tree: Any) -> Any:
        """``tree`` summed over the devices that hold parts of the batch."""
        return tree if self.axis_name is None else jax.lax.psum(tree, self.axis_name)

    def _own(self, key: Array | None) -> Array | None:
        """The key of this device: were it the same on all, their streams would get
        the same noise.
        """
        if (
            key is not None
            and self.axis_name is not None
            and jax.lax.axis_size(self.axis_name) > 1
        ):
            key = jax.random.fold_in(key, jax.lax.axis_index(self.axis_name))
        return key

    def _with_randomness(self, window: Window, key: Array | None) -> Window:
        """``window`` with the key that its losses draw from, and a gradient scale if
        there is a truncation.
        """
        if self.truncation is None or key is None:
            return window._replace(key=key)
        key, cuts = jax.random.split(key)
        scale = self.truncation.sample(
            cuts,
            window.mask.shape[0],
            window.mask.shape[1:],
            window.mask,
            window.resets,
        )
        return window._replace(key=key, gradient_scale=scale)

    def _window_loss(
        self, params: Params, carry: Carry, window: Window, newest: Array, fresh: Array
    ):
        """The sum of the newest valid losses, and the carries; the carry of a fresh
        stream comes from the parameters.
        """
        carry = select(
            fresh, self.initial_carry(params, fresh.shape), jax.lax.stop_gradient(carry)
        )
        losses, carries = self.losses(params, carry, window)
        check_losses(losses, carries, carry, window.mask)
        counts = window.mask & expand_flags(newest, window.mask)
        return jnp.where(counts, losses, 0).astype(
            accumulator(losses.dtype)
        ).sum(), carries

    def _walk(
        self,
        params_of,
        fold,
        total,
        sequence: Window,
        state: TBPTTState,
        key: Array | None,
    ):
        """Window after window: ``total = fold(total, loss, gradient)``, in one scan
        with one shape.
        """
        k1, k2, steps = self.k1, self.k2, check_steps(sequence)
        if steps == 0:
            return total, state
        sequence, key = pad_sequence(sequence, steps, state.fresh.shape), self._own(key)
        if k2 > k1 or self.truncation is not None:
            whole = self._with_randomness(sequence, key)
            check_window_is_read(
                self.losses, params_of(total), state.carry, whole, overlap=k2 > k1
            )
        padded = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b]), state.history, sequence
        )  # row k2 - k1 is step 0
        if (
            steps < k1
        ):  # shorter than one window: masked steps at its end make the shape, and nothing else  # noqa: E501
            padded = jax.tree.map(
                lambda a: jnp.pad(a, [(0, k1 - steps)] + [(0, 0)] * (a.ndim - 1)),
                padded,
            )
        loss_and_gradient = jax.value_and_grad(self._window_loss, has_aux=True)

        def one(loop, now):
            total, carry, fresh = loop
            index, start, newest, advance = now
            window = jax.tree.map(
                lambda a: jax.lax.dynamic_slice_in_dim(a, start, k2), padded
            )
            window = self._with_randomness(
                window, None if key is None else jax.random.fold_in(key, index)
            )
            is_new = jnp.arange(k2) >= k2 - newest
            (loss, carries), gradient = loss_and_gradient(
                params_of(total), carry, window, is_new, fresh
            )
            carry = jax.tree.map(
                lambda a: jax.lax.dynamic_index_in_dim(a, advance - 1, keepdims=False),
                carries,
            )
            passed = window.mask & expand_flags(jnp.arange(k2) < advance, window.mask)
            fresh = fresh & ~passed.any(0)
            return (
                fold(total, loss.astype(jnp.result_type(float)), gradient),
                carry,
                fresh,
            ), None

        (total, carry, fresh), _ = jax.lax.scan(
            one, (total, state.carry, state.fresh), window_masks(k1, steps)
        )
        history = jax.tree.map(lambda a: a[steps : steps + k2 - k1], padded)
        return total, TBPTTState(carry, history, fresh)
