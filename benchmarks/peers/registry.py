"""What is compared: a table with one line for each engine, option or library.

An entry may also be an engine as one writes it in Python, ``"Scan(unroll=4)"``: jaxrnn
with that engine on one device.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxrnn
from jaxrnn.extending import AbstractEngine

from ..harness.options import Shape
from ..harness.timing import Program
from ..harness.workload import CELLS, MODES, Work, naive, training
from . import jax_libraries, other_libraries
from .adapters import JaxModel, Model, SkipEntryError


class UserState(NamedTuple):
    h: jax.Array
    c: jax.Array


@dataclasses.dataclass(frozen=True)
class UserLSTM(jaxrnn.Cell):
    """An LSTM as a user of the README writes it: nothing derived by hand, nothing of
    jaxrnn's own LSTM.
    """

    hidden_size: int

    def init(self, key, input_size):
        k_input, k_recurrent = jax.random.split(key)
        return {
            "input_kernel": 0.1
            * jax.random.normal(k_input, (input_size, 4 * self.hidden_size)),
            "recurrent_kernel": 0.1
            * jax.random.normal(k_recurrent, (self.hidden_size, 4 * self.hidden_size)),
            "bias": jnp.zeros(4 * self.hidden_size),
        }

    def initial_carry(self, params, batch_shape=(), dtype=None):
        zeros = jnp.zeros((*batch_shape, self.hidden_size), dtype or jnp.float32)
        return UserState(h=zeros, c=zeros)

    def project(self, params, x):
        return x @ params["input_kernel"]

    def step(self, params, carry, z):
        i, f, g, o = jnp.split(
            z + carry.h @ params["recurrent_kernel"] + params["bias"], 4, axis=-1
        )
        c = jax.nn.sigmoid(f) * carry.c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return UserState(h=jax.nn.sigmoid(o) * jnp.tanh(c), c=c)


def unrolled(cell: Any, engine: Any = None):
    """``(weights, xs) -> ys`` by `jaxrnn.unroll`."""
    return lambda weights, xs: jaxrnn.unroll(cell, weights, xs, engine=engine)[1]


def hoisted(cell: Any):
    """The naive scan with the input projection taken out of the loop, the usual
    first improvement.
    """

    def forward(weights, xs):
        def step(carry, z):
            carry = cell.step(weights, carry, z)
            return carry, carry

        carry = cell.initial_carry(weights, xs.shape[1:-1])
        return cell.output(
            weights, jax.lax.scan(step, carry, cell.project(weights, xs))[1], xs
        )

    return forward


@dataclasses.dataclass
class ShardedModel(JaxModel):
    """The batch split over all devices: every device runs its part, and the
    gradients of the weights are summed.
    """

    mesh: Any = None

    def function(self, mode: str) -> Callable:
        whole, part = PartitionSpec(), PartitionSpec(None, "batch")
        if mode == "forward":
            return jax.shard_map(
                self.forward,
                mesh=self.mesh,
                in_specs=(whole, part),
                out_specs=part,
                check_vma=False,
            )

        def train(weights, xs, cotangent):
            loss, (weight_gradient, input_gradient) = training(self.forward)(
                weights, xs, cotangent
            )
            loss, weight_gradient = jax.lax.psum((loss, weight_gradient), "batch")
            return loss, (weight_gradient, input_gradient)

        specs = {"in_specs": (whole, part, part), "out_specs": (whole, (whole, part))}
        return jax.shard_map(train, mesh=self.mesh, check_vma=False, **specs)

    def arguments(self, work: Work) -> tuple:
        places = [
            NamedSharding(self.mesh, spec)
            for spec in (PartitionSpec(), *[PartitionSpec(None, "batch")] * 2)
        ]
        return tuple(
            jax.device_put(a, place)
            for a, place in zip(
                (work.weights, work.xs, work.cotangent), places, strict=True
            )
        )


def sharded(work: Work) -> ShardedModel:
    """jaxrnn's default engine with the batch over all devices."""
    devices = jax.devices()
    if len(devices) == 1:
        raise SkipEntryError("there is one device only, so a batch cannot be split")
    if work.shape.B % len(devices):
        raise SkipEntryError(
            f"a batch of {work.shape.B} cannot be split over {len(devices)} devices"
        )
    return ShardedModel(
        forward=unrolled(work.cell), mesh=Mesh(np.array(devices), ("batch",))
    )


