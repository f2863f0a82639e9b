"""The dynamics of a trained run: fixed points, their kinds, pictures."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import re
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.real_vectors import size_of
from ..diagnostics import (
    FixedPoints,
    LinearError,
    Linearization,
    ProjectedStates,
    fixed_points,
    linear_error,
    linearize,
    plane_flow,
    project_states,
    sample_states,
)
from ..diagnostics.fixed_points import LARGE
from ..diagnostics.state_plots import eigenvalues, state_plane
from ..diagnostics.style import save, title
from ..training import InputError
from .config import check_name, check_options, option
from .dynamics_saddles import Ends, ends_in_words, ends_of_saddles
from .dynamics_starts import (
    between_attractors,
    is_real_or_complex,
    joined,
    settled,
)
from .dynamics_subject import Subject, subject_of
from .models.own_cell import CellLike
from .pictures import subject_of as named
from .runner import restore

LARGEST = 2**22  # numbers in the Jacobians of all searches
STEPS, SIZE = 10, 0.01  # of the comparison with the linear map


@dataclasses.dataclass(frozen=True)
class Study:
    """The options of `dynamics`; the field names are the flags of the command line."""

    starts: int = option(256, "number of searches", least=1)
    noise: float = option(
        0.3,
        "noise that is added to the states at which searches start, in units of each "
        "number's standard deviation",
        least=0,
    )
    batch: int = option(64, "number of sequences that are read", least=1)
    slow: float = option(50.0, "time constant from which a mode is slow", above=0)
    seed: int = option(0, "random seed of the starts", least=0, below=2**31)

    def __post_init__(self):
        check_options(self)


class Found(NamedTuple):
    """What was found under one held input."""

    points: FixedPoints
    linear: Linearization
    error: LinearError
    flow: Any
    ends: dict[int, Ends]


def dynamics(
    run: str | os.PathLike,
    study: dict[str, Any] | None = None,
    *,
    length: int | None = None,
    out: str | os.PathLike | None = None,
    cell: CellLike | None = None,
    trust_code: bool = False,
) -> tuple[dict[str, Any], list[str]]:
    """Find the fixed points of a trained run, and describe what is around them.

    Everything is computed in float64. It writes ``dynamics.json`` and, with matplotlib,
    two pictures for each held input: the states and fixed points on the plane of two
    principal components, and the eigenvalues.

    Args:
        run: the run directory.
        study: fields of `Study` that differ from its defaults.
        length: the number of steps of the sequences (default: that of the task).
        out: where to write (default: the run directory).
        cell: the cell of the run, if it is code outside jaxrnn.
        trust_code: whether to import whatever code the run names as its cell.

    Returns:
        The results, and a table as lines of text.

    Raises:
        InputError: for options that do not fit, a run that cannot be read, or one
            whose model has no recurrence.
    """
    for name in study or {}:
        known = [field.name for field in dataclasses.fields(Study)]
        check_name("dynamics", name, known)
    asked = Study(**(study or {}))
    opened, task, options, functions, (_, params), notes = restore(
        run, cell=cell, trust_code=trust_code
    )
    trained = task.Trained(functions, params, options, opened.config)
    subject = subject_of(opened, trained, length, asked.batch)
    with jax.enable_x64(True):
        folder = pathlib.Path(out or run)
        results, lines = _studied(subject, asked, named(opened), folder)
    return {"run": str(run), "notes": notes, **results}, [*notes, *lines]


def _studied(
    subject: Subject, asked: Study, name: str, folder: pathlib.Path
) -> tuple[dict[str, Any], list[str]]:
    """Measure a subject in float64, and write what was found."""
    layer = subject.layer
    params, xs, held = jax.tree.map(_double, (subject.params, subject.xs, subject.held))
    try:
        carry = jax.eval_shape(lambda p: layer.initial_carry(p), params)
        real = [a for a in jax.tree.leaves(carry) if is_real_or_complex(a)]
        size = size_of(real, 0)
        axes = min(2, size)
        states = project_states(layer, params, xs, axes=axes, mask=subject.mask)
        count = max(min(asked.starts, math.ceil(LARGEST / size**2)), 16)
        key = jax.random.key(asked.seed)
        starts = sample_states(
            layer, params, xs, count, key=key, noise=asked.noise, mask=subject.mask
        )
        found = {
            what: _around(layer, params, x, starts, states, asked)
            for what, x in held.items()
        }
    except (TypeError, ValueError) as error:
        raise InputError(str(error)) from None
    results = {
        "of": name,
        "states": subject.what,
        "state_size": size,
        "variance_shares": states.shares.tolist(),
        **{k: v for k, v in dataclasses.asdict(asked).items() if k != "starts"},
        "starts": count,
        "jax": jax.__version__,
        "inputs": {
            what: {"input": _plain(held[what]), **_summary(each, states)}
            for what, each in found.items()
        },
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "dynamics.json"
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written: {error.strerror}; choose another --out"
        ) from None
    lines = [
        f"{name}: a state of {size} numbers, {count} searches",
        f"read: {subject.what}",
        *(line for what, each in found.items() for line in _table(what, each)),
        *_draw(folder, name, states, found),
        f"written: {path}",
    ]
    return results, lines


def _around(
    layer: Any, params: Any, x: Any, starts: Any, states: ProjectedStates, asked: Study
) -> Found:
    """Find the fixed points under one held input, and linearize around them."""
    held = jax.tree.map(lambda a: not is_real_or_complex(a), starts)

    def search(starts: Any) -> FixedPoints:
        found = fixed_points(layer, params, x, starts, held=held)
        return found.select((found.converged | found.stationary) & ~found.outlier)

    # Searches alone may miss what the network itself comes to.
    starts = joined(starts, settled(layer, params, x, starts))
    points = search(starts)
    if not len(points):
        raise InputError(none_found(state_size(starts)))
    linear = linearize(layer, params, x, points, held=held, slow=asked.slow)
    between = between_attractors(points, linear.kinds)
    if between is not None:  # Saddles stand between attractors.
        points = search(joined(starts, between))
        linear = linearize(layer, params, x, points, held=held, slow=asked.slow)
    flow = None if len(states.axes) < 2 else plane_flow(layer, params, x, states)
    key = jax.random.key(asked.seed)
    error = linear_error(
        layer, params, x, points, key=key, steps=STEPS, size=SIZE, held=held
    )
    ends = ends_of_saddles(layer, params, x, points, linear)
    return Found(points, linear, error, flow, ends)


def state_size(carries: Any) -> int:
    """Return how many numbers of a state have derivatives, from a batch of carries."""
    return size_of([a for a in jax.tree.leaves(carries) if is_real_or_complex(a)], 1)


def none_found(size: int) -> str:
    """Return what to do where no search came to a point."""
    words = (
        "no search came to a fixed point or a slow point: try more --starts, or "
        "another --noise"
    )
    if size <= LARGE:
        return words
    return (
        f"{words}; the state has {size} numbers, and beyond {LARGE} an optimizer "
        f"searches in place of Gauss-Newton steps, which come nearer: train with a "
        f"smaller --hidden"
    )


def _double(a: Any) -> Any:
    """Return a leaf in double precision; integers and flags as they are."""
    if jnp.iscomplexobj(a):
        return jnp.asarray(a, jnp.complex128)
    is_float = jnp.issubdtype(jnp.result_type(a), jnp.floating)
    return jnp.asarray(a, jnp.float64) if is_float else a


def _plain(x: Any) -> Any:
    return jax.tree.map(lambda a: np.asarray(a).tolist(), x)


def _summary(found: Found, states: ProjectedStates) -> dict[str, Any]:
    """Return what was found under one input, as JSON."""
    points, linear = found.points, found.linear
    places = states.project(linear.vectors)
    taus = np.where(np.isfinite(linear.time_constants), linear.time_constants, -1)
    return {
        "kinds": dict(Counter(linear.kinds)),
        "points": [
            {
                "kind": linear.kinds[i],
                "speed": float(points.speed[i]),
                "q": float(points.q[i]),
                "converged": bool(points.converged[i]),
                "searches": int(points.starts[i]),
                "place": places[i].tolist(),
                "unstable": int(linear.unstable[i]),
                "leads_to": found.ends.get(i),
                "eigenvalues": [
                    [v.real, v.imag] for v in linear.eigenvalues[i].tolist()
                ],
                "time_constants": [t if t >= 0 else None for t in taus[i].tolist()],
                "frequencies": linear.frequencies[i].tolist(),
                "linear_error": np.asarray(found.error.error)[:, i].tolist(),
            }
            for i in range(len(points))
        ],
    }


def _table(what: str, found: Found) -> list[str]:
    """Return what was found under one input, as lines."""
    kinds = Counter(found.linear.kinds)
    counted = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
    fixed = found.points.converged
    error = np.asarray(found.error.error / found.error.size)[STEPS]
    head = f"{what}: {len(found.points)} points: {counted}"
    lines = ["", head, *str(found.linear).split("\n")]
    if found.ends:
        lines.append(ends_in_words(found.ends))
    if fixed.any():
        lines.append(
            f"the linear maps of fixed points predict {STEPS} steps from {SIZE:g} away "
            f"to {np.median(error[fixed]):.1%} of the displacement (median)"
        )
    else:
        lines.append(str(found.points).split("\n")[-1])
    return lines


def _draw(
    folder: pathlib.Path, name: str, states: ProjectedStates, found: dict[str, Found]
) -> list[str]:
    """Draw the pictures, and return one line per file."""
    lines = []
    for what, each in found.items():
        of = f"{name}; {what}"
        plain = re.sub(r"\W+", "-", what)
        try:
            pictures = {
                f"eigenvalues-{plain}": eigenvalues(
                    each.linear, title=title("Eigenvalues at fixed points", of)
                )
            }
            if each.flow is not None:
                pictures[f"dynamics-{plain}"] = state_plane(
                    states,
                    each.linear,
                    each.flow,
                    title=title("States and fixed points", of),
                )
        except ImportError as error:
            return [f"no pictures: {error}"]
        for file, picture in sorted(pictures.items()):
            save(picture, folder / f"{file}.png")
            lines.append(f"picture: {folder / file}.png")
    return lines
