"""Beam search: the likeliest sequences a model can write, by one-step calls inside
one loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from ..core.arrays import is_array
from ..core.cell import Carry
from ..core.exported import register_for_export
from ..core.validation import check_carry, check_int, describe
from ..core.weak_scalars import Number, Size, as_number, as_size


@register_for_export
class Beams(NamedTuple):
    """What `beam_search` returns: ``width`` hypotheses, the best one first.

    ``tokens (N, *B, W)``, ``end`` from where a hypothesis ended; ``lengths (*B, W)``,
    tokens before ``end``; ``scores (*B, W)``, by which they are ranked; -inf where
    there were fewer than ``width`` hypotheses.
    """

    tokens: Integer[Array, "N *B W"]
    lengths: Integer[Array, "*B W"]
    scores: Float[Array, "*B W"]


class _Search(NamedTuple):
    """The loop's variables; the axis of the beam, W, stands after the batch axes."""

    n: Array
    carry: Carry
    tokens: Array  # (*B, W, N)
    logp: Array  # (*B, W)
    lengths: Array  # (*B, W), tokens written, ``end`` counted in
    done: Array  # (*B, W)
    greedy: Array  # (*B, W), the one hypothesis that always took the likeliest symbol


def beam_search(
    step: Callable[[Carry, Integer[Array, "*B"]], tuple[Carry, Float[Array, "*B V"]]],
    carry: Carry,
    start: Integer[Array, "*B"],
    *,
    end: Size,
    width: Size,
    length: Size,
    length_penalty: Number = 0.0,
) -> Beams:
    """Write up to ``length`` tokens after ``start``, keeping the ``width`` likeliest
    hypotheses at each step.

    A hypothesis y of n tokens, ``end`` counted in, is ranked by (Wu et al. 2016, eq.
    14, with their (5 + n)/6 as n)::

        score(y) = sum_t log p(y_t | y_<t) / n ** length_penalty

    One that has ended keeps its place to the last, and the beam of the others is
    narrower by it. So does the hypothesis that greedy decoding finds: therefore
    ``width=1`` is greedy decoding, and the best score is never below greedy's, whatever
    the penalty. One that has not ended after ``length`` tokens is ranked as it stands.
    With room for every hypothesis there is, the best one is the true best.

    Args:
        step: one streaming step of a model, as for `jaxrnn.generate`. It is called
            under ``vmap`` over the beam: an array that it closes over, such as the
            memory that attention reads, keeps its batch axes and is never copied.
        carry: the state before ``start`` is read, leaves ``(*B, ...)``.
        start: the first input, ``(*B)`` integers.
        end: the symbol that ends a sequence.
        width: W. 1 is greedy decoding.
        length: N, the most tokens that are written. The loop stops before that when
            every hypothesis has ended.
        length_penalty: 0 ranks by probability, which favours the short; 1 by the mean
            log probability of a token.

    Raises:
        TypeError, ValueError: for sizes below 1, an ``end`` that is no symbol, a
            negative penalty, a start that holds no integers, a carry without the batch
            axes of ``start`` or which ``step`` returns otherwise.
    """
    width, length = (
        as_size("beam_search", "width", width),
        as_size("beam_search", "length", length),
    )
    length_penalty = as_number("beam_search", "length_penalty", length_penalty)
    _check(step, carry, start, end)
    end = int(end)
    axis, start = start.ndim, jnp.asarray(start, jnp.int32)
    forward = jax.vmap(step, in_axes=axis, out_axes=axis)

    def spread(leaf: Array) -> Array:
        leaf = jnp.expand_dims(leaf, axis)
        return jnp.broadcast_to(
            leaf, (*leaf.shape[:axis], width, *leaf.shape[axis + 1 :])
        )

    def go_on(search: _Search) -> Array:
        alive = ~search.done & (search.logp > -jnp.inf)
        return (search.n < length) & ((search.n == 0) | jnp.any(alive))

    def advance(search: _Search) -> _Search:
        last = jax.lax.dynamic_index_in_dim(
            search.tokens, jnp.maximum(search.n - 1, 0), axis + 1, keepdims=False
        )
        carry, logits = forward(
            search.carry, jnp.where(search.n == 0, spread(start), last)
        )
        return _extended(
            search, carry, jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1), end
        )

    search = jax.lax.while_loop(
        go_on,
        advance,
        _begun(jax.tree.map(spread, carry), start.shape, width, length, end),
    )
    return _ranked(search, length_penalty)


