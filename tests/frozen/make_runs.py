"""Train a tiny run of each program, and write down what each then prints.

    PYTHONPATH=.:tests python -m frozen.make_inputs
    PYTHONPATH=.:tests python -m frozen.make_runs

Run directories come to ``data/runs``, without their pictures and clocks and with their
last checkpoint only; ``begun`` is one that stopped halfway, to be resumed. Beside them
lie files that Python writes: checkpoints of both kinds, and weights for torch.
``printed.json`` has the commands and what they print.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys

import jax
import numpy as np
from quick import compile_fast

from . import names, store, walks
from .paths import DATA, ROOT

RUNS, INPUTS = DATA / "runs", "tests/frozen/data/inputs"
FEW = shlex.split(
    "--steps 20 --report-every 10 --evaluate-every 20 --checkpoint-seconds 0"
)
MORE = [*FEW, *shlex.split("--steps 100 --evaluate-every 100 --learning-rate 0.02")]
SMALL = shlex.split("--hidden 4 --batch 8")
WORDS = shlex.split("--embed 4 --filters 4 --learning-rate 0.02")
CHARLM = ["--data", f"{INPUTS}/text.txt", *SMALL, *shlex.split("--embed 4 --window 8")]
PICTURES = shlex.split("--size 16 --channels 1 --embed 4")
TRAINED = {
    "hello": ["--hidden", "4", "--steps", "120"],
    "charlm": [*CHARLM, "--devices", "1", *FEW],
    "sentiment": ["--data", f"{INPUTS}/opinions.csv", *SMALL, *WORDS, *FEW],
    "tagging": ["--data", f"{INPUTS}/tagged.conll", *SMALL, *WORDS, *FEW],
    "translation": ["--data", f"{INPUTS}/pairs.tsv", *SMALL, "--embed", "4", *MORE],
    "captioning": ["--data", f"{INPUTS}/pictures", *SMALL, *PICTURES, *MORE],
    "adding": ["--quick", *SMALL, *FEW],
    "copy": ["--quick", *SMALL, "--cell", "min-gru", *FEW],
    "temporal-order": ["--quick", *SMALL, "--cell", "gru", *FEW],
    "parity": ["--quick", *SMALL, "--cell", "slstm", "--gradients", *FEW],
    "group-words": ["--quick", *SMALL, "--cell", "lru", *FEW],
}
ASKED = {
    "hello": [["sample"], ["predict", "hell", "he"]],
    "charlm": [
        ["sample", "--length", "60", "--temperature", "0"],
        ["sample", "--prompt", "The ", "--length", "40", "--seed", "3", "--top-k", "5"],
        ["predict", "The cat sat on the mat", "xyzzy", "a"],
        ["evaluate", "--data", f"{INPUTS}/other.txt"],
    ],
    "sentiment": [
        ["predict", "a good film", "poor plot", ""],
        ["evaluate", "--data", f"{INPUTS}/opinions.csv"],
    ],
    "tagging": [
        ["predict", "dog slowly 22", "tree"],
        ["evaluate", "--data", f"{INPUTS}/tagged.conll"],
    ],
    "translation": [
        ["predict", "12", "907"],
        ["evaluate", "--data", f"{INPUTS}/pairs.tsv"],
    ],
    "captioning": [
        ["predict", f"{INPUTS}/pictures/00.png", f"{INPUTS}/pictures/03.png"],
        ["evaluate", "--data", f"{INPUTS}/pictures"],
    ],
    "adding": [["evaluate", "--length", "30"]],
    "copy": [["evaluate", "--length", "8"]],
    "temporal-order": [["evaluate", "--length", "30"]],
    "parity": [["evaluate", "--length", "12"], ["predict", "10110", "111"]],
    "group-words": [["evaluate", "--length", "9"]],
}
LEFT_OUT = ("seq-mnist",)  # its digits come out of a package that is not always there
SAVED = ("lstm", "gru")  # cells whose state is saved from Python
TORCH = {"lstm": "encoder.", "gru": ""}


def train(task: str, name: str) -> None:
    """Train in a process of its own, and keep what is needed of the run."""
    folder = RUNS / name
    place = folder.relative_to(ROOT).as_posix()
    words = ["train", task, *TRAINED[task], "--out", place, "--overwrite"]
    done = subprocess.run(
        [sys.executable, "-m", "jaxrnn", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr}")
    for path in [*folder.glob("*.png"), *folder.glob("timing.jsonl")]:
        path.unlink()


def keep_checkpoint(folder, last: bool) -> None:
    """Drop all checkpoints but the last one, or the first."""
    steps = sorted(int(path.name) for path in (folder / "checkpoints").iterdir())
    for step in steps[:-1] if last else steps[1:]:
        shutil.rmtree(folder / "checkpoints" / str(step))


def without_places() -> None:
    """Orbax notes where a checkpoint was written: take this machine's part out."""
    for path in RUNS.rglob("commit_success.txt"):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(f"{ROOT}/", ""), encoding="utf-8")


def asked(task: str, words: list[str], folder: str) -> list[str]:
    """The command line with the run's directory in it."""
    return [words[0], folder, *words[1:]]


def python_files() -> dict[str, np.ndarray]:
    """Write checkpoints and weights from Python; returns what is in them."""
    kept = {}
    for name in SAVED:
        params, state = saved(name)
        names.save_checkpoint(
            RUNS / "saved" / name, 3, {"params": params, "carry": state}
        )
        names.save_orbax(RUNS / "orbax" / name, {"params": params, "carry": state})
        path = RUNS / f"{name}.safetensors"
        path.unlink(missing_ok=True)
        layer = walks.layers()[name]
        names.write_torch(layer, params, path, prefix=TORCH[name])
        kept |= {f"{name}/params/{p}": a for p, a in walks.by_path(params).items()}
        kept |= walks.numbered(f"{name}/carry", state)
    return kept


def saved(name: str):
    """Parameters in float32, and a state that they reach."""
    layer = walks.layers()[name]
    params = walks.initial(name)
    xs = walks.drawn(jax.ShapeDtypeStruct((4, 2, walks.D), np.float32), "saved")
    return params, names.walk(layer, params, xs, None, {})[0]


def main() -> None:
    """Train, ask, and write everything."""
    compile_fast()  # what is printed then has the rounding of the tests
    os.chdir(ROOT)
    shutil.rmtree(RUNS, ignore_errors=True)
    printed = []
    for task in TRAINED:
        train(task, task)
        if task == "charlm":
            begun = RUNS / "begun"
            shutil.copytree(RUNS / task, begun)
            keep_checkpoint(begun, last=False)
            (begun / "result.json").unlink()
        keep_checkpoint(RUNS / task, last=True)
        for words in ASKED[task]:
            place = (RUNS / task).relative_to(ROOT).as_posix()
            told = names.command(asked(task, words, place))
            printed.append({"task": task, "words": words, "printed": told})
        print(task, flush=True)
    store.save(RUNS / "saved.npz", python_files())
    without_places()
    text = json.dumps(printed, indent=1, ensure_ascii=False)
    (RUNS / "printed.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
