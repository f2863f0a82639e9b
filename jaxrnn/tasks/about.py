"""What each task is, in a sentence, and what one does with a trained one."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ..training import Run
from .models.stored_cell import code_of


class Baseline(NamedTuple):
    """A simpler method, which a run scores beside the model.

    Attributes:
        score: the score that it is a baseline of.
        name: the name of the method.
    """

    score: str
    name: str


class About(NamedTuple):
    """A task in words.

    Attributes:
        sentence: what the network learns.
        data: what ``--data`` takes; empty if the task draws its own sequences.
        then: the arguments of commands for a trained run, where ``RUN`` stands for its
            directory.
        scored_on: the part of the data that the final scores are of; ``test`` where a
            validation score has chosen the parameters.
        baselines: the baselines in a result by their names there.
        curve: the metric of the learning curves, and its label; empty without curves.
    """

    sentence: str
    data: str
    then: tuple[str, ...]
    scored_on: str = "held out"
    baselines: Mapping[str, Baseline] = MappingProxyType({})
    curve: tuple[str, str] | tuple[()] = ()

    @property
    def labeled(self) -> bool:
        """Return whether a validation score chooses the best parameters."""
        return self.scored_on == "test"


_GRADIENTS = "gradients --run RUN --out RUN-gradients"

ABOUT: dict[str, About] = {
    "hello": About(
        "the next letter of the word hello: the smallest language model",
        "",
        ("sample RUN", "predict RUN hell"),
        scored_on="the word",
        curve=("loss", "cross-entropy (nats per letter)"),
    ),
    "charlm": About(
        "the next character of a text: a character language model",
        "a UTF-8 text file, pydoc or kjv",
        (
            'sample RUN --prompt "The " --length 400',
            "evaluate RUN --data FILE.txt",
            _GRADIENTS,
        ),
        baselines={
            "unigram_bits_per_char": Baseline("bits_per_char", "unigram"),
            "bigram_bits_per_char": Baseline("bits_per_char", "bigram"),
        },
        curve=("bits_per_char", "bits per character"),
    ),
    "sentiment": About(
        "the label of a text, such as a review's opinion: many to one",
        "a CSV or TSV file with columns text and label",
        (
            'predict RUN "a dull, lifeless film"',
            "evaluate RUN --data FILE.csv",
        ),
        scored_on="test",
        baselines={
            "majority_accuracy": Baseline("accuracy", "majority"),
            "bag_of_words_accuracy": Baseline("accuracy", "bag of words"),
            "bag_of_words_macro_f1": Baseline("macro_f1", "bag of words"),
        },
        curve=("accuracy", "accuracy"),
    ),
    "tagging": About(
        "the tag of each word, such as its part of speech: many to many",
        "a CoNLL or CoNLL-U file",
        ('predict RUN "Ali eve geldi ."', "evaluate RUN --data FILE.conllu"),
        scored_on="test",
        baselines={
            "most_frequent_tag_accuracy": Baseline("accuracy", "most frequent tag"),
        },
        curve=("accuracy", "accuracy"),
    ),
    "translation": About(
        "a sentence in another language: sequence to sequence",
        "a TSV or CSV file of pairs, or dates:en:ko",
        ('predict RUN "November 5, 2026"', "evaluate RUN --data FILE.tsv"),
        scored_on="test",
        baselines={
            "copying_exact_match": Baseline("exact_match", "copying"),
            "copying_chrf": Baseline("chrf", "copying"),
        },
        curve=("loss", "cross-entropy (nats per symbol)"),
    ),
    "captioning": About(
        "the words that name a picture: one to many",
        "a folder of PNG files with captions.csv, or glyphs",
        ("predict RUN PICTURE.png", "evaluate RUN --data FOLDER"),
        scored_on="test",
        baselines={
            f"nearest_neighbor_{score}": Baseline(score, "nearest neighbor")
            for score in ("exact_match", "word_f1")
        },
        curve=("loss", "cross-entropy (nats per word)"),
    ),
    "series": About(
        "the next values of series of numbers, or their labels",
        "a CSV or TSV file, a row a sample, or a .ts file",
        ("predict RUN FILE.csv", "evaluate RUN --data FILE.csv"),
        scored_on="test",
        baselines={
            f"{method}_{score}": Baseline(score, method.replace("_", " "))
            for methods, scores in (
                (("naive", "seasonal_naive", "linear"), ("mase", "mae", "rmse")),
                (
                    ("majority", "nearest_neighbor", "logistic_regression"),
                    ("accuracy", "macro_f1"),
                ),
            )
            for method in methods
            for score in scores
        },
    ),
    "adding": About(
        "the sum of the two marked numbers among many",
        "",
        (
            'predict RUN "0.5 0.25* 0.1 0.4*"',
            "evaluate RUN --length 500",
            _GRADIENTS,
        ),
        baselines={
            "baseline": Baseline("mse", "constant 1"),
        },
        curve=("mse", "mean squared error"),
    ),
    "copy": About(
        "the symbols seen at the beginning, again after a long blank",
        "",
        ("evaluate RUN --length 200", _GRADIENTS),
        baselines={
            "baseline": Baseline("loss", "memoryless"),
        },
        curve=("loss", "cross-entropy (nats per step)"),
    ),
    "temporal-order": About(
        "the order in which two symbols stood among distractors",
        "",
        ("evaluate RUN --length 200", _GRADIENTS),
        baselines={
            "baseline": Baseline("accuracy", "chance"),
        },
        curve=("accuracy", "accuracy"),
    ),
    "parity": About(
        "whether the number of ones so far is odd",
        "",
        ("predict RUN 10110", "evaluate RUN --length 500", _GRADIENTS),
        baselines={
            "baseline": Baseline("accuracy", "chance"),
        },
        curve=("accuracy", "accuracy"),
    ),
    "group-words": About(
        "the product of all permutations so far",
        "",
        ("evaluate RUN --length 100", _GRADIENTS),
        baselines={
            "baseline": Baseline("accuracy", "chance"),
        },
        curve=("accuracy", "accuracy"),
    ),
    "mqar": About(
        "the values of keys that were stored earlier: recall",
        "",
        ("evaluate RUN --length 128",),
        baselines={
            "baseline": Baseline("accuracy", "chance"),
            "any_value": Baseline("accuracy", "any value of the sequence"),
        },
        curve=("accuracy", "accuracy"),
    ),
    "niah": About(
        "the value of a key in a long filler: a needle in a haystack",
        "",
        ("evaluate RUN --length 500", _GRADIENTS),
        baselines={
            "baseline": Baseline("accuracy", "chance"),
            "any_needle": Baseline("accuracy", "the value of any needle"),
        },
        curve=("accuracy", "accuracy"),
    ),
    "recall": About(
        "the first symbol, asked for after a delay",
        "",
        ("predict RUN 1abca?", "evaluate RUN --length 64", _GRADIENTS),
        baselines={
            "baseline": Baseline("accuracy", "chance"),
        },
        curve=("accuracy", "accuracy"),
    ),
    "flip-flop": About(
        "the last pulse of each channel: a memory of several bits",
        "",
        ("dynamics RUN", 'predict RUN "+-+ ... ..-"', _GRADIENTS),
        baselines={
            "baseline": Baseline("mse", "memoryless"),
        },
        curve=("mse", "mean squared error"),
    ),
    "integration": About(
        "the sign of the summed evidence that a context names",
        "",
        ("dynamics RUN", 'predict RUN "color 0.3/-0.2 0.1/-0.4"', _GRADIENTS),
        baselines={
            "baseline": Baseline("accuracy", "chance"),
            "last_evidence": Baseline("accuracy", "the last evidence alone"),
        },
        curve=("accuracy", "accuracy"),
    ),
    "sine": About(
        "a sine wave, whose frequency the input tells",
        "",
        ("dynamics RUN", "predict RUN 0.5", _GRADIENTS),
        baselines={
            "baseline": Baseline("mse", "constant"),
        },
        curve=("mse", "mean squared error"),
    ),
    "seq-mnist": About(
        "a handwritten digit that is read pixel by pixel",
        "",
        (),
        baselines={
            "baseline": Baseline("accuracy", "majority class"),
            "three_nearest_neighbors": Baseline("accuracy", "3 nearest neighbors"),
        },
        curve=("accuracy", "accuracy"),
    ),
    "squares": About(
        "the next frame of bouncing squares, for convolutional cells",
        "",
        ("evaluate RUN --length 40",),
        baselines={
            "baseline": Baseline("mse", "last frame"),
        },
        curve=("mse", "mean squared error"),
    ),
}

UNKNOWN = About("a task that this version does not know", "", ())
_SERIES = ABOUT["series"]
_GOALS: dict[str, About] = {
    "forecast": _SERIES._replace(
        sentence="the next values of series of numbers",
        curve=("mase", "mean absolute scaled error (MASE)"),
    ),
    "label": _SERIES._replace(
        sentence="the label of each series of numbers: many to one",
        curve=("accuracy", "accuracy"),
    ),
}


def about_of(config: Mapping[str, Any]) -> About:
    """Return what the task of a run is; for series, what its goal is.

    Args:
        config: what ``config.json`` holds.

    Returns:
        An entry of `ABOUT`, narrowed to the goal; `UNKNOWN` for an unknown task.

    Example:
        >>> about_of({"task": "series", "series": {"goal": "label"}}).curve
        ('accuracy', 'accuracy')
    """
    task = config.get("task", "")
    if task == "series":
        return _GOALS.get(config.get("series", {}).get("goal", ""), _SERIES)
    return ABOUT.get(task, UNKNOWN)


def next_commands(run: Run) -> list[str]:
    """Return whole commands for a trained run, the first of them the most useful.

    Args:
        run: the run, of a task in `ABOUT`.

    Returns:
        Command lines, with the directory quoted where a shell needs it.

    Example:
        >>> import pathlib
        >>> next_commands(Run(pathlib.Path("my run"), {"task": "hello"}))[0]
        "jaxrnn sample 'my run'"
    """
    path, trust = shlex.quote(str(run.path)), _trust(run)
    return [
        f"jaxrnn {words.replace('RUN', path)}{trust}"
        for words in about_of(run.config).then
    ] + [f"jaxrnn info {path}"]


def resume_command(run: Run) -> str:
    """Return the whole command that continues a run.

    Args:
        run: the run, of a task in `ABOUT`.

    Example:
        >>> import pathlib
        >>> resume_command(Run(pathlib.Path("runs/lm"), {"task": "charlm"}))
        'jaxrnn train charlm --out runs/lm --resume'
    """
    path, task = shlex.quote(str(run.path)), run.config["task"]
    return f"jaxrnn train {task} --out {path} --resume{_trust(run)}"


def _trust(run: Run) -> str:
    """Return the flag that a run needs whose cell is code outside jaxrnn."""
    stored = run.config.get("options", {}).get("cell", "")
    return " --trust-code" if code_of(stored) else ""
