"""The benchmark programs: what they write, what they say about peers that are
missing, how they refuse. No times are judged.
"""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest

import jaxrnn
from benchmarks.accelerator import kernels
from benchmarks.cpu import mean_field, memory, newton, streaming, throughput
from benchmarks.gradients import gradient_decay, online
from benchmarks.harness import host, peak_rss
from benchmarks.harness.options import Shape
from benchmarks.harness.timing import interleave, statistics
from benchmarks.harness.workload import CELLS, Work
from benchmarks.peers import other_libraries
from benchmarks.peers.registry import ENTRIES, engine_named, prepare_entries
from benchmarks.tasks import baselines, recall
from jaxrnn.tasks.data.images import Captioned
from jaxrnn.tasks.data.tables import Tagged
from jaxrnn.tasks.runner import TASKS

pytestmark = pytest.mark.usefixtures("optax_promotion")  # peers rely on promotion
PEERS = {
    "torch": "torch",
    "keras": "keras",
    "haiku": "haiku",
    "equinox": "equinox",
    "onnxruntime": "onnxruntime",
}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """torch's threads spin at barriers: beside other load on a small machine a test
    would take minutes.
    """
    monkeypatch.setattr(other_libraries, "cores", lambda: 1)


def written(path):
    result = json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))
    assert (
        path.with_name(path.name + ".md").read_text(encoding="utf-8").startswith("# ")
    )
    assert path.with_name(path.name + ".png").stat().st_size > 1000
    assert result["machine"]["versions"]["jax"] == jax.__version__
    assert result["machine"]["backend"] == jax.default_backend()
    assert f".{result['benchmark']} " in result["command"]
    assert result["dtype"] == "float32"
    return result


def hide(monkeypatch, *modules):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


def test_throughput_writes_what_it_promises(tmp_path, monkeypatch, capsys):
    hide(monkeypatch, *PEERS.values())
    out = tmp_path / "some.name"
    names = [
        "jaxrnn",
        "jaxrnn-sharded",
        "user-cell",
        "Scan(unroll=2)",
        "naive",
        "flax",
        *PEERS,
    ]
    args = [
        "--quick",
        "--cells",
        "LSTM",
        "--shapes",
        "2,5,4,8",
        "--rounds",
        "2",
        "--out",
        str(out),
    ]
    assert throughput.main([*args, "--entries", *names]) == 0
    result = written(out)
    assert result["ceiling"]["gflops"] > 0
    rows = {(r["entry"], r["mode"], r["shape"]["T"]): r for r in result["rows"]}
    row = rows["flax", "train", 5]
    assert row["shape"] == {"B": 2, "T": 5, "I": 4, "H": 8}
    assert set(row["ms"]) == {"median", "q1", "q3", "min"}
    assert row["speedup_over_flax"] == 1
    fields = {
        "us_per_step",
        "tokens_per_second",
        "gflops",
        "share_of_ceiling",
        "compile_seconds",
        "relative_difference",
    }
    assert fields <= set(row)
    assert rows["Scan(unroll=2)", "forward", 5]["cell"] == "LSTM"
    assert all(r["same_function"] for r in result["rows"])
    assert set(row["relative_difference"]) == {
        "outputs",
        "weight_gradient",
        "input_gradient",
    }
    reasons = {item["entry"]: item["reason"] for item in result["left_out"]}
    assert set(PEERS) <= set(reasons)
    text = capsys.readouterr().out
    for name in PEERS:
        assert "pip install '.[peers]'" in reasons[name]
        assert f"left out: {name}" in text
    if jax.device_count() == 1:
        assert "one device" in reasons["jaxrnn-sharded"]


def test_gradient_decay_writes_what_it_promises(tmp_path):
    out = tmp_path / "decay"
    args = [
        "--cells",
        "tanh, gain 0.5",
        "--seeds",
        "2",
        "--hidden",
        "8",
        "--steps",
        "40",
        "--batch",
        "4",
    ]
    args += ["--lengths", "12", "--updates", "3", "--trainings", "1", "--out", str(out)]
    assert gradient_decay.main(args) == 0
    result = written(out)
    (row,) = result["initial"]
    assert 0.2 < row["beta"] < 0.7
    assert row["leading_exponent"] == pytest.approx(np.log(row["beta"]), abs=0.2)
    assert len(row["mean_log_v"]) == 41
    assert set(row["log10_v"]) == {"10", "40"}
    # float32 beside the products of explicit Jacobians in float64
    assert row["largest_difference_nats"] < 1e-3
    assert row["beta_float64"] > 0
    assert [(r["task"], r["length"], r["seed"]) for r in result["trained"]] == [
        ("temporal-order", 12, 0),
        ("adding", 12, 0),
    ]
    assert all(
        r["updates"] == 3 and r["solved_after"] is None and not r["diverged"]
        for r in result["trained"]
    )
    assert "0 of 1 (" in out.with_name("decay.md").read_text(encoding="utf-8")


