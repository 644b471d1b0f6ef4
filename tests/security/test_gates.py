"""Ways around the gates: variables, spellings of URLs, files of others beside one's own, credentials by other names."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import psycopg2
import pytest
import trustme

import hopaas_p2p
from hopaas_p2p.cli.main import run
from hopaas_p2p.errors import ConfigurationError, HopaasError, StoreUnreachable
from hopaas_p2p.hopaas.client import Client
from hopaas_p2p.joining import membership, ways
from hopaas_p2p.joining.invitation import Invitation, _authority, _public
from hopaas_p2p.open import servers_of, store_option
from hopaas_p2p.ports.ticket import Ticket, carry, ending, keep
from hopaas_p2p.remote.tokens import log_in
from hopaas_p2p.runtime import credentials, provenance
from hopaas_p2p.runtime.settings import Secret, Settings
from hopaas_p2p.storage import Storage
from hopaas_p2p.stores.postgres.connect import PostgresAddress
from hopaas_p2p.stores.s3 import http, keys
from hopaas_p2p.stores.s3.address import parse
from tests.support.ports import free_port
from tests.support.processes import SPACE

OWN = "ann.0123abcd:" + "k" * 43
GUEST = "guest-s-123456-worker.0a1b2c3d:" + "g" * 43


@pytest.fixture(autouse=True)
def ann(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Her environment, with a token; a process that joins changes it."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "HOPAAS_", "PG")) and not name.startswith("HOPAAS_TEST"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOPAAS_TOKEN", OWN)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("HOPAAS_JOINED", "HOPAAS_CA_FILE", "HOPAAS_STORE", "HOPAAS_STUDY", "HOPAAS_TOKEN_HOST"):
        monkeypatch.setenv(name, "")  # so that what the test sets is undone
    monkeypatch.setattr(credentials, "_named", set())
    return tmp_path


def joined(store: str, *, token: bool = True, authority: str = "") -> None:
    secret = Secret(GUEST) if token else None
    ways.enter(membership.accept(Invitation(store, "s", secret, int(time.time()) + 86400, "", authority)))


@pytest.mark.parametrize("store", ["postgresql://evil.example.org/d", "postgresql:///d?host=evil.example.org"])
def test_a_variable_that_leads_to_another_port_takes_no_token_to_a_joined_host(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined(store)
    assert PostgresAddress(store).credentials()[0] == "guest-s-123456-worker.0a1b2c3d"
    monkeypatch.setenv("PGPORT", "6543")
    with pytest.raises(ConfigurationError, match=r"not at evil\.example\.org:6543.*PGPORT"):
        PostgresAddress(store).credentials()
    with pytest.raises(ConfigurationError, match=r"not at evil\.example\.org:6543"):
        PostgresAddress(store.replace("evil.example.org", "evil.example.org.")).credentials()
    credentials.named("postgresql://evil.example.org:6543/d")
    assert PostgresAddress(store).credentials()[0] == "ann.0123abcd"


@pytest.mark.parametrize(
    "endpoint", ["http://s3.amazonaws.com", "http://s3.amazonaws.com:443", "http://minio.example.org:443"]
)
def test_no_session_token_goes_in_clear_to_a_host_that_is_known_by_its_certificate(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match="has no TLS"):
        servers_of(f"s3://bucket-1/x?endpoint={endpoint}&insecure=true")


@pytest.mark.parametrize(
    ("named", "store"),
    [
        ("postgresql://db.example.org/d", "postgresql://db.example.org/d?sslmode=verify-ca"),
        ("postgresql://db.example.org/d", "postgresql://db.example.org/d?require_auth=password"),
        ("postgresql://db.example.org/d", f"postgresql://db.example.org/d?sslrootcert={__file__}"),
        ("postgresql://db.example.org/d", "postgresql://db.example.org/d?sslcert=/x&sslkey=/x"),
        ("postgresql://db.example.org/d", "postgresql://u:p?host=x@db.example.org/d?sslmode=verify-ca"),
        ("postgresql://db.example.org/d", "postgresql://u?host=x@db.example.org/d?require_auth=password"),
        (
            "s3://mine/x?endpoint=https://minio.example.org",
            "s3://b-b/x?endpoint=http://minio.example.org&insecure=true",
        ),
    ],
)
def test_a_ticket_of_a_stranger_says_nothing_about_trust_in_a_host_that_the_user_named(
    named: str, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOPAAS_STORE", named)
    monkeypatch.setenv("HOPAAS_TOKEN_HOST", "db.example.org minio.example.org")
    with (
        pytest.raises(ConfigurationError, match="only you may set how far to trust a server"),
        carry(Ticket(store, "s", 0, "owner", 1, "0" * 32)),
    ):
        pass


@pytest.mark.parametrize(
    "option", ["sslkey=/tmp/evil.so:x&sslcert=/x", "sslmode=verify-ca", "sslrootcert=/x", "require_auth="]
)
@pytest.mark.parametrize(
    "place",
    ["evil.example.org/d?", "evil.example.org/d#?", "evil.example.org/d?host=h&", "u?host=h@evil.example.org/d?"],
)
def test_an_invitation_says_where_a_store_is_and_nothing_about_trust(ann: Path, place: str, option: str) -> None:
    with pytest.raises(ConfigurationError, match="only you may set how far to trust a server"):
        joined(f"postgresql://{place}{option}")
    assert not (ann / "config/hopaas-p2p/joined").exists()


@pytest.mark.parametrize("certificate", ["", "?sslcert=/server.crt&sslkey=/server.key"])
def test_a_servers_certificate_vouches_for_none_of_its_callers(
    certificate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where pg_hba.conf says `cert`, the database would let in who names the certificate's role, with any secret."""
    asked: list[dict[str, str]] = []

    def refuse(**parameters: str) -> None:
        asked.append(parameters)
        raise psycopg2.OperationalError("no")

    monkeypatch.setattr(psycopg2, "connect", refuse)
    with pytest.raises(StoreUnreachable):
        log_in(f"postgresql://db.example.org/d{certificate}", "gateway", Secret("anything"))
    assert [one["require_auth"] for one in asked] == ["scram-sha-256"]


