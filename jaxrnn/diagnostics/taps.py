"""Values of all steps, by name: those that a cell taps, and those of its gates.

The layer is unrolled while an observer stands in the place of every engine. It runs the
cell, and then evaluates its methods at all steps at once, from the carries before them.
So it sees every cell of every layer, and nothing is computed when nobody asks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from ..core.cell import Cell, ContextCell, Gate, unwrap, without_context
from ..core.engine import AbstractEngine
from ..core.flags import expand_flags
from ..core.layer import Layer
from ..core.taps import taps_into
from ..core.types import Carry, Context, Inputs, Params, PyTree
from ..core.unroll_spec import UnrollSpec
from ..core.validation import check_inputs
from ..engines.engine import DefaultEngine
from ..explaining.table import places_of
from ..unrolling import observed_by, unroll_validated, validate
from .gates import check_gates


def tapped(
    cell: Cell | Layer,
    params: Params,
    xs: Inputs,
    carry: Carry = None,
    *,
    mask: Bool[Array, "T *B"] | None = None,
    resets: Bool[Array, "T *B"] | None = None,
    reverse: bool = False,
    key: Array | None = None,
    context: Context = None,
) -> dict[str, Any]:
    """Return the values of all steps that cells name by `jaxrnn.extending.tap`.

    Args:
        cell: a cell or a layer. Taps are seen in every cell that a layer unrolls, also
            in layers of your own, and in both directions of a `bidirectional` layer.
        params: the parameters.
        xs, carry, mask, resets, reverse, key, context: as for `jaxrnn.unroll`.

    Returns:
        A dict of arrays ``(T, *B, ...)``, each step at the place of its input. A name
        is the place of the cell's parameters and that of the tap: ``"layer_0/keep"`` in
        a stack, ``"keep"`` in a cell alone. A name that comes again, as for layers with
        shared parameters, gets ``#2``. At masked steps values with batch axes are zero.

    Raises:
        TypeError, ValueError: as `unroll`; if two values of a cell have one name; or if
            a tap stands inside a loop, a branch or a compiled function in the step.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, jaxrnn.diagnostics
        >>> from jaxrnn.extending import tap
        >>> @dataclasses.dataclass(frozen=True)
        ... class Tapped(jaxrnn.Elman):
        ...     def step(self, params, carry, z):
        ...         tap(carry @ params["recurrent_kernel"], "recurrent")
        ...         return super().step(params, carry, z)
        >>> layer = jaxrnn.stack(jaxrnn.GRU(4), Tapped(4))
        >>> params = layer.init(jax.random.key(0), 3)
        >>> values = jaxrnn.diagnostics.tapped(layer, params, jnp.ones((5, 2, 3)))
        >>> {name: value.shape for name, value in values.items()}
        {'layer_1/recurrent': (5, 2, 4)}
    """
    spec = UnrollSpec(
        None, mask, resets, reverse, key=key, all_carries=False, context=context
    )
    try:
        return _observed(_values_of_taps, cell, params, xs, carry, spec)
    except jax.errors.UnexpectedTracerError as error:
        raise ValueError(
            "tapped: a tap stands inside a loop, a branch or a compiled function in a "
            "step, which cannot be looked into: name what that returns"
        ) from error


def gate_values(
    cell: Cell | Layer,
    params: Params,
    xs: Inputs,
    carry: Carry = None,
    *,
    mask: Bool[Array, "T *B"] | None = None,
    resets: Bool[Array, "T *B"] | None = None,
    reverse: bool = False,
    context: Context = None,
) -> dict[str, Array]:
    """Return the gates of every cell at all steps.

    The gates of a cell are those of its method ``gate_values(params, carry, z)``.
    `gate_statistics` reduces them to means, saturation and time scales.

    Args:
        cell: a cell or a layer that draws no random numbers.
        params: the parameters.
        xs, carry, mask, resets, reverse, context: as for `jaxrnn.unroll`.

    Returns:
        A dict of arrays ``(T, *B, H)``, each step at the place of its input. The names
        are as in `tapped`: ``"layer_0/f"`` in a stack. At masked steps they are zero.

    Raises:
        NotImplementedError: if no cell reports its gates.
        TypeError, ValueError: as `unroll`, or for a ``gate_values`` that returns
            something else than gates.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn.diagnostics
        >>> layer = jaxrnn.stack(jaxrnn.LSTM(4), jaxrnn.GRU(2))
        >>> params = layer.init(jax.random.key(0), 3)
        >>> gates = jaxrnn.diagnostics.gate_values(layer, params, jnp.ones((5, 2, 3)))
        >>> list(gates)[:5], gates["layer_1/z"].shape
        (['layer_0/f', 'layer_0/g', 'layer_0/i', 'layer_0/o', 'layer_1/n'], (5, 2, 2))
    """
    spec = UnrollSpec(None, mask, resets, reverse, all_carries=False, context=context)
    gates = _observed(_values_of_gates, cell, params, xs, carry, spec)
    if not gates:
        raise NotImplementedError(
            f"gate_values: no cell of {type(cell).__name__} reports its gates: define "
            f"gate_values(self, params, carry, z) in it, or name values in its step by "
            f"jaxrnn.extending.tap and call jaxrnn.diagnostics.tapped"
        )
    return gates


class CellRun(NamedTuple):
    """What a cell read and made at all steps, ``(T, *B, ...)`` per leaf."""

    cell: Cell
    params: Params
    before: Carry
    after: Carry
    xs: Any


@dataclasses.dataclass(frozen=True, eq=False)
class _Recorder:
    """Runs every cell in the place of its engine, and keeps values of all its steps.

    Attributes:
        places: finds the path of a cell's parameters.
        values_of: what is kept of a run, by name.
        found: the values of all cells, by place and name.
    """

    places: Callable[[Any], str]
    values_of: Callable[[CellRun], dict[str, Any]]
    found: dict[str, Any]

    def run(
        self,
        engine: Any,
        why: str,
        all_carries: bool,
        cell: Cell,
        params: Params,
        carry: Carry,
        xs: Inputs,
        mask: Any = None,
        resets: Any = None,
        reverse: bool = False,
    ) -> tuple[Carry, Carry]:
        """Run a cell by the default engine, which knows all carries."""
        last, after = DefaultEngine().run(
            cell, params, carry, xs, mask, resets, reverse
        )
        before = _carries_before(carry, after, reverse)
        if resets is not None:
            initial = cell.initial_carry(params, resets.shape[1:])
            before = jax.tree.map(
                lambda a, s: jnp.where(expand_flags(resets, a), s[None], a),
                before,
                initial,
            )
        values = self.values_of(CellRun(cell, params, before, after, xs))
        place = self.places(params)
        for name, value in values.items():
            path = _new_name(f"{place}/{name}" if place else name, self.found)
            self.found[path] = _zero_where_masked(value, mask)
        return last, after

    def run_network(
        self, engine: AbstractEngine | None, params: Params, carries: list, *args: Any
    ):
        """Refuse: an engine that runs several cells in one call is never asked for."""
        raise NotImplementedError(
            f"{engine!r} does not know the values of single steps"
        )


def _observed(
    values_of: Callable[[CellRun], dict[str, Any]],
    cell: Cell | Layer,
    params: Params,
    xs: Inputs,
    carry: Carry,
    spec: UnrollSpec,
) -> dict[str, Any]:
    """Unroll under a `_Recorder`, and return what it found."""
    params, xs = validate(cell, params, xs, carry, spec)

    # Compiled anew for every call: what it finds goes through the observer.
    @jax.jit
    def run(params, xs, carry, spec):
        recorder = _Recorder(places_of(params), values_of, {})
        with observed_by(recorder):
            unroll_validated(cell, params, xs, carry, spec)
        return recorder.found

    return run(params, xs, carry, spec)


def _values_of_taps(run: CellRun) -> dict[str, Any]:
    """Evaluate a cell's methods at all steps at once, and return what they tap."""
    cell, params = run.cell, run.params
    found: dict[str, Any] = {}
    with taps_into(found):
        z = cell.project(params, run.xs)

    def step(carry: Carry, z: PyTree) -> dict[str, Any]:
        inside: dict[str, Any] = dict.fromkeys(found)
        with taps_into(inside):
            cell.step(params, carry, z)
        return {name: inside[name] for name in inside if name not in found}

    found.update(jax.vmap(step)(run.before, z))
    with taps_into(found):
        cell.output(params, run.after, run.xs)
    return found


