"""Sites behind proxies: squid with a login, SOCKS5, NO_PROXY; and a server behind nginx."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

import hopaas_p2p
from hopaas_p2p.errors import ConfigurationError, Denied, HopaasError, StoreUnreachable
from hopaas_p2p.net import proxies
from hopaas_p2p.net.proxies import ServerAddress
from hopaas_p2p.open import open_store
from hopaas_p2p.remote import client
from hopaas_p2p.testing.commits import append_many, everything
from tests.support.pgbouncer import find_pgbouncer, transaction_pooler
from tests.support.ports import free_port
from tests.support.postgres_fixtures import OWNER, missing
from tests.support.processes import SPACE, until
from tests.support.served import HOST, Centre, fetch
from tests.support.site_fixtures import PASSWORD, USER, Socks5, Squid, nginx


@pytest.fixture
def url(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store through a server, with a token for it in the environment."""
    monkeypatch.setenv("HOPAAS_TOKEN", centre.token().secret.reveal())
    return centre.url(centre.serve().port)


def asks(url: str) -> None:
    with contextlib.closing(open_store(url)) as store:
        store.catalog().exchange(None, 0)


# --- squid -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_proxy_that_wants_a_login_is_passed(
    url: str, squid: Squid, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, squid.url())
    asks(url)
    until(lambda: any(f"CONNECT {HOST}:" in line and USER in line for line in squid.requests()))


