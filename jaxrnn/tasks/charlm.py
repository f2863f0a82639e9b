"""charlm: a character language model of any text, trained by truncated BPTT."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..core.types import Params
from ..decoding.sampling import generate
from ..layers import dropout, stack
from ..training import (
    Budget,
    Experiment,
    InputError,
    Run,
    TrainState,
    make_train_step,
    start,
)
from ..training.announced import announced
from ..training.devices import choose_devices, mesh_of, on_one_device
from ..training.sharding import by_rows, on_mesh
from .config import cell_field, check_with_sources, option
from .data.character_texts import RARE, Texts, tokens_of
from .data.text import Streams, Vocabulary, coded_text, least_text
from .data.token_files import LARGE
from .data.tokens import Tokens
from .metrics.ngrams import ngram_baselines
from .models.cell_registry import make_cell
from .models.language_model import Functions, LanguageModel, bits_per_token
from .models.own_cell import CellLike
from .optimizers import named_optimizer, named_schedule, optimizer_field, schedule_field
from .pictures import draw_run_curves
from .probe import Probe
from .task import Task

BUDGET = Budget(steps=3000, report_every=100, evaluate_every=500)


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of the task; the field names are the flags of the command line."""

    data: tuple[str, ...] = option(
        ("pydoc",),
        "a UTF-8 text file, or pydoc (embedded) or kjv (package); a second one is the "
        "held-out text",
    )
    min_count: int = option(
        0,
        "number of occurrences in the training text below which a character is "
        f"unknown; 0: 1, but {RARE} in a text of more than {LARGE:,} characters",
        least=0,
        before=1,
    )
    evaluate_tokens: int = option(
        1_000_000,
        "number of held-out characters that an evaluation during training scores, "
        "spread over that text; 0: all, as at the end",
        least=0,
        before=0,
    )
    cell: CellLike = cell_field("lstm")
    hidden: int = option(256, "number of units of each recurrent layer", least=1)
    layers: int = option(1, "number of recurrent layers", least=1)
    embed: int = option(64, "size of the character embedding; 0 is one-hot", least=0)
    dropout: float = option(
        0.1, "dropout rate after each recurrent layer", least=0, below=1
    )
    batch: int = option(32, "number of parallel streams of the text", least=1)
    tbptt: int = option(
        64, "k1 and k2 of truncated BPTT, unless they are given", least=1
    )
    k1: int = option(0, "number of characters per update; 0: --tbptt", least=0)
    k2: int = option(
        0,
        "number of characters over which gradients flow, at least k1; 0: k1",
        least=0,
    )
    learning_rate: float = option(5e-3, "peak learning rate", above=0)
    optimizer: str = optimizer_field()
    schedule: str = schedule_field()
    clip: float = option(1.0, "largest global norm of the gradient", above=0)
    weight_decay: float = option(0.0, "decoupled weight decay", least=0)
    seed: int = option(0, "random seed", least=0, below=2**31)
    devices: int = option(
        0,
        "number of cores or accelerators over which the batch is split; 0 selects as "
        "many cores as are faster than one",
        least=0,
    )

    QUICK: ClassVar[dict[str, Any]] = {"hidden": 64, "batch": 16, "tbptt": 32}

    def __post_init__(self):
        check_with_sources(self, "text")
        k1, k2 = self.truncation
        if k2 < k1:
            raise InputError(
                f"--k2 {k2} is less than k1, which is {k1}: the oldest losses of "
                f"each window would get no gradient; choose a --k2 of at least k1"
            )

    @property
    def truncation(self) -> tuple[int, int]:
        """Return ``(k1, k2)``: characters per update, and per gradient."""
        k1 = self.k1 or self.tbptt
        return k1, self.k2 or k1


def build(options: Options, config: dict[str, Any]) -> tuple[Functions, Any]:
    """Build the model's functions and initial parameters.

    ``config["vocabulary"]`` holds the known characters.
    """
    cell = make_cell(options.cell, options.hidden, options.truncation[1])
    parts: list[Any] = []
    for _ in range(options.layers):
        parts += [cell, dropout(options.dropout)] if options.dropout else [cell]
    model = LanguageModel(
        len(config["vocabulary"]),
        stack(*parts),
        options.embed,
        rngs=nnx.Rngs(options.seed),
    )
    return Functions.of(model)


