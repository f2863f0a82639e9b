"""hello: a language model of four letters.

The inputs are one-hot h, e, l, o; after "h" the model must predict e, then l, then
l, then o. The second l differs from the first only in what came before it: this is
the smallest problem that needs a recurrent state.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..decoding.sampling import generate
from ..diagnostics.style import RED, SHARES, save, styled, title
from ..training import (
    Budget,
    Experiment,
    InputError,
    Run,
    TrainState,
    make_train_step,
    start,
)
from ..training.curves import new_figure
from ..truncation.tbptt import Window
from .config import cell_field, check_options, option
from .models.cell_registry import make_cell
from .models.language_model import Functions, LanguageModel
from .models.own_cell import CellLike
from .optimizers import named_optimizer, named_schedule, optimizer_field, schedule_field
from .pictures import draw_run_curves, subject_of
from .task import Task

BUDGET = Budget(steps=200, report_every=10, evaluate_every=100)
NO_OTHER_DATA = (
    "hello cannot be evaluated on other data: it knows one word. Try jaxrnn predict "
    "RUN hell"
)


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of the task; the field names are the flags of the command line."""

    word: str = option("hello", "the word to learn")
    cell: CellLike = cell_field("elman")
    hidden: int = option(8, "number of units", least=1)
    learning_rate: float = option(0.05, "peak learning rate", above=0)
    optimizer: str = optimizer_field()
    schedule: str = schedule_field()
    seed: int = option(0, "random seed", least=0, below=2**31)

    QUICK: ClassVar[dict[str, Any]] = {}

    def __post_init__(self):
        check_options(self)
        if len(self.word) < 2:
            raise InputError(
                f"--word must have at least 2 letters, but it is {self.word!r}"
            )

    @property
    def letters(self) -> str:
        """Return the vocabulary: the word's letters in order of appearance."""
        return "".join(dict.fromkeys(self.word))


def build(options: Options, config: dict[str, Any]) -> tuple[Functions, Any]:
    """Build the model's functions and initial parameters.

    The model has one-hot letters, one recurrent layer and a linear readout.
    """
    layer = make_cell(options.cell, options.hidden, len(options.word))
    return Functions.of(
        LanguageModel(len(options.letters), layer, rngs=nnx.Rngs(options.seed))
    )


def numbers(options: Options, text: str) -> np.ndarray:
    """Convert letters to numbers."""
    for letter in text:
        if letter not in options.letters:
            raise InputError(
                f"{letter!r} is none of the letters this model knows: "
                f"{', '.join(options.letters)}"
            )
    return np.asarray([options.letters.index(letter) for letter in text], np.int32)


