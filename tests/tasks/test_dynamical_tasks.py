"""flip-flop, integration and sine: targets by slow twins, baselines, refusals."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn.tasks.models.sequence_model import Batch, SequenceModel
from jaxrnn.tasks.synthetic import flip_flop, integration, sine
from jaxrnn.training import InputError

SMALL = {
    "flip-flop": (flip_flop, {"bits": 3, "length": 15, "pulses": 0.3}),
    "one bit": (flip_flop, {"bits": 1, "length": 4}),
    "integration": (integration, {"length": 9, "coherence": 0.4}),
    "sine": (sine, {"length": 12, "frequencies": 7, "slowest": 0.3, "fastest": 0.9}),
}


def options_of(name):
    module, flags = SMALL[name]
    return module.Options(**flags)


@functools.cache
def draw(name, seed=0, batch=300):
    options = options_of(name)
    drawing = jax.jit(SMALL[name][0].problem(options).draw, static_argnums=(1, 2))
    return jax.tree.map(
        np.asarray, drawing(jax.random.key(seed), options.length, batch)
    )


@pytest.mark.parametrize("name", ["flip-flop", "one bit"])
def test_a_channel_answers_its_last_pulse(name):
    batch, options = draw(name), options_of(name)
    assert batch.inputs.shape == (options.length, 300, options.bits)
    assert set(np.unique(batch.inputs)) == {-1, 0, 1}
    assert batch.counts.all()
    for b in range(300):
        now = [None] * options.bits
        for pulses, wanted in zip(
            batch.inputs[:, b].tolist(), batch.targets[:, b].tolist(), strict=True
        ):
            now = [p or before for p, before in zip(pulses, now, strict=True)]
            assert now == wanted
    # After the first step, pulses come with their probability, of either sign.
    later = batch.inputs[1:]
    spread = 5 / math.sqrt(later.size)
    assert abs((later != 0).mean() - options.pulses) < spread
    assert abs(later.mean()) < spread


def test_the_memoryless_baseline_of_flip_flop():
    options = options_of("flip-flop")
    batch = draw("flip-flop", 1, 2000)
    best = np.where(batch.inputs != 0, batch.inputs, 0.0)  # and zero else
    wanted = np.square(best - batch.targets).mean()
    assert flip_flop.problem(options).baseline[1](15) == pytest.approx(wanted, rel=0.02)


def test_the_context_says_which_evidence_is_summed():
    batch = draw("integration")
    chosen = []
    for b in range(300):
        evidence, context = batch.inputs[:, b, :2], batch.inputs[:, b, 2:]
        (which,) = {int(row.argmax()) for row in context}
        assert (context == np.eye(2)[which]).all()
        total = sum(float(row[which]) for row in evidence)
        assert batch.targets[-1, b] == int(total > 0)
        chosen.append(which)
    assert batch.counts.sum(0).tolist() == [1] * 300
    assert batch.counts[-1].all()
    assert 0.35 < np.mean(chosen) < 0.65
    assert 0.35 < batch.targets[-1].mean() < 0.65


def test_the_last_evidence_tells_the_sign_as_often_as_is_said():
    options = options_of("integration")
    batch = draw("integration", 2, 20_000)
    which = batch.inputs[-1, :, 2:].argmax(-1)
    last = np.take_along_axis(batch.inputs[-1, :, :2], which[:, None], -1)[:, 0]
    share = ((last > 0) == batch.targets[-1]).mean()
    problem = integration.problem(options)
    assert problem.references()["last_evidence"] == pytest.approx(share, abs=0.015)
    spread = batch.inputs[..., :2].std()
    assert spread == pytest.approx(math.hypot(0.4, 1.0), rel=0.02)


def test_waves_have_the_frequency_that_the_input_tells():
    batch, options = draw("sine"), options_of("sine")
    seen = set()
    for b in range(300):
        (told,) = np.unique(batch.inputs[:, b, 0])
        number = round((float(told) - 0.25) * 7)
        w = 0.3 + (0.9 - 0.3) * number / 6
        wanted = [math.sin(w * t) for t in range(1, 13)]
        np.testing.assert_allclose(batch.targets[:, b], wanted, atol=2e-6)
        seen.add(number)
    assert seen == set(range(7))
    constant = [
        np.var([math.sin((0.3 + 0.1 * j) * t) for t in range(1, 13)]) for j in range(7)
    ]
    problem = sine.problem(options)
    assert problem.baseline[1](12) == pytest.approx(np.mean(constant), rel=1e-5)


def test_a_loss_of_vectors_counts_every_number():
    model = SequenceModel(jaxrnn.GRU(4), 3, 0, values=3)
    params = model.init(jax.random.key(0))
    batch = jax.tree.map(lambda a: jnp.asarray(a[:, :5]), draw("flip-flop"))
    outputs = np.asarray(model(params, batch.inputs))
    assert outputs.shape == (15, 5, 3)
    total, count = model.loss(params, Batch(*batch))
    assert count == 15 * 5 * 3
    wanted = np.square(outputs - batch.targets).sum()
    assert float(total) == pytest.approx(float(wanted), rel=1e-5)
    # The model of single numbers begins as it did.
    number = SequenceModel(jaxrnn.GRU(4), 3, 0).init(jax.random.key(0))
    assert number["readout"]["kernel"].shape == (4, 1)


def test_what_is_typed_is_read():
    read = flip_flop.problem(options_of("flip-flop")).read
    np.testing.assert_array_equal(read("+-+ ..-"), [[1, -1, 1], [0, 0, -1]])
    say = flip_flop.problem(options_of("flip-flop")).say
    assert say(np.array([[0, 0, 0], [0.2, -3.0, 1.0]])) == "+-+"
    read = integration.problem(options_of("integration")).read
    np.testing.assert_array_equal(
        read("color 0.5/-1 2/0"), [[0.5, -1, 0, 1], [2, 0, 0, 1]]
    )
    read = sine.problem(options_of("sine")).read
    np.testing.assert_allclose(read("1"), np.full((12, 1), 6 / 7 + 0.25))


REFUSED = {
    "flip-flop": ("+- .+", r"steps of 3 channels.*such as \"\+-\+ \.\.\.\", but got"),
    "integration": ("taste 1/2", "needs motion or color"),
    "sine": ("2", "a number from 0, the lowest frequency, to 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_said(name):
    line, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        SMALL[name][0].problem(options_of(name)).read(line)


def test_frequencies_in_the_wrong_order_are_refused():
    with pytest.raises(InputError, match="--slowest must be below --fastest"):
        sine.Options(slowest=0.7)


def test_held_inputs_are_inputs_of_the_task():
    held = {name: SMALL[name][0].problem(options_of(name)).held() for name in REFUSED}
    assert held["flip-flop"]["no pulse"].tolist() == [0, 0, 0]
    assert held["integration"]["context motion"].tolist() == [0, 0, 1, 0]
    assert held["integration"]["context color"].tolist() == [0, 0, 0, 1]
    told = draw("sine").inputs[0, :, 0]
    assert held["sine"]["lowest frequency"] == pytest.approx(told.min())
    assert held["sine"]["highest frequency"] == pytest.approx(told.max())
