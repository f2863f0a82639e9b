"""Pictures in SVG become part of the page, in the colors of the page.

The pictures of the tutorials are drawn black on white (docs/run_pages.py), as GitHub
shows them. In the site black becomes the color of the text, and white none, so that
they can be read in light and dark. The alternative text is kept.
"""

import re
from html import escape
from pathlib import Path

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

BLACK, WHITE = re.compile("#000000"), re.compile("#ffffff")


def inlined(text, name, alt):
    """Return the SVG element of a file, with ids of its own and an alternative text."""
    text = text[text.index("<svg") :]
    # Who drew it does not belong to the page, and a style would hold for all of it.
    text = re.sub(r"<(metadata|style).*?</\1>", "", text, flags=re.DOTALL)
    text = BLACK.sub("currentColor", WHITE.sub("none", text))
    # What has no color of its own, such as text, would be black.
    head = f'<svg role="img" aria-label="{escape(alt)}" fill="currentColor"'
    text = text.replace("<svg", head, 1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    return re.sub(r"(url\(#|href=\"#)", rf"\1{name}-", text)


class InlineSVG(SphinxPostTransform):
    """Replace the pictures of one page."""

    default_priority = 5
    formats = ("html",)

    def run(self, **kwargs):
        """Replace each image whose file is an SVG."""
        for image in list(self.document.findall(nodes.image)):
            file = Path(self.env.srcdir, image["uri"])
            if file.suffix == ".svg" and file.exists():
                text = file.read_text(encoding="utf-8")
                svg = inlined(text, file.stem, image.get("alt", ""))
                figure = f'<div class="drawing">{svg}</div>'
                image.parent.replace(image, nodes.raw("", figure, format="html"))


def setup(app):
    """Add the transform."""
    app.add_post_transform(InlineSVG)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