@pytest.mark.parametrize("whose", ["own", "joined"])
def test_a_joined_studys_database_that_asks_for_a_certificate_is_shown_none(
    whose: str, ann: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libpq would show the one in ~/.postgresql, or that of PGSSLCERT, to every server that asks."""
    authority = trustme.CA()
    issued = authority.issue_cert("ann@example.org")
    issued.cert_chain_pems[0].write_to_path(ann / "ann.crt")
    issued.private_key_pem.write_to_path(ann / "ann.key")
    (ann / "ann.key").chmod(0o600)
    authority.cert_pem.write_to_path(ann / "ca.pem")
    for name, value in {"PGSSLCERT": "ann.crt", "PGSSLKEY": "ann.key", "HOPAAS_CA_FILE": "ca.pem"}.items():
        monkeypatch.setenv(name, str(ann / value))
    monkeypatch.setattr("hopaas_p2p.stores.postgres.connect.is_loopback", lambda _: False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_OPTIONAL
    shown: list[object] = []

    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as connection:
            connection.recv(8)  # its request for TLS
            connection.sendall(b"S")
            with context.wrap_socket(connection, server_side=True) as encrypted:
                encrypted.recv(1)
                shown.append(encrypted.getpeercert())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"postgresql://127.0.0.1:{listener.getsockname()[1]}/d"
        if whose == "joined":
            membership.accept(Invitation(url, "s", Secret(GUEST), int(time.time()) + 86400))
        serving = threading.Thread(target=serve, args=(listener,), daemon=True)
        serving.start()
        address = PostgresAddress(url)
        with pytest.raises(StoreUnreachable):
            address.connect(*address.credentials())
        serving.join(timeout=10)
    assert [bool(one) for one in shown] == [whose == "own"]


@pytest.mark.parametrize("name", ["too many connections for role", 'too many connections for role "x"'])
def test_no_name_of_a_caller_is_taken_for_what_the_database_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that speaks another language is understood in part only."""

    def refuse(**parameters: str) -> None:
        said = f"FATAL:  Passwort-Authentifizierung für Benutzer »{parameters['user']}« fehlgeschlagen"
        raise psycopg2.OperationalError(said)

    monkeypatch.setattr(psycopg2, "connect", refuse)
    with pytest.raises(StoreUnreachable):
        log_in("postgresql://db.example.org/d", name, Secret("anything"))


def test_nobody_names_code_for_libpq_to_load() -> None:
    with pytest.raises(ConfigurationError, match="with a colon in it, libpq would load code"):
        PostgresAddress("postgresql://db.example.org/d?sslcert=/x&sslkey=/home/ann/engine.so:x")


def test_a_ticket_with_any_seal_is_refused_in_a_line() -> None:
    ticket = Ticket("postgresql://evil.example.org/d", "s", 0, "owner", 1, "0" * 32, "\u00e9")
    with pytest.raises(ConfigurationError, match="a host that you have not named"), carry(ticket):
        pass


def test_an_invitation_that_is_made_names_no_file_of_its_machine() -> None:
    store = "postgresql://ann@db.example.org/d?sslmode=verify-full&sslcert=/x&sslkey=/x&target_session_attrs=read-write"
    assert _public(store) == "postgresql://db.example.org/d?target_session_attrs=read-write"


@pytest.mark.parametrize("how", ["open_storage", "Client", "pickle", "doctor", "backup", "dashboard", "admin init"])
def test_a_user_who_is_a_guest_at_her_own_server_too_acts_as_herself_in_what_names_it(
    how: str, ann: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"127.0.0.1:{free_port()}"
    url = f"https://{place}/d"
    membership.accept(Invitation(url, "theirs", Secret(GUEST), int(time.time()) + 86400))
    monkeypatch.delenv("HOPAAS_JOINED")
    servers = servers_of(url)
    assert credentials.login(None, servers)[0] == "guest-s-123456-worker.0a1b2c3d"
    with contextlib.suppress(HopaasError):
        if how in ("open_storage", "pickle"):
            storage = hopaas_p2p.open_storage(url, patience=0.0)
            state = storage.__getstate__()
            storage.close()
            if how == "pickle":
                credentials._named.clear()
                copy = object.__new__(Storage)
                copy.__setstate__({**state, "pid": 0, "origin": "another process"})
                copy.close()
        elif how == "Client":
            Client(server=url).storage().close()
        else:
            words = {"doctor": ["doctor", "--store", url], "backup": ["admin", "backup", url, str(ann / "file")]}
            words["admin init"] = ["admin", "init", url]
            run(words.get(how, ["dashboard", url, "--auth", "oidc"]))
            monkeypatch.delenv("HOPAAS_JOINED", raising=False)
    assert credentials.login(None, servers)[0] == "ann.0123abcd"


def test_who_checks_the_store_of_a_joined_study_sends_it_no_token_of_her_own(
    ann: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages about a store that cannot be reached say: run hopaas-p2p doctor URL."""
    urls = [f"https://127.0.0.1:{free_port()}/d" for _ in range(2)]
    for url in urls:
        membership.accept(Invitation(url, "theirs", Secret(GUEST), int(time.time()) + 86400))
    monkeypatch.delenv("HOPAAS_JOINED", raising=False)
    run(["doctor", urls[0]])
    monkeypatch.delenv("HOPAAS_JOINED", raising=False)
    assert credentials.login(None, servers_of(urls[0]))[0] == "guest-s-123456-worker.0a1b2c3d"


COMMANDS = ["study list", "admin grants s", "admin user list", "admin unlock", "admin spool send", "invite s"]
COMMANDS += ["trial tell 0.5"]


@pytest.mark.parametrize("words", [*COMMANDS, "admin init", "admin backup"])
def test_every_command_heeds_the_hosts_that_a_users_own_file_allows_for_the_token(
    words: str, ann: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"postgresql://127.0.0.1:{free_port()}/d"
    monkeypatch.delenv("HOPAAS_TOKEN_HOST")
    (ann / "config/hopaas-p2p").mkdir(parents=True)
    (ann / "config/hopaas-p2p/config.toml").write_text('token_host = "gw.example.org"\npatience = 0.1\n')
    ticket = Ticket(url, "s", 0, "owner", 1, "0" * 32, credentials.seal(url, servers_of(url)))
    keep(ticket, ending(ticket, [0.5]), url)  # to be sent
    more = {"admin backup": [url, str(ann / "file")], "trial tell 0.5": ["--ticket", str(ticket)]}
    run([*words.split(), *more.get(words, [url] if words == "admin init" else ["--store", url])])
    assert "the token is for gw.example.org" in "".join(capsys.readouterr())


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_trusts_the_authority_of_the_joined_study_that_it_uses_and_a_tickets_own_store_does_not(
    words: str, ann: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, own = (f"https://{host}:{free_port()}/d" for host in ("127.0.0.1", "localhost"))
    authority = trustme.CA().cert_pem.bytes().decode()
    kept = membership.accept(Invitation(theirs, "s", Secret(GUEST), int(time.time()) + 86400, "", authority))
    monkeypatch.setenv("HOPAAS_PATIENCE", "0.1")
    monkeypatch.setattr("hopaas_p2p.cli.spool._opened", lambda *_: ConfigurationError("it would be tried for a minute"))
    more, trusted = [], kept.values["ca_file"]
    for url in (theirs, own) if words.startswith("trial") else [theirs]:
        for name in ("HOPAAS_JOINED", "HOPAAS_CA_FILE"):
            monkeypatch.setenv(name, "")
        if words.startswith("trial"):
            ticket = Ticket(url, "s", 0, "owner", 1, "0" * 32, credentials.seal(url, servers_of(url)))
            more, trusted = ["--ticket", str(ticket)], kept.values["ca_file"] if url == theirs else ""
        run([*words.split(), *more])
        assert os.environ["HOPAAS_CA_FILE"] == trusted


def test_a_command_that_a_message_suggests_names_no_host_of_a_joined_study(ann: Path) -> None:
    theirs, own = (f"https://127.0.0.1:{free_port()}/d" for _ in range(2))
    membership.accept(Invitation(theirs, "theirs", Secret(GUEST), int(time.time()) + 86400))
    credentials.named(own)
    assert store_option(theirs) == ""
    assert store_option(own) == f" --store {own}"
    assert store_option(f"{ann}/a folder") == f" --store '{ann}/a folder'"


def test_an_invitation_holds_the_certificates_of_an_authority_file_and_no_key(
    ann: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issued = trustme.CA().issue_cert("db.example.org")
    certificates = "".join(one.bytes().decode() for one in issued.cert_chain_pems)
    (ann / "server.pem").write_text(issued.private_key_pem.bytes().decode() + certificates)
    monkeypatch.setenv("HOPAAS_CA_FILE", str(ann / "server.pem"))
    assert _authority("https://db.example.org/d").split() == certificates.split()


@pytest.mark.parametrize("store", ["HTTPS://evil.example.org/x", "campaign", "~/x", "../x", "-x"])
def test_an_invitation_without_a_token_or_with_a_path_of_the_readers_own_is_refused(store: str) -> None:
    with pytest.raises(HopaasError, match=r"contains no token|is a relative path"):
        joined(store, token=False)


def test_a_token_that_a_client_was_given_for_its_server_goes_to_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOPAAS_TOKEN")
    monkeypatch.delenv("HOPAAS_TOKEN_HOST")
    client = Client(server="https://gw.example.org/d", token=OWN)
    pickle.dumps(client)  # as its first use does
    try:
        assert credentials.login(None, [("gw.example.org", 443)])[0] == "ann.0123abcd"
        with pytest.raises(ConfigurationError, match=r"the token is for gw\.example\.org:443"):
            credentials.login(None, [("other.example.org", 443)])
    finally:
        del os.environ["HOPAAS_TOKEN"], os.environ["HOPAAS_TOKEN_HOST"]


@pytest.mark.parametrize("copied", [False, True], ids=["own", "pickled"])
@pytest.mark.parametrize("given", [{}, {"token": OWN}, {"server": "https://hopaas.example.org", "token": OWN}], ids=str)
@pytest.mark.parametrize("store", ["https://127.0.0.1:{}/d", "s3://bucket-1/x?endpoint=https://127.0.0.1:{}"])
def test_a_client_without_a_store_of_its_own_sends_nothing_of_the_users_to_the_joined_study_that_it_finds(
    store: str, given: dict[str, str], copied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = store.format(free_port())
    membership.accept(Invitation(url, "theirs", None if "s3:" in url else Secret(GUEST), int(time.time()) + 86400))
    monkeypatch.setenv("HOPAAS_JOINED", "")
    if "token" in given:
        monkeypatch.delenv("HOPAAS_TOKEN")
    client = Client(**given)
    if copied:
        client = pickle.loads(pickle.dumps(client))
    with contextlib.suppress(HopaasError):
        client.storage().close()
    assert os.environ["HOPAAS_JOINED"] == "theirs"
    monkeypatch.setenv("HOPAAS_JOINED", "")  # as in a process that does not inherit it
    assert OWN not in os.environ.values() or "token" not in given
    assert credentials.is_joined(servers_of(url))


def test_a_token_for_a_hopaas_server_is_not_for_the_store_that_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOPAAS_TOKEN", "HOPAAS_TOKEN_HOST"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOPAAS_STORE", "https://gw.example.org/d")
    pickle.dumps(Client("https://hopaas.example.org", token=OWN))
    assert "HOPAAS_TOKEN" not in os.environ


def test_every_call_that_opens_a_store_says_whether_the_user_named_it() -> None:
    """By default a program's own call names it; what takes the URL from settings or from others must say so."""
    root = Path(hopaas_p2p.__file__).parent.parent
    calls = {
        (path.relative_to(root).as_posix(), call)
        for package in ("hopaas_p2p", "dashboard_app")
        for path in (root / package).rglob("*.py")
        for call in re.findall(r"(?<!def )(?<!Use )\bopen_storage\([a-z_.][^)]*\)", path.read_text())
        if "named=" not in call
    }
    assert calls == {
        ("hopaas_p2p/demo/peer.py", "open_storage(store, create=False, linger=0.25)"),  # which the user's demo started
        ("hopaas_p2p/demo/run.py", "open_storage(store)"),
        ("hopaas_p2p/study/study.py", "open_storage(store, create=create)"),  # an argument of the user's call
    }


@pytest.mark.parametrize(("login", "own"), [("", OWN), ("", ""), (":sesame", "")], ids=["token", "libpq's", "URL's"])
def test_a_joined_studys_authority_vouches_for_no_database_of_ones_own(
    login: str, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined("https://gw.example.org/d", authority="-- a certificate --")
    monkeypatch.setenv("HOPAAS_TOKEN", own)
    monkeypatch.setenv("PGPASSWORD", "sesame")
    with pytest.raises(ConfigurationError, match=r"would vouch for db\.example\.org, too"):
        PostgresAddress(f"postgresql://ann{login}@db.example.org/d").credentials()
    PostgresAddress("postgresql://ann@/d?host=/tmp").credentials()  # without TLS nobody vouches


def test_nor_for_the_login_of_a_sites_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA().cert_pem.bytes().decode()
    joined("s3://b-b/x?endpoint=https://s3.example.org&region=r", token=False, authority=authority)
    monkeypatch.setenv("HTTPS_PROXY", "https://ann:sesame@proxy.example.org:3128")
    with pytest.raises(ConfigurationError, match=r"would vouch for proxy\.example\.org, too"):
        http.pool("https://s3.example.org")
    monkeypatch.setenv("HTTPS_PROXY", "https://proxy.example.org:3128")
    http.pool("https://s3.example.org")


@pytest.mark.parametrize("login", ["", "u:@"])
def test_of_an_empty_secret_libpq_makes_no_password_of_ones_own(login: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "sesame")
    store = f"postgresql://{login}127.0.0.1:{free_port()}/d"
    ways.enter(membership.accept(Invitation(store, "s", Secret("ann:"), int(time.time()) + 86400)))
    address = PostgresAddress(store)
    with pytest.raises(ConfigurationError, match="the token or password is empty"):
        address.connect(*address.credentials())


def test_what_is_allowed_without_tls_because_it_stays_on_this_machine_goes_through_no_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("NO_PROXY", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example.org:3128")
    for host in ("127.0.0.1", "127.8.9.1", "[::1]", "localhost"):
        assert http.proxy_of(f"http://{host}:9000") is None
    assert http.proxy_of("http://minio.example.org:9000") is not None


def test_a_joined_studys_authority_vouches_for_no_webhook(monkeypatch: pytest.MonkeyPatch) -> None:
    joined("https://gw.example.org/d", authority="-- a certificate --")
    monkeypatch.setenv("HOPAAS_WEBHOOK", "https://chat.example.org/secret")
    with pytest.raises(ConfigurationError, match=r"would vouch for chat\.example\.org, too"):
        credentials.webhook_url()


_BUCKET = "s3://b-b/x?endpoint=http://127.0.0.1:9&region=r"
_SERVICE = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:9/keys"}


@pytest.mark.parametrize("secret", ["canary\nx", "canary \u20ac", "canary\x7f", "canary\udcff"], ids=ascii)
@pytest.mark.parametrize(
    "env",
    [
        {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "*"},
        {"AWS_ACCESS_KEY_ID": "*", "AWS_SECRET_ACCESS_KEY": "s"},
        {**_SERVICE, "AWS_CONTAINER_AUTHORIZATION_TOKEN": "*"},
        {**_SERVICE, "answer": '{"AccessKeyId": "k", "SecretAccessKey": "s", "Token": "*"}'},
    ],
    ids=["session", "id", "authorization", "a service's"],
)
def test_what_cannot_be_sent_is_not_shown_instead(
    env: dict[str, str], secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library that sends a header names it in its error if it has a line break in it."""
    given = {name: value.replace("*", secret) for name, value in env.items()}
    if answer := given.pop("answer", None):
        monkeypatch.setattr(keys, "_ask", lambda *_, **__: answer.replace("\n", "\\n"))
    with pytest.raises(ConfigurationError) as refused:
        keys.Chain(parse(_BUCKET, {}), env=given).retrieve()
    assert "canary" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize("secret", ["ann:canary\nx", "canary\udcff"], ids=ascii)
def test_a_token_that_is_not_one_line_is_not_sent_or_shown(secret: str) -> None:
    for name, read in (("HOPAAS_TOKEN", credentials.token), ("HOPAAS_WEBHOOK", credentials.webhook_url)):
        with pytest.raises(ConfigurationError, match=f"in {name} is not one line of text"):
            read({name: secret})


@pytest.mark.parametrize(
    "where",
    [
        "http://sts.example.org",
        "http://10.0.0.7:9",
        "ftp://sts.example.org",
        r"http://x.example.org\@127.0.0.1",
        "http://[::1",
    ],
)
def test_no_service_for_keys_is_asked_without_tls_on_another_machine(where: str, ann: Path) -> None:
    (ann / "identity").write_text("canary")
    address = parse(_BUCKET, {})
    identity = {"AWS_WEB_IDENTITY_TOKEN_FILE": str(ann / "identity"), "AWS_ENDPOINT_URL_STS": where}
    container = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{where}/keys", "AWS_CONTAINER_AUTHORIZATION_TOKEN": "canary"}
    machine = {"HOME": str(ann), "AWS_EC2_METADATA_SERVICE_ENDPOINT": where}
    for env in (container, machine, identity)[: 2 if "[" in where else 3]:
        with pytest.raises(ConfigurationError, match="which is not an https:// URL"):
            keys.Chain(address, env=env).retrieve()


@pytest.mark.parametrize(
    ("store", "named", "asked"),
    [
        ("minio.example.org:9000&region=r&insecure=true", None, "http://minio.example.org:9000"),
        ("minio.example.org:9000&region=r&insecure=true", "http://MinIO.example.org:9000/", None),
        ("minio.example.org&region=r&insecure=true", "http://minio.example.org:80", None),
        ("127.0.0.1:9000&region=r", "http://localhost:9001", None),
        ("s3.cn-north-1.amazonaws.com.cn&region=cn-north-1", None, "https://sts.cn-north-1.amazonaws.com.cn"),
    ],
)
def test_an_sts_may_be_the_buckets_own_server_however_it_is_written(
    store: str, named: str | None, asked: str | None, ann: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether that may be without TLS, the URL of the bucket says."""
    requests = []

    def answer(_method: str, url: str, **_: object) -> str:
        requests.append(url)
        return "<AccessKeyId>k</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>a+/.==</SessionToken>"

    monkeypatch.setattr(keys, "_ask", answer)
    (ann / "identity").write_text("token")
    env = {"AWS_WEB_IDENTITY_TOKEN_FILE": str(ann / "identity"), **({"AWS_ENDPOINT_URL_STS": named} if named else {})}
    address = parse(f"s3://b-b/x?endpoint={'https' if 'amazon' in store else 'http'}://{store}", {})
    assert keys.Chain(address, env=env).retrieve().session_token == "a+/.=="
    assert requests == [asked or named]


@pytest.mark.parametrize("url", ["https://ann:canary@x\u2100/", "https://[canary/"], ids=ascii)
def test_a_webhook_that_cannot_be_parsed_is_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError, match="has no URL that can be parsed") as refused:
        credentials.webhook_url({"HOPAAS_WEBHOOK": url})
    assert "canary" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize("how", ["somebody else's", "writable", "in a writable folder"])
def test_settings_of_the_users_own_are_the_users(ann: Path, how: str) -> None:
    """XDG_CONFIG_HOME may be in a place where others write, on a node without a home."""
    file = ann / "config/hopaas-p2p/config.toml"
    file.parent.mkdir(parents=True)
    file.write_text('store = "https://evil.example.org/d"')
    if how == "somebody else's":
        if os.getuid() != 0:
            pytest.skip("needs root to make somebody else's files")
        os.chown(file, 65534, 65534)
    (file if how == "writable" else file.parent).chmod(0o777 if how != "somebody else's" else 0o755)
    with pytest.raises(ConfigurationError, match="cannot be read: "):
        Settings(directory=ann).get("store")


@pytest.mark.parametrize("text", ["gpus = " + "9" * 6000, "a = " + "[" * 5000], ids=["a number", "nested"])
def test_a_file_of_settings_that_python_cannot_read_is_one_clear_line(ann: Path, text: str) -> None:
    (ann / "hopaas.toml").write_text(text)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Settings(directory=ann).get("study")


def _names_a_file(git: Path) -> None:
    git.mkdir()
    (git / "HEAD").write_text("ref: ../../secret\n")


def _is_a_link(git: Path) -> None:
    git.mkdir()
    (git / "HEAD").symlink_to("../../secret")


def _is_elsewhere(git: Path) -> None:
    git.write_text("gitdir: ../other\n")
    (git.parent.parent / "other").mkdir()
    (git.parent.parent / "other/HEAD").write_text("ref: ../secret\n")


@pytest.mark.parametrize("plant", [_names_a_file, _is_a_link, _is_elsewhere])
def test_what_git_files_lead_to_is_published_only_if_it_is_a_commit(
    ann: Path, plant: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The `.git` of a folder above may be another user's."""
    (ann / "secret").write_text("hunter2 and what follows")
    (ann / "work/deep").mkdir(parents=True)
    plant(ann / "work/.git")
    monkeypatch.chdir(ann / "work/deep")
    assert "git_commit" not in provenance.describe()
    (ann / "secret").write_text("0123456789abcdef" * 2 + "01234567\n")
    assert provenance.describe()["git_commit"] == "0123456789ab"


@pytest.mark.parametrize("name", ["", "HEAD", "commondir", "packed-refs"])
@pytest.mark.parametrize("plant", ["pipe", "hole", "nul"])
def test_no_git_file_of_somebody_elses_holds_up_or_ends_a_process(
    ann: Path, name: str, plant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ann / "work").mkdir()
    git = ann / ".git" / name
    if name:
        (ann / ".git").mkdir()
        (ann / ".git/HEAD").write_text("ref: refs/heads/main\n")
        git.unlink(missing_ok=True)
    if plant == "pipe":
        os.mkfifo(git)
    else:
        git.write_bytes(b"gitdir: a\0b")
        os.truncate(git, 1 << 40 if plant == "hole" else 11)
    monkeypatch.chdir(ann / "work")
    assert "git_commit" not in provenance.describe()


def test_no_script_holds_the_password_of_a_place_for_artifacts(
    ann: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hopaas_p2p.open_study(ann / "store", "s", space=SPACE).close()
    monkeypatch.chdir(ann)
    monkeypatch.delenv("HOPAAS_TOKEN")
    monkeypatch.setenv("HOPAAS_ARTIFACTS", "postgresql://ann:sesame@db.example.org/d")
    assert run(["submit", "slurm", "--dry-run", "--store", "store", "--study", "s", "--", "true", "{lr}"]) == 78
    said = capsys.readouterr()
    assert "a job must not contain a password" in said.err
    assert "sesame" not in said.out + said.err
    assert not (ann / "hopaas-jobs").exists()


CREDENTIALS = {
    "githubToken": "x",
    "dbPassword": "x",
    "HTTPS_PROXY": "ann:pw@proxy:3128",
    "all_proxy": "ann:pw@proxy",
    "GIT_URL": "HTTPS://token@git.example.org/x",
    "DATABASE_URL": "mysql://db/x?user=ann&password=pw",
    "PGDATABASE": "host=db password=pw",
    "ODBC": "Driver=x;Uid=ann;Pwd=pw",
    "SAS": "https://a.blob.example.org/x?sv=1&sig=abc",
    "PRESIGNED": "https://b.example.org/k?X-Amz-Signature=abc",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer abc",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "Authorization=Basic%20eDp5",
    "CURL_HEADER": "authorization:Basic eDp5",
    "GIT_CONFIG_VALUE_0": "AUTHORIZATION: basic eDp5",
    "STORE_ACCESSKEY": "x",
    "FOR_NORTH": "hpj1-kGvXs2Fi",
    "FOR_ANN": OWN,
    "MINE": f"github_pat_{'a1' * 20}",
    **dict.fromkeys(
        [
            "MYSQL_PWD",
            "SSHPASS",
            "REDISCLI_AUTH",
            "DOCKER_AUTH_CONFIG",
            "NPM_CONFIG__AUTH",
            "GITHUB_PAT",
            "AZURE_STORAGE_CONNECTION_STRING",
            "SLACK_WEBHOOK_URL",
            "DBPASSWORD",
            "PASSWORD2",
            "OPENAI_API_KEYS",
            "API_TOKENS",
            "HF_TOKEN1",
            "RCLONE_S3_ACCESS_KEY_ID",
            "MY_CREDS",
            "SESSION_COOKIE",
            "BEARER",
            "OIDC_CLIENTSECRET",
            "LDAP_BIND_PW",
            "SCITOKEN",
            "SENTRY_SECRET",
            "GPG_PASSPHRASE",
            "CI_JOB_JWT",
        ],
        "x",
    ),
}
OTHERS = {
    "RSYNC_TARGET": "ann@host:/data",
    "DATA_URL": "https://data.example.org/x?y=1",
    "REGISTRY": "https://npm.example.org:4873/@scope/x",
    "ARGS": "--max_token=512 --lr=1",
    "GIT_AUTHOR_EMAIL": "ann@example.org",
    **dict.fromkeys(
        [
            "PATH",
            "PWD",
            "OLDPWD",
            "HOME",
            "SSH_AUTH_SOCK",
            "XAUTHORITY",
            "TOKENIZERS_PARALLELISM",
            "MAX_TOKENS",
            "NUM_TOKENS",
            "KEYBOARD",
            "MONKEY",
            "COMPASS",
            "BYPASS",
            "PASSES",
            "PATCH",
            "AUTHOR",
            "SLURM_JOB_ID",
            "CUDA_VISIBLE_DEVICES",
            "CONDA_PREFIX",
            "MODULEPATH",
            "XDG_SESSION_ID",
            "KERAS_BACKEND",
            "PYTHONHASHSEED",
            "OMP_NUM_THREADS",
            "SSL_CERT_FILE",
            "PBS_O_WORKDIR",
        ],
        "x",
    ),
}


def test_a_credential_is_known_under_the_names_and_in_the_forms_that_programs_use() -> None:
    kept, left = credentials.without_credentials(env={**CREDENTIALS, **OTHERS})
    assert sorted(CREDENTIALS) == left
    assert kept == OTHERS
    assert not CREDENTIALS.keys() & credentials.environment(env=CREDENTIALS).keys()


def test_a_url_of_an_invitation_takes_no_token_along_however_it_is_written() -> None:
    for place in (
        "evil",
        "EVIL",
        "evil.",
        "[::1]",
        "[::1]:6",
        "evil,evil2",
        "evil:1,evil2:2",
        "ev%69l",
        "u@evil",
        "127.1",
        "é.org",
    ):
        for scheme in ("postgresql", "https", "postgresql+psycopg2"):
            store = f"{scheme}://{place}/d"
            try:
                joined(store)
                _, secret = PostgresAddress(store).credentials()
            except HopaasError:
                continue
            assert secret is None or "k" * 43 not in secret.reveal(), store
        store = f"s3://bucket?endpoint=https://{place}"
        with pytest.raises(HopaasError):
            joined(store, token=False)
            credentials.may_sign(servers_of(store))
