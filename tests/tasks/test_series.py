"""series: scores and simple forecasts by slow twins, no look into the future, and
small runs that forecast and label.
"""

import csv
import dataclasses
import importlib.util
import io
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from killing import killed_and_resumed

from jaxrnn.cli import main
from jaxrnn.tasks import load
from jaxrnn.tasks.data.bucketing import Rows
from jaxrnn.tasks.data.series import Scaler, Series, filled
from jaxrnn.tasks.data.windows import Features, training_windows, window_batch
from jaxrnn.tasks.metrics import forecasts as metrics
from jaxrnn.tasks.metrics.forecasts import LinearForecast, Origin
from jaxrnn.tasks.metrics.series_baselines import nearest_neighbor, resampled
from jaxrnn.tasks.models.series_model import Forecaster, last_forecast, series_layer
from jaxrnn.tasks.report import facts_of, units
from jaxrnn.tasks.report.page import page
from jaxrnn.tasks.report.readings import reading_of
from jaxrnn.tasks.run_comparison import compare_runs, draw_comparison
from jaxrnn.tasks.run_info import run_info
from jaxrnn.tasks.series import task as series
from jaxrnn.tasks.series.forecast_data import described
from jaxrnn.tasks.series.options import Options, read_data
from jaxrnn.training import InputError, Run
from jaxrnn.unrolling import unroll

pytestmark = pytest.mark.usefixtures("optax_promotion")

TINY = {"hidden": 4, "length": 6, "batch": 8, "dropout": 0.0}
FLAGS = ["--hidden", "4", "--length", "6", "--batch", "8", "--steps", "4"]
FLAGS += ["--report-every", "2", "--evaluate-every", "2"]


def unrolls(seed=0, lengths=(30, 17, 44), columns=2):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, columns)).cumsum(0) for n in lengths]


def origins_of(arrays, first, horizon):
    return [
        Origin(i, t)
        for i, x in enumerate(arrays)
        for t in range(first, len(x) - horizon)
    ]


# ------------------------------------------------------------------ scores


@pytest.mark.parametrize("season", [0, 1, 4, 9])
def test_naive_forecasts_are_those_of_a_loop(season):
    arrays, horizon = unrolls(), 6
    origins = origins_of(arrays, 0, horizon)
    found = metrics.naive(arrays, origins, horizon, season)
    for row, (i, t) in zip(found, origins, strict=True):
        for h in range(1, horizon + 1):
            at = t
            if season:
                at = t + h
                while at > t:
                    at -= season
            np.testing.assert_array_equal(row[h - 1], arrays[i][at if at >= 0 else t])


@pytest.mark.parametrize("season", [0, 3])
def test_mase_is_its_formula(season):
    arrays = unrolls()
    arrays[1][4, 0] = np.nan
    lag = season or 1
    scale = []
    for k in range(2):
        steps = [
            abs(x[t, k] - x[t - lag, k]) for x in arrays for t in range(lag, len(x))
        ]
        steps = [step for step in steps if step == step]
        scale.append(sum(steps) / len(steps))
    found = metrics.naive_errors(arrays, season)
    np.testing.assert_allclose(found, scale, rtol=1e-12)
    rng = np.random.default_rng(1)
    truth, said = rng.normal(size=(2, 5, 3, 2))
    truth[2, 1, 1] = np.nan
    errors = [
        [abs(said[n, h, k] - truth[n, h, k]) for n in range(5) for h in range(3)]
        for k in range(2)
    ]
    errors = [[e for e in column if e == e] for column in errors]
    means = [sum(column) / len(column) for column in errors]
    scores = metrics.forecast_scores(said, truth, found)
    assert scores["mae"] == pytest.approx(sum(means) / 2, rel=1e-12)
    mase = sum(m / s for m, s in zip(means, scale, strict=True)) / 2
    assert scores["mase"] == pytest.approx(mase, rel=1e-12)
    roots = [(sum(e * e for e in column) / len(column)) ** 0.5 for column in errors]
    assert scores["rmse"] == pytest.approx(sum(roots) / 2, rel=1e-12)


