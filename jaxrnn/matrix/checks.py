"""Checks of the terms that a cell returns."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..core.validation import check_positive, describe
from .terms import MatrixMemory, Terms

NAMES = {
    "q": "(..., heads, d_k)",
    "k": "(..., heads, d_k)",
    "v": "(..., heads, d_v)",
    "g": "(..., heads, 1) or (..., heads, d_k)",
    "a": "(..., heads, d_k)",
    "b": "(..., heads, d_k)",
    "w": "(..., heads, 1)",
    "turn": "(..., heads, R) with R <= d_k / 2",
}
READS = ("after", "before")


def check_terms(cell: Any, terms: Any) -> None:
    """Check that the terms of a cell fit it and each other.

    Raises:
        TypeError: if they are no `Terms`, or one of them is no array of floats.
        ValueError: if the cell declares what there is not, if a term has the wrong
            shape, if the numbers of heads do not divide,
            if b is there without a, w beside g a channel, a or micro steps, or turn
            beside g a channel; or if a logarithm of a decay is known to be positive.
    """
    name = f"{type(cell).__name__}.terms"
    check_positive(cell, micro_steps=cell.micro_steps)
    if cell.reads not in READS:
        raise ValueError(
            f"{type(cell).__name__}: reads must be 'after', for queries that read the "
            f"state after the step, or 'before', but it is {cell.reads!r}"
        )
    if not isinstance(terms, Terms):
        raise TypeError(
            f"{name} must return jaxrnn.Terms(q, k, v, ...), but it returns "
            f"{describe(terms)}"
        )
    for field, value in zip(Terms._fields, terms, strict=True):
        if value is None and field in ("q", "k", "v"):
            raise TypeError(f"{name}: {field} is missing; it is {NAMES[field]}")
        if value is not None and not isinstance(value, jax.Array):
            raise TypeError(
                f"{name}: {field} must be an array {NAMES[field]}, but it is "
                f"{describe(value)}, of type {type(value).__name__}: make one with "
                f"jnp.asarray(..., z.dtype)"
            )
        if value is not None and not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(
                f"{name}: {field} must be an array of floats {NAMES[field]}, but it is "
                f"{describe(value)}: the state is real and has a floating dtype; "
                f"convert integers with .astype, and split complex numbers into their "
                f"real and imaginary parts"
            )
    _check_shapes(cell, name, terms)
    _check_options(cell, name, terms)
    if terms.g is not None and terms.w is None:
        check_decay(name, terms.g)


def check_scale(cell: Any, terms: Terms, memory: MatrixMemory) -> None:
    """Check that a cell with write strengths carries the scale of its state.

    Raises:
        ValueError: if it does not.
    """
    if terms.w is not None and memory.m is None:
        name = type(cell).__name__
        raise ValueError(
            f"{name}.terms: w, the logarithm of a strength, needs a carry that holds "
            f"m, the logarithm of the state's scale, but {name}.unpack returns none: "
            f"override initial_carry, unpack, pack and shown, as jaxrnn.MLSTM does, or "
            f"multiply k or v by exp(w) instead"
        )


def check_decay(name: str, g: jax.Array) -> None:
    """Check that logarithms of decays are at most 0, where the numbers are known."""
    if isinstance(g, jax.core.Tracer) or not bool((g > 0).any()):
        return
    raise ValueError(
        f"{name}: g is the logarithm of a decay and at most 0, but the largest is "
        f"{float(g.max()):.3g}, which lets the state grow without bound: return for "
        f"example jax.nn.log_sigmoid(gate), or -jnp.exp(rate) * jax.nn.softplus(gate)"
    )


def _check_shapes(cell: Any, name: str, terms: Terms) -> None:
    micro = cell.micro_steps
    lead = terms.q.shape[:-2]
    for field, value in zip(Terms._fields, terms, strict=True):
        if value is None:
            continue
        heads, last = cell.num_heads, value.shape[-1:]
        wanted: tuple[int, ...] = (cell.written_values if field == "v" else cell.keys,)
        if field in ("g", "w"):
            wanted = (1, cell.keys) if field == "g" else (1,)
        if field == "turn":
            wanted = tuple(range(1, cell.keys // 2 + 1))
        leads = [(*lead, micro)] if micro > 1 and field != "q" else [lead]
        if field in ("g", "turn"):
            leads.append(lead)
        fits = (
            value.ndim >= 2
            and value.shape[:-2] in leads
            and last[0] in wanted
            and value.shape[-2] > 0
            and heads % value.shape[-2] == 0
            and (field not in "vw" or value.shape[-2] == heads)
        )
        if not fits:
            steps = f", with an axis of {micro} micro steps before heads"
            raise ValueError(
                f"{name}: {field} must be {NAMES[field]} with heads "
                f"{'=' if field in 'vw' else 'a divisor of'} {heads} and the last axis "
                f"{' or '.join(map(str, wanted))}"
                f"{steps if micro > 1 and field != 'q' else ''}, and with the leading "
                f"axes {tuple(lead)} of q, but its shape is {value.shape}; the number "
                f"of heads is num_heads={heads}, and d_k is key_size={cell.keys}"
            )
    groups = terms.q.shape[-2]
    for field, value in zip(Terms._fields, terms, strict=True):
        if value is not None and value.shape[-2] not in (groups, cell.num_heads):
            raise ValueError(
                f"{name}: {field} has {value.shape[-2]} heads, but q has {groups} and "
                f"v {cell.num_heads}: every term must have as many as q or as v"
            )


def _check_options(cell: Any, name: str, terms: Terms) -> None:
    if terms.b is not None and terms.a is None:
        raise ValueError(
            f"{name}: b is the key at which is added what a reads, so a is needed with "
            f"it; leave b out, or return a, too"
        )
    if terms.turn is not None and cell.reads != "after":
        raise ValueError(
            f"{name}: turn, a rotation of the state before the step, goes with queries "
            f"that read the state after it: leave reads = 'after'"
        )
    if terms.turn is not None and terms.g is not None and terms.g.shape[-1] > 1:
        raise ValueError(
            f"{name}: turn, a rotation of pairs of channels, goes with one decay a "
            f"head, (..., heads, 1), not with one a channel {terms.g.shape}"
        )
    if terms.w is None:
        return
    if terms.a is not None or cell.micro_steps > 1 or cell.reads != "after":
        raise ValueError(
            f"{name}: w, the logarithm of a strength, goes with neither a, micro steps "
            f"nor reads = 'before': multiply k or v by exp(w) instead"
        )
    if terms.g is not None and terms.g.shape[-1] > 1:
        raise ValueError(
            f"{name}: w, the logarithm of a strength, goes with one decay a head, "
            f"(..., heads, 1), not with one a channel {terms.g.shape}: multiply k or v "
            f"by exp(w) instead"
        )
