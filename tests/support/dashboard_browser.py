"""The dashboard in a real browser: Debian's Chromium, driven by Playwright, on a server in a process of its own."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.support.ports import free_ports
from tests.support.postgres_fixtures import missing
from tests.support.processes import CLI, environment, until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page

FLAGS: Final = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
WIDE: Final = {"width": 1280, "height": 900}
NARROW: Final = {"width": 390, "height": 844}
_PATIENCE: Final = 60_000.0  # milliseconds; the machine may be busy
_PROBES: Final = ("/_stcore/health", "/_stcore/host-config")
"""On a deep link Streamlit's own page asks for these below the page's path first, and takes a 404 for an answer."""


def axe() -> str:
    """The source of axe-core, from the package of npm that `.ci/run` puts beside the virtual environment's files."""
    found = sorted(Path(sys.prefix).glob("axe-core-*.tgz"))
    if not found:
        missing("axe-core (npm pack axe-core --pack-destination .venv)")
    with tarfile.open(found[-1]) as package:
        member = package.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser, headless; skips where there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        missing("chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


class Monitor:
    """`hopaas-p2p dashboard` on a free port. Use as a context manager."""

    def __init__(self, url: str, *options: str, cwd: Path, **env: str) -> None:
        self.port, _ = free_ports(2)  # --optuna takes the next one
        self._command = [*CLI, "dashboard", "--port", str(self.port), *options]
        env.setdefault("HOPAAS_STORE", url)  # no argument may hold a password
        self._errors = cwd / "dashboard.err"
        self.key = secrets.token_urlsafe(24)
        key_file = cwd / "dashboard.key"
        key_file.write_text(self.key)
        self._environment = environment(PYTHONWARNINGS="default", HOPAAS_DASHBOARD_KEY_FILE=str(key_file), **env)
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Monitor:
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                self._command, stdout=subprocess.DEVNULL, stderr=errors, env=self._environment
            )
        until(self._answers, 60, what=self.errors)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def errors(self) -> str:
        """What it said on stderr."""
        return self._errors.read_text(errors="replace")[-3000:]

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.errors()
        return self.get("/healthz")[0] == 200

    def get(self, path: str, *, port: int | None = None, **headers: str) -> tuple[int, str]:
        """(status, text) of a GET with the key."""
        headers = {"Authorization": f"Bearer {self.key}", **headers}
        request = urllib.request.Request(f"http://127.0.0.1:{port or self.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except (OSError, ValueError):
            return 0, ""

    def address(self, path: str) -> str:
        """The address of a page."""
        return f"http://127.0.0.1:{self.port}{path}"

    def admit(self, context: BrowserContext) -> None:
        """Give a browser the cookie that the address with the key gives."""
        context.request.get(self.address(f"/?key={self.key}"), max_redirects=0)


def timed_out() -> type[Exception]:
    """What Playwright raises when something did not come."""
    from playwright.sync_api import TimeoutError as Late

    return Late


class Visit:
    """One tab, that notes what goes wrong in it."""

    def __init__(self, browser: Browser, monitor: Monitor, *, dark: bool = False) -> None:
        context = browser.new_context(viewport=WIDE, color_scheme="dark" if dark else "light")  # type: ignore[arg-type]
        context.set_default_timeout(_PATIENCE)
        monitor.admit(context)
        self.page: Page = context.new_page()
        self.late = timed_out()
        self.monitor = monitor
        self.wrong: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.wrong.append(f"uncaught: {error}"))
        self.page.on("dialog", lambda dialog: self.wrong.append(f"dialog: {dialog.message}") or dialog.dismiss())

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not message.location.get("url", "").endswith(_PROBES):
            self.wrong.append(f"console: {message.text} ({message.location.get('url', '')})")

    def go(self, path: str) -> Page:
        """Open a page by its address."""
        self.page.goto(self.monitor.address(path))
        return self.settled()

    def turn_to(self, title: str) -> Page:
        """Open a page from the menu, in the same session."""
        link = self.page.get_by_test_id("stSidebar").get_by_role("link", name=title, exact=True).first
        there = self.page.locator("h1.hp-title").get_by_text(title, exact=True)

        def turned() -> bool:
            link.click()
            with contextlib.suppress(self.late):
                there.wait_for(timeout=10_000)
            return there.count() > 0

        until(turned, 60, what=lambda: f"{title} did not come; {self.wrong}")
        return self.settled()

    def settled(self) -> Page:
        """The page, when its script has run and its title is there."""
        self.page.locator("h1.hp-title").first.wait_for()
        self.page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()
        return self.page

    def followed(self) -> Page:
        """The page, when its parts (two at most) have followed the study; an open list would hold them up."""
        for _ in range(4):  # at the second question of each, the answer to its first has been acted on
            with self.page.expect_response(lambda one: "/version" in one.url):
                pass
        return self.settled()

    def choose(self, name: str, option: str = "") -> None:
        """Take the first option of a list with this in its name; the list is as old as its last redraw."""
        offered = self.page.get_by_role("option", name=option).first

        def chosen() -> bool:
            self.page.keyboard.press("Escape")
            self.page.get_by_role("combobox", name=name, exact=True).click()
            with contextlib.suppress(self.late):
                offered.click(timeout=3_000)
                return True
            self.page.keyboard.press("Escape")
            self.followed()
            return False

        until(chosen, 60, what=f"{option or 'nothing'} is not offered in {name}")

    def check(self) -> None:
        """That there is no exception box and nothing went wrong."""
        assert self.page.get_by_test_id("stException").count() == 0, self.page.get_by_test_id(
            "stException"
        ).inner_text()
        assert self.wrong == [], self.wrong

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        return int(
            self.page.evaluate(
                "Math.max(...[document.documentElement, document.querySelector('[data-testid=stMain]')]"
                ".map(one => one.scrollWidth - one.clientWidth))"
            )
        )

    def barriers(self, source: str) -> list[str]:
        """Serious and critical findings of axe-core that stay: of what is being drawn nobody is shut out yet."""
        self.page.evaluate(source)
        lasting = self._barriers()
        deadline = time.monotonic() + 10
        while lasting and time.monotonic() < deadline:
            self.page.wait_for_timeout(500)
            lasting = self._barriers()
        return lasting

    def _barriers(self) -> list[str]:
        found: list[dict[str, Any]] = self.page.evaluate(
            "axe.run(document, {resultTypes: ['violations']}).then(result => result.violations)"
        )
        return [_sentence(one) for one in found if one["impact"] in ("serious", "critical")]

    def close(self) -> None:
        self.page.context.close()


def _sentence(finding: dict[str, Any]) -> str:
    places = [node["html"][:160] for node in finding["nodes"][:3]]
    return f"{finding['impact']} {finding['id']}: {finding['help']}: {json.dumps(places)}"