def test_columns_that_never_change_have_no_mase():
    scale = metrics.naive_errors([np.array([[1.0, 2.0], [1.0, 4.0]])])
    np.testing.assert_array_equal(scale, [0, 2])
    scores = metrics.forecast_scores(np.zeros((1, 1, 2)), np.ones((1, 1, 2)), scale)
    assert scores["mase"] == 0.5
    assert np.isnan(metrics.naive_errors([np.zeros((3, 1))], 5)).all()


def test_the_linear_forecast_is_that_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    arrays, lags, horizon = unrolls(columns=3), 3, 2
    targets = [x[:, :2].copy() for x in arrays]
    targets[0][7] = np.nan
    inputs, truth = [], []
    for x, y in zip(arrays, targets, strict=True):
        for t in range(lags - 1, len(x) - horizon):
            future = y[t + 1 : t + 1 + horizon].ravel()
            if not np.isnan(future).any():
                inputs.append(np.concatenate([x[t - j] for j in range(lags)]))
                truth.append(future)
    ridge = linear_model.Ridge(alpha=metrics.RIDGE * len(inputs))
    ridge.fit(np.array(inputs), np.array(truth))
    model = LinearForecast.fit(arrays, targets, lags, horizon)
    np.testing.assert_allclose(model.weights[1:], ridge.coef_.T, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(model.weights[0], ridge.intercept_, rtol=1e-6, atol=1e-8)
    said = model(arrays, [Origin(2, 20)])
    x = np.concatenate([arrays[2][20 - j] for j in range(lags)])
    expected = ridge.predict(x[None]).reshape(1, horizon, 2)
    np.testing.assert_allclose(said, expected, rtol=1e-6)


def test_the_number_of_lags_is_chosen_by_validation():
    # Each value is that of four steps before, which two lags cannot know.
    x = np.tile(np.random.default_rng(0).normal(size=4), 50)[:, None]
    model = metrics.best_linear([x], [x], [120], origins_of([x], 120, 1), 1)
    assert model.lags >= 4


def test_the_nearest_neighbor_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(20, 7)), rng.normal(size=(9, 7))
    labels = [str(i) for i in range(20)]
    expected = [
        labels[min(range(20), key=lambda i: ((x - train[i]) ** 2).sum())] for x in test
    ]
    assert nearest_neighbor(train, labels, test) == expected
    one = np.array([[0.0, 10.0], [2.0, 0.0]])
    np.testing.assert_allclose(
        resampled([one, one[:1]], 3), [[0, 1, 2, 10, 5, 0], [0, 0, 0, 10, 10, 10]]
    )


# ----------------------------------------------------------- windows and model


def test_windows_hold_what_a_loop_says():
    raw = unrolls(lengths=(9, 3, 1))
    raw[0][5, 1] = np.nan
    times = np.cumsum(np.random.default_rng(2).choice([1.0, 3.0], 9))
    scaler = Scaler((0.0, 0.0), (1.0, 1.0), 1.0, True)
    all_series = [Series("a", raw[0], times), *(Series("b", x) for x in raw[1:])]
    parts = [filled(one, scaler) for one in all_series]
    features = Features(2, flags=True, ahead=2, since=True, elapsed=True)
    ends, length, horizon = (8, 3, 1), 4, 2
    windows = training_windows(
        parts, ends, features, (1,), length=length, horizon=horizon
    )
    # 7 inputs make 4 windows of 4; 2 inputs one window; a single sample none
    assert windows.lengths.tolist() == [4, 4, 4, 4, 2]
    batch = window_batch(windows, Rows(np.array([3, 4, -1]), 5))
    assert batch.mask.sum(0).tolist() == [4, 2, 0]
    gaps = np.concatenate([[1], np.diff(times)[:7]])
    for t in range(4):
        at = 3 + t
        ahead = [np.log(gaps[j]) if j < 8 else 0 for j in (at + 1, at + 2)]
        expected = [*parts[0].values[at], *parts[0].seen[at], *ahead]
        expected += [np.log(gaps[at]), gaps[at]]
        np.testing.assert_allclose(batch.inputs[t, 0], expected, rtol=1e-6)
        for h in range(2):
            j = at + 1 + h
            assert batch.counts[t, 0, h, 0] == (j < 8 and not np.isnan(raw[0][j, 1]))
            if batch.counts[t, 0, h, 0]:
                np.testing.assert_allclose(batch.targets[t, 0, h, 0], raw[0][j, 1])
    assert batch.counts[:, 1, :, 0].tolist()[:2] == [[True, True], [True, False]]
    assert not batch.counts[2:, 1].any()
    assert not batch.counts[:, 2].any()


