"""Tasks trained by online gradients, and the task recall on the command line."""

import importlib
import json
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import compiled
from subjects import assert_same

import jaxrnn
from jaxrnn.cli import main
from jaxrnn.tasks import synthetic
from jaxrnn.tasks.models.sequence_model import SequenceModel
from jaxrnn.tasks.synthetic import parity, recall, squares
from jaxrnn.tasks.synthetic.online import check_online, online_loss
from jaxrnn.tasks.synthetic.task import drawn
from jaxrnn.training import InputError

TASKS = {
    "recall": (recall, {"delay": 5, "distractors": 3, "cell": "rtu"}),
    "masked": (parity, {"length": 5, "answers": "every", "cell": "indrnn"}),
    "pixels": (squares, {"length": 3, "size": 4, "squares": 1}),
}


def made(name):
    module, options = TASKS[name]
    options = module.Options(**{**options, "hidden": 3, "batch": 2})
    problem = module.problem(options)
    model, params = module.TASK.build(options, {})
    batch = jax.jit(lambda k: drawn(problem, k, problem.length, 2))(jax.random.key(1))
    return model, params, batch


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("recall", "traces"),
        ("recall", "rtrl"),
        ("masked", "traces"),
        ("masked", "rtrl"),
        ("pixels", "rtrl"),
    ],
)
def test_exact_methods_are_backpropagation(name, method, x64):
    """Where units do not see each other, padding and all."""
    model, params, batch = made(name)
    online = online_loss(model, method, 2)

    def mean(loss):
        def of(params):
            total, count = loss(params)
            return total / count.astype(total.dtype)

        return compiled(jax.value_and_grad(of))

    found = mean(lambda p: online(p, batch, jax.random.key(0)))(params)
    assert_same(found, mean(lambda p: model.loss(p, batch))(params), 1e-11)


def test_uoro_has_the_loss_of_the_model_and_draws_by_its_key(x64):
    model, params, batch = made("recall")
    online = online_loss(model, "uoro", 1)
    step = compiled(
        jax.value_and_grad(lambda p, key: online(p, batch, key)[0], argnums=0)
    )
    first, again, other = (step(params, jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_allclose(first[0], model.loss(params, batch)[0], rtol=1e-12)
    kernels = [g["rnn"]["input_kernel"] for _, g in (first, again, other)]
    assert (kernels[0] == kernels[1]).all()
    assert not np.allclose(kernels[0], kernels[2])


NAMES = sorted(  # of the tasks that draw their sequences; digits are stored
    each.name
    for each in pkgutil.iter_modules(synthetic.__path__)
    if hasattr(importlib.import_module(f"{synthetic.__name__}.{each.name}"), "TASK")
    and each.name != "seq_mnist"
)


@pytest.mark.parametrize("name", NAMES)
def test_every_task_that_makes_its_data_takes_every_method_or_says_why(name):
    """Nothing is computed: the shapes of a batch are enough."""
    module = importlib.import_module(f"{synthetic.__name__}.{name}")
    cell = {} if name == "squares" else {"cell": "indrnn"}  # or one of pictures
    taken = 0
    for method in ("rtrl", "uoro", "traces"):
        options = module.Options(hidden=4, batch=2, gradient_method=method, **cell)
        problem = module.problem(options)
        model, params = module.TASK.build(options, {})
        batch = jax.eval_shape(
            lambda k, p=problem: drawn(p, k, p.length, 2), jax.random.key(0)
        )
        try:
            check_online(model, method, 3, batch, params)
        except InputError as error:
            said = str(error)
            assert said.startswith(f"--gradient-method {method}")
            by_traces = method == "traces" and (model.tokens or not cell)
            assert model.pooled or by_traces, said
        else:
            taken += 1
    assert taken >= (0 if model.pooled else 2)


def test_what_has_no_online_gradient_is_refused():
    model, params, batch = made("recall")

    def check(method, **changes):
        fields = {"layer": model.layer, "input_size": 6, "classes": 2, **changes}
        check_online(SequenceModel(**fields), method, 2, batch, params)

    with pytest.raises(InputError, match="rtrl needs the loss of single steps"):
        check("rtrl", pooled=True)
    with pytest.raises(InputError, match="no traces for the embedding"):
        check("traces", tokens=7)
    gru = jaxrnn.GRU(3, reset_after=False)
    shapes = {**params, "rnn": gru.init(jax.random.key(0), 6)}
    shapes["readout"] = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    with pytest.raises(InputError, match=r"--gradient-method traces: Traces: .*GRU"):
        check_online(SequenceModel(gru, 6, 2), "traces", 2, batch, shapes)


@pytest.mark.usefixtures("optax_promotion")
def test_recall_on_the_command_line(tmp_path, capsys):
    """Four steps of delay, by traces; the score stands beside chance."""
    out = tmp_path / "run"
    words = ["train", "recall", "--quick", "--steps", "20", "--out", str(out)]
    words += ["--gradient-method", "traces"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert next(
        line.split()[-2:] for line in printed.splitlines() if "chance" in line
    ) == ["chance", "0.5"]
    config = json.loads((out / "config.json").read_text())
    assert config["options"]["gradient_method"] == "traces"
    assert main(["predict", str(out), "1abc?"]) == 0
    assert capsys.readouterr().out in ("0\n", "1\n")
    assert main(["predict", str(out), "1abc"]) == 2
    assert "a cue out of 01, letters out of abcd" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["rtrl", "--tbptt", "3", "--layers", "2"],
        ["uoro", "--cell", "gru"],
        ["traces", "--cell", "lru"],
        ["tbptt", "--tbptt", "2", "--cell", "rtu:slow"],
    ],
    ids=lambda words: words[0],
)
@pytest.mark.usefixtures("optax_promotion")
def test_every_method_trains_on_the_command_line(words, tmp_path, capsys):
    out = ["--steps", "2", "--out", str(tmp_path / "run")]
    assert main(["train", "recall", "--quick", "--gradient-method", *words, *out]) == 0
    assert "chance" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gradient-method", "rtrll"], "rtrl"),
        (["--gradient-method", "traces", "--tbptt", "2"], "leave one of them out"),
        (["--gradient-method", "traces", "--cell", "mlstm"], "the carry of MLSTM"),
        (["--gradient-method", "rtrl", "--hidden", "2000"], "bytes a stream"),
        (["--cell", "rtu:fast"], "rtu:slow"),
        (["--delay", "0"], "--delay must be at least 1"),
    ],
)
def test_bad_flags_are_refused_in_one_line(words, said, capsys, tmp_path):
    out = ["--out", str(tmp_path / "run")]
    try:
        status = main(["train", "recall", "--quick", *words, *out])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert said in error
