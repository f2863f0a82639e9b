"""`jaxrnn gradients`: a table, a JSON file and pictures, of cells by name and of a
run; one line for a mistake.
"""

import json

import numpy as np
import pytest

from jaxrnn.cli import main

pytestmark = pytest.mark.usefixtures("optax_promotion")
SMALL = ["--length", "12", "--batch", "3"]


def test_of_cells_at_initialization(tmp_path, capsys):
    words = [
        "gradients",
        "--cell",
        "elman:0.5",
        "lstm:chrono",
        "--hidden",
        "5",
        "--seeds",
        "2",
        *SMALL,
        "--out",
        str(tmp_path),
    ]
    assert main(words) == 0
    out = capsys.readouterr().out
    result = json.loads((tmp_path / "gradients.json").read_text())
    assert list(result["models"]) == ["elman:0.5", "lstm:chrono"]
    fast, slow = result["models"].values()
    assert 0.1 < fast["beta"] < 0.75 < slow["beta"] < 1
    assert f"{fast['beta']:.4f}" in out
    assert len(fast["mean_log_v_over_v0"]) == 13
    assert len(fast["lyapunov_exponents_of_first_seed"]) == 5
    assert len(slow["lyapunov_exponents_of_first_seed"]) == 10
    assert (np.diff(fast["truncation_error"]) < 1e-6).all()
    for name in ("decay", "maps", "spectra", "truncation"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_of_a_run_before_and_after_training(tmp_path, capsys):
    run = str(tmp_path / "run")
    assert (
        main(
            [
                "train",
                "adding",
                "--quick",
                "--steps",
                "20",
                "--hidden",
                "6",
                "--out",
                run,
            ]
        )
        == 0
    )
    assert (
        main(["gradients", "--run", run, *SMALL, "--out", str(tmp_path / "out")]) == 0
    )
    before, after = json.loads((tmp_path / "out/gradients.json").read_text())[
        "models"
    ].values()
    assert before["beta"] != after["beta"]
    capsys.readouterr()
    refused = {
        ("--cell", "gru"): "but the one named is gru: leave --cell out",
        ("--cell", "gru", "lstm"): "--run determines cell",
        ("--hidden", "3"): "--run determines cell",
    }
    for words, message in refused.items():
        out = ["--out", str(tmp_path / "out")]
        assert main(["gradients", "--run", run, *words, *out]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cell", "lstn"], "did you mean lstm?"),
        (["--task", "nothing"], "there is no 'nothing'"),
        (["--length", "2"], "--length must be at least 3"),
        (["--run", "nowhere"], "is not a run directory"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, words, message):
    assert main(["gradients", *words, "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
