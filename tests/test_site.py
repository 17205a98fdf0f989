"""The site of the documentation fits the screens of a desktop and of a phone, and needs no network.

`make docs-check` runs this. It builds the site, and opens every page in a browser without a window. It is
skipped where MkDocs, Playwright or a browser (Chromium or Chrome, or Playwright's own) is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings")
sync_api = pytest.importorskip("playwright.sync_api")

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(str(page.relative_to(DOCS).with_suffix(".html")) for page in DOCS.rglob("*.md"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
DESKTOP, PHONE = 1280, 390

TOO_WIDE = """() => {
    const scrolls = element => ["auto", "scroll", "hidden"].includes(getComputedStyle(element).overflowX);
    const inside = element => {
        for (let e = element.parentElement; e && e !== document.body; e = e.parentElement)
            if (scrolls(e)) return true;
        return false;
    };
    return [...document.querySelectorAll("main *")]
        .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !inside(e))
        .map(e => `${e.tagName}: ${e.textContent.trim().slice(0, 60)}`);
}"""
"""Elements that stick out of the window, but for those in a container that scrolls."""

BROKEN = """() => [...document.querySelectorAll("td code, th code")]
    .filter(e => !/\\s/.test(e.textContent) && e.getClientRects().length > 1)
    .map(e => e.textContent)"""
"""Names in tables that stand on two lines."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built anew."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "-q", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.fixture(scope="module")
def view() -> Iterator[Any]:
    """A page of a browser without a window."""
    own = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_api.sync_playwright() as playwright:
        if own is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no Chromium or Chrome is installed")
        browser = playwright.chromium.launch(executable_path=own, args=["--no-sandbox"])
        yield browser.new_page()
        browser.close()


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_pages_fit_the_screen(width: int, page: str, view: Any, site: Path, tmp_path: Path) -> None:
    view.set_viewport_size({"width": width, "height": 900})
    view.goto((site / page).as_uri())
    problems = {
        "elements are wider than the window": view.evaluate(TOO_WIDE),
        "names are broken": view.evaluate(BROKEN),
    }
    if view.evaluate("document.scrollingElement.scrollWidth") > width or any(problems.values()):
        picture = tmp_path / "page.png"
        view.screenshot(path=picture, full_page=True)
        pytest.fail(f"{page} does not fit {width} pixels (see {picture}): {problems}")


@pytest.mark.parametrize("page", PAGES)
def test_pages_need_no_network(page: str, view: Any, site: Path) -> None:
    asked: list[str] = []

    def note(request: Any) -> None:
        asked.append(request.url)

    view.on("request", note)
    view.goto((site / page).as_uri(), wait_until="load")
    view.remove_listener("request", note)
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def test_all_formulas_are_set(site: Path) -> None:
    pages = {page: (site / page).read_text(encoding="utf-8") for page in PAGES}
    assert not [page for page, text in pages.items() if "arithmatex" in text]
    assert [page for page, text in pages.items() if "<math " in text]
