"""Sign-in by npm's certified oidc-provider, in Chromium: in, out, expiry, a claim that is missing, two people."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

pytest.importorskip("streamlit")

import hopaas_p2p
from hopaas_p2p.study.audit import audit
from tests.support.dashboard_browser import Monitor, Visit, chromium
from tests.support.dashboard_studies import Scribe
from tests.support.needs import missing
from tests.support.ports import free_port
from tests.support.processes import until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_PACKAGE = Path(os.environ.get("HOPAAS_TEST_NODE", sys.prefix)) / "node_modules/oidc-provider"


class Place(NamedTuple):
    """A dashboard that people sign in to."""

    monitor: Monitor
    store: str


class World(NamedTuple):
    """Dashboards that differ in how they are set up, at one provider."""

    browser: Browser
    usual: Place
    """Known by `sub`; ann owns, root administers."""
    by_name: Place
    """Known by `preferred_username`; a sign-in counts for seconds."""
    default_prompt: Place
    """Without `client_kwargs`: Streamlit asks for select_account."""


def place(home: Path, **env: str) -> Place:
    home.mkdir()
    store = str(home / "store")
    scribe = Scribe(name="digits")
    scribe.join("ann", "north")
    scribe.trial("ann", 1.0, lr=1e-3)
    scribe.put_into(store)
    return Place(
        Monitor(store, "--auth", "oidc", "--allow-actions", cwd=home, HOPAAS_OIDC_FILE=str(home / "oidc.toml"), **env),
        store,
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    node = shutil.which("node")
    if node is None or not _PACKAGE.is_dir():
        missing("oidc-provider (npm install --prefix .venv oidc-provider)")
    root = tmp_path_factory.mktemp("oidc")
    places = {
        "usual": place(
            root / "usual", HOPAAS_DASHBOARD_OWNERS="ann,root", HOPAAS_DASHBOARD_ADMINS="root"
        ),
        "by_name": place(
            root / "by-name", HOPAAS_OIDC_CLAIM="preferred_username", HOPAAS_DASHBOARD_SIGN_IN="20",
        ),
        "default_prompt": place(root / "default-prompt"),
    }  # fmt: skip
    port = free_port()
    clients = []
    for name, one in places.items():
        callback = one.monitor.address("/oauth2callback")
        clients.append([name, callback])
        Path(one.store).with_name("oidc.toml").write_text(
            f'[auth]\nredirect_uri = "{callback}"\ncookie_secret = "{"c" * 40}"\nclient_id = "{name}"\n'
            f'client_secret = "{"s" * 40}"\n'
            f'server_metadata_url = "http://127.0.0.1:{port}/.well-known/openid-configuration"\n'
            + ("" if name == "default_prompt" else 'client_kwargs = {prompt = "login"}\n')
        )
    script = Path(__file__).parents[1] / "support/certified_oidc.mjs"
    with contextlib.ExitStack() as stack:
        said = stack.enter_context((root / "provider.log").open("wb"))
        provider = subprocess.Popen(
            [node, str(script), str(_PACKAGE), str(port), json.dumps(clients)], stdout=said, stderr=said
        )
        stack.callback(provider.wait, 20)
        stack.callback(provider.terminate)
        monitors = {name: Place(stack.enter_context(one.monitor), one.store) for name, one in places.items()}
        answers = lambda: places["usual"].monitor.get("/.well-known/openid-configuration", port=port)[0] == 200  # noqa: E731
        until(answers, 60, what=lambda: (root / "provider.log").read_text())
        yield World(stack.enter_context(chromium()), **monitors)


def at_provider(page: Page, name: str) -> None:
    """Sign in on the provider's pages, and agree to what the dashboard asks for."""
    page.get_by_placeholder("Enter any login").fill(name)
    page.get_by_placeholder("and password").fill("anything")
    page.get_by_role("button", name="Sign-in").click()
    agree = page.get_by_role("button", name="Continue")
    home = page.locator("h1.hp-title").first
    agree.or_(home).first.wait_for()
    if agree.count():
        agree.click()
    home.wait_for()


