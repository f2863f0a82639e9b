"""What the tasks on real data have to beat, measured on the same split: ``python -m
benchmarks.tasks.baselines [TASK ...]``.

- sentiment: the most frequent label; logistic regression on counts of words, and on
  tf-idf of words and of pairs of them
- tagging: the tag that a word had most often; logistic regression on a window of words
  with their ends
- translation: copying the source
- captioning: the caption of the nearest training picture, pixel by pixel

Nothing is chosen by the test part. Writes a JSON file and a table.
"""

from __future__ import annotations

import importlib.metadata
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxrnn.tasks import captioning, sentiment, tagging, translation
from jaxrnn.tasks.data.images import nearest, read_captioned
from jaxrnn.tasks.data.sentence_pairs import read_pairs
from jaxrnn.tasks.data.splits import Split
from jaxrnn.tasks.data.tables import Tagged
from jaxrnn.tasks.metrics.classification import (
    bag_of_words,
    classification_scores,
    f1_by_label,
    most_frequent_tag,
)
from jaxrnn.tasks.metrics.text import text_scores, word_f1
from jaxrnn.training import InputError

from ..harness.options import Parser, command, one_of
from ..harness.report import content, number, result_name, table, write

Scores = dict[str, float]
Measured = Iterator[tuple[str, Callable[[], Scores]]]


def of_sentiment(quick: bool) -> tuple[Split, Measured]:
    split, _ = sentiment.read_data(sentiment.Options(limit=1000 if quick else 0))
    return split, _sentiment(split)


def _sentiment(split: Split) -> Measured:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    train, test = (
        [(example.text, example.label) for example in part]
        for part in (split.train, split.test)
    )
    truth = [label for _, label in test]

    def majority() -> Scores:
        common = Counter(label for _, label in train).most_common(1)[0][0]
        return classification_scores(truth, [common] * len(truth))

    def pairs_of_words() -> Scores:
        model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
            LogisticRegression(max_iter=1000),
        )
        model.fit(*zip(*train, strict=True))
        return classification_scores(
            truth, list(model.predict([text for text, _ in test]))
        )

    yield "most frequent label", majority
    yield (
        "logistic regression, counts of words",
        lambda: {
            name.removeprefix("bag_of_words_"): score
            for name, score in bag_of_words(train, test).items()
        },
    )
    yield "logistic regression, tf-idf of words and pairs", pairs_of_words


def of_tagging(quick: bool) -> tuple[Split, Measured]:
    split, _ = tagging.read_data(tagging.Options(limit=300 if quick else 0))
    return split, _tagging(split)


def _tagging(split: Split) -> Measured:
    truth = [tag for sentence in split.test for tag in sentence.tags]
    yield (
        "most frequent tag of each word",
        lambda: {"accuracy": most_frequent_tag(split.train, split.test)},
    )

    def windows() -> Scores:
        predicted = windowed(split.train, split.test)
        return classification_scores(truth, predicted) | {
            "noun_f1": f1_by_label(truth, predicted)["NOUN"]
        }

    yield "logistic regression on windows", windows


def windowed(train: Sequence[Tagged], test: Sequence[Tagged]) -> list[str]:
    """Tags of all words of ``test`` by logistic regression on `features`, each word
    for itself.
    """
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        DictVectorizer(dtype=np.float32), LogisticRegression(max_iter=150, tol=1e-3)
    )
    model.fit(
        [f for s in train for f in features(s.words)],
        [tag for s in train for tag in s.tags],
    )
    return list(model.predict([f for s in test for f in features(s.words)]))


