"""Random recurrent steps as small values: drawn from numbers, printed, made small,
and built into cells.

Any tuple of instructions is a program: ``(operation, arguments, number)``, each
argument counting back from the newest value of its type. So a program stays one when
instructions are left out, and a failing one is made small by leaving out.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn

from .operations import OPERATIONS, ROWS, N, along, rounds

Instruction = tuple[str, tuple[int, ...], int]
EXTRAS = ("leak", "table", "integers", "key", "complex")


class Pair(NamedTuple):
    h: Any
    rest: Any


@dataclasses.dataclass(frozen=True)
class Program:
    """What a cell does, and how it is asked to.

    ``parts`` are the types of the carry's leaves (``VCMIB``; B: flags), ``nesting`` how
    they lie in it; ``finish`` is for each part how its new value is made of which
    newest value; ``shown`` 0: outputs are a vector, 1: a dict of two. ``passed``: what
    the projection passes on besides its vector. A ``linear`` program is a
    `jaxrnn.LinearCell`. ``asked``: of which of params, first carry and inputs gradients
    are asked for. ``large``: engines choose as if its values were large.
    """

    parts: str = "V"
    nesting: int = 0
    project: tuple[Instruction, ...] = ()
    step: tuple[Instruction, ...] = (("layer", (0, 0), 0),)
    output: tuple[Instruction, ...] = ()
    finish: tuple[tuple[str, int], ...] = (("raw", 0),)
    passed: str = ""
    shown: int = 0
    learned: bool = False
    linear: bool = False
    steps: int = 3
    batch: tuple[int, ...] = (2,)
    mask: bool = False
    resets: bool = False
    reverse: bool = False
    return_carries: bool = True
    asked: tuple[int, ...] = (0, 1, 2)
    large: bool = False
    matrices: int = 3
    seed: int = 0

    def instructions(self) -> tuple[Instruction, ...]:
        return (*self.project, *self.step, *self.output)

    @property
    def mixes(self) -> bool:
        """Whether its step looks at all of the batch."""
        return any(OPERATIONS[name].mixing for name, _, _ in self.instructions())


def run(
    params: dict, instructions: tuple[Instruction, ...], values: dict[str, list[Any]]
) -> dict[str, list[Any]]:
    """The values after the instructions; an instruction without an argument of a
    type makes one.
    """
    values = {kind: list(values.get(kind, ())) for kind in "VCMIBWP"}
    values["W"] = list(params["matrices"]) + values["W"]
    values["P"] = list(params["vectors"].values()) + values["P"]
    for name, args, k in instructions:
        operation = OPERATIONS[name]
        given = [
            pick(values, kind, index)
            for kind, index in zip(operation.takes, args, strict=True)
        ]
        values[operation.gives].append(operation.function(params, *given, k=k))
    return values


def pick(values: dict[str, list[Any]], kind: str, index: int) -> Any:
    if values[kind]:
        return values[kind][-1 - index % len(values[kind])]
    v = values["V"][-1]
    made = {"I": lambda: jnp.zeros(v.shape[:-1], jnp.int32), "B": lambda: v[..., 0] > 0}
    made |= {
        "C": lambda: jax.lax.complex(v, 0.5 * v),
        "M": lambda: v[..., :, None] * v[..., None, :],
    }
    return made[kind]()


def finished(params: dict, kind: str, how: str, old: Any, new: Any) -> Any:
    """A part of the new carry."""
    if how == "old":
        return old
    if kind == "I":
        return (new if how != "mix" else new + old) % ROWS
    if kind == "B":
        return new ^ old if how == "mix" else new
    if how == "mix":
        return 0.5 * old + 0.5 * new
    if how == "squashed":
        return (
            jnp.tanh(new) if kind != "C" else new / (1 + jnp.abs(new)).astype(new.dtype)
        )
    if how == "parameter" and kind == "V":
        return along(params["vectors"]["a"], old)
    if how == "gated" and kind == "V":
        return old * jax.nn.sigmoid(new) + 0.3 * new
    return new


def packed(program: Program, leaves: list[Any]) -> Any:
    """The carry's tree."""
    if program.nesting == 0:
        return leaves[0] if len(leaves) == 1 else tuple(leaves)
    if program.nesting == 1:
        return Pair(leaves[0], {"rest": leaves[1:]})
    return {
        "a": {"deep": (leaves[0], None)},
        "b": [Pair(leaf, ()) for leaf in leaves[1:]],
    }