def _values_of_gates(run: CellRun) -> dict[str, Any]:
    """Evaluate a cell's gates at all steps at once."""
    cell, params, z = run.cell, run.params, run.cell.project(run.params, run.xs)
    if not isinstance(cell, ContextCell):
        cell = unwrap(cell)
    plain = without_context(cell)
    if type(plain).gate_values is Cell.gate_values:
        return {}
    gates: dict[str, Gate] = cell.gate_values(params, run.before, z)
    check_gates(plain, gates, check_inputs(run.xs, cell.feature_ndim))
    return {name: gate.value for name, gate in gates.items()}


def _carries_before(first: Carry, after: Carry, reverse: bool) -> Carry:
    """Return the carries before every step, from the first and those after them."""

    def before(s: Array, a: Array) -> Array:
        if len(a) == 0:
            return a
        parts = [a[1:], s[None]] if reverse else [s[None], a[:-1]]
        return jnp.concatenate(parts)

    return jax.tree.map(before, first, after)


def _new_name(name: str, taken: dict[str, Any]) -> str:
    """Return a name that is not taken yet."""
    if name not in taken:
        return name
    number = 2
    while f"{name}#{number}" in taken:
        number += 1
    return f"{name}#{number}"


def _zero_where_masked(value: Any, mask: Any) -> Any:
    """Set values with batch axes to zero at masked steps."""

    def zero(leaf: Array) -> Array:
        if mask is None or leaf.shape[: mask.ndim] != mask.shape:
            return leaf
        return jnp.where(expand_flags(mask, leaf), leaf, jnp.zeros_like(leaf))

    return jax.tree.map(zero, value)
