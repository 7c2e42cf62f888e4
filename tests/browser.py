"""Look at a page as a person does: in a headless Chromium that this machine has."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


@dataclass
class Seen:
    """What a browser showed and did."""

    text: str = ""
    """The visible text."""
    width: int = 0
    """Pixels of the page; more than the window's means that it scrolls sideways."""
    images: int = 0
    without_pixels: int = 0
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    """Addresses that were asked for, but data URIs."""
    title: str = ""


def look(page: Path, *, width: int = 1280, scheme: Any = "light") -> Seen:
    """Open a page from disk; skips without a browser."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"needs a browser: one of {', '.join(NAMES)}")
    seen = Seen()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=list(QUIET))
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.on("console", lambda message: seen.console.append(message.text))
        tab.on("pageerror", lambda error: seen.console.append(str(error)))
        tab.on("dialog", lambda dialog: seen.console.append(f"dialog {dialog.message}"))
        tab.on("request", lambda asked: None if asked.url.startswith("data:") else seen.requests.append(asked.url))
        tab.goto(page.as_uri())
        seen.text, seen.title = tab.inner_text("body"), tab.title()
        seen.width = tab.evaluate("document.documentElement.scrollWidth")
        images = tab.evaluate("[...document.images].map(image => image.naturalWidth * image.naturalHeight)")
        seen.images, seen.without_pixels = len(images), images.count(0)
        browser.close()
    return seen
