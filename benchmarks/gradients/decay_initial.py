"""Gradient decay at initialization, by the library's instruments and, for proof, by
explicit Jacobian products in float64.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.tasks import probe as probes
from jaxrnn.tasks.models.cell_registry import make_cell
from jaxrnn.tasks.probe import Probe, as_json, lags_of
from jaxrnn.tasks.synthetic.adding import draw

LAGS = (10, 50, 199)
FIRST_LAG = 20  # of the fit; a third of T where that is less


def fit_range(steps: int) -> tuple[int, int]:
    """The lags over which beta is fitted."""
    return min(FIRST_LAG, steps // 3), steps - 1


def probe_of(cell: Any, drawn: dict) -> Probe:
    """The adding task's loss, through a random readout."""
    inputs, targets, readout = drawn["inputs"], drawn["targets"], drawn["readout"]

    def loss(y, target):
        return jnp.square(y @ readout - target).sum()

    every = jnp.broadcast_to(targets, (inputs.shape[0], *targets.shape))
    return Probe(cell, drawn["cell"], inputs, loss, every)


def draw_all(cell: Any, seed: int, hidden: int, steps: int, batch: int) -> dict:
    """The cell's parameters, the readout's and the sequences, all drawn from one
    seed.
    """
    k_cell, k_readout, k_data = jax.random.split(jax.random.key(seed), 3)
    data = draw("halves", k_data, steps, batch)
    readout = jax.random.normal(k_readout, (hidden,)) / np.sqrt(hidden)
    return {
        "cell": cell.init(k_cell, 2),
        "readout": readout,
        "inputs": data.inputs,
        "targets": data.targets[-1],
    }


def measure(spec: str, seeds: int, hidden: int, steps: int, batch: int) -> dict:
    """Means and standard deviations over seeds, every seed's beta, and the mean
    curve of log v_k/v_0.
    """
    cell = make_cell(spec, hidden, steps)
    probe, found = functools.partial(probe_of, cell), []
    for seed in range(seeds):
        drawn = draw_all(cell, seed, hidden, steps, batch)
        found.append(
            jax.tree.map(
                np.asarray,
                probes.measure(probe, drawn, jax.random.key(seed), fit_range(steps)),
            )
        )
    curves = np.stack([f.log_v - f.log_v[0] for f in found])
    beta = np.array([f.fit.beta for f in found])
    leading = np.array([f.exponents[0] for f in found])
    lags = [min(k, steps) for k in LAGS]
    return {
        "cell": spec,
        "beta": as_json(beta.mean()),
        "beta_sd": as_json(beta.std(ddof=1)) if seeds > 1 else None,
        "beta_of_seeds": as_json(beta),
        "interval_of_first_seed": as_json([found[0].fit.low, found[0].fit.high]),
        "residual_nats": as_json(np.mean([f.fit.residual for f in found])),
        "tau": as_json(-1 / np.log(beta.mean()) if beta.mean() < 1 else np.inf),
        "log10_v": {str(k): as_json(curves[:, k].mean() / np.log(10)) for k in lags},
        "memory_horizon": as_json(np.array([f.horizon for f in found])),
        "leading_exponent": as_json(leading.mean()),
        "leading_exponent_sd": as_json(leading.std(ddof=1)) if seeds > 1 else None,
        "mean_log_v": as_json(curves.mean(0)),
    }


def explicit_difference(
    spec: str, seed: int, hidden: int, steps: int, batch: int
) -> dict:
    """The same v_k in float64 by multiplying out explicit Jacobians one after the
    other, and the largest difference in nats.

    The instrument runs in float32 as everywhere in the table; both see the same
    parameters and inputs.
    """
    cell = make_cell(spec, hidden, steps)
    drawn = draw_all(cell, seed, hidden, steps, batch)
    found = np.asarray(lags_of(probe_of(cell, drawn)).log_v)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), drawn)
        layer, own, xs, loss, targets = probe_of(cell, wide)
        step = jax.jit(lambda s, x: layer(own, s, x)[0])
        flat_step = jax.jit(lambda v, x, like: _flat(step(_unflat(v, like), x)))
        jacobian = jax.jit(jax.vmap(jax.jacrev(flat_step), (0, 0, 0)))
        carries = [cell.initial_carry(own, (batch,))]
        for x in xs:
            carries.append(step(carries[-1], x))
        last = jax.grad(lambda s: loss(layer.output(own, s, xs[-1]), targets[-1]))(
            carries[-1]
        )
        row = np.asarray(jax.vmap(_flat)(last))
        log, norms = np.zeros(batch), []
        for t in range(steps, -1, -1):
            size = np.linalg.norm(row, axis=-1)
            log, row = log + np.log(size), row / size[:, None]
            norms.append(np.log(np.mean(np.exp(log - log.max()))) + log.max())
            if t:
                J = np.asarray(
                    jacobian(jax.vmap(_flat)(carries[t - 1]), xs[t - 1], carries[t - 1])
                )
                row = np.einsum("bi,bij->bj", row, J)
    first, last = fit_range(steps)
    fitted = np.array(norms)[first : last + 1]
    beta = (
        np.exp(np.polyfit(np.arange(first, last + 1), fitted, 1)[0])
        if np.isfinite(fitted).all()
        else np.nan
    )
    return {
        "largest_difference_nats": as_json(np.abs(found - norms).max()),
        "beta_float64": as_json(beta),
    }


def _parts(leaf: jax.Array) -> jax.Array:
    """A leaf as real numbers: real parts, then imaginary ones."""
    return jnp.stack([leaf.real, leaf.imag]) if jnp.iscomplexobj(leaf) else leaf[None]


def _flat(carry: Any) -> jax.Array:
    return jnp.concatenate(
        [_parts(leaf).reshape(-1) for leaf in jax.tree.leaves(carry)]
    )


def _unflat(vector: jax.Array, like: Any) -> Any:
    leaves, structure = jax.tree.flatten(like)
    shapes = [_parts(leaf).shape for leaf in leaves]
    cut = jnp.split(vector, np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1])
    parts = [v.reshape(shape) for v, shape in zip(cut, shapes, strict=True)]
    return jax.tree.unflatten(
        structure, [jax.lax.complex(*v) if len(v) == 2 else v[0] for v in parts]
    )
