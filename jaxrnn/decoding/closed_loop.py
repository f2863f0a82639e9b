"""Rollouts: a cell that is fed its own outputs, with real-valued inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..core.cell import Cell
from ..core.exported import register_for_export
from ..core.flags import expand_flags
from ..core.layer import Layer, check_cell
from ..core.types import Carry, Context, Inputs, Params, PyTree
from ..core.validation import (
    batch_of_step,
    check_carry,
    check_context,
    check_key_given,
    describe_tree,
)
from ..core.weak_scalars import Number, Size, as_number, as_size
from ..unrolling import check_truncated, initial_carry_of


@register_for_export
class RolledOut(NamedTuple):
    """The result of `rollout`.

    Attributes:
        outputs: ``(N, *B, ...)``, the outputs of the cell.
        inputs: ``(N, *B, D)``, what it read: ``inputs[0]`` is x0, and ``inputs[t]`` was
            fed back from ``outputs[t - 1]`` or is ``targets[t - 1]``.
        carry: the state after the last step; the last output has not been read yet.

    Example:
        >>> import jax, jaxrnn
        >>> layer = jaxrnn.stack(jaxrnn.GRU(8), jaxrnn.layers.dense(2))
        >>> params = layer.init(jax.random.key(0), input_size=2)
        >>> x0 = jax.random.normal(jax.random.key(1), (3, 2))
        >>> result = rollout(layer, params, None, x0, 5)
        >>> bool((result.inputs[1:] == result.outputs[:-1]).all())
        True
    """

    outputs: Any
    inputs: Any
    carry: Carry


def rollout(
    cell: Cell | Layer,
    params: Params,
    carry: Carry,
    x0: Inputs,
    steps: Size,
    *,
    feed: Callable[[Any], Any] | None = None,
    targets: PyTree = None,
    teacher_forcing: Number | None = None,
    context: Context = None,
    key: Array | None = None,
) -> RolledOut:
    """Run a cell in a closed loop, each output the next input::

        s_t, y_t = cell(params, s_{t-1}, x_t),   x_{t+1} = feed(y_t),   x_0 = x0

    It forecasts a series from its last value, or lets a model of a dynamical system run
    freely. With ``targets`` the true inputs take part: at every step and in every row a
    coin decides between the true input and the model's own (scheduled sampling, Bengio
    et al. 2015, arXiv:1506.03099)::

        x_{t+1} = target_t  with probability teacher_forcing,  else feed(y_t)

    All of it is differentiable, and the gradient passes through the inputs that the
    model made itself. To stop it there, as Bengio et al. do, let ``feed`` end in
    ``jax.lax.stop_gradient``.

    Args:
        cell: a cell or a causal layer.
        params: its parameters.
        carry: the carry before the first step, from `unroll` over a prefix for example;
            None is the initial one.
        x0: the first input, ``(*B, D)``, or a pytree as the cell takes it.
        steps: N, at least 1.
        feed: a function from outputs ``(*B, ...)`` to the next inputs, a readout for
            example. It may close over parameters of its own, which then have gradients.
            By default the outputs are the inputs: a stack that ends in
            ``jaxrnn.layers.dense(D)`` needs no ``feed``.
        targets: the true inputs of the next steps, ``(N, *B, D)``: ``targets[t]`` is
            what ``feed(outputs[t])`` should be. The last is never read. None leaves the
            model to itself.
        teacher_forcing: the probability that a true input is read, in [0, 1]: 1 is
            teacher forcing, which is the default with ``targets``, and 0 a closed loop.
            It may be traced, for a schedule.
        context: as for `unroll`.
        key: a random key. It is required for a probability between 0 and 1 or a traced
            one, and by layers that draw random numbers; otherwise none is taken.

    Returns:
        `RolledOut` (outputs, inputs, carry).

    Raises:
        TypeError, ValueError: if inputs, targets, carry or key do not fit, if ``feed``
            returns something unlike x0, or for a probability outside [0, 1].

    Example::

        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> layer = jaxrnn.stack(jaxrnn.GRU(8), jaxrnn.layers.dense(2))
        >>> params = layer.init(jax.random.key(0), input_size=2)
        >>> seen = jax.random.normal(jax.random.key(1), (20, 3, 2))
        >>> carry, ys = jaxrnn.unroll(layer, params, seen)
        >>> rollout(layer, params, carry, ys[-1], 5).outputs.shape
        (5, 3, 2)
    """
    steps = as_size("rollout", "steps", steps)
    check_cell(cell)
    x0 = jax.tree.map(jnp.asarray, x0)
    batch = batch_of_step(x0, cell.feature_ndim)
    check_context(cell, context, batch)
    check_truncated("rollout", cell, params, None, None)
    initial = jax.eval_shape(lambda p: initial_carry_of(cell, p, batch), params)
    if carry is None:
        carry = initial_carry_of(cell, params, batch)
    check_carry(cell, carry, initial, "the carry passed in")
    coins, keys = _drawn(cell, targets, teacher_forcing, key, (steps, *batch))

    def step(carry: Carry, x: Inputs, key: Array | None) -> tuple[Carry, Any, Any]:
        carry, y = cell(params, carry, x, context=context, key=key)
        return carry, y, y if feed is None else feed(y)

    some_key = None if keys is None else keys[0]
    fed = jax.eval_shape(lambda *at: step(*at)[2], carry, x0, some_key)
    _check_like(x0, fed, "feed returns", "give a feed that makes inputs of outputs")
    true = None
    if targets is not None:
        targets = jax.tree.map(jnp.asarray, targets)
        wanted = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((steps, *x.shape), x.dtype), x0
        )
        _check_like(wanted, targets, "targets are", "one true input for each step")
        # The input of step t is the target of step t - 1.
        true = jax.tree.map(
            lambda x, target: jnp.concatenate([x[None], target[:-1]]), x0, targets
        )

    def body(scanned, now):
        carry, own = scanned
        truth, coin, key = now
        x = own if coin is None else _choose(coin, truth, own)
        carry, y, own = step(carry, x, key)
        return (carry, own), (y, x)

    (carry, _), (outputs, inputs) = jax.lax.scan(
        body, (carry, x0), (true, coins, keys), length=steps
    )
    return RolledOut(outputs, inputs, carry)


def _choose(coin: Array, truth: Any, own: Any) -> Any:
    """Select the true input where the coin is True, and the model's own elsewhere."""
    return jax.tree.map(lambda a, b: jnp.where(expand_flags(coin, a), a, b), truth, own)