def prepare(options: Options) -> tuple[Experiment, dict[str, Any]]:
    """Return the experiment, and further entries of the run's config."""
    k1, _ = options.truncation
    texts = Texts.read(options.data, least_text(options.batch, k1), options.min_count)
    config = {"vocabulary": texts.vocabulary.characters, "text": texts.digest()}
    streams = Streams(texts.train, options.batch, k1, options.seed)
    functions, params = build(options, config)
    tbptt = functions.tbptt(*options.truncation)
    optimizer = named_optimizer(
        options.optimizer, clip=options.clip, weight_decay=options.weight_decay
    )
    schedule = named_schedule(options.schedule, options.learning_rate)
    mesh = mesh_of(choose_devices(options.devices, options.batch, options.hidden))
    train_step = make_train_step(tbptt, optimizer, schedule, mesh)

    own_windows = by_rows(streams, mesh, options.batch, axis=1)

    def evaluate(state: TrainState, most: int = 0) -> dict[str, float]:
        params = on_one_device(state.params)
        return {"bits_per_char": scored(functions, params, texts.held_out, most)}

    opening = (
        "The " if texts.vocabulary.encode("The ").all() else texts.vocabulary.start
    )

    def sample(state: TrainState) -> str:
        params = on_one_device(state.params)
        text = pieces(
            functions, params, texts.vocabulary, opening, 120, 0.7, None, options.seed
        )
        return "".join([opening, *text]).replace("\n", "\u23ce")

    key = jax.random.key(options.seed)
    experiment = Experiment(
        start=lambda: on_mesh(
            start(tbptt, optimizer, params, streams(0), (options.batch,), key), mesh
        ),
        advance=lambda state, progress: train_step(
            state, own_windows(int(state.step)), progress
        ),
        describe=lambda loss: {"bits_per_char": loss / float(np.log(2))},
        evaluate=lambda state: evaluate(state, options.evaluate_tokens),
        sample=sample,
        learning_rate=schedule,
        finally_evaluate=lambda state: {
            **evaluate(state),
            **ngram_baselines(texts.train, texts.held_out, len(texts.vocabulary)),
        },
        data=(
            f"{options.data[0]}: {len(texts.train):,} characters to train on, "
            f"{len(texts.held_out):,} held out, {len(texts.vocabulary) - 1} different"
        ),
        notes=texts.notes,
    )
    return experiment, config


def held_out_of(options: Options, vocabulary: Vocabulary) -> Tokens:
    """Return the held-out text in the numbers of a run, whatever the file is now.

    Raises:
        InputError: if the text cannot be read.
    """
    texts = Texts.read(options.data, min_count=options.min_count)
    return texts.held_out.recoded(vocabulary.encode(texts.vocabulary.characters))


def scored(functions: Functions, params: Params, text: Tokens, most: int = 0) -> float:
    """Return the bits per character of a text, or of ``most`` characters of it."""
    total = min(most, len(text)) if most else len(text)
    with announced("scoring", total, "characters") as work:
        return bits_per_token(functions, params, text, most=most, work=work)


def probe(
    options: Options, config: dict[str, Any], length: int, batch: int
) -> Callable[[Params], Probe]:
    """Return a function from parameters to a `Probe`, for the diagnostics.

    The probe reads parts of the held-out text, from the initial carry.
    """
    functions, _ = build(options, config)
    text = held_out_of(options, Vocabulary(config["vocabulary"]))
    if len(text) <= length:
        raise InputError(
            f"the held-out text has {len(text)} characters: choose a --length below "
            f"that"
        )
    starts = np.linspace(0, len(text) - length - 1, batch).astype(int)
    rows = starts[None, :] + np.arange(length)[:, None]
    return functools.partial(functions.probe, text[rows], text[rows + 1])


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5))
def _generate(functions, params, prompt, length, temperature, top_k, key, carry):
    """Generate ``length`` tokens after ``prompt``, but not the unknown character."""
    carry = functions.initial_carry(params, ()) if carry is None else carry

    def step(carry, token):
        carry, logits = functions.step(params, carry, token)
        # Token 0, the unknown character, is never generated.
        return carry, logits.at[..., 0].set(-jnp.inf)

    # At temperature 0 the most probable token is chosen, whatever k is.
    top_k = top_k if temperature else None
    return generate(
        step, carry, prompt, length, temperature=temperature, top_k=top_k, key=key
    )


