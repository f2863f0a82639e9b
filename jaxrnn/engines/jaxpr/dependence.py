"""On which group of a carry's numbers each number of a program depends.

The numbers of some arguments are divided into groups, such as the examples of a batch
or the units of a layer, and each of them is labelled by the number of its group. Labels
are then followed through the equations of a jaxpr: a number that depends on arguments
of one group alone has the label of that group, `NONE` if it depends on no labelled
argument, and `MANY` if it depends on more than one group, or if an equation is not in
the tables below. So ``MANY`` may be too careful, but a label is never wrong.

Labels are NumPy arrays of the shapes of the values, or None where all of them are
`NONE`. Nothing is computed by JAX.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend import core
from jax.extend.core import Jaxpr

from .evaluate import CALLS

NONE, MANY = -1, -2
Labels = np.ndarray | None
# A rule for one equation: its labels, or None where the tables below apply.
Rule = Callable[[Any, list[Labels]], Labels]

ELEMENTWISE = (
    "add add_any sub mul div rem neg sign floor ceil round is_finite exp exp2 log log2 "
    "log1p expm1 tanh logistic sin cos tan asin acos atan atan2 sinh cosh asinh acosh "
    "atanh sqrt rsqrt cbrt square one_minus_square integer_pow pow abs max min "
    "select_n clamp eq ne lt le gt ge and or xor not nextafter erf erfc erf_inv lgamma "
    "digamma polygamma bessel_i0e bessel_i1e igamma igammac "
    "regularized_incomplete_beta convert_element_type reduce_precision real imag "
    "complex conj name sharding_constraint "
    "stop_gradient copy copy_p pvary jaxrnn_fence jaxrnn_gradient_scale"
)
CUMULATIVE = {"cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"}
JOINING = ("concatenate", "stack", "pad")  # whose operands lie side by side
INNER = {
    **dict.fromkeys(CALLS, "jaxpr"),
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}


def join(*labels: Any) -> np.ndarray:
    """Join labels of operands, elementwise and with broadcasting."""

    def pair(a, b):
        return np.where(
            a == NONE, b, np.where((b == NONE) | (a == b), a, np.full_like(a, MANY))
        )

    return functools.reduce(pair, labels)


def join_over(labels: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Join labels along axes, which become 1."""
    for axis in axes:
        if labels.shape[axis] == 0:
            labels = np.full_like(labels, NONE, shape=_with_one(labels.shape, axis))
            continue
        named = np.where(labels == NONE, np.iinfo(labels.dtype).max, labels)
        low, high = named.min(axis, keepdims=True), labels.max(axis, keepdims=True)
        low = np.where(low == np.iinfo(labels.dtype).max, NONE, low)
        labels = np.where((low == high) | (low == NONE), low, MANY)
    return labels


def follow(
    jaxpr: Jaxpr,
    labels: Sequence[Labels],
    rule: Rule | None = None,
    mixing: list[Any] | None = None,
) -> list[Labels]:
    """Return the labels of a jaxpr's results.

    Args:
        jaxpr: the jaxpr; its constants have no label.
        labels: the labels of its arguments, or None for each.
        rule: a rule that is asked first for each ``dot_general`` that is not inside
            another equation.
        mixing: a list to which the equations are added whose results depend on many
            groups while each operand depends on one.
    """
    env: dict[Any, Labels] = dict(zip(jaxpr.invars, labels, strict=True))

    def label(atom):
        return None if isinstance(atom, core.Literal) else env.get(atom)

    for eqn in jaxpr.eqns:
        operands = [label(v) for v in eqn.invars]
        if all(a is None for a in operands):
            continue
        results = _results(eqn, operands, rule)
        for var, result in zip(eqn.outvars, results, strict=True):
            env[var] = None if result is None or (result == NONE).all() else result
        if mixing is not None and _has_many(results) and not _has_many(operands):
            mixing.append(eqn)
    return [label(v) for v in jaxpr.outvars]


