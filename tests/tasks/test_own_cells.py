"""A cell of one's own in the programs: by import path or as an object, killed and
resumed, and never imported because a run directory says so.
"""

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import tasks
from jaxrnn.cli import main
from jaxrnn.tasks.models.cell_registry import make_cell
from jaxrnn.tasks.models.own_cell import parse_own_cell
from jaxrnn.tasks.models.stored_cell import restored_cell
from jaxrnn.training import InputError
from jaxrnn.training.checkpoints import Checkpoints

pytestmark = pytest.mark.usefixtures("optax_promotion")

MINE = """
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import jaxrnn

pathlib.Path("{name}.imported").touch()


@dataclasses.dataclass(frozen=True)
class Mine(jaxrnn.Cell):
    hidden_size: int
    leak: float = 0.1

    def init(self, key, input_size):
        keys, H = jax.random.split(key), self.hidden_size
        return {{
            "kernel": jax.random.normal(keys[0], (input_size, H)),
            "recurrent_kernel": jax.random.normal(keys[1], (H, H)) / H,
        }}

    def project(self, params, x):
        return x @ params["kernel"]

    def step(self, params, h, z):
        new = jnp.tanh(z + h @ params["recurrent_kernel"])
        return (1 - self.leak) * h + self.leak * new


def two_layers(hidden_size, leak):
    return jaxrnn.stack(Mine(hidden_size, leak), Mine(hidden_size))


CELL = Mine(5)
LAYER = jaxrnn.stack(CELL, jaxrnn.dropout(0.5))
NUMBER = 4
"""


@pytest.fixture
def mine(tmp_path, monkeypatch, request):
    """The name of a module in the current folder, and of no other test."""
    name = f"mine_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{name}.py").write_text(MINE.format(name=name))
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield name
    sys.path[:] = path
    sys.modules.pop(name, None)


def imported(name):
    """Whether the module was imported since this was last asked."""
    touched = pathlib.Path(f"{name}.imported")
    was = touched.exists()
    touched.unlink(missing_ok=True)
    sys.modules.pop(name, None)
    return was


QUICK = ["--hidden", "6", "--batch", "4", "--report-every", "2", "--evaluate-every"]
FEW = [*QUICK, "4", "--steps", "8", "--checkpoint-seconds", "0"]


def test_by_import_path(mine):
    cell = make_cell(f"{mine}:Mine", 7, 10)
    module = sys.modules[mine]
    assert cell == module.Mine(7)
    assert make_cell(f"{mine}:Mine(3)", 7, 10) == module.Mine(3)
    assert make_cell(f"{mine}:Mine(leak=0.25)", 7, 10) == module.Mine(7, 0.25)
    assert make_cell(f"{mine}:Mine(hidden_size=2, leak=1)", 7, 10) == module.Mine(2, 1)
    assert make_cell(f"{mine}:two_layers(leak=0.5)", 7, 10) == jaxrnn.stack(
        module.Mine(7, 0.5), module.Mine(7)
    )
    assert make_cell(f"{mine}:CELL", 7, 10) is module.CELL
    assert make_cell("jaxrnn:LSTM(forget_bias=2.0)", 7, 10) == jaxrnn.LSTM(
        7, forget_bias=2.0
    )
    assert make_cell(module.CELL, 7, 10) is module.CELL


def test_arguments_are_literals():
    own = parse_own_cell("--cell", "a.b:C(1, (2, -0.5), name='x', flag=None)")
    assert own == ("a.b:C", (1, (2, -0.5)), {"name": "x", "flag": None}, True)
    for spec in ("lstm", "a:", "a:1", "a b:C", "a:C.d", "a:C(1)(2)", "a:b+c", "a:C("):
        assert parse_own_cell("--cell", spec) is None
    for call in ("C(open('x'))", "C(x)", "C(**{'a': 1})", "C(*(1,))", "C(1 + 1)"):
        with pytest.raises(InputError, match="arguments are Python literals"):
            parse_own_cell("--cell", f"a:{call}")