def unpacked(carry: Any) -> list[Any]:
    return jax.tree.leaves(carry)


def _initial(program: Program, params: dict, batch: tuple[int, ...]) -> Any:
    shapes = {
        "V": ((N,), jnp.float64),
        "C": ((N,), jnp.complex128),
        "M": ((N, N), jnp.float64),
    }
    shapes |= {"I": ((), jnp.int32), "B": ((), bool)}
    leaves = [
        jnp.zeros((*batch, *shapes[kind][0]), shapes[kind][1]) for kind in program.parts
    ]
    if program.learned:
        leaves = [
            along(jnp.sin(params["vectors"]["b"]), leaf) if kind == "V" else leaf
            for kind, leaf in zip(program.parts, leaves)
        ]
    return packed(program, leaves)


def _project(program: Program, params: dict, x: Any) -> Any:
    values = run(params, program.project, {"V": [x]})
    z = values["V"][-1]
    return (
        {"z": z, **{kind: pick(values, kind, 0) for kind in program.passed}}
        if program.passed
        else z
    )


def _of_inputs(program: Program, z: Any) -> dict[str, list[Any]]:
    values = collections.defaultdict(list)
    values["V"].append(z["z"] if program.passed else z)
    for kind in program.passed:
        values[kind].append(z[kind])
    return values


def _output(program: Program, params: dict, carry: Any, x: Any) -> Any:
    values = collections.defaultdict(list)
    values["V"].append(x)
    for kind, leaf in zip(program.parts, unpacked(carry), strict=True):
        values[kind].append(leaf)
    values = run(params, program.output, values)
    y = values["V"][-1]
    return (
        {"y": y, "more": (pick(values, "I", 0), {"first": y[..., 0]})}
        if program.shown
        else y
    )


@dataclasses.dataclass(frozen=True)
class FuzzCell(jaxrnn.Cell):
    """A program as a cell."""

    program: Program

    def init(self, key, input_size):
        raise NotImplementedError("the fuzzer draws its parameters")

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return _initial(self.program, params, batch_shape)

    def project(self, params, x):
        return _project(self.program, params, x)

    def step(self, params, carry, z):
        old = unpacked(carry)
        values = _of_inputs(self.program, z)
        for kind, leaf in zip(self.program.parts, old, strict=True):
            values[kind].append(leaf)
        values = run(params, self.program.step, values)
        return packed(
            self.program,
            [
                finished(params, kind, how, leaf, pick(values, kind, index))
                for kind, leaf, (how, index) in zip(
                    self.program.parts, old, self.program.finish, strict=True
                )
            ],
        )

    def output(self, params, carry, x):
        return _output(self.program, params, carry, x)


@dataclasses.dataclass(frozen=True)
class FuzzLinearCell(jaxrnn.LinearCell):
    """A program as a linear cell: the step's instructions make its factors, which
    lie between -1 and 1, and what is added.
    """

    program: Program

    init = FuzzCell.init
    initial_carry = FuzzCell.initial_carry
    project = FuzzCell.project
    output = FuzzCell.output

    def affine(self, params, z):
        values = run(params, self.program.step, _of_inputs(self.program, z))
        pairs = [
            self._pair(values, kind, how, index)
            for kind, (how, index) in zip(self.program.parts, self.program.finish)
        ]
        return packed(self.program, [a for a, _ in pairs]), packed(
            self.program, [b for _, b in pairs]
        )

    def _pair(self, values, kind, how, index):
        new, other = pick(values, kind, index), pick(values, kind, index + 1)
        if kind == "C":
            a = new / (1 + jnp.abs(new)).astype(new.dtype)
        else:
            a = jax.nn.sigmoid(new) if how in ("mix", "gated") else jnp.tanh(new)
        if how == "old":
            a = jnp.where(jnp.abs(a) < 0.3, jnp.zeros_like(a), a)
        return a, other


