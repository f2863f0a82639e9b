"""One program: every engine and way of differentiating against the Python loop."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import re
import traceback
import unittest.mock
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from reference import compiled

import jaxrnn
import jaxrnn.engines.jaxpr.costs
import jaxrnn.engines.recurrence.backward
import jaxrnn.engines.recurrence.heuristics

from .programs import Numbers, Program, cell_of, draw_numbers, random_like
from .truth import Loop, moving, parted

TOLERANCE, STEADY = 1e-10, 1e-12
UNFUSED = {"xla_disable_hlo_passes": "fusion"}
MEMBERS = 2
MODES = ("gradients", "tangents", "members", "batch")
WINDOW = "truncated_unroll(window=2)"
ENGINES: dict[str, Any] = {
    "default": None,
    "Scan()": jaxrnn.Scan(),
    "Scan(chunk=2)": jaxrnn.Scan(chunk=2),
    "Scan(save='everything')": jaxrnn.Scan(save="everything"),
    "Scan(save='carries')": jaxrnn.Scan(save="carries"),
    "Scan(hoist=False)": jaxrnn.Scan(hoist=False),
    "Scan(unroll=2)": jaxrnn.Scan(unroll=2),
    "Checkpoint(2)": jaxrnn.Checkpoint(2),
    "Newton(chunk=2)": jaxrnn.Newton(chunk=2),
    WINDOW: None,
}
LINEAR: dict[str, Any] = {
    "Associative()": jaxrnn.Associative(),
    "Associative(chunk=2)": jaxrnn.Associative(chunk=2),
}


@dataclasses.dataclass(frozen=True)
class Difference:
    """What an engine did that the loop does not do."""

    program: Program
    engine: str
    mode: str
    what: str

    @property
    def kind(self) -> str:
        """What failures of one cause have in common, roughly."""
        return f"{self.mode}: {re.sub(r'[0-9.e+-]+', '#', self.what)[:160]}"


@dataclasses.dataclass
class Result:
    """``dropped``: why the program says nothing, if so. ``refused``: reasons in words,
    of named engines. ``cannot``: modes of which the loop itself has no derivative, and
    why. ``fused``: differences that are none where XLA fuses nothing.
    """

    program: Program
    dropped: str | None = None
    compared: int = 0
    refused: dict[str, str] = dataclasses.field(default_factory=dict)
    cannot: dict[str, str] = dataclasses.field(default_factory=dict)
    differences: list[Difference] = dataclasses.field(default_factory=list)
    fused: list[Difference] = dataclasses.field(default_factory=list)


def engines_of(program: Program) -> dict[str, Any]:
    return ENGINES | LINEAR if program.linear else ENGINES


class Given:
    """Numbers, cotangents and directions of a program, and of `MEMBERS` of it."""

    def __init__(self, program: Program):
        self.one, self.many = draw_numbers(program), draw_numbers(program, MEMBERS)
        self.random = np.random.default_rng(program.seed + 1)
        self.directions = [
            moving(random_like(arrays(part), self.random)) for part in self.one[:1]
        ]
        self.directions += [
            moving(random_like(arrays(part), self.random))
            for part in (self.one.carry, self.one.xs)
        ]
        self.cotangents: Any = None
        self.many_cotangents: Any = None

    def draw_cotangents(self, program: Program, values: Any) -> None:
        last, ys, carries = values

        def draw(lead):
            parts = [
                moving(
                    random_like(
                        jax.tree.map(
                            lambda a: np.empty((*lead, *a.shape), a.dtype), part
                        ),
                        self.random,
                    )
                )
                for part in (last, ys, carries)
            ]
            return parts if program.return_carries else [*parts[:2], None]

        self.cotangents, self.many_cotangents = draw(()), draw((MEMBERS,))


def arrays(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)


def nudged(numbers: Numbers, random: np.random.Generator) -> Numbers:
    """The same numbers, each an ulp off."""

    def leaf(a):
        if isinstance(a, float):
            return float(np.nextafter(a, a + random.choice([-1.0, 1.0])))
        if not np.issubdtype(np.asarray(a).dtype, np.inexact):
            return a
        return a * (
            1 + np.finfo(np.float64).eps * random.choice([-1.0, 1.0], size=np.shape(a))
        )

    params, xs, carry = (jax.tree.map(leaf, part) for part in numbers[:3])
    return Numbers(params, xs, carry, *numbers[3:])


# --------------------------------------------------------------------------------------
# The loop's answers


class Truth:
    """What the Python loop gives, mode by mode, as far as it gives anything."""

    def __init__(self, program: Program, given: Given, modes: Iterable[str]):
        self.program, self.given, self.modes = program, given, sorted(modes)
        self.loop, self.mapped = Loop(program), Loop(program, mapped=True)
        self.answers: dict[str, Any] = {}
        self.cannot: dict[str, str] = {}
        self.seen: dict[
            str, Any
        ] = {}  # what compiled programs of engines gave: several engines often make the same one  # noqa: E501
        given.draw_cotangents(program, self.loop.shapes(given.one))
        self.values = None
        for mode in self.modes:
            try:
                self.answers[mode] = self.answer(mode, given.one)
            except Exception as error:
                self.cannot[mode] = (
                    f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
                )
        if self.values is None:
            self.values = self.loop.values(given.one)

    def answer(self, mode: str, numbers: Numbers) -> Any:
        given, loop = self.given, self.loop
        if mode in ("gradients", "truncated"):
            values, answer = loop.gradients(
                numbers, given.cotangents, window=2 if mode == "truncated" else None
            )
            self.values = self.values or values
            return (*answer, values)
        if mode == "tangents":
            moved = loop.moved(numbers, given.directions)
            return moved if self.program.return_carries else (*moved[:2], None)
        if mode == "members":
            answers = []
            for i in range(MEMBERS):
                mine = jax.tree.map(
                    lambda a, i=i: a[i], (given.many[1:], given.many_cotangents)
                )
                answers.append(
                    loop.gradients(Numbers(given.many.params, *mine[0]), mine[1])[1]
                )
            return jax.tree.map(lambda *leaves: np.stack(leaves), *answers)
        return self.mapped.gradients(given.many, given.many_cotangents)[1]

    def reason_to_drop(self) -> str | None:
        """Whether the loop's own answers are no numbers, or move when its inputs
        move by an ulp.
        """
        if not finite((self.values, self.answers)):
            return "not finite"
        random = np.random.default_rng(self.program.seed + 2)
        for _ in range(2):
            numbers = nudged(self.given.one, random)
            for mode in {"gradients", "truncated", "tangents"} & self.answers.keys():
                if (
                    distance(self.answer(mode, numbers), self.answers[mode], parts=True)
                    > STEADY
                ):
                    return "ill-conditioned"
            if (
                not self.answers
                and distance(self.loop.values(numbers), self.values, parts=True)
                > STEADY
            ):
                return "ill-conditioned"
        return None


def finite(tree: Any) -> bool:
    return all(
        np.isfinite(leaf).all()
        for leaf in jax.tree.leaves(tree)
        if np.issubdtype(np.asarray(leaf).dtype, np.inexact)
    )


def distance(actual: Any, expected: Any, parts: bool = False) -> float:
    """The largest difference of the floating leaves, relative to the largest number of
    the tree (``parts``: of each of its top parts, and take the worst); infinite where
    integers, structures, shapes or dtypes are not the same.
    """
    if parts:
        return max(distance(a, e) for a, e in zip(actual, expected, strict=True))
    a_leaves, a_tree = jax.tree.flatten(actual)
    e_leaves, e_tree = jax.tree.flatten(expected)
    if a_tree != e_tree:
        return float("inf")
    far, scale = 0.0, 0.0
    for a, e in zip(map(np.asarray, a_leaves), map(np.asarray, e_leaves), strict=True):
        if a.shape != e.shape or a.dtype != e.dtype:
            return float("inf")
        if not np.issubdtype(e.dtype, np.inexact):
            if not (a == e).all():
                return float("inf")
            continue
        if not np.isfinite(a).all():
            return float("inf")
        far, scale = (
            max([far, *np.abs(a - e).ravel()]),
            max([scale, *np.abs(e).ravel()]),
        )
    return far / scale if scale else far


# --------------------------------------------------------------------------------------
# The engines' answers


def run_of(program: Program, engine: str) -> Callable:
    cell = cell_of(program)
    options: dict[str, Any] = {
        "reverse": program.reverse,
        "return_carries": program.return_carries,
    }

    def unrolling(numbers: Numbers):
        more = options | {"mask": numbers.mask, "resets": numbers.resets}
        if engine == WINDOW:
            out = jaxrnn.truncated_unroll(
                cell, numbers.params, numbers.xs, numbers.carry, window=2, **more
            )
        else:
            out = jaxrnn.unroll(
                cell,
                numbers.params,
                numbers.xs,
                numbers.carry,
                engine=engines_of(program)[engine],
                **more,
            )
        return out if program.return_carries else (*out, None)

    return unrolling


def looped(program: Program) -> Callable:
    """The Python loop as one function, for JAX to differentiate: where parts of it
    have no derivative.
    """
    loop = Loop(program)

    def unrolling(numbers: Numbers):
        carry, ys, carries = (
            numbers.carry,
            [None] * program.steps,
            [None] * program.steps,
        )
        for t in loop._order():
            carry, ys[t] = loop.step(numbers.params, carry, *loop._now(numbers, t))
            carries[t] = carry
        stacked = [
            jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *rows)
            for rows in (ys, carries)
        ]
        return carry, stacked[0], stacked[1] if program.return_carries else None

    return unrolling


def floats_of(unrolling: Callable, numbers: Numbers) -> tuple[Callable, list[Any]]:
    """``run`` as a function of the floating leaves of params, carry and xs alone."""
    groups, together = zip(
        *(parted(part) for part in (numbers.params, numbers.carry, numbers.xs))
    )

    def function(*groups):
        params, carry, xs = (
            join(group) for join, group in zip(together, groups, strict=True)
        )
        out = unrolling(Numbers(params, xs, carry, numbers.mask, numbers.resets))
        return tuple(None if part is None else moving(part) for part in out), out

    return function, groups


def gradients(
    unrolling: Callable,
    numbers: Numbers,
    cotangents: Any,
    wrt: tuple[int, ...] = (0, 1, 2),
) -> tuple[Any, Any]:
    function, groups = floats_of(unrolling, numbers)

    def of_some(*some):
        full = list(groups)
        for i, group in zip(wrt, some, strict=True):
            full[i] = group
        return function(*full)

    _, pull, values = jax.vjp(of_some, *(groups[i] for i in wrt), has_aux=True)
    return dict(zip(wrt, pull(tuple(cotangents)), strict=True)), values


def answer_of(
    program: Program, engine: str, mode: str, given: Given
) -> Callable[[], Any]:
    """A function that gives ``(answer, values or None)`` of an engine."""
    unrolling = run_of(program, engine)
    if mode in ("gradients", "truncated"):
        return compiled(
            lambda one, cts: gradients(unrolling, one, cts, program.asked)
        ), (
            given.one,
            given.cotangents,
        )
    if mode == "tangents":

        def tangents(one, directions):
            function, groups = floats_of(unrolling, one)
            _, moved, values = jax.jvp(
                function, tuple(groups), tuple(directions), has_aux=True
            )
            return moved, values

        return compiled(tangents), (given.one, given.directions)
    if mode == "members":

        def of_one(params, rest, cts):
            return gradients(unrolling, Numbers(params, *rest), cts, program.asked)[0]

        mapped = jax.vmap(of_one, in_axes=(None, 0, 0))
        return compiled(lambda many, cts: (mapped(many.params, many[1:], cts), None)), (
            given.many,
            given.many_cotangents,
        )

    def batch(many, cts):
        def mapped(numbers):
            return jax.vmap(lambda rest: unrolling(Numbers(numbers.params, *rest)))(
                tuple(numbers[1:])
            )

        return gradients(mapped, many, cts, program.asked)[0], None

    return compiled(batch), (given.many, given.many_cotangents)


# what engines choose by, where sizes are small, and what it is where nothing is
LARGE = [
    (jaxrnn.engines.recurrence.backward, "max_row_bytes", lambda program: 0),
    (jaxrnn.engines.jaxpr.costs, "ITERATION", 0),
    (jaxrnn.engines.recurrence.heuristics, "WHOLE_BYTES", 0),
    (jaxrnn.engines.recurrence.heuristics, "CHUNK_BYTES", 0),
    (jaxrnn.engines.recurrence.heuristics, "SMALL_CHUNK_BYTES", 0),
    (jaxrnn.engines.recurrence.heuristics, "LEAST_CHUNK", 2),
    (jaxrnn.engines.recurrence.heuristics, "LITTLE_LESS", float("inf")),
    (jaxrnn.engines.recurrence.heuristics, "PREFIX_CHUNK_BYTES", 0),
    (jaxrnn.engines.recurrence.heuristics, "LEAST_PREFIX_CHUNK", 2),
]


@contextlib.contextmanager
def as_if_large(program: Program):
    """Engines take what they take for large values: they add up in the loop, leave a
    cond in it, and cut windows.
    """
    with contextlib.ExitStack() as stack:
        for module, name, value in LARGE if program.large else ():
            stack.enter_context(unittest.mock.patch.object(module, name, value))
        yield


@contextlib.contextmanager
def whole_tracebacks():
    before = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    try:
        yield
    finally:
        jax.config.update("jax_traceback_filtering", before)


def in_words(error: Exception) -> bool:
    """Whether an error is one of the library's own: a ValueError or TypeError that
    its code raised.
    """
    frames = traceback.extract_tb(error.__traceback__)
    root = pathlib.Path(jaxrnn.__file__).parent
    return (
        isinstance(error, (ValueError, TypeError))
        and bool(frames)
        and root in pathlib.Path(frames[-1].filename).parents
    )


def told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def compare(result: Result, truth: Truth, engine: str, mode: str) -> None:
    """One engine, one mode; what comes of it is added to ``result``."""
    program, given = result.program, truth.given
    wanted = "truncated" if engine == WINDOW and mode == "gradients" else mode
    if wanted not in truth.answers:
        return
    try:
        with whole_tracebacks(), as_if_large(program):
            function, args = answer_of(program, engine, mode, given)
            lowered = function.lower(*args)
            text = mode + lowered.as_text()
            if text not in truth.seen:
                truth.seen[text] = jax.tree.map(np.asarray, lowered.compile()(*args))
            answer, values = truth.seen[text]
    except Exception as error:
        if in_words(error) and engine not in ("default", "Scan()", WINDOW):
            result.refused[engine] = told(error)
        else:
            result.differences.append(
                Difference(program, engine, mode, f"raised {told(error)}")
            )
        return
    result.compared += 1
    found = differences_of(program, engine, mode, answer, values, truth)
    if found:
        # Where a value is computed again in another fusion it may be rounded another
        # way, and JAX's rule for a min or a sort asks whether both are equal.
        answer, values = jax.tree.map(np.asarray, lowered.compile(UNFUSED)(*args))
        persistent = differences_of(program, engine, mode, answer, values, truth)
        result.fused += [] if persistent else found
        result.differences += persistent


def differences_of(
    program: Program, engine: str, mode: str, answer: Any, values: Any, truth: Truth
) -> list[Difference]:
    """What an engine's answer has that the loop's has not."""
    found = []
    if values is not None:
        expected = truth.values if program.return_carries else (*truth.values[:2], None)
        far = distance(values, expected)
        if not far <= TOLERANCE:
            found.append(Difference(program, engine, "values", f"{far:.1e} off"))
    names = (
        ("last carry", "outputs", "carries")
        if mode == "tangents"
        else ("params", "carry", "inputs")
    )
    wanted = "truncated" if engine == WINDOW and mode == "gradients" else mode
    answer = answer if mode != "tangents" else dict(enumerate(answer))
    right = {i: truth.answers[wanted][i] for i in answer}
    far = distance(answer, right)
    if not far <= TOLERANCE:
        parts = [
            f"{names[i]} {distance(answer[i], right[i]):.1e}"
            for i in answer
            if right[i] is not None
        ]
        found.append(
            Difference(program, engine, mode, f"{far:.1e} off ({', '.join(parts)})")
        )
    return found


def in_parts(result: Result, truth: Truth, engine: str) -> None:
    """Where the loop has no gradient as a whole: with respect to params, carry or
    inputs alone, it may have one.
    """
    program, given = result.program, truth.given

    def lowered(unrolling, wrt):
        function = compiled(lambda *a: gradients(unrolling, *a, (wrt,))[0])
        return function.lower(given.one, given.cotangents)

    def run(program, options=None):
        return jax.tree.map(
            np.asarray, program.compile(options)(given.one, given.cotangents)
        )

    for wrt, name in enumerate(("params", "carry", "inputs")):
        mode = f"gradients of {name}"
        try:
            loop = lowered(looped(program), wrt)
        except Exception:
            continue
        # A sum of terms that are rounded to float32, or a sum that is rounded: JAX's
        # own scan takes the conversion of a parameter out of its loop.
        tolerance = 1e-6 if "f32" in loop.as_text() else TOLERANCE
        try:
            with whole_tracebacks(), as_if_large(program):
                own = lowered(run_of(program, engine), wrt)
        except Exception as error:
            raised = f"raised {told(error)}"
            result.differences.append(Difference(program, engine, mode, raised))
            continue
        result.compared += 1
        # Without fusion only where there is a difference: see `compare`.
        for options in (None, UNFUSED):
            expected = run(loop, options)
            if wrt == 2 and given.one.mask is not None:  # as in `Loop.gradients`
                live = given.one.mask[..., None]
                expected = {2: [np.where(live, expected[2][0], 0)]}
            far = distance(run(own, options), expected)
            if far <= tolerance:
                break
        found = Difference(program, engine, mode, f"{far:.1e} off")
        if not far <= tolerance:
            result.differences.append(found)
        elif options is not None:
            result.fused.append(found)


def every_pair(program: Program) -> list[tuple[str, str]]:
    """All engines, each in every mode; of the two ways to map a gradient, one and
    the other by turns.
    """
    turns = {
        engine: MODES[2 + (program.seed + i) % 2]
        for i, engine in enumerate(engines_of(program))
    }
    return [
        (engine, mode) for engine, turn in turns.items() for mode in (*MODES[:2], turn)
    ]


def tried(program: Program, pairs: Iterable[tuple[str, str]] | None = None) -> Result:
    """A program under all of its engines and modes, or the given pairs of them."""
    result = Result(program)
    pairs = every_pair(program) if pairs is None else list(pairs)
    modes = {
        "truncated" if e == WINDOW and m == "gradients" else m
        for e, m in pairs
        if not (e == WINDOW and m != "gradients")
    }
    given = Given(program)
    try:
        truth = Truth(program, given, modes)
    except Exception as error:
        result.dropped = f"no step: {told(error)}"
        return result
    result.cannot = truth.cannot
    result.dropped = truth.reason_to_drop()
    if result.dropped:
        return result
    if "gradients" in truth.cannot and "Reverse-mode" in truth.cannot["gradients"]:
        in_parts(result, truth, "default")
    for engine, mode in pairs:
        if not (engine == WINDOW and mode != "gradients"):
            compare(result, truth, engine, mode)
    return result
