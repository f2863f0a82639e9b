"""`jaxrnn dynamics`: a table, a JSON file and pictures; and a trained flip-flop."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn.cli import main
from jaxrnn.diagnostics import fixed_points, linearize, project_states
from jaxrnn.diagnostics.fixed_points import LARGE
from jaxrnn.tasks import train
from jaxrnn.tasks.dynamics import Study, _around, dynamics, none_found, state_size
from jaxrnn.tasks.dynamics_saddles import ends_in_words, ends_of_saddles
from jaxrnn.tasks.dynamics_subject import subject_of
from jaxrnn.training import InputError, Run

pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.fixture(scope="module")
def flip_flop(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "flip-flop"
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        train(
            "flip-flop",
            {"bits": 1, "length": 12, "hidden": 4},
            {"steps": 30},
            out=path,
        )
    return path


def test_of_a_run(flip_flop, tmp_path, capsys):
    words = ["dynamics", str(flip_flop), "--starts", "20", "--batch", "6"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "dynamics.json").read_text())
    assert results["state_size"] == 4
    assert results["starts"] == 20
    assert sum(results["variance_shares"]) <= 1 + 1e-9
    (found,) = results["inputs"].values()
    assert found["input"] == [0.0]
    assert sum(found["kinds"].values()) == len(found["points"]) >= 1
    for point in found["points"]:
        assert point["q"] == pytest.approx(point["speed"] ** 2 / 2)
        sizes = np.hypot(*np.transpose(point["eigenvalues"]))
        assert (np.diff(sizes) <= 1e-9).all()
        assert point["unstable"] == (sizes > 1).sum()
        assert len(point["place"]) == 2
        assert len(point["linear_error"]) == 11
    assert "no pulse: " in printed
    assert "a state of 4 numbers, 20 searches" in printed
    for name in ("dynamics-no-pulse", "eigenvalues-no-pulse"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    # Nothing but JSON, and the same numbers again.
    assert main([*words, "--out", str(tmp_path), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["inputs"] == results["inputs"]


def test_what_is_refused(flip_flop, tmp_path, capsys):
    for words, message in {
        ("--starts", "0"): "--starts must be at least 1",
        ("--noise", "-1"): "--noise must be at least 0",
        ("--length", "1"): "--length must be at least 2",
    }.items():
        assert main(["dynamics", str(flip_flop), *words]) == 2
        assert message in capsys.readouterr().err
    assert main(["dynamics", str(tmp_path / "none")]) == 2
    copied = tmp_path / "copied"
    shutil.copytree(flip_flop, copied)
    assert main(["dynamics", str(copied), "--out", str(copied / "config.json")]) == 2
    assert "choose another --out" in capsys.readouterr().err


def test_a_task_without_one_recurrent_layer_is_refused():
    run = Run(Path("runs/dates"), {"task": "translation"})
    with pytest.raises(InputError, match="whose model is not one recurrent layer"):
        subject_of(run, object(), None, 4)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_three_bits_are_kept_in_eight_attractors(cell, tmp_path):
    """Sussillo & Barak (2013): 2^N attractors, and saddles between neighbors."""
    run, result, _ = train("flip-flop", {"cell": cell}, out=tmp_path / "run")
    assert result["mse"] <= 0.02
    results, _ = dynamics(run.path)
    kinds = results["inputs"]["no pulse"]["kinds"]
    assert kinds["attractor"] == 8
    # Neighbors differ in one bit: a cube has twelve edges, three at each corner.
    points = results["inputs"]["no pulse"]["points"]
    ways = [point["leads_to"] for point in points if point["leads_to"] is not None]
    edges = {frozenset(way) for way in ways if None not in way and len(set(way)) == 2}
    assert len(edges) == 12
    corners = [end for edge in edges for end in edge]
    assert sorted(corners.count(corner) for corner in set(corners)) == [3] * 8


def test_where_nothing_is_found_it_says_what_to_do():
    assert none_found(LARGE).endswith("another --noise")
    assert "the state has 512 numbers" in none_found(512)
    carry = jaxrnn.LSTM(3).initial_carry(
        jaxrnn.LSTM(3).init(jax.random.key(0), 2), (5,)
    )
    assert state_size(carry) == 6
    assert state_size({"h": jnp.zeros((5, 2)), "count": jnp.zeros(5, int)}) == 2


@pytest.mark.usefixtures("x64")
def test_saddles_are_found_between_attractors():
    """Searches from near the four attractors find these alone; the command finds the
    four saddles between neighbors and the repeller in the middle, too.
    """
    cell, zero = jaxrnn.Elman(2), jnp.zeros(2)
    params = {
        "input_kernel": jnp.eye(2),
        "recurrent_kernel": jnp.array([[1.8, 0.1], [-0.1, 1.6]]),
        "bias": zero,
    }
    starts = jnp.array([[0.8, 0.9], [0.9, -0.8], [-0.9, 0.8], [-0.8, -0.9]])
    assert len(fixed_points(cell, params, zero, starts)) == 4
    xs = jax.random.normal(jax.random.key(0), (10, 3, 2))
    states = project_states(cell, params, xs)
    found = _around(cell, params, zero, starts, states, Study())
    assert found.points.converged.all()
    kinds = sorted(found.linear.kinds)
    assert kinds == ["attractor"] * 4 + ["repeller"] + ["saddle of index 1"] * 4
    # A saddle is left towards the two attractors beside it, whose signs differ in one
    # unit: the sides of a square.
    assert all(found.linear.kinds[i] == "saddle of index 1" for i in found.ends)
    signs = np.sign(found.points.states)
    sides = [signs[list(pair)] for pair in found.ends.values()]
    assert all((first != second).sum() == 1 for first, second in sides)
    assert len({frozenset(map(tuple, side)) for side in sides}) == 4
    assert ends_in_words(found.ends) == (
        "4 of 4 saddles of index 1 lie between two attractors, 4 pairs of them"
    )


@pytest.mark.usefixtures("x64")
def test_ways_out_that_end_at_no_attractor_are_none():
    cell, zero = jaxrnn.Elman(1), jnp.zeros(1)  # s = tanh(2 s)
    params = {
        "input_kernel": jnp.ones((1, 1)),
        "recurrent_kernel": jnp.full((1, 1), 2.0),
        "bias": zero,
    }
    points = fixed_points(cell, params, zero, jnp.array([[0.0], [0.9]]))
    linear = linearize(cell, params, zero, points)
    kinds = [k.replace("repeller", "saddle of index 1") for k in linear.kinds]
    linear = dataclasses.replace(linear, kinds=tuple(kinds))
    (pair,) = ends_of_saddles(cell, params, zero, points, linear).values()
    # Of the attractors at 0.96 and -0.96 only the first was found.
    assert set(pair) == {None, linear.kinds.index("attractor")}
    assert ends_in_words({3: pair}).startswith("0 of 1 saddles")
    alone = dataclasses.replace(linear, kinds=("saddle of index 1",) * 2)
    ends = ends_of_saddles(cell, params, zero, points, alone)
    assert ends == {0: (None, None), 1: (None, None)}
