"""Check a built site: ``python docs/check.py docs/_build/html``.

Every link and picture leads to a file of the site, every anchor exists, nothing is
loaded from a network, every picture has an alternative text, and no id occurs twice on
a page. What is wrong is printed, a line each, and the exit status says whether there
was anything.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Sphinx fills these by a script.
WITHOUT_ANCHORS = ("search.html", "genindex.html")
REMOTE = ("http:", "https:", "//")


class Page(HTMLParser):
    """The links, the pictures and the ids of one page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.ids, self.wrong = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Note what a tag leads to, and what is wrong with it."""
        found = dict(attrs)
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "link" and found.get("rel") != "canonical":
            self.loads(tag, found.get("href"))
        if tag in ("img", "script", "iframe", "source", "video", "image", "use"):
            self.loads(tag, found.get("src") or found.get("xlink:href"))
        if tag == "img" and not found.get("alt"):
            self.wrong.append(f"a picture has no alt: {found.get('src')}")
        if tag == "svg" and found.get("role") == "img" and not found.get("aria-label"):
            self.wrong.append("a drawing has no aria-label")

    handle_startendtag = handle_starttag

    def loads(self, tag, target):
        """Note what a page loads; it must lie beside it."""
        if target and target.startswith(REMOTE):
            self.wrong.append(f"<{tag}> loads {target} from a network")
        elif target and not target.startswith("data:"):
            self.links.append(target)


def check(site):
    """Yield a line for everything that is wrong."""
    files = {path.resolve(): path for path in site.rglob("*.html")}
    pages = {
        path: Page(path.read_text(encoding="utf-8")) for path in sorted(files.values())
    }
    ids = {path.resolve(): set(page.ids) for path, page in pages.items()}
    for path, page in pages.items():
        name = path.relative_to(site)
        yield from (f"{name}: {line}" for line in page.wrong)
        for twice in sorted({i for i in page.ids if page.ids.count(i) > 1}):
            yield f"{name}: the id {twice} occurs twice"
        for link in sorted(set(page.links)):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name in WITHOUT_ANCHORS:
                continue
            target = (path.parent / unquote(parts.path)).resolve()
            target = path.resolve() if not parts.path else target
            if target.is_dir():
                target = target / "index.html"
            if not target.exists():
                yield f"{name}: {link} does not exist"
            elif parts.fragment and unquote(parts.fragment) not in ids.get(target, ()):
                yield f"{name}: {link}: there is no such anchor"


def main():
    """Print what is wrong with a site, and how much was looked at."""
    site = Path(sys.argv[1]).resolve()
    wrong = list(check(site))
    print("\n".join(wrong))
    print(f"{len(list(site.rglob('*.html')))} pages, {len(wrong)} mistakes")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
