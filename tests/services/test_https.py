"""Whom a server lets in, whom it sends away and how, and what it tells."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import hopaas_p2p
from hopaas_p2p import access
from hopaas_p2p.core import snapshot
from hopaas_p2p.errors import ConfigurationError, Denied, StoreUnreachable
from hopaas_p2p.open import open_store
from hopaas_p2p.remote import client
from hopaas_p2p.remote.client import RemoteStore
from hopaas_p2p.remote.protocol import StoreRequest, encode, encode_header, refusal
from hopaas_p2p.remote.server import OWN, Service, Token
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.stores.base import Outgoing, Store
from hopaas_p2p.testing.commits import append_many, everything, outgoing, sealed, study_snapshot
from tests.support.latency import Relay
from tests.support.ports import free_port
from tests.support.postgres import Server
from tests.support.processes import SPACE, cli, until
from tests.support.served import HOST, Authority, Centre, HttpsProcess, fetch, forget_servers

LOGINS = "hopaas_server_token_logins_total"


@pytest.fixture
def server(centre: Centre) -> HttpsProcess:
    return centre.serve()


def asked(server: HttpsProcess, authority: Authority, *headers: str) -> tuple[int, str]:
    """(status, the whole head) of an answer to a request with these headers."""
    context = ssl.create_default_context(cafile=authority.file)
    body = encode(StoreRequest("hello"))
    with socket.create_connection((HOST, server.port), timeout=60) as plain:
        secured = context.wrap_socket(plain, server_hostname=HOST)
        head = ["POST /v1 HTTP/1.1", f"Host: {HOST}", f"Content-Length: {len(body)}", *headers, "", ""]
        secured.sendall("\r\n".join(head).encode() + body)
        answer = b""
        while b"\r\n\r\n" not in answer and (data := secured.recv(65536)):
            answer += data
        secured.close()
    return int(answer.split()[1]), answer.partition(b"\r\n\r\n")[0].decode()


def bearer(token: str) -> str:
    return f"Authorization: Bearer {encode_header(token)}"


class With(client.RemoteAddress):
    """An address with a token of its own."""

    secret: Secret

    def token(self) -> Secret:
        return self.secret


def store_with(server: HttpsProcess, token: Secret) -> RemoteStore:
    store = RemoteStore(f"https://{HOST}:{server.port}")
    store.connections.address = With(*store.connections.address)
    store.connections.address.secret = token
    return store


def again(call: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What a peer does: try until the store is there."""

    def attempt() -> Any:
        with contextlib.suppress(StoreUnreachable):
            return (call(),)

    return until(attempt, seconds)[0]


# --- what people do ----------------------------------------------------------------------------------------------


@pytest.mark.path
def test_a_study_is_run_through_a_server(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    server = centre.serve()
    monkeypatch.setenv("HOPAAS_TOKEN", centre.token().secret.reveal())
    url = centre.url(server.port)
    with contextlib.closing(hopaas_p2p.open_study(url, "s", space=SPACE, budget=5)) as study:
        study.optimize(lambda trial: trial.params["lr"])
        assert len(study.state.trials) == 5
        assert study.storage.url == url


def test_the_blocks_of_a_snapshot_go_once(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    server, data = centre.serve(), study_snapshot(3000)
    monkeypatch.setenv("HOPAAS_TOKEN", centre.token().secret.reveal())
    with contextlib.closing(open_store(centre.url(server.port))) as store:
        log = store.log("study")
        log.exchange(outgoing("first"), 0)
        log.put_snapshot(1, data)
        assert log.newest_snapshot() == (1, data)
        assert log.block_names() == set(snapshot.names_in(snapshot.split(data)[0]))


def test_the_token_may_be_in_a_file(centre: Centre, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, token = centre.serve(), centre.token()
    url = centre.url(server.port)
    with pytest.raises(Denied, match="HOPAAS_TOKEN_FILE"):
        open_store(url).catalog().exchange(None, 0)
    (tmp_path / "token").write_text(token.secret.reveal())
    monkeypatch.setenv("HOPAAS_TOKEN_FILE", str(tmp_path / "token"))
    for text in (url, url.replace("//", "//ann@"), url.replace("//", f"//{token.name}@")):
        with contextlib.closing(open_store(text)) as store:
            store.catalog().exchange(None, 0)
    with pytest.raises(Denied), contextlib.closing(open_store(url.replace("//", "//bob@"))) as store:
        store.catalog().exchange(None, 0)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://gw.example.org", "https://gw.example.org"),
        ("https://gw.example.org:443/tuning/", "https://gw.example.org/tuning"),
        ("https://one,two:8443/d", "https://one,two:8443/d"),
        ("https://ann@[::1]:8443/d", "https://ann@[::1]:8443/d"),
    ],
)
def test_a_url_lists_servers(url: str, shown: str) -> None:
    store = open_store(url)
    assert store.url == shown
    assert open_store(store.url).url == shown


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("https://", "name a server"),
        ("https:///d", "name a server"),
        ("https://gw:port/d", "is not a port"),
        ("http://gw/d", "is not encrypted"),
        ("https://ann:secret@gw/d", "must not contain a password"),
        ("https://gw/d?sslmode=disable", "the path may hold"),
        ("https://gw/../d", "the path may hold"),
        ("https://gw/a\r\nX: y", "the path may hold"),
    ],
)
def test_a_url_that_cannot_be_a_servers_is_refused(url: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint) as refused:
        open_store(url)
    assert "secret" not in str(refused.value)


