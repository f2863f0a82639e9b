"""Translation: attention by hand, padding that does not matter, files of every kind,
a killed run, the command line.
"""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from killing import killed_and_resumed

import jaxrnn
from jaxrnn.cli import main
from jaxrnn.tasks import translation
from jaxrnn.tasks.data.bucketing import Rows
from jaxrnn.tasks.data.sentence_pairs import Pair, read_pairs, read_tsv
from jaxrnn.tasks.data.tokenizers import Characters, Subwords
from jaxrnn.tasks.models.attention import Attention
from jaxrnn.tasks.models.seq2seq import Batch, Translator
from jaxrnn.tasks.runner import load
from jaxrnn.training import InputError

SCORES, rng = ("additive", "dot"), np.random.default_rng


# --- the model
# --------------------------------------------------------------------------------------


def normal(*shape, seed=0):
    return jnp.asarray(rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("score", SCORES)
def test_attention_is_a_numpy_loop(score):
    attention = Attention(score, 3, 4, size=5, rngs=nnx.Rngs(0))
    query, values = normal(2, 6, 3), normal(2, 7, 4, seed=1)
    mask = jnp.arange(7)[None] < jnp.array([[7], [3]])
    contexts, weights = nnx.jit(
        lambda attention: attention(query, attention.memory(values, mask))
    )(attention)
    W = np.asarray(attention.query.kernel[...], float)
    for b in range(2):
        for t in range(6):
            scores = []
            for s in range(7 if b == 0 else 3):
                q, value = (
                    np.asarray(query[b, t], float) @ W,
                    np.asarray(values[b, s], float),
                )
                if score == "dot":
                    scores.append(q @ value)
                else:
                    key = value @ np.asarray(
                        attention.key.kernel[...], float
                    ) + np.asarray(attention.key.bias[...], float)
                    scores.append(
                        np.tanh(q + key)
                        @ np.asarray(attention.weigh.kernel[...], float)[:, 0]
                    )
            expected = np.exp(scores) / np.exp(scores).sum()
            np.testing.assert_allclose(
                weights[b, t, : len(scores)], expected, atol=1e-5
            )
            np.testing.assert_allclose(
                contexts[b, t],
                expected @ np.asarray(values[b, : len(scores)], float),
                atol=1e-5,
            )


@pytest.mark.parametrize("score", SCORES)
def test_padding_gets_a_weight_of_0_and_the_rest_sums_to_1(score):
    attention = Attention(score, 3, 4, rngs=nnx.Rngs(0))
    lengths = jnp.array([[7], [3], [1], [0]])
    mask = jnp.arange(7)[None] < lengths
    values = jnp.where(mask[..., None], 30 * normal(4, 7, 4), jnp.nan)

    def total(query):
        contexts, weights = attention(query, attention.memory(values, mask))
        return contexts.sum(), (contexts, weights)

    gradient, (contexts, weights) = jax.jit(jax.grad(total, has_aux=True))(
        normal(4, 6, 3, seed=1)
    )
    assert (
        np.asarray(weights)[~np.broadcast_to(mask[:, None], weights.shape)] == 0
    ).all()
    np.testing.assert_allclose(weights[:3].sum(-1), 1, atol=1e-6)
    assert not weights[3].any()
    assert not contexts[3].any()
    assert jnp.isfinite(gradient).all()
    with pytest.raises(ValueError, match="the score must be 'additive' or 'dot'"):
        Attention("sharp", 3, 4, rngs=nnx.Rngs(0))


def translator(attention="additive", **options):
    cell = options.pop("cell", jaxrnn.LSTM(6))
    return Translator(
        (9, 8), cell, embed=5, size=7, attention=attention, rngs=nnx.Rngs(0), **options
    )


def batch_of(width=9, seed=0):
    """Three pairs, one of the shortest, and a place without one."""
    random, lengths = rng(seed), np.array([9, 1, 4, 0])
    source = np.where(
        np.arange(width) < lengths[:, None], random.integers(1, 8, (4, width)), 0
    )
    target = np.where(
        np.arange(width) < lengths[:, None] - 1, random.integers(1, 7, (4, width)), 7
    )
    return Batch(
        *map(
            jnp.asarray,
            (source.astype(np.int32), lengths, target.astype(np.int32), lengths),
        )
    )


@pytest.mark.parametrize("attention", [*SCORES, "none"])
def test_padding_does_not_matter(attention):
    """A pair alone, in a batch, padded further, with other symbols in the padding,
    with NaN where they are embedded.
    """
    model, batch = translator(attention), batch_of()
    forward = nnx.jit(
        lambda model, batch: (*model(batch), model.loss(batch, jax.random.key(0)))
    )
    logits, weights, loss = forward(model, batch)
    assert (weights is None) == (attention == "none")
    alone = Batch(
        batch.source[2:3, :4],
        batch.source_lengths[2:3],
        batch.target[2:3, :4],
        batch.target_lengths[2:3],
    )
    np.testing.assert_allclose(forward(model, alone)[0][0], logits[2, :4], atol=1e-5)
    wider = Batch(
        *(
            jnp.pad(part, ((0, 0), (0, 4)), constant_values=3)
            if part.ndim == 2
            else part
            for part in batch
        )
    )
    other, _, other_loss = forward(model, wider)
    for i, n in ((0, 9), (1, 1), (2, 4)):
        np.testing.assert_allclose(other[i, :n], logits[i, :n], atol=1e-5)
    np.testing.assert_allclose(loss[0], other_loss[0], atol=1e-4)
    assert int(loss[1]) == int(other_loss[1]) == 14

    @nnx.jit
    def read(model, padding):
        """Logits where the embedded padding, and then what the encoder says of it,
        is ``padding``.
        """
        mask = jnp.arange(9)[None] < batch.source_lengths[:, None]
        xs = jnp.where(mask[..., None], model.encoder.embed(batch.source), padding)
        ys, features, _ = model.encoder(xs, batch.source_lengths)
        memory = model.decoder.memory(jnp.where(mask[..., None], ys, padding), mask)
        return model.decoder(model.bridge(features), batch.target[:, :2], memory)[0]

    np.testing.assert_allclose(read(model, jnp.nan), read(model, 0.0), atol=1e-6)


@pytest.mark.parametrize("cell", [jaxrnn.GRU(6), jaxrnn.LSTM(6)], ids=["gru", "lstm"])
def test_steps_are_teacher_forcing(cell):
    """What beam search runs and what training runs: the same logits."""
    model, batch = translator("dot", cell=cell, layers=2), batch_of()
    carry, memory = nnx.jit(
        lambda model: model.encode(batch.source, batch.source_lengths)
    )(model)
    tokens = jnp.concatenate([jnp.full((4, 1), 7), batch.target[:, :-1]], axis=1)
    logits, _ = nnx.jit(lambda model: model(batch))(model)
    step = nnx.jit(
        lambda model, carry, token, memory: model.decoder.step(carry, token, memory)
    )
    for t in range(4):
        carry, now = step(model, carry, tokens[:, t], memory)
        np.testing.assert_allclose(now[:1], logits[:1, t], atol=1e-5)


def test_scheduled_sampling():
    """Almost never: the loss of teacher forcing. Often: another one, that the key
    decides.
    """
    model, batch = translator("dot"), batch_of()
    loss = nnx.jit(
        lambda model, key, share: model.loss(batch, key, share)[0], static_argnums=2
    )
    forced = loss(model, jax.random.key(0), 0.0)
    np.testing.assert_allclose(loss(model, jax.random.key(0), 1e-9), forced, rtol=1e-5)
    drawn = [float(loss(model, jax.random.key(seed), 0.9)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert abs(drawn[0] - float(forced)) > 1e-3


# --- the data
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("languages", ["en:ko", "ko:en", "en:de", "en:fr"])
def test_dates_are_split_by_date_and_have_one_answer(languages):
    split, _ = read_pairs((f"dates:{languages}",))
    assert [len(part) > 3000 for part in split] == [True] * 3
    pairs = [pair for part in split for pair in part]
    answers: dict = {}
    for pair in pairs:
        assert answers.setdefault(pair.source, pair.target) == pair.target
        assert pair.source != pair.target or languages == "en:fr"
    train, _, test = ({pair.source for pair in part} for part in split)
    assert not train & test
    if languages == "en:ko":
        assert Pair("Friday, February 15, 2019", "2019년 2월 15일 금요일") in pairs


def write(path, text, newline="\n"):
    path.write_bytes(text.replace("\n", newline).encode())
    return str(path)


LONG = "ab" * 1000
LINES = (
    "\ufeffsource\ttarget\n"
    + '"안녕" hello\t"hi"\n\nx\ty\n'
    + f"{LONG}\t{LONG[::-1]}\n"
)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_tsv_file_is_read_as_it_is(tmp_path, newline):
    rows = read_tsv(write(tmp_path / "pairs.tsv", LINES, newline))
    assert [pair for pair, _ in rows] == [
        ('"안녕" hello', '"hi"'),
        ("x", "y"),
        (LONG, LONG[::-1]),
    ]


PAIRS = "".join(
    f"{word} {n}\t{n} {word[::-1]}\n"
    for word in ("abc", "de", "fghij", "k")
    for n in range(15)
)


def test_parts_by_hash_by_column_and_by_a_second_file(tmp_path):
    one = write(tmp_path / "one.tsv", PAIRS)
    split, notes = read_pairs((one,))
    assert sum(map(len, split)) == 60
    assert min(map(len, split)) >= 1
    assert "split by a hash" in notes[0]
    again = read_pairs((one, write(tmp_path / "two.tsv", "held\tout\n")))
    assert again[0].test == [("held", "out")]
    assert len(again[0].train) + len(again[0].validation) == 60
    named = (
        PAIRS.replace("\n", "\ttrain\n")
        .replace("k 3\t3 k\ttrain", "k 3\t3 k\ttest")
        .replace("k 4\t4 k\ttrain", "k 4\t4 k\tdev")
    )
    split, _ = read_pairs((write(tmp_path / "three.tsv", named),))
    assert split.test == [("k 3", "3 k")]
    assert split.validation == [("k 4", "4 k")]
    assert len(split.train) == 58


def test_pairs_with_commas(tmp_path):
    text = 'source,target\n"one, two","eins, zwei",train\nthree,drei,test\n'
    rows = read_tsv(write(tmp_path / "pairs.csv", text))
    assert rows == [
        (("one, two", "eins, zwei"), "train"),
        (("three", "drei"), "test"),
    ]
    with pytest.raises(InputError, match=r"csv:2: expected source,target.* 1 column$"):
        read_tsv(write(tmp_path / "bad.csv", "a,b\nc\n"))


MISTAKES = {
    "a missing tab": (
        "a\tb\nno tab here\n",
        r"bad\.tsv:2: expected source<TAB>target.*this line has 1 column$",
    ),
    "four columns": ("a\tb\ttrain\tx\n", r"bad\.tsv:1: .*has 4 columns"),
    "an empty target": ("a\tb\n\n\tb\n", r"bad\.tsv:3: the source is empty"),
    "another part": ("a\tb\ttrian\n", r"bad\.tsv:1: 'trian' is not the name of a part"),
    "nothing": ("\n\n", "has no pairs"),
    "no test part": ("a\tb\ttrain\nc\td\ttrain\n", "part has no pairs"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_bad_line_is_named(tmp_path, name):
    text, message = MISTAKES[name]
    with pytest.raises(InputError, match=message):
        read_pairs((write(tmp_path / "bad.tsv", text),))


def test_languages_and_files_that_are_not_there(tmp_path):
    for name in ("dates:en", "dates:en:xx", "dates:en:ko:de"):
        with pytest.raises(InputError, match="expected two languages"):
            read_pairs((name,))
    with pytest.raises(InputError, match="no such file"):
        read_pairs((str(tmp_path / "none.tsv"),))
    with pytest.raises(InputError, match="held-out dates of its own"):
        read_pairs(("dates:en:ko", "x"))


def test_symbols():
    characters = Characters.of(["ab", "한국"])
    assert characters.decode(characters.encode("한a국b")) == "한a국b"
    assert characters.encode("az").tolist()[1] == 0
    texts = [line.split("\t")[i] for line in PAIRS.splitlines() for i in (0, 1)] + [
        "한국 말  two spaces"
    ]
    subwords = Subwords.of(texts, 60)
    assert all(subwords.decode(subwords.encode(text)) == text for text in texts)
    assert Subwords.of(texts, 60) == subwords
    assert sum(len(subwords.encode(text)) for text in texts) < 0.9 * sum(
        map(len, texts)
    )
    assert subwords.encode("\N{SNOWMAN}").max() <= subwords.boundary
    with pytest.raises(InputError, match="--subwords 3"):
        Subwords.of(texts, 3)


# --- runs
# --------------------------------------------------------------------------------------

SMALL = {"hidden": 8, "embed": 4, "batch": 8, "beam": 2}


def test_killed_and_resumed_it_ends_with_identical_metrics(tmp_path, optax_promotion):
    """With everything that is random: dropout, scheduled sampling has its own test."""
    options = translation.Options(
        data=(write(tmp_path / "pairs.tsv", PAIRS),),
        dropout=0.2,
        attention="dot",
        **SMALL,
    )
    alone, resumed = killed_and_resumed(
        translation, options, tmp_path, kill=7, steps=12
    )
    assert alone == resumed


def test_quick_beats_copying_on_unseen_dates(
    tmp_path, optax_promotion, capsys, monkeypatch
):
    """Copying has no date right. Then: predict, standard input, a user's file,
    unknown and long input.
    """
    run = str(tmp_path / "run")
    assert main(["train", "translation", "--quick", "--out", run]) == 0
    assert {"attention.png", "curves.png"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["exact_match"] > 0.3
    assert result["bleu"] > 50
    capsys.readouterr()
    monkeypatch.setattr(
        "sys.stdin",
        io.StringIO("March 3, 2001\n\n\N{SNOWMAN}\U0001f600\n" + "1" * 2000 + "\nx\n"),
    )
    assert main(["predict", run]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 6
    assert "2001" in lines[0]
    trained, _ = load(run)
    sources = ["March 3, 2001", "1/2/33", "Thursday, November 5, 2026", "\N{SNOWMAN}"]
    assert trained.translate(sources) == [
        trained.translate([source])[0] for source in sources
    ]
    weights = trained.weights("March 3, 2001", "2001년 3월 3일")
    assert weights.shape == (12, 13)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    file = write(
        tmp_path / "own.tsv", "March 3, 2001\t2001년 3월 3일\n\N{SNOWMAN}\tx\n"
    )
    assert main(["evaluate", run, "--data", file]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["unknown_symbols"] == 1
    assert scores["pairs"] == 2
    assert main(["evaluate", run, "--data", write(tmp_path / "bad.tsv", "a b\n")]) == 2
    assert "bad.tsv:1: expected source<TAB>target" in capsys.readouterr().err
    assert main(["sample", run]) == 2
    assert "translation does not generate text" in capsys.readouterr().err
    beams_are_never_below_greedy(
        trained,
        [pair.source for pair in read_pairs(("dates:en:ko",))[0].test[::9]][:200],
    )


def beams_are_never_below_greedy(trained, sources):
    """On 200 sentences and the same read backwards, of which the model is less sure, by
    the score that ranks; and a beam of 1 is an argmax at every step.
    """
    assert len(sources) == 200
    sources = [*sources, *(source[::-1] for source in sources)]
    model, penalty = (
        trained.functions.still(trained.params),
        trained.options.length_penalty,
    )
    numbered = translation.Numbered.of(
        trained.config, [Pair(source, "") for source in sources]
    )
    batch = numbered.batch(Rows(np.arange(400), int(numbered.lengths.max())))
    search = nnx.jit(
        lambda model, width, penalty: model.translate(
            batch.source, batch.source_lengths, width, 24, penalty
        ),
        static_argnums=(1, 2),
    )
    wide, one, flat = (
        search(model, 4, penalty),
        search(model, 1, penalty),
        search(model, 4, 0.0),
    )
    assert penalty > 0
    assert (wide.scores[:, 0] >= one.scores[:, 0] - 1e-5).all()
    assert (
        wide.scores[200:, 0] > one.scores[200:, 0] + 1e-3
    ).any()  # it does look further
    assert (np.diff(wide.scores, axis=1) <= 0).all()

    carry, memory = model.encode(batch.source, batch.source_lengths)
    step = nnx.jit(lambda model, carry, token: model.decoder.step(carry, token, memory))
    token, logp, lengths, alive = (
        jnp.full(400, model.boundary),
        np.zeros(400),
        np.zeros(400),
        np.ones(400, bool),
    )
    for n in range(24):
        carry, logits = step(model, carry, token)
        # 0 is never written
        likelihoods = jax.nn.log_softmax(logits.at[:, 0].set(-jnp.inf))
        token = likelihoods.argmax(-1)
        logp += np.where(alive, likelihoods.max(-1), 0)
        lengths += alive
        np.testing.assert_array_equal(
            np.where(alive, one.tokens[n, :, 0], 0), np.where(alive, token, 0)
        )
        alive &= np.asarray(token) != model.boundary
    np.testing.assert_allclose(one.scores[:, 0], logp / lengths**penalty, atol=1e-4)
    assert (flat.scores[:, 0] >= logp - 1e-4).all()  # by probability alone


OWN = {
    "subwords": pytest.param(
        ["--subwords", "40", "--scheduled-sampling", "0.3"], marks=pytest.mark.slow
    ),
    "characters": ["--attention", "none"],
}


@pytest.mark.parametrize("flags", OWN.values(), ids=OWN)
def test_a_users_file_with_every_option(tmp_path, optax_promotion, flags, capsys):
    """Korean, quotes, CRLF, a byte order mark, an empty line, a sentence of 1 and of
    2,000 characters.
    """
    data = write(tmp_path / "own.tsv", LINES + PAIRS, "\r\n")
    words = ["--steps", "4", "--report-every", "2", "--evaluate-every", "4", *flags]
    small = [
        word for name, value in SMALL.items() for word in (f"--{name}", str(value))
    ]
    run = str(tmp_path / "run")
    assert (
        main(["train", "translation", "--data", data, *words, *small, "--out", run])
        == 0
    )
    assert "split by a hash of the source" in capsys.readouterr().out
    assert main(["predict", run, "안녕", "", "z" * 50]) == 0
    assert capsys.readouterr().out.count("\n") == 3
    assert main(["train", "translation", "--out", run, "--resume"]) == 0
