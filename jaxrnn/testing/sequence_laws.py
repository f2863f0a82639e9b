"""Laws of cells and layers over sequences: masks, resets, directions and gradients.

All of them compare `jaxrnn.unroll` with a Python loop over single steps, or with
another unroll that must give the same. One compiled program of values and gradients
serves most of them.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.cell import is_chunkwise, is_linear, unsupported_chunkwise_reason
from ..core.flags import expand_flags
from ..core.types import Inputs, PyTree
from ..engines import Associative, Scan
from ..unrolling import unroll
from .report import Broken, NotTried
from .subject import Subject, difference, is_inexact, streamed

LAYER_REPAIR = (
    "run the parts of a layer with jaxrnn.extending.unroll_part(part, params, carry, "
    "xs, spec), which hands on the mask, the resets and everything else"
)


class Sequences:
    """The unrolls of one subject, each computed once."""

    def __init__(self, subject: Subject):
        self.subject = subject

    def run(self, mask: Any, resets: Any, xs: Inputs = None, **options: Any) -> Any:
        """Return the last carry, the outputs and all carries of an unroll."""
        subject = self.subject
        found: Any = unroll(
            subject.cell,
            subject.params,
            subject.xs if xs is None else xs,
            subject.carry,
            mask=mask,
            resets=resets,
            return_carries=True,
            **subject.given,
            **options,
        )
        return found

    @functools.cached_property
    def program(self) -> Any:
        """Values and gradients, compiled: of params, xs, carry, mask and resets."""
        subject = self.subject

        def outcome(params, xs, carry, mask, resets, cotangents):
            def values(params, xs, carry):
                found: Any = unroll(
                    subject.cell,
                    params,
                    xs,
                    carry,
                    mask=mask,
                    resets=resets,
                    return_carries=True,
                    **subject.given,
                )
                return found[:2], found[2]

            out, pullback, carries = jax.vjp(values, params, xs, carry, has_aux=True)
            return out, carries, pullback(cotangents)

        return jax.jit(outcome)

    @functools.cached_property
    def cotangents(self) -> Any:
        """Random cotangents of the last carry and the outputs."""
        random = np.random.default_rng(7)
        shapes = jax.eval_shape(lambda: self.run(None, None)[:2])
        return jax.tree.map(functools.partial(_normal, random), shapes)

    def outcome(self, params=None, xs=None, carry=None, mask=None, resets=None) -> Any:
        """Run `program`; what is left out is the subject's, or no flag at all."""
        subject = self.subject
        never = jnp.zeros_like(subject.resets)
        return self.program(
            subject.params if params is None else params,
            subject.xs if xs is None else xs,
            subject.carry if carry is None else carry,
            ~never if mask is None else mask,
            never if resets is None else resets,
            self.cotangents,
        )


def _normal(random: Any, like: Any) -> Any:
    """Draw an array like ``like``; of integers float0 zeros, as cotangents are."""
    if not jnp.issubdtype(like.dtype, jnp.inexact):
        return np.zeros(like.shape, jax.dtypes.float0)
    numbers = random.normal(size=like.shape)
    if jnp.issubdtype(like.dtype, jnp.complexfloating):
        numbers = numbers + 1j * random.normal(size=like.shape)
    return np.asarray(numbers, like.dtype)


def _within(s: Sequences, what: str, a: Any, b: Any, repair: str) -> float:
    found = difference(a, b)
    if not found <= s.subject.tolerance:
        raise Broken(f"{what} differ by {found:.1e}", repair, found)
    return found


def finite(s: Sequences) -> None:
    """Values and gradients of random inputs are finite."""
    out, _, gradients = s.outcome(mask=s.subject.mask, resets=s.subject.resets)
    for path, leaf in jax.tree_util.tree_leaves_with_path((out, gradients)):
        if is_inexact_array(leaf) and not np.isfinite(leaf).all():
            raise Broken(
                f"{_place(path)} holds NaN or infinity",
                "look for a division, logarithm or square root at zero, and for "
                "parameters that init makes too large; if the cell reads other inputs "
                "than normal numbers, pass xs",
            )


def streaming(s: Sequences) -> float:
    """Single steps give what an unroll gives."""
    if not s.subject.causal:
        raise NotTried("it reads later inputs, so it takes no single steps")
    last, ys, carries = streamed(s.subject)
    now = s.run(None, None)
    repair = (
        LAYER_REPAIR
        if s.subject.is_layer
        else "if the cell defines __call__, let it be project, step and output"
    )
    what = "the {} of single steps and of an unroll"
    return max(
        _within(s, what.format("outputs"), now[1], ys, repair),
        _within(s, what.format("carries"), (now[0], now[2]), (last, carries), repair),
    )