WRONG = {
    "nowhere_at_all:Mine": "there is no module 'nowhere_at_all', neither in the",
    "jaxrnn.cells.nowhere:Mine": "there is no module 'jaxrnn.cells.nowhere'",
    "{mine}:Mien": "has no 'Mien' .*did you mean {mine}:Mine",
    "{mine}:NUMBER": "expected a jaxrnn.Cell or a layer, but got an int",
    "{mine}:CELL()": "leave \\(\\) out",
    "{mine}:LAYER": "draws random numbers",
    "{mine}:Mine(1, 2, 3, 4)": "too many positional arguments",
    "{mine}:Mine(size=3)": "unexpected keyword argument 'size'",
    "jaxrnn:GRU(0)": "hidden_size must be",
    "broken_{mine}:Mine": "cannot be imported: ValueError: no luck",
    "needy_{mine}:Mine": "imports not_installed_anywhere, which is not installed",
    "{mine}": "there is no '{mine}'.* a cell of your own is module:Name",
    "minn": r"did you mean .*\? Or a cell of your own is module:Name or module:Name\(",
    "{mine}:Mine(3": r"parenthesis is not closed: write {mine}:Mine\(3\)$",
    "{mine}:Mine 3)": "one closing parenthesis too many",
    "{mine}:Mine(3)(4)": "this is not understood",
    "{mine}:": "there is no name after the colon: .* as in {mine}:Mine$",
    "{mine}.py:Mine": "without the .py of its file, {mine}:Mine$",
    "./sub/{mine}.py:Mine": "as Python imports it: sub.{mine}:Mine$",
    "lsmt:chrono": "did you mean lstm:chrono",
    "grru:2": "did you mean gru:2",
}


