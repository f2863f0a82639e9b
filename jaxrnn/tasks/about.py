"""What each task is, in a sentence, and what one does with a trained one."""

from __future__ import annotations

import shlex
from typing import NamedTuple


class About(NamedTuple):
    """A task in words.

    Attributes:
        sentence: what the network learns.
        data: what ``--data`` takes; empty if the task draws its own sequences.
        then: the arguments of commands for a trained run, where ``RUN`` stands for its
            directory.
        labeled: whether a validation score chooses the best parameters.
    """

    sentence: str
    data: str
    then: tuple[str, ...]
    labeled: bool = False


_GRADIENTS = "gradients --run RUN --out RUN-gradients"

ABOUT: dict[str, About] = {
    "hello": About(
        "the next letter of the word hello: the smallest language model",
        "",
        ("sample RUN", "predict RUN hell"),
    ),
    "charlm": About(
        "the next character of a text: a character language model",
        "a UTF-8 text file, pydoc or kjv",
        (
            'sample RUN --prompt "The " --length 400',
            "evaluate RUN --data FILE.txt",
            _GRADIENTS,
        ),
    ),
    "sentiment": About(
        "the label of a text, such as the opinion of a review: many to one",
        "a CSV or TSV file with columns text and label",
        (
            'predict RUN "a dull, lifeless film"',
            "evaluate RUN --data FILE.csv",
        ),
        labeled=True,
    ),
    "tagging": About(
        "the tag of each word, such as its part of speech: many to many",
        "a CoNLL or CoNLL-U file",
        ('predict RUN "Ali eve geldi ."', "evaluate RUN --data FILE.conllu"),
        labeled=True,
    ),
    "translation": About(
        "a sentence in another language, with attention: sequence to sequence",
        "a TSV or CSV file of pairs, or dates:en:ko",
        ('predict RUN "November 5, 2026"', "evaluate RUN --data FILE.tsv"),
        labeled=True,
    ),
    "captioning": About(
        "the words that name a picture: one to many",
        "a folder of PNG files with captions.csv, or glyphs",
        ("predict RUN PICTURE.png", "evaluate RUN --data FOLDER"),
        labeled=True,
    ),
    "adding": About(
        "the sum of the two marked numbers among many",
        "",
        (
            'predict RUN "0.5 0.25* 0.1 0.4*"',
            "evaluate RUN --length 500",
            _GRADIENTS,
        ),
    ),
    "copy": About(
        "the symbols seen at the beginning, again after a long blank",
        "",
        ("evaluate RUN --length 200", _GRADIENTS),
    ),
    "temporal-order": About(
        "the order in which two symbols stood among distractors",
        "",
        ("evaluate RUN --length 200", _GRADIENTS),
    ),
    "parity": About(
        "whether the number of ones so far is odd",
        "",
        ("predict RUN 10110", "evaluate RUN --length 500", _GRADIENTS),
    ),
    "group-words": About(
        "the product of all permutations so far: states that must be tracked",
        "",
        ("evaluate RUN --length 100", _GRADIENTS),
    ),
    "seq-mnist": About(
        "a handwritten digit that is read pixel by pixel",
        "",
        (),
    ),
    "squares": About(
        "the next frame of bouncing squares, for convolutional cells",
        "",
        ("evaluate RUN --length 40",),
    ),
}


def next_commands(task: str, run: str) -> list[str]:
    """Return whole commands for a trained run, the first of them the most useful.

    Args:
        task: a name in `ABOUT`.
        run: the run directory.

    Returns:
        Command lines, with the directory quoted where a shell needs it.

    Example:
        >>> next_commands("hello", "runs/my hello")[0]
        "jaxrnn sample 'runs/my hello'"
    """
    commands = [*ABOUT[task].then, "info RUN"]
    return [f"jaxrnn {words.replace('RUN', shlex.quote(run))}" for words in commands]


def resume_command(task: str, run: str) -> str:
    """Return the whole command that continues a run.

    Args:
        task: the name of its task.
        run: the run directory.

    Example:
        >>> resume_command("charlm", "runs/lm")
        'jaxrnn train charlm --out runs/lm --resume'
    """
    return f"jaxrnn train {task} --out {shlex.quote(run)} --resume"
