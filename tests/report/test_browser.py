"""The page in a browser, at the width of a desktop and of a phone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from tests.report.conftest import Written

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTHS = (1400, 390)

# The page has no script; this one looks at it from outside, in frames of both widths.
PROBE = """<!DOCTYPE html><body><script>
const source = %s, found = [];
let left = 0;
for (const width of %s) {
  left += 1;
  const frame = document.createElement("iframe");
  frame.style = `width:${width}px;height:900px;border:0`;
  frame.onload = () => {
    const d = frame.contentDocument, root = d.documentElement;
    for (const x of d.querySelectorAll("details")) x.open = true;
    const boxes = [...d.querySelectorAll("body *")].filter(e => !e.closest(".scroll"));
    found.push({
      frame: width,
      width: root.clientWidth,  // without the scroll bar
      scroll: root.scrollWidth,
      wide: boxes.filter(e => e.getBoundingClientRect().right > root.clientWidth + 1)
                 .map(e => e.tagName + "." + e.className).slice(0, 5),
      images: [...d.images].map(i => i.complete && i.naturalWidth > 0 && i.clientWidth > 200),
      small: [...d.querySelectorAll("td, p, small")]
               .map(e => parseFloat(getComputedStyle(e).fontSize)).reduce((a, b) => Math.min(a, b)),
      tables: d.querySelectorAll(".scroll > table").length,
      loose: [...d.querySelectorAll("table")].filter(t => !t.closest(".scroll")).length,
    });
    if (--left === 0) {
      const out = document.createElement("pre");
      out.id = "found";
      out.textContent = JSON.stringify(found);
      document.body.append(out);
    }
  };
  frame.srcdoc = source;
  document.body.append(frame);
}
</script></body>"""


def browser() -> str:
    """A browser that can run without a screen."""
    found = next((p for name in BROWSERS if (p := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser here (looked for {', '.join(BROWSERS)})")
    return found


def dump(page: Path, profile: Path) -> tuple[str, str]:
    """The page's DOM after its scripts ran, and what the console said."""
    command = [
        *(browser(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--disable-dev-shm-usage", "--enable-logging=stderr", "--window-size=1500,1000"),
        *(f"--user-data-dir={profile}", "--virtual-time-budget=20000", "--dump-dom"),
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, "\n".join(console)


def test_the_page_fits_desktops_and_phones(written: Written, tmp_path: Path) -> None:
    browser()
    source = (written.folder / "report.html").read_text(encoding="utf-8")
    quoted = json.dumps(source).replace("</", "<\\/")  # ends no script early
    (tmp_path / "probe.html").write_text(PROBE % (quoted, list(WIDTHS)), encoding="utf-8")
    dom, console = dump(tmp_path / "probe.html", tmp_path / "profile")
    match = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert match, dom[-500:]
    found = sorted(json.loads(unescape(match[1])), key=lambda f: -f["frame"])
    assert [f["frame"] for f in found] == list(WIDTHS)
    for f in found:
        assert f["scroll"] <= f["width"], f"scrolls sideways at {f['width']}: {f['wide']}"
        assert f["wide"] == []
        assert len(f["images"]) == len(written.page.pictures())
        assert all(f["images"]), "a picture is missing or tiny"
        assert f["tables"] > 10
        assert f["loose"] == 0, "a table that does not scroll in a frame of its own"
        assert f["small"] >= 10
    assert console == ""