@pytest.mark.parametrize("spec", WRONG)
def test_what_cannot_be_imported_is_said(mine, tmp_path, spec):
    (tmp_path / f"broken_{mine}.py").write_text("raise ValueError('no luck')")
    (tmp_path / f"needy_{mine}.py").write_text("import not_installed_anywhere")
    with pytest.raises(InputError, match=WRONG[spec].format(mine=mine)) as error:
        make_cell(spec.format(mine=mine), 4, 10)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "how", ["by path", pytest.param("as an object", marks=pytest.mark.slow)]
)
def test_killed_and_resumed_a_run_ends_with_the_same_bytes(mine, tmp_path, how):
    """The same checkpoints and metrics as an undisturbed run has."""
    spec = f"{mine}:Mine(leak=0.3)"
    cell = spec if how == "by path" else make_cell(f"{mine}:Mine(6, 0.3)", 1, 1)
    options = {"cell": cell, "hidden": 6, "batch": 4, "length": 2, "symbols": 2}
    budget = {"report_every": 2, "evaluate_every": 2, "checkpoint_seconds": 0.0}
    budget["steps"] = 6

    def train(name, **more):
        return tasks.train("copy", options, budget, out=tmp_path / name, **more)

    train("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxrnn.training.Run.append", killed_after(5))
        with pytest.raises(Killed):
            train("killed")
    assert not (tmp_path / "killed/result.json").exists()
    train("killed", resume=True)
    for name in ("metrics.jsonl", "config.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (
            tmp_path / "alone" / name
        ).read_bytes()
    a, b = (tasks.load(tmp_path / n, cell=cell)[0].params for n in ("alone", "killed"))
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def saved_steps(run):
    """The steps of the checkpoints that are whole: others have longer names."""
    folder = run / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def files_of(folder):
    """The bytes of all files, by their paths."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
def test_a_process_that_is_killed_ends_with_the_same_bytes(mine, tmp_path):
    """``jaxrnn train copy --cell mine:Mine --quick`` from a file in the current folder,
    ended by SIGKILL after a checkpoint, and resumed.

    The metrics and the configuration are equal byte for byte, and so are all arrays of
    the newest checkpoint, which hold the parameters, the state of the optimizer and the
    random key; of its files, the list of the arrays and the file that holds them. The
    others hold a clock, a path or random names (see `of_the_clock`), and so do
    ``timing.jsonl`` and, in ``result.json``, the seconds and the throughput.
    """
    cell = ["--cell", f"{mine}:Mine"]
    command = [sys.executable, "-m", "jaxrnn", "train", "copy", *cell]
    few = ["--quick", *QUICK, "4", "--steps", "60", "--checkpoint-seconds", "0"]
    how = {"capture_output": True, "text": True, "timeout": 200}
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    last = subprocess.run([*command, *few, "--out", alone], **how)
    assert last.returncode == 0, last.stderr
    process = subprocess.Popen(
        [*command, *few, "--out", killed], stdout=subprocess.DEVNULL
    )
    while len(saved_steps(killed)) < 2:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "result.json").exists()
    last = subprocess.run([*command, "--out", killed, "--resume"], **how)
    assert last.returncode == 0, last.stderr
    assert "resumed at step" in last.stdout
    for name in ("metrics.jsonl", "config.json"):
        assert (killed / name).read_bytes() == (alone / name).read_bytes()
    newest = saved_steps(alone)[-1]
    assert saved_steps(killed)[-1] == newest == 60
    (_, arrays, meta, _), (_, others, other_meta, _) = (
        Checkpoints(run / "checkpoints")._newest(set_aside=False)
        for run in (alone, killed)
    )
    assert meta["checksum"] == other_meta["checksum"]
    assert set(meta) == set(other_meta) == {"checksum", "seconds", "tokens", "busy"}
    assert arrays.keys() == others.keys()
    assert any("recurrent_kernel" in name for name in arrays)
    for name, array in arrays.items():
        assert (array.dtype, array.shape) == (others[name].dtype, others[name].shape)
        assert array.tobytes() == others[name].tobytes()
    raw, other_raw = (
        files_of(run / "checkpoints" / str(newest)) for run in (alone, killed)
    )
    assert raw["state/_METADATA"] == other_raw["state/_METADATA"]
    assert data_of(raw) == data_of(other_raw)
    compared = {"state/_METADATA", *(n for n in raw if n.startswith("state/d/"))}
    assert {name for name in raw if not of_the_clock(name)} == compared
    ends = [json.loads((run / "result.json").read_text()) for run in (alone, killed)]
    different = {key for key in ends[0] if ends[0][key] != ends[1][key]}
    assert different <= {"seconds", "targets_per_second"}


def data_of(files):
    """The contents of the data files of a checkpoint, whose names are random."""
    return sorted(data for name, data in files.items() if name.startswith("state/d/"))


def of_the_clock(name):
    """Whether a file of a checkpoint holds the time, a path, or random names: the
    metadata of orbax and of the run, marks of success, and the manifests and pieces
    that its threads wrote.
    """
    return name.endswith(
        ("_CHECKPOINT_METADATA", "meta/metadata", "commit_success.txt", ".ocdbt")
    ) or name.startswith("state/ocdbt.process_0/")


class Killed(BaseException):
    """Not an exception: nothing is saved after it."""


def killed_after(records):
    append, left = jaxrnn.training.Run.append, iter(range(records))

    def killing(run, file, record):
        if next(left, None) is None:
            raise Killed
        append(run, file, record)

    return killing


def test_the_command_line_trains_and_opens_it_when_named(mine, tmp_path, capsys):
    words = ["train", "copy", "--cell", f"{mine}:Mine", "--quick", *FEW]
    assert main([*words, "--out", "run"]) == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["options"][
        "cell"
    ] == (f"{mine}:Mine")
    assert imported(mine)
    predict, evaluate = ["predict", "run", "012"], ["evaluate", "run", "--length", "3"]
    resume = ["train", "copy", "--out", "run", "--resume"]
    gradients = ["gradients", "--run", "run", "--length", "5", "--batch", "2"]
    for opened in (predict, evaluate, ["sample", "run"], resume, gradients):
        capsys.readouterr()
        assert main(opened) == 2
        error = capsys.readouterr().err
        assert f"names code outside jaxrnn, {mine}:Mine" in error
        assert error.count("\n") == 1
        assert not imported(mine)
    named = ["--cell", f"{mine}:Mine"]
    for opened in (
        [*predict, *named],
        [*evaluate, "--trust-code"],
        [*resume, *named],
        [*gradients, *named],
    ):
        assert main(opened) == 0
        assert imported(mine)
    assert main([*predict, "--cell", "mine:Other"]) == 2
    assert f"but the one named is mine:Other: name {mine}:Mine" in (
        capsys.readouterr().err
    )
    assert not imported(mine)


def planted(tmp_path, cell):
    """A run directory from elsewhere, which names code as its cell."""
    run = tmp_path / "planted"
    run.mkdir()
    options = {"cell": cell, "hidden": 4}
    config = {"format": "jaxrnn run 1", "task": "copy", "options": options}
    (run / "config.json").write_text(json.dumps(config | {"budget": {"steps": 1}}))
    (run / "checkpoints").mkdir()
    return run


PLANTED = {
    "a path": "{mine}:Mine",
    "a call": "{mine}:Mine(3)",
    "a function of jaxrnn": "jaxrnn.core.import_path:find('{mine}:Mine', True)",
    "a class": {"class": "{mine}:Mine", "hidden_size": 4},
    "a layer's part": {
        "class": "jaxrnn.layers:Stack",
        "layers": [{"class": "{mine}:Mine", "hidden_size": 4}],
    },
    "an activation": {
        "class": "jaxrnn:Elman",
        "hidden_size": 4,
        "activation": {"function": "{mine}:two_layers"},
    },
    "inside a partial": {
        "class": "jaxrnn:Elman",
        "hidden_size": 4,
        "activation": {
            "partial": {"function": "{mine}:CELL"},
            "args": [],
            "keywords": {},
        },
    },
    "an enum": {"class": "jaxrnn:Elman", "hidden_size": {"enum": "{mine}:Mine"}},
}


def filled(config, name):
    return json.loads(json.dumps(config).replace("{mine}", name))


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_module_is_not_imported(mine, tmp_path, what):
    run = planted(tmp_path, filled(PLANTED[what], mine))
    for opened in (
        lambda: tasks.load(run),
        lambda: tasks.train("copy", out=run, resume=True),
        lambda: tasks.load(run, cell="mine:Mine"),
        lambda: tasks.load(run, cell=jaxrnn.LSTM(4)),
    ):
        with pytest.raises(InputError):
            opened()
    assert not imported(mine)


@pytest.mark.parametrize(
    "path",
    [
        "os:system",
        "jaxrnn.__main__:main",
        "jaxrnn.cli:main",
        "jaxrnn.training.run:shutil",
        "jaxrnn.core.import_path:find",
        "jax.numpy:save",
        "jax.numpy:load",
        "builtins:exec",
    ],
)
def test_a_configuration_calls_nothing_but_cells_and_functions_of_jax(path):
    for config in (
        {"class": path, "hidden_size": 4},
        {"class": "jaxrnn:Elman", "hidden_size": 4, "activation": {"function": path}},
    ):
        with pytest.raises(ValueError, match=r"code outside|no class of jaxrnn"):
            jaxrnn.from_config(config)


def test_a_stored_call_calls_nothing_but_cells_of_jaxrnn():
    def open_run(stored):
        return restored_cell("run/config.json", stored, None, False)

    for path in ("jaxrnn.tasks:train", "jaxrnn.core.import_path:held", "jax.lax:full"):
        with pytest.raises(InputError, match=f"{path}, which is not run unasked"):
            open_run(f"{path}('a', 'b')")
    assert open_run("jaxrnn.cells:LSTM(4)") == "jaxrnn.cells:LSTM(4)"
    assert open_run("jaxrnn:GRU") == "jaxrnn:GRU"


@dataclasses.dataclass(frozen=True)
class Local(jaxrnn.Cell):
    """Defined in this test's module, which others cannot name."""

    hidden_size: int

    def init(self, key, input_size):
        return {"kernel": jax.random.normal(key, (input_size, self.hidden_size))}

    def step(self, params, h, z):
        return jnp.tanh(0.5 * h + z @ params["kernel"])


