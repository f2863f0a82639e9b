"""What the library computes beside plain walks, in small: each a dict of arrays.

Truncated backpropagation, generation, beam search, random truncation, the instruments
that look at gradients, and the initialisers. Everything but what is float32 by design
is float64, and all keys are fixed.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import names, walks

T, B, D, H = 7, 2, 3, 4
SYMBOLS = 6
Arrays = dict[str, Any]


def shaped(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float64)


def flat(name: str, tree: Any) -> Arrays:
    """The leaves of a tree by name and number, keys and Nones left out."""
    return walks.numbered(name, tree)


def model(D: int = D) -> tuple[Any, dict[str, Any]]:
    """An LSTM and a readout of as many symbols as there are features."""
    cell = names.cells(H, D)["lstm"]
    params = cell.init(jax.random.key(1), D)
    params = jax.tree.map(jnp.add, params, walks.drawn(params, "model", 0.3))
    return cell, {"cell": params, "readout": walks.drawn(shaped(H, D), "readout")}


def tbptt_of(cell: Any, k1: int, k2: int, **options: Any) -> Any:
    """TBPTT of an LSTM and a readout, with the squared error of every step."""

    def losses(params, carry, window):
        if options:
            how = {"mask": window.mask, "resets": window.resets}
            walk = names.find("truncated_unroll")
            _, ys, carries = walk(
                cell,
                params["cell"],
                window.inputs,
                carry,
                gradient_scale=window.gradient_scale,
                return_carries=True,
                **how,
            )
        else:
            ys, carries = names.walk_with_carries(
                cell, params["cell"], window.inputs, carry, window
            )
        return jnp.square(ys @ params["readout"] - window.targets).mean(-1), carries

    def first(params, batch):
        return cell.initial_carry(params["cell"], batch)

    return names.find("TBPTT")(losses, first, k1=k1, k2=k2, **options)


def sequences(count: int) -> list[Any]:
    """Pieces of a sequence, ragged, with a reset."""
    found = []
    for i in range(count):
        xs, targets = (
            walks.drawn(shaped(T, B, D), f"{w} {i}") for w in ("xs", "targets")
        )
        flags = np.asarray(walks.drawn(shaped(2, T, B), f"flags {i}"))
        mask, resets = jnp.asarray(flags[0] < 1), jnp.asarray(flags[1] < -1)
        found.append(names.find("Window")(xs, targets, mask, resets))
    return found


def tbptt() -> Arrays:
    """Gradients of three pieces, then updates after every window of the same."""
    cell, params = model()
    way, found = tbptt_of(cell, 2, 3), {}
    pieces = sequences(3)
    state = way.init(params, pieces[0], (B,))
    for i, piece in enumerate(pieces):
        loss, gradients, state = way.value_and_grad(params, piece, state)
        found |= {f"loss {i}": loss} | flat(f"gradients {i}", gradients)
    state, optimiser = way.init(params, pieces[0], (B,)), optax.sgd(0.1)
    memory = optimiser.init(params)
    for i, piece in enumerate(pieces):
        params, memory, loss, state = way.update(
            optimiser, params, memory, piece, state
        )
        found |= {f"loss of updates {i}": loss}
    return found | flat("updated", params) | flat("carry", state.carry)


def random_truncation() -> Arrays:
    """ARTBP: draws, probabilities, gradients under them, and a TBPTT that has it."""
    artbp, found = names.find("ARTBP")(mean_length=3.0, alpha=4.0), {}
    flags = np.asarray(walks.drawn(shaped(2, 12, B), "artbp"))
    mask, resets = jnp.asarray(flags[0] < 1), jnp.asarray(flags[1] < -1.3)
    scale = artbp.sample(jax.random.key(3), 12, (B,))
    found["scale"] = scale
    found["scale with flags"] = artbp.sample(jax.random.key(4), 12, (B,), mask, resets)
    found["probabilities"] = artbp.probabilities(scale == 0)
    found["scale of cuts"], found["log probability"] = artbp.scale_of(scale == 0)
    cell, params = model()
    xs = walks.drawn(shaped(12, B, D), "artbp xs")

    def loss(params):
        return jnp.square(names.walk(cell, params, xs, None, {"scale": scale})[1]).sum()

    found |= flat("gradient", jax.grad(loss)(params["cell"]))
    way, piece = tbptt_of(cell, 3, 5, truncation=artbp), sequences(1)[0]
    state = way.init(params, piece, (B,))
    drawn = way.value_and_grad(params, piece, state, key=jax.random.key(5))
    return found | {"loss": drawn[0]} | flat("gradients", drawn[1])


def symbols() -> tuple[Callable, Any]:
    """A streaming step of a model over symbols, and its first carry."""
    cell, params = model(SYMBOLS)

    def step(carry, token):
        carry, y = cell(params["cell"], carry, jax.nn.one_hot(token, SYMBOLS))
        return carry, 3 * (y @ params["readout"])

    return step, cell.initial_carry(params["cell"], (B,))


def generation() -> Arrays:
    """Texts drawn at several temperatures, with and without top-k, and greedily."""
    step, carry = symbols()
    prompt = jnp.asarray([[1, 2], [3, 0]], jnp.int32)
    asked = {
        "drawn": {"key": jax.random.key(2)},
        "cool": {"key": jax.random.key(2), "temperature": 0.5},
        "of three": {"key": jax.random.key(2), "top_k": 3},
        "greedy": {"temperature": 0.0},
    }
    found = {}
    for name, options in asked.items():
        told = names.find("generate")(step, carry, prompt, 9, **options)
        found |= {f"{name} tokens": told.tokens, f"{name} logits": told.logits}
        found |= flat(f"{name} carry", told.carry)
    return found


def beams() -> Arrays:
    """The likeliest texts, by width and penalty."""
    step, carry = symbols()
    start, found = jnp.asarray([1, 2], jnp.int32), {}
    for width, penalty in ((1, 0.0), (3, 0.0), (3, 1.0)):
        options = {"end": 0, "width": width, "length": 6, "length_penalty": penalty}
        told = names.find("beam_search")(step, carry, start, **options)
        name = f"width {width} penalty {penalty}"
        found |= {f"{name} tokens": told.tokens, f"{name} lengths": told.lengths}
        found[f"{name} scores"] = told.scores
    return found


def squared(y: Any) -> Any:
    return jnp.square(y).sum()


def lags() -> Arrays:
    """Where the gradient of a loss goes, lag by lag, and how it decays."""
    cell, params = model()
    given = (cell, params["cell"], walks.drawn(shaped(12, B, D), "lags"))
    told = names.find("gradient_lags")(*given, squared)
    found = {"log norm": told.log_norm, "exists": told.exists, "log v": told.log_v}
    found |= flat("by leaf", told.by_leaf)
    mask, resets = sequences(1)[0][2:4]
    short = (cell, params["cell"], given[2][:T])
    ragged = names.find("gradient_lags")(*short, squared, mask=mask, resets=resets)
    found |= {"ragged": ragged.log_norm, "ragged exists": ragged.exists}
    found["map"] = names.find("gradient_map")(*short, lambda y, _: squared(y))
    by_params = names.find("parameter_lags")(*given, squared)
    found |= {
        f"parameters {name}": getattr(by_params, name)
        for name in ("log_norm", "log_sum", "log_rest", "log_whole", "truncation_error")
    }
    found |= flat("parameters by leaf", by_params.by_leaf)
    fit = names.find("fit_decay")(told, (1, 10), key=jax.random.key(6), resamples=50)
    found |= {f"fit {name}": value for name, value in fit._asdict().items()}
    found["horizon"] = names.find("memory_horizon")(told.log_v, 0.5)
    kept = names.find("adaptive_truncation")(
        by_params.log_norm, by_params.log_sum, relative_error=0.5, fit_range=(1, 10)
    )
    return found | {f"adaptive {name}": value for name, value in kept._asdict().items()}


def spectra() -> Arrays:
    """Jacobians of an LSTM, their products, and its Lyapunov exponents."""
    cell, params = model()
    given = (cell, params["cell"], walks.drawn(shaped(10, B, D), "spectra"))
    found = {"jacobians": names.find("jacobians")(*given)}
    products = names.find("jacobian_products")(found["jacobians"])
    found["log scale"] = products.log_scale
    values = names.find("log_singular_values")(products)
    found["log singular values"] = values[:4]  # later ones drown in rounding
    told = names.find("lyapunov_spectrum")(*given, key=jax.random.key(8), warmup=2)
    return found | {"exponents": told.exponents}


def gates() -> Arrays:
    """Statistics of gates of an LSTM and a GRU."""
    found = {}
    xs = walks.drawn(shaped(12, B, D), "gates")
    for name in ("lstm", "gru"):
        cell = names.cells(H, D)[name]
        params = cell.init(jax.random.key(1), D)
        params = jax.tree.map(jnp.add, params, walks.drawn(params, name, 1.0))
        for gate, told in names.find("gate_statistics")(cell, params, xs).items():
            parts = told._asdict().items()
            found |= {f"{name} {gate} {part}": value for part, value in parts}
    return found


def bias() -> Arrays:
    """How far truncated gradients lie from the full one."""
    cell, params = model()
    piece = sequences(1)[0]
    way = tbptt_of(cell, 1, 1)
    told = names.find("truncation_bias")(
        way, params, piece, [1, 3, T], batch_shape=(B,)
    )
    found = {"error": told.relative_error, "cosine": told.cosine}
    return found | flat("by leaf", told.by_leaf)


def initialisers() -> Arrays:
    """What every initialiser draws, and ``init`` of some cells in float32."""
    key, found = jax.random.key(9), {}
    for name, draw in names.initialisers().items():
        shape = (4,) if name in ("chrono", "linspace", "power law") else (4, 4)
        found[name] = draw(key, shape, jnp.float64)
        found[f"{name} float32"] = draw(key, shape, jnp.float32)
    for name in ("elman", "lstm", "gru", "lru", "mlstm"):
        drawn = walks.by_path(walks.initial(name, jnp.float32))
        found |= {f"{name} {path}": array for path, array in drawn.items()}
    return found


FUNCTIONS = {
    "tbptt": tbptt,
    "random truncation": random_truncation,
    "generation": generation,
    "beams": beams,
    "lags": lags,
    "spectra": spectra,
    "gates": gates,
    "bias": bias,
    "initialisers": initialisers,
}


def difference(found: Any, expected: np.ndarray) -> float:
    """The largest error against the largest finite number; marks must be the same.

    Errors of 1e-15 are none: some numbers are nothing but rounding.
    """
    found = np.asarray(found)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(found[~finite], expected[~finite])
    if not finite.any():
        return 0.0
    wide = "complex128" if np.iscomplexobj(expected) else "float64"
    found, expected = found[finite].astype(wide), expected[finite].astype(wide)
    most = np.abs(expected).max()
    error = np.abs(found - expected).max()
    return 0.0 if error < 1e-15 else float(error / (most or 1.0))
