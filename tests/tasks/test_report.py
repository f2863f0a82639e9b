"""Reports, model cards and comparisons of runs.

The runs are copies of the small trained ones in tests/frozen; one is trained here.
"""

import html.parser
import json
import math
import pathlib
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn.cli import main
from jaxrnn.tasks import charlm, load, runner, train
from jaxrnn.tasks.data.vocabulary import pad
from jaxrnn.tasks.report import facts_of, page, units
from jaxrnn.tasks.report.card import card
from jaxrnn.tasks.report.decay import decay_of
from jaxrnn.tasks.report.readings import reading_of
from jaxrnn.tasks.run_comparison import compare_runs, comparison_table, draw_comparison
from jaxrnn.tasks.run_report import report
from jaxrnn.training import InputError, Run
from jaxrnn.unrolling import unroll

pytestmark = pytest.mark.usefixtures("optax_promotion")
ROOT = pathlib.Path(__file__).parents[2]
RUNS = ROOT / "tests/frozen/data/runs"
BAD = "<script>alert(1)</script>"


class Reader(html.parser.HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(self.words)


def copy_of(task, path, **options):
    """A copy of a small trained run, with other options in its file."""
    shutil.copytree(RUNS / task, path)
    file = path / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["options"].update(options)
    file.write_text(json.dumps(config), encoding="utf-8")
    return Run.open(path)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A report of a language model whose data, name and samples hold markup."""
    folder = tmp_path_factory.mktemp("runs")
    data = folder / "a&b<i>.txt"
    data.write_text(f"The {BAD} <b>cat</b>\n" * 60, encoding="utf-8")
    run = copy_of("charlm", folder / "run <b> & co", data=[str(data)])
    characters = run.config["vocabulary"]
    wanted = dict.fromkeys(f"The {BAD} <b>cat</b>\n")
    spare = [c for c in characters[1:] if c not in wanted]
    for new in [c for c in wanted if c not in characters]:
        characters = characters.replace(spare.pop(), new)
    file = run.path / "config.json"
    file.write_text(json.dumps({**run.config, "vocabulary": characters}))
    lines = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    lines.insert(
        1, json.dumps({"step": 10, "held_out_bits_per_char": 4.0, "sample": BAD})
    )
    (run.path / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        written, notes = report(run.path)
        trained, _ = load(run.path)
    assert notes == []
    return Run.open(run.path), trained, written.read_text(encoding="utf-8")


def test_everything_from_outside_is_escaped(hostile):
    run, _, page = hostile
    read = Reader(page)
    assert BAD not in page
    assert read.text.count(BAD) >= 1  # as text: the sample
    assert "a&b<i>.txt" in read.text
    assert "run <b> & co" in read.text  # in the next commands
    # one element of data, one script of ours
    assert [s.get("type") for s in read.of("script")] == ["application/json", None]
    assert {tag for tag, _ in read.elements}.isdisjoint({"b", "iframe", "object"})
    assert not [a for _, a in read.elements if any(n.startswith("on") for n in a)]
    markdown = (run.path / "README.md").read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)<", markdown.split("## Use")[0])


def test_a_report_is_one_file_that_loads_nothing(hostile):
    _, _, page = hostile
    read = Reader(page)
    assert not re.search(r"https?://", page)
    assert not read.of("link")
    assert not [s for s in read.of("script") if "src" in s]
    images = read.of("img")
    assert len(images) >= 2
    for image in images:
        assert image["src"].startswith("data:image/png;base64,iVBORw0KGgo")
        assert len(image["alt"]) > 20
    assert {"width=device-width, initial-scale=1"} <= {
        m.get("content") for m in read.of("meta")
    }
    assert "prefers-color-scheme: dark" in page


def test_it_has_its_sections(hostile):
    _, trained, page = hostile
    heads = re.findall(r"<h2>(.*?)</h2>", page)
    assert heads == [
        "Scores",
        "Learning curve",
        "Samples while it learned",
        "Inside: units over a text",
        "Gradients",
        "Options",
        "Next",
    ]
    text = Reader(page).text
    count = sum(leaf.size for leaf in jax.tree.leaves(trained.params))
    assert f"{count:,} parameters" in text
    for words in ("a character language model", "lower is better", "--learning-rate"):
        assert words in text


def test_units_and_surprise_are_those_of_single_steps(hostile):
    _, trained, page = hostile
    data = re.search(r'<script type="application/json".*?>(.*?)</script>', page)[1]
    shown = json.loads(data)
    symbols = shown["symbols"]
    assert BAD in "".join(symbols)
    numbers = trained.vocabulary.encode("".join(symbols))
    functions, params = trained.functions, trained.params
    carry, outputs, bits = functions.initial_carry(params, ()), [], [0.0]
    step = jax.jit(functions.step)
    for t, token in enumerate(numbers):
        carry, logits = step(params, carry, jnp.asarray(token))
        outputs.append(np.asarray(jax.tree.leaves(carry)[0]))
        if t + 1 < len(numbers):
            bits.append(
                -float(jax.nn.log_softmax(logits)[numbers[t + 1]]) / math.log(2)
            )
    views = {view["name"]: view for view in shown["views"]}
    gates = {name.rpartition("/")[2] for name in views if name.startswith("gate")}
    assert gates == {"i", "f", "g", "o"}
    for name, wanted in (("output", np.array(outputs)), ("surprise in bits", None)):
        view = views[name]
        values = np.array(view["values"]).T * view["scale"] / 100
        if wanted is None:
            wanted = np.array(bits)[:, None]
        else:
            wanted = wanted[:, [int(unit) for unit in view["units"]]]
        np.testing.assert_allclose(values, wanted, atol=0.0051 * view["scale"])


def test_the_units_that_change_most_and_most_slowly_are_chosen():
    time = np.arange(64.0)
    values = np.stack([0.1 * np.sin(time + i) for i in range(20)], 1)
    values[:, 7] = 2 * np.sign(np.sin(2 * time))  # it changes most
    values[:, 11] = np.sin(time / 30)  # slowly
    chosen = units.choose(values)
    assert {7, 11} <= set(chosen)
    assert len(chosen) == units.UNITS == len(set(chosen))
    assert units.choose(values[:, :3]) == [0, 1, 2]


READS = ["hello", "tagging", "sentiment", "parity", "adding"]


@pytest.mark.parametrize("task", READS)
def test_other_tasks_show_what_they_read(task, monkeypatch):
    monkeypatch.chdir(ROOT)
    run, (trained, _) = Run.open(RUNS / task), load(RUNS / task)
    reading = reading_of(run, trained)
    assert len(reading.symbols) == len(reading.xs)
    views = units.views(reading)
    assert views[0]["name"] == "output"
    assert {len(row) for view in views for row in view["values"]} == {
        len(reading.symbols)
    }
    if task == "tagging":  # what is looked into is what the model computes
        ys = unroll(reading.layer, reading.params, reading.xs)[1]
        model = trained.functions.still(trained.params)
        batch = pad([trained.vocabulary.encode(reading.symbols)], len(ys))
        np.testing.assert_allclose(
            model.readout(ys[:, 0]), model(batch)[0], rtol=1e-5, atol=1e-6
        )
    if task == "parity":
        assert set(reading.symbols) <= {"0", "1"}
        assert len(decay_of(trained)) == trained.problem.length + 1


def test_without_its_data_a_model_reads_its_own_sample(hostile):
    run, trained, _ = hostile
    gone = charlm.Trained(
        trained.functions,
        trained.params,
        charlm.Options(data=("gone.txt",)),
        trained.config,
    )
    reading = reading_of(run, gone)
    assert "newest sample" in reading.what
    samples = [r["sample"] for r in run.records("metrics.jsonl") if "sample" in r]
    known = trained.vocabulary
    read = known.decode(known.encode(samples[-1].replace("\u23ce", "\n")))
    assert "".join(reading.symbols) == read[:-1]


def test_code_that_a_run_names_is_not_run_unasked(tmp_path, monkeypatch, capsys):
    (tmp_path / "stranger.py").write_text(
        "import pathlib\npathlib.Path('ran').touch()\nfrom jaxrnn import LSTM as Cell\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    copy_of("hello", tmp_path / "run", cell="stranger:Cell")
    assert main(["report", "run"]) == 0
    out, err = capsys.readouterr()
    assert out == f"report: {pathlib.Path('run') / 'report.html'}\n"
    assert "the report is made without the model: " in err
    assert not (tmp_path / "ran").exists()
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "The parts that need the model are left out" in Reader(page).text
    assert "stranger:Cell" in Reader(page).text
    assert "Inside" not in page
    assert "<h2>Learning curve</h2>" in page
    main(["report", "run", "--trust-code"])
    assert (tmp_path / "ran").exists()


def test_without_matplotlib_it_is_made_without_pictures(tmp_path, monkeypatch):
    run = copy_of("hello", tmp_path / "run")
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    path, notes = report(run.path)
    page = path.read_text(encoding="utf-8")
    assert notes == []
    assert not Reader(page).of("img")
    assert "without pictures, because matplotlib is not installed" in Reader(page).text


def test_a_part_that_fails_is_left_out(tmp_path):
    def broken_part(facts, trained):
        raise OverflowError(BAD)

    facts = facts_of(copy_of("hello", tmp_path / "run"))
    found = page.page(facts, object(), parts=[broken_part])
    assert BAD not in found
    assert f"the broken part is left out: OverflowError: {BAD}" in Reader(found).text


def test_a_run_is_reported_when_it_has_been_saved(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("JAXRNN_REPORT")
    really, seen = runner.write_report, []

    def write(run, trained, **words):
        seen.append((run.result()["steps"], run.checkpoints.exists()))
        return really(run, trained, **words)

    monkeypatch.setattr(runner, "write_report", write)
    budget = {"steps": 20, "report_every": 10, "evaluate_every": 10}
    run, _, lines = train("hello", {}, budget, out=tmp_path / "run")
    assert seen == [(20, True)]
    assert lines[-1] == f"report: {run.path / 'report.html'}"
    text = (run.path / "report.html").read_text(encoding="utf-8")
    for head in ("Learning curve", "Next letters", "Inside: units over a text"):
        assert f"<h2>{head}</h2>" in text
    assert "jaxrnn sample" in (run.path / "README.md").read_text(encoding="utf-8")

    def broken(run, trained, **words):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runner, "write_report", broken)
    run, result, lines = train("hello", {}, budget, out=tmp_path / "another")
    assert result["steps"] == 20
    assert "the report is not complete: OSError" in lines[-1]
    assert f"jaxrnn report {run.path}" in lines[-1]


def test_an_unfinished_run_says_so(tmp_path):
    run = copy_of("hello", tmp_path / "run")
    (run.path / "result.json").unlink()
    run.rewind(60)
    page = Reader(report(run.path)[0].read_text(encoding="utf-8"))
    assert "60 steps (unfinished)" in page.text
    assert f"jaxrnn train hello --out {run.path} --resume" in page.text
    assert len(page.of("img")) == 1
    with pytest.raises(InputError, match="is not a run directory"):
        report(tmp_path / "none")


def test_the_model_card_is_thirty_lines(tmp_path):
    facts = facts_of(copy_of("sentiment", tmp_path / "run"))
    lines = card(facts).splitlines()
    assert 20 <= len(lines) <= 32
    assert f"{facts.parameters:,} parameters" in card(facts)
    assert "| score | test | baselines |" in lines
    accuracy = next(line for line in lines if line.startswith("| accuracy"))
    assert f"majority {facts.result['majority_accuracy']:.4g}" in accuracy


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two runs of one task that differ in two options."""
    folder = tmp_path_factory.mktemp("two")
    return [
        copy_of("hello", folder / "one").path,
        copy_of("hello", folder / "other", learning_rate=0.5, cell="gru").path,
    ]


def test_runs_side_by_side(two, capsys):
    found = compare_runs(two)
    assert found["differs"] == ["cell", "learning_rate"]
    one, other = found["runs"]
    assert other["options"] == {"cell": "gru", "learning_rate": 0.5}
    assert one["scores"]["loss"] == Run.open(two[0]).result()["loss"]
    assert one["parameters"] == other["parameters"] > 0
    lines = comparison_table(found, 200)
    assert lines[1].split() == ["--cell", "elman", "gru"]
    assert main(["compare", *map(str, two), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert main(["compare", *map(str, two)]) == 0
    assert "--learning-rate" in capsys.readouterr().out


def test_their_curves_in_one_picture(two, tmp_path, monkeypatch):
    assert main(["compare", *map(str, two), "--out", str(tmp_path / "c.png")]) == 0
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    for paths, out, words in (
        (
            [two[0], RUNS / "parity"],
            "c.png",
            "of one task, but these are of hello, parity",
        ),
        (two, "c.jpg", "must end in .png"),
        (two, "none/c.png", "cannot be written: No such file"),
    ):
        with pytest.raises(InputError, match=words):
            draw_comparison(paths, tmp_path / out)
    with pytest.raises(InputError, match="needs two runs or more"):
        compare_runs(two[:1])


def test_pictures_are_saved_in_one_place():
    """So all of them have the style."""
    files = [*(ROOT / "jaxrnn").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    calls = {file.name for file in files if "figure.savefig(path, " in file.read_text()}
    assert calls == {"style.py"}
    others = [f for f in files if re.search(r"\.savefig\((?!path\)``)", f.read_text())]
    assert {file.name for file in others} == {"style.py"}
