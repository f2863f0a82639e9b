"""Write the small files that the frozen runs learn from, into ``data/inputs``.

PYTHONPATH=.:tests python -m frozen.make_inputs
"""

import pathlib
import random
import shlex

import numpy as np
from classifiers import opinions, tagged
from PIL import Image

from .paths import DATA

INPUTS = DATA / "inputs"
NUMBERS = shlex.split("zero one two three four five six seven eight nine")
WORDS = shlex.split("The cat and the dog sat on the mat or ran to a red barn . , ! ?")


def text(path: pathlib.Path, count: int, seed: int) -> None:
    """Sentences of few words."""
    rng = random.Random(seed)
    lines = [" ".join(rng.choices(WORDS, k=rng.randrange(4, 12))) for _ in range(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def pairs(path: pathlib.Path, count: int) -> None:
    """Digits and their names, each line in the part that it names."""
    rng, lines = random.Random(2), []
    for i in range(count):
        digits = rng.choices(range(10), k=rng.randrange(1, 4))
        part = {0: "validation", 1: "test"}.get(i % 10, "train")
        source = "".join(map(str, digits))
        lines.append(f"{source}\t{' '.join(NUMBERS[d] for d in digits)}\t{part}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def pictures(folder: pathlib.Path, count: int, side: int = 16) -> None:
    """Bars that stand or lie, thin or thick, dark on light."""
    folder.mkdir(exist_ok=True)
    rng, lines = random.Random(3), ["file,caption,split"]
    for i in range(count):
        grey, thick, lies = np.full((side, side), 255, np.uint8), i % 2, i // 2 % 2
        at = rng.randrange(2, side - 6)
        grey[2:-2, at : at + 1 + 3 * thick] = rng.randrange(60)
        name, part = f"{i:02}.png", {0: "validation", 1: "test"}.get(i % 5, "train")
        Image.fromarray(grey.T if lies else grey).save(folder / name)
        words = f"{('thin', 'thick')[thick]} bar {('standing', 'lying')[lies]}"
        lines.append(f"{name},{words},{part}")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Write all of them."""
    INPUTS.mkdir(parents=True, exist_ok=True)
    text(INPUTS / "text.txt", 60, seed=0)
    text(INPUTS / "other.txt", 10, seed=1)
    opinions(INPUTS / "opinions.csv", 60, long=False)
    tagged(INPUTS / "tagged.conll", 40, long=False)
    pairs(INPUTS / "pairs.tsv", 50)
    pictures(INPUTS / "pictures", 20)


if __name__ == "__main__":
    main()
