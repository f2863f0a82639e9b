"""The type checker of the tests: beartype, for which an int is a float, as for
everybody else.
"""

import importlib.util
import pathlib

from beartype import BeartypeConf, beartype

typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))

# These read and write a program's equations: they name no shapes, and are called so
# often that to check them takes time.
UNCHECKED = (
    "jaxrnn.engines.jaxpr.",
    "jaxrnn.engines.recurrence.",
    "jaxrnn.engines.loops.pallas.",
)


def checked_modules():
    """The names of the library's modules, found without importing them, but for
    `UNCHECKED`.
    """
    root = pathlib.Path(importlib.util.find_spec("jaxrnn").origin).parent
    files = (
        path.relative_to(root.parent).with_suffix("") for path in root.rglob("*.py")
    )
    names = {".".join(file.parts) for file in files}
    return sorted(name for name in names if not name.startswith(UNCHECKED))