@pytest.mark.parametrize("cell", ["gru", "cfc"])
def test_a_new_model_is_nearly_naive_and_padding_never_matters(cell):
    layer = series_layer(cell, 4, 2, 0.2, 5, timed=True)
    model = Forecaster(layer, 4, 3, (1, 0))
    with jax.numpy_rank_promotion("allow"):
        params = model.init(jax.random.key(0))
        inputs = jax.random.uniform(jax.random.key(1), (5, 2, 4), minval=0.5)
        mask = jnp.arange(5)[:, None] < jnp.array([3, 5])
        hidden = jnp.where(mask[..., None], inputs, jnp.nan)
        said = last_forecast(model, params, hidden, mask)
        alone = last_forecast(model, params, inputs[:3, :1], mask[:3, :1])
        params["readout"]["kernel"] = params["readout"]["kernel"].at[4:].set(0)
        first = last_forecast(model, params, inputs, mask)
    np.testing.assert_allclose(said[:1], alone, rtol=1e-5)
    expected = np.stack(
        [inputs[2, 0, jnp.array([1, 0])], inputs[4, 1, jnp.array([1, 0])]]
    )
    np.testing.assert_allclose(first, np.broadcast_to(expected[:, None], (2, 3, 2)))


# ------------------------------------------------------------------ the task


def table(path, arrays, start=0.0, gaps=None, header="a,b", label=None):
    """Write series as CSV; with gaps, times stand in front."""
    lines = [",".join(["series", *(["time"] if gaps else []), header])]
    if label:
        lines[0] += ",label"
    rng = np.random.default_rng(0)
    for i, x in enumerate(arrays):
        now = start
        for row in x:
            now += float(rng.choice(gaps)) if gaps else 0
            fields = [f"s{i}", *([f"{now:.6f}"] if gaps else [])]
            fields += ["" if np.isnan(v) else f"{v:.6f}" for v in row]
            lines.append(",".join([*fields, *([label(i)] if label else [])]))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_no_number_of_the_test_part_reaches_training(tmp_path):
    arrays = unrolls(lengths=(60, 40))
    changed = [x.copy() for x in arrays]
    for x in changed:
        x[int(0.85 * len(x)) :] += 100  # the test part alone
    prepared = []
    for name, values in (("a.csv", arrays), ("b.csv", changed)):
        options = Options(data=(table(tmp_path / name, values),), **TINY)
        experiment, config = series.prepare(options)
        state = experiment.start()
        state = experiment.advance(experiment.advance(state, 0.5), 0.5)
        parts, _, again = described(options, read_data(options))
        assert again == config
        prepared.append((config, state.params, parts))
    (config, params, parts), (other, params_2, _) = prepared
    assert config["text"] != other["text"]
    assert config["series"] == other["series"]
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(params_2), strict=True):
        np.testing.assert_array_equal(a, b)
    # what is scored at the end is of the last samples alone
    for origin in parts.origins("test", 1, 6):
        assert origin.step + 1 >= int(0.85 * len(parts.series[origin.series]))


def test_a_second_file_is_the_test_part_and_short_series_are_for_training(tmp_path):
    files = tuple(
        table(tmp_path / f"{i}.csv", unrolls(i, lengths))
        for i, lengths in enumerate([(40, 3), (30, 5)])
    )
    alone = described(Options(data=files[:1]), read_data(Options(data=files[:1])))
    both = Options(data=files, length=8, horizon=2)
    parts, note, config = described(both, read_data(both))
    assert note.startswith(f"test part: {files[1]}; the last 15 %")
    assert parts.cuts == [(34, 40), (3, 3), (0, 0), (0, 0)]
    assert {origin.series for origin in parts.origins("validation", 2, 8)} == {0}
    test = parts.origins("test", 2, 8)
    # 8 samples before the first forecast of the long one, and 3 of the short one
    assert test == [*(Origin(2, t) for t in range(7, 28)), Origin(3, 2)]
    first = unrolls(0, (40, 3))
    mean = np.concatenate([first[0][:34], first[1]]).mean(0)
    np.testing.assert_allclose(config["series"]["mean"], mean, atol=1e-6)
    assert alone[1].endswith("validates; 1 short series are for training alone")


