"""Draw the pictures of the site that the commands of jaxrnn draw.

``python docs/draw_programs.py`` runs the commands below, which takes a quarter of an
hour on one core, and copies the pictures that the site shows. ``--only hello`` runs
those whose commands have that word. The pictures of captioning and of the two long runs
of the character model are not among them: their trainings take longer.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PICTURES, RESULTS = "docs/pictures", "benchmarks/results"

# Commands that are run one after another, and where their pictures go.
DRAWN = [
    (
        ["train hello --out runs/hello"],
        {"runs/hello/distribution.png": f"{PICTURES}/hello.png"},
    ),
    (
        [
            "train adding --length 50 --cell lstm --gradients --steps 800"
            " --report-every 25 --evaluate-every 200 --out runs/adding"
        ],
        {
            "runs/adding/gradients.png": f"{PICTURES}/adding_gradients.png",
            "runs/adding/curves.png": f"{PICTURES}/adding_curves.png",
        },
    ),
    (
        ["cells --cell elman --cell gru --cell lstm --steps 100 --out runs/cells"],
        {"runs/cells/decay.png": f"{PICTURES}/cells_decay.png"},
    ),
    (
        ["gradients --out runs/gradients"],
        {
            "runs/gradients/decay.png": f"{PICTURES}/gradients_decay.png",
            "runs/gradients/spectra.png": f"{PICTURES}/gradients_spectra.png",
            "runs/gradients/maps.png": f"{RESULTS}/gradients_maps.png",
            "runs/gradients/truncation.png": f"{RESULTS}/gradients_truncation.png",
        },
    ),
    (
        [
            "train adding --cell lstm --length 100 --steps 1500 --out runs/adding",
            "gradients --run runs/adding --out runs/adding-gradients",
        ],
        {"runs/adding-gradients/decay.png": f"{RESULTS}/gradients_after_training.png"},
    ),
    (
        ["train series --out runs/weather"],
        {"runs/weather/forecast.png": f"{PICTURES}/forecast.png"},
    ),
    (
        ["train translation --out runs/dates"],
        {"runs/dates/attention.png": f"{RESULTS}/task_translation.png"},
    ),
    (
        ["train sentiment --out runs/reviews"],
        {"runs/reviews/confusion.png": f"{RESULTS}/task_sentiment.png"},
    ),
]


def draw(commands, pictures):
    """Run commands in an empty folder, and copy the pictures that they have drawn."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with tempfile.TemporaryDirectory() as folder:
        for command in commands:
            words = [sys.executable, "-m", "jaxrnn", *command.split()]
            subprocess.run(words, check=True, cwd=folder, env=env)
        for source, target in pictures.items():
            shutil.copy(Path(folder, source), ROOT / target)


def main():
    """Draw everything, or what the commands with a word draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", metavar="WORD")
    word = parser.parse_args().only
    for commands, pictures in DRAWN:
        if any(word in command for command in commands):
            draw(commands, pictures)


if __name__ == "__main__":
    main()
