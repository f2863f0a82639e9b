"""Classes and functions by import path, ``package.module:Name``, and whom to trust.

An import runs the code of a module. What a file names, such as the configuration of a
run, is therefore imported only if it belongs to this library, if it is a plain function
of JAX, or if the user has said that it may be.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.machinery
import operator
import os
import sys
from collections.abc import Collection, Iterator
from typing import Any

# Searched first: these public modules exist in every version of JAX.
PUBLIC = ("jax.numpy", "jax.nn", "jax.lax", "jax.scipy.special")

# True: everything; otherwise the import paths that may be imported.
Trust = bool | Collection[str]

# Of `jax.numpy` only these are used unasked: others read or write files.
_NAMES = (
    "abs absolute arcsinh arctan cos cosh exp exp2 expm1 log log1p negative positive "
    "rint sign sin sinc sinh sqrt square tan tanh bfloat16 float16 float32 float64 "
    "complex64 complex128 int8 int16 int32 int64 uint8 uint16 uint32 bool_"
)
HARMLESS = frozenset(_NAMES.split())


def held(module: str, name: str) -> Any:
    """Return what a module holds under a dotted name."""
    return operator.attrgetter(name)(importlib.import_module(module))


def own_place(value: object) -> tuple[str, str]:
    """Return the module and the name that a value says are its own, "" where none is.

    What is asked may be any object that can be called, and not all have a name.
    """
    qualified, plain, module = (
        getattr(value, each, None) or ""
        for each in ("__qualname__", "__name__", "__module__")
    )
    return module, qualified or plain


def import_path_of(value: object, who: str) -> str:
    """Return the import path of a class or function.

    Args:
        value: the class or function.
        who: what the error calls it.

    Raises:
        TypeError: if no module holds it under its name.
    """
    own, name = own_place(value)
    own = own or "numpy"  # its universal functions do not say where they are
    public = ["jaxrnn", *_parents(own)] if own.partition(".")[0] == "jaxrnn" else PUBLIC
    for module in (*public, own):
        try:
            if held(module, name) is value:
                return f"{module}:{name}"
        except (ImportError, AttributeError):
            continue
    raise TypeError(
        f"{who} is {value!r}, which has no import path: no module holds it under its "
        f"name, {name!r}. Define it at the top level of a module, rather than inside a "
        f"function or as a lambda"
    )


def _parents(module: str) -> list[str]:
    """Return ``a.b`` and ``a.b.c`` of the module ``a.b.c``: packages hand names on."""
    words = module.split(".")
    return [".".join(words[: i + 1]) for i in range(1, len(words))]


def is_trusted(path: str, trust: Trust) -> bool:
    """Return whether an import path may be imported.

    Args:
        path: ``module:Name``.
        trust: what the user has said: True, or the paths that may be imported.
    """
    if isinstance(trust, bool):
        return trust or _is_harmless(path)
    return path in trust or _is_harmless(path)


def _is_harmless(path: str) -> bool:
    """Return whether importing ``path`` and calling it runs no code of strangers."""
    module, _, name = path.partition(":")
    if not name.isidentifier():
        return False
    if module in ("jax.nn", "jax.nn.initializers", "jax.lax", "jax.scipy.special"):
        return True
    return (module == "jax.numpy" and name in HARMLESS) or is_of_library(module)


def is_of_library(module: str) -> bool:
    """Return whether a module is one of this library's, and no program of it."""
    return module == "jaxrnn" or (
        module.startswith("jaxrnn.")
        and all(word.isidentifier() for word in module.split("."))
        and module not in ("jaxrnn.__main__", "jaxrnn.cli")
    )


def find(path: str, trust: Trust = False) -> Any:
    """Return the class or function at an import path.

    The current folder comes first while the module is imported.

    Args:
        path: ``package.module:Name``.
        trust: whether, or what of, the code outside this library may be imported.

    Raises:
        ValueError: if the path is not trusted, or is none.
        ImportError: if the module or the name cannot be imported.
    """
    module, colon, name = path.partition(":")
    if not (colon and module and name):
        raise ValueError(
            f"an import path is package.module:Name, such as mine:Mine for the class "
            f"Mine in mine.py, but got {path!r}"
        )
    if not is_trusted(path, trust):
        raise ValueError(
            f"{path} is code outside jaxrnn, and importing it would run it: if you "
            f"trust it, name it, or pass trust_code=True"
        )
    imported = (
        importlib.import_module(module)
        if module.partition(".")[0] in ("jax", "jaxrnn") and module in sys.modules
        else _import_module(module, path)
    )
    try:
        found = operator.attrgetter(name)(imported)
    except AttributeError:
        raise ImportError(_no_name(module, name, imported)) from None
    named = trust if isinstance(trust, bool) else path in trust
    if (
        is_of_library(module)
        and not named
        and not (isinstance(found, type) and is_of_library(found.__module__))
    ):
        raise ValueError(
            f"{path} is no class of jaxrnn: unless you trust it, a configuration names "
            f"classes of jaxrnn, and functions of jax.nn and jax.numpy, only"
        )
    return found


def _import_module(module: str, path: str) -> Any:
    """Import a module, with the current folder first; errors say what is wrong."""
    try:
        with _current_folder_first():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module.endswith(".py"):
            raise ImportError(
                f"{path}: a module is named without the .py of its file, "
                f"{path.replace('.py:', ':', 1)}"
            ) from None
        if module == missing or module.startswith(missing + "."):
            raise ImportError(
                f"{path}: there is no module {missing!r}, neither in the current "
                f"folder, {os.getcwd()}, nor among the installed packages"
            ) from None
        raise ImportError(
            f"{path}: {module} imports {missing}, which is not installed"
        ) from error
    except (Exception, SystemExit) as error:
        text = str(error).strip().splitlines() or [""]
        raise ImportError(
            f"{path}: {module} cannot be imported: {type(error).__name__}: {text[0]}"
        ) from error


def _no_name(module: str, name: str, imported: Any) -> str:
    """Say that a module does not hold a name, and which one may be meant."""
    names = [each for each in vars(imported) if not each.startswith("_")]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {module}:{near[0]}?" if near else ""
    if module == "__main__":
        hint = (
            "; it was defined in a program or notebook: move it to a module, such as "
            "mine.py, to use it elsewhere"
        )
    file = vars(imported).get("__file__")
    return f"{module} has no {name!r}{f' ({file})' if file else ''}{hint}"


def module_exists(module: str) -> bool:
    """Return whether there is a module of this name; nothing is imported."""
    top = module.partition(".")[0]
    return top in sys.modules or bool(
        importlib.machinery.PathFinder.find_spec(top, [os.getcwd(), *sys.path])
        or importlib.machinery.BuiltinImporter.find_spec(top)
    )


@contextlib.contextmanager
def _current_folder_first() -> Iterator[None]:
    """Search the current folder first, and last from then on.

    A module may import its neighbors later, too, but they must not hide other
    packages.
    """
    folder = os.getcwd()
    known = folder in sys.path or "" in sys.path
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(folder)
        if not known:
            sys.path.append(folder)
