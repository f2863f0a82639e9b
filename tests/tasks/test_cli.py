"""The command line: every command once for real, and one line on standard error for
every mistake.
"""

import io
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import training
from jaxrnn.cli import main
from jaxrnn.tasks import charlm, load

pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each task, trained by the command line."""
    import jax

    jax.devices()  # or the command line would show this process every core as a device
    folder = tmp_path_factory.mktemp("runs")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert (
            main(["train", "hello", "--out", str(folder / "hello"), "--steps", "150"])
            == 0
        )
        flags = {"hidden": 32, "batch": 16, "tbptt": 32, "steps": 60}
        flags |= {"report-every": 10, "evaluate-every": 30, "checkpoint-seconds": 0}
        words = [word for name, n in flags.items() for word in (f"--{name}", str(n))]
        assert main(["train", "charlm", *words, "--out", str(folder / "charlm")]) == 0
    return folder


def test_training_leaves_a_run_directory(runs):
    for task, pictures in {
        "hello": ["curves.png", "distribution.png"],
        "charlm": ["curves.png"],
    }.items():
        files = {p.name for p in (runs / task).iterdir()}
        assert files == {
            "config.json",
            "metrics.jsonl",
            "timing.jsonl",
            "result.json",
            "checkpoints",
            "report.html",
            "README.md",
            *pictures,
        }
        assert json.loads((runs / task / "config.json").read_text())["task"] == task
        assert (
            json.loads((runs / task / "result.json").read_text())["tokens_per_second"]
            > 0
        )


def test_sample_streams_what_it_returns(runs, capsys):
    trained, _ = load(runs / "charlm")
    asked = ("The ", 70, 0.9, 5, 3)
    pieces = list(trained.stream(*asked))
    assert [len(piece) for piece in pieces] == [4, 32, 32, 6]
    assert "".join(pieces) == trained.sample(*asked)
    # a longer text begins as a shorter one
    assert trained.sample("The ", 40, 0.9, 5, 3) == trained.sample(*asked)[:44]
    # the carry goes on from piece to piece: as by one generation
    greedy = trained.sample("The ", 70, 0.0, None, 0)
    numbers = trained.vocabulary.encode("The ")
    whole = charlm._generate(
        trained.functions,
        trained.params,
        jnp.asarray(numbers),
        70,
        0.0,
        None,
        None,
        None,
    ).tokens
    assert greedy == "The " + trained.vocabulary.decode(np.asarray(whole))


def test_sample(runs, capsys):
    assert main(["sample", str(runs / "hello")]) == 0
    assert capsys.readouterr().out == "hello\n"
    words = ["sample", str(runs / "charlm"), "--prompt", "The ", "--length", "50"]
    outputs = []
    for extra in ([], [], ["--seed", "1"], ["--temperature", "0"], ["--top-k", "1"]):
        assert main([*words, *extra]) == 0
        outputs.append(capsys.readouterr().out)
    assert all(out.startswith("The ") and len(out) == 4 + 50 + 1 for out in outputs)
    assert outputs[0] == outputs[1] != outputs[2]
    assert outputs[3] == outputs[4]


def test_characters_that_training_never_showed_are_named(runs, capsys):
    words = ["sample", str(runs / "charlm"), "--length", "3", "--prompt"]
    assert main([*words, "日本 日"]) == 0
    err = capsys.readouterr().err
    assert err == ("jaxrnn: not in the training text, so read as unknown: '日' '本'\n")
    assert main([*words, "The "]) == 0
    assert not capsys.readouterr().err


@pytest.mark.parametrize("task", ["sentiment", "tagging", "series"])
def test_a_missing_package_is_named_before_the_training(
    tmp_path, capsys, monkeypatch, task
):
    for name in ("sklearn", "sklearn.metrics"):
        monkeypatch.setitem(sys.modules, name, None)
    data, out = tmp_path / "data.csv", tmp_path / "run"
    data.write_text("series,label,x\na,p,1\nb,q,2\nc,p,3\nd,q,4\n" * (task == "series"))
    words = ["train", task, "--data", str(data), "--out", str(out)]
    jax.devices()  # or a command would show this process every core as a device
    assert main(words) == 2
    out_text, err = capsys.readouterr()
    assert err == ("jaxrnn: the scores need scikit-learn: pip install 'jaxrnn[cli]'\n")
    assert not out_text
    assert not out.exists()


def test_what_predict_cannot_score_is_said(runs, capsys):
    assert main(["predict", str(runs / "charlm"), "日", "The "]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "nan"
    assert float(out.splitlines()[1]) > 0
    first, second = err.splitlines()
    assert first == "jaxrnn: not in the training text, so read as unknown: '日'"
    assert second.startswith("jaxrnn: '日' has no bits per character (nan)")


def test_predict(runs, capsys, monkeypatch):
    assert main(["predict", str(runs / "hello"), "hell", "he"]) == 0
    assert capsys.readouterr().out == "ello\nel\n"
    # a flag may stand anywhere
    words = ["predict", str(runs / "hello"), "hell", "--trust-code", "he"]
    assert main(words) == 0
    assert capsys.readouterr().out == "ello\nel\n"
    monkeypatch.setattr(
        "sys.stdin", io.StringIO("\ufeffthe function returns\n\nzqxj kvwq zzzz\n")
    )
    assert main(["predict", str(runs / "charlm")]) == 0
    likely, none, unlikely = map(float, capsys.readouterr().out.split())
    assert likely < unlikely
    assert none != none


def test_evaluate(runs, capsys, tmp_path):
    (tmp_path / "other.txt").write_text(
        "The following is a list of names \N{SNOWMAN}. " * 30, encoding="utf-8"
    )
    assert (
        main(["evaluate", str(runs / "charlm"), "--data", str(tmp_path / "other.txt")])
        == 0
    )
    scores = json.loads(capsys.readouterr().out)
    assert 1 < scores["bits_per_char"] < 8
    assert scores["unknown_characters"] == 30


@pytest.mark.parametrize("name", ["charlm", "hello"])
def test_evaluate_without_flags_scores_what_was_held_out(runs, capsys, name):
    assert main(["evaluate", str(runs / name)]) == 0
    out, err = capsys.readouterr()
    scores, result = (
        json.loads(out),
        json.loads((runs / name / "result.json").read_text()),
    )
    assert scores == pytest.approx({name: result[name] for name in scores}, rel=1e-5)
    assert scores.keys() & {"bits_per_char", "loss"}
    assert err.startswith("jaxrnn: scoring what the run has held out; ")


def test_evaluate_without_flags_refuses_data_that_have_changed(runs, tmp_path, capsys):
    shutil.copytree(runs / "charlm", tmp_path / "run")
    file = tmp_path / "run/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"text": "another"}))
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert "was trained on other data than its --data has now (text" in (
        capsys.readouterr().err
    )


def test_a_finished_run_is_resumed_to_the_same_result(runs, capsys):
    before = {
        name: (runs / "charlm" / name).read_bytes()
        for name in ("metrics.jsonl", "config.json", "result.json", "report.html")
    }
    assert main(["train", "charlm", "--out", str(runs / "charlm"), "--resume"]) == 0
    out = capsys.readouterr().out
    assert "the run is finished" in out
    assert json.loads(out.splitlines()[-2]) == json.loads(before["result.json"])
    assert {name: (runs / "charlm" / name).read_bytes() for name in before} == before


def test_a_damaged_checkpoint_is_passed_over_and_resuming_says_so(
    runs, tmp_path, capsys
):
    folder = tmp_path / "run"
    shutil.copytree(runs / "charlm", folder)
    words = ["train", "charlm", "--out", str(folder), "--resume"]
    steps = sorted(int(p.name) for p in (folder / "checkpoints").iterdir())
    assert len(steps) >= 2
    for file in (folder / f"checkpoints/{steps[-1]}").rglob("*"):
        if file.is_file() and "/d/" in str(file):
            file.write_bytes(file.read_bytes()[::-1])
    note = f"checkpoint {steps[-1]} is damaged"
    assert main(["sample", str(folder), "--length", "5"]) == 0
    assert note in capsys.readouterr().err
    assert main(words) == 0
    out = capsys.readouterr().out
    assert note in out
    assert f"resumed at step {steps[-2]}" in out
    for name in ("metrics.jsonl", "config.json"):
        assert (folder / name).read_bytes() == (runs / "charlm" / name).read_bytes()


MISTAKES = {
    "evaluate never": (
        ["train", "charlm", "--report-every", "70", "--evaluate-every", "100"],
        "--evaluate-every must be a multiple of --report-every",
    ),
    "unknown task": (["train", "charml"], "there is no 'charml'; did you mean charlm?"),
    "unknown cell": (
        ["train", "charlm", "--cell", "lstn"],
        "there is no 'lstn'; did you mean lstm?",
    ),
    "unknown flag": (
        ["train", "charlm", "--hiden", "3"],
        "there is no flag --hiden; did you mean --hidden? (see jaxrnn train charlm",
    ),
    "unknown command": (["trian"], "there is no command 'trian'; did you mean train?"),
    "task without train": (["charlm"], "did you mean jaxrnn train charlm?"),
    "abbreviated flag": (
        ["train", "charlm", "--hid", "3"],
        "there is no flag --hid; did you mean --hidden?",
    ),
    "flag of another command": (
        ["predict", "{runs}/hello", "--temperature", "1"],
        "there is no flag --temperature (see jaxrnn predict --help)",
    ),
    "one word too many": (
        ["train", "hello", "world"],
        "there is no place for the argument 'world'",
    ),
    "temperature abc": (
        ["sample", "{runs}/charlm", "--temperature", "abc"],
        "argument --temperature: invalid float value: 'abc'",
    ),
    "no integer": (
        ["train", "charlm", "--hidden", "many"],
        "argument --hidden: invalid int value: 'many'",
    ),
    "window 0": (
        ["train", "charlm", "--tbptt", "0"],
        "--tbptt must be at least 1, but it is 0",
    ),
    "k2 < k1": (
        ["train", "charlm", "--k1", "64", "--k2", "32"],
        "--k2 32 is less than k1, which is 64",
    ),
    "dropout 1": (
        ["train", "charlm", "--dropout", "1"],
        "--dropout must be less than 1",
    ),
    "no budget": (["train", "charlm", "--steps", "0"], "--steps must be more than 0"),
    "missing data": (
        ["train", "charlm", "--data", "{tmp}/none.txt"],
        "none.txt cannot be read: No such file",
    ),
    "empty data": (
        ["train", "charlm", "--data", "{tmp}/empty.txt"],
        "empty.txt is empty",
    ),
    "latin-1 data": (
        ["train", "charlm", "--data", "{tmp}/latin.txt"],
        "latin.txt:2: byte 7 (0xe9) is not UTF-8",
    ),
    "twelve characters": (
        ["train", "charlm", "--data", "{tmp}/twelve.txt"],
        "the held-out text, its last 5 %, has 0 characters, at least 2 are needed, and "
        "at least 2,081 to train on with this --batch and --k1",
    ),
    "a picture as text": (
        ["train", "charlm", "--data", "{tmp}/picture.txt"],
        "picture.txt is a PNG image, and not text",
    ),
    "noise as text": (
        ["train", "charlm", "--data", "{tmp}/noise.txt"],
        "noise.txt is not text: many of its bytes are control characters",
    ),
    "a table without a header": (
        ["train", "sentiment", "--data", "{tmp}/bare.csv"],
        "write text,label as the first line, or, if these are names, add --columns "
        "'good film,pos'",
    ),
    "a mistyped task of gradients": (
        ["gradients", "--task", "sentimen"],
        "there is no 'sentimen'; did you mean sentiment?",
    ),
    "steps of what forecasts nothing": (
        ["predict", "{runs}/hello", "hell", "--steps", "3"],
        "is no run of series: leave it out",
    ),
    "a task that gradients cannot measure": (
        ["gradients", "--task", "sentiment"],
        "--task sentiment cannot be measured; these can: charlm, adding",
    ),
    "short data": (
        ["train", "charlm", "--data", "{tmp}/short.txt"],
        "too few for 32 streams with windows of 64",
    ),
    "run exists": (
        ["train", "hello", "--out", "{runs}/hello"],
        "already holds a run: continue it with --resume",
    ),
    "resume nothing": (
        ["train", "hello", "--out", "{tmp}/none", "--resume"],
        "is not a run directory: it does not exist",
    ),
    "resume another task": (
        ["train", "charlm", "--out", "{runs}/hello", "--resume"],
        "is a run of hello, not of charlm",
    ),
    "resume otherwise": (
        ["train", "charlm", "--out", "{runs}/charlm", "--resume", "--hidden", "7"],
        "was started with --hidden 32, not 7",
    ),
    "devices negative": (
        ["train", "charlm", "--devices", "-1"],
        "--devices must be at least 0, but it is -1",
    ),
    "devices too many": (
        ["train", "charlm", "--devices", "99", "--batch", "99"],
        "--devices 99, but there is only 1 device here",
    ),
    "devices of a run": (
        ["train", "charlm", "--out", "{runs}/charlm", "--resume", "--devices", "2"],
        "cannot be continued here: --devices 2, but there is only 1 device",
    ),
    "three texts": (
        ["train", "charlm", "--data", "a", "b", "--data", "c"],
        "but got 3",
    ),
    "task later": (
        ["train", "--steps", "5", "hello"],
        "the task must follow train",
    ),
    "another program's directory": (
        ["train", "hello", "--out", "{tmp}/other", "--overwrite"],
        "and not a run directory",
    ),
    "out cannot be": (
        ["train", "hello", "--out", "/dev/null/x"],
        "/dev/null/x cannot be written",
    ),
    "seed too large": (
        ["train", "hello", "--seed", "99999999999999999999"],
        "--seed must be less than",
    ),
    "patience negative": (
        ["train", "sentiment", "--patience", "-1"],
        "--patience must not be negative, but it is -1",
    ),
    "patience without a score": (
        ["train", "hello", "--patience", "2", "--out", "{tmp}/new"],
        "--patience is for tasks that",
    ),
    "hello top-k": (
        ["sample", "{runs}/hello", "--top-k", "10"],
        "--top-k 10 is more than the 4 letters",
    ),
    "not a run": (["sample", "{tmp}"], "is not a run directory: it has no config.json"),
    "damaged config": (["sample", "{tmp}/broken"], "config.json is damaged"),
    "no checkpoint": (["sample", "{tmp}/young"], "has no checkpoint yet"),
    "unknown letter": (
        ["predict", "{runs}/hello", "hallo"],
        "'a' is none of the letters this model knows: h, e, l, o",
    ),
    "nothing to evaluate": (
        ["evaluate", "{runs}/hello", "--data", "x"],
        "hello cannot be evaluated on other data",
    ),
    "negative temperature": (
        ["sample", "{runs}/charlm", "--temperature", "-1"],
        "must be a finite number of at least 0",
    ),
    "top-k too large": (
        ["sample", "{runs}/charlm", "--top-k", "999"],
        "--top-k 999 is more than the",
    ),
    "length 0": (["sample", "{runs}/charlm", "--length", "0"], "must be at least 1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(runs, tmp_path, capsys, name):
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "latin.txt").write_bytes(b"first\nr\xe9sum\xe9\n")
    (tmp_path / "short.txt").write_text("a short text " * 40)
    (tmp_path / "twelve.txt").write_text("twelve chars")
    (tmp_path / "picture.txt").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    (tmp_path / "noise.txt").write_bytes(bytes(range(1, 256)))
    (tmp_path / "bare.csv").write_text("good film,pos\nbad film,neg\n")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.json").write_text('{"task": ')
    (tmp_path / "young").mkdir()
    (tmp_path / "young/config.json").write_text(
        json.dumps({"format": "jaxrnn run 1", "task": "hello", "options": {}})
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text('{"model_type": "bert"}')
    words, message = MISTAKES[name]
    before = sorted(p for p in runs.rglob("*") if p.is_file())
    assert main([word.format(tmp=tmp_path, runs=runs) for word in words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert sorted(p for p in runs.rglob("*") if p.is_file()) == before


def test_what_is_refused_leaves_no_run(tmp_path, capsys):
    assert (
        main(["train", "hello", "--patience", "2", "--out", str(tmp_path / "new")]) == 2
    )
    assert not (tmp_path / "new").exists()


def test_a_run_is_recorded_for_the_readme(runs, tmp_path, monkeypatch):
    from benchmarks.harness import save_run

    monkeypatch.setattr(save_run, "RESULTS", tmp_path)
    save_run.record(training.Run.open(runs / "charlm"), "quick")
    kept = json.loads((tmp_path / "quick.json").read_text())
    assert kept["result"] == json.loads((runs / "charlm/result.json").read_text())
    assert [r["step"] for r in kept["held_out"]] == [30, 60]
    assert (tmp_path / "quick.png").exists()


def test_resuming_with_a_changed_text_is_refused(tmp_path, capsys):
    text = tmp_path / "a.txt"
    text.write_text("abcdefgh\n" * 300)
    options = charlm.Options(data=(str(text),), hidden=4, embed=4, tbptt=8, devices=1)
    _, more = charlm.prepare(options)
    config = {"options": vars(options), "budget": vars(charlm.BUDGET), **more}
    training.Run.create(tmp_path / "run", {"task": "charlm", **config})
    text.write_text("hgfedcba\n" * 300)
    assert main(["train", "charlm", "--resume", "--out", str(tmp_path / "run")]) == 2
    assert "was started with another text" in capsys.readouterr().err
