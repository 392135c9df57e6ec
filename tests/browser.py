"""Pages in a headless Chromium: how they fit, what they show, what they ask for and complain of."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"),
    *("--force-device-scale-factor=1", "--virtual-time-budget=5000", "--no-first-run", "--disable-component-update"),
)
PROBE = """<script>addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument;
  for (const d of page.querySelectorAll("details")) d.open = true;
  const images = [...page.images];
  const loaded = page.defaultView.performance.getEntriesByType("resource");
  const text = page.defaultView.getComputedStyle(page.body);
  document.body.innerHTML = "<pre>" + [page.documentElement.scrollWidth, images.length,
    images.filter(i => i.complete && i.naturalWidth > 0).length, page.styleSheets.length,
    loaded.filter(e => !e.name.startsWith("data:")).length].join(" ") + "|" + text.backgroundColor + "</pre>";
});</script>"""

# a machine without it may skip, a build server must not
needs_browser = pytest.mark.skipif(BROWSER is None and "CI" not in os.environ, reason="no Chromium")


@dataclass(frozen=True)
class Seen:
    """A page as a browser shows it, all its details open.

    Args:
        width: in pixels, that it needs.
        images: in it.
        shown: how many of them are.
        styles: style sheets.
        requests: for anything that is not in the page itself.
        background: CSS colour of the page.
        complaints: lines of the console.
    """

    width: int
    images: int
    shown: int
    styles: int
    requests: int
    background: str
    complaints: list[str]


def look_at(page: str, width: int, folder: Path, dark: bool = False) -> Seen:
    """Opens a page `width` pixels wide; `folder` takes what the browser keeps."""
    framed = folder / "framed.html"
    frame = f'<iframe style="border:0;width:{width}px;height:900px" srcdoc="{html.escape(page)}"></iframe>'
    framed.write_text(f"<!doctype html><body>{frame}{PROBE}</body>", encoding="utf-8")
    assert BROWSER is not None
    theme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    command = [BROWSER, *OPTIONS, *theme, f"--user-data-dir={folder}", "--dump-dom", framed.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    numbers, background = re.search(r"<pre>([\d ]+)\|(.*)</pre>", done.stdout).groups()
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Seen(*map(int, numbers.split()), background, complaints)