def test_what_became_of_trainings_is_told_in_words():
    def row(solved, final, diverged=False):
        return {"solved_after": solved, "final": final, "diverged": diverged}

    assert (
        gradient_decay.outcome([row(300, 1.0), row(None, 0.3), row(500, 1.0)])
        == "2 of 3: 300"
    )
    assert (
        gradient_decay.outcome([row(None, 0.2), row(None, 0.4), row(None, 0.3)])
        == "0 of 3 (0.300)"
    )
    assert (
        gradient_decay.outcome([row(900, 0.0), row(None, None, True)])
        == "1 of 2: 900, 1 diverged"
    )
    assert gradient_decay.outcome([row(None, None, True)]) == "0 of 1, diverged"


def test_a_peer_that_breaks_is_left_out_and_our_own_failure_is_not():
    def broken(work):
        raise RuntimeError("it is\nbroken")

    work = Work("GRU", Shape(1, 3, 2, 2))
    ENTRIES["broken"] = type(ENTRIES["naive"])(broken, "a test", own=False)
    try:
        ready, left_out = prepare_entries(["broken", "naive"], work)
        assert list(ready) == ["naive"]
        assert left_out[0]["entry"] == "broken"
        assert "it is" in left_out[0]["reason"]
        ENTRIES["broken"] = type(ENTRIES["naive"])(broken, "a test", own=True)
        with pytest.raises(RuntimeError, match="broken"):
            prepare_entries(["broken"], work)
    finally:
        del ENTRIES["broken"]


@pytest.mark.parametrize("kind", CELLS)
def test_every_peer_that_is_installed_computes_the_same(kind):
    names = ["flax", "haiku", "equinox", "keras"] + (
        [] if jax.default_backend() == "gpu" else ["torch", "onnxruntime"]
    )
    names += (
        ["jaxrnn-vmap", "jaxrnn-checkpoint", "naive-hoisted", "flax-batch-first"]
        if kind == "LSTM"
        else []
    )
    ready, left_out = prepare_entries(names, Work(kind, Shape(3, 7, 4, 5)))
    assert len(ready) + len(left_out) == len(names)
    for name, entry in ready.items():
        assert max(entry.differences.values()) < 1e-4, name
    for item in left_out:
        assert (
            "not installed" in item["reason"]
            or "simple recurrent cell" in item["reason"]
        ), item


def test_a_wrong_weight_shows():
    work = Work("LSTM", Shape(2, 5, 3, 4))
    model = ENTRIES["jaxrnn"].build(work)
    model.mapping = lambda weights: {**weights, "bias": weights["bias"][::-1]}
    assert model.check(work, model.programs(work))["outputs"] > 0.01


def test_memory_writes_what_it_promises(tmp_path, monkeypatch):
    out = tmp_path / "memory"
    monkeypatch.setattr(
        memory,
        "run_alone",
        lambda name, kind, size, last: one_resident(name, kind, size),
    )
    monkeypatch.setattr(memory, "CURVES", ((2, 3),))
    args = [
        "--steps",
        "4",
        "8",
        "--entries",
        "jaxrnn",
        "naive",
        "flax",
        "--resident",
        "2,8,4",
        "--out",
        str(out),
    ]
    assert memory.main(args) == 0
    result = written(out)
    assert {r["shape"]["T"] for r in result["compiled"]} == {4, 8}
    row = result["compiled"][0]
    B, T, H = (row["shape"][k] for k in "BTH")
    assert row["temp_in_TBH_floats"] == pytest.approx(
        row["temp_bytes"] / (4 * B * T * H)
    )
    assert [r["entry"] for r in result["resident"]] == ["jaxrnn", "naive", "flax"]
    assert {"seconds", "temp_bytes", "resident_bytes"} <= set(result["resident"][0])

    monkeypatch.setattr(memory, "MILLION", Shape(1, 16, 4, 4))
    assert (
        memory.main(["--million", "--entries", "jaxrnn", "naive", "--out", str(out)])
        == 0
    )
    result = written(out)
    assert [r["entry"] for r in result["resident"]] == ["jaxrnn", "naive"]
    assert result["compiled"] == []


