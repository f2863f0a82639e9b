"""The directive ``room``: all public names of one part of the library.

``.. room:: jaxrnn.cells`` documents what ``jaxrnn`` exports out of that package, by
its short name, and then what the package exports besides. So a name that is added to
an ``__init__`` appears by itself, once, under the name that people write.
"""

import importlib
import inspect

from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective


def is_public(name, value):
    """Whether a name of a module is its own: no module, import or private name."""
    return (
        not name.startswith("_")
        and not inspect.ismodule(value)
        and callable(value)
        and getattr(value, "__module__", "").startswith("jaxrnn")
        and value.__module__ != "jaxrnn.core.dtypes"
    )


def short_names(packages):
    """Return what ``jaxrnn`` itself exports out of some packages."""
    top = importlib.import_module("jaxrnn")
    return [
        f"jaxrnn.{name}"
        for name, value in vars(top).items()
        if is_public(name, value)
        and any(f"{value.__module__}.".startswith(f"{p}.") for p in packages)
    ]


def long_names(package):
    """Return what a package exports and ``jaxrnn`` itself does not."""
    top = set(map(id, vars(importlib.import_module("jaxrnn")).values()))
    return [
        f"{package}.{name}"
        for name, value in vars(importlib.import_module(package)).items()
        if is_public(name, value) and id(value) not in top
    ]


def lines_of(name):
    """Return the directive that documents one name."""
    module, _, attribute = name.rpartition(".")
    value = getattr(importlib.import_module(module), attribute)
    if inspect.isclass(value):
        return [f".. autoclass:: {name}", "   :members:", ""]
    return [f".. autofunction:: {name}", ""]


class Room(SphinxDirective):
    """Document the public names of some packages."""

    required_arguments = 1
    final_argument_whitespace = True
    option_spec = {"short": directives.flag}

    def run(self):
        """Return the nodes of all names."""
        packages = self.arguments[0].split()
        names = short_names(packages)
        if "short" not in self.options:
            names += [name for p in packages for name in long_names(p)]
        lines = [line for name in names for line in lines_of(name)]
        return self.parse_text_to_nodes("\n".join(lines))


def skip(app, what, name, value, skipped, options):
    """Leave out fields without a text of their own: of tuples, and jax's functions."""
    if (value.__doc__ or "").startswith("Alias for field"):
        return True
    module = inspect.getmodule(value)
    foreign = module is not None and not module.__name__.startswith("jaxrnn")
    return True if what == "class" and foreign else None


def setup(app):
    """Add the directive."""
    app.add_directive("room", Room)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