def sign_in(world: World, where: Place, name: str, path: str = "/") -> Visit:
    """A browser in which this person has signed in."""
    visit = Visit(world.browser, where.monitor)
    visit.go(path)
    visit.page.get_by_role("button", name="Sign in").click()
    at_provider(visit.page, name)
    visit.wrong.clear()  # of the provider's pages, which want fonts from the Internet
    return visit


def test_two_people_may_do_what_is_theirs(world: World) -> None:
    ann = sign_in(world, world.usual, "ann", "/steer?study=digits")
    eve = sign_in(world, world.usual, "eve", "/steer?study=digits")
    root = sign_in(world, world.usual, "root", "/admin")

    ann.page.get_by_text("Signed in as ann (sub)").wait_for(state="attached")
    assert ann.page.url == world.usual.monitor.address("/steer?study=digits")
    ann.page.get_by_role("button", name="Pause").click()
    ann.page.locator(".hp-tile", has_text="of the study").get_by_text("paused", exact=True).wait_for()
    eve.page.get_by_text("Signed in as eve (sub)").wait_for(state="attached")
    eve.settled()
    assert eve.page.get_by_role("button", name="Pause").count() == 0
    root.page.get_by_text("Signed in as root (sub)").wait_for(state="attached")
    for visit in (ann, eve, root):
        visit.check()
        visit.close()
    with contextlib.closing(hopaas_p2p.open_study(world.usual.store, "digits", create=False)) as study:
        assert [line["on_behalf_of"] for line in audit(study) if line["detail"] == "paused"] == ["ann"]


def test_who_signs_out_is_outside_at_the_provider_too(world: World) -> None:
    visit = sign_in(world, world.usual, "eve")
    visit.page.get_by_text("Signed in as eve").wait_for(state="attached")

    visit.page.get_by_role("button", name="Sign out").click()
    visit.page.get_by_role("button", name="Yes, sign me out").click()

    visit.page.get_by_role("button", name="Sign in").wait_for()  # not on an error page of the provider's
    assert visit.page.url.startswith(world.usual.monitor.address("/"))
    assert "digits" not in visit.page.locator("body").inner_text()
    visit.page.get_by_role("button", name="Sign in").click()
    at_provider(visit.page, "ann")  # is asked for a name and a password again
    visit.page.get_by_text("Signed in as ann").wait_for(state="attached")
    visit.close()


def test_a_sign_in_ends_after_a_while_though_the_cookie_stays(world: World) -> None:
    visit = sign_in(world, world.by_name, "ann")

    def ended() -> bool:
        visit.go("/live?study=digits")
        return visit.page.get_by_text("Your session has expired").count() > 0

    until(ended, 120, what="the sign-in did not end")

    assert "north" not in visit.page.locator("body").inner_text()
    cookies = {one["name"]: one["value"] for one in visit.page.context.cookies()}
    assert "_streamlit_user" in cookies
    put = visit.page.context.request.put(world.by_name.monitor.address("/_stcore/upload_file/a/b"), data="x")
    assert put.status == 403
    visit.page.get_by_role("button", name="Sign in").click()
    at_provider(visit.page, "ann")
    visit.close()


def test_whose_provider_does_not_send_the_claim_is_told_which(world: World) -> None:
    visit = sign_in(world, world.by_name, "nobody-1")

    visit.page.get_by_text("does not send the claim 'preferred_username'").wait_for()
    assert "digits" not in visit.page.locator("body").inner_text()
    visit.page.get_by_role("button", name="Sign out").wait_for()
    visit.check()
    visit.close()


def test_without_the_prompt_in_the_secrets_such_a_provider_refuses(world: World) -> None:
    """The reason for `client_kwargs = {prompt = "login"}` in docs/monitor.md; if this fails, it may go."""
    visit = Visit(world.browser, world.default_prompt.monitor)
    visit.go("/")
    with visit.page.expect_response(lambda one: "error=invalid_request" in one.url) as refused:
        visit.page.get_by_role("button", name="Sign in").click()

    assert "prompt" in refused.value.url
    visit.page.get_by_role("button", name="Sign in").wait_for()
    visit.close()
