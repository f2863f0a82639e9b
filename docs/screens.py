"""Look at the site in a browser: ``python docs/screens.py docs/_build/html``.

Each page is opened in headless Chromium, 390 and 1,280 pixels wide, light and dark. It
must not scroll sideways, must print no error to the console, and its pictures must be
there. ``--out FOLDER`` keeps pictures of the pages; words after the folder of the site
are names of pages, as in ``tutorials/dates``.

It needs node, and a folder in which ``npm install @sparticuz/chromium puppeteer-core``
has been run; the variable PUPPETEER names that folder. No part of the library or of its
tests needs them otherwise.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

SCRIPT = """
const loaded = require('@sparticuz/chromium'), chromium = loaded.default || loaded;
const puppeteer = require('puppeteer-core');
const {site, pages, out, widths, themes} = JSON.parse(process.argv[1]);
(async () => {
  const browser = await puppeteer.launch({
    args: [...chromium.args, '--no-sandbox', '--allow-file-access-from-files'],
    executablePath: await chromium.executablePath(), headless: 'shell'});
  const tab = await browser.newPage();
  let where = '', wrong = [];
  const note = text => wrong.push(`${where}: ${text}`);
  tab.on('console', m => { if (m.type() === 'error') note(m.text()); });
  tab.on('pageerror', e => note(e.message));
  for (const theme of themes) for (const width of widths) for (const page of pages) {
    where = `${page} ${width} ${theme}`;
    await tab.emulateMediaFeatures([{name: 'prefers-color-scheme', value: theme}]);
    await tab.setViewport({width, height: 900});
    await tab.goto(`file://${site}/${page}.html`);
    const seen = await tab.evaluate(() => ({
      over: document.documentElement.scrollWidth - window.innerWidth,
      empty: [...document.images].filter(i => !i.naturalWidth).map(i => i.src),
    }));
    if (seen.over > 0) note(`scrolls sideways by ${seen.over} pixels`);
    seen.empty.forEach(src => note(`${src} is not there`));
    if (out) await tab.screenshot({fullPage: true,
      path: `${out}/${page.replaceAll('/', '_')}_${width}_${theme}.png`});
  }
  await browser.close();
  console.log(JSON.stringify(wrong));
})().catch(error => { console.error(error); process.exit(1); });
"""


def missing():
    """Return what is needed and not here, in words; "" if nothing is."""
    if shutil.which("node") is None:
        return "there is no node to run a browser with"
    folder = os.environ.get("PUPPETEER", "")
    if not (folder and Path(folder, "node_modules", "puppeteer-core").exists()):
        return (
            "there is no browser: run npm install @sparticuz/chromium puppeteer-core "
            "in some folder, and name it in the variable PUPPETEER"
        )
    return ""


def look(site, pages=(), out=None, widths=(390, 1280), themes=("light", "dark")):
    """Open pages of a site, or all but those of source, and return what is wrong."""
    site = Path(site).resolve()
    found = (path.relative_to(site) for path in sorted(site.rglob("*.html")))
    pages = list(pages) or [
        path.with_suffix("").as_posix()
        for path in found
        if path.parts[0] not in ("_modules", "code")
    ]
    if out:
        Path(out).mkdir(parents=True, exist_ok=True)
    what = {"site": str(site), "pages": pages, "out": out and str(Path(out).resolve())}
    what |= {"widths": widths, "themes": themes}
    folder = os.environ["PUPPETEER"]
    done = subprocess.run(
        ["node", "-e", SCRIPT, json.dumps(what)],
        cwd=folder,
        env={**os.environ, "NODE_PATH": str(Path(folder, "node_modules"))},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return len(pages), json.loads(done.stdout.splitlines()[-1])


def main():
    """Print what is wrong with a site."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("site")
    parser.add_argument("pages", nargs="*")
    parser.add_argument("--out")
    args = parser.parse_args()
    if reason := missing():
        sys.exit(reason)
    number, wrong = look(args.site, args.pages, args.out)
    print("\n".join(wrong))
    print(f"{number} pages, two widths, light and dark: {len(wrong)} mistakes")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
