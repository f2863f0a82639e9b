"""What the library calls things now: the one module to edit when a public name changes.

The frozen data and the tests speak of cells, engines and options by names of their own,
those of the tables here. Each is translated here, and only here, into what the library
wants today. Where it says something in other words than it did, `REWORDED` translates
them back; where a parameter has another path, `PATHS` does.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

import jaxrnn

# Present words of `jaxrnn.explain`, and those of the frozen data in their place.
REWORDED: dict[str, str] = {
    "Scan(chunk=": "Scan(window=",
    "Checkpoint(chunk=": "Checkpoint(segment=",
    "save='dots'": "residuals='gates'",
    "save='carries'": "residuals='carries'",
    "save='everything'": "residuals='all'",
}

# Paths of parameters in the frozen data, and the present ones where they differ.
PATHS: dict[str, str] = {}


# Where each public thing is, for `find`.
PLACES = {
    name: f"jaxrnn.{name}"
    for name in (
        "TBPTT",
        "Window",
        "ARTBP",
        "generate",
        "beam_search",
        "truncated_unroll",
    )
} | {
    name: f"jaxrnn.diagnostics.{name}"
    for name in (
        *("gradient_lags", "gradient_map", "parameter_lags", "fit_decay", "jacobians"),
        *("memory_horizon", "jacobian_products", "log_singular_values"),
        *("lyapunov_spectrum", "gate_statistics", "truncation_bias"),
        "adaptive_truncation",
    )
}


def find(name: str) -> Any:
    """The public function or class that the frozen data call ``name``."""
    module, _, attribute = PLACES[name].rpartition(".")
    return getattr(importlib.import_module(module), attribute)


# --- engines --------------------------------------------------------------------------


def engine(name: str) -> Any:
    """The engine that the frozen data call so; None is the default one."""
    return ENGINES[name]()


ENGINES = {
    "default": lambda: None,
    "scan": lambda: jaxrnn.Scan(),
    "scan, unroll 2": lambda: jaxrnn.Scan(unroll=2),
    "scan, window 2": lambda: jaxrnn.Scan(chunk=2),
    "scan, window 7": lambda: jaxrnn.Scan(chunk=7),
    "scan, hoisted": lambda: jaxrnn.Scan(hoist=True),
    "scan, not hoisted": lambda: jaxrnn.Scan(hoist=False),
    "scan, gates kept": lambda: jaxrnn.Scan(save="dots"),
    "scan, carries kept": lambda: jaxrnn.Scan(save="carries"),
    "scan, all kept": lambda: jaxrnn.Scan(save="everything"),
    "checkpoint": lambda: jaxrnn.Checkpoint(),
    "checkpoint 2": lambda: jaxrnn.Checkpoint(2),
    "associative": lambda: jaxrnn.Associative(),
    "associative 2": lambda: jaxrnn.Associative(chunk=2),
    "fused": lambda: jaxrnn.Fused(),
    "fused, carries kept": lambda: jaxrnn.Fused(save="carries"),
    "fused, little memory": lambda: jaxrnn.Fused(memory=20_000),
    "cudnn": lambda: jaxrnn.CuDNN(),
}


# --- walks ----------------------------------------------------------------------------


def walk(layer: Any, params: Any, xs: Any, carry: Any, how: dict[str, Any]) -> Any:
    """The last carry and the outputs, ``how`` being options by their frozen names.

    They are ``engine`` (a name), ``mask``, ``resets``, ``reverse``, ``key``, and
    ``window`` or ``scale`` for gradients cut or scaled in time.
    """
    how = dict(how)
    options = {"engine": engine(how.pop("engine", "default"))}
    cuts = {"window": "window", "scale": "gradient_scale"}
    cut = {cuts[name]: how.pop(name) for name in list(cuts) if name in how}
    unroll = jaxrnn.truncated_unroll if cut else jaxrnn.unroll
    return unroll(layer, params, xs, carry, **options, **cut, **how)


def walk_with_carries(layer: Any, params: Any, xs: Any, carry: Any, window: Any) -> Any:
    """Outputs and the carries after every step, under the flags of a TBPTT window."""
    flags = {"mask": window.mask, "resets": window.resets}
    return jaxrnn.unroll(layer, params, xs, carry, return_carries=True, **flags)[1:]


def explain_as_data(layer: Any, params: Any, xs: Any, **options: Any) -> dict[str, Any]:
    """What `jaxrnn.explain` says, as plain data; ``engine`` is a frozen name.

    A row for each cell and platform. ``needed`` and ``there`` are bytes.
    """
    options["engine"] = engine(options.get("engine", "default"))
    told = jaxrnn.explain(layer, params, xs, **options)
    rows = [
        {name: getattr(row, name) for name in ROW}
        | {
            name: {was: getattr(getattr(row, name), now) for was, now in WAY.items()}
            for name in WAYS
        }
        for row in told.rows
    ]
    return as_it_was({"title": told.title, "rows": rows, "printed": str(told)})


ROW = ("number", "place", "cell", "platform", "engine", "why", "error")
WAYS = ("forward", "recording", "backward", "kernel")
WAY = {
    "how": "kind",
    "steps": "steps",
    "hoisted": "hoisted",
    "reason": "reason",
    "needed": "bytes_required",
    "there": "bytes_available",
}


def as_it_was(told: Any) -> Any:
    """Present words translated back, in texts however deep."""
    if isinstance(told, dict):
        return {name: as_it_was(part) for name, part in told.items()}
    if isinstance(told, (list, tuple)):
        return [as_it_was(part) for part in told]
    if not isinstance(told, str):
        return told
    for present, frozen in REWORDED.items():
        told = told.replace(present, frozen)
    return re.sub(r" at 0x[0-9a-f]+", " at 0x0", told)  # where a function lies


def path_of(frozen: str) -> str:
    """Where a parameter is now that the frozen data have under ``frozen``."""
    for before, after in PATHS.items():
        frozen = frozen.replace(before, after)
    return frozen


# --- programs and files ---------------------------------------------------------------


def command(words: list[str]) -> str:
    """What ``jaxrnn WORDS`` prints; it has to succeed."""
    from jaxrnn.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(words)
    assert status == 0, (words, err.getvalue())
    return out.getvalue()


# Lines of metrics.jsonl hold more today: scores of baselines, and a sample begins with
# its prompt, which for the text of the frozen run is "The ".
NEW_METRICS = ("unigram_bits_per_char", "bigram_bits_per_char")
PROMPT = "The "


def metrics_as_they_were(text: str) -> str:
    """Lines of ``metrics.jsonl`` without what was added to them."""
    lines = []
    for line in text.splitlines():
        record = json.loads(line)
        kept = {n: value for n, value in record.items() if n not in NEW_METRICS}
        if "sample" in kept:
            assert kept["sample"].startswith(PROMPT)
            kept["sample"] = kept["sample"].removeprefix(PROMPT)
        lines.append(json.dumps(kept, ensure_ascii=False) + "\n")
    return "".join(lines)


def save_checkpoint(folder: pathlib.Path, step: int, state: Any) -> None:
    """Save a state as a training run does."""
    from jaxrnn.training import Checkpoints

    checkpoints = Checkpoints(folder)
    checkpoints.save(step, state, {"words": "kept beside it"})
    checkpoints.close()


def restore_checkpoint(folder: pathlib.Path, template: Any) -> tuple[int, Any, Any]:
    """The step, the state and what was kept beside it."""
    from jaxrnn.training import Checkpoints

    checkpoints = Checkpoints(folder)
    found = checkpoints.restore(template)
    checkpoints.close()
    return found.step, found.state, found.meta["words"]


def save_orbax(folder: pathlib.Path, state: Any) -> None:
    """Save a state as docs/howto/resume.md says it, without the library."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, state)


