"""What the command line says of itself: the menu, its version, and help for people who
do not know the names yet.
"""

import dataclasses
import pathlib
import re
import shlex

import jax
import pytest

import jaxrnn
from jaxrnn.cli import main
from jaxrnn.cli.parser import COMMANDS, GROUP_OF, parse
from jaxrnn.tasks.about import ABOUT, next_commands, resume_command
from jaxrnn.tasks.runner import TASKS
from jaxrnn.training import Run


def said(capsys, *words):
    assert main(list(words)) == 0
    out, err = capsys.readouterr()
    assert not err
    return out


def test_alone_it_prints_a_short_menu(capsys):
    lines = said(capsys).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    for name in COMMANDS:
        assert sum(line.startswith(f"  jaxrnn {name}") for line in lines) >= 1


def test_its_version_is_that_of_the_package(capsys):
    out = said(capsys, "--version")
    assert out.startswith(f"jaxrnn {jaxrnn.__version__} (jax {jax.__version__}, ")
    assert out.count("\n") == 1


def test_help_of_train_names_each_task_with_a_sentence(capsys):
    lines = said(capsys, "train", "--help").splitlines()
    assert "usage: jaxrnn train TASK" in lines[0]
    for task in TASKS:
        (line,) = (x for x in lines if x.split()[:1] == [task])
        assert ABOUT[task].sentence in line
        assert len(line) <= 80


@pytest.mark.parametrize("task", ["hello", "sentiment"])
def test_help_of_a_task(task, capsys):
    out = said(capsys, "train", task, "--help")
    assert f"usage: jaxrnn train {task}" in out
    assert len(out.splitlines()) < 100
    # Only a task with labels can choose by a validation score.
    assert ("--patience" in out) == (task == "sentiment")
    assert ("--data FILE" in out) == (task == "sentiment")


def test_every_task_is_described():
    assert ABOUT.keys() == TASKS.keys()
    for task, module in TASKS.items():
        takes_data = "data" in module.Options.__dataclass_fields__
        assert bool(ABOUT[task].data) == takes_data
        run = Run(pathlib.Path("my runs/RUN"), {"task": task})
        for command in [*next_commands(run), resume_command(run)]:
            words = shlex.split(command)
            assert words[0] == "jaxrnn"
            assert "my runs/RUN" in words
            parse(words[1:])


ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def test_commands_in_the_documents_can_be_parsed():
    """Those that stand in lines of their own, in blocks of code."""
    count = 0
    for page in PAGES:
        blocks = re.findall(r"(?s)```[a-z]*\n(.*?)```", page.read_text("utf-8"))
        for line in re.findall(r"(?m)^ *(jaxrnn .*)$", "\n".join(blocks)):
            words = shlex.split(line, comments=True)
            end = next((i for i, word in enumerate(words) if word in (">", "|")), None)
            parse(words[1:end], read_files=False)
            count += 1
    assert count > 20


def test_the_help_of_a_task_has_its_flags_under_headings(capsys):
    assert main(["train", "charlm", "--help"]) == 0
    text = capsys.readouterr().out
    parts = {"task": "--data", "model": "--cell", "training": "--optimizer"}
    headings = [text.index(f"\n{name}:\n") for name in parts]
    ends = [*headings[1:], text.index("\nlength of the run:\n")]
    for flag, begin, end in zip(parts.values(), headings, ends, strict=True):
        assert text.count(f"\n  {flag} ") == 1
        assert begin < text.index(f"\n  {flag} ") < end


def test_every_option_with_a_heading_is_one_of_a_task():
    options = {
        field.name
        for task in TASKS.values()
        for field in dataclasses.fields(task.Options)
    }
    assert set(GROUP_OF) <= options
