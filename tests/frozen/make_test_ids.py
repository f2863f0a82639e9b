"""Write down which tests there are, slow ones included: ids and functions.

    PYTHONPATH=.:tests python -m frozen.make_test_ids

``test_ids.txt`` holds what pytest collects, which leaves out whole files whose
library (torch, haiku, equinox) is not installed. ``test_functions.txt`` is
read from the source, so it has those too.
"""

import ast
import subprocess
import sys

from .paths import DATA, HERE, ROOT


def collected() -> list[str]:
    """The ids of all tests that pytest finds here, those of this folder left out."""
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-o", "addopts="]
    words.append(f"--ignore={HERE}")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted(line for line in done.stdout.splitlines() if "::" in line)


def functions() -> list[str]:
    """``file::function`` of every test, or ``file::Class::function``."""
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if HERE not in path.parents:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += inside(tree, path.relative_to(ROOT).as_posix())
    return sorted(found)


def inside(node: ast.Module | ast.ClassDef, place: str) -> list[str]:
    """The tests of a file or class whose name is ``place``."""
    found = []
    for child in node.body:
        if isinstance(child, ast.ClassDef) and child.name.startswith("Test"):
            found += inside(child, f"{place}::{child.name}")
        elif isinstance(child, ast.FunctionDef) and child.name.startswith("test"):
            found.append(f"{place}::{child.name}")
    return found


def main() -> None:
    """Write both lists."""
    DATA.mkdir(exist_ok=True)
    for name, lines in (("test_ids", collected()), ("test_functions", functions())):
        text = "".join(f"{line}\n" for line in lines)
        (DATA / f"{name}.txt").write_text(text, encoding="utf-8")
        print(f"{name}.txt: {len(lines)} lines")


if __name__ == "__main__":
    main()
