"""Draw the pictures of docs/gallery_pictures.md that no benchmark draws.

``python docs/draw_programs.py`` runs the commands below, which takes a few minutes on
one core, and copies one picture of each run to docs/pictures/.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PICTURES = Path(__file__).parent / "pictures"

# For every command, the pictures of its folder that are taken and their names here.
COMMANDS = {
    "train hello": {"distribution.png": "hello"},
    "train adding --length 50 --cell lstm --gradients --steps 800 --report-every 25"
    " --evaluate-every 200": {
        "gradients.png": "adding_gradients",
        "curves.png": "adding_curves",
    },
    "cells --cell elman --cell gru --cell lstm --steps 100": {
        "decay.png": "cells_decay"
    },
    "gradients": {"decay.png": "gradients_decay", "spectra.png": "gradients_spectra"},
}


def main():
    """Draw what is wanted of every command, or of those that begin as named."""
    PICTURES.mkdir(exist_ok=True)
    for command, pictures in COMMANDS.items():
        if not command.startswith(" ".join(sys.argv[1:])):
            continue
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, command.split()[1] if " " in command else command)
            words = [*command.split(), "--out", str(out)]
            subprocess.run([sys.executable, "-m", "jaxrnn", *words], check=True)
            for picture, name in pictures.items():
                shutil.copy(out / picture, PICTURES / f"{name}.png")


if __name__ == "__main__":
    main()
