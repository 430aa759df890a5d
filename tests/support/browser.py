"""Chromium as the tests of pages use it."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.support.waiting import wait_until

OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
)
KEYS = {
    "ArrowLeft": Keys.ARROW_LEFT, "ArrowRight": Keys.ARROW_RIGHT, "ArrowDown": Keys.ARROW_DOWN,
    "Space": Keys.SPACE, "Escape": Keys.ESCAPE, "Enter": Keys.ENTER, "Tab": Keys.TAB,
}  # fmt: skip


class Browser:
    """One window."""

    def __init__(self, chromium: str, driver: str, downloads: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for option in OPTIONS:
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self._driver = webdriver.Chrome(options=options, service=Service(driver))
        self._driver.set_script_timeout(120)
        self.downloads = downloads
        downloads.mkdir(parents=True, exist_ok=True)
        self.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._driver.quit()

    def command(self, name: str, **values: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._driver.execute_cdp_cmd(name, values)

    def open(self, page: Path, *, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Open a file in a window of this size, in light or dark."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        self.command(
            "Emulation.setEmulatedMedia",
            features=[
                {"name": "prefers-color-scheme", "value": scheme},
                {"name": "prefers-reduced-motion", "value": "reduce"},
            ],
        )
        self._driver.get(page.resolve().as_uri())

    def script(self, code: str, *arguments: Any) -> Any:
        """Run a script in the page."""
        return self._driver.execute_script(code, *arguments)

    def script_async(self, code: str) -> Any:
        """Run a script that calls its last argument with the result."""
        return self._driver.execute_async_script(code)

    def all(self, selector: str) -> list[WebElement]:
        """The elements that a CSS selector finds."""
        return self._driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        """The first element that is shown."""

        def shown() -> WebElement | None:
            with suppress(StaleElementReferenceException):  # drawn anew between two questions
                return next((one for one in self.all(selector) if one.is_displayed()), None)
            return None

        found = wait_until(shown, f"shown: {selector}")
        assert found is not None
        return found

    def text(self, selector: str = "body") -> str:
        """The text of an element, as a person reads it."""
        return str(self.script("return document.querySelector(arguments[0]).innerText", selector))

    def wait_for(self, selector: str, text: str) -> None:
        """Wait until an element has a text."""
        wait_until(lambda: text in self.text(selector), f"{selector} has {text!r}")

    def click(self, selector: str) -> None:
        """Click on the first element that is shown."""
        element = self.one(selector)
        self.script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def press(self, *names: str) -> None:
        """Press keys one by one, wherever the focus is."""
        for name in names:
            ActionChains(self._driver).send_keys(KEYS.get(name, name)).perform()

    def focused(self) -> str:
        """Class and text of the element that has the focus."""
        return str(
            self.script("const one = document.activeElement; return `${one.className} ${one.innerText}`")
        )

    def screenshot(self, path: Path, *, whole: bool = False, height: int | None = None) -> Path:
        """Save what is shown, or the page from its top, as PNG."""
        values: dict[str, Any] = {"format": "png"}
        if whole or height is not None:
            size = self.command("Page.getLayoutMetrics")["cssContentSize"]
            tall = min(size["height"], height or size["height"])
            clip = {"x": 0, "y": 0, "width": size["width"], "height": tall, "scale": 1}
            values |= {"captureBeyondViewport": True, "clip": clip}
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot", **values)["data"]))
        return path

    def requests(self) -> list[str]:
        """The URLs that were requested since the last call."""
        entries = (json.loads(one["message"])["message"] for one in self._log("performance"))
        return [
            one["params"]["request"]["url"] for one in entries if one["method"] == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[str]:
        """Errors and warnings in the console since the last call."""
        return [str(one["message"]) for one in self._log("browser")]

    def _log(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._driver.get_log(kind)  # type: ignore[no-untyped-call]  # of selenium
        return found

    def downloaded(self, name: str) -> Path:
        """Wait for a download."""
        path = self.downloads / name
        wait_until(
            lambda: path.exists() and not list(self.downloads.glob("*.crdownload")), f"download of {name}"
        )
        return path
