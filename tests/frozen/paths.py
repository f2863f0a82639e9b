"""Where the frozen data lie."""

import pathlib

HERE = pathlib.Path(__file__).resolve().parent
DATA = HERE / "data"
ROOT = HERE.parents[1]
