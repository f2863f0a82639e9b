"""linen's cells as jaxrnn cells, where they are pure functions.

``nn.LSTMCell``, ``OptimizedLSTMCell``, ``GRUCell`` and ``SimpleCell`` become `LSTM`,
`GRU` and `Elman`: their parameters stay flax's, and are packed at each call. Any other
cell whose step is a function of its parameters, its carry and its input is applied as
it is, in an engine. A cell that draws random numbers, or that reads or writes variables
which are not the same at every step, runs in flax's own scan.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core.scope import DenyList, in_filter, intersect_filters
from flax.errors import FlaxError
from jax.interpreters import partial_eval as pe
from jaxtyping import Array

from ..cells import GRU, LSTM, Elman
from ..core.cell import Cell
from ..core.types import Carry, Inputs, Params, PyTree
from ..modules.forms import Form, ModuleCell, built_in_form, module_form


@dataclasses.dataclass(frozen=True)
class LinenCell(ModuleCell):
    """A linen cell that is a pure function, as a jaxrnn cell.

    Its parameters are all variables of the module.
    """

    module: nn.Module

    def call(self, params: Params, carry: Carry, x: Array) -> tuple[Carry, Any]:
        """Apply the module once."""
        return self.module.apply(params, carry, x)

    def first(self, params: Params, input_shape: tuple[int, ...]) -> Carry:
        """Return the module's ``initialize_carry``, with the key that flax uses."""
        return initialized_carry(self.module, None, input_shape)


def initialized_carry(
    cell: Any, key: Array | None, input_shape: tuple[int, ...]
) -> Carry:
    """Return a cell's ``initialize_carry``; without a key with that of seed 0."""
    return cell.initialize_carry(jax.random.key(0) if key is None else key, input_shape)


def pure_form(
    cell: Any, variable_broadcast: Any, carry: Carry, x: jax.ShapeDtypeStruct
) -> Form | str:
    """Convert a cell that is a pure function, or say why it is none.

    The cell is only traced.

    Args:
        cell: a bound linen cell.
        variable_broadcast: the filter of collections that are the same at every step.
        carry: the carry before the first step.
        x: the shape of an input.

    Returns:
        The form, or the reason why flax's own scan must run the cell.
    """
    name = type(cell).__name__
    if cell.is_initializing():
        return f"the variables of {name} are being made"
    if cell.is_mutable_collection("intermediates"):
        return "intermediates are asked for"
    module, variables = cell.unbind()
    variables = {kind: own for kind, own in variables.items() if jax.tree.leaves(own)}
    others = [kind for kind in variables if not in_filter(variable_broadcast, kind)]
    if others:
        return f"{name} has variables in {', '.join(others)}, besides those it shares"
    packed = _packed(cell, variables)
    if packed is not None:
        return built_in_form(cell, *packed, x.dtype)
    reason = _why_impure(cell, module, variables, carry, x)
    if reason is not None:
        return reason
    axes = cell.num_feature_axes
    return module_form(LinenCell(axes, x.shape[-axes:], x.dtype, module), variables)


def _why_impure(
    cell: Any, module: Any, variables: Any, carry: Carry, x: jax.ShapeDtypeStruct
) -> str | None:
    """Say why a cell cannot be applied as a function of its variables, or None.

    Args:
        cell: the bound cell.
        module, variables: the same, unbound.
        carry, x: the carry before the first step, and the shape of an input.
    """
    name, scope = type(cell).__name__, cell.scope
    try:
        hash(module)
    except TypeError:
        return f"a field of {name} is not hashable"
    rngs = {kind: rng.as_jax_rng() for kind, rng in scope.rngs.items()}
    mutable = intersect_filters(scope.mutable, DenyList("params"))

    def once(rngs: Any, variables: Any, carry: Carry, x: Inputs) -> Any:
        return module.apply(variables, carry, x, rngs=rngs, mutable=mutable)

    try:
        closed, (_, written) = jax.make_jaxpr(once, return_shape=True)(
            rngs, variables, carry, x
        )
    except FlaxError as error:
        return f"{name} cannot be applied by itself ({type(error).__name__})"
    if jax.tree.leaves(written):
        return f"{name} writes to {', '.join(written)}"
    # A cell under ``nn.remat`` hands all keys on, so what counts is their use inside.
    outputs = [True] * len(closed.jaxpr.outvars)
    _, used = pe.dce_jaxpr(closed.jaxpr, outputs)
    if any(used[: len(jax.tree.leaves(rngs))]):
        return f"{name} draws random numbers"
    if not _initializes(module, carry, x):
        return f"{name} is given a carry that its initialize_carry does not make"
    return None


def _initializes(module: Any, carry: Carry, x: jax.ShapeDtypeStruct) -> bool:
    """Return whether ``initialize_carry`` makes carries like the one that is given.

    A cell that is always given a carry need not define it.
    """

    def kinds(tree: PyTree) -> Any:
        return jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree)

    try:
        made = jax.eval_shape(lambda: initialized_carry(module, None, x.shape))
    except Exception:
        return False
    return kinds(made) == kinds(carry)


# The names of the linear maps of x and of h, in the order in which they are packed.
_FORMS: dict[Any, tuple[tuple[str, ...], tuple[str, ...]]] = {
    nn.LSTMCell: (("ii", "if", "ig", "io"), ("hi", "hf", "hg", "ho")),
    nn.OptimizedLSTMCell: (("ii", "if", "ig", "io"), ("hi", "hf", "hg", "ho")),
    nn.GRUCell: (("ir", "iz", "in"), ("hr", "hz", "hn")),
    nn.SimpleCell: (("i",), ("h",)),
}


def _packed(cell: Any, variables: Any) -> tuple[Cell, dict[str, Array]] | None:
    """Return the jaxrnn cell that equals a built-in linen cell, and its parameters.

    None for any other cell.
    """
    kind = type(cell)
    if kind not in _FORMS or variables.keys() != {"params"}:
        return None
    if cell.carry_init is not jax.nn.initializers.zeros:
        return None
    if kind is nn.SimpleCell:
        if cell.residual:
            return None
    elif cell.gate_fn is not nn.sigmoid or cell.activation_fn is not nn.tanh:
        return None
    maps = nn.meta.unbox(variables["params"])
    of_inputs, of_states = ([maps[name] for name in names] for names in _FORMS[kind])
    biased = of_inputs if kind in (nn.GRUCell, nn.SimpleCell) else of_states
    leaves = jax.tree.leaves(maps)
    if any(leaf.dtype != leaves[0].dtype for leaf in leaves):
        return None
    if of_states[0]["kernel"].shape[0] != cell.features:
        return None
    params = {
        "input_kernel": _joined(of_inputs, "kernel"),
        "recurrent_kernel": _joined(of_states, "kernel"),
        "bias": _joined(biased, "bias"),
    }
    if kind is nn.SimpleCell:
        return Elman(cell.features, activation=cell.activation_fn), params
    if kind is nn.GRUCell:
        return GRU(cell.features), params | {"recurrent_bias": maps["hn"]["bias"]}
    return LSTM(cell.features), params


def _joined(maps: list[Any], part: str) -> Array:
    """Concatenate the kernels or biases of several linear maps."""
    return jnp.concatenate([own[part] for own in maps], -1)
