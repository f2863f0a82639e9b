"""niah: a needle in a haystack, the value of one key in a long filler.

It is the simplest of the retrieval tasks of RULER (Hsieh et al. 2024,
arXiv:2404.06654), S-NIAH, drawn at random instead of written in English. A sequence is
filler tokens with ``needles`` needles at random depths: a key, and its value behind
it. The last step is the key of one of the needles, and the target there is its value.
Filler, keys and values are different tokens. With one needle it is enough to remember
the only value; with more, the key decides.

``accuracy`` is that of the training length, ``accuracy_256`` that of another length,
and ``accuracy_depth_0_20`` that of the needles in the first fifth of the sequence, of
training length, and so on to ``accuracy_depth_80_100``.

Baselines: chance, one over the number of values; and with several needles one over
their number, which a model reaches that remembers values but not their keys.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...training import Budget, InputError
from ..config import cell_field, option
from ..models.own_cell import CellLike
from ..models.sequence_model import Batch
from ..optimizers import schedule_field
from .mqar import distinct
from .options import SyntheticOptions, learning_rate_field, length_field
from .problem import Problem, at_every_step, last_step, read_tokens
from .task import SyntheticTask

DEPTHS = 5  # parts of a sequence that are scored apart


@dataclasses.dataclass(frozen=True)
class Options(SyntheticOptions):
    """The options of the task; the field names are the flags of the command line."""

    length: int = length_field(64, 3)
    test_length: int = length_field(256, 3, "another length at which it is scored")
    needles: int = option(1, "number of keys with their values", least=1)
    keys: int = option(8, "number of different keys", least=1)
    values: int = option(8, "number of different values", least=2)
    fillers: int = option(8, "number of different filler tokens", least=1)
    cell: CellLike = cell_field("gated-deltanet:4")
    learning_rate: float = learning_rate_field(1e-2)
    schedule: str = schedule_field("cosine")

    QUICK: ClassVar[dict[str, Any]] = {
        "length": 16,
        "test_length": 64,
        "keys": 4,
        "values": 4,
        "fillers": 4,
        "hidden": 32,
    }

    def __post_init__(self):
        super().__post_init__()
        if self.keys < self.needles:
            raise InputError(
                f"--keys must be at least --needles, because no key stands twice in a "
                f"sequence, but {self.keys} is less than {self.needles}"
            )
        least = 2 * self.needles + 1
        lengths = {"--length": self.length, "--test-length": self.test_length}
        for flag, length in lengths.items():
            if length < least:
                raise InputError(
                    f"{flag} must be at least {least} for --needles {self.needles}, "
                    f"two steps for each needle and one for the query, but it is "
                    f"{length}"
                )


def draw(options: Options, key: Array, length: int, batch: int) -> Batch:
    """Draw ``batch`` sequences of ``length`` tokens, of which the last one asks.

    Filler tokens come first in the vocabulary, then keys, then values.
    """
    k_filler, k_keys, k_values, k_slots, k_shift = jax.random.split(key, 5)
    needles, fillers = options.needles, options.fillers
    keys = fillers + distinct(k_keys, jnp.zeros((batch, options.keys)), needles)
    first_value = fillers + options.keys
    values = jax.random.randint(
        k_values, (batch, needles), first_value, first_value + options.values
    )
    # Needles stand in different slots of two steps, all of them shifted by one or not
    # where a step is to spare.
    slots = (length - 1) // 2
    shift = jax.random.randint(k_shift, (batch, 1), 0, (length - 1) % 2 + 1)
    depth = 2 * distinct(k_slots, jnp.zeros((batch, slots)), needles) + shift
    tokens = jax.random.randint(k_filler, (batch, length), 0, fillers)
    rows = jnp.arange(batch)[:, None]
    tokens = tokens.at[rows, depth].set(keys).at[rows, depth + 1].set(values)
    # The needles are in random order, so that to ask for the first is to ask for any.
    tokens = tokens.at[:, -1].set(keys[:, 0])
    part = DEPTHS * depth[:, 0] // (length - 2)
    return Batch(
        tokens.T,
        at_every_step(values[:, 0], length),
        last_step(length, batch),
        part=at_every_step(part, length),
    )


def problem(options: Options) -> Problem:
    """Return the `Problem` of these options."""
    first_value = options.fillers + options.keys
    tokens = first_value + options.values
    example = f"0 {options.fillers} {first_value} 0 {options.fillers}"
    several = {"any_needle": 1 / options.needles} if options.needles > 1 else {}
    return Problem(
        input_size=options.hidden,
        tokens=tokens,
        classes=tokens,
        length=options.length,
        score="accuracy",
        baseline=("chance", lambda length: 1 / options.values),
        references=lambda: several,
        draw=functools.partial(draw, options),
        least=2 * options.needles + 1,
        other_lengths=(options.test_length,)
        if options.test_length != options.length
        else (),
        parts=tuple(
            f"depth_{100 * i // DEPTHS}_{100 * (i + 1) // DEPTHS}"
            for i in range(DEPTHS)
        ),
        read=lambda line: read_tokens(line, tokens, example),
        say=lambda outputs: str(int(outputs[-1].argmax())),
    )


TASK = SyntheticTask(
    "niah",
    Options,
    Budget(steps=400, report_every=50, evaluate_every=100),
    problem,
)