def masks(s: Sequences) -> float:
    """A masked step holds the carry and gives zero, as if it were not there."""
    subject, mask = s.subject, s.subject.mask
    (last, ys), carries, _ = s.outcome(mask=mask)
    repair = LAYER_REPAIR if subject.is_layer else _ROWS
    if subject.causal:
        want_last, want_ys, want_carries = streamed(subject, mask)
        return max(
            _within(s, "outputs under a mask", ys, want_ys, repair),
            _within(
                s,
                "carries under a mask",
                (last, carries),
                (want_last, want_carries),
                repair,
            ),
        )
    kept = jnp.argsort(~mask, axis=0, stable=True)[: int(mask.sum(0)[0])]

    def compressed(tree: PyTree) -> Any:
        return jax.tree.map(
            lambda leaf: jnp.take_along_axis(leaf, expand_flags(kept, leaf), 0), tree
        )

    want = s.run(None, None, compressed(subject.xs))
    what = "outputs with a mask, and with the masked steps left out,"
    return _within(s, what, (last, compressed(ys)), want[:2], repair)


_ROWS = "let step work on any batch axes, and give initial_carry its batch_shape"


def padding(s: Sequences) -> float:
    """What masked steps contain, NaN included, changes no value and no gradient."""
    subject, mask = s.subject, s.subject.mask
    results = []
    for filling in (0.5, np.nan):
        xs = jax.tree.map(functools.partial(_filled, mask, filling), subject.xs)
        out, _, gradients = s.outcome(xs=xs, mask=mask)
        results.append((out, gradients))
    for (path, leaf), like in zip(
        jax.tree_util.tree_leaves_with_path(results[1]),
        jax.tree.leaves(results[0]),
        strict=True,
    ):
        if is_inexact_array(leaf) and (~np.isfinite(leaf) & np.isfinite(like)).any():
            raise Broken(
                f"NaN at masked steps reaches {_place(path)}",
                LAYER_REPAIR
                if subject.is_layer
                else "read inputs in project, step and output only; at masked steps "
                "they are given a valid input of the batch",
            )
    what = "results with NaN and with numbers at masked steps"
    return _within(s, what, results[1], results[0], LAYER_REPAIR)


def is_inexact_array(leaf: Any) -> bool:
    """Return whether a leaf holds floating-point numbers, and no float0."""
    return leaf.dtype != jax.dtypes.float0 and is_inexact(leaf)


def _place(path: Any) -> str:
    """Name a part of ``((last, ys), (params, xs, carry))``."""
    first, second = (int(str(key).strip("[]")) for key in path[:2])
    names = (
        ("the last carry", "the outputs"),
        ("the gradient of the parameters", "that of the inputs", "that of the carry"),
    )
    return names[first][second] + jax.tree_util.keystr(path[2:])


def _filled(mask: Any, filling: float, leaf: Any) -> Any:
    if not is_inexact(leaf):
        return leaf
    return jnp.where(expand_flags(mask, leaf), leaf, jnp.asarray(filling, leaf.dtype))


def resets(s: Sequences) -> float:
    """At a reset the carry becomes the initial one, before the step."""
    subject = s.subject
    repair = LAYER_REPAIR if subject.is_layer else _ROWS
    if subject.causal:
        (last, ys), carries, _ = s.outcome(mask=subject.mask, resets=subject.resets)
        want = streamed(subject, subject.mask, subject.resets)
        return _within(
            s, "results with resets", (last, ys, carries), tuple(want), repair
        )
    cut = len(subject.mask) // 2
    flags = jnp.zeros_like(subject.resets).at[cut].set(True)
    (_, ys), _, _ = s.outcome(carry=subject.initial_carry(), resets=flags)
    parts = [
        unroll(
            subject.cell,
            subject.params,
            jax.tree.map(lambda leaf, part=part: leaf[part], subject.xs),
            **subject.given,
        )[1]
        for part in (slice(0, cut), slice(cut, None))
    ]
    want = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    what = "outputs of two sequences packed with a reset, and apart,"
    return _within(s, what, ys, want, repair)


def reverse(s: Sequences) -> float:
    """Backwards in time is forwards over the flipped sequence, flipped."""
    flipped = functools.partial(jax.tree.map, lambda leaf: jnp.flip(leaf, 0))
    last, ys, carries = s.run(None, None, reverse=True)
    want = s.run(None, None, flipped(s.subject.xs))
    what = "results with reverse=True, and of the flipped sequence,"
    pair = last, flipped(ys), flipped(carries)
    return _within(s, what, pair, tuple(want), LAYER_REPAIR)