def test_an_exchange_costs_one_round_trip(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    server = centre.serve()
    monkeypatch.setenv("HOPAAS_TOKEN", centre.token().secret.reveal())
    with Relay(server.port) as link, contextlib.closing(open_store(f"https://{HOST}:{link.port}")) as store:
        log = store.log("u")
        log.exchange(None, 0)
        link.reset()
        for number in range(10):
            log.exchange(Outgoing(f"n{number}", sealed(b"x" * 1000)), 0)
        assert link.round_trips == 10
        assert link.connections == 0


# --- tokens ------------------------------------------------------------------------------------------------------


def test_who_is_refused_gets_no_hint_why(server: HttpsProcess, centre: Centre) -> None:
    good, revoked, expired = (centre.token() for _ in range(3))
    access.revoke_token(centre.store, revoked.name)
    centre.server.execute(f"ALTER ROLE \"{expired.name}\" VALID UNTIL '2001-01-01'")
    tokens = ["nobody:x", f"{good.name}:wrong", revoked.secret.reveal(), expired.secret.reveal()]
    headers = [bearer(token) for token in tokens]
    headers += ["X: y", "Authorization: Basic YTpi", "Authorization: Bearer", "Authorization: Bearer !!", bearer("a")]
    headers += [
        bearer("a\0b:c"),
        bearer(":c"),
        bearer("ä:" + "x" * 3000),
        bearer("postgres:"),
        "Authorization: Bearer _zp4",
    ]
    answers = {asked(server, centre.authority, header)[1] for header in headers}
    (answer,) = answers
    assert answer.startswith("HTTP/1.1 401 Unauthorized\r\n")
    assert "Content-Length: 0" in answer
    assert asked(server, centre.authority, bearer(good.secret.reveal()))[0] == 200


def test_two_authorizations_are_none(server: HttpsProcess, centre: Centre) -> None:
    good = bearer(centre.token().secret.reveal())
    assert asked(server, centre.authority, good, good)[0] == 401


def test_a_thousand_wrong_tokens_cost_postgres_a_few_logins_and_good_ones_nothing(centre: Centre) -> None:
    server = centre.serve()
    good = centre.token()
    with contextlib.closing(store_with(server, good.secret)) as store:
        store.facts()
    before = server.metrics(centre.authority)[LOGINS]
    began = time.monotonic()

    def guess(number: int) -> int:
        return asked(server, centre.authority, bearer(f"{good.name}:guess-{number}"))[0]

    with ThreadPoolExecutor(8) as pool:
        half = list(pool.map(guess, range(300)))
        with contextlib.closing(store_with(server, good.secret)) as store:
            store.facts()
        half += list(pool.map(guess, range(300, 600)))
    seconds = time.monotonic() - began
    assert set(half) <= {401, 429}
    logins = server.metrics(centre.authority)[LOGINS] - before
    told = until(lambda: server.events("turned away"))
    assert sum(line["times"] for line in told) > len(told), "together, a line a second"
    assert half.count(401) <= logins <= 20 + 8 + seconds, "twenty at once, one a second, and those under way"
    assert server.events("failed") == []
    other = centre.token("bob")
    with contextlib.closing(store_with(server, other.secret)) as store:
        again(lambda: forget_servers() or store.facts())


def test_a_wrong_token_again_is_refused_without_asking_postgres(server: HttpsProcess, centre: Centre) -> None:
    for _ in range(10):
        assert asked(server, centre.authority, bearer("ann.00000000:old"))[0] == 401
    assert server.metrics(centre.authority)[LOGINS] == 1


def test_many_peers_that_come_at_once_with_one_token_cost_one_login(server: HttpsProcess, centre: Centre) -> None:
    token = centre.token()
    made = [store_with(server, token.secret) for _ in range(40)]
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda store: store.facts(), made))
    assert server.metrics(centre.authority)[LOGINS] == 1
    assert server.metrics(centre.authority)["hopaas_server_connections"] == 40
    for store in made:
        store.close()


