"""Truncated backpropagation through time, TBPTT(k1, k2).

Every k1 steps the losses of the newest k1 steps are backpropagated over the last k2.
The names are those of Sutskever (2013, thesis); it is BPTT(h; h') of Williams & Peng
(1990) with h = k2 and h' = k1.

Definition. Windows end at e = k1, 2 k1, ..., T, where the last may be shorter. Each
begins at s0 = max(0, min(e', e - k2)) with e' the end of the window before, and its
carry is constant there. Let ``G(t, k)`` be the part of the gradient of loss l_t that
reaches the parameters as they were used k steps earlier::

    G(t, k) = dl_t/ds_t J_t J_{t-1} ... J_{t-k+1} F_{t-k}
    J_t = ds_t/ds_{t-1}       F_t = ds_t/dtheta with s_{t-1} constant

    gradient of a window = sum over e' < t <= e and 0 <= k < t - s0 of G(t, k)

Every loss counts exactly once. With k1 = k2, the common choice, windows do not overlap;
with k2 >= T the sum of all windows is the full gradient.

Implementation. A window always has k2 steps, so that it compiles once: the steps before
the sequence begins are masked, and the state between calls holds the last k2 - k1 steps
together with the carry before them.
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

from ..core.dtypes import accumulator
from ..core.exported import register_for_export
from ..core.flags import expand_flags, select
from ..core.pickling import Static
from ..core.types import Carry, Params, PyTree
from ..core.validation import check_positive
from .plan import pad_sequence, window_masks
from .validation import (
    check_axis,
    check_differentiable,
    check_losses,
    check_losses_function,
    check_sequence,
    check_steps,
    check_truncation,
    check_window_is_read,
)


@register_for_export
class Window(NamedTuple):
    """A sequence or a part of it: pytrees of arrays with time leading.

    `TBPTT` fills in ``mask``, ``resets`` and ``key`` before it calls the losses, and
    ``gradient_scale`` if it has a ``truncation``.

    Args:
        inputs: arrays ``(T, *B, ...)`` that the losses read.
        targets: arrays ``(T, *B, ...)`` that the losses read.
        mask: bool ``(T, *B)``, False at masked steps. None: all steps are valid.
        resets: bool ``(T, *B)``, True where a new sequence begins. None: no resets.
        key: filled in by `TBPTT`, a key for the window's random numbers or None.
        gradient_scale: filled in by `TBPTT`, ``(T, *B)`` or None; it is drawn by the
            truncation.
        context: a pytree of arrays ``(*B, ...)`` that are the same in every window, for
            losses that pass ``context=window.context`` on to `unroll`. None: there is
            none.

    Example::

        >>> import jax.numpy as jnp
        >>> window = Window(inputs=jnp.ones((6, 2, 3)), targets=jnp.ones((6, 2)))
        >>> window.mask is None
        True
    """

    inputs: Any
    targets: Any
    mask: Any = None
    resets: Any = None
    key: Any = None
    gradient_scale: Any = None
    context: Any = None


@register_for_export
class TBPTTState(NamedTuple):
    """The state of `TBPTT` between calls: a carry, and the steps since that carry.

    Attributes:
        carry: the carry k2 - k1 steps before the end, ``(*B, ...)`` per leaf.
        history: these k2 - k1 steps, a `Window`; masked before the first step.
        fresh: ``(*B,)``, True as long as a sequence's carry is the one before its first
            step. That one is computed from the parameters in each window, so that a
            learned initial state gets its gradient.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> def losses(w, h, window):  # h_t = w h_{t-1} + x_t; the loss is h_t
        ...     hs = jax.lax.scan(lambda h, x: (w * h + x,) * 2, h, window.inputs)[1]
        ...     return hs, hs
        >>> tbptt = jaxrnn.TBPTT(losses, lambda w, batch: jnp.zeros(batch), k1=2, k2=4)
        >>> state = tbptt.init(jnp.float32(0.5), jaxrnn.Window(jnp.ones(8), None))
        >>> state.history.inputs.shape, state.history.mask.tolist(), bool(state.fresh)
        ((2,), [False, False], True)
    """

    carry: Carry
    history: Window
    fresh: Bool[Array, "*B"]


@dataclasses.dataclass(frozen=True)
class TBPTT(Static):
    """TBPTT(k1, k2) of any model, for a sequence given whole or in pieces.

    Every k1 steps, the losses of the newest k1 steps are backpropagated over the last
    k2 steps. With ``G(t, k)`` the part of the gradient of loss l_t that reaches the
    parameters as they were used k steps earlier::

        gradient = sum_t sum_{0 <= k < t - s0(t)} G(t, k)

    where s0(t) is the beginning of the window in which l_t counts, k2 steps before its
    end. Time grows with k2 / k1, memory with k2 instead of T. k2 = k1 is the cheapest,
    but then a loss early in its window reaches only a few steps back; with k2 > k1
    every loss reaches at least k2 - k1 steps back.

    Use `value_and_grad` for gradients of the whole sequence with fixed parameters, and
    `update` for one optimizer update after each window.

    The methods compile once for each TBPTT and each shape, whether they are called
    eagerly or inside ``jit``. A sequence may be given in pieces, with the state of one
    call passed to the next. If each piece's T is a multiple of k1, the windows, and
    therefore the gradients, are those of the whole sequence; otherwise a short window
    ends each piece. The layers must be causal: a `bidirectional` layer has no carry to
    pass on.

    Args:
        losses: ``losses(params, carry, window) -> (losses (T, *B), carries)``, the loss
            of every step and the carries after every step, as `unroll(...,
            return_carries=True)` returns them. It must pass ``window.mask`` and
            ``window.resets`` on to `unroll`. ``params`` are those of the whole model,
            and the window's inputs may be any pytree.
        initial_carry: ``initial_carry(params, batch_shape) -> carry``, the carry before
            the first step.
        k1: the number of new steps of a window, whose losses count.
        k2: the number of steps of a window, over which gradients flow (default: k1). k2
            >= T is full BPTT, whatever k1.
        axis_name: the name of a mapped axis over which the batch is split, for example
            that of `jax.shard_map` with ``check_vma=False``. Losses, valid steps and
            gradients are summed over it, so that every device has those of the whole
            batch. Each device draws its own random numbers, so noise, if there is any,
            depends on the number of devices.
        truncation: an `ARTBP`, to cut the gradient of each window at random steps as
            well. The losses must then pass ``gradient_scale=window.gradient_scale`` on
            to `truncated_unroll` (in place of `unroll`), and the methods need ``key``.
            The expected gradient is that of the same TBPTT without truncation, so it is
            unbiased if windows reach the beginning of the sequence (k1 >= T or k2 >=
            T), and only then. Each window is cut independently of the one before. It
            adds noise, and saves neither time nor memory.

    Raises:
        TypeError: if ``losses`` is no function, or if ``truncation`` is neither None
            nor an `ARTBP`.
        ValueError: if k1 or k2 is no int of at least 1, or if k2 < k1.

    Example::

        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.GRU(4)
        >>> def losses(params, carry, window):
        ...     flags = {"mask": window.mask, "resets": window.resets}
        ...     _, ys, carries = jaxrnn.unroll(
        ...         cell, params, window.inputs, carry, return_carries=True, **flags
        ...     )
        ...     return jnp.square(ys - window.targets).mean(-1), carries
        >>> tbptt = jaxrnn.TBPTT(losses, cell.initial_carry, k1=4, k2=6)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> sequence = jaxrnn.Window(jnp.ones((8, 2, 3)), jnp.zeros((8, 2, 4)))
        >>> state = tbptt.init(params, sequence, batch_shape=(2,))
        >>> loss, gradient, state = tbptt.value_and_grad(params, sequence, state)
        >>> loss.shape, gradient["bias"].shape, state.history.inputs.shape
        ((), (12,), (2, 2, 3))
    """

    losses: Callable[[Params, Carry, Window], tuple[Float[Array, "T *B"], Carry]]
    initial_carry: Callable[[Params, tuple[int, ...]], Carry]
    k1: int
    k2: int = None  # type: ignore[assignment]  # `__post_init__` sets it to k1
    axis_name: str | None = None
    truncation: Any = None

    def __post_init__(self):
        check_losses_function(self.losses)
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
        """Return the state before the first step of all sequences.

        Args:
            params: the parameters of the model.
            sequence: a `Window`, of which only the shapes and dtypes are used.
            batch_shape: the batch axes ``*B``.

        Returns:
            A `TBPTTState` with the initial carry and a masked history.
        """
        overlap = self.k2 - self.k1
        empty = jax.tree.map(
            lambda a: jnp.zeros((overlap, *jnp.shape(a)[1:]), jnp.result_type(a)),
            sequence._replace(key=None, context=None),
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
        """Compute the loss and its truncated gradient with fixed parameters.

        The gradients of all windows are summed. The result is exactly the sum in the
        class docstring, and the gradient of full BPTT if k2 >= T.

        Args:
            params: the parameters of the model, floating-point.
            sequence: a `Window` with arrays ``(T, *B, ...)``.
            state: from `init`, or from the call for the piece before.
            key: a `jax.random` key if the losses draw random numbers or there is a
                truncation.

        Returns:
            ``(loss, gradient, state)``: the mean loss over the sequence's valid steps
            (0 if there are none), its truncated gradient, a pytree like ``params``, and
            the state for the sequence's continuation.

        Raises:
            TypeError, ValueError: if the sequence does not fit the state, if ``losses``
                does not return what it must, or if a parameter is not floating-point.
        """
        _, valid = self._measure(sequence, state, key)
        check_differentiable(params)

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
        opt_state: PyTree,
        sequence: Window,
        state: TBPTTState,
        *,
        key: Array | None = None,
    ) -> tuple[Params, Any, Float[Array, ""], TBPTTState]:
        """Apply one optax update after every window, which is online training.

        Each carry was then computed with slightly older parameters.

        A window's gradient is divided by the mean number of valid steps per window
        instead of its own number, so that a short last window has the weight of its
        steps: for a vanishing learning rate the updates add up to the number of windows
        times the gradient of the sequence's mean loss.

        Args:
            optimizer: an optax gradient transformation.
            params: the parameters of the model.
            opt_state: the optimizer's state, from ``optimizer.init(params)``.
            sequence: a `Window` with arrays ``(T, *B, ...)``.
            state: from `init`, or from the call for the piece before.
            key: a `jax.random` key if the losses draw random numbers or there is a
                truncation.

        Returns:
            ``(params, opt_state, loss, state)``, where the loss is the mean over valid
            steps, each under the parameters of its own window.

        Raises:
            TypeError, ValueError: as `value_and_grad`.
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
        (params, opt_state, loss), state = self._scan_windows(
            lambda total: total[0], update, zero, sequence, state, key
        )
        return params, opt_state, loss / valid, state

    def _measure(
        self, sequence: Window, state: TBPTTState, key: Array | None
    ) -> tuple[int, Float[Array, ""]]:
        """Return the number of windows and the number of valid steps.

        The latter is at least 1, so that a batch without valid steps has loss 0.
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

    def _sum(self, tree: PyTree) -> Any:
        """Sum ``tree`` over the devices that hold parts of the batch."""
        return tree if self.axis_name is None else jax.lax.psum(tree, self.axis_name)

    def _own(self, key: Array | None) -> Array | None:
        """Return a key of this device's own.

        With the same key all devices would draw the same noise for their parts of the
        batch.
        """
        if (
            key is not None
            and self.axis_name is not None
            and jax.lax.axis_size(self.axis_name) > 1
        ):
            key = jax.random.fold_in(key, jax.lax.axis_index(self.axis_name))
        return key

    def _with_randomness(self, window: Window, key: Array | None) -> Window:
        """Add the key for the losses, and a gradient scale if there is a truncation."""
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
        """Return the sum of the valid losses of the newest steps, and all carries."""
        # The carry is constant, except that before a sequence's first step, which the
        # parameters determine (s0 = 0 in the definition).
        carry = select(
            fresh, self.initial_carry(params, fresh.shape), jax.lax.stop_gradient(carry)
        )
        losses, carries = self.losses(params, carry, window)
        check_losses(losses, carries, carry, window.mask)
        counts = window.mask & expand_flags(newest, window.mask)
        return jnp.where(counts, losses, 0).astype(
            accumulator(losses.dtype)
        ).sum(), carries

    def _scan_windows(
        self,
        params_of,
        fold,
        total,
        sequence: Window,
        state: TBPTTState,
        key: Array | None,
    ):
        """Scan over the windows: ``total = fold(total, loss, gradient)`` for each.

        Args:
            params_of: the parameters for a window, from ``total``.
            fold: combines ``total`` with the loss and gradient of one window.
            total: the first value, a pytree.
            sequence, state, key: as in `value_and_grad`.

        Returns:
            The last ``total``, and the state after the sequence.
        """
        k1, k2, steps = self.k1, self.k2, check_steps(sequence)
        if steps == 0:
            return total, state
        context, key = sequence.context, self._own(key)
        padded = self._padded(params_of(total), sequence, state, key)
        loss_and_gradient = jax.value_and_grad(self._window_loss, has_aux=True)

        # The scan's carry holds the cell's carry before the window's first step, and
        # whether it is still the initial one.
        def body(scan_carry, window_index):
            total, carry, fresh = scan_carry
            index, start, new_steps, advance = window_index
            window = jax.tree.map(
                lambda a: jax.lax.dynamic_slice_in_dim(a, start, k2), padded
            )
            window = self._with_randomness(
                window._replace(context=context),
                None if key is None else jax.random.fold_in(key, index),
            )
            is_new = jnp.arange(k2) >= k2 - new_steps
            (loss, carries), gradient = loss_and_gradient(
                params_of(total), carry, window, is_new, fresh
            )
            # The next window starts `advance` steps later, from the carry before its
            # first step, which is the carry after step advance - 1 of this window.
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
            body, (total, state.carry, state.fresh), window_masks(k1, steps)
        )
        history = jax.tree.map(lambda a: a[steps : steps + k2 - k1], padded)
        return total, TBPTTState(carry, history, fresh)

    def _padded(
        self, params: Params, sequence: Window, state: TBPTTState, key: Array | None
    ) -> Window:
        """Return the history and the sequence as one, of at least one window.

        The history has k2 - k1 steps, so row k2 - k1 of the result is step 0. There is
        no context in it.

        Raises:
            ValueError: if the losses ignore the mask or the gradient scale of a window.
        """
        k1, k2, steps = self.k1, self.k2, check_steps(sequence)
        context = sequence.context
        sequence = pad_sequence(
            sequence._replace(context=None), steps, state.fresh.shape
        )
        if k2 > k1 or self.truncation is not None:
            whole_sequence = self._with_randomness(sequence, key)
            check_window_is_read(
                self.losses,
                params,
                state.carry,
                whole_sequence._replace(context=context),
                overlap=k2 > k1,
            )
        padded = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b]), state.history, sequence
        )
        if steps >= k1:
            return padded
        # The sequence is shorter than one window. Masked steps fill it up; they give
        # the window its shape and have no other effect.
        return jax.tree.map(
            lambda a: jnp.pad(a, [(0, k1 - steps)] + [(0, 0)] * (a.ndim - 1)), padded
        )