@pytest.mark.parametrize(
    ("login", "complaint"), [(("", ""), "it requires a login"), ((USER, "wrong"), "the login in HTTPS_PROXY is wrong")]
)
def test_a_proxy_that_refuses_says_so_and_what_to_do(
    url: str, squid: Squid, monkeypatch: pytest.MonkeyPatch, login: tuple[str, str], complaint: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", squid.url(*login))
    with pytest.raises(ConfigurationError, match=complaint) as refused:
        asks(url)
    said = str(refused.value)
    assert "407" in said
    assert "HTTPS_PROXY=" in said
    assert "wrong@" not in said
    assert "\n" not in said


def test_a_server_that_the_proxy_cannot_reach_is_worth_another_try(
    url: str, squid: Squid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", squid.url())
    with pytest.raises(StoreUnreachable, match=r"answered 503.*cannot reach localhost"):
        asks(f"https://{HOST}:{free_port()}")


def test_a_proxy_that_is_down_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://{USER}:secret@127.0.0.1:{free_port()}")
    with pytest.raises(StoreUnreachable, match=r"the proxy http://127.0.0.1:\d+ cannot be reached") as refused:
        asks(url)
    assert "secret" not in str(refused.value)


def test_no_proxy_is_obeyed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("NO_PROXY", "example.org,localhost")
    asks(url)


@pytest.mark.parametrize("value", ["ftp://proxy:1", "http://", "http://proxy:port", "https://proxy:3128"])
def test_a_proxy_that_is_not_understood_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(ConfigurationError, match="cannot be parsed"):
        proxies.proxy_for(ServerAddress("gw.example.org"))


def test_a_study_goes_on_while_the_proxy_is_restarted_again_and_again(
    url: str, squid: Squid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", squid.url())
    study = hopaas_p2p.open_study(url, "s", space=SPACE, budget=40)
    over, restarts = threading.Event(), 0

    def restart() -> None:
        nonlocal restarts
        while not over.wait(0.4):
            squid.kill()
            squid.start()
            restarts += 1

    restarting = threading.Thread(target=restart)
    restarting.start()
    try:
        until(lambda: restarts > 0)
        study.optimize(lambda trial: over.wait(0.05) or trial.params["lr"])
    finally:
        over.set()
        restarting.join(60)
    states = [trial.state.name for trial in study.state.trials]
    assert states == ["COMPLETE"] * 40
    assert restarts >= 2
    study.close()


# --- names with several addresses ---------------------------------------------------------------------------------


def test_an_address_that_does_not_answer_does_not_keep_the_others_from_being_tried(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a name has an IPv6 address and the site's firewall swallows IPv6."""
    monkeypatch.setattr(client, "DIAL", 8.0)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as hole, contextlib.ExitStack() as waiting:
        for _ in range(3):  # the queue of a server that never accepts is full, and the next packet is not answered
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(hole.getsockname())
        real = socket.getaddrinfo

        def both(host: str, asked: int, *rest: Any, **more: Any) -> list[Any]:
            found = [one for one in real("127.0.0.1", asked, *rest, **more) if one[1] == socket.SOCK_STREAM]
            return [(*one[:4], hole.getsockname()) for one in found] + found

        monkeypatch.setattr(socket, "getaddrinfo", both)
        asks(url)


# --- SOCKS -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "asked"), [("socks5h", HOST), ("socks5", "127.0.0.1")])
def test_socks5_is_passed_and_who_resolves_the_name_is_chosen_by_the_scheme(
    url: str, monkeypatch: pytest.MonkeyPatch, scheme: str, asked: str
) -> None:
    with Socks5(USER, PASSWORD) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"{scheme}://{USER}:p%40ss%3Aword%2F1@127.0.0.1:{proxy.port}")
        asks(url)
        assert proxy.asked == [asked]


def test_socks5_without_a_login_is_passed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Socks5() as proxy:
        monkeypatch.setenv("ALL_PROXY", f"socks5h://127.0.0.1:{proxy.port}")
        asks(url)


@pytest.mark.parametrize(
    ("login", "kind", "complaint"),
    [
        (f"{USER}:wrong@", ConfigurationError, "the login in HTTPS_PROXY is wrong"),
        (f"{USER}:p%40ss%3Aword%2F1@", StoreUnreachable, "cannot reach localhost"),
    ],
)
def test_a_refusal_of_a_socks_proxy_is_one_clear_line(
    url: str, monkeypatch: pytest.MonkeyPatch, login: str, kind: type[HopaasError], complaint: str
) -> None:
    with Socks5(USER, PASSWORD) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"socks5h://{login}127.0.0.1:{proxy.port}")
        with pytest.raises(kind, match=complaint) as refused:
            asks(f"https://{HOST}:{free_port()}")
        assert "wrong@" not in str(refused.value)


# --- nginx -------------------------------------------------------------------------------------------------------


def test_nginx_may_stand_before_the_server(centre: Centre, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = centre.serve("--behind-proxy", "127.0.0.1", tls=False)
    monkeypatch.setenv("HOPAAS_TOKEN", centre.token().secret.reveal())
    with nginx(*centre.pair, server.port, tmp_path) as port:
        with contextlib.closing(open_store(centre.url(port))) as store:
            log = store.log("u")
            append_many(log, "a", 3)
            assert len(everything(log)) == 3
        assert fetch(port, "/healthz", centre.authority) == (200, "ok\n")
        assert fetch(port, "/metrics", centre.authority)[0] == 404
        (opened,) = server.events("opened")
        assert opened["address"] == "127.0.0.1"
        monkeypatch.setenv("HOPAAS_TOKEN", "ann.1:wrong")
        with pytest.raises(Denied, match="401"):
            asks(centre.url(port))


def test_nginx_before_a_server_that_is_down_is_worth_another_try(
    centre: Centre, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOPAAS_TOKEN", "ann.1:any")
    with nginx(*centre.pair, free_port(), tmp_path) as port, pytest.raises(StoreUnreachable, match="502"):
        asks(centre.url(port))


# --- a pooler ----------------------------------------------------------------------------------------------------


def test_a_pooler_may_stand_between_server_and_database(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_pgbouncer() is None:
        missing("pgbouncer")
    monkeypatch.setenv("HOPAAS_TOKEN", f"{OWNER}:{centre.server.password}")
    with transaction_pooler(centre.server, OWNER, size=2) as port:
        server = centre.serve(target=f"postgresql://127.0.0.1:{port}/store")
        stores = [open_store(centre.url(server.port)) for _ in range(5)]
        for number, store in enumerate(stores):
            append_many(store.log("u"), f"peer{number}", 2)
        assert len(everything(stores[0].log("u"))) == 10
        for store in stores:
            store.close()