def vmap(s: Sequences) -> float:
    """`jax.vmap` over single sequences gives what a batch gives."""
    subject = s.subject

    def one(xs, carry, context):
        given = {"context": context} if subject.cell.takes_context else {}
        return unroll(subject.cell, subject.params, xs, carry, **given)

    mapped = jax.vmap(one, in_axes=(1, 0, 0), out_axes=(0, 1))
    last, ys = mapped(subject.xs, subject.carry, subject.context)
    want = s.run(None, None)
    what = "results of jax.vmap over sequences without a batch, and of the batch,"
    return _within(s, what, (last, ys), (want[0], want[1]), _ROWS)


def gradients(s: Sequences) -> float:
    """Gradients are the finite differences of the values, in float64."""
    subject = s.subject
    if not subject.wide:
        raise NotTried("finite differences need float64")
    arguments = {
        "parameters": ("params", subject.params),
        "inputs": ("xs", subject.xs),
        "carry": ("carry", subject.carry),
    }
    flags = {"mask": subject.mask, "resets": subject.resets}
    _, _, found = s.outcome(**flags)
    worst = 0.0
    for index, (name, (argument, tree)) in enumerate(arguments.items()):
        direction = jax.tree.map(
            functools.partial(_normal, np.random.default_rng(index)), tree
        )
        slope = _inner(found[index], direction)
        estimates = [
            _finite_difference(s, argument, tree, direction, width, flags)
            for width in (1e-5, 1.25e-6)
        ]
        scale = max(1.0, *map(abs, estimates))
        smooth = abs(estimates[0] - estimates[1]) / scale
        off = min(abs(slope - estimate) for estimate in estimates) / scale
        if smooth < 1e-4 and not off <= max(1e-6, 3 * smooth):
            raise Broken(
                f"the derivative by the {name} along a random direction is "
                f"{slope:.6g}, and finite differences give {estimates[0]:.6g}",
                "look for stop_gradient, a jax.custom_vjp or custom_jvp with another "
                "rule than the function's, a rounding or an integer on the way, and "
                "jnp.where around something that is not finite",
                off,
            )
        worst = max(worst, off if smooth < 1e-4 else 0.0)
    return worst


def _finite_difference(s, argument, tree, direction, width, flags) -> float:
    """Return (f(tree + h d) - f(tree - h d)) / 2h for the loss of the cotangents."""

    def loss(sign):
        moved = jax.tree.map(
            lambda a, d: a + sign * width * d if is_inexact_array(d) else a,
            tree,
            direction,
        )
        out, _, _ = s.outcome(**{argument: moved}, **flags)
        return _inner(out, s.cotangents)

    return (loss(1) - loss(-1)) / (2 * width)


def _inner(a: Any, b: Any) -> float:
    """Return the real part of the sum of products, as JAX pairs cotangents."""
    return float(
        sum(
            np.sum(np.asarray(x) * np.asarray(y)).real
            for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
            if is_inexact_array(y)
        )
    )


def chunks(s: Sequences) -> float:
    """Steps that are joined in chunks give what single steps give, gradients too."""
    cell = s.subject.cell
    if s.subject.is_layer or not (is_linear(cell) or is_chunkwise(cell)):
        raise NotTried("its steps are not joined in chunks")
    if is_chunkwise(cell) and (reason := unsupported_chunkwise_reason(cell)):
        raise NotTried(f"{reason}, so its steps run one by one")
    subject = s.subject

    def loss(params, xs, carry, engine):
        last, ys = unroll(cell, params, xs, carry, engine=engine, **_flags(subject))[:2]
        pairs = zip(
            jax.tree.leaves((last, ys)), jax.tree.leaves(s.cotangents), strict=True
        )
        terms = [(a * b).real.sum() for a, b in pairs if is_inexact_array(b)]
        return sum(terms[1:], terms[0]), (last, ys)

    def outcome(engine):
        inputs = subject.params, subject.xs, subject.carry
        run = jax.grad(loss, argnums=(0, 1, 2), has_aux=True, allow_int=True)
        return jax.jit(run, static_argnums=3)(*inputs, engine)

    steps, found = outcome(Scan(save="everything")), 0.0
    repair = (
        "affine must give a and b of s_t = a_t * s_{t-1} + b_t from params and z alone"
        if is_linear(cell)
        else "run_chunks must compute what step does: compare with chunk=1, then 2; "
        "masks hold the carry, resets come before their step"
    )
    for chunk in (2, None):
        joined = outcome(Associative(chunk=chunk))
        size = "all of time" if chunk is None else f"{chunk} steps"
        for index, what in ((1, "values"), (0, "gradients")):
            words = f"the {what} of chunks of {size}, and of single steps,"
            found = max(found, _within(s, words, joined[index], steps[index], repair))
    return found


def _flags(subject: Subject) -> dict[str, Any]:
    return {"mask": subject.mask, "resets": subject.resets, **subject.given}
