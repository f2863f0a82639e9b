"""Links to source files, and from them back to what documents them.

A page links to ``../tests/gallery/test_memories.py`` as GitHub wants it. In the site
such a link would download the file; here it opens ``code/tests/...html``, with colors
and line numbers. So do links to tables and notes in Markdown outside of ``docs``, which
are shown as pages. Links to other files of the repository stay downloads.

A page of source links back to the reference. Sphinx supposes that all names of a module
are documented under one prefix; here some are ``jaxrnn.LSTM`` and others
``jaxrnn.layers.Residual``, so these links are put right.
"""

import re
from html import escape
from pathlib import Path

from docutils import nodes
from markdown_it import MarkdownIt
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

ROOT = Path(__file__).parents[2]
MARKDOWN = re.compile(r"\]\(((?:\.\./)+benchmarks/[^)#\s]+\.md)\)")


def name_paths(app, docname, source):
    """Say of links to Markdown outside of the site that they lead to files."""
    source[0] = MARKDOWN.sub(r"](path:\1)", source[0])


class CodeLinks(SphinxTransform):
    """Let links to source files lead to their pages."""

    default_priority = 800

    def apply(self, **kwargs):
        """Replace the links of one document, and note the files."""
        shown = self.env.__dict__.setdefault("code_pages", set())
        up = "../" * self.env.docname.count("/")
        for node in list(self.document.findall(addnodes.download_reference)):
            _, path = self.env.relfn2path(node["reftarget"], self.env.docname)
            file = Path(path).resolve()
            if file.suffix not in (".py", ".md") or not file.is_relative_to(ROOT):
                continue
            name = file.relative_to(ROOT).as_posix()
            shown.add(name)
            link = nodes.reference("", "", refuri=f"{up}code/{name}.html")
            link.extend(node.children)
            node.replace_self(link)


def rendered(text):
    """Return Markdown as HTML, with tables in boxes that scroll."""
    html = MarkdownIt("commonmark").enable("table").render(text)
    opened = html.replace("<table>", '<div class="table-wrapper"><table>')
    return opened.replace("</table>", "</table></div>")


def pages(app):
    """Yield the page of every file that was linked to."""
    for name in sorted(app.env.__dict__.get("code_pages", ())):
        text = (ROOT / name).read_text(encoding="utf-8")
        title = escape(name)
        if name.endswith(".md"):
            yield f"code/{name}", {"title": title, "body": rendered(text)}, "page.html"
            continue
        code = app.builder.highlighter.highlight_block(text, "python", linenos="inline")
        yield (
            f"code/{name}",
            {"title": title, "body": f"<h1>{title}</h1>{code}"},
            ("page.html"),
        )


BACK = re.compile(r'(href="[^"#]*/(reference/\w+)\.html#)([\w.]+)"')


def put_right(app, pagename, templatename, context, doctree):
    """Let the links of a page of source lead to names that are documented."""
    if not pagename.startswith("_modules/"):
        return
    known = {
        (entry.docname, name): entry.node_id
        for name, entry in app.env.domaindata["py"]["objects"].items()
    }

    def right(match):
        before, docname, name = match.groups()
        words = name.split(".")
        for skipped in range(len(words)):
            end = "." + ".".join(words[skipped:])
            for (where, found), anchor in known.items():
                if where == docname and f".{found}".endswith(end):
                    return f'{before}{anchor}"'
        return match[0]

    context["body"] = BACK.sub(right, context["body"])


def setup(app):
    """Add the transform and the pages."""
    app.connect("html-page-context", put_right)
    app.connect("source-read", name_paths)
    app.add_transform(CodeLinks)
    app.connect("html-collect-pages", pages)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
