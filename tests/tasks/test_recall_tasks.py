"""mqar and niah: every sequence read by a dict, how gaps and depths are drawn, scores
of parts, refusals, and cells that learn them.
"""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import tasks
from jaxrnn.tasks.models.sequence_model import SequenceModel
from jaxrnn.tasks.probe import lags_of
from jaxrnn.tasks.report.readings import reading_of
from jaxrnn.tasks.score_table import score_rows
from jaxrnn.tasks.synthetic import mqar, niah
from jaxrnn.tasks.synthetic.gradients import log_v
from jaxrnn.tasks.synthetic.task import (
    held_out_batches,
    keys,
    probed,
    scores_at,
    scores_of_parts,
)
from jaxrnn.training import InputError, Run

SHAPES = {
    "mqar": (mqar, {}),
    "mqar tight": (mqar, {"length": 13, "pairs": 3, "vocabulary": 7}),
    "mqar one": (mqar, {"length": 9, "pairs": 1, "vocabulary": 4}),
    "niah": (niah, {}),
    "niah several": (niah, {"length": 23, "needles": 4, "keys": 5, "values": 3}),
    "niah full": (niah, {"length": 8, "needles": 3, "keys": 3, "fillers": 1}),
}


@functools.cache
def problem_of(name):
    module, options = SHAPES[name]
    return module.TASK.problem(module.Options(**options))


@functools.cache
def draw(name, seed=0, length=None, batch=300):
    problem = problem_of(name)
    drawn = jax.jit(problem.draw, static_argnums=(1, 2))
    batch = drawn(jax.random.key(seed), length or problem.length, batch)
    return jax.tree.map(np.asarray, batch)


def columns(name, **changes):
    """The tokens of each sequence, with the places and targets of its queries."""
    batch = draw(name, **changes)
    for tokens, targets, counts in zip(
        batch.inputs.T, batch.targets.T, batch.counts.T, strict=True
    ):
        places = np.flatnonzero(counts).tolist()
        yield tokens.tolist(), places, [int(targets[t]) for t in places]


@pytest.mark.parametrize("name", [name for name in SHAPES if "mqar" in name])
def test_every_query_of_mqar_has_its_pair_earlier_and_no_other(name):
    options = mqar.Options(**SHAPES[name][1])
    first = options.vocabulary // 2
    for tokens, places, targets in columns(name, seed=1):
        assert len(tokens) == options.length
        stored = dict(zip(tokens[: 2 * options.pairs : 2], tokens[1::2], strict=False))
        assert len(stored) == len(set(stored.values())) == options.pairs
        assert max(stored) < first <= min(stored.values())
        assert max(tokens) < options.vocabulary
        # every key is asked for once, at an even distance behind the pairs
        assert sorted(tokens[t] for t in places) == sorted(stored)
        assert all(t >= 2 * options.pairs and t % 2 == 0 for t in places)
        assert targets == [stored[tokens[t]] for t in places]
        later = set(range(2 * options.pairs, len(tokens))) - set(places)
        assert not {tokens[t] for t in later} & set(stored)


@pytest.mark.parametrize("name", [name for name in SHAPES if "niah" in name])
def test_the_query_of_niah_is_the_key_of_one_of_its_needles(name):
    options = niah.Options(**{"test_length": 64, **SHAPES[name][1]})
    batch = draw(name, seed=1)
    for b, (tokens, places, targets) in enumerate(columns(name, seed=1)):
        assert places == [options.length - 1]
        *read, asked = tokens
        found = [t for t, token in enumerate(read) if token >= options.fillers]
        needles = {read[t]: read[t + 1] for t in found[::2]}
        assert found[1::2] == [t + 1 for t in found[::2]]
        assert len(needles) == options.needles
        assert all(k < options.fillers + options.keys <= v for k, v in needles.items())
        assert targets == [needles[asked]]
        depth = read.index(asked) / (options.length - 2)
        assert 0 <= depth - batch.part[-1, b] / 5 < 1 / 5