def cell_of(program: Program) -> jaxrnn.Cell:
    return FuzzLinearCell(program) if program.linear else FuzzCell(program)


# --------------------------------------------------------------------------------------
# Numbers


class Numbers(NamedTuple):
    """What a program is run on: everything but cotangents and directions, which are
    drawn like ``random_like`` of outputs.
    """

    params: dict
    xs: np.ndarray
    carry: Any
    mask: Any
    resets: Any


def needs(program: Program) -> set[str]:
    return {
        need for name, _, _ in program.instructions() for need in OPERATIONS[name].needs
    }


def draw_params(program: Program, random: np.random.Generator) -> dict:
    params = {
        "matrices": [0.7 * random.normal(size=(N, N)) for _ in range(program.matrices)],
        "vectors": {"a": 0.7 * random.normal(size=N), "b": 0.7 * random.normal(size=N)},
    }
    made = {
        "leak": lambda: float(random.uniform(0.2, 0.9)),
        "table": lambda: 0.7 * random.normal(size=(ROWS, N)),
        "integers": lambda: random.integers(0, ROWS, size=ROWS).astype(np.int32),
        "key": lambda: random.integers(0, 2**32, size=2, dtype=np.uint32),
        "complex": lambda: (
            0.5 * (random.normal(size=(N, N)) + 1j * random.normal(size=(N, N)))
        ),
    }
    return params | {
        name: make() for name, make in made.items() if name in needs(program)
    }


def random_like(tree: Any, random: np.random.Generator, scale: float = 1.0) -> Any:
    """Normal numbers for floating leaves; small integers and flags for others."""

    def leaf(like):
        if jnp.issubdtype(like.dtype, jnp.complexfloating):
            return scale * (
                random.normal(size=like.shape) + 1j * random.normal(size=like.shape)
            )
        if jnp.issubdtype(like.dtype, jnp.floating):
            return np.asarray(scale * random.normal(size=like.shape), like.dtype)
        if like.dtype == bool:
            return random.random(like.shape) < 0.5
        return random.integers(0, ROWS, size=like.shape).astype(like.dtype)

    return jax.tree.map(leaf, tree)


def draw_numbers(program: Program, members: int | None = None) -> Numbers:
    """Params, and inputs, carries and flags, the latter with a leading axis of
    ``members`` if any.
    """
    random = np.random.default_rng(program.seed)
    lead = () if members is None else (members,)
    params = draw_params(program, random)
    shape = (*lead, program.steps, *program.batch)
    xs = random.normal(size=(*shape, N))
    like = jax.eval_shape(
        lambda p: cell_of(program).initial_carry(p, (*lead, *program.batch)), params
    )
    carry = random_like(like, random, 0.5)
    mask = random.random(shape) < 0.7 if program.mask else None
    resets = random.random(shape) < 0.3 if program.resets else None
    return Numbers(params, xs, carry, mask, resets)


# --------------------------------------------------------------------------------------
# The strategy

RECENT = [0, 0, 0, 0, 1, 1, 2, 3, 4]
MOST_NUMBER = 839  # 840 is a multiple of the lengths of most tables
LOCAL = tuple(name for name, op in OPERATIONS.items() if not op.mixing)
FAVOURED = {
    "product": 6,
    "product_turned": 3,
    "layer": 4,
    "gates": 3,
    "matrix": 8,
    "matrix_again": 8,
    "backward_of_matrix": 8,
    "backward_of_matrix_again": 8,
    "unary": 8,
    "unary_again": 8,
    "binary": 6,
    "vector": 2,
    "backward_of_vector": 3,
    "backward_of_state": 3,
    "embedding": 2,
}


