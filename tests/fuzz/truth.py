"""The slow twin of an unroll: a Python loop over one compiled step, and
backpropagation, tangents and members by hand.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from reference import choose, compiled

from .programs import Numbers, Program, cell_of


def floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def parted(tree: Any) -> tuple[list[Any], Any]:
    """The floating leaves of a tree, and how to put others in their place."""
    leaves, structure = jax.tree.flatten(tree)
    flags = [floating(leaf) for leaf in leaves]

    def together(moving):
        found = iter(moving)
        return jax.tree.unflatten(
            structure,
            [
                next(found) if flag else leaf
                for leaf, flag in zip(leaves, flags, strict=True)
            ],
        )

    return [leaf for leaf, flag in zip(leaves, flags, strict=True) if flag], together


def moving(tree: Any) -> list[Any]:
    return parted(tree)[0]


def zeros(leaves: list[Any]) -> list[Any]:
    return [np.zeros_like(np.asarray(leaf)) for leaf in leaves]


class Loop:
    """A program's steps one after another. ``mapped``: with a leading axis of
    members in all but the params.
    """

    def __init__(self, program: Program, mapped: bool = False):
        self.program, self.mapped = program, mapped
        cell = cell_of(program)

        def advance(params, carry, x, keep, reset):
            if reset is not None:
                carry = choose(reset, cell.initial_carry(params, x.shape[:-1]), carry)
            new = cell.step(params, carry, cell.project(params, x))
            return new, new if keep is None else choose(keep, new, carry)

        def show(params, new, x, keep):
            y = cell.output(params, new, x)
            return (
                y if keep is None else choose(keep, y, jax.tree.map(jnp.zeros_like, y))
            )

        # apart: a member's new carry is its own for the output, even where it is a
        # parameter
        if mapped:
            advance, show = (
                jax.vmap(advance, in_axes=(None, 0, 0, 0, 0)),
                jax.vmap(show, in_axes=(None, 0, 0, 0)),
            )

        def step(params, carry, x, keep, reset):
            new, held = advance(params, carry, x, keep, reset)
            return held, show(params, new, x, keep)

        self.step = step
        self.forwards = compiled(self.step)
        self.both = compiled(self._both)
        self.tangents = compiled(self._tangents)

    def _both(self, params, carry, x, keep, reset, cotangents):
        """A step, and its pullback of the cotangents of the new carry and the
        output.
        """
        groups, together = zip(*(parted(tree) for tree in (params, carry, x)))

        def function(*groups):
            new, y = self.step(
                *(join(group) for join, group in zip(together, groups)), keep, reset
            )
            return (moving(new), moving(y)), (new, y)

        _, pull, out = jax.vjp(function, *groups, has_aux=True)
        return out, pull(cotangents)

    def _tangents(self, params, carry, x, keep, reset, directions):
        groups, together = zip(*(parted(tree) for tree in (params, carry, x)))

        def function(*groups):
            new, y = self.step(
                *(join(group) for join, group in zip(together, groups)), keep, reset
            )
            return (moving(new), moving(y)), new

        _, moved, new = jax.jvp(function, groups, directions, has_aux=True)
        return moved, new

    def _order(self) -> list[int]:
        steps = range(self.program.steps)
        return list(reversed(steps)) if self.program.reverse else list(steps)

    def _now(self, numbers: Numbers, t: int) -> tuple[Any, Any, Any]:
        at = (slice(None), t) if self.mapped else t
        return tuple(
            None if part is None else part[at]
            for part in (numbers.xs, numbers.mask, numbers.resets)
        )

    def _stacked(self, rows: list[Any]) -> Any:
        return jax.tree.map(
            lambda *leaves: np.stack(leaves, axis=1 if self.mapped else 0), *rows
        )

    def shapes(self, numbers: Numbers) -> tuple[Any, Any, Any]:
        """Those of `values`."""
        carry, y = jax.eval_shape(
            self.step, numbers.params, numbers.carry, *self._now(numbers, 0)
        )
        ys, carries = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((self.program.steps, *a.shape), a.dtype),
            (y, carry),
        )
        return carry, ys, carries

    def values(self, numbers: Numbers) -> tuple[Any, Any, Any]:
        """``(last carry, outputs, carries)``."""
        return self._run(numbers, self.forwards)

    def _run(self, numbers: Numbers, step: Any) -> tuple[Any, Any, Any]:
        carry, ys, carries = (
            numbers.carry,
            [None] * self.program.steps,
            [None] * self.program.steps,
        )
        for t in self._order():
            carry, ys[t] = jax.tree.map(
                np.asarray, step(numbers.params, carry, *self._now(numbers, t))
            )
            carries[t] = carry
        return carry, self._stacked(ys), self._stacked(carries)

    def gradients(
        self, numbers: Numbers, cotangents: Any, window: int | None = None
    ) -> Any:
        """Values, and gradients of the floating leaves of params, first carry and
        inputs, for cotangents of the values.
        """
        order, axis = self._order(), int(self.mapped)
        to_carry, to_ys, to_carries = cotangents
        none = zeros(to_carry), zeros([np.take(g, 0, axis) for g in to_ys])
        values = self._run(numbers, lambda *now: self.both(*now, none)[0])
        before = {
            t: jax.tree.map(lambda a, t=t: np.take(a, t, axis), values[2])
            for t in order
        }
        before = dict(zip(order, [numbers.carry, *(before[t] for t in order)]))
        to_params, to_xs = zeros(moving(numbers.params)), [None] * self.program.steps
        for count, t in reversed(list(enumerate(order))):
            now, to_y = self._now(numbers, t), [np.take(g, t, axis) for g in to_ys]
            if to_carries is not None:
                to_carry = [
                    a + np.take(b, t, axis)
                    for a, b in zip(to_carry, to_carries, strict=True)
                ]
            _, out = self.both(numbers.params, before[t], *now, (to_carry, to_y))
            immediate, to_carry, (to_xs[t],) = jax.tree.map(np.asarray, out)
            if (
                numbers.mask is not None
            ):  # padding has no gradient, whatever a backward pass makes of nothing
                to_xs[t] = np.where(now[1][..., None], to_xs[t], 0)
            to_params = [a + b for a, b in zip(to_params, immediate, strict=True)]
            if window is not None and count > 0 and count % window == 0:
                to_carry = zeros(to_carry)
        return values, (to_params, to_carry, [self._stacked(to_xs)])

    def moved(self, numbers: Numbers, directions: Any) -> Any:
        """Tangents of the floating leaves of the values, for directions of those of
        params, first carry and inputs.
        """
        d_params, d_carry, (d_xs,) = directions
        carry, d_ys, d_carries = (
            numbers.carry,
            [None] * self.program.steps,
            [None] * self.program.steps,
        )
        for t in self._order():
            out = self.tangents(
                numbers.params,
                carry,
                *self._now(numbers, t),
                (d_params, d_carry, [d_xs[t]]),
            )
            (d_carry, d_ys[t]), carry = jax.tree.map(np.asarray, out)
            d_carries[t] = d_carry
        return d_carry, self._stacked(d_ys), self._stacked(d_carries)
