"""What a trained model reads, symbol by symbol, for the pictures of its inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...core.cell import Cell
from ...core.layer import Layer
from ...core.types import Params
from ...layers import inference
from ...training import InputError, Run
from .. import charlm, hello, sentiment, tagging
from ..data.series import Scaler, Series, filled
from ..data.vocabulary import pad
from ..probe import Probe
from ..series.forecaster import TrainedForecaster
from ..series.labels import TrainedLabeler, split_series
from ..series.options import read_data as read_series
from ..synthetic.task import Trained as TrainedSynthetic
from ..synthetic.task import probed

CHARACTERS, WORDS, STEPS = 240, 40, 120  # the largest numbers that are shown


class Reading(NamedTuple):
    """A sequence as a recurrent layer reads it.

    Attributes:
        symbols: the inputs as text, one a step.
        layer, params: the layer, without randomness.
        xs: the inputs, ``(T, 1, D)``.
        between: what stands between two symbols.
        what: where the sequence comes from.
        surprise: ``(T,)``, the bits of the symbol of each step given those before it.
        kind: what sort of sequence it is.
    """

    symbols: list[str]
    layer: Cell | Layer
    params: Params
    xs: Any
    between: str
    what: str
    surprise: np.ndarray | None = None
    kind: str = "a text"


def reading_of(run: Run, trained: object) -> Reading | None:
    """Return a sequence of the task of a run; None where there is none to show.

    Args:
        run: the run.
        trained: its trained model.
    """
    readers: dict[type, Callable[[Run, Any], Reading | None]] = {
        charlm.Trained: _characters,
        hello.Trained: _letters,
        sentiment.Trained: _review,
        tagging.Trained: _sentence,
        TrainedForecaster: _forecast,
        TrainedLabeler: _labeled,
        TrainedSynthetic: _steps,
    }
    reader = readers.get(type(trained))
    return None if reader is None else reader(run, trained)


def _characters(run: Run, trained: charlm.Trained) -> Reading | None:
    """Return the beginning of the held-out text, or of the newest sample."""
    vocabulary, what = trained.vocabulary, "a part of the held-out text"
    try:
        text = charlm.held_out_of(trained.options, vocabulary)
        numbers = _wordy(text, vocabulary)
    except (InputError, OSError):
        samples = [r["sample"] for r in run.records("metrics.jsonl") if "sample" in r]
        if not samples:
            return None
        what = "the newest sample, because the text is not there any more"
        numbers = vocabulary.encode(samples[-1].replace("\u23ce", "\n"))
    numbers = numbers[: CHARACTERS + 1]
    if len(numbers) < 2:
        return None
    symbols = list(vocabulary.decode(numbers[:-1]))
    return _of_tokens(trained, numbers, symbols, what)


def _wordy(numbers: Any, vocabulary: Any) -> Any:
    """Return the part of a text with the most letters, rather than a table in it."""
    starts = np.linspace(0, max(len(numbers) - CHARACTERS - 1, 0), 40).astype(int)
    is_letter = np.array([character.isalpha() for character in vocabulary.characters])
    counts = [is_letter[numbers[start : start + CHARACTERS]].sum() for start in starts]
    best = int(starts[int(np.argmax(counts))])
    return numbers[best : best + CHARACTERS + 1]


def _letters(run: Run, trained: hello.Trained) -> Reading:
    """Return the word."""
    word = trained.options.word
    numbers = hello.numbers(trained.options, word)
    return _of_tokens(trained, numbers, list(word[:-1]), "the word that it has learned")


def _of_tokens(trained: Any, numbers: Any, symbols: list[str], what: str) -> Reading:
    """Return the reading of a language model, with its surprise at each token."""
    tokens = jnp.asarray(numbers)[:, None]
    probe: Probe = trained.functions.probe(tokens[:-1], tokens[1:], trained.params)
    bits = _bits(trained.functions, trained.params, tokens)
    return Reading(symbols, *probe[:3], "", what, np.asarray(bits))


@jax.jit
def _surprise(logits: Any, tokens: Any) -> Any:
    """Return the bits of tokens ``(T,)`` under the logits before them."""
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, None], 1)
    return -picked[:, 0] / jnp.log(2.0)


def _bits(functions: Any, params: Params, tokens: Any) -> np.ndarray:
    """Return the bits of each token but the last; NaN for the first."""
    window = hello.Window(tokens[:-2], None)
    if len(tokens) < 3:
        return np.full(len(tokens) - 1, np.nan)
    _, logits, _ = _logits(functions, params, window)
    bits = _surprise(logits[:, 0], tokens[1:-1, 0])
    return np.concatenate([[np.nan], bits])


def _logits(functions: Any, params: Params, window: Any) -> Any:
    """Apply a language model to a window."""
    return jax.jit(lambda params, window: functions.still(params)(window))(
        params, window
    )


def _review(run: Run, trained: sentiment.Trained) -> Reading | None:
    """Return a text of the test part."""
    texts = (example.text for example in sentiment.read_data(trained.options)[0].test)
    return _of_words(trained, (sentiment.tokens(text) for text in texts))


def _sentence(run: Run, trained: tagging.Trained) -> Reading | None:
    """Return a sentence of the test part."""
    test = tagging.read_data(trained.options)[0].test
    return _of_words(trained, (list(sentence.words) for sentence in test))


def _of_words(trained: Any, sentences: Any) -> Reading | None:
    """Return the first sentence of ten words or more, or else the first one."""
    kept = [words[:WORDS] for words, _ in zip(sentences, range(50), strict=False)]
    kept = [words for words in kept if words]
    if not kept:
        return None
    words = next((words for words in kept if len(words) >= 10), kept[0])
    model = trained.functions.still(trained.params)
    batch = pad([trained.vocabulary.encode(words)], len(words))
    xs = jnp.moveaxis(model.encoder(batch, None), 0, 1)
    what = "a text of the test part, read in both directions"
    return Reading(words, inference(model.rnn.layer), model.rnn.values(), xs, " ", what)


def _forecast(run: Run, trained: TrainedForecaster) -> Reading:
    """Return the last samples of the last series, which are of the test part."""
    one = read_series(trained.options).tables[-1].series[-1]
    scaled = filled(one, Scaler.stored(trained.config["series"]))
    what = "the last samples of the data"
    return _of_series(trained, one, trained.inputs_of(scaled), trained.targets[0], what)


def _labeled(run: Run, trained: TrainedLabeler) -> Reading:
    """Return a series of the test part."""
    one = split_series(read_series(trained.options))[0].test[0]
    what = f"a series of the test part, which is labeled {one.label}"
    return _of_series(trained, one, trained.inputs_of([one])[0], 0, what)


def _of_series(
    trained: TrainedForecaster | TrainedLabeler,
    one: Series,
    inputs: np.ndarray,
    column: int,
    what: str,
) -> Reading:
    """Return the last samples of a series, written as the values of a column."""
    symbols = [f"{value:.3g}" for value in one.values[-STEPS:, column]]
    name = trained.config["series"]["columns"][column]
    return Reading(
        symbols,
        inference(trained.functions.layer),
        trained.params["rnn"],
        jnp.asarray(inputs[-STEPS:, None], jnp.float32),
        " ",
        f"{what} (the numbers are those of {name})",
        kind="a series",
    )


def _steps(run: Run, trained: TrainedSynthetic) -> Reading | None:
    """Return a held-out sequence of a synthetic task, if it can be written down."""
    problem = trained.problem
    length = max(min(problem.length, STEPS), problem.least)
    if problem.stored and problem.length > STEPS:
        return None
    xs, _ = probed(problem, trained.options.seed, length, 1)
    if xs.ndim > 3:  # pictures
        return None
    symbols = _written(np.asarray(xs[:, 0], np.float64))
    return Reading(
        symbols,
        trained.model.layer,
        trained.params["rnn"],
        trained.model.embed(trained.params, xs),
        " ",
        "a held-out sequence, its inputs as numbers",
        kind="a sequence",
    )


def _written(rows: np.ndarray) -> list[str]:
    """Return inputs as text: tokens ``(T,)`` and one-hot vectors by their numbers."""
    if rows.ndim == 1:
        return [str(int(token)) for token in rows]
    is_one_hot = rows.shape[1] > 1 and ((rows == 0) | (rows == 1)).all()
    if is_one_hot and (rows.sum(1) == 1).all():
        return [str(int(row.argmax())) for row in rows]
    return ["/".join(f"{value:.2g}" for value in row) for row in rows]