PIECE = 32  # number of characters that are generated, and then printed, at a time


def pieces(
    functions: Functions,
    params: Params,
    vocabulary: Vocabulary,
    prompt: str,
    length: int,
    temperature: float,
    top_k: int | None,
    seed: int,
) -> Iterator[str]:
    """Yield ``length`` characters that follow ``prompt``, in pieces."""
    carry, tokens = None, np.asarray(vocabulary.encode(prompt))
    for begin in range(0, length, PIECE):
        key = (
            jax.random.fold_in(jax.random.key(seed), begin) if temperature > 0 else None
        )
        generated = _generate(
            functions,
            params,
            jnp.asarray(tokens),
            PIECE,
            temperature,
            top_k,
            key,
            carry,
        )
        carry, tokens = generated.carry, np.asarray(generated.tokens)
        yield vocabulary.decode(tokens[: length - begin])
        tokens = tokens[-1:]  # the last token is not yet part of the carry


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model, for `sample`, `predict` and `evaluate`."""

    functions: Functions = dataclasses.field(repr=False)
    params: Any = dataclasses.field(repr=False)
    options: Options
    config: dict[str, Any]

    @property
    def vocabulary(self) -> Vocabulary:
        """Return the vocabulary of the run."""
        return Vocabulary(self.config["vocabulary"])

    def sample(
        self,
        prompt: str,
        length: int | None,
        temperature: float | None,
        top_k: int | None,
        seed: int,
    ) -> str:
        """Return ``prompt`` and its continuation.

        The defaults are 400 characters at temperature 0.7.
        """
        return "".join(self.stream(prompt, length, temperature, top_k, seed))

    def stream(
        self,
        prompt: str,
        length: int | None,
        temperature: float | None,
        top_k: int | None,
        seed: int,
    ) -> Iterator[str]:
        """Yield what `sample` returns, in pieces as they are generated."""
        if top_k is not None and top_k > len(self.vocabulary):
            raise InputError(
                f"--top-k {top_k} is more than the {len(self.vocabulary)} characters "
                f"of the model"
            )
        length, temperature = length or 400, 0.7 if temperature is None else temperature
        yield prompt
        begin = prompt or self.vocabulary.start
        yield from pieces(
            self.functions,
            self.params,
            self.vocabulary,
            begin,
            length,
            temperature,
            top_k,
            seed,
        )

    def predict(self, text: str) -> str:
        """Return the bits per character of a text, nan if it has fewer than two."""
        if len(text) < 2:
            return "nan"
        numbers = self.vocabulary.encode(text)
        known = np.arange(len(self.vocabulary), dtype=numbers.dtype)
        scores = self._scores(Tokens(numbers, known), "the input")
        return f"{scores['bits_per_char']:.4f}"

    def evaluate(self, path: str) -> dict[str, Any]:
        """Return the bits per character of a file."""
        return self._scores(tokens_of(coded_text(path), self.vocabulary), path)

    def evaluate_length(self, length: int) -> dict[str, Any]:
        """Refuse: the task has no synthetic sequences."""
        raise InputError(
            "charlm has no synthetic sequences: --data PATH evaluates it on a text"
        )

    def _scores(self, text: Tokens, name: str) -> dict[str, Any]:
        """Return the scores of a text; ``name`` is used in errors."""
        if len(text) < 2:
            raise InputError(
                f"{name} is too short: it has {len(text)} characters, at least 2 are "
                f"needed"
            )
        return {
            "bits_per_char": scored(self.functions, self.params, text),
            "characters": len(text),
            "unknown_characters": int(text.counts()[text.table == 0].sum()),
        }

    def report(self, run: Run) -> list[str]:
        """Draw the learning curves as ``curves.png``, and return lines to print."""
        path = draw_run_curves(run)
        return [f"picture: {path}"] if path else []


TASK = Task("charlm", Options, BUDGET, build, prepare, Trained, probe)