def test_a_token_has_so_many_connections_and_the_server_too(centre: Centre) -> None:
    server = centre.serve("--per-token", "2", "--connections", "3")
    ann, bob = centre.token("ann").secret, centre.token("bob").secret
    first = [store_with(server, ann) for _ in range(2)]
    first.append(store_with(server, bob))
    for one in first:
        one.facts()
    for token in (ann, bob):
        with contextlib.closing(store_with(server, token)) as more, pytest.raises(StoreUnreachable, match="429"):
            more.facts()
        with contextlib.closing(store_with(server, token)) as more, pytest.raises(StoreUnreachable, match="retry in"):
            more.facts()
        forget_servers()
    first[0].close()
    with contextlib.closing(store_with(server, ann)) as more:
        again(lambda: forget_servers() or more.facts())
    for one in first:
        one.close()


def test_the_connections_of_peers_that_left_while_they_waited_for_news_are_free_again(centre: Centre) -> None:
    """A batch system ends and starts jobs by the hundred, and an idle peer always waits for news."""
    server, token = centre.serve("--per-token", "2"), centre.token().secret
    stores = [store_with(server, token) for _ in range(2)]
    append_many(stores[0].log("u"), "a", 1)
    with ThreadPoolExecutor() as threads:
        waits = [threads.submit(store.log("u").news, 1, 20.0) for store in stores]
        until(lambda: all(store.connections._held for store in stores))  # type: ignore[union-attr]
        time.sleep(1.0)
        for store in stores:
            store.connections.hang_up()
        began = time.monotonic()
        with contextlib.closing(store_with(server, token)) as more:
            again(lambda: forget_servers() or more.facts())
        assert time.monotonic() - began < 10.0, "and not after the 20 s of their wait"
        assert all(isinstance(wait.exception(), StoreUnreachable) for wait in waits)
    for store in stores:
        store.close()


def test_a_study_has_as_many_calls_under_way_as_a_token(postgres_url: str) -> None:
    """If the database is far, or another server's, a study gets no further than these at a time."""
    together = threading.Barrier(8, timeout=30.0)

    class Meeting(Service):
        def call(self, token: Token, request: StoreRequest, store: Store) -> Any:
            together.wait()
            return super().call(token, request, store)

    async def main() -> None:
        service = Meeting(lambda _: open_store(postgres_url))
        one = StoreRequest("exchange", "u", (None, 0))
        answers = await asyncio.gather(*(service.carry_out(OWN, one) for _ in range(16)))
        assert [refusal(answer) for answer in answers] == [None] * 16
        service.close()

    asyncio.run(main())


