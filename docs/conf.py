"""The documentation site: ``make docs`` builds it strictly and without a network."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_extensions"), str(HERE.parent)]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxrnn.version import __version__  # noqa: E402

project = "jaxrnn"
author = "the jaxrnn contributors"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    # In docs/_extensions.
    "api_rooms",
    "benchmark_tables",
    "code_pages",
    "command_line",
    "inline_svg",
    "mathml",
]
exclude_patterns = ["_build", "_extensions"]

# Pages stay plain Markdown: a link to a heading is written as GitHub writes it.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# In docstrings, `name` is a link where the name is documented, and code elsewhere.
default_role = "py:obj"
# Shapes and types stand in the docstrings; jaxtyping's would fill the signatures.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False

html_theme = "furo"
html_title = f"jaxrnn {__version__}"
html_math_renderer = "mathml"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["jaxrnn.css"]