def test_a_cell_as_an_object(tmp_path):
    cell = Local(5)
    options = {"cell": cell, "batch": 4, "length": 2, "symbols": 2}
    budget = {"steps": 2, "report_every": 2, "evaluate_every": 2}
    tasks.train("copy", options, budget, out=tmp_path / "run")
    stored = json.loads((tmp_path / "run/config.json").read_text())["options"]
    assert stored["cell"] == cell.to_config()
    assert stored["hidden"] == 5  # the cell's, as none was given
    with pytest.raises(InputError, match=f"code outside jaxrnn, {__name__}:Local"):
        tasks.load(tmp_path / "run")
    for named in ({"cell": cell}, {"trust_code": True}, {"cell": f"{__name__}:Local"}):
        trained, _ = tasks.load(tmp_path / "run", **named)
        assert trained.model.layer == cell
        assert trained.params["rnn"]["kernel"].shape[-1] == 5
    with pytest.raises(InputError, match="was written for another cell"):
        tasks.load(tmp_path / "run", cell=Local(4))


@pytest.mark.slow
def test_gradients_of_it(mine, tmp_path):
    words = ["gradients", "--cell", f"{mine}:Mine", "gru", "--hidden", "4"]
    sizes = ["--length", "6", "--batch", "2", "--seeds", "1", "--out", "out"]
    assert main([*words, *sizes]) == 0
    found = json.loads((tmp_path / "out/gradients.json").read_text())
    assert list(found["models"]) == [f"{mine}:Mine", "gru"]


def test_a_name_that_nobody_can_import_is_refused_before_training(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Inside(Local):
        pass

    with pytest.raises(InputError, match="Define it at the top level of a module"):
        tasks.train("copy", {"cell": Inside(3)}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_modules_are_not_hidden_by_the_current_folder(mine, tmp_path):
    """The current folder is first only while the module is imported."""
    (tmp_path / "colorsys.py").write_text("raise ValueError('shadowed')")
    make_cell(f"{mine}:Mine", 4, 10)
    assert sys.path[-1] == str(tmp_path)
    import colorsys

    assert colorsys.__file__ != str(tmp_path / "colorsys.py")
