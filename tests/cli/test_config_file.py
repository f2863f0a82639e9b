"""``jaxrnn train TASK --config FILE``, and completion in shells."""

import json
import pathlib
import shutil
import subprocess

import pytest

from jaxrnn.cli import main
from jaxrnn.cli.parser import COMMANDS, flags, parse
from jaxrnn.tasks.runner import RENAMED_OPTIONS, TASKS
from jaxrnn.training import InputError


def parsed(folder, text, *words, task="charlm", name="c.toml"):
    """The arguments of a command with a file of flags."""
    (folder / name).write_text(text, encoding="utf-8")
    return parse(["train", task, "--config", str(folder / name), *words])


def test_flags_of_a_file(tmp_path):
    text = 'hidden = 12\nlearning-rate = 0.5\ndata = ["a.txt", "b.txt"]\nsteps = 3\n'
    found = parsed(tmp_path, text)
    assert (found.hidden, found.learning_rate, found.steps) == (12, 0.5, 3)
    assert found.data == ["a.txt", "b.txt"]
    as_json = json.dumps({"hidden": 12, "cell": "gru", "out": None})
    found = parsed(tmp_path, as_json, name="c.json")
    assert (found.hidden, found.cell, found.out) == (12, "gru", None)


def test_the_command_line_comes_first(tmp_path):
    text = 'hidden = 12\ndata = ["a.txt"]\nsteps = 3\nout = "runs/a"\nquick = true\n'
    words = ["--hidden", "7", "--data", "b.txt", "--seconds", "5", "--out", "runs/b"]
    found = parsed(tmp_path, text, *words)
    assert (found.hidden, found.data, found.out) == (7, ["b.txt"], "runs/b")
    assert found.quick
    assert "steps" not in found  # seconds replace them
    assert found.seconds == 5


def test_a_flag_that_is_switched_off_comes_first(tmp_path):
    assert parsed(tmp_path, "gradients = true", task="parity").gradients
    assert not parsed(tmp_path, "gradients = false", task="parity").gradients
    words = parsed(tmp_path, "gradients = true", "--no-gradients", task="parity")
    assert not words.gradients


RUNS = sorted(
    (pathlib.Path(__file__).parents[1] / "frozen/data/runs").glob("*/config.json")
)


@pytest.mark.parametrize("run", RUNS, ids=[run.parent.name for run in RUNS])
def test_the_configuration_of_a_run_gives_its_flags(run):
    config = json.loads(run.read_text(encoding="utf-8"))
    wanted = {**config["options"], **config["budget"]}
    words = ["train", config["task"], "--config", str(run)]
    if isinstance(wanted.get("cell"), dict):
        with pytest.raises(InputError, match="name it, --cell"):
            parse(words)
        return
    found = vars(parse(words))
    for name, value in wanted.items():
        if value not in (None, []):
            assert found[RENAMED_OPTIONS.get(name, name)] == value


def test_numbers_that_are_zero_come_first(tmp_path):
    assert parsed(tmp_path, "seed = 3", "--seed", "0").seed == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hiden = 3", r"c\.toml: there is no option 'hiden'; did you mean hidden\?"),
        ("resume = true", r"c\.toml: there is no option 'resume'"),
        ("xyzzy = 1", "see jaxrnn train charlm --help"),
        ('hidden = "many"', r"c\.toml: argument --hidden: invalid int value: 'many'"),
        ("hidden = [1, 2]", r"c\.toml: hidden must be one value"),
        ("hidden = true", r"hidden must be a value, but it is true"),
        ("quick = 3", r"quick must be true or false, but it is 3"),
        ("cell = {class = 'mine:Mine'}", "is an object of code: name it, --cell"),
        ('task = "hello"', r"is for the task hello, not for charlm"),
        ("hidden: 3", r"c\.toml: this is no TOML"),
    ],
)
def test_what_a_file_may_not_say(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        parsed(tmp_path, text)


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        parse(["train", "charlm", "--config", str(tmp_path / "none.toml")])
    with pytest.raises(InputError, match=r"no JSON; TOML ends in \.toml"):
        parsed(tmp_path, "hidden = 3", name="c.txt")
    with pytest.raises(InputError, match="expected names with values"):
        parsed(tmp_path, "[1]", name="c.json")


def completed(script, *words):
    """What bash offers for the last word."""
    line = " ".join(f"'{word}'" for word in words)
    code = f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _jaxrnn"
    code += '\nprintf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert completed(script, "jaxrnn", "") == list(COMMANDS)
    assert completed(script, "jaxrnn", "tra") == ["train"]
    assert completed(script, "jaxrnn", "train", "") == list(TASKS)
    assert completed(script, "jaxrnn", "train", "charlm", "--hid") == ["--hidden"]
    assert "--gradients" in completed(script, "jaxrnn", "train", "parity", "--g")
    assert completed(script, "jaxrnn", "train", "hello", "--gradients") == []
    assert completed(script, "jaxrnn", "sample", "RUN", "--pro") == ["--prompt"]
    assert completed(script, "jaxrnn", "sample", "run") == []


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_know_the_same(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for name, known in flags().items():
        assert all(word in script for word in name.split())
        assert all(flag.removeprefix("--") in script for flag in known)
    if shutil.which(shell):
        options = ["-n"] if shell == "zsh" else ["--no-execute"]
        subprocess.run([shell, *options], input=script, text=True, check=True)