@pytest.fixture(scope="module")
def forecast_run(tmp_path_factory):
    """A tiny run on irregular, ragged series with missing values."""
    jax.devices()
    folder = tmp_path_factory.mktemp("series")
    arrays = unrolls(lengths=(60, 45))
    arrays[0][10:13, 1] = np.nan
    path = table(folder / "a.csv", arrays, gaps=[1, 1, 2.5])
    words = ["train", "series", "--data", path, "--missing", "mask", "--horizon", "2"]
    words += ["--cell", "cfc", "--season", "3", "--log", "csv"]
    words += ["--optimizer", "lion", "--schedule", "linear"]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert main([*words, *FLAGS, "--out", str(folder / "run")]) == 0
    return folder, arrays


def test_a_users_file_is_forecast(forecast_run, capsys):
    folder, arrays = forecast_run
    result = json.loads((folder / "run/result.json").read_text())
    for method in ("", "naive_", "seasonal_naive_", "linear_"):
        for score in ("mase", "mae", "rmse"):
            assert np.isfinite(result[f"{method}{score}"])
    for picture in ("curves.png", "forecast.png"):
        assert (folder / "run" / picture).read_bytes().startswith(b"\x89PNG")
    assert main(["predict", str(folder / "run"), str(folder / "a.csv")]) == 0
    rows = [*csv.DictReader(io.StringIO(capsys.readouterr().out))]
    assert [(row["series"], row["step"]) for row in rows] == [
        ("s0", "1"),
        ("s0", "2"),
        ("s1", "1"),
        ("s1", "2"),
    ]
    # beyond the horizon the first samples stay what they were
    words = ["predict", str(folder / "run"), str(folder / "a.csv"), "--steps", "5"]
    assert main(words) == 0
    longer = [*csv.DictReader(io.StringIO(capsys.readouterr().out))]
    assert len(longer) == 10
    for short, long in zip(rows[:2], longer[:2], strict=True):
        assert short.keys() == {"series", "step", "time", "a", "b"}
        for name in ("time", "a", "b"):
            assert float(short[name]) == pytest.approx(float(long[name]), rel=1e-4)
    words = ["evaluate", str(folder / "run"), "--data", str(folder / "a.csv")]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["forecasts"] == sum(len(x) - 2 - 6 + 1 for x in arrays)
    errors = found["mae_by_column"]
    assert found["mae"] == pytest.approx(np.mean([errors["a"], errors["b"]]))