def engine_named(text: str) -> Any:
    """The engine written in ``text``, such as ``Scan(unroll=4)``: a name from jaxrnn
    and constants, nothing else.
    """
    try:
        call = ast.parse(text, mode="eval").body
        if (
            not isinstance(call, ast.Call)
            or not isinstance(call.func, ast.Name)
            or call.args
        ):
            raise ValueError("neither an entry nor an engine such as Scan(unroll=4)")
        engine = getattr(jaxrnn, call.func.id, None)
        if not isinstance(engine, type) or not issubclass(engine, AbstractEngine):
            raise ValueError(f"jaxrnn has no engine {call.func.id}")
        return engine(**{k.arg: ast.literal_eval(k.value) for k in call.keywords})
    except (SyntaxError, TypeError) as error:
        raise ValueError(str(error)) from None


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of the table. ``own`` is what this repository answers for: its
    failure stops the run, a peer's does not.
    """

    build: Callable[[Work], Model]
    what: str
    own: bool = True
    cells: tuple[str, ...] = tuple(CELLS)


def _user(how):
    return lambda w: JaxModel(forward=how(UserLSTM(w.shape.H)))


ENTRIES = {
    "jaxrnn": Entry(
        lambda w: JaxModel(forward=unrolled(w.cell)),
        "unroll, default engine, one device",
    ),
    "jaxrnn-sharded": Entry(
        sharded, "the same, the batch split over all devices by shard_map"
    ),
    "jaxrnn-vmap": Entry(
        lambda w: JaxModel(
            forward=jax.vmap(unrolled(w.cell), in_axes=(None, 1), out_axes=1)
        ),
        "the gradient of vmap(unroll) over the batch axis",
    ),
    "jaxrnn-checkpoint": Entry(
        lambda w: JaxModel(forward=unrolled(w.cell, jaxrnn.Checkpoint())),
        "Checkpoint(): memory that grows with sqrt(T)",
    ),
    "user-cell": Entry(
        _user(unrolled), "an LSTM written by a user, unroll", cells=("LSTM",)
    ),
    "user-cell-naive": Entry(
        _user(naive), "the same cell in a plain jax.lax.scan", cells=("LSTM",)
    ),
    "naive": Entry(
        lambda w: JaxModel(forward=naive(w.cell)),
        "a plain jax.lax.scan over jaxrnn's cell",
    ),
    "naive-hoisted": Entry(
        lambda w: JaxModel(forward=hoisted(w.cell)),
        "the same, inputs projected before the loop",
    ),
    "flax": Entry(
        lambda w: jax_libraries.flax(w, True),
        "flax.linen.RNN, time_major=True",
        own=False,
    ),
    "flax-batch-first": Entry(
        lambda w: jax_libraries.flax(w, False), "flax.linen.RNN as it comes", own=False
    ),
    "haiku": Entry(jax_libraries.haiku, "haiku.dynamic_unroll", own=False),
    "equinox": Entry(
        jax_libraries.equinox, "scan over an equinox cell under vmap", own=False
    ),
    "keras": Entry(jax_libraries.keras, "keras on the JAX backend", own=False),
    "torch": Entry(other_libraries.torch, "torch.nn, all cores", own=False),
    "onnxruntime": Entry(
        other_libraries.onnxruntime, "ONNX Runtime, forward only, all cores", own=False
    ),
}


def find(name: str) -> Entry:
    """The entry of the table, or one for the engine that ``name`` spells."""
    if name in ENTRIES:
        return ENTRIES[name]
    engine = engine_named(name)
    return Entry(
        lambda w: JaxModel(forward=unrolled(w.cell, engine)), f"unroll, engine={name}"
    )


class Ready(NamedTuple):
    """An entry compiled for some work, and how far its answers are from the naive
    scan's.
    """

    model: Model
    programs: dict[str, Program]
    differences: dict[str, float]


def prepare_entries(
    names, work: Work, modes=MODES
) -> tuple[dict[str, Ready], list[dict]]:
    """Build, compile and check every entry for ``work``; what cannot run is returned
    with its reason, and the rest goes on.
    """
    ready, left_out = {}, []
    for name in names:
        entry = find(name)
        if work.kind not in entry.cells:
            continue
        try:
            model = entry.build(work)
            programs = {
                mode: program
                for mode, program in model.programs(work).items()
                if mode in modes
            }
            ready[name] = Ready(model, programs, model.check(work, programs))
        except SkipEntryError as reason:
            left_out.append(
                {
                    "entry": name,
                    "cell": work.kind,
                    "shape": Shape(*work.shape)._asdict(),
                    "reason": str(reason),
                }
            )
        except Exception as error:
            if entry.own:
                raise
            reason = (
                f"{name} failed beside jax {jax.__version__}: {type(error).__name__}: "
                f"{str(error).splitlines()[:1]}"
            )
            left_out.append(
                {
                    "entry": name,
                    "cell": work.kind,
                    "shape": Shape(*work.shape)._asdict(),
                    "reason": reason,
                }
            )
    return ready, left_out
