"""Whoever reaches the dashboard's port: users of the node, pages of other sites, strangers before they sign in."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

pytest.importorskip("streamlit")

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from streamlit import runtime
from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager
from streamlit.runtime.uploaded_file_manager import UploadedFileRec

from dashboard_app import sign_in
from dashboard_app.access_guard import AccessGuard, AccessMiddleware, guarded, key_to_use
from dashboard_app.options import DashboardOptions
from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.net.listening import MOST_STRANGERS
from tests.support.dashboard_browser import Monitor, Visit, chromium
from tests.support.dashboard_studies import Scribe

KEY = "k" * 40
UPLOAD = "/_stcore/upload_file/session/file"


async def _hello(_request: object) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def _socket(socket: WebSocket) -> None:
    await socket.accept()


class Reply(NamedTuple):
    status_code: int
    headers: dict[str, str]
    text: str


class Client:
    """Asks an application behind the guard, without a server; keeps no cookie but the first."""

    def __init__(self, *, key: str | None = KEY, **options: Any) -> None:
        guard = AccessGuard(DashboardOptions(**options), key)
        behind = Middleware(AccessMiddleware, guard=guard, scrapes=lambda header: header == "Bearer metrics")
        methods = ["GET", "POST", "PUT", "DELETE"]
        routes = [WebSocketRoute("/_stcore/stream", _socket), Route("/{path:path}", _hello, methods=methods)]
        self._app = Starlette(routes=routes, middleware=[behind])
        self.cookie = ""

    def get(self, address: str, **headers: str) -> Reply:
        return self.ask("GET", address, **headers)

    def ask(self, method: str, address: str, **headers: str) -> Reply:
        """One request; `_` in a header's name is a hyphen."""
        begin, *more = self._run({"type": "http", "method": method}, {"type": "http.request"}, address, headers)
        given = {name.decode(): value.decode() for name, value in begin["headers"]}
        return Reply(begin["status"], given, b"".join(one.get("body", b"") for one in more).decode())

    def connects(self, **headers: str) -> bool:
        """Whether a web socket is accepted."""
        first, *_ = self._run({"type": "websocket"}, {"type": "websocket.connect"}, "/_stcore/stream", headers)
        return bool(first["type"] == "websocket.accept")

    def _run(self, kind: dict[str, str], first: dict[str, str], address: str, headers: dict[str, str]) -> Any:
        path, _, query = address.partition("?")
        headers = {"host": "127.0.0.1:8501", "cookie": self.cookie} | headers
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        sent: list[Any] = []

        async def receive() -> dict[str, str]:
            return first

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {**kind, "path": path, "query_string": query.encode(), "headers": raw}
        asyncio.run(self._app(scope, receive, send))
        return sent


def admitted(**options: Any) -> Client:
    """A browser that has opened the address with the key."""
    one = Client(**options)
    one.cookie = one.get(f"/?key={KEY}").headers["set-cookie"].split(";")[0]
    return one


@pytest.mark.parametrize(
    "path", ["/", "/metrics", "/version", "/static/js/x.js", "/media/x", "/_stcore/health", UPLOAD]
)
def test_without_the_key_nothing_answers(path: str) -> None:
    one = Client(actions=True)

    for refused in (one.get(path), one.ask("PUT", path), one.get(f"{path}?key=guess"), one.get(f"{path}?key=")):
        assert refused.status_code == 403
        assert "hello" not in refused.text
    assert one.get(path, authorization="Bearer guess").status_code == 403
    assert one.get(path, cookie=f"hopaas_key_8501={KEY}").status_code == 403
    assert not one.connects()


def test_the_address_with_the_key_is_opened_once_and_leaves_no_key_behind() -> None:
    one = Client()

    first = one.get(f"/live?study=a+b%26c&key={KEY}")

    assert (first.status_code, first.headers["location"]) == (303, "/live?study=a+b%26c")
    cookie = first.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and KEY not in cookie
    assert one.get("/live").status_code == 403
    one.cookie = cookie.split(";")[0]
    assert one.get("/live").text == "hello"
    assert one.connects()


