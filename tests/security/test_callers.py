"""Strangers at a port: they are turned away, and keep nobody else out."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import hopaas_p2p
from hopaas_p2p import access
from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.net.proxies import ServerAddress
from hopaas_p2p.remote import relay as relays
from hopaas_p2p.remote.rate_limit import RequestRefused
from hopaas_p2p.remote.relay import Relay
from hopaas_p2p.remote.tokens import TokenCache
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.stores.s3.address import parse
from tests.support.ports import free_port
from tests.support.postgres import Server
from tests.support.postgres_people import Place
from tests.support.processes import cli, until
from tests.support.service_process import ServiceProcess

# --- all that listen ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["dashboard --port {}", "dashboard --optuna --port {}"])
def test_silent_connections_keep_nobody_out(words: str, tmp_path: Path) -> None:
    hopaas_p2p.open_study(tmp_path, "s").close()
    port = free_port()
    server = ServiceProcess(*words.format(port).split(), "--store", str(tmp_path), log=tmp_path / "log", env={})
    server.begins = str(port)
    port += "--optuna" in words
    with contextlib.ExitStack() as opened:
        opened.callback(server.start().kill)
        until(lambda: _listens(port))
        silent = [opened.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(100)]
        for one in silent[:30]:
            one.settimeout(30)
            assert one.recv(1) == b""
        with socket.create_connection(("127.0.0.1", port), 10) as asks:
            asks.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            answer = b"".join(iter(lambda: asks.recv(4096), b""))  # to its end: nobody stays without the key
        assert answer.split()[1] in (b"401", b"403")


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 10):
        return True
    return False


# --- server ------------------------------------------------------------------------------------------------------


def _target(place: Place) -> str:
    return f"postgresql://127.0.0.1:{place.server.port}/store"


async def _guess(tokens: TokenCache, addresses: int, role: str = "ann.00000000") -> None:
    """Wrong tokens from so many addresses, as long as each is let."""

    async def one(number: int) -> None:
        with contextlib.suppress(RequestRefused):
            for attempt in range(25):
                await tokens.status(role, Secret(f"wrong{number}-{attempt}"), address=f"198.51.100.{number}")

    for number in range(addresses):
        await one(number)


def test_thirty_addresses_that_guess_keep_out_no_token_that_is_new(place: Place) -> None:
    role, password = place.token("ann")

    async def attack() -> None:
        tokens = TokenCache(_target(place))
        await _guess(tokens, 30)
        with pytest.raises(RequestRefused):
            await tokens.status("ann.11111111", Secret("x"), address="198.51.100.1")
        assert (await tokens.status(role, Secret(password), address="192.0.2.1")).valid
        tokens.close()

    asyncio.run(attack())


def test_a_role_that_exists_has_a_share_that_guessing_at_others_leaves(place: Place) -> None:
    """Even where the guesses come from hundreds of addresses, each of them new."""
    first, second = place.token("ann"), place.token("bob")

    async def attack() -> None:
        tokens = TokenCache(_target(place))
        assert (await tokens.status(first[0], Secret(first[1]), address="192.0.2.1")).valid
        for number in range(120):
            with contextlib.suppress(RequestRefused):
                await tokens.status("ann.00000000", Secret(f"w{number}"), address=f"203.0.113.{number}")
        with pytest.raises(RequestRefused):
            await tokens.status("ann.00000000", Secret("x"), address="192.0.2.2")
        assert (await tokens.status(second[0], Secret(second[1]), address="192.0.2.2")).valid
        tokens.close()

    asyncio.run(attack())


# --- relay -------------------------------------------------------------------------------------------------------


@pytest.fixture
def echo() -> Iterator[ServerAddress]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield ServerAddress("127.0.0.1", listener.getsockname()[1])


def test_silent_connections_keep_nobody_from_the_relay(echo: ServerAddress) -> None:
    async def attack() -> None:
        relay = Relay([echo], Secret("s3cret"))
        port = await relay.listen("127.0.0.1", 0)
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(relays.PENDING + 100)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        login = base64.b64encode(b"relay:s3cret").decode()
        writer.write(f"CONNECT {echo} HTTP/1.1\r\nProxy-Authorization: Basic {login}\r\n\r\n".encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        assert await silent[0][0].read() == b"", "the oldest were closed"
        assert len(relay._pending) <= relays.PENDING
        assert relay.refused >= 100
        for _, one in [*silent, (reader, writer)]:
            one.transport.abort()
        await relay.close()

    asyncio.run(attack())


def test_connections_that_are_carried_have_a_limit_of_their_own(echo: ServerAddress) -> None:
    async def attack() -> None:
        relay = Relay([echo], Secret("s3cret"), limit=1)
        port = await relay.listen("127.0.0.1", 0)
        login = base64.b64encode(b"relay:s3cret").decode()
        request = f"CONNECT {echo} HTTP/1.1\r\nProxy-Authorization: Basic {login}\r\n\r\n".encode()
        clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        answers = []
        for reader, writer in clients:
            writer.write(request)
            answers.append((await reader.readline()).split()[1])
        assert answers == [b"200", b"503"]
        for _, writer in clients:
            writer.transport.abort()
        await relay.close()

    asyncio.run(attack())


# --- what goes over the network, and into lists of processes -----------------------------------------------------


@pytest.mark.parametrize("host", ["s3.example.org", "10.0.0.7:9000", "[2001:db8::1]:9000", "127.0.0.1.evil.org"])
@pytest.mark.parametrize("by", ["url", "environment"])
def test_a_bucket_without_tls_beyond_this_machine_is_asked_for(host: str, by: str) -> None:
    env = {"AWS_ENDPOINT_URL_S3": f"http://{host}"} if by == "environment" else {}
    url = "s3://bucket/p?region=r" + ("" if env else f"&endpoint=http://{host}")
    with pytest.raises(ConfigurationError, match="insecure=true"):
        parse(url, env)
    address = parse(f"{url}&insecure=true", env)
    assert parse(address.url, {}) == address, "and another process opens the same"
    with pytest.raises(ConfigurationError, match="takes insecure=true or insecure=false"):
        parse(f"{url}&insecure=yes", env)


@pytest.mark.parametrize("host", ["127.0.0.1:9000", "localhost", "[::1]:9000"])
def test_a_bucket_on_this_machine_needs_no_tls(host: str) -> None:
    assert parse(f"s3://bucket/p?endpoint=http://{host}&region=r", {}).endpoint == f"http://{host}"


@pytest.mark.parametrize("words", [[], ["--store"]])
def test_the_dashboard_takes_no_password_in_an_argument(words: list[str]) -> None:
    pytest.importorskip("streamlit")
    done = cli("dashboard", *words, "postgresql://ann:sesame@127.0.0.1:1/d", check=False)
    assert done.returncode != 0
    assert "a password does not belong in an argument" in done.stderr
    assert "sesame" not in done.stderr


# --- what any token can do to the server -------------------------------------------------------------------------


def test_an_advisory_lock_holds_up_no_init(place: Place) -> None:
    eve = place.person("eve")
    with place.session(eve) as say:
        say(f"SELECT pg_advisory_lock({0x686F70616173})")
        say("SELECT pg_advisory_lock(k) FROM generate_series(0, 100) k")
        assert access.initialise(place.admin) > 0


def test_a_token_takes_no_more_than_a_quarter_of_the_connections(own_server: Callable[..., Server]) -> None:
    server = own_server(max_connections="40")
    place = Place(server, server.url())
    token = place.token("eve")
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(place.session(server.url(user=token[0], password=token[1])))
        with pytest.raises(Exception, match="too many connections for role"):
            stack.enter_context(place.session(server.url(user=token[0], password=token[1])))
        assert len(access.tokens(place.admin)) == 1, "and an administrator still gets in"


COSTLY = (
    "SELECT lo_create(0)",
    "SELECT lo_creat(-1)",
    "SELECT lo_from_bytea(0, 'x')",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_try_advisory_xact_lock_shared(1, 2)",
    "SELECT pg_logical_emit_message(false, 'p', 'x')",
    "SELECT pg_logical_emit_message(false, 'p', 'x'::bytea)",
    "CREATE TEMPORARY TABLE t (a int)",
    "CREATE TABLE public.t (a int)",
    "SET temp_file_limit = -1",
)


def test_what_fills_a_server_is_taken_away_when_a_superuser_runs_init(own_server: Callable[..., Server]) -> None:
    server = own_server()
    place = Place(server, server.url())
    access.initialise(server.url())
    token = place.token("eve")
    with place.session(server.url(user=token[0], password=token[1])) as say:
        for sql in COSTLY:
            with pytest.raises(Exception, match="permission denied"):
                say(sql)
        assert say("SHOW temp_file_limit") == [("1GB",)]


def test_doctor_says_what_is_open_and_which_tokens_were_changed(place: Place) -> None:
    from hopaas_p2p.stores.postgres import checks

    def found(url: str) -> dict[str, tuple[bool, str]]:
        return {one.check: (one.passed, one.detail) for one in checks.checks(place.store(url))}

    eve = place.person("eve")
    (token,) = access.tokens(place.admin)
    assert "tokens" not in found(place.admin)
    assert found(eve)["open to all"][0]
    for what in ("NOTIFY", "large objects", "temporary files of any size", "to connect to ", "superuser's"):
        assert what in found(eve)["open to all"][1]
    for change in ("SET statement_timeout = 0", "RESET ALL", "IN DATABASE store SET lock_timeout = 0"):
        with place.session(eve) as say:
            say(f"ALTER ROLE CURRENT_USER {change}")
        for url in (eve, place.admin):
            assert found(url)["tokens"] == (False, f"{token.name}: timeouts were changed by the token's holder")
        access.initialise(place.admin)
        assert "tokens" not in found(place.admin)


def test_a_token_that_holds_its_own_settings_holds_up_no_init(place: Place) -> None:
    eve = place.person("eve")
    with place.session(eve) as say:
        for sql in ("SET idle_in_transaction_session_timeout = 0", "ALTER ROLE CURRENT_USER SET work_mem = '1MB'"):
            say(sql)
        for sql in ("BEGIN", "ALTER ROLE CURRENT_USER SET work_mem = '2MB'"):
            say(sql)

        assert access.initialise(place.admin) > 0