def one_resident(name, kind, size):
    return {
        "cell": kind,
        "shape": size._asdict(),
        "entry": name,
        **peak_rss.measure(name, Work(kind, size)),
    }


def test_a_process_of_its_own_reports_or_says_why_not():
    found = memory.run_alone("naive", "Elman", Shape(1, 4, 2, 2))
    assert found["seconds"] > 0
    assert found["entry"] == "naive"
    assert "failed" in memory.run_alone("nonsense", "Elman", Shape(1, 4, 2, 2))
    for name in ("jaxrnn-checkpoint", "naive"):
        assert (
            memory.run_alone(name, "LSTM", Shape(1, 64, 2, 2), last=True)["seconds"] > 0
        )


def test_streaming_writes_what_it_promises(tmp_path, monkeypatch, capsys):
    hide(monkeypatch, "torch", "onnxruntime")
    out = tmp_path / "streaming"
    monkeypatch.setattr(streaming, "WHOLE", ("jaxrnn", "naive", "flax", "torch"))
    args = [
        "--hidden",
        "4",
        "--steps",
        "5",
        "--rounds",
        "1",
        "--shapes",
        "2,6,4",
        "--out",
        str(out),
    ]
    assert streaming.main(args) == 0
    result = written(out)
    rows = {(r["cell"], r["entry"]): r for r in result["streaming"]}
    assert {("LSTM", "jaxrnn"), ("LSTM", "jaxrnn-loop"), ("GRU", "jaxrnn")} <= set(rows)
    assert set(rows["GRU", "jaxrnn"]["us_per_step"]) == {
        "median",
        "q1",
        "q3",
        "min",
        "p99",
    }
    assert all(r["agrees"] for r in result["streaming"] + result["whole"])
    assert {"jaxrnn", "naive", "flax"} <= {r["entry"] for r in result["whole"]}
    assert "left out: torch (GRU, LSTM)" in capsys.readouterr().out


def test_newton_writes_what_it_promises(tmp_path):
    out = tmp_path / "newton"
    assert newton.main(["--quick", "--rounds", "1", "--out", str(out)]) == 0
    result = json.loads((tmp_path / "newton.json").read_text(encoding="utf-8"))
    assert {row["part"] for row in result["rows"]} == set(newton.PARTS)
    grown = [row for row in result["rows"] if row["part"] == "exponent"]
    assert all(row["difference"] < 1e-9 for row in grown if row["converged"])
    whole = [row for row in grown if row["structure"] == "full 8x8"]
    assert whole[0]["exponent"] < whole[-1]["exponent"] < 0
    assert whole[0]["iterations"] < whole[-1]["iterations"]
    text = (tmp_path / "newton.md").read_text(encoding="utf-8")
    assert "## exponent" in text
    assert "## time" in text