def test_a_program_sends_the_key_in_a_header_and_a_scraper_its_token() -> None:
    one = Client()

    assert one.get("/metrics", authorization=f"Bearer {KEY}").text == "hello"
    assert one.get("/metrics", authorization="Bearer metrics").text == "hello"
    assert one.get("/live", authorization="Bearer metrics").status_code == 403
    assert one.get("/healthz").text == "hello"  # says nothing of studies


@pytest.mark.parametrize(
    "host",
    [
        "evil.example.org:8501",
        "127.0.0.1.evil.example.org",
        "localhost.evil.org",
        "10.0.0.7:8501",
        "",
        "a,b",
        "127.0.0.1:x",
    ],
)
def test_a_name_that_is_bound_to_our_address_is_not_ours(host: str) -> None:
    one = admitted()

    assert one.get("/metrics", host=host).status_code == 403
    assert one.get("/healthz", host=host).status_code == 403
    assert not one.connects(host=host)


@pytest.mark.parametrize("host", ["localhost:9000", "LOCALHOST", "127.0.0.1", "[::1]:8501", "localhost."])
def test_a_tunnel_may_end_at_another_port_of_loopback(host: str) -> None:
    assert admitted().get("/", host=host).text == "hello"


def test_other_names_are_those_that_were_allowed() -> None:
    assert admitted(allowed_hosts=("lab.example.org",)).get("/", host="lab.example.org").text == "hello"
    everywhere = admitted(host="0.0.0.0")
    assert everywhere.get("/", host="10.0.0.7:8501").text == "hello"
    assert everywhere.get("/", host=f"{socket.gethostname()}:8501").text == "hello"
    assert everywhere.get("/", host="evil.example.org").status_code == 403


@pytest.mark.parametrize(
    "origin",
    [
        *("http://127.0.0.1:9999", "http://localhost:8501", "https://evil.example.org", "null", "file://"),
        *(
            "127.0.0.1:8501",
            "http://[",
            "http://127.0.0.1:8501@evil.example.org",
            "http://evil.example.org#127.0.0.1:8501",
        ),
    ],
)
def test_no_page_of_another_origin_asks_for_anything(origin: str) -> None:
    one = admitted(actions=True)

    assert one.get("/metrics", origin=origin).status_code == 403
    assert one.ask("PUT", UPLOAD, origin=origin).status_code == 403
    assert not one.connects(origin=origin)
    ours = "http://127.0.0.1:8501"
    assert one.get("/metrics", origin=ours).text == "hello"
    assert one.connects(origin=ours)


@pytest.mark.parametrize("site", ["same-site", "cross-site"])
def test_a_page_of_another_port_embeds_nothing(site: str) -> None:
    one = admitted()
    fetched = {"sec_fetch_site": site, "sec_fetch_mode": "no-cors"}

    assert one.get("/media/x", **fetched).status_code == 403
    assert one.ask("POST", "/x", **(fetched | {"sec_fetch_mode": "navigate"})).status_code == 403
    assert one.get("/", **(fetched | {"sec_fetch_mode": "navigate"})).text == "hello"  # a link in a mail


def test_a_read_only_dashboard_takes_no_files() -> None:
    assert admitted().ask("PUT", UPLOAD).status_code == 403
    assert admitted(actions=True).ask("PUT", UPLOAD).text == "hello"
    assert admitted(actions=True, base_path="ml").ask("PUT", f"/ml{UPLOAD}").text == "hello"


