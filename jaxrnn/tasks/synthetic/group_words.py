"""group-words: the word problem of a group, products at every step.

The task is that of Merrill, Petty & Sabharwal 2024. The input is a sequence g_1, g_2,
... of elements of a group, one-hot; the target at every step is the product so far,
``p_t = p_{t-1} g_t``. Elements are permutations of 0..n-1, written as the list of their
images; ``p g`` is "g first, then p": ``(p g)[i] = p[g[i]]``. S3 has 6 elements, A5 (the
even permutations of five elements) 60, and S5 120. A5 and S5 are not solvable, which
makes their word problem hard for models whose depth does not grow with the length.

Baseline: chance, one over the number of elements. The model is also evaluated at four
times the training length.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ...training import Budget, InputError
from ..config import choice
from ..models.sequence_model import Batch
from .options import SyntheticOptions, batch_field, learning_rate_field, length_field
from .problem import Problem, one_hot
from .task import SyntheticTask

GROUPS = ("S3", "A5", "S5")
LONGER = 4  # times the training length


@dataclasses.dataclass(frozen=True)
class Options(SyntheticOptions):
    """The options of the task; the field names are the flags of the command line."""

    group: str = choice("S3", GROUPS, "the group")
    length: int = length_field(20, 1)
    batch: int = batch_field(128)
    learning_rate: float = learning_rate_field(2e-3)

    QUICK: ClassVar[dict[str, Any]] = {"length": 6}


def elements(group: str) -> list[tuple[int, ...]]:
    """Return the permutations of a group, in lexicographic order.

    The identity is element 0.
    """
    every = list(itertools.permutations(range(int(group[1:]))))
    return every if group[0] == "S" else [p for p in every if is_even(p)]


def is_even(permutation: tuple[int, ...]) -> bool:
    """Return whether the number of inversions is even."""
    return sum(a > b for a, b in itertools.combinations(permutation, 2)) % 2 == 0


def product_table(group: str) -> Int[np.ndarray, "G G"]:
    """Return the table of products: row p, column g holds the number of ``p g``."""
    permutations = elements(group)
    number = {permutation: i for i, permutation in enumerate(permutations)}
    return np.asarray(
        [[number[tuple(p[i] for i in g)] for g in permutations] for p in permutations],
        np.int32,
    )


def draw(table: np.ndarray, key: Array, length: int, batch: int) -> Batch:
    """Draw elements uniformly, with their running products as targets."""
    words = jax.random.randint(key, (length, batch), 0, len(table))
    products = jnp.asarray(table)

    def multiply(product, element):
        product = products[product, element]
        return product, product

    _, targets = jax.lax.scan(multiply, jnp.zeros_like(words[0]), words)
    return Batch(one_hot(words, len(table)), targets, jnp.ones(words.shape, bool))


def problem(options: Options) -> Problem:
    """Return the `Problem` of these options."""
    permutations, table = elements(options.group), product_table(options.group)
    names = ["".join(map(str, permutation)) for permutation in permutations]

    def read(line: str) -> np.ndarray:
        words = line.split()
        if not words or set(words) - set(names):
            raise InputError(
                f'predict needs elements of {options.group}, such as "{names[1]} '
                f'{names[-1]}", but got {line!r}'
            )
        return np.eye(len(names))[[names.index(word) for word in words]]

    return Problem(
        input_size=len(permutations),
        classes=len(permutations),
        length=options.length,
        score="accuracy",
        baseline=("chance", lambda length: 1 / len(permutations)),
        draw=lambda key, length, batch: draw(table, key, length, batch),
        other_lengths=(LONGER * options.length,),
        read=read,
        say=lambda outputs: names[int(outputs[-1].argmax())],
    )


TASK = SyntheticTask(
    "group-words",
    Options,
    Budget(steps=2000, report_every=100, evaluate_every=200),
    problem,
)