def texts_of(folder):
    """The alternative texts of the pictures in a report and in a card."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    report = re.findall(r'alt="(.*?)"', text)
    card = (folder / "README.md").read_text(encoding="utf-8")
    return report, dict(re.findall(r"!\[(.*?)\]\((.*?)\)", card))


def test_a_forecast_is_reported(forecast_run, capsys):
    run = Run.open(forecast_run[0] / "run")
    options = run.config["options"]
    assert (options["optimizer"], options["schedule"]) == ("lion", "linear")
    header = (run.path / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"held_out_mase", "final/mase", "final/linear_mase"} <= {*header}
    facts = facts_of(run)
    assert facts.about.sentence == "the next values of series of numbers"
    assert facts.rows[0].name == "mase"
    assert [*facts.rows[0].baselines] == ["naive", "seasonal naive", "linear"]
    report, card = texts_of(run.path)
    assert len(report) == len(card) == 2
    assert [*card.values()] == ["curves.png", "forecast.png"]
    assert report[1].startswith("The forecasts of the test part beside what was")
    shown = page(facts)
    assert "mase: lower is better" in shown
    assert "<code>--target</code>" not in shown  # it is empty
    # What is looked into is what the model forecasts from.
    trained = load(run.path)[0]
    reading = reading_of(run, trained)
    one = trained.read(run.config["options"]["data"][0]).series[-1]
    assert reading.symbols == [f"{value:.3g}" for value in one.values[:, 0]]
    ys = unroll(reading.layer, reading.params, reading.xs[-6:])[1][-1, 0]
    seen = np.concatenate([reading.xs[-1, 0], ys])
    readout = trained.params["readout"]
    said = (seen @ readout["kernel"] + readout["bias"]).reshape(2, 2)
    expected = trained.forecasts([one], [Origin(0, len(one) - 1)])[0]
    np.testing.assert_allclose(trained.unscaled(np.asarray(said)), expected, rtol=1e-4)
    assert units.views(reading)[0]["name"] == "output"
    found = run_info(run.path)
    assert found["state"] == "finished"
    assert found["result"]["mase"] == facts.rows[0].value
    assert main(["info", str(run.path)]) == 0
    assert "seasonal naive" in capsys.readouterr().out
    assert main(["list", "runs", "--runs", str(run.path.parent)]) == 0
    assert "mase" in capsys.readouterr().out


def test_the_rollout_is_a_loop_of_single_forecasts(forecast_run):
    trained = load(forecast_run[0] / "run")[0]
    one = trained.read(str(forecast_run[0] / "a.csv")).series[0]
    said = trained._future(one, 5)
    # Each forecast of the next sample is written behind the series, and read again.
    length, gap = trained.options.length, trained.scaler.gap
    for step in range(3):
        window = Series("x", one.values[-length - step :], one.times[-length - step :])
        wide = dataclasses.replace(trained.options, length=length + step)
        looking = dataclasses.replace(trained, options=wide)
        forecast = looking.forecasts([window], [Origin(0, len(window) - 1)])[0]
        np.testing.assert_allclose(said[step + 1], forecast[-1], rtol=2e-4, atol=1e-4)
        values = np.concatenate([one.values, forecast[:1]])
        one = Series("x", values, np.append(one.times, one.times[-1] + gap))


def test_words_for_what_cannot_be(forecast_run, tmp_path, capsys):
    folder, _ = forecast_run
    path = str(folder / "a.csv")
    bad = table(tmp_path / "b.csv", unrolls(), header="a,c")
    named = tmp_path / "d.csv"
    named.write_text("split,a\ntrain,1\ntrain,2\n")
    short = table(tmp_path / "c.csv", unrolls(lengths=(3,)))
    run = str(folder / "run")
    for words, message in (
        (
            ["train", "series", "--data", path],
            "the value of b is missing in row 11 ",
        ),
        (["train", "series", "--data", bad, "--target", "b"], "'b' must be one of"),
        (["train", "series", "--data", short], "leaves none for the validation part"),
        (["train", "series", "--data", str(named)], "forecasts are split by time"),
        (["train", "series", "--data", bad, "--goal", "label"], "has no labels"),
        (["train", "series", "--data", bad, "--season", "99"], "--season 99: no train"),
        (["predict", run, bad], "has the columns a, c, and the model reads a, b"),
        (["evaluate", run, "--length", "3"], "series has no synthetic sequences"),
        (["sample", run], "series does not generate text"),
        (["gradients", "--run", run], "runs of these have: charlm, adding, copy"),
    ):
        assert (
            main(
                [
                    *words,
                    *(["--out", str(tmp_path / "run")] if words[0] == "train" else []),
                ]
            )
            == 2
        )
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


def test_a_part_of_the_columns_sees_no_further_than_its_horizon():
    options = Options(data=("none.csv",), target="a", **TINY)
    with pytest.raises(InputError, match=r"none.csv cannot be read"):
        series.prepare(options)
    with pytest.raises(InputError, match="--goal"):
        Options(goal="guess")


def waves(count, seed=0):
    """Slow waves are called slow and fast ones fast; lengths, phases and noise vary."""
    rng = np.random.default_rng(seed)
    arrays = []
    for i in range(count):
        t = np.arange(rng.integers(9, 17))
        wave = np.sin((0.3 + 1.2 * (i % 2)) * t + rng.uniform(0, 6))
        arrays.append(np.stack([wave, rng.normal(size=len(t))], 1))
    return arrays


def named(i):
    return "fast" if i % 2 else "slow"


def test_labels_of_ragged_series(forecast_run, tmp_path, capsys):
    files = [
        table(tmp_path / f"{part}.csv", waves(count, seed), label=named)
        for part, count, seed in (("train", 60, 0), ("test", 20, 1))
    ]
    words = [
        "train",
        "series",
        "--data",
        *files,
        *FLAGS,
        "--out",
        str(tmp_path / "run"),
    ]
    jax.devices()
    assert main(words) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["majority_accuracy"] == 0.5
    for method in ("", "nearest_neighbor_", "logistic_regression_"):
        assert 0 <= result[f"{method}macro_f1"] <= 1
    assert (tmp_path / "run/confusion.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--data", files[1]]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["accuracy"], found["series"]) == (result["accuracy"], 20)
    assert main(["predict", str(tmp_path / "run"), files[1]]) == 0
    rows = [*csv.DictReader(io.StringIO(capsys.readouterr().out))]
    right = np.mean([row["label"] == named(i) for i, row in enumerate(rows)])
    assert right == result["accuracy"]
    words = ["predict", str(tmp_path / "run"), files[1], "--steps", "3"]
    assert main(words) == 2
    assert "this run learned the labels of series" in capsys.readouterr().err
    facts = facts_of(Run.open(tmp_path / "run"))
    assert facts.about.curve == ("accuracy", "accuracy")
    assert {"majority", "nearest neighbor"} < facts.rows[0].baselines.keys()
    report, card = texts_of(tmp_path / "run")
    assert len(report) == 2
    assert [*card.values()] == ["curves.png", "confusion.png"]
    reading = reading_of(Run.open(tmp_path / "run"), load(tmp_path / "run")[0])
    assert len(reading.symbols) == len(reading.xs) > 8
    assert re.search("which is labeled (slow|fast)", reading.what)
    assert units.views(reading)[0]["name"] == "output"
    # Runs with two goals stand beside each other in a table, and in no picture.
    other = shutil.copytree(forecast_run[0] / "run", tmp_path / "other")
    runs = [tmp_path / "run", other]
    found = compare_runs(runs)
    assert found["differs"][0] == "learns"
    assert [one["options"]["learns"] for one in found["runs"]] == ["label", "forecast"]
    assert [next(iter(one["scores"])) for one in found["runs"]] == ["accuracy", "mase"]
    with pytest.raises(InputError, match="some of these forecast and some learn"):
        draw_comparison(runs, tmp_path / "c.png")
    picture = draw_comparison([other, other], tmp_path / "c.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["forecast", "label"])
def test_killed_and_resumed_it_ends_the_same(tmp_path, kind):
    label = named if kind == "label" else None
    path = table(tmp_path / "a.csv", waves(60), label=label)
    options = Options(data=(path,), **{**TINY, "dropout": 0.2})
    alone, resumed = killed_and_resumed(series, options, tmp_path, kill=7)
    assert alone == resumed


@pytest.mark.slow
def test_a_quick_run_beats_naive_and_linear_forecasts(tmp_path):
    """Of the logistic map, whose next value a parabola says."""
    x = np.empty((600, 1))
    x[0] = 0.3
    for t in range(599):
        x[t + 1] = 3.8 * x[t] * (1 - x[t])
    path = table(tmp_path / "a.csv", [x], header="a")
    words = ["train", "series", "--quick", "--data", path, "--season", "2"]
    assert main([*words, "--dropout", "0", "--out", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    for method in ("naive", "seasonal_naive", "linear"):
        assert result["mase"] < 0.5 * result[f"{method}_mase"]


@pytest.mark.slow
def test_a_quick_run_learns_labels(tmp_path):
    path = table(tmp_path / "a.csv", waves(200), label=named)
    words = ["train", "series", "--quick", "--data", path]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["accuracy"] > 0.9 > result["logistic_regression_accuracy"]


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("vega_datasets") is None, reason="needs vega-datasets"
)
def test_a_quick_run_on_the_weather_beats_naive_forecasts(tmp_path):
    assert main(["train", "series", "--quick", "--out", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["mase"] < result["naive_mase"] - 0.03
    assert result["seasonal_naive_mase"] > 0