def test_files_are_taken_from_people_who_signed_in_only(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Client(key=None, actions=True, auth="oidc")
    claims = {"is_logged_in": True, "sub": "ann", "iat": time.time()}
    monkeypatch.setattr(sign_in, "person_of_cookies", lambda cookies, now: sign_in.person(claims) * ("s" in cookies))

    assert one.get("/").text == "hello"  # the way in
    assert one.ask("PUT", UPLOAD).status_code == 403
    assert one.ask("PUT", UPLOAD, cookie="s=1").text == "hello"


def test_a_person_cannot_fill_the_memory_with_files_that_no_page_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = MemoryUploadedFileManager(UPLOAD)
    monkeypatch.setattr(runtime, "exists", lambda: True)
    monkeypatch.setattr(runtime, "get_instance", lambda: SimpleNamespace(uploaded_file_mgr=kept))
    one = admitted(actions=True)

    for number in range(5):
        assert one.ask("PUT", UPLOAD).text == "hello"
        kept.add_file(f"session {number}", UploadedFileRec("file", "x", "text/plain", bytes(32 << 20)))
    assert one.ask("PUT", UPLOAD).status_code == 403
    assert one.get("/").text == "hello"
    kept.remove_session_files("session 0")
    assert one.ask("PUT", UPLOAD).text == "hello"


def test_web_sockets_of_strangers_are_few_and_say_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sign_in, "person_of_cookies", lambda cookies, now: "ann" * ("s" in cookies))
    guard = AccessGuard(DashboardOptions(auth="oidc"), None)
    heard: dict[str, list[str]] = {}

    async def app(scope: Any, receive: Any, _send: Any) -> None:
        while heard.setdefault(scope["name"], []) is not None:
            heard[scope["name"]].append((await receive())["type"])
            if heard[scope["name"]][-1] == "websocket.disconnect":
                return

    async def go() -> None:
        middleware = AccessMiddleware(app, guard=guard, scrapes=lambda _: False)
        sockets: dict[str, asyncio.Queue[Any]] = {}
        tasks = []

        async def opened(name: str, cookie: str = "") -> None:
            sockets[name] = asyncio.Queue()
            headers = [(b"host", b"127.0.0.1:8501"), (b"cookie", cookie.encode())]
            scope = {
                "type": "websocket",
                "name": name,
                "path": "/_stcore/stream",
                "query_string": b"",
                "headers": headers,
            }
            tasks.append(asyncio.ensure_future(middleware(scope, sockets[name].get, None)))  # type: ignore[arg-type]
            await asyncio.sleep(0.01)

        await opened("ann", "s=1")
        for number in range(MOST_STRANGERS + 1):
            await opened(str(number))
        for name in ("ann", "1", "2"):
            sockets[name].put_nowait({"type": "websocket.receive", "bytes": b"x" * (100_000 if name != "1" else 100)})
        await asyncio.sleep(0.05)
        assert heard.pop("0") == heard.pop("2") == ["websocket.disconnect"]
        assert heard.pop("1") == heard.pop("ann") == ["websocket.receive"]
        assert not any(heard.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(go())


@pytest.mark.parametrize("path", ["/_stcore/metrics", "/media/file.csv"])
def test_what_streamlit_keeps_is_for_people_who_signed_in_only(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(sign_in, "person_of_cookies", lambda cookies, now: "ann" * ("s" in cookies))
    for prefix in ("", "/ml"):
        one = Client(key=None, auth="oidc", base_path=prefix)
        assert one.get(prefix + path).status_code == 403
        assert one.get(prefix + path, cookie="s=1").text == "hello"
    assert admitted().get(path).text == "hello"


def test_a_cookie_counts_if_it_is_signed_and_not_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    from streamlit.web.server.starlette.starlette_app_utils import create_signed_value
    from streamlit.web.server.starlette.starlette_server_config import USER_COOKIE_NAME

    monkeypatch.setattr(sign_in, "get_cookie_secret", lambda: "s" * 32)

    def cookies(secret: str = "s" * 32, **claims: Any) -> dict[str, str]:
        text = json.dumps({"is_logged_in": True, "sub": "ann", "iat": 1000.0} | claims)
        return {USER_COOKIE_NAME: create_signed_value(secret, USER_COOKIE_NAME, text).decode()}

    assert sign_in.person_of_cookies(cookies(), now=2000.0) == "ann"
    assert sign_in.person_of_cookies(cookies(), now=1000.0 + 13 * 3600) == ""
    assert sign_in.person_of_cookies(cookies(iat=None), now=2000.0) == ""
    assert sign_in.person_of_cookies(cookies(sub=None), now=2000.0) == ""
    assert sign_in.person_of_cookies(cookies(is_logged_in=False), now=2000.0) == ""
    assert sign_in.person_of_cookies(cookies("x" * 32), now=2000.0) == ""
    assert sign_in.person_of_cookies({}, now=2000.0) == ""
    monkeypatch.setenv("HOPAAS_DASHBOARD_SIGN_IN", "60")
    assert sign_in.person_of_cookies(cookies(), now=1061.0) == ""
    monkeypatch.setenv("HOPAAS_DASHBOARD_SIGN_IN", "soon")
    with pytest.raises(ConfigurationError, match="HOPAAS_DASHBOARD_SIGN_IN"):
        sign_in.lasts()


def test_optunas_dashboard_wants_the_same_key() -> None:
    asked: list[str] = []

    def behind(environ: dict[str, Any], start: Any) -> list[bytes]:
        asked.append(environ["PATH_INFO"])
        return []

    app = guarded(behind, AccessGuard(DashboardOptions(), KEY))

    def ask(query: str = "", **headers: str) -> tuple[str, dict[str, str]]:
        said: list[Any] = ["200"]
        environ = {
            "PATH_INFO": "/api/studies",
            "REQUEST_METHOD": "GET",
            "QUERY_STRING": query,
            "HTTP_HOST": "localhost",
        }
        app(
            environ | {f"HTTP_{name.upper()}": value for name, value in headers.items()},
            lambda *it: said.__setitem__(slice(None), it),
        )
        return said[0], dict(said[1]) if len(said) > 1 else {}

    assert ask()[0] == "403 Forbidden"
    status, headers = ask(f"key={KEY}")
    assert (status, headers["Location"]) == ("303 See Other", "/api/studies")
    cookie = headers["Set-Cookie"].split(";")[0]
    assert ask(cookie=cookie, host="evil.example.org")[0] == "403 Forbidden"
    assert ask(cookie=cookie, origin="http://localhost:1")[0] == "403 Forbidden"
    assert asked == []
    assert ask(cookie=cookie)[0] == "200"
    assert asked == ["/api/studies"]


def test_a_key_is_random_or_long_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {key_to_use(DashboardOptions()) for _ in range(5)}
    assert len(keys) == 5 and all(len(key or "") >= 40 for key in keys)
    assert key_to_use(DashboardOptions(auth="oidc")) is None
    file = tmp_path / "key"
    monkeypatch.setenv("HOPAAS_DASHBOARD_KEY_FILE", str(file))
    with pytest.raises(ConfigurationError, match="No such file"):
        key_to_use(DashboardOptions())
    file.write_text("short\n")
    with pytest.raises(ConfigurationError, match="16 printable"):
        key_to_use(DashboardOptions())
    file.write_text(f"{KEY}\n")
    assert key_to_use(DashboardOptions()) == KEY


# --- a real server, and a browser ---


@pytest.fixture(scope="module")
def monitor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitor]:
    home = tmp_path_factory.mktemp("home")
    scribe = Scribe(name="digits")
    scribe.join("ann", "north")
    scribe.trial("ann", 1.0, lr=1e-3)
    scribe.put_into(str(home / "store"))
    with Monitor(str(home / "store"), "--allow-actions", "--optuna", cwd=home) as one:
        yield one


def test_another_user_of_the_node_gets_nothing_from_the_real_server(monitor: Monitor) -> None:
    for port in (monitor.port, monitor.port + 1):
        for path in ("/", "/metrics", "/_stcore/health", "/api/studies", "/media/x", "/_stcore/upload_file/a/b"):
            assert monitor.get(path, port=port, Authorization="")[0] == 403, (port, path)
            assert monitor.get(path, port=port, Host="evil.example.org")[0] == 403, (port, path)
    assert monitor.get("/metrics")[0] == 200
    assert monitor.get("/api/studies", port=monitor.port + 1)[0] == 200


def test_a_browser_without_the_key_is_told_how_to_come_in(monitor: Monitor) -> None:
    with chromium() as browser:
        stranger = browser.new_context().new_page()
        answer = stranger.goto(monitor.address("/live?study=digits"))
        assert answer is not None and answer.status == 403
        stranger.get_by_label("Key").fill(monitor.key)
        stranger.get_by_role("button", name="Open").click()
        stranger.locator("h1.hp-title").first.wait_for(timeout=60_000)
        assert "key=" not in stranger.url

        visit = Visit(browser, monitor)
        page = visit.go("/live?study=digits")
        refused = page.evaluate(
            """port => new Promise(done => {
                 const socket = new WebSocket(`ws://localhost:${port}/_stcore/stream`);
                 socket.onopen = () => done('open'); socket.onerror = () => done('refused'); })""",
            monitor.port,
        )  # a page at 127.0.0.1 is another origin than one at localhost
        assert refused == "refused"
        with visit.page.context.expect_page() as opened:
            page.get_by_role("link", name="optuna-dashboard").click()
        opened.value.get_by_text("digits").first.wait_for(timeout=60_000)
        browser.close()


def test_an_address_that_the_provider_has_not_verified_is_nobodys_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOPAAS_OIDC_CLAIM", "email")
    claims = {"sub": "7", "email": "ann@example.org"}
    assert sign_in.person(claims) == ""
    for yes in (True, "true"):
        assert sign_in.person({**claims, "email_verified": yes}) == "ann@example.org"
    for no in (False, "false", "False", "no", "0", "", None, 0, 1, [True]):
        assert sign_in.person({**claims, "email_verified": no}) == ""
    monkeypatch.setenv("HOPAAS_OIDC_CLAIM", "preferred_username")
    assert sign_in.person({"preferred_username": "ann"}) == "ann", "the provider states this claim itself"


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"cookie_secret": "short"}, "cookie_secret"),
        ({"server_metadata_url": "http://id.example.org/x"}, "server_metadata_url"),
        ({"server_metadata_url": "http://127.0.0.1.evil.example/x"}, "server_metadata_url"),
        ({"server_metadata_url": "file:///etc/passwd"}, "server_metadata_url"),
        ({"redirect_uri": "http://lab.example.org/oauth2callback"}, "redirect_uri"),
        ({"redirect_uri": "http://localhost@lab.example.org/oauth2callback"}, "redirect_uri"),
    ],
)
def test_no_provider_is_asked_without_tls_and_no_cookie_is_signed_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], why: str
) -> None:
    given = {
        "redirect_uri": "http://localhost:8501/oauth2callback",
        "cookie_secret": "c" * 32,
        "server_metadata_url": "https://id.example.org/.well-known/openid-configuration",
    }
    file = tmp_path / "oidc.toml"
    monkeypatch.setenv("HOPAAS_OIDC_FILE", str(file))

    def write(values: dict[str, str], section: str = "auth") -> None:
        lines = "".join(f'{key} = "{value}"\n' for key, value in values.items())
        file.write_text(
            f'[auth]\ncookie_secret = "{"c" * 32}"\n[{section}]\n{lines}' if section != "auth" else f"[auth]\n{lines}"
        )

    for right in ({}, {"server_metadata_url": "HTTPS://id.example.org/x"}, {"redirect_uri": "HTTP://[::1]:8501/x"}):
        write(given | right)
        assert sign_in.provider() == given | right
    write(given | changed)
    with pytest.raises(ConfigurationError, match=why):
        sign_in.provider()
    if why != "cookie_secret":
        write(given | changed, "auth.okta")
        with pytest.raises(ConfigurationError, match=why):
            sign_in.provider()


def test_a_provider_without_tls_is_asked_only_where_the_settings_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "oidc.toml"
    monkeypatch.setenv("HOPAAS_OIDC_FILE", str(file))

    def provider(
        insecure: str, issuer: str = "http://id.example.org/x", back: str = "https://lab.example.org/x"
    ) -> Any:
        urls = f'server_metadata_url = "{issuer}"\nredirect_uri = "{back}"\n'
        file.write_text(f'[auth]\ncookie_secret = "{"c" * 32}"\n{insecure}\n{urls}')
        return sign_in.provider()

    assert "insecure" not in provider("insecure = true"), "Streamlit is not told"
    for wrong in ("", "insecure = false", 'insecure = "true"', "insecure = 1"):
        with pytest.raises(ConfigurationError, match="insecure"):
            provider(wrong)
    with pytest.raises(ConfigurationError, match="server_metadata_url"):
        provider("insecure = true", issuer="file:///etc/passwd")
    with pytest.raises(ConfigurationError, match="redirect_uri"):
        provider("insecure = true", back="http://lab.example.org/x")
