"""What a browser asks without Streamlit, what stands before the server, and texts from others."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple

import pytest

pytest.importorskip("streamlit")

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.routing import Route

from dashboard_app import version_poll
from dashboard_app.middleware import DashboardMiddleware, policy
from dashboard_app.optuna_server import confined
from dashboard_app.pages.notes import tame
from dashboard_app.theme import plain
from hopaas_p2p.analysis.html import safe


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def get(app: Any, address: str, **headers: str) -> Reply:
    """What an ASGI application answers, without a server."""
    path, _, query = address.partition("?")
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Reply(sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:]))


# --- the version poll --------------------------------------------------------------------------------------------


def test_a_ticket_gets_its_answer_and_another_gets_none() -> None:
    app = Starlette(routes=[version_poll.route("/base")])
    ticket = version_poll.issue(None, lambda: {"version": "7"})

    known, unknown = get(app, f"/base/version?ticket={ticket}"), get(app, "/base/version?ticket=guess")

    assert json.loads(known.body) == {"version": "7"}
    assert known.headers["cache-control"] == "no-store"
    assert unknown.status == get(app, "/base/version").status == 404


def test_a_ticket_is_kept_while_its_page_lives_and_forgotten_after(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr("dashboard_app.version_poll.time.monotonic", lambda: clock)
    monkeypatch.setattr(version_poll, "_answers", {})
    first = version_poll.issue(None, lambda: {"n": 1})
    assert version_poll.issue(first, lambda: {"n": 2}) == first
    assert version_poll.ask(first) == {"n": 2}

    clock = 2000.0
    second = version_poll.issue(None, lambda: {"n": 3})

    assert version_poll.ask(first) is None
    assert version_poll.ask(second) == {"n": 3}
    assert version_poll.issue(first, lambda: {"n": 4}) != first


# --- before the server -------------------------------------------------------------------------------------------


@pytest.fixture
def behind() -> Starlette:
    async def home(_request: object) -> PlainTextResponse:
        return PlainTextResponse("home")

    return Starlette(routes=[Route("/{path:path}", home)], middleware=[Middleware(DashboardMiddleware, prefix="/mon")])


def test_every_answer_keeps_the_page_to_this_server(behind: Starlette) -> None:
    headers = get(behind, "/", host="lab.example.org:8501").headers

    assert (
        "connect-src 'self' ws://lab.example.org:8501 wss://lab.example.org:8501 data:"
        in headers["content-security-policy"]
    )
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "http:" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_a_host_that_is_none_adds_nothing_to_the_policy() -> None:
    assert policy("evil.example; script-src *") == policy("")


# --- texts from others -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '" onload="x', "&amp;<b>"])
def test_text_in_html_stays_text(text: str) -> None:
    shown = safe(text)

    assert "<" not in shown
    assert '"' not in shown


@pytest.mark.parametrize("text", ["**bold**", "[x](javascript:1)", "# head", ":red[x]", "$x$", "![i](http://e)", "<b>"])
def test_text_in_markdown_means_nothing(text: str) -> None:
    shown = plain(text)

    marks = [at for at, letter in enumerate(shown) if letter in "*[](#:$!<`"]
    assert marks
    assert all(shown[at - 1] == "\\" for at in marks)


def test_a_name_that_means_nothing_in_markdown_stays_as_it_is() -> None:
    assert plain("sgd_momentum weight-decay") == "sgd_momentum weight-decay"  # else a screen reader reads the strokes
    assert plain("_a_ -b") == "\\_a\\_ \\-b"


def test_a_note_fetches_no_picture_from_elsewhere() -> None:
    assert tame("see ![p](https://evil/pixel.png) and $x$") == "see &#33;[p](https://evil/pixel.png) and $x$"
    assert tame("\\![p](https://evil/pixel.png)") == "\\&#33;[p](https://evil/pixel.png)"  # an entity is no picture


def test_optunas_dashboard_changes_nothing_when_we_are_read_only() -> None:
    asked: list[str] = []
    answers: list[str] = []

    def app(environ: dict[str, object], start_response: object) -> list[bytes]:
        asked.append(str(environ["REQUEST_METHOD"]))
        return [b"ok"]

    guarded = confined(app, actions=False)  # type: ignore[arg-type]

    for method in ("GET", "DELETE", "POST", "PUT"):
        guarded({"REQUEST_METHOD": method}, lambda status, _headers: answers.append(status))

    assert asked == ["GET"]
    assert answers == ["403 Forbidden"] * 3


# --- the way through the sign-in ---------------------------------------------------------------------------------


@pytest.fixture
def door() -> Starlette:
    """Streamlit's two redirects: to the provider, and back to the first page."""
    away = Route("/mon/auth/login", lambda _: RedirectResponse("https://provider.example.org/authorize", 302))
    back = Route("/mon/oauth2callback", lambda _: RedirectResponse("/mon/", 302))
    return Starlette(routes=[away, back], middleware=[Middleware(DashboardMiddleware, prefix="/mon")])


def test_the_address_asked_for_outlasts_the_sign_in(door: Starlette) -> None:
    asked = "/mon/trial?study=a+b%3Bc&trial=3"
    left = get(door, "/mon/auth/login", host="here:1", referer=f"http://here:1{asked}")
    kept = left.headers["set-cookie"].split(";")[0]

    came = get(door, "/mon/oauth2callback?code=1", host="here:1", cookie=f"other=1; {kept}")
    again = get(door, "/mon/oauth2callback?code=1", host="here:1")

    assert left.headers["location"] == "https://provider.example.org/authorize"
    assert came.headers["location"] == asked
    assert "Max-Age=0" in came.headers["set-cookie"]
    assert again.headers["location"] == "/mon/"


@pytest.mark.parametrize(
    "page",
    [
        "http://elsewhere/mon/live",
        "http://here:1//elsewhere/x",
        "http://here:1/other",
        "http://here:1/monday",
        "",
        "http://[",
    ],
)
def test_no_other_page_is_where_a_sign_in_leads(page: str, door: Starlette) -> None:
    left = get(door, "/mon/auth/login", host="here:1", referer=page)

    assert "set-cookie" not in left.headers


@pytest.mark.parametrize(
    "way", ["//elsewhere", "/%5Celsewhere", "https://elsewhere", "/mon/%0D%0AX-Evil:1", "live", ""]
)
def test_a_cookie_made_by_others_leads_nowhere_else(way: str, door: Starlette) -> None:
    came = get(door, "/mon/oauth2callback?code=1", host="here:1", cookie=f"hopaas_asked={way}")

    assert came.headers["location"] == "/mon/"
