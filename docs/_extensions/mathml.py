r"""Formulas as MathML, which browsers draw by themselves: no script, no network.

A page writes ``$h_t$`` or ``$$h_t$$``, which GitHub draws, too. The formula is turned
into MathML when the site is built.
"""

from docutils import nodes
from latex2mathml.converter import convert


def inline(translator, node):
    """Write a formula within a line."""
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block(translator, node):
    """Write a formula that stands by itself."""
    translator.body.append(convert(node.astext(), display="block"))
    raise nodes.SkipNode


def setup(app):
    """Add the renderer, which conf.py names."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