def test_keys_values_and_other_tokens_are_alike():
    """Each count lies within five standard deviations of its share."""
    options = mqar.Options(**SHAPES["mqar tight"][1])
    batch = draw("mqar tight", 2, None, 6000)
    stored, later = batch.inputs[: 2 * options.pairs], batch.inputs[2 * options.pairs :]
    noise = later[~batch.counts[2 * options.pairs :]]
    for found in (stored[::2], stored[1::2] - options.vocabulary // 2):
        uniform(np.bincount(found.reshape(-1)))
    uniform(np.bincount(noise - options.vocabulary // 2))  # all keys are taken here
    noise = draw("mqar one", 2, None, 6000)
    rest = noise.inputs[2:][~noise.counts[2:]]
    assert np.bincount(rest, minlength=4)[:2].min() > 0  # the other key


def uniform(counts):
    total, share = counts.sum(), 1 / len(counts)
    spread = math.sqrt(total * share * (1 - share))
    assert np.abs(counts - total * share).max() < 5 * spread, counts


def test_gaps_follow_the_power_law():
    """Of one pair the gap has the weights themselves; of several, those that are left
    after each draw, which is enumerated here.
    """
    count = 20_000
    weights = np.arange(1, 5) ** (mqar.POWER - 1)
    one = draw("mqar one", 3, 10, count)
    places = (one.counts.argmax(0) - 2) // 2
    compare(np.bincount(places, minlength=4) / count, weights / weights.sum(), count)
    pairs = np.asarray(
        jax.jit(mqar.distinct, static_argnums=2)(
            jax.random.key(4), jnp.log(jnp.tile(weights[:3], (count, 1))), 2
        )
    )
    wanted = np.zeros((3, 3))
    for i in range(3):
        for j in set(range(3)) - {i}:
            left = weights[:3].sum() - weights[i]
            wanted[i, j] = weights[i] / weights[:3].sum() * weights[j] / left
    found = np.zeros((3, 3))
    np.add.at(found, (pairs[:, 0], pairs[:, 1]), 1 / count)
    compare(found, wanted, count)


def compare(found, wanted, count):
    spread = np.sqrt(wanted * (1 - wanted) / count)
    assert (np.abs(found - wanted) <= 5 * spread + 1e-12).all(), (found, wanted)


def test_needles_stand_at_all_depths_alike():
    depth = draw("niah", 5, 8, 9000)
    keys = (depth.inputs[:-1] >= 8) & (depth.inputs[:-1] < 16)
    uniform(keys[:6].sum(1))  # seven steps before the query, a needle is two
    assert not keys[6:].any()
    parts = draw("niah", 5, 22, 9000).part[0]
    assert set(parts.tolist()) == {0, 1, 2, 3, 4}
    uniform(np.bincount(parts))


@pytest.mark.parametrize(
    ("name", "chance", "other"),
    [("mqar", 1 / 64, 1 / 8), ("mqar tight", 1 / 4, 1 / 3)],
)
def test_the_baselines_of_mqar_are_what_guessing_scores(name, chance, other):
    problem, batch = problem_of(name), draw(name, 6, None, 4000)
    assert problem.baseline[1](problem.length) == chance
    assert problem.references() == {"any_value": other}
    rng = np.random.default_rng(0)
    count, pairs = batch.counts.sum(), SHAPES[name][1].get("pairs", 8)
    guesses = (
        problem.classes - 1 - rng.integers(0, round(1 / chance), batch.counts.shape)
    )
    right = (guesses == batch.targets)[batch.counts].mean()
    assert abs(right - chance) < 5 * math.sqrt(chance / count)
    picked = 1 + 2 * rng.integers(0, pairs, batch.counts.shape)
    values = np.take_along_axis(batch.inputs, picked, 0)
    right = (values == batch.targets)[batch.counts].mean()
    assert abs(right - other) < 5 * math.sqrt(other / count)


def test_the_baselines_of_niah():
    assert problem_of("niah").baseline[1](64) == 1 / 8
    assert problem_of("niah").references() == {}
    assert problem_of("niah several").references() == {"any_needle": 1 / 4}
    assert problem_of("niah").other_lengths == (256,)
    same = niah.TASK.problem(niah.Options(length=9, test_length=9))
    assert same.other_lengths == ()


def small(task, **options):
    """A problem, its untrained model and parameters."""
    sizes = {
        "mqar": {"length": 12, "pairs": 2, "vocabulary": 8},
        "niah": {"length": 12, "test_length": 20, "keys": 3, "values": 3, "fillers": 2},
    }
    module = {"mqar": mqar, "niah": niah}[task]
    options = module.Options(**{**sizes[task], "hidden": 4, "cell": "gru", **options})
    return module.TASK, options, *module.TASK.build(options, {})


def test_tokens_are_rows_of_the_embedding_and_learn_by_it():
    """The model of tokens is the model of their vectors, values and gradients."""
    task, options, model, params = small("niah")
    batch = task.problem(options).draw(jax.random.key(0), 12, 5)
    assert batch.inputs.shape == (12, 5)
    assert params["embedding"].shape == (8, 4)
    plain = SequenceModel(model.layer, 4, 8)
    rest = {name: params[name] for name in ("rnn", "readout")}

    def loss(model, params, inputs):
        return model.loss(params, batch._replace(inputs=inputs))[0]

    found = jax.jit(jax.value_and_grad(functools.partial(loss, model)))
    value, gradient = found(params, batch.inputs)
    vectors = params["embedding"][batch.inputs]
    wanted, (of_rest, of_vectors) = jax.jit(
        jax.value_and_grad(functools.partial(loss, plain), argnums=(0, 1))
    )(rest, vectors)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    rows = np.zeros((8, 4))
    np.add.at(rows, np.asarray(batch.inputs), np.asarray(of_vectors))
    np.testing.assert_allclose(gradient["embedding"], rows, atol=1e-6)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-6),
        {name: gradient[name] for name in rest},
        of_rest,
    )


def test_the_parameters_of_other_tasks_are_what_they_were():
    """A run of before the embedding is loaded, and begins, as it did."""
    model = SequenceModel(jaxrnn.GRU(3), 2, 5)
    with_tokens = SequenceModel(jaxrnn.GRU(3), 2, 5, tokens=7)
    key = keys(0)[0]
    before, after = model.init(key), with_tokens.init(key)
    assert set(after) - set(before) == {"embedding"}
    after.pop("embedding")
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_scores_by_depth_are_those_of_a_plain_loop():
    task, options, model, params = small("niah")
    problem = task.problem(options)
    batches = held_out_batches(problem, 0, 12)
    found = scores_of_parts(problem, model, params, batches)
    right, scored = [0] * 5, [0] * 5
    for batch in batches:
        guessed = np.asarray(jax.jit(model)(params, batch.inputs))[-1].argmax(-1)
        for b, part in enumerate(np.asarray(batch.part)[-1].tolist()):
            scored[part] += 1
            right[part] += int(guessed[b] == batch.targets[-1, b])
    names = ["0_20", "20_40", "40_60", "60_80", "80_100"]
    assert found == {
        f"accuracy_depth_{name}": pytest.approx(r / n)
        for name, r, n in zip(names, right, scored, strict=True)
    }
    whole = scores_at(problem, model, params, batches)["accuracy"]
    assert whole == pytest.approx(sum(right) / sum(scored))
    rows = score_rows("niah", {"accuracy": whole, "baseline": 1 / 3, **found})
    assert [row.name for row in rows][:2] == ["accuracy", "accuracy depth 0 20"]


def test_a_part_without_sequences_has_no_score():
    task, options, model, params = small("niah", length=3)
    problem = task.problem(options)
    found = scores_of_parts(problem, model, params, held_out_batches(problem, 0, 3))
    assert list(found) == ["accuracy_depth_0_20"]


def test_the_instruments_see_the_vectors_of_the_tokens():
    task, options, model, params = small("niah")
    probe = task.probe(options, {}, 12, 5)(params)
    tokens, targets = probed(task.problem(options), 0, 12, 5)
    np.testing.assert_array_equal(probe.xs, params["embedding"][tokens])
    batch = task.problem(options).draw(keys(0)[2], 12, 5)
    np.testing.assert_array_equal(batch.inputs, tokens)
    recorded = np.asarray(log_v(model, params, batch))
    np.testing.assert_allclose(recorded, np.asarray(lags_of(probe).log_v), atol=1e-4)
    assert np.isfinite(recorded).all()
    assert targets.shape == (12, 5)


REFUSED = {
    "short": (mqar, {"length": 31}, "at least 4 times --pairs.*31 is less than 4 x 8"),
    "few tokens": (mqar, {"vocabulary": 15}, "at least twice --pairs.*less than 2 x 8"),
    "no pair": (mqar, {"pairs": 0}, "--pairs must be at least 1"),
    "few keys": (niah, {"keys": 2, "needles": 3}, "--keys must be at least --needles"),
    "no room": (
        niah,
        {"length": 8, "needles": 4},
        "--length must be at least 9 for --needles 4",
    ),
    "no room later": (
        niah,
        {"test_length": 8, "needles": 4},
        "--test-length must be at least 9 for --needles 4",
    ),
    "one value": (niah, {"values": 1}, "--values must be at least 2"),
    "no cell": (niah, {"cell": "grru"}, "did you mean gru"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_cannot_be_are_refused_in_words(name):
    module, options, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        module.Options(**options)


def test_gradients_need_a_loss_at_the_last_step():
    task, options, _, _ = small("mqar", gradients=True)
    with pytest.raises(InputError, match="niah asks at the last one"):
        task.prepare(options)
    with pytest.raises(InputError, match="niah asks at the last one"):
        task.probe(options, {}, 12, 2)


def test_typed_tokens(tmp_path):
    task, options, model, params = small("niah", cell=jaxrnn.GRU(4))
    trained = task.Trained(model, params, options, {})
    tokens = np.array([0, 2, 5, 1, 2])
    outputs = model(params, jnp.asarray(tokens))
    assert trained.predict("0 2 5 1 2") == str(int(outputs[-1].argmax()))
    for line in ("0 2 8", "0 x", "", "-1"):
        with pytest.raises(InputError, match='from 0 to 7, such as "0 2 5 0 2"'):
            trained.predict(line)
    with pytest.raises(InputError, match="--length must be at least 3"):
        trained.evaluate_length(2)
    reading = reading_of(Run(tmp_path, {}), trained)
    assert reading.symbols == [str(t) for t in probed_tokens(task, options)]
    assert reading.xs.shape == (12, 1, 4)


def probed_tokens(task, options):
    return np.asarray(probed(task.problem(options), 0, 12, 1)[0])[:, 0].tolist()


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("task", ["mqar", "niah"])
def test_a_quick_run_recalls(task, tmp_path):
    run, result, lines = tasks.train(task, quick=True, out=tmp_path / "run")
    assert result["accuracy"] > 0.9
    assert json.loads((run.path / "config.json").read_text())["task"] == task
    assert any("chance" in line for line in lines)
    model, notes = tasks.load(run.path)
    assert not notes
    other = model.evaluate_length(40)
    assert (other["length"], other["sequences"]) == (40, 1024)
    if task == "niah":
        assert {"accuracy_64", "accuracy_depth_80_100"} <= set(result)
        assert "accuracy_depth_0_20" in other