def _drawn(
    cell: Cell | Layer,
    targets: PyTree,
    teacher_forcing: Number | None,
    key: Any,
    shape: tuple[Any, ...],
) -> tuple[Any, Any]:
    """Return the coins ``(N, *B)`` and a key for each step, or None for either."""
    given = float(targets is not None) if teacher_forcing is None else teacher_forcing
    share = as_number("rollout", "teacher_forcing", given)
    is_static = not isinstance(share, jax.core.Tracer)
    if is_static and share > 1:
        raise ValueError(
            f"rollout: teacher_forcing is a probability in [0, 1], but it is {share}"
        )
    is_certain = is_static and share in (0, 1)
    if targets is None and not (is_static and share == 0):
        raise ValueError(
            "rollout: teacher_forcing decides between the model's own inputs and "
            "targets, but there are none: pass targets=, or leave teacher_forcing out"
        )
    flips = not is_certain
    if flips or cell.requires_key:
        _check_key(cell, key)
    elif key is not None:
        raise ValueError(
            "rollout: nothing is drawn, so leave the key out; it is for a "
            "teacher_forcing between 0 and 1, and for layers that draw random numbers"
        )
    coins = None
    if flips:
        coins = jax.random.bernoulli(jax.random.fold_in(key, 0), share, shape)
    elif targets is not None and share == 1:
        coins = jnp.ones(shape, bool)
    keys = None
    if cell.requires_key:
        keys = jax.random.split(jax.random.fold_in(key, 1), shape[0])
    return coins, keys


def _check_key(cell: Cell | Layer, key: Array | None) -> None:
    """Check that a key is given; the error says what draws random numbers."""
    if key is None:
        what, repair = (
            (
                f"{type(cell).__name__} draws random numbers at every step",
                "; jaxrnn.inference(layer) is the same layer without them",
            )
            if cell.requires_key
            else ("a teacher_forcing between 0 and 1 draws a coin at every step", "")
        )
        raise ValueError(
            f"rollout: {what}, so it needs key=jax.random.key(...){repair}"
        )
    check_key_given("rollout", key)


def _check_like(wanted: Any, got: Any, what: str, repair: str) -> None:
    """Check that a tree has the structure, shapes and dtypes of another."""
    structure: Any = jax.tree.structure(wanted)
    same = structure == jax.tree.structure(got) and all(
        (a.shape, a.dtype) == (b.shape, b.dtype)
        for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(got), strict=True)
    )
    if not same:
        raise ValueError(
            f"rollout: {what} {_described(got)}, but they must be {_described(wanted)} "
            f"as x0 is: {repair}"
        )


def _described(tree: PyTree) -> str:
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(tree)}
    return f"{describe_tree(tree)} of {', '.join(sorted(dtypes))}"
