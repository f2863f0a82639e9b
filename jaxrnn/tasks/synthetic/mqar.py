"""mqar: multi-query associative recall, values that are asked for by their keys.

The task is that of Arora et al. (2023, arXiv:2312.04927), with the settings of their
code zoology. A sequence begins with ``pairs`` keys, each followed by its value. Later
every key stands once more, and the target there is its value. The gap between the pairs
and a query, in steps of two, is drawn from a power law: gap g has a weight of g^(a - 1)
with a = 0.01, no gap twice. Keys are the first half of the vocabulary and values the
other; no key and no value stands twice among the pairs of a sequence.

The other steps hold random tokens. These are never keys of the same sequence, so that
every query has one answer; zoology draws them from all tokens, which hardly differs for
its vocabulary of 8,192 and would for small ones.

Baselines: chance, one over the number of values; and one over ``pairs``, which a model
reaches that remembers the values but not their keys.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ...training import Budget, InputError
from ..config import cell_field, option
from ..models.own_cell import CellLike
from ..models.sequence_model import Batch
from ..optimizers import schedule_field
from .options import SyntheticOptions, learning_rate_field, length_field
from .problem import Problem, read_tokens
from .task import SyntheticTask

POWER = 0.01  # a of the power law of the gaps
LEAST = 4  # steps of a sequence for each pair


@dataclasses.dataclass(frozen=True)
class Options(SyntheticOptions):
    """The options of the task; the field names are the flags of the command line."""

    length: int = length_field(64, LEAST)
    pairs: int = option(8, "number of keys with their values", least=1)
    vocabulary: int = option(
        128, "number of tokens, of which half are keys and half are values", least=4
    )
    cell: CellLike = cell_field("gated-deltanet:4")
    learning_rate: float = learning_rate_field(1e-2)
    schedule: str = schedule_field("cosine")

    QUICK: ClassVar[dict[str, Any]] = {
        "length": 16,
        "pairs": 2,
        "vocabulary": 16,
        "hidden": 32,
    }

    def __post_init__(self):
        super().__post_init__()
        if self.length < LEAST * self.pairs:
            raise InputError(
                f"--length must be at least {LEAST} times --pairs, two steps for each "
                f"pair and two for its query, but {self.length} is less than {LEAST} x "
                f"{self.pairs} = {LEAST * self.pairs}"
            )
        if self.vocabulary < 2 * self.pairs:
            raise InputError(
                f"--vocabulary must be at least twice --pairs, because no key and no "
                f"value stands twice in a sequence, but {self.vocabulary} is less than "
                f"2 x {self.pairs} = {2 * self.pairs}"
            )


def draw(pairs: int, vocabulary: int, key: Array, length: int, batch: int) -> Batch:
    """Draw ``batch`` sequences of ``length`` tokens.

    The steps that count are the queries, whose targets are the values of their keys.
    """
    k_keys, k_values, k_gaps, k_noise = jax.random.split(key, 4)
    count = vocabulary // 2
    # The keys in random order: the first are those of the sequence.
    order = jnp.argsort(jax.random.uniform(k_keys, (batch, count)), axis=1)
    keys = order[:, :pairs]
    values = count + distinct(k_values, jnp.zeros((batch, vocabulary - count)), pairs)
    slots = (length - 2 * pairs) // 2
    weights = jnp.log(jnp.arange(1.0, slots + 1)) * (POWER - 1)
    gaps = distinct(k_gaps, jnp.broadcast_to(weights, (batch, slots)), pairs)

    noise = jax.random.randint(k_noise, (batch, length), pairs, vocabulary)
    of_keys = jnp.take_along_axis(order, jnp.minimum(noise, count - 1), axis=1)
    tokens = jnp.where(noise < count, of_keys, noise)
    stored = jnp.stack([keys, values], -1).reshape(batch, 2 * pairs)
    tokens = tokens.at[:, : 2 * pairs].set(stored)
    rows, asked = jnp.arange(batch)[:, None], 2 * pairs + 2 * gaps
    tokens = tokens.at[rows, asked].set(keys)
    targets = jnp.zeros_like(tokens).at[rows, asked].set(values)
    counts = jnp.zeros((batch, length), bool).at[rows, asked].set(True)
    return Batch(tokens.T, targets.T, counts.T)


def distinct(
    key: Array, log_weights: Float[Array, "B N"], count: int
) -> Int[Array, "B {count}"]:
    """Draw ``count`` different numbers below N in each row, one after the other.

    The next one is drawn from those that are left in proportion to their weights, which
    is the same as the largest sums of a logarithm and a Gumbel variable.
    """
    noise = jax.random.gumbel(key, log_weights.shape, log_weights.dtype)
    return jax.lax.top_k(log_weights + noise, count)[1]


def problem(options: Options) -> Problem:
    """Return the `Problem` of these options."""
    pairs, vocabulary = options.pairs, options.vocabulary
    first = vocabulary // 2
    return Problem(
        input_size=options.hidden,
        tokens=vocabulary,
        classes=vocabulary,
        length=options.length,
        score="accuracy",
        baseline=("chance", lambda length: 1 / (vocabulary - first)),
        references=lambda: {"any_value": 1 / pairs},
        draw=functools.partial(draw, pairs, vocabulary),
        least=LEAST * pairs,
        asks_last=False,
        read=lambda line: read_tokens(line, vocabulary, f"0 {first} 1 {first + 1} 0"),
        say=lambda outputs: str(int(outputs[-1].argmax())),
    )


TASK = SyntheticTask(
    "mqar",
    Options,
    Budget(steps=400, report_every=50, evaluate_every=100),
    problem,
)