def restore_orbax(folder: pathlib.Path, template: Any) -> Any:
    """What `save_orbax` was given."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder, template)


def write_torch(layer: Any, params: Any, path: pathlib.Path, prefix: str) -> None:
    """Write weights for torch to a safetensors file."""
    jaxrnn.interop.to_torch(layer, params, into=path, prefix=prefix)


def read_torch(path: pathlib.Path, prefix: str) -> tuple[Any, Any]:
    """The layer and the parameters of such a file."""
    return jaxrnn.interop.from_torch(path, prefix=prefix)


# --- cells and layers -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class UserCell(jaxrnn.Cell):
    """A cell as a user writes one: h_t = tanh(x_t W + h_{t-1} * u)."""

    hidden_size: int

    def init(self, key, input_size):
        kernel, vector = jax.random.split(key)
        return {
            "kernel": jax.random.normal(kernel, (input_size, self.hidden_size)),
            "vector": jax.random.normal(vector, (self.hidden_size,)),
        }

    def step(self, params, carry, z):
        vector = jnp.broadcast_to(params["vector"], carry.shape)
        return jnp.tanh(z @ params["kernel"] + carry * vector)


@dataclasses.dataclass(frozen=True)
class UserLinear(jaxrnn.LinearCell):
    """A linear cell as a user writes one, its carry of two parts."""

    hidden_size: int

    init = UserCell.init

    def initial_carry(self, params, batch_shape=(), dtype=None):
        zeros = super().initial_carry(params, batch_shape, dtype)
        return jaxrnn.LSTMState(zeros, zeros)

    def affine(self, params, z):
        drive = z @ params["kernel"]
        shape = (1,) * (drive.ndim - 1) + (self.hidden_size,)
        keep = jnp.tanh(params["vector"]).reshape(shape)
        factors = jaxrnn.LSTMState(keep, jax.nn.sigmoid(drive))
        return factors, jaxrnn.LSTMState(drive, jnp.sin(drive))

    def output(self, params, carry, x):
        return carry.h * jnp.cos(carry.c)


def cells(H: int, D: int) -> dict[str, Any]:
    """Every cell and every kind of layer, of ``H`` units, for ``D`` features."""
    j = jaxrnn
    options = {"layer_norm": True, "peephole": True, "coupled_gates": True}
    identity = j.initializers.Identity()
    return {
        "elman": j.Elman(H),
        "irnn": j.Elman(H, activation=jax.nn.relu, recurrent_init=identity),
        "lstm": j.LSTM(H),
        "lstm peephole": j.LSTM(H, peephole=True),
        "lstm layer norm": j.LSTM(H, layer_norm=True),
        "lstm coupled": j.LSTM(H, coupled_gates=True),
        "lstm projected": j.LSTM(H, projection_size=H // 2),
        "lstm all": j.LSTM(H, projection_size=H // 2, **options),
        "gru": j.GRU(H),
        "gru layer norm": j.GRU(H, layer_norm=True),
        "gru before": j.GRU(H, reset_after=False),
        "gru before layer norm": j.GRU(H, reset_after=False, layer_norm=True),
        "mlstm": j.MLSTM(H, num_heads=2, key_size=3),
        "slstm": j.SLSTM(H, num_heads=2),
        "slstm one head": j.SLSTM(H),
        "indrnn": j.IndRNN(H),
        "diagonal gru": j.DiagonalGRU(H),
        "diagonal lstm": j.DiagonalLSTM(H),
        "min gru": j.MinGRU(H),
        "min gru positive": j.MinGRU(H, positive=True),
        "min lstm": j.MinLSTM(H),
        "min lstm plain": j.MinLSTM(H, normalized=False, positive=True),
        "rg lru": j.RGLRU(D),
        "lru": j.LRU(H),
        "s5": j.S5(H),
        "user": UserCell(H),
        "user linear": UserLinear(H),
        "lstm learned": j.LSTM(H, learned_initial_carry=True),
        "gru learned": j.GRU(H, learned_initial_carry=True),
        "min gru learned": j.MinGRU(H, learned_initial_carry=True),
        "stack": j.stack(j.LSTM(H, learned_initial_carry=True), j.GRU(2)),
        "stack of lstms": j.stack(j.LSTM(H), j.LSTM(H)),
        "stack of two ways": j.stack(j.bidirectional(j.LSTM(2)), j.MinGRU(H)),
        "residual": j.residual(j.GRU(D)),
        "block": j.stack(
            j.residual_block(j.LRU(H), H), j.residual_block(j.MinGRU(3), H)
        ),
        "bidirectional": j.bidirectional(j.LSTM(2), j.GRU(3)),
        "dropout": j.stack(j.Elman(H), j.dropout(0.5), j.LSTM(2)),
        "dropout every step": j.stack(j.GRU(H), j.dropout(0.5, variational=True)),
        "recurrent dropout": j.recurrent_dropout(j.LSTM(H), 0.3),
        "zoneout": j.zoneout(j.LSTM(H), (0.2, 0.1)),
    }


NOISY = ("dropout", "dropout every step", "recurrent dropout", "zoneout")


def quiet(layer: Any) -> Any:
    """The layer without its randomness."""
    return jaxrnn.inference(layer)


def initialisers() -> dict[str, Any]:
    """Every initialiser."""
    i = jaxrnn.initializers
    return {
        "zeros": i.Zeros(),
        "lecun normal": i.LecunNormal(),
        "glorot uniform": i.GlorotUniform(),
        "normal": i.Normal(1.5),
        "orthogonal": i.Orthogonal(),
        "identity": i.Identity(0.9),
        "torch uniform": i.TorchUniform(4),
        "chrono": i.Chrono(20.0),
        "linspace": i.Linspace(1.0, 3.0),
        "power law": i.PowerLaw(0.1, 0.9, 2.0),
        "uniform": i.Uniform(-1.0, 2.0),
    }
