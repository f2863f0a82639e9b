"""Run the code of the pages, compare what it prints, and draw their pictures.

``python docs/run_pages.py`` runs every page of the site whose code is shown with its
output, and says how long each took. ``python docs/run_pages.py --pictures`` puts the
pictures that the code saves next to the page, where the page links to them. Words
after that are names of pages: ``python docs/run_pages.py dates captions``.

A page is plain Markdown. Its ``python`` blocks run one after the other in one
namespace and in an empty folder. A ``text`` block right behind one is what it prints,
apart from the rounding of numbers; a ``text`` block behind a sentence is an example,
which nobody compares.
"""

import argparse
import contextlib
import io
import math
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

DOCS = Path(__file__).parent
PAGES = [
    page
    for page in sorted(DOCS.glob("*/*.md"))
    if page.parent.name not in ("reference", "benchmarks")
    and not page.parent.name.startswith("_")
]
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)

# One style for all pictures. Text stays text, so that the site can color it.
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxrnn",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": "cycler('color', ['0072B2', 'D55E00', '009E73', 'CC79A7'])",
    "figure.figsize": (6, 3),
    "figure.constrained_layout.use": True,
}


class Differs(Exception):
    """A page shows something else than its code prints."""


def agrees(said, shown):
    """Whether two words are equal, or numbers that differ by rounding only."""
    try:
        return math.isclose(float(said), float(shown), rel_tol=0.05, abs_tol=0.02)
    except ValueError:
        return said == shown


def same(printed, shown):
    """Whether a text is what the page shows, apart from rounding."""
    said, expected = printed.split(), shown.split()
    return len(said) == len(expected) and all(map(agrees, said, expected))


def draw_in_style():
    """Give all figures one style, and let equal figures be equal files."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update(STYLE)
    os.environ["SOURCE_DATE_EPOCH"] = "0"


def run(page, folder, update=False):
    """Run the code of one page in a folder that is empty.

    With ``update`` what differs is written to the page, for somebody to read. Returns
    the pictures that the code has saved.
    """
    text = page.read_text(encoding="utf-8")
    if "matplotlib" in text:
        draw_in_style()
    names: dict = {"__name__": page.stem}
    with contextlib.chdir(folder):
        for code, shown in BLOCK.findall(text):
            printed = io.StringIO()
            # An error names the line of the page.
            lines = "\n" * text[: text.index(code)].count("\n")
            with contextlib.redirect_stdout(printed):
                exec(compile(lines + code, page.name, "exec"), names)
            if not shown or same(printed.getvalue(), shown):
                continue
            if not update:
                raise Differs(
                    f"{page.name} shows\n{shown}\nbut its code prints\n"
                    f"{printed.getvalue()}"
                )
            before, after = (
                f"{code}```\n\n```text\n{out}" for out in (shown, printed.getvalue())
            )
            page.write_text(page.read_text("utf-8").replace(before, after), "utf-8")
    pictures = sorted(Path(folder).glob("*.svg"))
    for picture in pictures:
        if f"]({picture.name})" not in text:
            raise Differs(f"{page.name} draws {picture.name}, but does not show it")
    return pictures


def main():
    """Run pages by their names, or all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pages", nargs="*", metavar="PAGE")
    parser.add_argument("--pictures", action="store_true")
    parser.add_argument("--update", action="store_true", help="pages by what differs")
    args = parser.parse_args()
    chosen = [page for page in PAGES if not args.pages or page.stem in args.pages]
    if unknown := set(args.pages) - {page.stem for page in chosen}:
        parser.error(f"there is no page {', '.join(sorted(unknown))}")
    for page in chosen:
        began, used = time.monotonic(), time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            for picture in run(page, folder, args.update):
                if args.pictures:
                    shutil.copy(picture, page.parent)
        seconds, cpu = time.monotonic() - began, time.process_time() - used
        name = page.relative_to(DOCS)
        print(f"{name}: {seconds:.1f} s, {cpu:.1f} CPU seconds", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(DOCS.parent))
    main()