def prepare(options: Options) -> tuple[Experiment, dict[str, Any]]:
    """Return the experiment, and further entries of the run's config."""
    functions, params = build(options, {})
    word = numbers(options, options.word)
    steps = len(word) - 1
    resets = np.arange(steps) == 0
    window = Window(word[:-1], word[1:], np.ones(steps, bool), resets)
    tbptt, optimizer, schedule = (
        functions.tbptt(steps, steps),
        named_optimizer(options.optimizer),
        named_schedule(options.schedule, options.learning_rate),
    )
    train_step = make_train_step(tbptt, optimizer, schedule)

    def evaluate(state: TrainState) -> dict[str, Any]:
        _, total = functions.total_loss(
            state.params, functions.initial_carry(state.params, ()), window, window.mask
        )
        predicted = Trained(functions, state.params, options).predict(options.word[:-1])
        return {
            "loss": float(total) / steps,
            "exact_match": float(predicted == options.word[1:]),
        }

    experiment = Experiment(
        start=lambda: start(
            tbptt, optimizer, params, window, (), jax.random.key(options.seed)
        ),
        advance=lambda state, progress: train_step(state, window, progress),
        describe=lambda loss: {"loss": loss},
        evaluate=evaluate,
        sample=lambda state: Trained(functions, state.params, options).sample(
            options.word[0], None, None, None, 0
        ),
        learning_rate=schedule,
        part="the word",
        data=f"the word {options.word}, of {len(options.letters)} different letters",
    )
    return experiment, {}


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model, for `sample` and `predict`."""

    functions: Functions = dataclasses.field(repr=False)
    params: Any = dataclasses.field(repr=False)
    options: Options
    config: dict[str, Any] = dataclasses.field(default_factory=dict)

    def probabilities(self, text: str) -> np.ndarray:
        """Return the distribution after each letter of ``text``, ``(T, V)``."""
        window = Window(jnp.asarray(numbers(self.options, text)), None)
        _, logits, _ = self.functions.still(self.params)(window)
        return np.asarray(jax.nn.softmax(logits))

    def predict(self, text: str) -> str:
        """Return the most probable next letter after each letter."""
        if not text:
            raise InputError("predict needs letters, such as hell")
        return "".join(
            self.options.letters[i] for i in self.probabilities(text).argmax(-1)
        )

    def sample(
        self,
        prompt: str,
        length: int | None,
        temperature: float | None,
        top_k: int | None,
        seed: int,
    ) -> str:
        """Return ``prompt`` and its continuation.

        The default prompt is the first letter, and the default continuation the most
        probable letters.
        """
        prompt = prompt or self.options.word[0]
        length = (
            max(len(self.options.word) - len(prompt), 1) if length is None else length
        )
        temperature = temperature or 0.0
        if top_k is not None and top_k > len(self.options.letters):
            raise InputError(
                f"--top-k {top_k} is more than the {len(self.options.letters)} letters "
                f"of the model"
            )
        carry = self.functions.initial_carry(self.params, ())
        key = jax.random.key(seed) if temperature else None
        written = generate(
            lambda carry, token: self.functions.step(self.params, carry, token),
            carry,
            jnp.asarray(numbers(self.options, prompt)),
            length,
            temperature=temperature,
            top_k=top_k if temperature else None,
            key=key,
        )
        return prompt + "".join(
            self.options.letters[i] for i in np.asarray(written.tokens)
        )

    def evaluate(self, path: str) -> dict[str, Any]:
        """Refuse: the task has no other data."""
        raise InputError(NO_OTHER_DATA)

    def evaluate_length(self, length: int) -> dict[str, Any]:
        """Refuse: the task has no other data."""
        raise InputError(NO_OTHER_DATA)

    def report(self, run: Run) -> list[str]:
        """Return the distribution after each letter as text, and draw it."""
        word, letters = self.options.word, self.options.letters
        probabilities = self.probabilities(word[:-1])
        lines = [
            "after   "
            + "".join(f"{letter:>8}" for letter in letters)
            + "   says  should say"
        ]
        for letter, row, target in zip(word, probabilities, word[1:], strict=False):
            predicted = letters[int(row.argmax())]
            lines.append(
                f"{letter:<8}"
                + "".join(f"{p:8.3f}" for p in row)
                + f"   {predicted:<5} {target}"
            )
        for path in (
            _draw(run, word, letters, probabilities),
            draw_run_curves(run),
        ):
            if path:
                lines.append(f"picture: {path}")
        return lines


@styled
def _draw(run: Run, word: str, letters: str, probabilities: np.ndarray):
    """Draw ``distribution.png``: one column per step, with the target letter framed."""
    figure = new_figure(1.1 * len(word) + 1.5, 0.8 * len(letters) + 1.2)
    if figure is None:
        return None
    from matplotlib.patches import Rectangle

    axis = figure.subplots()
    image = axis.imshow(probabilities.T, vmin=0, vmax=1, cmap=SHARES, aspect="auto")
    for t, row in enumerate(probabilities):
        for i, p in enumerate(row):
            axis.text(
                t,
                i,
                f"{p:.2f}",
                ha="center",
                va="center",
                color="white" if p > 0.5 else "black",
            )
        axis.add_patch(
            Rectangle(
                (t - 0.5, letters.index(word[t + 1]) - 0.5),
                1,
                1,
                fill=False,
                ec=RED,
                lw=2.5,
            )
        )
    axis.set_xticks(range(len(word) - 1), list(word[:-1]))
    axis.set_yticks(range(len(letters)), list(letters))
    axis.set_xlabel("letter read")
    axis.set_ylabel("next letter")
    what = "Probability of the next letter; framed: the right one"
    axis.set_title(title(what, subject_of(run)))
    axis.spines[:].set_visible(False)
    figure.colorbar(image)
    path = run.path / "distribution.png"
    save(figure, path)
    return path


TASK = Task("hello", Options, BUDGET, build, prepare, Trained)