def test_a_renewed_token_is_taken_up_by_a_running_program(
    centre: Centre, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = centre.serve()
    old, new = centre.token(), centre.token()
    file = tmp_path / "token"
    file.write_text(old.secret.reveal())
    monkeypatch.setenv("HOPAAS_TOKEN_FILE", str(file))
    with contextlib.closing(open_store(centre.url(server.port))) as store:
        store.catalog().exchange(None, 0)
        centre.server.execute(f"ALTER ROLE \"{old.name}\" VALID UNTIL '2001-01-01'")
        with pytest.raises(Denied, match="hopaas-p2p admin token create"):
            store.catalog().exchange(None, 0)
        file.write_text(new.secret.reveal())
        store.catalog().exchange(None, 0)


def test_superusers_are_not_let_in_from_the_internet(server: HttpsProcess, centre: Centre) -> None:
    assert asked(server, centre.authority, bearer(f"admin:{centre.server.password}"))[0] == 401


def test_who_comes_while_postgres_is_away_is_told_to_come_later(centre: Centre) -> None:
    own = Server().start()
    try:
        own.execute("CREATE DATABASE store")
        access.initialise(own.url("store"))
        there = Centre(own, own.url("store"), centre.folder, centre.authority)
        server, token = centre.serve(target=there.target), there.token()
        with contextlib.closing(store_with(server, token.secret)) as store:
            append_many(store.log("u"), "a", 1)
            own.halt()
            with pytest.raises(StoreUnreachable):
                store.log("u").exchange(outgoing("away"), 1)
            assert asked(server, centre.authority, bearer("new.12345678:token"))[0] == 503
            own.start()
            again(lambda: store.log("u").exchange(outgoing("away"), 1))
            assert len(everything(store.log("u"))) == 2
    finally:
        own.stop()


def test_the_database_may_be_at_a_unix_socket(centre: Centre) -> None:
    folder = centre.server.settings["unix_socket_directories"]
    server = centre.serve(target=f"postgresql:///store?host={folder}&port={centre.server.port}")
    with contextlib.closing(store_with(server, centre.token().secret)) as store:
        assert everything(store.catalog()) == []


# --- servers that end --------------------------------------------------------------------------------------------


@pytest.fixture
def log_of_two(
    centre: Centre, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[HttpsProcess, HttpsProcess, RemoteStore]]:
    monkeypatch.setenv("HOPAAS_TOKEN", centre.token().secret.reveal())
    first, second = centre.serve(), centre.serve()
    with contextlib.closing(RemoteStore(centre.url(first.port, second.port))) as store:
        yield first, second, store


def test_a_server_that_is_down_is_passed_over_and_the_one_that_answered_is_kept(
    log_of_two: tuple[HttpsProcess, HttpsProcess, RemoteStore],
) -> None:
    first, second, store = log_of_two
    log = store.log("u")
    append_many(log, "a", 2)
    used, other = (first, second) if first.events("opened") else (second, first)
    used.kill()
    append_many(log, "b", 2)
    store.close()
    append_many(log, "c", 2)
    assert len(everything(log)) == 6
    assert len(other.events("opened")) == 2


def test_commits_take_effect_once_though_servers_are_killed_again_and_again(
    log_of_two: tuple[HttpsProcess, HttpsProcess, RemoteStore],
) -> None:
    *servers, store = log_of_two
    log, over, kills = store.log("u"), threading.Event(), 0

    def kill() -> None:
        nonlocal kills
        while not over.is_set():
            for server in servers:
                server.kill()
                server.start()
                kills += 1

    killing = threading.Thread(target=kill)
    killing.start()
    try:
        number = 0
        while kills < 4:
            commit = outgoing(f"n{number}")
            again(lambda commit=commit: log.exchange(commit, 0))
            number += 1
    finally:
        over.set()
        killing.join(60)
    entries = again(lambda: everything(log))
    assert [entry.payload for entry in entries] == [outgoing(f"n{one}").payload for one in range(number)]


def test_a_server_that_is_stopped_is_left_for_another_one(
    log_of_two: tuple[HttpsProcess, HttpsProcess, RemoteStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers nothing and closes nothing."""
    first, second, store = log_of_two
    monkeypatch.setattr(client, "_ANSWER", 1.5)
    log = store.log("u")
    append_many(log, "a", 2)
    used = first if first.events("opened") else second
    used.signal(signal.SIGSTOP)
    again(lambda: log.exchange(outgoing("asleep"), 0))
    assert len(everything(log)) == 3
    used.signal(signal.SIGCONT)


def test_all_servers_down_is_one_clear_line(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOPAAS_TOKEN", "ann.1:x")
    with pytest.raises(StoreUnreachable, match="cannot be reached") as refused:
        open_store(centre.url(free_port(), free_port())).catalog().exchange(None, 0)
    assert "\n" not in str(refused.value)
    with pytest.raises(StoreUnreachable, match="cannot be resolved on this node"):
        open_store("https://no-such-host.invalid").catalog().exchange(None, 0)


def test_a_server_that_drains_answers_what_was_asked_and_peers_notice_nothing(
    log_of_two: tuple[HttpsProcess, HttpsProcess, RemoteStore],
) -> None:
    first, second, store = log_of_two
    log = store.log("u")
    append_many(log, "a", 1)
    used = first if first.events("opened") else second
    used.signal(signal.SIGTERM)
    append_many(log, "b", 5)
    assert used.process is not None
    assert used.process.wait(60) == 0
    append_many(log, "c", 1)
    assert len(everything(log)) == 7


def test_a_file_that_breaks_off_is_sent_again(
    log_of_two: tuple[HttpsProcess, HttpsProcess, RemoteStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *servers, store = log_of_two
    append_many(store.log("u"), "a", 1)
    source, copy = tmp_path / "model", tmp_path / "copy"
    source.write_bytes(bytes(range(256)) * (1 << 16))
    usual, broken = Path.open, list[int]()

    class Breaking(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() and not broken:  # a piece was sent
                broken.append(self.tell())
                for server in servers:
                    server.kill()
                    server.start()
            return super().read(size) or b""

    def opened(one: Path, *how: Any, **more: Any) -> Any:
        return Breaking(one) if one == source and how == ("rb",) else usual(one, *how, **more)

    monkeypatch.setattr(Path, "open", opened)
    store.artifacts().put("u/model", source)
    store.artifacts().get("u/model", copy)
    assert copy.read_bytes() == source.read_bytes()
    assert broken, "or nothing broke off"


# --- pages -------------------------------------------------------------------------------------------------------


def test_pages_for_machines(server: HttpsProcess, centre: Centre) -> None:
    with contextlib.closing(store_with(server, centre.token().secret)) as store:
        store.facts()
        assert fetch(server.port, "/healthz", centre.authority) == (200, "ok\n")
        found = server.metrics(centre.authority)
        assert found["hopaas_server_connections"] == 1
        assert found['hopaas_server_requests_total{status="200"}'] >= 2
        assert found["hopaas_server_postgres_up"] == 1
        assert found["hopaas_server_certificate_expiry_seconds"] > time.time()
        assert "ann" not in fetch(server.port, "/metrics", centre.authority)[1]
    for path in ("/", "/v2", "/v1/", "/../etc/passwd", "/metrics/", "/v1/files/../x"):
        assert fetch(server.port, path, centre.authority) == (404, "")
    assert fetch(server.port, "/v1", centre.authority)[0] == 405
    assert server.events("turned away") == []
    assert fetch(server.port, "/v1/files/u/f", centre.authority)[0] == 401
    (told,) = until(lambda: server.events("turned away"))
    assert (told["status"], told["times"]) == (401, 1)


def test_metrics_are_for_those_who_may_read_them(centre: Centre) -> None:
    server = centre.serve("--metrics-from", "192.0.2.0/24")
    assert fetch(server.port, "/metrics", centre.authority)[0] == 404
    behind = centre.serve("--behind-proxy", "127.0.0.1", tls=False)
    for forwarded, status in (("198.51.100.1", b"404"), ("127.0.0.1, 198.51.100.1", b"404"), ("127.0.0.1", b"200")):
        with socket.create_connection(("127.0.0.1", behind.port), timeout=30) as plain:
            plain.sendall(f"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {forwarded}\r\n\r\n".encode())
            assert plain.recv(65536).split()[1] == status


def test_a_wrong_call_of_the_command_is_a_clear_line(centre: Centre) -> None:
    pair = ["--tls-cert", str(centre.pair[0]), "--tls-key", str(centre.pair[1])]
    for words, complaint in (
        (["--listen", "nonsense", *pair], "write HOST:PORT"),
        (["--tls-cert", str(centre.pair[0])], "must be given together"),
        ([*pair, "--behind-proxy", "here"], "write a network"),
        ([*pair, "--listen", f"192.0.2.1:{free_port()}"], "cannot listen on 192.0.2.1"),
        ([*pair, "--listen", "127.0.0.1:99999"], "write HOST:PORT"),
        ([*pair, "--listen", "name.invalid:443"], "cannot listen on name.invalid:443: "),
        ([*pair, "--drain", "-1"], "--drain"),
        (["--tls-cert", pair[3], "--tls-key", pair[1]], "must be PEM"),
    ):
        done = cli("serve", "https", centre.target, *words, check=False)
        assert done.returncode not in (0, None)
        assert complaint in done.stderr
        assert "Unknown" not in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_token_says_when_it_ends(server: HttpsProcess, centre: Centre) -> None:
    token = centre.token(days=7)
    with contextlib.closing(store_with(server, token.secret)) as store:
        facts = store.facts()
    assert facts.token == token.name
    assert facts.expires is not None
    assert facts.expires == pytest.approx(token.expires.timestamp(), abs=60.0)


def test_a_connection_carries_one_request_after_the_other(server: HttpsProcess, centre: Centre) -> None:
    """Also those of other people, as a proxy sends them, each with its own token."""
    tokens = [centre.token(user).secret.reveal() for user in ("ann", "bob")]
    context = ssl.create_default_context(cafile=centre.authority.file)
    with contextlib.closing(http.client.HTTPSConnection(HOST, server.port, context=context, timeout=30)) as line:
        for token in (*tokens, *tokens, "nobody:x"):
            line.request(
                "POST", "/v1", encode(StoreRequest("hello")), {"Authorization": f"Bearer {encode_header(token)}"}
            )
            answer = line.getresponse()
            assert (answer.status, token.partition(":")[0].encode() in answer.read()) in ((200, True), (401, False))
