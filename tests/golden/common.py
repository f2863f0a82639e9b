"""What the scripts here share: drawing, answering on JAX, and JSON with one line an
array.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np

LENGTHS = np.array([4, 2])
STEPS, BATCH, INPUTS = 4, 2, 3


def draw(rng, shape, dtype):
    """Rounded to three decimals, to keep the file readable."""
    return (0.5 * rng.normal(size=shape)).round(3).astype(dtype)


def answered(run, weights, dtype, seed):
    """The weights, the inputs of a ragged batch and what ``run(weights, xs (T, B, D))
    -> (ys, states)`` makes of them.

    ``gradients`` are those of ``sum(y * cotangents[0]) + sum(states[0] * cotangents[1])
    + ...``.
    """
    rng = np.random.default_rng([seed, 1])  # other numbers than the weights'
    xs = draw(rng, (STEPS, BATCH, INPUTS), dtype)
    (ys, states), pullback = jax.vjp(run, weights, jnp.asarray(xs))
    cs = [draw(rng, a.shape, dtype) for a in (ys, *states)]
    by_weight, by_x = pullback((jnp.asarray(cs[0]), list(map(jnp.asarray, cs[1:]))))
    return {
        "weights": weights,
        "x": xs,
        "lengths": LENGTHS,
        "y": ys,
        "states": states,
        "cotangents": cs,
        "gradients": {"x": by_x, "weights": by_weight},
    }


def to_json(value, indent=""):
    """JSON with one line per array (`json.dumps` would give either one line in all
    or one per number).
    """
    inner = indent + " "
    if isinstance(value, dict):
        items = (
            f"{inner}{json.dumps(key)}: {to_json(item, inner)}"
            for key, item in value.items()
        )
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list):
        return (
            "[\n"
            + ",\n".join(inner + to_json(item, inner) for item in value)
            + f"\n{indent}]"
        )
    if not hasattr(value, "tolist"):
        return json.dumps(value)
    array = np.asarray(value.detach() if hasattr(value, "detach") else value)
    if (
        array.dtype == np.float32
    ):  # as short as it reads back: its float64 has digits that mean nothing
        array = np.array([float(str(number)) for number in array.ravel()]).reshape(
            array.shape
        )
    return json.dumps(array.tolist())
