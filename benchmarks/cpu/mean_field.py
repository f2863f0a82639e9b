"""Iterations of Newton's method on the network in which they were first counted against
the leading Lyapunov exponent.

    python -m benchmarks.cpu.mean_field [--quick]

``s_t = W tanh(s_{t-1}) + u_t`` with random weights of variance ``g^2 / D``, no weight
of a unit on itself, sines as inputs, and states guessed at random: the network, the
range of g, and the test of convergence of figure 2 of Gonzalez et al. (2025,
arXiv:2508.16817), with their 100 units. Float64. The numbers are drawn by this program,
so they are another draw than theirs.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from jaxrnn.diagnostics import lyapunov_spectrum
from jaxrnn.engines.loops.newton_problem import ChunkProblem

from ..harness import host, report
from ..harness.options import Parser, command

MERIT = 1e-10  # half the squared residual, a step
KEY = jax.random.key
LONG = 1_000  # steps over which the exponent is measured


@dataclasses.dataclass(frozen=True)
class MeanField(jaxrnn.Cell):
    """A network whose state is what its units receive, before the tanh."""

    hidden_size: int

    def init(self, key: Any, input_size: Any) -> Any:
        D = self.hidden_size
        kernel = jax.random.normal(key, (D, D)) / jnp.sqrt(D)
        return {"kernel": jnp.fill_diagonal(kernel, 0, inplace=False)}

    def step(self, params: Any, carry: Any, z: Any) -> Any:
        return jnp.tanh(carry) @ params["kernel"] + z


def inputs(size: int, steps: int) -> Any:
    """Sines of random amplitude, frequency and phase, one for each unit."""
    amplitude, frequency, phase = (
        jax.random.uniform(KEY(i), (size,), minval=low, maxval=high)
        for i, (low, high) in enumerate(((0, 0.2), (0.5, 3.0), (0, 2 * jnp.pi)))
    )
    times = jnp.arange(steps, dtype=amplitude.dtype)
    return amplitude * jnp.sin(times[:, None] * frequency + phase)


def iterations(kernel: Any, first: Any, xs: Any, lengths: Any) -> Any:
    """Count Newton's iterations for the first steps of a sequence, for each length.

    A state depends on earlier ones only, so the iterations of all lengths are those of
    the longest. A length that has not converged after as many iterations as it has
    steps counts as that many.
    """
    steps, cell = len(xs), MeanField(len(first))

    def body(carry, x):
        return [cell.step({"kernel": kernel}, carry[0], x)], []

    problem = ChunkProblem(body, [first], xs, steps, False, "auto", False)
    at, ends = problem.operands, jnp.asarray(lengths) - 1

    def merits(states):
        before = problem.before(states, at.carry)[0]
        residual = jax.vmap(lambda s, x: body([s], x)[0][0])(before, xs) - states[0]
        sums = jnp.cumsum(jnp.square(residual).sum(-1)) / 2
        return jnp.where(jnp.isfinite(sums), sums, jnp.inf)[ends] / (ends + 1)

    def goes_on(state):
        count, _, taken = state
        return (count < steps) & (taken[-1] == steps)

    def iterated(state):
        count, states, taken = state
        states = problem.iteration(states, at)
        solved = merits(states) < MERIT
        return (
            count + 1,
            states,
            jnp.minimum(taken, jnp.where(solved, count + 1, taken)),
        )

    guess = jax.random.uniform(KEY(4), (steps, len(first)), minval=-1, maxval=1)
    begin = (jnp.zeros((), int), [guess], ends + 1)
    return jax.lax.while_loop(goes_on, iterated, begin)[2]


def measure_threshold(quick: bool) -> list[dict]:
    """Return the exponent and the iterations for each g."""
    size, lengths, gains = (
        (16, (5, 20), (0.5, 2.0))
        if quick
        else (
            100,
            (10, 50, 200),
            np.linspace(0.5, 2.0, 10).tolist(),
        )
    )
    rows = []
    with jax.enable_x64(True):
        cell, xs = MeanField(size), inputs(size, LONG)
        first = jax.random.uniform(KEY(3), (size,), minval=-1, maxval=1)
        kernel = cell.init(KEY(5), size)["kernel"]
        count = jax.jit(lambda k: iterations(k, first, xs[: lengths[-1]], lengths))
        for gain in gains:
            params = {"kernel": gain * kernel}
            found = lyapunov_spectrum(cell, params, xs, first, key=KEY(6), count=1)
            taken = count(params["kernel"]).tolist()
            each = {f"T_{n}": i for n, i in zip(lengths, taken, strict=True)}
            exponent = float(found.exponents[0])
            rows.append({"units": size, "g": gain, "exponent": exponent, **each})
    return rows


def markdown(result: dict) -> str:
    """One table."""
    names = list(result["rows"][0])
    body = [[report.number(row[name]) for name in names] for row in result["rows"]]
    head = [name.replace("_", " ") for name in names]
    return "\n".join(
        [
            f"# A mean-field network: {host.where(result['machine'])}",
            "",
            f"`{result['command']}`",
            "",
            report.table(head, body),
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; 0."""
    args = Parser("cpu.mean_field", __doc__ or "", devices=False).parse_args(argv)
    host.prepare(1)
    result = report.content("mean_field", command("cpu.mean_field", argv), rows=[])
    result |= {"dtype": "float64", "rows": measure_threshold(args.quick)}
    name = report.result_name("mean_field", args.out, args.quick)
    report.write(name, result, markdown(result), None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
