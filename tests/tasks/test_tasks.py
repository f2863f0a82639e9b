"""hello and charlm: data, scores against slow twins, and that they learn."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn.tasks import charlm, config, hello
from jaxrnn.tasks.data import text
from jaxrnn.tasks.models.language_model import bits_per_token
from jaxrnn.training import Budget, InputError, Run, fit

pytestmark = pytest.mark.usefixtures("optax_promotion")


def test_the_embedded_text_is_what_the_baselines_were_measured_on():
    words = text.embedded_text()
    assert 400_000 < len(words) < 600_000
    assert "lambda" in words


def test_a_vocabulary_gives_back_its_text_and_marks_what_it_never_saw():
    vocabulary = text.Vocabulary.of("naïve Ωmega \U0001f600\n")
    assert (
        vocabulary.decode(vocabulary.encode("Ω\U0001f600 naïve")) == "Ω\U0001f600 naïve"
    )
    assert vocabulary.encode("axz").tolist()[1:] == [0, 0]
    assert vocabulary.decode(vocabulary.encode("axa")) == f"a{text.UNKNOWN}a"


@pytest.mark.parametrize(
    ("length", "batch", "window"),
    [(101, 4, 8), (100, 3, 8), (65, 4, 15), (34, 1, 32), (50, 5, 3)],
)
def test_the_windows_of_an_epoch_are_the_text_once_in_order(length, batch, window):
    numbers = np.arange(1000, 1000 + length)
    streams = text.Streams(numbers, batch, window)
    windows = [streams(i) for i in range(streams.windows_per_epoch)]
    mask = np.concatenate([w.mask for w in windows])
    inputs = np.concatenate([w.inputs for w in windows])
    targets = np.concatenate([w.targets for w in windows])
    assert {w.inputs.shape for w in windows} == {(window, batch)}
    read = [inputs[:, b][mask[:, b]] for b in range(batch)]
    assert all(
        np.array_equal(np.diff(stream), np.ones(len(stream) - 1)) for stream in read
    )
    joined = np.concatenate(read)
    assert np.array_equal(joined, numbers[: len(joined)])
    assert length - len(joined) <= batch  # the remainder of the division into streams
    assert np.array_equal(targets[mask], inputs[mask] + 1)
    assert windows[0].resets[0].all()
    assert sum(w.resets.sum() for w in windows) == batch


def test_a_position_gives_the_same_window_each_time_and_epochs_are_shifted():
    streams = text.Streams(np.arange(400), 4, 16, seed=3)
    later = streams.windows_per_epoch * 2
    assert np.array_equal(
        streams(later).inputs, text.Streams(np.arange(400), 4, 16, seed=3)(later).inputs
    )
    starts = {
        int(streams(streams.windows_per_epoch * e).inputs[0, 0]) for e in range(8)
    }
    assert len(starts) > 3
    assert all(streams(streams.windows_per_epoch * e).resets[0].all() for e in range(3))


def test_a_text_too_short_for_its_streams_is_refused():
    with pytest.raises(
        InputError,
        match=r"30 characters, too few for 4 streams with windows of 8: at least 37",
    ):
        text.Streams(np.arange(30), 4, 8)


@pytest.fixture(scope="module")
def model():
    options = charlm.Options(hidden=6, embed=4, layers=2, cell="gru")
    return charlm.build(options, {"vocabulary": "abcdefghijk"})


def test_bits_per_token_is_the_mean_over_a_plain_loop(model):
    functions, params = model
    numbers = np.random.default_rng(0).integers(0, 11, 70)
    carry, bits = functions.initial_carry(params, ()), 0.0
    for token, target in itertools.pairwise(numbers):
        carry, logits = functions.step(params, carry, jnp.asarray(token))
        bits -= float(jax.nn.log_softmax(logits)[target]) / math.log(2)
    assert bits_per_token(functions, params, numbers, streams=1) == pytest.approx(
        bits / 69, rel=1e-5
    )


def test_bits_per_token_in_stretches_counts_every_token_once_and_warms_up(model):
    functions, params = model
    numbers = np.random.default_rng(1).integers(0, 11, 401)
    one = bits_per_token(functions, params, numbers, streams=1)
    many = bits_per_token(functions, params, numbers, streams=7, context=57)
    # this small net forgets within 57 tokens
    assert many == pytest.approx(one, rel=1e-4)
    cold = bits_per_token(functions, params, numbers, streams=57, context=1)
    assert cold != pytest.approx(one, rel=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("cell", ["elman", "lstm", "gru"])
def test_hello_learns_to_say_ello(tmp_path, cell, seed):
    options = hello.Options(cell=cell, seed=seed)
    experiment, _ = hello.prepare(options)
    state = experiment.start()
    for i in range(200):
        state = experiment.advance(state, np.float32(i / 200))
    trained = hello.Trained(hello.build(options, {})[0], state.params, options)
    assert trained.predict("hell") == "ello"
    assert trained.sample("", None, None, None, 0) == "hello"
    np.testing.assert_allclose(trained.probabilities("hell").sum(-1), 1, rtol=1e-5)
    assert (trained.probabilities("hell").max(-1) > 0.9).all()


def test_hello_prints_its_distribution_and_draws_it(tmp_path):
    options = hello.Options(word="banana", hidden=12)
    experiment, _ = hello.prepare(options)
    run = Run.create(tmp_path / "run", {"task": "hello"})
    state, result = fit(
        experiment, run, Budget(steps=200, report_every=50, evaluate_every=100)
    )
    lines = hello.Trained(hello.build(options, {})[0], state.params, options).report(
        run
    )
    assert [line.split()[-1] for line in lines[1:6]] == list("anana")
    assert [line.split()[-2] for line in lines[1:6]] == list("anana")
    assert (tmp_path / "run/distribution.png").read_bytes().startswith(b"\x89PNG")
    assert result["exact_match"] == 1


@pytest.mark.parametrize(
    "flags",
    [{}, {"layers": 2, "cell": "gru"}, {"k1": 16, "k2": 40, "embed": 0}],
)
def test_charlm_learns_and_its_result_is_the_held_out_score(tmp_path, flags):
    options = charlm.Options(**{"hidden": 32, "batch": 16, "tbptt": 32, **flags})
    # An update reads k1 characters of each stream.
    steps = 120 if "k1" in flags else 60
    experiment, extra = charlm.prepare(options)
    run = Run.create(tmp_path / "run", {"task": "charlm", **extra})
    state, result = fit(
        experiment, run, Budget(steps=steps, report_every=10, evaluate_every=30)
    )
    records = run.records("metrics.jsonl")
    assert [
        r["step"] for r in records if "bits_per_char" in r and "final" not in r
    ] == list(range(10, steps + 1, 10))
    assert records[0]["bits_per_char"] > 5.5 > 4.9 > result["bits_per_char"] > 2
    assert records[-1] == {
        "step": steps,
        "final": True,
        **{name: value for name, value in result.items() if "bits_per_char" in name},
    }
    # it has learned more than how frequent the characters are
    assert result["bits_per_char"] < result["unigram_bits_per_char"]
    assert json.loads((run.path / "result.json").read_text()) == result
    functions, _ = charlm.build(options, extra)
    held_out = charlm.Texts.read(options.data).held_out
    assert bits_per_token(functions, state.params, held_out) == result["bits_per_char"]


def test_a_second_file_is_the_held_out_text(tmp_path):
    (tmp_path / "a.txt").write_text("abcd" * 500)
    (tmp_path / "b.txt").write_text("dcbax")
    texts = charlm.Texts.read((str(tmp_path / "a.txt"), str(tmp_path / "b.txt")))
    assert len(texts.train) == 2000
    assert texts.vocabulary.decode(texts.held_out) == f"dcba{text.UNKNOWN}"


@pytest.mark.slow
def test_charlm_with_its_defaults_reads_the_help_topics_below_1_6_bits(tmp_path):
    experiment, extra = charlm.prepare(charlm.Options())
    _, result = fit(
        experiment,
        Run.create(tmp_path / "run", {"task": "charlm", **extra}),
        charlm.BUDGET,
    )
    # unigram 4.58, bigram 3.23, 5-gram 1.63, xz 1.63
    assert result["bits_per_char"] < 1.60


def test_an_option_that_names_takes_a_string(plain_errors):
    with pytest.raises(InputError, match="--cell must be one of gru, lstm, but it is "):
        config.check_name("--cell", 3, ["gru", "lstm"])


def test_a_file_goes_before_an_embedded_text_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(text.read_text("pydoc")) > 100_000
    (tmp_path / "pydoc").write_text("short", encoding="utf-8")
    assert text.read_text("pydoc") == "short"
