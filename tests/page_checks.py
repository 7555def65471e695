"""What a page must be in a browser: readable, light and dark, narrow and wide; whole in itself."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS, SCHEMES = (400, 1400), ("light", "dark")
# Contrast is that of WCAG 2.2, 1.4.3: text that is not large has 4.5:1.
FAULTS = """
() => {
  const found = [], root = document.documentElement, canvas = document.createElement('canvas');
  const pen = canvas.getContext('2d', {willReadFrequently: true});
  canvas.width = canvas.height = 1;
  const rgba = colour => {
    pen.clearRect(0, 0, 1, 1); pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const paper = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour[3] > 250) return colour;
    }
    return rgba(matchMedia('(prefers-color-scheme: dark)').matches ? '#121212' : '#fff');
  };
  const name = e => `<${e.tagName.toLowerCase()}> "${e.textContent.trim().slice(0, 40)}"`;
  if (root.scrollWidth > root.clientWidth)
    found.push(`overflow: ${root.scrollWidth} px wide in ${root.clientWidth}`);
  if (matchMedia('(prefers-color-scheme: dark)').matches && light(paper(document.body)) > .2)
    found.push('glare: a light page in the dark scheme');
  for (const one of document.querySelectorAll('details')) one.open = true;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), seen = new Set();
  while (walker.nextNode()) {
    const text = walker.currentNode, e = text.parentElement;
    if (!text.data.trim() || seen.has(e) || e.closest('title, script, style')) continue;
    seen.add(e);
    const box = e.getBoundingClientRect(), style = getComputedStyle(e), svg = e.closest('svg');
    if (!box.width) continue;
    const scale = svg && svg.viewBox.baseVal.width
      ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    const size = parseFloat(style.fontSize) * scale;
    if (size < 12) found.push(`small: ${size.toFixed(1)} px in ${name(e)}`);
    const [a, b] = [light(rgba(svg ? style.fill : style.color)), light(paper(e))];
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (contrast < 4.5) found.push(`contrast: ${contrast.toFixed(2)} in ${name(e)}`);
    if (svg) {
      const whole = svg.getBoundingClientRect();
      if (box.left < whole.left - 1 || box.right > whole.right + 1 || box.top < whole.top - 1)
        found.push(`cut off: ${name(e)}`);
    }
  }
  for (const svg of document.querySelectorAll('svg')) {
    const boxes = [...svg.querySelectorAll('text')].map(e => [e, e.getBoundingClientRect()]);
    boxes.forEach(([e, a], i) => boxes.slice(i + 1).forEach(([f, b]) => {
      if (a.left < b.right && b.left < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom)
        found.push(`overlap: ${name(e)} and ${name(f)}`);
    }));
  }
  for (const e of document.querySelectorAll('img, svg')) {
    const said = e.getAttribute('alt') || e.getAttribute('aria-label');
    const figure = e.closest('figure');
    if (!said || said.length < 20) found.push(`no alt text: <${e.tagName}> "${said}"`);
    if (!figure || !figure.querySelector('figcaption')?.textContent.trim())
      found.push(`no title: <${e.tagName}> ${said}`);
    if (e.tagName === 'svg') {
      const words = [...e.querySelectorAll('text')].filter(t => /[a-z]{3}|%/i.test(t.textContent));
      if (words.length < 2) found.push(`no axis names: ${said}`);
    } else if (e.getBoundingClientRect().width < e.getAttribute('width') - 1)
      found.push(`small: a picture of ${e.getAttribute('width')} px is shrunk: ${said}`);
  }
  return found;
}
"""


def browser() -> str | None:
    """Return the browser of this machine."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@contextmanager
def opened() -> Iterator[Any]:
    """Open a browser without a window; skip where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if browser() is None:
        pytest.skip(f"no browser: looked for {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as driver:
        # as root, as in a container, it starts without its sandbox alone
        shown = driver.chromium.launch(executable_path=browser(), args=["--no-sandbox"])
        yield shown
        shown.close()


def faults(shown: Any, path: Path, widths: Sequence[int] = WIDTHS) -> list[str]:
    """Return what is wrong with a page, in every scheme and at every width."""
    found: list[str] = []
    tab = shown.new_page()
    address = path.absolute().as_uri()
    tab.on("console", lambda said: found.append(f"console: {said.text}") if said.type in ("error", "warning") else None)  # fmt: skip  # noqa: E501
    tab.on("pageerror", lambda error: found.append(f"page error: {error}"))
    tab.on("request", lambda one: None if one.url == address or one.url.startswith("data:") else found.append(f"request: {one.url}"))  # fmt: skip  # noqa: E501
    tab.goto(address)
    for width in widths:
        tab.set_viewport_size({"width": width, "height": 900})
        for scheme in SCHEMES:
            tab.emulate_media(color_scheme=scheme)
            found += [f"{width} px, {scheme}: {one}" for one in tab.evaluate(FAULTS)]
    tab.close()
    return found
