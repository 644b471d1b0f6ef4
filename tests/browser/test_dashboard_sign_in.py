"""Sign-in through a provider of OpenID Connect, in a real browser: who sees and does what."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("streamlit")

import hopaas_p2p
from hopaas_p2p.study.audit import audit, author
from tests.support.dashboard_browser import Monitor, Visit, chromium
from tests.support.dashboard_studies import Scribe
from tests.support.oidc_provider import Provider, serving
from tests.support.ports import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with serving(free_port()) as one:
        yield one


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def monitor(home: Path, provider: Provider) -> Iterator[Monitor]:
    scribe = Scribe(name="digits")
    scribe.join("ann", "north")
    scribe.trial("ann", 1.0, lr=1e-3)
    scribe.put_into(str(home / "store"))
    one = Monitor(
        str(home / "store"),
        "--auth",
        "oidc",
        "--allow-actions",
        cwd=home,
        HOPAAS_DASHBOARD_OWNERS="ann",
        HOPAAS_OIDC_CLAIM="preferred_username",
        HOPAAS_OIDC_FILE=str(home / "oidc.toml"),
    )
    (home / "oidc.toml").write_text(provider.secrets_toml(one.address("/oauth2callback")))
    with one:
        yield one


def sign_in(browser: Browser, monitor: Monitor, provider: Provider, person: str) -> Visit:
    """A browser at which this person has signed in."""
    provider.person = person
    visit = Visit(browser, monitor)
    visit.go("/")
    visit.page.get_by_role("button", name="Sign in").click()
    visit.page.get_by_text(f"Signed in as {person}").wait_for(state="attached")
    return visit


def test_a_stranger_sees_nothing_but_the_door(browser: Browser, monitor: Monitor) -> None:
    visit = Visit(browser, monitor)

    page = visit.go("/live?study=digits")

    page.get_by_role("button", name="Sign in").wait_for()
    assert "digits" not in page.locator("body").inner_text()
    assert monitor.get("/metrics")[0] == 401
    assert monitor.get("/_stcore/metrics")[0] == 403
    assert monitor.get("/healthz")[0] == 200
    visit.check()
    visit.close()


def test_who_signs_in_comes_to_the_page_that_was_asked_for(
    browser: Browser, monitor: Monitor, provider: Provider
) -> None:
    provider.person = "ann"
    visit = Visit(browser, monitor)
    page = visit.go("/explore?study=digits&chart=Slice")

    page.get_by_role("button", name="Sign in").click()

    page.locator("h1.hp-title", has_text="Explore").wait_for()
    visit.settled()
    assert page.url == monitor.address("/explore?study=digits&chart=Slice")
    visit.check()
    visit.close()


def test_who_signed_in_sees_studies_and_its_owner_may_steer(
    browser: Browser, monitor: Monitor, provider: Provider
) -> None:
    owner = sign_in(browser, monitor, provider, "ann")
    owner.page.get_by_role("link", name="digits").first.click()
    owner.page.locator("h1.hp-title", has_text="Live").wait_for()
    owner.page.goto(monitor.address("/steer?study=digits"))
    owner.page.get_by_role("button", name="Pause").wait_for()
    owner.check()
    owner.close()

    viewer = sign_in(browser, monitor, provider, "eve")
    viewer.page.goto(monitor.address("/notes?study=digits"))
    viewer.page.locator("h1.hp-title", has_text="Notes").wait_for()
    viewer.settled()
    assert viewer.page.get_by_text("Upload it").count() == 0
    viewer.page.goto(monitor.address("/steer?study=digits"))
    viewer.settled()
    assert viewer.page.get_by_role("button", name="Pause").count() == 0
    viewer.check()
    viewer.close()


def test_the_log_tells_whom_the_dashboard_acted_for(
    browser: Browser, monitor: Monitor, provider: Provider, home: Path
) -> None:
    visit = sign_in(browser, monitor, provider, "ann")
    visit.page.goto(monitor.address("/steer?study=digits"))
    visit.page.get_by_role("button", name="Pause").click()
    visit.page.locator(".hp-tile", has_text="of the study").get_by_text("paused", exact=True).wait_for()
    visit.check()
    visit.close()

    with contextlib.closing(hopaas_p2p.open_study(str(home / "store"), "digits", create=False)) as study:
        paused = [line for line in audit(study) if line["detail"] == "paused"]
    assert [line["on_behalf_of"] for line in paused] == ["preferred_username:ann"]
    assert author(paused[0]).endswith(" for preferred_username:ann")


def test_who_signs_out_is_outside_again(browser: Browser, monitor: Monitor, provider: Provider) -> None:
    visit = sign_in(browser, monitor, provider, "ann")

    visit.page.get_by_role("button", name="Sign out").click()

    visit.page.get_by_role("button", name="Sign in").wait_for()
    assert "digits" not in visit.page.locator("body").inner_text()
    visit.close()