def features(words: Sequence[str]) -> list[dict[str, bool]]:
    """Of each word: itself and two neighbors on either side, its beginnings and ends
    up to 5 characters and the ends of the next ones up to 3, how it is written, and
    whether it is the first or the last.
    """
    small = ["", "", *(word.lower() for word in words), "", ""]
    found = []
    for i, word in enumerate(words):
        near = small[i : i + 5]
        this = near[2]
        names = [
            f"word{k}={other}" for k, other in zip(range(-2, 3), near, strict=True)
        ]
        names += [f"begin={this[:n]}" for n in range(1, 6)] + [
            f"end={this[-n:]}" for n in range(1, 6)
        ]
        names += [f"end{k}={near[2 + k][-n:]}" for k in (-1, 1) for n in (2, 3)]
        names += [
            f"pair={near[1]} {this}",
            f"pair={this} {near[3]}",
            f"ends={near[1][-2:]} {this[-3:]}",
        ]
        names += [
            f"capital={word[:1].isupper()},{i == 0}",
            f"digit={any(map(str.isdigit, word))}",
        ]
        names += [
            f"letters={any(map(str.isalpha, word))}",
            f"last={i + 1 == len(words)}",
        ]
        found.append(dict.fromkeys(names, True))
    return found


def of_translation(quick: bool) -> tuple[Split, Measured]:
    split, _ = read_pairs(translation.Options().data)
    test = split.test[:200] if quick else split.test
    written, wanted = ([pair[i] for pair in test] for i in (0, 1))
    return split._replace(test=test), iter(
        [("copying", lambda: text_scores(written, wanted))]
    )


def of_captioning(quick: bool) -> tuple[Split, Measured]:
    options = captioning.Options(**(captioning.Options.QUICK if quick else {}))
    split, _ = read_captioned(options.data, options.size)
    return split, _captioning(split)


def _captioning(split: Split) -> Measured:
    wanted = [row.caption for row in split.test]

    def scores(written: list[str]) -> Scores:
        return {**text_scores(written, wanted), "word_f1": word_f1(written, wanted)}

    yield (
        "nearest neighbor by pixels",
        lambda: scores(nearest(split.train, split.test)),
    )


TASKS = {
    "sentiment": of_sentiment,
    "tagging": of_tagging,
    "translation": of_translation,
    "captioning": of_captioning,
}
SHOWN = ("accuracy", "macro_f1", "noun_f1", "exact_match", "bleu", "chrf", "word_f1")


def main(argv: list[str] | None = None) -> int:
    parser = Parser("tasks.baselines", __doc__ or "", devices=False)
    parser.add_argument(
        "tasks",
        nargs="*",
        metavar="TASK",
        type=one_of(TASKS, "task"),
        help=f"of {', '.join(TASKS)}: all",
    )
    args = parser.parse_args(argv)
    rows = []
    for task in args.tasks or TASKS:
        try:
            split, measured = TASKS[task](args.quick)
            for name, score in measured:
                began = time.perf_counter()
                scores = score()
                sizes = {"train": len(split.train), "test": len(split.test)}
                rows.append(
                    {
                        "task": task,
                        "baseline": name,
                        **sizes,
                        "scores": scores,
                        "seconds": time.perf_counter() - began,
                    }
                )
        except InputError as error:
            parser.error(str(error))
    versions = {
        package: importlib.metadata.version(package)
        for package in ("scikit-learn", "sacrebleu", "babel", "pillow")
    }
    result = content(
        "baselines", command("tasks.baselines", argv), rows=rows, packages=versions
    )
    head = ["baseline", "task", "train", "test", *SHOWN, "seconds"]
    cells = []
    for row in rows:
        scores = [shown(row["scores"].get(name)) for name in SHOWN]
        cells.append(
            [
                row["baseline"],
                row["task"],
                row["train"],
                row["test"],
                *scores,
                number(row["seconds"]),
            ]
        )
    text = (
        f"# Baselines of the tasks on real "
        f"data\n\n`{result['command']}`\n\n{table(head, cells)}"
    )
    write(result_name("baselines", args.out, args.quick), result, text, None)
    return 0


def shown(score: Any) -> str:
    """A share to three digits, BLEU and chrF to one behind the point."""
    return "-" if score is None else f"{score:.3f}" if score <= 1 else f"{score:.1f}"


if __name__ == "__main__":
    sys.exit(main())
