"""One streaming step, B 1, in each library: the state goes in and comes out, and the
call returns when its result is there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import jaxrnn

from ..harness.host import cores
from ..harness.workload import Work
from .adapters import require
from .other_libraries import load_torch, onnx_session, torch_device, torch_weights

STEPS = 8  # in a call, where inputs come in groups


@dataclasses.dataclass
class Stream:
    """``step(state, x) -> (state, y)`` from ``start`` over ``inputs``; or
    ``whole()``, all steps inside one call.
    """

    step: Callable[[Any, Any], tuple[Any, Any]] | None = None
    start: Any = None
    inputs: Sequence[Any] = ()
    whole: Callable[[], Any] | None = None

    def records(self, steps: int) -> int:
        """How many times one pass over ``steps`` steps records."""
        return steps if self.whole is None else 1


def jaxrnn_step(work: Work) -> Stream:
    """``jax.jit`` of the cell's streaming call."""
    weights = jax.device_put(work.weights)
    step = jax.jit(lambda w, carry, x: work.cell(w, carry, x))
    start = jax.jit(lambda w: work.cell.initial_carry(w, (1,)))(weights)
    return Stream(
        lambda carry, x: jax.block_until_ready(step(weights, carry, x)),
        jax.block_until_ready(start),
        [jax.device_put(x) for x in work.xs],
    )


def jaxrnn_compiled(work: Work) -> Stream:
    """The same, compiled before it is called: ``jit(step).lower(...).compile()``."""
    weights = jax.device_put(work.weights)
    start = jax.jit(lambda w: work.cell.initial_carry(w, (1,)))(weights)
    inputs = [jax.device_put(x) for x in work.xs]
    jitted = jax.jit(lambda w, carry, x: work.cell(w, carry, x))
    step = jitted.lower(weights, start, inputs[0]).compile()
    return Stream(
        lambda carry, x: jax.block_until_ready(step(weights, carry, x)),
        jax.block_until_ready(start),
        inputs,
    )


def jaxrnn_donated(work: Work) -> Stream:
    """``jax.jit`` that may overwrite the carry: its argument is donated."""
    weights = jax.device_put(work.weights)
    step = jax.jit(lambda w, carry, x: work.cell(w, carry, x), donate_argnums=1)
    begin = jax.jit(lambda w: work.cell.initial_carry(w, (1,)))

    def donating(carry, x):
        carry = begin(weights) if carry is None else carry
        return jax.block_until_ready(step(weights, carry, x))

    return Stream(donating, None, [jax.device_put(x) for x in work.xs])


def jaxrnn_closed(work: Work) -> Stream:
    """``jax.jit`` of a function that has the weights in it, as constants."""
    weights = jax.device_put(work.weights)
    step = jax.jit(lambda carry, x: work.cell(weights, carry, x))
    start = jax.jit(lambda: work.cell.initial_carry(weights, (1,)))()
    return Stream(
        lambda carry, x: jax.block_until_ready(step(carry, x)),
        jax.block_until_ready(start),
        [jax.device_put(x) for x in work.xs],
    )


def jaxrnn_several(work: Work) -> Stream:
    """`STEPS` steps in a call of `jaxrnn.unroll`, for inputs that come in groups."""
    weights = jax.device_put(work.weights)
    call = jax.jit(lambda w, carry, xs: jaxrnn.unroll(work.cell, w, xs, carry))
    start = jax.jit(lambda w: work.cell.initial_carry(w, (1,)))(weights)
    groups = [
        jax.device_put(work.xs[i : i + STEPS]) for i in range(0, len(work.xs), STEPS)
    ]

    def whole():
        carry, ys = start, []
        for xs in groups:
            carry, y = jax.block_until_ready(call(weights, carry, xs))
            ys.append(y)
        return np.concatenate([np.asarray(y)[:, 0] for y in ys])

    return Stream(whole=whole)


def jaxrnn_loop(work: Work) -> Stream:
    """The same call inside one compiled ``jax.lax.scan`` over all steps."""
    weights, xs = jax.device_put((work.weights, work.xs))

    def run_steps(w, xs):
        return jax.lax.scan(
            lambda carry, x: work.cell(w, carry, x),
            work.cell.initial_carry(w, (1,)),
            xs,
        )[1]

    run = jax.jit(run_steps)
    return Stream(whole=lambda: jax.block_until_ready(run(weights, xs))[:, 0])


def torch_step(work: Work) -> Stream:
    """``torch.nn.LSTMCell`` or ``GRUCell`` under inference mode."""
    torch = require("torch")
    torch.set_num_threads(cores())
    device, (_, _, I, H) = torch_device(torch), work.shape
    cell = load_torch(
        torch,
        {"LSTM": torch.nn.LSTMCell, "GRU": torch.nn.GRUCell}[work.kind](I, H),
        torch_weights(work.kind, work.weights),
    )
    zeros = torch.zeros(1, H, device=device)

    def step(state, x):
        with torch.inference_mode():
            state = cell(x, state)
            if device == "cuda":
                torch.cuda.synchronize()
        return state, state[0] if work.kind == "LSTM" else state

    inputs = [torch.from_numpy(x).to(device) for x in work.xs]
    return Stream(step, (zeros, zeros) if work.kind == "LSTM" else zeros, inputs)


def onnxruntime_step(work: Work) -> Stream:
    """ONNX Runtime's recurrent node over one step, fed and read as numpy arrays."""
    session = onnx_session(work, 1, streaming=True)
    names = ["h", "c"] if work.kind == "LSTM" else ["h"]
    wanted = [f"last_{name}" for name in names]

    def step(state, x):
        state = session.run(wanted, {"xs": x, **dict(zip(names, state, strict=True))})
        return state, state[0]

    zeros = np.zeros((1, 1, work.shape.H), np.float32)
    return Stream(step, [zeros] * len(names), [x[None] for x in work.xs])


STREAMS = {
    "jaxrnn": jaxrnn_step,
    "jaxrnn-compiled": jaxrnn_compiled,
    "jaxrnn-donated": jaxrnn_donated,
    "jaxrnn-closed": jaxrnn_closed,
    f"jaxrnn-{STEPS}-steps": jaxrnn_several,
    "jaxrnn-loop": jaxrnn_loop,
    "torch": torch_step,
    "onnxruntime": onnxruntime_step,
}