def weighted(names: Any) -> list[str]:
    return [name for name in names for _ in range(FAVOURED.get(name, 1))]


# what takes a value that nothing else took, so that nothing is made in vain
ENDINGS = {
    "W": ["product", "product_turned", "layer", "tied"],
    "P": ["scaled", "shifted", "normed"],
    "I": ["embedding", "by_parity", "take_along", "plus_integer"],
    "C": ["real_part"],
    "M": ["read_matrix", "trace"],
}


class Draft:
    """Instructions as they are drawn, and which values are not taken yet; ``steps``:
    they are a step's.
    """

    def __init__(self, pick_one: Callable[[Any], Any], given: str, steps: bool):
        self.pick_one, self.instructions, self.steps = pick_one, [], steps
        self.untaken: dict[str, list[bool]] = {
            kind: [False] * (given.count(kind)) for kind in "VCMIB"
        }
        self.untaken |= {"W": [False] * 3, "P": [False] * 2}

    def index(self, kind: str, surely: bool = False) -> int:
        """Which value of a kind to take: more likely one that nothing took, or a new
        one.
        """
        free = [i for i, untaken in enumerate(reversed(self.untaken[kind])) if untaken]
        index = (
            free[0]
            if free and (surely or self.pick_one([True, True, False]))
            else self.pick_one(RECENT)
        )
        if self.untaken[kind]:
            self.untaken[kind][-1 - index % len(self.untaken[kind])] = False
        return index

    def add(self, names: list[str], surely: bool = False) -> None:
        free = [kind for kind, untaken in self.untaken.items() if any(untaken)]
        if free and not surely and self.pick_one([False, True]):
            names = [
                name for name in names if set(OPERATIONS[name].takes) & set(free)
            ] or names
        name = self.pick_one(names)
        arguments = tuple(self.index(kind, surely) for kind in OPERATIONS[name].takes)
        k = self.pick_one(range(MOST_NUMBER + 1))
        if not self.steps and rounds(name, k):
            k += 1
        self.instructions.append((name, arguments, k))
        self.untaken[OPERATIONS[name].gives].append(True)

    def end(self) -> tuple[Instruction, ...]:
        """All that was made is taken by something, but for the newest vector."""
        for kind, names in ENDINGS.items():
            while any(self.untaken[kind]):
                self.add(
                    [name for name in names if kind in OPERATIONS[name].takes],
                    surely=True,
                )
        while sum(self.untaken["V"]) > 1:
            self.add(["binary", "custom_jvp"], surely=True)
        return tuple(self.instructions)


