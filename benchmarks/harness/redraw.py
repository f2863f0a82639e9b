"""Draw the pictures in ``benchmarks/results`` again from the numbers beside them.

``python -m benchmarks.harness.redraw`` measures nothing: it is for a change of style.

``--only throughput`` draws those whose names begin so.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import tempfile
from typing import Any

from jaxrnn.training import Run
from jaxrnn.training.curves import draw_curves

from ..cpu import linear, memory, streaming, throughput
from ..gradients import gradient_decay
from ..scaling import run as scaling
from .report import picture
from .save_run import RESULTS

DRAWERS = {
    "gradient_decay": gradient_decay,
    "linear": linear,
    "memory": memory,
    "scaling": scaling,
    "streaming": streaming,
    "throughput": throughput,
}


def redraw(path: pathlib.Path) -> bool:
    """Draw the picture beside a result.

    Args:
        path: the JSON of the result.

    Returns:
        Whether there is a way to draw it.
    """
    result = json.loads(path.read_text(encoding="utf-8"))
    image = path.with_suffix(".png")
    if "held_out" in result:
        _curve(result, image)
        return True
    module: Any = DRAWERS.get(result.get("benchmark"))
    if module is None:
        return False
    draw = module.draw
    if result["benchmark"] == "memory" and not result["compiled"]:
        draw = memory.draw_resident
    width, height = module.SIZE
    if result.get("trained") == []:  # the decay alone
        width *= 0.7
    picture(image, lambda figure: draw(result, figure), (width, height))
    return True


def _curve(result: dict, image: pathlib.Path) -> None:
    """Draw the learning curve of a run that `save_run` has kept.

    The losses of the training are not among what was kept.
    """
    options, score = result["options"], result["result"]
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(folder + "/run", {"task": "charlm"})
        for row in result["held_out"]:
            record = {k: v for k, v in row.items() if k != "seconds"}
            run.append("metrics.jsonl", record)
            if row["seconds"] is not None:
                times = {"step": row["step"], "seconds": row["seconds"]}
                run.append("timing.jsonl", times)
        final = {"step": score["steps"], "final": True}
        run.append("metrics.jsonl", final | {"bits_per_char": score["bits_per_char"]})
        drawn = draw_curves(
            run,
            "bits_per_char",
            "bits per character",
            of=f"{options['cell'].upper()}, {options['hidden']} units, on "
            f"{options['data'][0]}; {result['processor']}, jax {score['jax']}",
        )
        if drawn is not None:
            image.write_bytes(drawn.read_bytes())


def main() -> None:
    """Draw all pictures, or some."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", metavar="NAME")
    only = parser.parse_args().only
    for path in sorted(RESULTS.glob("*.json")):
        if path.name.startswith(only) and path.with_suffix(".png").exists():
            print(path.stem, "" if redraw(path) else ": no picture is drawn of it")


if __name__ == "__main__":
    main()