def _results(eqn: Any, labels: list[Labels], rule: Rule | None) -> list[Labels]:
    """Return the labels of an equation's results; some operand has a label."""
    name = eqn.primitive.name
    if name in INNER:
        inner = eqn.params[INNER[name]]
        return follow(_open(inner), labels)
    if name in ("scan", "while", "cond"):
        return {"scan": _scan, "while": _while, "cond": _cond}[name](eqn, labels)
    shapes = [v.aval.shape for v in eqn.outvars]
    if name == "split":
        ends = np.cumsum(eqn.params["sizes"])[:-1]
        return list(np.split(_whole(eqn, labels, 0), ends, eqn.params["axis"]))
    if name == "unstack":
        return list(np.moveaxis(_whole(eqn, labels, 0), eqn.params["axis"], 0))
    if name == "optimization_barrier":
        return labels
    result = rule(eqn, labels) if rule and name == "dot_general" else None
    if result is None:
        result = _labels_of(name, eqn, labels)
    if result is not None:
        return [np.broadcast_to(result, shape) for shape in shapes]
    everything = _one_label(labels)
    return [np.full(shape, everything, np.int32) for shape in shapes]


def _labels_of(name: str, eqn: Any, labels: list[Labels]) -> Labels:
    """Return the labels of an equation's result, or None for an unknown equation."""
    out, params = eqn.outvars[0].aval, eqn.params
    if name in ELEMENTWISE.split():
        return join(*(a for a in labels if a is not None))
    if name in CUMULATIVE:
        return join_over(_whole(eqn, labels, 0), [params["axis"]])
    if name == "dot_general":
        return _dot_general(eqn, labels)
    if name == "dynamic_update_slice" and all(a is None for a in labels[2:]):
        whole, part = _whole(eqn, labels, 0), _whole(eqn, labels, 1)
        cut = [i for i, d in enumerate(part.shape) if d != whole.shape[i]]
        return join(whole, join_over(part, cut))
    if any(a is not None for a in labels[1:]) and name not in JOINING:
        return None
    first = _whole(eqn, labels, 0)
    if name.startswith(("reduce_", "arg")) and "axes" in params:
        return join_over(first, params["axes"]).reshape(out.shape)
    if name in ("reshape", "squeeze", "expand_dims"):
        order = params.get("dimensions") if name == "reshape" else None
        return (first if order is None else first.transpose(order)).reshape(out.shape)
    if name == "broadcast_in_dim":
        shape = [1] * out.ndim
        for i, axis in enumerate(params["broadcast_dimensions"]):
            shape[axis] = first.shape[i]
        return first.reshape(shape)
    if name == "transpose":
        return first.transpose(params["permutation"])
    if name == "rev":
        return np.flip(first, params["dimensions"])
    if name == "concatenate":
        every = [_whole(eqn, labels, i) for i in range(len(labels))]
        return np.concatenate(every, params["dimension"])
    if name == "stack":
        every = [_whole(eqn, labels, i) for i in range(len(labels))]
        return np.stack(every, params["axis"])
    if name == "tile":
        return np.tile(first, params["reps"])
    if name == "slice":
        strides = params["strides"] or (1,) * first.ndim
        ends = zip(
            params["start_indices"], params["limit_indices"], strides, strict=True
        )
        return first[tuple(slice(*each) for each in ends)]
    if name == "dynamic_slice":
        cut = [i for i, d in enumerate(params["slice_sizes"]) if d != first.shape[i]]
        return join_over(first, cut)
    if name == "pad" and labels[1] is None:
        return _pad(first, params["padding_config"])
    if name == "conv_general_dilated":
        batch, *_ = params["dimension_numbers"].lhs_spec
        joined = join_over(first, [i for i in range(first.ndim) if i != batch])
        shape = [1] * out.ndim
        shape[params["dimension_numbers"].out_spec[0]] = first.shape[batch]
        return joined.reshape(shape) if params["batch_group_count"] == 1 else None
    return None


def product_axes(eqn: Any, side: int) -> tuple[list[int], list[int], list[int]]:
    """Return the batch, free and contracted axes of an operand of a product."""
    over, batch = (list(pair[side]) for pair in eqn.params["dimension_numbers"])
    ndim = len(eqn.invars[side].aval.shape)
    return batch, [i for i in range(ndim) if i not in (*batch, *over)], over


