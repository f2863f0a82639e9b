"""What the tests of sentiment and tagging share: small files, and models whose
padding is NaN.
"""

import random

import jax.numpy as jnp
import numpy as np

from jaxrnn.tasks.data.vocabulary import PAD

SMALL = {
    "hidden": 8,
    "embed": 8,
    "filters": 8,
    "batch": 16,
    "learning_rate": 2e-2,
    "dropout": 0.1,
    "word_dropout": 0.1,
}
FLAGS = [
    word
    for name, value in SMALL.items()
    for word in (f"--{name.replace('_', '-')}", str(value))
]
GOOD, BAD, OTHER = (
    ["good", "fine", "좋은"],
    ["bad", "poor", "나쁜"],
    ["film", "plot", "it", "the", "영화"],
)


def opinions(path, count=240, seed=0, long=True):
    """A CSV whose label one word of each text gives away; among its texts one of one
    word and one of 2,000.
    """
    rng = random.Random(seed)
    lines = ["text,label"]
    for i in range(count):
        word = rng.choice(GOOD if i % 2 else BAD)
        words = [word, *rng.choices(OTHER, k=rng.randrange(6))]
        if long and i == 7:
            words = [word, *rng.choices(OTHER, k=1999)]
        rng.shuffle(words)
        lines.append(f'"{" ".join(words)}",{"good" if i % 2 else "bad"}')
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def tagged(path, count=120, seed=0, long=True):
    """A CoNLL file: numbers are NUM, words that end in -ly ADV, all others NOUN."""
    rng = random.Random(seed)
    kinds = [
        ("NOUN", ["dog", "cat", "집", "tree"]),
        ("ADV", ["slowly", "kindly", "badly"]),
        ("NUM", ["1", "22", "307"]),
    ]
    sentences = []
    for i in range(count):
        chosen = [
            rng.choice(kinds)
            for _ in range(2000 if long and i == 7 else rng.randrange(1, 9))
        ]
        sentences.append(
            "\n".join(f"{rng.choice(words)}\t{tag}" for tag, words in chosen)
        )
    path.write_text("\n\n".join(sentences), encoding="utf-8")
    return str(path)


def with_nan_padding(params):
    """The parameters of a model with a `WordEncoder`, NaN in place of whatever
    padding is embedded as.
    """
    encoder = dict(params["encoder"])
    for name in ("words", "characters"):
        table = np.array(encoder[name]["embedding"])
        table[PAD] = np.nan
        encoder[name] = {"embedding": jnp.asarray(table)}
    return {**params, "encoder": encoder}
