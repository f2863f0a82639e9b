"""What Newton's method does on a sequence, and whether it is worth its work."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..core.cell import Cell
from ..core.dtypes import weaken_scalars
from ..core.layer import Layer
from ..core.types import Carry, Context, Flags, Inputs, Params
from ..core.unroll_spec import UnrollSpec
from ..core.validation import check_key_given, describe
from ..core.written import written
from ..engines import Newton
from ..engines.jaxpr.carry_blocks import (
    blocks_of_step,
    bytes_of_blocks,
    program_of_step,
)
from ..engines.jaxpr.carry_blocks import (
    describe as describe_blocks,
)
from ..engines.jaxpr.grouping import widest
from ..unrolling import observed_by, unroll_validated, validate
from .lyapunov import lyapunov_spectrum
from .newton_run import operations_ratio, resolved_run, run_measured
from .transition import check_supported

SAFE_CHUNK = 64  # steps over which a positive exponent does little harm
FEW_STEPS = 16  # a chunk of fewer steps may take as many iterations anyway
MANY_ITERATIONS = 32


@dataclasses.dataclass(frozen=True)
class NewtonLayerReport:
    """What Newton's method did for one cell.

    A *change* and a *residual* are relative to ``1 + |s|``.

    Attributes:
        cell: the cell, as one would write it.
        structure: the blocks of the Jacobian: ``"units 2x2"``, ``"full 64x64"``.
        chunk: the steps that are solved for together.
        iterations: how many each chunk took, ``(W,)``; 1 for a cell that is linear in
            its state.
        change: the largest change of the last iteration, ``(W,)``.
        converged: whether each chunk converged, ``(W,)``. What did not was run step by
            step, or is NaN, as the engine says.
        residual: the largest ``|s_t - f(s_{t-1})|`` of the states that are returned.
        exponent: the leading Lyapunov exponent, in nats a step, the largest of the
            batch.
        amplification: the largest ``|d_t|`` of ``d_t = J_t d_{t-1} + e_t`` with random
            signs e: how far a rounding error at every step moves the trajectory, in
            units of that error, whatever the engine.
        bytes: the bytes of the Jacobian's blocks of a chunk.
        work: the arithmetic of the iterations against that of the steps one after
            another.
        advice: sentences.

    Example:
        >>> import jax, jaxrnn.diagnostics
        >>> cell = jaxrnn.IndRNN(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> xs = jax.random.normal(jax.random.key(1), (32, 3))
        >>> layer = jaxrnn.diagnostics.newton_report(
        ...     cell, params, xs, key=jax.random.key(2)).layers[0]
        >>> layer.structure, layer.chunk, layer.iterations.shape
        ('units 1x1', 32, (1,))
        >>> layer.residual < 1e-5
        True
    """

    cell: str
    structure: str
    chunk: int
    iterations: Int[np.ndarray, " W"]
    change: Float[np.ndarray, " W"]
    converged: Bool[np.ndarray, " W"]
    residual: float
    exponent: float
    amplification: float
    bytes: int
    work: float
    advice: tuple[str, ...]

    def __str__(self) -> str:
        chunks = len(self.iterations)
        lines = [
            self.cell,
            f"  structure      {self.structure}, {self.bytes:,} bytes a chunk",
            f"  chunks         {chunks} of {self.chunk} steps, "
            f"{int((~self.converged).sum())} did not converge",
            f"  iterations     {self.iterations.mean():.1f} on average, "
            f"{self.iterations.max()} at most",
            f"  last change    {self.change.max():.1e}",
            f"  residual       {self.residual:.1e}",
            f"  exponent       {self.exponent:+.3f} nats a step",
            f"  amplification  {self.amplification:.1e}",
            f"  work           {self.work:.1f} times that of the steps",
            *(f"  - {sentence}" for sentence in self.advice),
        ]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class NewtonReport:
    """What Newton's method did for each cell; it prints as a text.

    Attributes:
        layers: a `NewtonLayerReport` for each cell, in the order in which they ran.

    Example:
        >>> import jax, jaxrnn.diagnostics
        >>> cell = jaxrnn.IndRNN(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> xs = jax.random.normal(jax.random.key(1), (32, 3))
        >>> report = jaxrnn.diagnostics.newton_report(
        ...     cell, params, xs, key=jax.random.key(2))
        >>> len(report.layers), str(report).splitlines()[0]
        (1, 'IndRNN(hidden_size=4)')
    """

    layers: tuple[NewtonLayerReport, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.layers))

    def __repr__(self) -> str:
        return str(self)


def newton_report(
    cell: Cell | Layer,
    params: Params,
    xs: Inputs,
    carry: Carry = None,
    *,
    key: Array,
    engine: Newton | None = None,
    mask: Flags | None = None,
    resets: Flags | None = None,
    reverse: bool = False,
    context: Context = None,
) -> NewtonReport:
    """Measure what Newton's method does on a sequence.

    Convergence alone is no certificate. Where the leading exponent is positive, two
    trajectories that satisfy every step to rounding lie far apart; the amplification
    says how far.

    Args:
        cell: a cell or a layer without randomness.
        params: the parameters, from ``cell.init``.
        xs: the inputs, ``(T, *B, D)``, of at least two steps.
        carry: the carry before the first step (default: the initial carry).
        key: a random key, for the exponent's first direction and the signs of the
            amplification.
        engine: the `jaxrnn.Newton` to measure (default: ``Newton()``).
        mask, resets, reverse, context: as for `jaxrnn.unroll`. The exponent is that of
            the sequence without resets.

    Returns:
        A `NewtonReport`, which prints as a text.

    Raises:
        TypeError: if ``engine`` is not a `jaxrnn.Newton`.
        ValueError: as `jaxrnn.unroll`, for a sequence of fewer than two steps, and for
            a step without a derivative in forward mode.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn.diagnostics
        >>> cell = jaxrnn.Elman(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> xs = jax.random.normal(jax.random.key(1), (32, 3))
        >>> report = jaxrnn.diagnostics.newton_report(
        ...     cell, params, xs, key=jax.random.key(2))
        >>> report.layers[0].structure, bool(report.layers[0].converged.all())
        ('full 4x4', True)
    """
    engine = Newton() if engine is None else engine
    if not isinstance(engine, Newton):
        raise TypeError(
            f"newton_report: engine must be a jaxrnn.Newton, but it is "
            f"{describe(engine)}"
        )
    check_key_given("newton_report", key)
    check_supported(cell, "newton_report")
    params = weaken_scalars(params)
    spec = UnrollSpec(engine, mask, resets, reverse, context=context)
    params, xs = validate(cell, params, xs, carry, spec)
    if jax.tree.leaves(xs)[0].shape[0] < 2:
        raise ValueError(
            "newton_report: a sequence of fewer than two steps is not solved by "
            "Newton's method: give a longer one"
        )
    observer = _Observer(key)
    with observed_by(observer):
        unroll_validated(cell, params, xs, carry, spec)
    return NewtonReport(tuple(observer.layers))


class _Observer:
    """Measures every run of `jaxrnn.Newton` before it runs."""

    def __init__(self, key: Array):
        self.key = key
        self.layers: list[NewtonLayerReport] = []

    def run(
        self, engine: Any, why: str, all_carries: bool, cell: Cell, *args: Any
    ) -> tuple[Carry, Carry]:
        """Measure a run, and return its results."""
        if isinstance(engine, Newton):
            key = jax.random.fold_in(self.key, len(self.layers))
            self.layers.append(_measure(engine, cell, key, *args))
        return engine.run(cell, *args)

    def run_network(
        self, engine: Any, params: Params, carries: list, *args: Any
    ) -> tuple[list, Any]:
        """Run a network, which Newton's method does not do in one call."""
        return engine.run_network(params, carries, *args)


def _measure(
    engine: Newton,
    cell: Cell,
    key: Array,
    params: Params,
    carry: Carry,
    xs: Inputs,
    mask: Any = None,
    resets: Any = None,
    reverse: bool = False,
) -> NewtonLayerReport:
    """Measure one run of an engine."""
    sequence = (xs, mask, resets)
    engine.check(cell, params, carry, sequence)
    run = resolved_run(engine, cell, params, carry, sequence, reverse)
    key_signs, key_exponent = jax.random.split(key)
    measured = jax.tree.map(np.asarray, run_measured(run, carry, sequence, key_signs))
    forwards = jax.tree.map(lambda a: a[::-1] if reverse else a, (xs, mask))
    try:
        exponents = lyapunov_spectrum(
            cell,
            params,
            forwards[0],
            carry,
            key=key_exponent,
            count=1,
            mask=forwards[1],
        ).exponents
    except TypeError as error:
        # The step has been traced, with its derivative as Newton's method takes it.
        raise ValueError(
            f"newton_report: the exponent of {written(cell)} needs a derivative in "
            f"forward mode, which its step does not have "
            f"({str(error).splitlines()[0]}): give a function with jax.custom_vjp a "
            f"rule by jax.custom_jvp for the time of the report"
        ) from error
    parts = program_of_step(run.step).part_avals
    form = blocks_of_step(run.step, engine.jacobian)
    report = NewtonLayerReport(
        cell=written(cell),
        structure=describe_blocks(form, parts),
        chunk=run.chunk,
        iterations=measured.iterations,
        change=measured.change,
        converged=measured.converged,
        residual=float(measured.residual),
        exponent=float(jnp.max(exponents)),
        amplification=float(measured.amplification),
        bytes=run.chunk * bytes_of_blocks(form, parts),
        work=float(measured.iterations.mean()) * operations_ratio(run.step, form),
        advice=(),
    )
    advice = _advice(report, engine, widest(parts))
    return dataclasses.replace(report, advice=advice)


def _advice(report: NewtonLayerReport, engine: Newton, dtype: Any) -> tuple[str, ...]:
    """Say what the figures mean."""
    sentences = []
    failed = int((~report.converged).sum())
    if failed:
        what = "were run step by step" if engine.fallback == "scan" else "are NaN"
        sentences.append(
            f"{failed} of {len(report.converged)} chunks did not converge within "
            f"{engine.max_iterations} iterations and {what}."
        )
    if report.exponent >= 0:
        sentences.append(
            "The leading exponent is not negative: iterations grow with the chunk, and "
            "a small residual does not say that the trajectory is that of the steps "
            f"one after another. Use Scan(), or a chunk of at most {SAFE_CHUNK} steps."
        )
    elif report.chunk >= FEW_STEPS and (
        report.iterations.mean() >= min(report.chunk / 2, MANY_ITERATIONS)
    ):
        sentences.append(
            "The iterations are many, though the exponent is negative: either it is "
            "near zero, where smaller chunks take fewer; or the Jacobians are large "
            "away from the trajectory, where the guess lies, as they are where large "
            "weights saturate units. Then use Scan()."
        )
    rounding = float(jnp.finfo(dtype).eps) * report.amplification
    if rounding > 1e-3:
        sentences.append(
            f"One rounding error of {jnp.dtype(dtype).name} at every step moves the "
            f"trajectory by {rounding:.0e}, under every engine: its digits are not "
            "known beyond that."
        )
    if jax.default_backend() == "cpu":
        sentences.append(
            "On a CPU the iterations cost more than they save: use Scan() here. The "
            "figures above are of the cell and the data, not of this device."
        )
    return tuple(sentences)