def _dot_general(eqn: Any, labels: list[Labels]) -> np.ndarray:
    """Join the labels of the numbers that are multiplied and added."""
    sides = []
    for side, a in enumerate(labels):
        if a is None:
            continue
        batch, free, over = product_axes(eqn, side)
        joined = join_over(a, over).transpose((*batch, *free, *over))
        shape = [a.shape[i] for i in batch]
        own = [a.shape[i] for i in free]
        other = [1] * len(product_axes(eqn, 1 - side)[1])
        # One tuple: NumPy refuses to reshape to no arguments at all, a number's shape.
        sides.append(joined.reshape((*shape, *(other + own if side else own + other))))
    return join(*sides)


def _pad(labels: np.ndarray, config: Any) -> Labels:
    """Pad labels; the padding depends on nothing."""
    if any(low < 0 or high < 0 for low, high, _ in config):
        return None
    shape = [
        low + high + max(d + (d - 1) * inner, 0)
        for d, (low, high, inner) in zip(labels.shape, config, strict=True)
    ]
    out = np.full(shape, NONE, labels.dtype)
    out[
        tuple(
            slice(low, n - high, inner + 1)
            for n, (low, high, inner) in zip(shape, config, strict=True)
        )
    ] = labels
    return out


def _scan(eqn: Any, labels: list[Labels]) -> list[Labels]:
    """Follow a scan to the fixed point of its carry's labels."""
    params = eqn.params
    if "ft_in" in params:  # newer versions of jax keep the groups of operands in trees
        groups = params["ft_in"].update(range(len(labels))).unpack()
        consts, carry, _ = map(len, groups)
    else:
        consts, carry = params["num_consts"], params["num_carry"]
    jaxpr = _open(params["jaxpr"])
    rows = [
        None if a is None else join_over(a, [0])[0] for a in labels[consts + carry :]
    ]
    state = labels[consts : consts + carry]
    while True:
        out = follow(jaxpr, [*labels[:consts], *state, *rows])
        new = [_join_or_none(a, b) for a, b in zip(state, out, strict=False)]
        if all(map(_same, new, state)):
            ys = zip(out[carry:], eqn.outvars[carry:], strict=True)
            return [
                *state,
                *(
                    None if a is None else np.broadcast_to(a, v.aval.shape)
                    for a, v in ys
                ),
            ]
        state = new


def _while(eqn: Any, labels: list[Labels]) -> list[Labels]:
    """Follow a while loop whose condition depends on no label."""
    params = eqn.params
    of_cond, of_body = params["cond_nconsts"], params["body_nconsts"]
    consts = labels[of_cond : of_cond + of_body]
    state = labels[of_cond + of_body :]
    while True:
        test = [*labels[:of_cond], *state]
        if follow(_open(params["cond_jaxpr"]), test)[0] is not None:
            return _everywhere(eqn, labels)
        out = follow(_open(params["body_jaxpr"]), [*consts, *state])
        new = [_join_or_none(a, b) for a, b in zip(state, out, strict=True)]
        if all(map(_same, new, state)):
            return state
        state = new


def _cond(eqn: Any, labels: list[Labels]) -> list[Labels]:
    """Join the branches of a cond whose predicate depends on no label."""
    if labels[0] is not None:
        return _everywhere(eqn, labels)
    branches = [follow(_open(b), labels[1:]) for b in eqn.params["branches"]]
    return [
        functools.reduce(_join_or_none, each) for each in zip(*branches, strict=True)
    ]


def _everywhere(eqn: Any, labels: list[Labels]) -> list[Labels]:
    """Let every result depend on every operand."""
    label = _one_label(labels)
    return [np.full(v.aval.shape, label, np.int32) for v in eqn.outvars]


def _has_many(labels: list[Labels]) -> bool:
    return any(a is not None and bool((a == MANY).any()) for a in labels)


def _one_label(labels: list[Labels]) -> int:
    """Return the one label that occurs, or `MANY`."""
    found = {int(n) for a in labels if a is not None for n in np.unique(a)} - {NONE}
    return found.pop() if len(found) == 1 else MANY


def _join_or_none(a: Labels, b: Labels) -> Labels:
    return b if a is None else a if b is None else join(a, b)


def _same(a: Labels, b: Labels) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


def _whole(eqn: Any, labels: list[Labels], i: int) -> np.ndarray:
    """Return the labels of an operand, written out."""
    a = labels[i]
    return np.full(eqn.invars[i].aval.shape, NONE, np.int32) if a is None else a


def _open(jaxpr: Any) -> Any:
    return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def _with_one(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], 1, *shape[axis + 1 :])
