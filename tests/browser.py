"""A real browser without a window: Chromium, driven through its WebDriver."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
_FLAGS = """
    headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update
    disable-sync disable-dev-shm-usage hide-scrollbars force-color-profile=srgb
"""


@contextmanager
def browser(width: int = 1280, height: int = 1000) -> Iterator[Chrome]:
    """A browser with an empty profile and a window of `width` by `height` CSS pixels. It must be installed."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ChromeOptions()
        options.binary_location = BROWSER or ""
        for flag in (*_FLAGS.split(), f"user-data-dir={profile}"):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = Chrome(options=options, service=Service(DRIVER))
        try:
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            yield driver
        finally:
            driver.quit()


def prefer(driver: Chrome, **media: str) -> None:
    """What the user's system asks of pages: ``prefers_color_scheme="dark"``."""
    features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def open_file(driver: Chrome, path: Path) -> None:
    """Open a page from the disk."""
    driver.get(path.absolute().as_uri())
