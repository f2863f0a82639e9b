"""The recurrent layer of a trained run, and sequences for ``jaxrnn dynamics``."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.cell import Cell
from ..core.layer import Layer
from ..core.types import Params
from ..layers import inference
from ..layers.compose import Bidirectional, Stack
from ..training import InputError, Run
from . import charlm, hello, sentiment, tagging
from .data.vocabulary import pad
from .report.readings import WORDS, reading_of
from .series.forecaster import TrainedForecaster
from .series.labels import TrainedLabeler
from .synthetic.task import Trained as TrainedSynthetic
from .synthetic.task import check_length, probed

LENGTH = 100  # steps of a sequence where the task does not say


class Subject(NamedTuple):
    """What is measured.

    Attributes:
        layer, params: a cell or layer without randomness, which goes forwards.
        xs: sequences that it reads, ``(T, B, D)``.
        mask: ``(T, B)``, or None.
        held: the inputs under which fixed points are looked for, by name.
        what: the layer, and what it reads, in words.
    """

    layer: Cell | Layer
    params: Params
    xs: Any
    mask: Any
    held: dict[str, Any]
    what: str


def subject_of(run: Run, trained: Any, length: int | None, batch: int) -> Subject:
    """Return the recurrent layer of a run, and ``batch`` sequences for it.

    Args:
        run: the run.
        trained: its trained model.
        length: the number of steps; None for that of the task.
        batch: the number of sequences.

    Raises:
        InputError: if the task has no single recurrent layer, or it has no carry.
    """
    readers: dict[type, Callable[[Run, Any, int | None, int], Subject]] = {
        TrainedSynthetic: _synthetic,
        charlm.Trained: _characters,
        hello.Trained: _one,
        sentiment.Trained: _sentences,
        tagging.Trained: _sentences,
        TrainedForecaster: _one,
        TrainedLabeler: _one,
    }
    reader = readers.get(type(trained))
    if reader is None:
        raise InputError(
            f"{run.path} is a run of {run.config['task']}, whose model is not one "
            f"recurrent layer that reads a sequence, so it has no dynamics by itself"
        )
    subject = reader(run, trained, length, batch)
    carry = jax.eval_shape(lambda p: subject.layer.initial_carry(p), subject.params)
    if not jax.tree.leaves(carry):
        raise InputError(
            f"{run.path}: {type(subject.layer).__name__} has no recurrence: it keeps "
            f"no carry from step to step, so there are no fixed points to look for"
        )
    return subject


def _synthetic(
    run: Run, trained: TrainedSynthetic, length: int | None, batch: int
) -> Subject:
    """Return the layer of a synthetic task, and held-out sequences."""
    problem = trained.problem
    length = problem.length if length is None else length
    check_length(trained.task.name, problem, length)
    xs, _ = probed(problem, trained.options.seed, length, batch)
    xs = trained.model.embed(trained.params, xs)
    held = {name: jnp.asarray(x, xs.dtype) for name, x in problem.held().items()}
    return Subject(
        inference(trained.model.layer),
        trained.params["rnn"],
        xs,
        None,
        held or {"mean input": xs.mean((0, 1))},
        f"{batch} held-out sequences of {len(xs)} steps",
    )


def _characters(
    run: Run, trained: charlm.Trained, length: int | None, batch: int
) -> Subject:
    """Return the layers of a language model, and parts of the held-out text."""
    length = LENGTH if length is None else length
    make = charlm.probe(trained.options, trained.config, length, batch)
    layer, params, xs, _, _ = make(trained.params)
    what = f"{batch} parts of the held-out text, {length} characters each"
    return Subject(layer, params, xs, None, {"mean input": xs.mean((0, 1))}, what)


def _sentences(run: Run, trained: Any, length: int | None, batch: int) -> Subject:
    """Return the forward direction of the first layer, and sentences."""
    test: Any
    if isinstance(trained, sentiment.Trained):
        test = sentiment.read_data(trained.options)[0].test
        sentences = (sentiment.tokens(example.text) for example in test)
    else:
        test = tagging.read_data(trained.options)[0].test
        sentences = (list(sentence.words) for sentence in test)
    length = WORDS if length is None else length
    words = [s[:length] for s in itertools.islice(filter(None, sentences), batch)]
    if not words:
        raise InputError(f"{run.path}: the test part has no sentence with words")
    encoded = pad([trained.vocabulary.encode(s) for s in words], max(map(len, words)))
    model = trained.functions.still(trained.params)
    xs = jnp.moveaxis(model.encoder(encoded, None), 0, 1)
    mask = np.asarray(encoded.mask).T
    layer, params = _forwards(inference(model.rnn.layer), model.rnn.values())
    return Subject(
        layer,
        params,
        xs,
        jnp.asarray(mask),
        {"mean word": xs[mask].mean(0)},
        f"the first layer, forwards, over {len(words)} sentences of the test part",
    )


def _forwards(layer: Cell | Layer, params: Params) -> tuple[Cell | Layer, Params]:
    """Return the forward direction of what reads the inputs first."""
    if not layer.causal and isinstance(layer, Stack):
        return _forwards(layer.layers[0], params["layer_0"])
    if isinstance(layer, Bidirectional):
        return _forwards(layer.forward, params["forward"])
    return layer, params


def _one(run: Run, trained: Any, length: int | None, batch: int) -> Subject:
    """Return the layer of a task with one sequence to show."""
    reading = reading_of(run, trained)
    if reading is None:
        raise InputError(f"{run.path} has no sequence that can be read")
    xs = reading.xs[:length]
    layer, params = _forwards(reading.layer, reading.params)
    held = {"mean input": xs.mean((0, 1))}
    return Subject(layer, params, xs, None, held, reading.what)
