"""`benchmarks.accelerator`: what it writes, what it marks as quoted, and that no entry
or configuration goes missing. No times are judged, and no accelerator is needed.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks.accelerator import measure, run, torch_peer, workload
from benchmarks.accelerator.workload import (
    BF16,
    CONFIGS,
    ENTRIES,
    F32,
    LINEAR,
    LSTM,
    QUICK,
    Config,
)
from benchmarks.harness import report

pytestmark = pytest.mark.usefixtures("optax_promotion")
FEW = (
    "lax.scan naive f32",
    "jaxrnn Scan bf16",
    "lax.scan f32",
    "jaxrnn Scan f32",
    "jaxrnn CuDNN (TF32) f32",
    "torch cuDNN bf16",
)


@pytest.fixture
def few(monkeypatch):
    """Few entries, measured in this process."""
    entries = [
        e
        for e in ENTRIES
        if e.key in FEW and (e.kind, e.key) != (LSTM, "jaxrnn Scan f32")
    ]
    entries += [
        dataclasses.replace(
            entries[0], name="jaxrnn Fused", build=workload._unrolled("NoSuchEngine")
        )
    ]
    monkeypatch.setattr(workload, "ENTRIES", tuple(entries))

    def here(config, seconds, rounds, without, quick):
        assert quick
        return measure.measure(config, seconds, rounds, without)

    monkeypatch.setattr(run, "in_process", here)


def test_quick_writes_what_it_promises(few, tmp_path, capsys):
    assert run.main(["--quick", "--out", str(tmp_path / "quick")]) == 0
    result = json.loads((tmp_path / "quick.json").read_text(encoding="utf-8"))
    assert result["quick"] is True
    assert result["machine"]["backend"] == jax.default_backend()
    assert result["quoted"] == []  # of other sizes than these
    rows = {(r["config"], r["entry"], r["mode"]): r for r in result["rows"]}
    if jax.default_backend() == "cpu":
        assert "On a CPU" in (tmp_path / "quick.md").read_text(encoding="utf-8")
        expected = {("flashrnn", e) for e in FEW[:2]} | {
            ("linear-16k", e) for e in FEW[2:4]
        }
        assert {key[:2] for key in rows} == expected
    assert (tmp_path / "quick.png").stat().st_size > 1000
    row = rows["flashrnn", "lax.scan naive f32", "train"]
    assert set(row["ms"]) == {"median", "q1", "q3", "min"}
    assert row["us_per_step"] == pytest.approx(1e3 * row["ms"]["median"] / QUICK[0].T)
    assert row["tokens_per_second"] == pytest.approx(
        1e3 * QUICK[0].B * QUICK[0].T / row["ms"]["median"]
    )
    flops = 3 * 16 * QUICK[0].T * QUICK[0].B * QUICK[0].H ** 2
    ceiling = result["ceilings"]["TF32 GFLOP/s"]
    assert row["share_of_matmul"] == pytest.approx(
        flops / row["ms"]["median"] / 1e6 / ceiling
    )
    assert row["times_as_fast_as_lax_scan"] == 1
    assert all(r["same_function"] for r in result["rows"])
    assert {"weight_gradient", "input_gradient"} == set(row["relative_difference"])
    reasons = {
        (item["config"], item["entry"]): item["reason"] for item in result["left_out"]
    }
    assert "not here" in reasons["flashrnn", "jaxrnn Fused f32"]
    assert "left out: jaxrnn Fused f32 (flashrnn): not here" in capsys.readouterr().out
    if jax.default_backend() == "cpu":
        assert "needs an NVIDIA GPU" in reasons["flashrnn", "jaxrnn CuDNN (TF32) f32"]
        assert (
            "torch's cuDNN is measured on GPUs"
            in reasons["flashrnn", "torch cuDNN bf16"]
        )

    assert run.main(["--render", str(tmp_path / "quick.json")]) == 0
    assert run.main(["--quick", "--configs", "linear-16k"]) == 0
    assert "nothing is written by --quick" in capsys.readouterr().out


def test_every_answer_is_held_against_the_reference(monkeypatch):
    """A wrong function, and NaN, are told."""
    config = Config("flashrnn", LSTM, 2, 5, 4)
    right = next(e for e in ENTRIES if e.key == "lax.scan naive f32")

    def wrong(config, dtype):
        forward, mapping = right.build(config, dtype)
        return lambda weights, xs: forward(weights, xs[::-1]), mapping

    def spoiled(config, dtype):
        forward, mapping = right.build(config, dtype)
        return lambda weights, xs: forward(weights, xs) * jnp.nan, mapping

    entries = [
        right,
        *(
            dataclasses.replace(right, name=f.__name__, build=f)
            for f in (wrong, spoiled)
        ),
    ]
    monkeypatch.setattr(workload, "ENTRIES", tuple(entries))
    result = measure.measure(config, 60, 1)
    same = {(r["entry"], r["mode"]): r["same_function"] for r in result["rows"]}
    assert same == {
        (e.key, mode): e is right for e in entries for mode in ("forward", "train")
    }


@pytest.mark.parametrize("seconds", [0.0, 1e-3])
def test_what_time_was_too_short_for_is_listed(seconds, few):
    result = measure.measure(QUICK[1], seconds, 1)
    entries = workload.entries_of(QUICK[1])
    listed = {
        (item["entry"], item["mode"])
        for item in result["left_out"]
        if measure.OVER in item["reason"]
    }
    assert result["rows"] == []
    assert {name for name, _ in listed} == {entry.key for entry in entries}


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_torch_computes_the_same_on_the_same_arrays(dtype):
    """Its programs, on whatever device there is: handed over and back without the
    host, gradients in our layout.
    """
    torch = pytest.importorskip("torch")
    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        pytest.skip("torch as installed has no CUDA")
    config, data = Config("x", LSTM, 3, 7, 8), workload.draw(Config("x", LSTM, 3, 7, 8))
    expected = measure.reference(config, data)
    entry = next(e for e in ENTRIES if e.runner == "torch" and e.dtype == dtype)
    for mode, program in torch_peer.programs(config, entry, data.cast(dtype)).items():
        found = measure.parts_of(entry, mode, None, data, program.run())
        for name, value in found.items():
            assert measure.difference(value, expected[name]) < (
                1e-5 if dtype == F32 else 3e-2
            ), (mode, name)
    torch_peer.free()


def test_what_dies_is_left_out_and_the_rest_is_measured_again():
    calls = []

    def start(config, seconds, rounds, without, quick):
        calls.append(without)
        if len(calls) == 1:
            return {
                "at": "jaxrnn Fused bf16: the first run, train",
                "failed": "the process ended with status -11: no message",
            }
        return {
            "config": config._asdict(),
            "rows": ["measured"],
            "left_out": [{"entry": "flax f32"}],
        }

    found = run.run_config(CONFIGS[0], 100, 3, False, start)
    assert calls == [(), ("jaxrnn Fused bf16",)]
    assert found["rows"] == ["measured"]
    assert [item["entry"] for item in found["left_out"]] == [
        "jaxrnn Fused bf16",
        "flax f32",
    ]
    assert "status -11" in found["left_out"][0]["reason"]
    assert "first run, train" in found["left_out"][0]["reason"]

    found = run.run_config(
        CONFIGS[0], 100, 3, False, lambda *_: {"at": "the reference", "failed": "hung"}
    )
    assert found["left_out"] == [
        {
            "config": "flashrnn",
            "entry": "all",
            "mode": None,
            "reason": "hung, at 'the reference'",
        },
    ]
    lost = iter(range(9))
    found = run.run_config(
        CONFIGS[0],
        100,
        3,
        False,
        lambda *_: {"at": f"entry {next(lost)}: timing", "failed": "hung"},
    )
    assert [item["entry"] for item in found["left_out"]] == [
        "entry 0",
        "entry 1",
        "entry 2",
        "all",
    ]


def test_a_lost_accelerator_ends_the_process(monkeypatch):
    monkeypatch.setattr(measure.jnp, "arange", lambda *_: 1 / 0)
    with pytest.raises(measure.DeviceLostError, match="RuntimeError: out of bounds"):
        measure.check_alive(RuntimeError("out of bounds\nmore"))


def test_each_result_is_written_as_soon_as_it_is_there_and_time_runs_out(
    monkeypatch, tmp_path
):
    seen = []

    def measured(config, seconds, rounds, quick):
        seen.append(
            (
                config.name,
                len(json.loads(path.read_text(encoding="utf-8"))["rows"])
                if path.exists()
                else None,
            )
        )
        clock[0] += 300
        where = {
            "backend": "gpu",
            "device_kind": "X",
            "cores": 1,
            "versions": {"jax": "0"},
        }
        return {
            "rows": [example(config.name)],
            "left_out": [],
            "machine": where,
            "ceilings": {"copy GB/s": 5.0, "TF32 GFLOP/s": 8.0},
        }

    clock, path = [0.0], tmp_path / "a.json"
    monkeypatch.setattr(run.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(run, "run_config", measured)
    assert run.main(["--seconds", "540", "--out", str(tmp_path / "a")]) == 0
    assert seen == [("flashrnn", None), ("e16", 1)]
    result = json.loads(path.read_text(encoding="utf-8"))
    assert [item["config"] for item in result["left_out"]] == [
        c.name for c in CONFIGS[2:]
    ]
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    assert (
        "left out: all (e2048): not measured: the 540 seconds given were over" in text
    )
    for words in (
        "*FlashRNN fused (quoted)*",
        "*4.87*",
        "*13.6*",
        "*torch nn.LSTM (cuDNN) (quoted)*",
        "*2.01*",
        "*5.19*",
    ):
        assert words in text
    assert (
        result["rows"][0]["share_of_matmul"],
        result["rows"][0]["share_of_copy"],
    ) == (0.125, 0.2)
    assert "*2.82*" in text  # beside a configuration that was not measured
    assert {q["ms"] for q in result["quoted"]} == {4.87, 13.61, 2.01, 5.19, 2.82, 11.3}
    assert path.with_suffix(".png").stat().st_size > 1000


def example(config):
    ms = dict.fromkeys(("median", "q1", "q3", "min"), 2.0)
    row = {
        "config": config,
        "entry": "jaxrnn Scan f32",
        "dtype": F32,
        "mode": "forward",
        "rounds": 1,
        "ms": ms,
    }
    row |= dict.fromkeys(
        (
            "us_per_step",
            "tokens_per_second",
            "gflops",
            "gigabytes_per_second",
            "compile_seconds",
        ),
        1.0,
    )
    return row | {
        "ceiling": "TF32 GFLOP/s",
        "times_as_fast_as_lax_scan": None,
        "temporary_bytes": None,
        "relative_difference": {"outputs": 0.0},
        "same_function": True,
    }


def test_results_are_named_after_the_machine():
    args = run.parse([])
    where = {"machine": {"backend": "gpu", "versions": {"jax": "0.11.2"}}}
    assert run.path_of(args, where) == report.RESULTS / "accelerator_gpu_jax0.11.2.json"
    assert run.path_of(args, {"machine": None}) is None
    assert run.path_of(run.parse(["--quick"]), where) is None


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there is an accelerator")
def test_without_an_accelerator_it_says_so(capsys):
    """By the process that it starts."""
    with pytest.raises(SystemExit) as stop:
        run.main(["--configs", "e16"])
    assert stop.value.code == 2
    assert "there is no accelerator here" in capsys.readouterr().err
    found = run.in_process(Config("nothing", LSTM, 1, 1, 1), 30, 1, (), False)
    assert found["at"] == "the start"
    assert "the process ended with status" in found["failed"]


def test_bad_arguments(tmp_path, capsys):
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    for args, words in (
        (["--configs", "nothing"], "there are flashrnn, e16"),
        (["--quick", "--configs", "e16"], "--quick has flashrnn, linear-16k only"),
        (["--render", str(tmp_path / "other.json")], "not a result of this program"),
        (["--seconds", "0"], "'0'"),
    ):
        with pytest.raises(SystemExit) as stop:
            run.main(args)
        assert stop.value.code == 2
        assert words in capsys.readouterr().err


def test_work_and_bytes_are_the_textbook_counts():
    B, T, H = 3, 5, 7
    lstm, linear = Config("x", LSTM, B, T, H), Config("x", LINEAR, B, T, H)
    assert lstm.flops("train") == 3 * lstm.flops("forward") == 3 * 16 * T * B * H * H
    assert linear.flops("train") == 0
    weights = 8 * H * H + 4 * H
    assert lstm.bytes("forward", F32) == 4 * (2 * T * B * H + weights)
    assert lstm.bytes("train", BF16) == 2 * (4 * T * B * H + 2 * weights)
    assert linear.bytes("forward", F32) == 4 * 3 * T * B * H
    assert linear.bytes("train", F32) == 4 * 6 * T * B * H
