"""tagging: padding that never matters, people's files, scores by hand, and a quick
run on the Turkish treebank.
"""

import importlib.metadata
import io
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from classifiers import FLAGS, SMALL, tagged, with_nan_padding
from flax import nnx
from killing import killed_and_resumed

from jaxrnn.cli import main
from jaxrnn.tasks import tagging
from jaxrnn.tasks.data.tables import Tagged
from jaxrnn.tasks.data.vocabulary import WordVocabulary, pad, words_in
from jaxrnn.tasks.metrics import classification

pytestmark = pytest.mark.usefixtures("optax_promotion")


def has_treebank():
    try:
        return any(
            file.name.endswith(".conllu")
            for file in importlib.metadata.files("turkish-treebanks") or []
        )
    except importlib.metadata.PackageNotFoundError:
        return False


needs_treebank = pytest.mark.skipif(
    not has_treebank(), reason="needs turkish-treebanks"
)
SENTENCES = [
    ["one"],
    ["a", "dog", ",", "slowly"],
    ["the", "unseen", "wörd", "of", "22", "dogs"],
    ["plot"] * 30,
]
VOCABULARY = WordVocabulary.of(SENTENCES, least=1)
CONFIG = {
    "vocabulary": {
        "words": list(VOCABULARY.words),
        "characters": VOCABULARY.characters,
        "tags": ["A", "B", "C"],
    }
}


@pytest.fixture(scope="module")
def model():
    with jax.numpy_rank_promotion("allow"):
        return tagging.build(tagging.Options(**SMALL), CONFIG)


@pytest.mark.parametrize("nan", [False, True])
def test_padding_never_matters(model, nan):
    functions, params = model
    given = with_nan_padding(params) if nan else params
    encoded = [VOCABULARY.encode(words) for words in SENTENCES]
    together = np.asarray(
        tagging.probabilities(functions, given, pad([*encoded, None], 48))
    )
    for words, rows in zip(encoded, together, strict=False):
        alone = np.asarray(
            tagging.probabilities(functions, params, pad([words], len(words[0])))
        )[0]
        np.testing.assert_allclose(rows[: len(alone)], alone, atol=1e-5)
    assert np.isfinite(together).all()
    assert abs(together[1, 0] - together[1, 1]).max() > 1e-3


def test_padding_has_no_gradient_and_a_word_is_its_characters_too(model):
    functions, params = model
    encoded = [VOCABULARY.encode(words) for words in SENTENCES[:3]]

    def loss(params, width):
        batch = pad([*encoded, None], width)
        return jnp.where(
            jnp.asarray(batch.mask),
            jnp.log(tagging.probabilities(functions, params, batch)[..., 0]),
            0.0,
        ).sum()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    plain, padded = gradient(params, 8), gradient(with_nan_padding(params), 20)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(padded), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    # both the unknown word
    unseen = [VOCABULARY.encode([word]) for word in ("slowlx", "dogdog")]
    assert unseen[0][0] == unseen[1][0]
    first, second = np.asarray(tagging.probabilities(functions, params, pad(unseen, 1)))
    assert abs(first - second).max() > 1e-4


def test_training_draws_by_key(model):
    functions, params = model
    batch = pad([VOCABULARY.encode(words) for words in SENTENCES], 32)
    first, again, other = (
        functions.training(params)(batch, nnx.Rngs(dropout=seed)) for seed in (0, 0, 1)
    )
    assert (first == again).all()
    assert (first != other).any()


def test_words_in_a_line():
    known = WordVocabulary.of([["A.Ş.", "...", "'ler", "(c)"]], least=1)
    line = " Ali,  eve (dün) geldi... 3.5'ler A.Ş. (c) \u2603 ?! "
    expected = [
        "Ali",
        ",",
        "eve",
        "(",
        "dün",
        ")",
        "geldi",
        "...",
        "3.5'ler",
        "A.Ş.",
        "(c)",
        "\u2603",
        "?!",
    ]
    assert words_in(line, known) == expected
    assert words_in(" ".join(expected), known) == expected
    assert words_in(" \t", known) == []


