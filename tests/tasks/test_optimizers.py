"""Optimizers and schedules by name are optax's, and a run without one is as before."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrnn.tasks import train
from jaxrnn.tasks.optimizers import (
    RULES,
    SCHEDULES,
    named_optimizer,
    named_schedule,
)
from jaxrnn.tasks.runner import TASKS
from jaxrnn.tasks.synthetic.task import SyntheticTask
from jaxrnn.training import InputError, make_optimizer, warmup_cosine
from jaxrnn.training.state import set_rate

pytestmark = pytest.mark.usefixtures("optax_promotion")
RATE = 0.03
OPTAX = {
    "adam": lambda: optax.adam(RATE, b2=0.99),
    "adamw": lambda: optax.adamw(RATE, b2=0.99),
    "nadam": lambda: optax.nadam(RATE),
    "radam": lambda: optax.radam(RATE),
    "adabelief": lambda: optax.adabelief(RATE),
    "lion": lambda: optax.lion(RATE, weight_decay=0.0),
    "rmsprop": lambda: optax.rmsprop(RATE),
    "sgd": lambda: optax.sgd(RATE),
    "momentum": lambda: optax.sgd(RATE, momentum=0.9),
}


def unrolling(optimizer, rate=None):
    """Parameters after some updates by random gradients."""
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(3, 2)))}
    state = optimizer.init(params)
    for _ in range(7):
        if rate is not None:
            state = set_rate("run", state, jnp.asarray(rate))
        gradient = {"w": jnp.asarray(rng.normal(size=(3, 2)))}
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params["w"]


def test_every_name_has_a_twin():
    assert OPTAX.keys() == RULES.keys()


@pytest.mark.parametrize("name", RULES)
def test_an_optimizer_is_the_one_of_optax(x64, name):
    ours = unrolling(named_optimizer(name, clip=1e9), RATE)
    np.testing.assert_allclose(ours, unrolling(OPTAX[name]()), rtol=1e-12, atol=1e-14)


def test_weight_decay_and_clipping_reach_every_rule(x64):
    chain = optax.chain(
        optax.clip_by_global_norm(0.5), optax.lion(RATE, weight_decay=0.2)
    )
    ours = unrolling(named_optimizer("lion", clip=0.5, weight_decay=0.2), RATE)
    np.testing.assert_allclose(ours, unrolling(chain), rtol=1e-12)
    adamw = unrolling(named_optimizer("adamw", weight_decay=0.2), RATE)
    adam = unrolling(named_optimizer("adam", weight_decay=0.2), RATE)
    np.testing.assert_array_equal(adam, adamw)


FALLING = ("mqar", "niah", "flip-flop", "integration", "sine")


def test_the_default_is_what_it_was():
    params = {"w": jnp.zeros((3, 2))}
    states = [make_optimizer().init(params), named_optimizer("adam").init(params)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    for name, module in TASKS.items():
        fields = {field.name: field for field in dataclasses.fields(module.Options)}
        assert fields["optimizer"].default == "adam"
        # The older synthetic tasks keep a rate that does not fall.
        keeps = isinstance(module, SyntheticTask) and name not in FALLING
        assert fields["schedule"].default == ("constant" if keeps else "cosine")
        assert name in TASKS


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_rises_to_its_peak_and_falls(name):
    rates = [float(named_schedule(name, 0.4)(np.float32(i / 50))) for i in range(51)]
    peak = int(np.argmax(rates))
    assert rates[peak] == pytest.approx(0.4, rel=1e-4)
    if name == "constant":
        assert set(rates) == {rates[0]}
        return
    assert (np.diff(rates[: peak + 1]) > 0).all()
    assert (np.diff(rates[peak:]) < 0).all()
    assert rates[-1] <= 0.4 * 0.0101


def test_schedules_are_their_formulas():
    share = np.float32(0.51)  # half way from the end of the warm-up to the end
    assert named_schedule("linear", 0.4)(share) == pytest.approx(0.4 * 0.505, rel=1e-4)
    halved = named_schedule("exponential", 0.4)(share)
    assert halved == pytest.approx(0.4 * 0.1, rel=1e-4)
    assert named_schedule("cosine", 0.4)(share) == warmup_cosine(0.4)(share)


def test_a_run_names_its_optimizer_and_resumes(tmp_path, capsys):
    options = {"optimizer": "lion", "schedule": "linear", "learning_rate": 1e-3}
    budget = {"steps": 20, "report_every": 10, "evaluate_every": 20}
    run, _, _ = train("hello", options, budget, out=tmp_path / "run")
    assert "learning rate 0.001 of lion, on" in capsys.readouterr().out
    assert {k: run.config["options"][k] for k in options} == options
    with pytest.raises(InputError, match="was started with --optimizer lion, not sgd"):
        train("hello", {"optimizer": "sgd"}, out=run.path, resume=True)
    with pytest.raises(InputError, match=r"no .adm.; did you mean"):
        train("hello", {"optimizer": "adm"}, out=tmp_path / "other")
