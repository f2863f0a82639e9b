"""Beam search: the likeliest sequences of a model, by one-step calls in one loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from ..core.arrays import is_array
from ..core.exported import register_for_export
from ..core.types import Carry
from ..core.validation import check_carry, check_int, describe
from ..core.weak_scalars import Number, Size, as_number, as_size


@register_for_export
class Beams(NamedTuple):
    """The result of `beam_search`: W hypotheses, the best one first.

    Attributes:
        tokens: ``(N, *B, W)``, which holds ``end`` from where a hypothesis ends.
        lengths: ``(*B, W)``, the number of tokens before ``end``.
        scores: ``(*B, W)``, those by which the hypotheses are ranked, -inf where fewer
            than W hypotheses exist.

    Example:
        >>> import jax.numpy as jnp
        >>> def step(carry, token):  # the likeliest symbol is token + 1, then token + 2
        ...     ahead = jnp.arange(4)[None] - token[:, None]
        ...     return carry, -jnp.abs(ahead.astype(jnp.float32) - 1.2)
        >>> start = jnp.array([0])
        >>> beams = beam_search(step, (), start, end=3, width=2, length=4)
        >>> beams.tokens.shape, bool(beams.scores[0, 0] >= beams.scores[0, 1])
        ((4, 1, 2), True)
        >>> second = beams.tokens[: int(beams.lengths[0, 1]), 0, 1]
        >>> second.tolist()  # without the end
        [1, 2]
    """

    tokens: Integer[Array, "N *B W"]
    lengths: Integer[Array, "*B W"]
    scores: Float[Array, "*B W"]


class _Search(NamedTuple):
    """The variables of the loop; the beam axis, W, follows the batch axes."""

    n: Array  # (), the number of steps taken
    carry: Carry  # leaves (*B, W, ...)
    tokens: Array  # (*B, W, N), filled with ``end`` beyond what has been written
    logp: Array  # (*B, W), log p(y); -inf for a hypothesis that does not exist
    lengths: Array  # (*B, W), tokens written, including ``end``
    done: Array  # (*B, W), whether the hypothesis has ended
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
    """Search for the likeliest sequences of up to ``length`` tokens after ``start``.

    At each step the ``width`` likeliest hypotheses are kept. At the end a hypothesis y
    of n tokens, including ``end``, is ranked by the following score (Wu et al. 2016,
    eq. 14, with n in place of their (5 + n) / 6)::

        score(y) = sum_t log p(y_t | y_<t) / n ** length_penalty

    A hypothesis that has ended keeps its place until the end, and leaves fewer places
    for the others. The hypothesis of greedy decoding keeps its place as well: therefore
    ``width=1`` is greedy decoding, and the best score is never below that of greedy
    decoding, whatever the penalty. A hypothesis that has not ended after ``length``
    tokens is ranked by the score that it has then. If the beam has room for every
    possible hypothesis, the best one is the true optimum.

    Args:
        step: one streaming step of a model, as for `jaxrnn.generate`. It is called
            under ``vmap`` over the beam: an array that it closes over, such as the
            memory that attention reads, keeps its batch axes and is never copied.
        carry: the state before ``start`` is read, leaves ``(*B, ...)``.
        start: the first input, ``(*B)`` integers.
        end: the symbol that ends a sequence.
        width: W, the number of hypotheses. 1 is greedy decoding.
        length: N, the maximum number of tokens. The loop stops earlier if every
            hypothesis has ended.
        length_penalty: the exponent in the score. 0 ranks by probability, which favors
            short sequences; 1 ranks by the mean log probability of a token.

    Returns:
        `Beams` (tokens, lengths, scores).

    Raises:
        TypeError, ValueError: for sizes below 1, an ``end`` that is no symbol, a
            negative penalty, a start that is not an integer array, a carry without the
            batch axes of ``start``, or a step that returns another kind of carry.

    Example::

        >>> import jax.numpy as jnp
        >>> def step(carry, token):  # the likeliest symbol is token + 1, then token + 2
        ...     ahead = jnp.arange(4)[None] - token[:, None]
        ...     return carry, -jnp.abs(ahead.astype(jnp.float32) - 1.2)
        >>> start = jnp.array([0])
        >>> beams = beam_search(step, (), start, end=3, width=2, length=4)
        >>> beams.tokens[:, 0].T.tolist(), beams.lengths.tolist()
        ([[2, 3, 3, 3], [1, 2, 3, 3]], [[1, 2]])
    """
    width, length = (
        as_size("beam_search", "width", width),
        as_size("beam_search", "length", length),
    )
    length_penalty = as_number("beam_search", "length_penalty", length_penalty)
    _check(step, carry, start, end)
    end = int(end)
    axis, start = start.ndim, jnp.asarray(start, jnp.int32)  # axis: that of the beam
    beam_step = jax.vmap(step, in_axes=axis, out_axes=axis)

    def repeat(leaf: Array) -> Array:
        leaf = jnp.expand_dims(leaf, axis)
        return jnp.broadcast_to(
            leaf, (*leaf.shape[:axis], width, *leaf.shape[axis + 1 :])
        )

    def is_unfinished(search: _Search) -> Array:
        alive = ~search.done & (search.logp > -jnp.inf)
        return (search.n < length) & ((search.n == 0) | jnp.any(alive))

    def extend(search: _Search) -> _Search:
        last_token = jax.lax.dynamic_index_in_dim(
            search.tokens, jnp.maximum(search.n - 1, 0), axis + 1, keepdims=False
        )
        carry, logits = beam_step(
            search.carry, jnp.where(search.n == 0, repeat(start), last_token)
        )
        return _extended(
            search, carry, jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1), end
        )

    search = jax.lax.while_loop(
        is_unfinished,
        extend,
        _begun(jax.tree.map(repeat, carry), start.shape, width, length, end),
    )
    return _ranked(search, length_penalty)


def _begun(
    carry: Carry, batch: tuple[int, ...], width: int, length: int, end: int
) -> _Search:
    """Return the search before the first step.

    The beam holds one empty hypothesis, which is the greedy one; the others have
    probability zero.
    """
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
    """Extend all hypotheses by one symbol, and keep the best W of the results.

    Args:
        search: the search before the step.
        carry: the carry of each hypothesis after the step.
        logp: the log probability of each next symbol, given the hypothesis.
        end: the symbol that ends a sequence.
    """
    axis, symbols = search.logp.ndim - 1, logp.shape[-1]
    symbol = jax.lax.broadcasted_iota(jnp.int32, logp.shape, axis + 1)
    # A hypothesis that has ended has one continuation, ``end`` with probability 1, so
    # that its total stays as it is.
    only_end = jnp.where(symbol == end, jnp.zeros_like(logp), -jnp.inf)
    logp = search.logp[..., None] + jnp.where(search.done[..., None], only_end, logp)
    # Ended hypotheses and the greedy one keep their places: the likeliest continuation
    # of each ranks above all others. All W * V candidates are ranked together.
    likeliest = jnp.argmax(logp, axis=-1)[..., None].astype(jnp.int32) == symbol
    keeps_place = likeliest & (search.done | search.greedy)[..., None]
    rank = jnp.where(keeps_place, jnp.inf, logp).reshape(*logp.shape[:axis], -1)
    _, chosen = jax.lax.top_k(rank, logp.shape[axis])
    parent, token = chosen // symbols, (chosen % symbols).astype(jnp.int32)

    def of_parent(leaf: Array) -> Array:
        index = parent.reshape(*parent.shape, *[1] * (leaf.ndim - parent.ndim))
        return jnp.take_along_axis(leaf, index, axis=axis)

    total = jnp.take_along_axis(logp.reshape(rank.shape), chosen, axis=-1)
    was_done, exists = of_parent(search.done), total > -jnp.inf
    return _Search(
        n=search.n + 1,
        carry=jax.tree.map(of_parent, carry),
        tokens=jax.lax.dynamic_update_index_in_dim(
            of_parent(search.tokens), token, search.n, axis + 1
        ),
        logp=total,
        lengths=of_parent(search.lengths) + (~was_done).astype(jnp.int32),
        done=(was_done | (token == end)) & exists,
        greedy=jnp.take_along_axis(
            (search.greedy[..., None] & likeliest).reshape(rank.shape), chosen, axis=-1
        ),
    )


def _ranked(search: _Search, length_penalty: Number) -> Beams:
    """Sort the hypotheses by their scores."""
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


def _check(step: Any, carry: Carry, start: Any, end: Any) -> None:
    """Check that the arguments of `beam_search` fit each other."""
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
        f"the step returns logits for {logits.shape[-1]} symbols",
    )