def test_most_frequent_tag_by_hand():
    train = [Tagged(("a", "b", "a"), ("X", "Y", "X")), Tagged(("a", "c"), ("Z", "X"))]
    assert (
        classification.most_frequent_tag(
            train, [Tagged(("a", "a", "b", "d"), ("X", "Z", "Y", "X"))]
        )
        == 3 / 4
    )


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A run on a file of a user's own, held out another."""
    jax.devices()
    folder = tmp_path_factory.mktemp("own")
    files = [
        tagged(folder / "train.conll"),
        tagged(folder / "test.conll", 40, seed=1, long=False),
    ]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        words = [
            "train",
            "tagging",
            "--data",
            *files,
            "--steps",
            "40",
            "--report-every",
            "20",
            "--evaluate-every",
            "20",
        ]
        assert main([*words, *FLAGS, "--out", str(folder / "run")]) == 0
    return folder


def test_a_users_file_is_learned_and_scored(own, capsys):
    result = json.loads((own / "run/result.json").read_text())
    assert result["accuracy"] > 0.95
    assert result["noun_f1"] > 0.9
    assert set(result["f1_by_tag"]) == {"ADV", "NOUN", "NUM"}
    assert main(["evaluate", str(own / "run"), "--data", str(own / "test.conll")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {
        name: found[name] for name in ("accuracy", "macro_f1", "noun_f1", "f1_by_tag")
    } == {
        name: result[name] for name in ("accuracy", "macro_f1", "noun_f1", "f1_by_tag")
    }
    assert (found["sentences"], found["unknown_labels"]) == (40, {})
    for picture in ("curves.png", "confusion.png", "f1.png"):
        assert (own / "run" / picture).read_bytes().startswith(b"\x89PNG")


def test_predict_takes_any_line(own, capsys, monkeypatch):
    long = " ".join(random.Random(0).choices(["dog", "slowly"], k=2000))
    lines = ["dog slowly 22", "", "집", "dog, \u2603", long]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    assert main(["predict", str(own / "run")]) == 0
    answers = capsys.readouterr().out.split("\n")[:-1]
    assert answers[:3] == ["dog/NOUN slowly/ADV 22/NUM", "", "집/NOUN"]
    assert [pair.split("/")[0] for pair in answers[3].split()] == ["dog", ",", "\u2603"]
    assert [pair.split("/")[0] for pair in answers[4].split()] == long.split()
    right = [pair in ("dog/NOUN", "slowly/ADV") for pair in answers[4].split()]
    assert sum(right) > 1900


def test_a_tag_that_training_never_showed_is_named_and_wrong(own, capsys):
    (own / "odd.conllu").write_text(
        "1\tdog\t_\tNOUN" + "\t_" * 6 + "\n2\tslowly\t_\tX" + "\t_" * 6 + "\n"
    )
    assert main(["evaluate", str(own / "run"), "--data", str(own / "odd.conllu")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["accuracy"], found["tokens"], found["unknown_labels"]) == (
        0.5,
        2,
        {"X": 1},
    )
    assert found["f1_by_tag"] == {"NOUN": 1.0, "X": 0.0}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "\n\n".join(f"word{i}\tSAME" for i in range(80)),
            "all training words are tagged 'SAME'",
        ),
        ("a\tX\nb\tY\textra\n", ".conll:2: expected a word and its tag"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, body, message):
    (tmp_path / "a.conll").write_text(body)
    assert (
        main(
            [
                "train",
                "tagging",
                "--data",
                str(tmp_path / "a.conll"),
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


def test_killed_and_resumed_it_ends_the_same(tmp_path):
    options = tagging.Options(data=(tagged(tmp_path / "a.conll", long=False),), **SMALL)
    alone, resumed = killed_and_resumed(tagging, options, tmp_path, kill=7)
    assert alone == resumed


@needs_treebank
def test_the_treebank():
    split = tagging.read_data(tagging.Options())[0]
    assert [len(part) for part in split] == [3881, 485, 485]
    assert sum(len(sentence.words) for part in split for sentence in part) > 80_000


@needs_treebank
def test_a_quick_run_on_the_treebank_beats_the_most_frequent_tag(tmp_path, capsys):
    assert main(["train", "tagging", "--quick", "--out", str(tmp_path / "run")]) == 0
    assert "test part: every tenth sentence" in capsys.readouterr().out
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["accuracy"] > result["most_frequent_tag_accuracy"] + 0.01
    assert result["noun_f1"] > 0.86