def drawn(
    pick_one: Callable[[Any], Any], most: int = 5, small: bool = False
) -> Program:
    """A program with up to ``most`` instructions in its step and 2 before and after it,
    and what uses their values; or, a ``small`` one, with 1 instruction in its step
    alone, two parts of carry, and two or three steps. ``pick_one`` chooses from a
    sequence.
    """
    most, around = (1, 0) if small else (most, 2)
    batch = pick_one([(2,), (), (1,), (3,), (2, 2)])
    flags = [False, False, False, True] if small else [False, True]
    mask = pick_one(flags)
    linear = pick_one([False] * 7 + [True])
    # a backward pass of its own, which leaves no tangents
    turns = pick_one([False, True])
    # A projection and an output see all of time at once, and so do the cotangents of
    # what they take from the parameters.
    anywhere = weighted(name for name in LOCAL if not name.startswith("backward_of"))
    costly = (
        {"solve", "solve_state", "scatter_to_table", "checkpointed"} if small else ()
    )
    named = LOCAL if mask and batch else OPERATIONS
    inside = weighted(
        n
        for n in named
        if n not in costly and (turns or not n.startswith("backward_of"))
    )
    some = ["V", "VV", "VI", "VC", "VM", "IV"]
    others = ["V", "V", "V", "V"] if small else ["VIB", "VVI", "VMI", "VCB", "VVCI"]
    parts = pick_one(["V", "V", "VV"] if linear else [*some, *others])
    hows = [
        "raw",
        "squashed",
        "mix",
        "gated",
        *([] if linear else ["old", "parameter"]),
    ]
    passed = "" if small else pick_one(["", "", "I", "C", "IM"])

    def several(names, least, most, given, steps=False):
        draft = Draft(pick_one, given, steps)
        for _ in range(pick_one(range(least, most + 1))):
            draft.add(names)
        return draft.end()

    return Program(
        parts=parts,
        nesting=pick_one([0, 1, 2]),
        project=several(anywhere, 0, around, "V"),
        step=several(
            inside,
            min(2, most),
            most,
            "V" + passed + ("" if linear else parts),
            steps=True,
        ),
        output=several(anywhere, 0, around, "V" + parts),
        finish=tuple(
            (pick_one(hows[:4]), 0)
            if i == parts.index("V")
            else (pick_one(hows), pick_one(RECENT))
            for i in range(len(parts))
        ),
        passed=passed,
        shown=0,  # `Cell.output` gives one array; to be drawn once it may give a tree
        learned=pick_one([False, True]),
        linear=linear,
        steps=pick_one([3, 2] if small else [3, 2, 5, 4, 3, 2, 7, 1]),
        batch=batch,
        mask=mask,
        resets=pick_one(flags),
        reverse=pick_one([False, True]),
        return_carries=pick_one([False, True] if small else [True, True, False]),
        asked=pick_one([(0, 1, 2)] * 5 + [(0,), (1,), (2,), (0, 1), (0, 2)]),
        large=pick_one([False, True]),
        matrices=1 if small else 3,
        seed=pick_one(range(10_000)),
    )


def random_program(number: int, most: int = 5, small: bool = False) -> Program:
    """One drawn evenly from its number."""
    random = np.random.default_rng(number)
    return drawn(lambda options: options[random.integers(len(options))], most, small)


def smaller(program: Program) -> Any:
    """Programs a little simpler than this one, the simplest first: for making a
    failing one small.
    """
    for field in ("step", "project", "output"):
        given = getattr(program, field)
        for index in range(len(given)):
            yield dataclasses.replace(
                program, **{field: given[:index] + given[index + 1 :]}
            )
    for changes in (
        {"passed": ""},
        {"shown": 0},
        {"learned": False},
        {"mask": False},
        {"resets": False},
        {"reverse": False},
        {"return_carries": True},
        {"batch": ()},
        {"batch": (2,)},
        {"nesting": 0},
        {"asked": (0, 1, 2)},
        {"large": False},
        {"steps": 2},
        {"steps": 3},
        {"linear": False},
    ):
        new = dataclasses.replace(program, **changes)
        if (
            new != program
            and not (changes.get("batch") == (2,) and program.batch == ())
            and new.steps <= program.steps
        ):
            yield new
    for index in range(1, len(program.parts)):
        parts = program.parts[:index] + program.parts[index + 1 :]
        yield dataclasses.replace(
            program,
            parts=parts,
            finish=program.finish[:index] + program.finish[index + 1 :],
        )
    if "V" in program.parts and len(program.parts) > 1:
        at = program.parts.index("V")
        yield dataclasses.replace(program, parts="V", finish=(program.finish[at],))
    for index, (how, which) in enumerate(program.finish):
        for new in (("raw", 0), ("raw", which), (how, 0)):
            if new != (how, which):
                yield dataclasses.replace(
                    program,
                    finish=(*program.finish[:index], new, *program.finish[index + 1 :]),
                )
    for field in ("step", "project", "output"):
        given = getattr(program, field)
        for index, (name, args, k) in enumerate(given):
            for new in ((name, (0,) * len(args), k),) + (
                ((name, args, 0),) if k else ()
            ):
                if new != given[index]:
                    yield dataclasses.replace(
                        program, **{field: (*given[:index], new, *given[index + 1 :])}
                    )