def test_a_mean_field_network_takes_more_iterations_the_less_it_contracts(tmp_path):
    out = tmp_path / "mean_field"
    assert mean_field.main(["--quick", "--out", str(out)]) == 0
    result = json.loads((tmp_path / "mean_field.json").read_text(encoding="utf-8"))
    calm, wild = result["rows"]
    assert calm["exponent"] < wild["exponent"]
    assert 0 < calm["T_20"] < wild["T_20"] <= 20
    assert calm["T_5"] <= wild["T_5"] <= 5
    assert "| g |" in (tmp_path / "mean_field.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("main", "args", "words"),
    [
        (newton.main, ["--parts", "nothing"], "exponent"),
        (throughput.main, ["--shapes", "16,512"], "16,512"),
        (throughput.main, ["--shapes", "0,5,5"], "0,5,5"),
        (throughput.main, ["--cells", "QRNN"], "LSTM, GRU, Elman"),
        (throughput.main, ["--entries", "nothing"], "nothing"),
        (throughput.main, ["--entries", "Scan(speed=9)"], "speed"),
        (throughput.main, ["--entries", "LSTM(hidden_size=9)"], "no engine LSTM"),
        (throughput.main, ["--rounds", "0"], "'0'"),
        (memory.main, ["--entries", "torch"], "torch"),
        (memory.main, ["--million", "--resident", "1,2,3"], "--million"),
        (streaming.main, ["--hidden", "-3"], "--hidden"),
        (streaming.main, ["--fast"], "--fast"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(main, args, words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error


def test_an_engine_is_named_and_nothing_else_is_run():
    assert engine_named("Checkpoint(chunk=3)").chunk == 3
    for text in (
        "__import__('os')",
        "Scan(unroll=__import__('os'))",
        "Scan().run",
        "Scan(",
        "Scan",
    ):
        with pytest.raises(ValueError):
            engine_named(text)


def test_every_round_takes_one_sample_of_each():
    calls = {"a": 0, "b": 0}

    def count(name):
        calls[name] += 1

    seconds = interleave(
        {name: lambda name=name: count(name) for name in calls}, rounds=4, minimum=0.0
    )
    assert {name: len(values) for name, values in seconds.items()} == {"a": 4, "b": 4}
    assert calls == {"a": 6, "b": 6}  # two to warm up
    assert statistics([3.0, 1.0, 2.0, 5.0, 4.0], 10) == {
        "median": 30,
        "q1": 20,
        "q3": 40,
        "min": 10,
    }


def test_flops_are_the_textbook_counts():
    B, T, I, H = size = Shape(3, 5, 7, 11)
    for kind, forward in (("LSTM", 8), ("GRU", 6), ("Elman", 2)):
        assert Work(kind, size).flops("forward") == forward * T * B * H * (H + I)
        assert Work(kind, size).flops("train") == 3 * forward * T * B * H * (H + I)


def test_devices_of_a_process_that_has_started_are_kept(capsys):
    before = jax.device_count()
    host.prepare(before + 1)
    assert jax.device_count() == before
    assert f"it has {before} device(s)" in capsys.readouterr().out
    assert np.isfinite(host.ceiling(64, 1)["gflops"])


def test_baselines_by_hand():
    """The nearest picture, first of equals; a tag that only a neighbour or an ending
    tells.
    """
    rows = [
        Captioned(np.full((2, 2), level, np.uint8), str(level), "")
        for level in (0, 250, 250, 90)
    ]
    asked = [
        Captioned(np.full((2, 2), level, np.uint8), "", "") for level in (255, 0, 120)
    ]
    assert baselines.nearest(rows, asked) == ["250", "0", "90"]
    train = [
        Tagged((first, word), ("A", tag))
        for first, tag in (("x", "B"), ("y", "C"))
        for word in ("one", "two", "three")
    ]
    assert baselines.windowed(
        train, [Tagged(("y", "four"), ("A", "C")), Tagged(("x", "two"), ("A", "B"))]
    ) == [
        "A",
        "C",
        "A",
        "B",
    ]


def test_baselines_are_written_with_their_command(tmp_path, capsys):
    pytest.importorskip("babel")
    out = tmp_path / "some.name"
    assert (
        baselines.main(["--quick", "translation", "captioning", "--out", str(out)]) == 0
    )
    result = json.loads((tmp_path / "some.name.json").read_text(encoding="utf-8"))
    assert result["command"].startswith("python -m benchmarks.tasks.baselines --quick")
    rows = {row["baseline"]: row for row in result["rows"]}
    assert rows["copying"]["scores"]["exact_match"] == 0
    nearest = rows["nearest neighbor by pixels"]
    assert (nearest["train"], nearest["test"]) == (2001, 296)
    assert 0.4 < nearest["scores"]["exact_match"] < 0.9
    assert (tmp_path / "some.name.md").read_text(encoding="utf-8").count("|\n") == 4
    with pytest.raises(SystemExit):
        baselines.main(["tagign"])
    assert "there are sentiment, tagging" in capsys.readouterr().err


def test_kernels_table_tells_what_did_not_compile():
    rows = [
        {
            "chip": "H100",
            "cell": "GRU",
            "H": 8,
            "B": 1,
            "T": 2,
            "dtype": "float32",
            "mask_and_resets": True,
            "compiled": True,
        }
        | {
            "registers": [96, 155],
            "spilled_bytes": [0, 4],
            "shared_bytes": [92160, 120832],
        },
        {
            "chip": "v4:2x2x1",
            "cell": "LSTM",
            "H": 8,
            "B": 1,
            "T": 2,
            "dtype": "bfloat16",
            "mask_and_resets": False,
        }
        | {"compiled": False, "reason": "ValueError: too large"},
    ]
    text = kernels.table({"rows": rows, "versions": {}})
    assert (
        "| H100 | GRU | 8 | 1 | 2 | float32 | yes | yes | 96, 155 | 0, 4 | 92160, "
        "120832 |" in text
    )
    assert (
        "| v4:2x2x1 | LSTM | 8 | 1 | 2 | bfloat16 |  | ValueError: too large |" in text
    )


def test_the_assembler_is_understood(tmp_path):
    (tmp_path / "a_0.ptxas").write_text(
        "ptxas info: 0 bytes stack frame, 56 bytes spill stores, 8 bytes spill "
        "loads\nUsed 239 registers"
    )
    (tmp_path / "a_0.resources.txt").write_text(
        "Resources(smem_scratch_bytes=200704, tmem_scratch_cols=0)"
    )
    assert kernels.of_ptxas(tmp_path) == {
        "registers": [239],
        "spilled_bytes": [56],
        "shared_bytes": [200704],
    }


def test_recall_trains_and_keeps_earlier_rows(tmp_path, monkeypatch):
    """A small entry stands for the others; its rows are judged as it says."""
    small = recall.Entry(
        "parity",
        lambda: jaxrnn.MinGRU(2),
        {"length": 3, "test_length": 6, "answers": "every", "hidden": 2, "batch": 4},
        4,
        "accuracy_6",
        (">=", 0.0),
        {"answers": "last"},
    )
    monkeypatch.setitem(recall.ENTRIES, "small", small)
    other = small._replace(goal=("<=", 0.0), solved=0.0, further=(9,))
    monkeypatch.setitem(recall.ENTRIES, "other", other)
    out = tmp_path / "recall"
    words = ["--every", "2", "--updates", "4", "--add", "--out", str(out)]
    assert recall.main(["small", "--seeds", "0", "1", *words]) == 0
    assert recall.main(["other", "--seeds", "3", *words]) == 0
    assert recall.main(["small", "--seeds", "1", *words]) == 0
    result = json.loads(out.with_name("recall.json").read_text(encoding="utf-8"))
    rows = result["rows"]
    assert [(r["entry"], r["seed"]) for r in rows] == [
        ("small", 0),
        ("small", 1),
        ("other", 3),
    ]
    assert [r["reached"] for r in rows] == [True, True, False]
    assert result["machine"]["versions"]["jax"] == jax.__version__
    assert rows[0]["sequences"] == 1024
    assert {"accuracy", "accuracy_6", "baseline"} <= set(rows[0]["scores"])
    assert rows[0]["updates"] == 4
    assert rows[0]["solved_after"] is None
    assert [update for update, _ in rows[0]["curve"]] == [2, 4]
    # Any accuracy is enough for the other one, at the first look.
    assert rows[2]["solved_after"] == rows[2]["updates"] == 2
    assert 0 <= rows[2]["scores"]["accuracy_9"] <= 1
    assert out.with_name("recall.md").read_text(encoding="utf-8").count("small") == 1


def test_the_entries_of_recall_are_options_of_their_tasks():
    for entry in recall.ENTRIES.values():
        options = TASKS[entry.task].Options(cell=entry.cell(), **entry.options)
        judged = dataclasses.replace(options, **entry.judged)
        problem = TASKS[entry.task].problem(judged)
        names = {problem.score, *(f"accuracy_{n}" for n in problem.other_lengths)}
        assert entry.score in names


def test_online_measures_learns_and_writes(tmp_path, monkeypatch):
    """The parts that are quick: one delay, two methods, and no timings."""
    names = [("Traces", 1, 0), ("TBPTT(1, 1)", 1, 0)]
    monkeypatch.setattr(online, "plan", lambda args: names)
    monkeypatch.setattr(online, "costs", lambda *args, **options: [])
    monkeypatch.setattr(online, "memory", lambda *args, **options: [])
    out = tmp_path / "online"
    assert online.main(["--quick", "--updates", "2", "--out", str(out)]) == 0
    result = json.loads(out.with_name("online.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in result["learning"]] == [n for n, *_ in names]
    assert list(result["commands"]) == ["costs", "memory", "learning"]
    # A run ends with its updates, or as soon as the task is solved.
    first = result["learning"][0]
    assert first["curve"][-1]["update"] == first["updates"] <= 2
    assert 0 <= result["learning"][0]["accuracy"] <= 1
    assert result["machine"]["versions"]["jax"] == jax.__version__
    assert "| Traces |" in out.with_name("online.md").read_text(encoding="utf-8")