def _begun(
    carry: Carry, batch: tuple[int, ...], width: int, length: int, end: int
) -> _Search:
    """Nothing written: one hypothesis in the beam, the greedy one."""
    shape = (*batch, width)
    first = jnp.broadcast_to(
        jnp.arange(width).reshape(*[1] * len(batch), width) == 0, shape
    )
    return _Search(
        n=jnp.asarray(0, jnp.int32),
        carry=carry,
        tokens=jnp.full((*shape, length), end, jnp.int32),
        logp=jnp.where(first, jnp.zeros(shape, jnp.float32), -jnp.inf),
        lengths=jnp.zeros(shape, jnp.int32),
        done=jnp.zeros(shape, bool),
        greedy=first,
    )


def _extended(
    search: _Search, carry: Carry, logp: Float[Array, "*B W V"], end: int
) -> _Search:
    """The best ``width`` of all hypotheses with one symbol more; ``carry`` and
    ``logp`` are what the step made of them.
    """
    axis, symbols = search.logp.ndim - 1, logp.shape[-1]
    symbol = jax.lax.broadcasted_iota(jnp.int32, logp.shape, axis + 1)
    only_end = jnp.where(symbol == end, jnp.zeros_like(logp), -jnp.inf)
    logp = search.logp[..., None] + jnp.where(search.done[..., None], only_end, logp)
    likeliest = jnp.argmax(logp, axis=-1)[..., None] == symbol
    kept = likeliest & (search.done | search.greedy)[..., None]
    rank = jnp.where(kept, jnp.inf, logp).reshape(*logp.shape[:axis], -1)
    _, chosen = jax.lax.top_k(rank, logp.shape[axis])
    parent, token = chosen // symbols, (chosen % symbols).astype(jnp.int32)

    def of_parent(leaf: Array) -> Array:
        index = parent.reshape(*parent.shape, *[1] * (leaf.ndim - parent.ndim))
        return jnp.take_along_axis(leaf, index, axis=axis)

    total = jnp.take_along_axis(logp.reshape(rank.shape), chosen, axis=-1)
    was_done, there = of_parent(search.done), total > -jnp.inf
    return _Search(
        n=search.n + 1,
        carry=jax.tree.map(of_parent, carry),
        tokens=jax.lax.dynamic_update_index_in_dim(
            of_parent(search.tokens), token, search.n, axis + 1
        ),
        logp=total,
        lengths=of_parent(search.lengths) + (~was_done).astype(jnp.int32),
        done=(was_done | (token == end)) & there,
        greedy=jnp.take_along_axis(
            (search.greedy[..., None] & likeliest).reshape(rank.shape), chosen, axis=-1
        ),
    )


def _ranked(search: _Search, length_penalty: Number) -> Beams:
    """What was found, by its score."""
    axis = search.logp.ndim - 1
    scores = search.logp / jnp.maximum(search.lengths, 1).astype(
        jnp.float32
    ) ** jnp.float32(length_penalty)
    order = jnp.argsort(-scores, axis=-1, stable=True)
    tokens = jnp.take_along_axis(search.tokens, order[..., None], axis=axis)
    written = search.lengths - search.done.astype(jnp.int32)
    return Beams(
        jnp.moveaxis(tokens, -1, 0),
        jnp.take_along_axis(written, order, axis),
        jnp.take_along_axis(scores, order, axis),
    )


def _check(step: Any, carry: Any, start: Any, end: Any) -> None:
    """Everything that was passed fits together."""
    if not is_array(start) or not jnp.issubdtype(start.dtype, jnp.integer):
        raise TypeError(
            f"beam_search: start must be an integer array (*B), but it is "
            f"{describe(start)}"
        )
    batch = tuple(start.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        if tuple(jnp.shape(leaf)[: len(batch)]) != batch:
            raise ValueError(
                f"beam_search: {jax.tree_util.keystr(path)} of the carry has shape "
                f"{tuple(jnp.shape(leaf))}, but it must "
                f"begin with the batch axes of start, {batch}"
            )
    new, logits = jax.eval_shape(step, carry, jax.ShapeDtypeStruct(batch, jnp.int32))
    check_carry(
        "beam_search",
        new,
        jax.eval_shape(lambda c: c, carry),
        "the carry that step returns",
    )
    if tuple(logits.shape[:-1]) != batch:
        raise ValueError(
            f"beam_search: step must return logits {(*batch, 'V')}, but their shape is "
            f"{tuple(logits.shape)}"
        )
    check_int(
        "beam_search",
        "end",
        end,
        0,
        logits.shape[-1] - 1,
        f"the step knows {logits.shape[-1]} symbols",
    )
