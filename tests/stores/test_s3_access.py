"""How a peer gets to a bucket: URLs, keys from everywhere, proxies, certificates, forks, the SDK's contract."""

from __future__ import annotations

import http.server
import io
import json
import os
import pickle
import re
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import pytest
import trustme
import urllib3

from hopaas_p2p.errors import ConfigurationError, Denied, HopaasError, StoreUnreachable
from hopaas_p2p.open import open_store, servers_of
from hopaas_p2p.runtime import credentials
from hopaas_p2p.stores.s3 import errors as s3_errors
from hopaas_p2p.stores.s3 import http as s3_http
from hopaas_p2p.stores.s3 import keys as s3_keys
from hopaas_p2p.stores.s3.address import parse
from hopaas_p2p.stores.s3.bucket import Bucket
from hopaas_p2p.stores.s3.keys import Chain, Keys
from hopaas_p2p.stores.s3.policy import policy
from hopaas_p2p.stores.s3.store import S3Store
from hopaas_p2p.testing.commits import append_many, everything, outgoing, together
from tests.support import s3_faults
from tests.support.connect_proxy import ConnectProxy
from tests.support.listening import Answering
from tests.support.s3_faults import Fault, FaultProxy
from tests.support.s3_server import S3Server

ADDRESS = parse("s3://bucket/prefix?endpoint=https://s3.example.org&region=eu-1", {})
NO_MACHINE = {"AWS_EC2_METADATA_DISABLED": "true", "HOME": "/nowhere"}

# --- URLs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "env", "normal"),
    [
        ("s3://b-1/x", {}, "s3://b-1/x?endpoint=https://s3.us-east-1.amazonaws.com&region=us-east-1"),
        (
            "s3://b-1/x/y/",
            {"AWS_REGION": "eu-west-3", "AWS_ENDPOINT_URL": "http://127.0.0.1:9000/"},
            "s3://b-1/x/y?endpoint=http://127.0.0.1:9000&region=eu-west-3",
        ),
        (
            "s3://b-1?endpoint=s3.example.org:443&region=r&style=virtual",
            {"AWS_ENDPOINT_URL_S3": "https://other"},
            "s3://b-1?endpoint=https://s3.example.org&region=r&style=virtual",
        ),
        ("s3://b-1?style=path", {}, "s3://b-1?endpoint=https://s3.us-east-1.amazonaws.com&region=us-east-1&style=path"),
    ],
)
def test_a_url_has_a_normal_form_that_needs_no_environment(url: str, env: dict[str, str], normal: str) -> None:
    assert parse(url, env).url == normal
    assert parse(normal, {}) == parse(url, env)


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("s3://key:secret@b-1/x", "AWS_ACCESS_KEY_ID"),
        ("s3://key:secret/x@b-1/x", "AWS_ACCESS_KEY_ID"),
        ("s3://b-1/x?endpoint=https://key:secret@host", "AWS_ACCESS_KEY_ID"),
        ("s3://b-1/x?endpoint=https://key:secret/x@host", "AWS_ACCESS_KEY_ID"),
        ("s3://b-1/x?endpoint=http:/key:secret@host:port", "AWS_ACCESS_KEY_ID"),
        ("s3://b-1/x?endpoint=https://[key", "endpoint"),
        ("s3://B/x", "bucket name"),
        ("s3:///x", "bucket name"),
        ("s3://b-1/a/../b", "prefix"),
        ("s3://b-1/a b", "prefix"),
        ("s3://b-1/x?secret=1", "option"),
        ("s3://b-1/x?region=a/b", "region"),
        ("s3://b-1/x?endpoint=ftp://host", "endpoint"),
        ("s3://b-1/x?endpoint=https://host/path", "endpoint"),
        ("s3://b-1/x?endpoint=https://host:99999", "endpoint"),
        ("s3://b-1/x?style=sideways", "style"),
    ],
)
def test_a_wrong_url_says_what_to_write(url: str, hint: str) -> None:
    with pytest.raises(ConfigurationError, match=hint) as caught:
        open_store(url)
    assert "secret" not in str(caught.value).replace("'secret' is not an option of an s3", "")


# --- keys --------------------------------------------------------------------------------------------------------


class Said(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: str


class Service:
    """A service that gives keys: answers by path, and remembers what it was asked."""

    def __init__(self, answers: dict[str, Callable[[Said], tuple[int, str]]]) -> None:
        self.said: list[Said] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(handler) -> None:  # noqa: N805
                body = handler.rfile.read(int(handler.headers.get("Content-Length", 0))).decode()
                said = Said(handler.command, handler.path, dict(handler.headers), body)
                self.said.append(said)
                status, text = answers.get(handler.path, lambda _: (404, ""))(said)
                handler.send_response(status)
                handler.send_header("Content-Length", str(len(text)))
                handler.end_headers()
                handler.wfile.write(text.encode())

            do_GET = do_PUT = do_POST = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Service:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def expiry(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


def as_json(key: str, seconds: float = 3600.0) -> str:
    said = {"AccessKeyId": key, "SecretAccessKey": "hidden", "Token": "token", "Expiration": expiry(seconds)}
    return json.dumps(said)


def test_keys_in_the_environment_win(tmp_path: Path) -> None:
    profile = tmp_path / "credentials"
    profile.write_text("[default]\naws_access_key_id=file\naws_secret_access_key=hidden\n")
    env = {**NO_MACHINE, "AWS_SHARED_CREDENTIALS_FILE": str(profile)}
    assert Chain(ADDRESS, env=env).retrieve().access_key == "file"
    env |= {"AWS_ACCESS_KEY_ID": "env", "AWS_SECRET_ACCESS_KEY": "hidden", "AWS_SESSION_TOKEN": "t"}
    keys = Chain(ADDRESS, env=env).retrieve()
    assert (keys.access_key, keys.session_token) == ("env", "t")
    del env["AWS_SECRET_ACCESS_KEY"]
    with pytest.raises(ConfigurationError, match="AWS_SECRET_ACCESS_KEY is not set"):
        Chain(ADDRESS, env=env).retrieve()


def test_a_secret_that_cannot_sign_is_refused_where_it_was_found() -> None:
    env = {**NO_MACHINE, "AWS_ACCESS_KEY_ID": "env", "AWS_SECRET_ACCESS_KEY": "hid\udcffden"}
    with pytest.raises(ConfigurationError, match="secret of the key") as refused:
        Chain(ADDRESS, env=env).retrieve()
    assert "hid" not in str(refused.value)


def test_a_profile_is_found_in_both_files(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("[profile lab]\naws_access_key_id=lab\naws_secret_access_key=hid%den\naws_session_token=t\n")
    env = {**NO_MACHINE, "AWS_CONFIG_FILE": str(config), "AWS_PROFILE": "lab"}
    keys = Chain(ADDRESS, env=env).retrieve()
    assert (keys.access_key, keys.secret_key, keys.session_token) == ("lab", "hid%den", "t")
    with pytest.raises(ConfigurationError, match="AWS_PROFILE=none"):
        Chain(ADDRESS, env={**env, "AWS_PROFILE": "none"}).retrieve()
    config.write_text("what is this")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Chain(ADDRESS, env=env).retrieve()


def test_no_keys_at_all_names_the_places_that_were_looked_at() -> None:
    with pytest.raises(ConfigurationError, match=r"AWS_ACCESS_KEY_ID.*profile.*container.*metadata"):
        Chain(ADDRESS, env=NO_MACHINE).retrieve()


def test_a_web_identity_is_exchanged_at_the_servers_own_sts(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("the-web-token\n")
    xml = f"""<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>
        <AccessKeyId>web</AccessKeyId><SecretAccessKey>a&amp;b</SecretAccessKey><SessionToken>session</SessionToken>
        <Expiration>{expiry(3600)}</Expiration></Credentials></AssumeRoleWithWebIdentityResult>
        </AssumeRoleWithWebIdentityResponse>"""
    with Service({"/": lambda _: (200, xml)}) as sts:
        address = ADDRESS._replace(endpoint=sts.url)
        env = {**NO_MACHINE, "AWS_WEB_IDENTITY_TOKEN_FILE": str(token), "AWS_ROLE_ARN": "arn:role"}
        keys = Chain(address, env=env).retrieve()
        assert (keys.access_key, keys.secret_key, keys.session_token) == ("web", "a&b", "session")
        (said,) = sts.said
        form = parse_qs(said.body)
        assert form["WebIdentityToken"] == ["the-web-token"]
        assert form["RoleArn"] == ["arn:role"]
        assert "token" not in said.path  # a proxy would log it
    with Service({"/": lambda _: (403, "the-web-token")}) as sts:
        with pytest.raises(ConfigurationError) as caught:
            Chain(ADDRESS._replace(endpoint=sts.url), env=env).retrieve()
        assert "the-web-token" not in str(caught.value)
    with pytest.raises(StoreUnreachable):
        Chain(ADDRESS._replace(endpoint=sts.url), env=env).retrieve()


def test_a_container_gives_keys(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("container-token")
    with Service(
        {"/keys": lambda said: (200, as_json("box" if "container-token" in str(said.headers) else "?"))}
    ) as box:
        env = {
            **NO_MACHINE,
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{box.url}/keys",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(token),
        }
        assert Chain(ADDRESS, env=env).retrieve().access_key == "box"
        token.write_bytes(b"\xff")
        with pytest.raises(StoreUnreachable, match=r"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=.* it is not UTF-8 text"):
            Chain(ADDRESS, env=env).retrieve()
        env["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"] = "/not/there"
        with pytest.raises(ConfigurationError, match=r"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=.* No such file"):
            Chain(ADDRESS, env=env).retrieve()


@pytest.mark.parametrize("status", [None, 403, 503])
@pytest.mark.parametrize("scheme", ["http", "ftp"])
def test_a_service_for_keys_is_named_without_its_path(status: int | None, scheme: str) -> None:
    """On ECS, whoever knows the path gets the keys."""
    with Service({"/v2/credentials/canary": lambda _: (status or 200, "")}) as box:
        where = f"{box.url if status else 'http://127.0.0.1:9'}/v2/credentials/canary".replace("http", scheme)
        with pytest.raises(HopaasError, match=r"://127\.0\.0\.1:") as refused:
            Chain(ADDRESS, env={**NO_MACHINE, "AWS_CONTAINER_CREDENTIALS_FULL_URI": where}).retrieve()
    assert "canary" not in "".join(traceback.format_exception(refused.value))


def test_a_machine_gives_keys_and_one_that_is_none_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    roles = "/latest/meta-data/iam/security-credentials/"
    answers: dict[str, Callable[[Said], tuple[int, str]]] = {
        "/latest/api/token": lambda _: (200, "pass"),
        roles: lambda said: (200, "role\n") if said.headers.get("X-aws-ec2-metadata-token") == "pass" else (401, ""),
        f"{roles}role": lambda _: (200, as_json("machine")),
    }
    with Service(answers) as metadata:
        env = {"HOME": "/nowhere", "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.url}
        assert Chain(ADDRESS, env=env).retrieve().access_key == "machine"
    monkeypatch.setattr(s3_keys, "_METADATA_TIMEOUT", 0.2)
    keys = Chain(ADDRESS, env={**env, "AWS_EC2_METADATA_SERVICE_ENDPOINT": "https://192.0.2.1"})
    began = time.monotonic()
    for _ in range(3):
        with pytest.raises(ConfigurationError, match="no keys"):
            keys.retrieve()
    assert time.monotonic() - began < 2.0


class Fading:
    """A source whose keys last for so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.asked = 0
        self._seconds = seconds

    def find(self) -> Keys:
        self.asked += 1
        found = s3_keys._keys_of(as_json(f"key-{self.asked}", self._seconds))
        assert found is not None
        return found


def test_keys_are_renewed_before_they_run_out_by_the_servers_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Fading(3600.0)
    keys = Chain(ADDRESS, env=NO_MACHINE)
    monkeypatch.setattr(keys, "_find", source.find)
    assert [keys.retrieve().access_key for _ in range(3)] == ["key-1"] * 3
    keys.clock = lambda: time.time() + 3500.0
    assert keys.retrieve().access_key == "key-2"
    keys.clock = time.time
    assert keys.renew(keys.retrieve())
    assert source.asked == 3


def test_keys_do_not_show_themselves_or_travel() -> None:
    keys = Keys("key", "hidden", "token")
    assert "hidden" not in repr(keys) + str(keys) + f"{keys}"
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(keys)


# --- proxies and certificates ------------------------------------------------------------------------------------


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure(s3_server: S3Server, authority: trustme.CA) -> Iterator[FaultProxy]:
    """The server behind HTTPS, with a certificate of the site's own authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with FaultProxy(s3_server.port, tls=context) as proxy:
        yield proxy


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    monkeypatch.setenv("HOPAAS_CA_FILE", str(path))


def test_https_needs_the_sites_authority_and_says_so(s3_server: S3Server, secure: FaultProxy) -> None:
    store = S3Store(s3_server.url("tls", endpoint=secure.endpoint))
    with pytest.raises(ConfigurationError, match="HOPAAS_CA_FILE"):
        store.log("u").exchange(None, 0)
    store.close()


@pytest.mark.usefixtures("trusted")
def test_https_works_with_it(s3_server: S3Server, secure: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    store = S3Store(s3_server.url(s3_server.new_prefix(), endpoint=secure.endpoint))
    assert append_many(store.log("u"), "a", 3) == [1, 2, 3]
    store.close()
    monkeypatch.setenv("HOPAAS_CA_FILE", "/not/there")
    with pytest.raises(ConfigurationError, match="no file /not/there"):
        S3Store(store.url).log("u").exchange(None, 0)


@pytest.mark.usefixtures("trusted")
def test_the_sites_proxy_is_used_with_its_login_and_left_out_where_it_should(
    s3_server: S3Server, secure: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ConnectProxy("ann", "p@ss word") as proxy:
        prefix = s3_server.new_prefix()
        monkeypatch.setenv("HTTPS_PROXY", f"http://ann:p%40ss%20word@127.0.0.1:{proxy.port}")
        store = S3Store(s3_server.url(prefix, endpoint=secure.endpoint))
        assert append_many(store.log("u"), "a", 3) == [1, 2, 3]
        assert 1 <= proxy.tunnels <= 16, "as many as race in the proof"
        tunnels = proxy.tunnels
        append_many(store.log("u"), "b", 3, since=3)
        assert proxy.tunnels == tunnels
        store.close()

        monkeypatch.setenv("HTTPS_PROXY", f"http://ann:wrong-one@127.0.0.1:{proxy.port}")
        store = S3Store(store.url)
        with pytest.raises(ConfigurationError, match="login") as caught:
            store.log("u").exchange(None, 0)
        assert "wrong-one" not in str(caught.value)
        store.close()

        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        store = S3Store(store.url)
        assert len(everything(store.log("u"))) == 6
        assert proxy.refused == 1
        assert proxy.tunnels == tunnels
        store.close()

        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setenv("HTTPS_PROXY", "not a proxy")
        with pytest.raises(ConfigurationError, match="HTTPS_PROXY"):
            S3Store(store.url).log("u").exchange(None, 0)


def test_plain_http_takes_its_own_proxy_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://a:1")
    monkeypatch.setenv("http_proxy", "b:2")
    assert str(s3_http.proxy_of("https://host")) == "http://a:1"
    assert str(s3_http.proxy_of("http://host")) == "http://b:2"


# --- what a key may do -------------------------------------------------------------------------------------------


def denied(kind: str) -> Callable[[Any], Fault | None]:
    fault = Fault("denied", forward=False, status=403, code="AccessDenied")
    return lambda request: fault if request.kind == kind else None


def test_a_key_that_may_only_read_reads_and_is_told_when_it_writes(s3_server: S3Server) -> None:
    with FaultProxy(s3_server.port) as proxy:
        prefix = s3_server.new_prefix()
        owner = S3Store(s3_server.url(prefix))
        append_many(owner.log("u"), "a", 3)
        proxy.always = denied("PUT")
        viewer = S3Store(s3_server.url(prefix, endpoint=proxy.endpoint))
        assert len(everything(viewer.log("u"))) == 3
        with pytest.raises(Denied, match="s3-policy"):
            viewer.log("u").exchange(outgoing("mine"), 3)
        assert len(everything(owner.log("u"))) == 3
        owner.close()
        viewer.close()


@pytest.mark.parametrize("code", ["RequestTimeTooSkewed", "InvalidAccessKeyId"])
def test_of_several_requests_that_are_refused_at_once_each_is_sent_again(
    s3_url: str, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    store = S3Store(s3_url)
    store.find()
    objects, gate, sent = store.objects, threading.Barrier(2), threading.local()

    def send(*_: object, **__: object) -> urllib3.HTTPResponse:
        if hasattr(sent, "once"):
            return urllib3.HTTPResponse(io.BytesIO(), status=200, preload_content=False)
        sent.once = True
        gate.wait(30)  # both are under way before either is refused
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "rotated")
        objects._heard = 1000.0
        said = f"<Error><Code>{code}</Code></Error>".encode()
        return urllib3.HTTPResponse(io.BytesIO(said), status=403, preload_content=False)

    monkeypatch.setattr(objects.pool(), "urlopen", send)

    def request() -> int:
        return int(objects._ask("GET", "x", "read x").status)

    assert together(request, request) == [200, 200]
    store.close()


def test_an_answer_is_acknowledged_at_once(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that waits for company makes a GET of 1 ms one of 44 on a server that sends head and body apart."""
    prompt: list[int] = []
    read = urllib3.connection.HTTPConnection.getresponse

    def watched(self: Any) -> Any:
        prompt.append(self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK))
        return read(self)

    monkeypatch.setattr(urllib3.connection.HTTPConnection, "getresponse", watched)
    store = S3Store(s3_url)
    append_many(store.log("u"), "a", 3)
    store.close()
    assert prompt
    assert set(prompt) == {1}


def test_a_missing_bucket_and_a_store_that_is_none_are_named(s3_server: S3Server) -> None:
    with pytest.raises(ConfigurationError, match="no such bucket"):
        S3Store(s3_server.url("x", bucket="not-there-at-all")).log("u").exchange(outgoing("a"), 0)
    with pytest.raises(ConfigurationError, match="there is no store"):
        S3Store(s3_server.url(s3_server.new_prefix()), create=False).log("u").exchange(None, 0)


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (urllib3.exceptions.NewConnectionError, "Connection refused"),
        (urllib3.exceptions.ReadTimeoutError, "no answer in time"),
    ],
)
def test_a_server_that_is_away_is_one_plain_line(raised: type[Exception], said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if raised is urllib3.exceptions.NewConnectionError:
            listener.close()
        with pytest.raises(raised) as caught:
            s3_http.pool(url, read=0.05).request("GET", url)
    error = s3_errors.unreachable(parse(f"s3://bucket/x?endpoint={url}"), caught.value)
    assert str(error).startswith(f"{url} cannot be reached ({said}). ")
    assert "hopaas-p2p doctor" in str(error)


def test_a_server_that_goes_away_under_commit_407_is_not_taken_for_a_proxy() -> None:
    """Which would end a campaign: errors of the connection name what was asked for."""
    gone = urllib3.exceptions.ProtocolError("Connection broken: IncompleteRead(407 bytes read)")
    error = s3_errors.unreachable(parse("s3://bucket/x?endpoint=https://s3.example.org"), gone)
    assert isinstance(error, StoreUnreachable)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("403 Forbidden", r"cannot be reached \(Tunnel connection failed: 403 Forbidden\)"),
        ("407 Proxy Authentication Required", "requires a login: set HTTPS_PROXY"),
    ],
)
def test_a_proxy_that_does_not_lead_there_is_one_plain_line(
    monkeypatch: pytest.MonkeyPatch, status: str, said: str
) -> None:
    with Answering(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        with pytest.raises(urllib3.exceptions.HTTPError) as caught:
            s3_http.pool("https://s3.example.org").request("GET", "https://s3.example.org")
    error = s3_errors.unreachable(parse("s3://bucket/x?endpoint=https://s3.example.org"), caught.value)
    assert re.search(said, str(error))


def test_policies_are_the_least() -> None:
    aws = parse("s3://bucket/prefix?region=eu-1", {})
    viewer, worker, owner = (policy(aws, role, uuid="u") for role in ("viewer", "worker", "owner"))  # type: ignore[arg-type]

    def allowed(document: dict[str, Any], action: str) -> set[str]:
        found = [one for one in document["Statement"] if one["Effect"] == "Allow" and action in one["Action"]]
        return {resource.removeprefix("arn:aws:s3:::") for one in found for resource in one["Resource"]}

    assert allowed(viewer, "s3:PutObject") == set()
    assert allowed(viewer, "s3:GetObject") == {"bucket/prefix/v1/*"}
    assert "bucket/prefix/v1/study/u/log/*" in allowed(worker, "s3:PutObject")
    assert not any(re.search("studies|boundary|meta", one) for one in allowed(worker, "s3:PutObject"))
    assert allowed(worker, "s3:DeleteObject") == {
        "bucket/prefix/v1/study/u/snapshot/*",
        "bucket/prefix/v1/study/doctor-*/snapshot/*",
        "bucket/prefix/v1/artifacts/u/*",
    }
    assert allowed(owner, "s3:DeleteObject") == {"bucket/prefix/v1/*"}
    denied = [one["Resource"] for one in worker["Statement"] if one["Effect"] == "Deny"]
    assert {name.partition("v1/")[2] for name in denied[0]} == {
        f"study/{name}/{kind}/*" for name in ("u", "doctor-*") for kind in ("log", "snapshot")
    }
    assert not any(one["Effect"] == "Deny" for one in policy(ADDRESS, "worker")["Statement"])


# --- requests -----------------------------------------------------------------------------------------------------


def test_the_condition_is_sent_and_signed(s3_server: S3Server) -> None:
    seen: list[dict[str, str]] = []
    with FaultProxy(s3_server.port) as proxy:
        proxy.always = lambda request: seen.append({k.lower(): v for k, v in request.headers})
        objects = S3Store(s3_server.url(s3_server.new_prefix(), endpoint=proxy.endpoint)).objects
        assert objects.put_new("x", b"1")
        assert not objects.put_new("x", b"2")
        assert proxy.requests == {"PUT": 2}  # nothing is tried again behind our back
    assert seen[0]["if-none-match"] == "*"
    assert "if-none-match" in seen[0]["authorization"]


def test_nothing_is_sent_twice_by_itself(s3_server: S3Server) -> None:
    with FaultProxy(s3_server.port) as proxy:
        objects = S3Store(s3_server.url(s3_server.new_prefix(), endpoint=proxy.endpoint)).objects
        for fault in (s3_faults.UNAVAILABLE, s3_faults.LOSE_REPLY, s3_faults.SLOW_DOWN):
            proxy.clear()
            proxy.next("PUT", fault, path="/x")
            with pytest.raises(StoreUnreachable):
                objects.put_new("x", b"1")
            assert proxy.requests == {"PUT": 1}


def test_bucket_in_the_host_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    asked: list[str] = []
    for style in ("virtual", "path"):
        objects = Bucket(
            parse(f"s3://bucket/p?endpoint=http://s3.example.org:9&region=r&style={style}&insecure=true", {})
        )

        def note(_method: str, url: str, **_: Any) -> Any:
            asked.append(url)
            raise OSError("not sent")

        monkeypatch.setattr(objects.pool(), "urlopen", note)
        with pytest.raises(StoreUnreachable):
            objects.get("x", limit=1)
    assert asked == ["http://bucket.s3.example.org:9/p/v1/x", "http://s3.example.org:9/bucket/p/v1/x"]


def test_a_child_gets_connections_of_its_own(s3_url: str) -> None:
    store = S3Store(s3_url)
    log = store.log("u")
    append_many(log, "before", 2)
    before = store.objects._pool
    child = os.fork()
    if child == 0:
        status = 1
        try:
            store.after_fork()
            append_many(log, "child", 3, since=2)
            status = 0 if store.objects._pool is not before else 2
        finally:
            os._exit(status)
    append_many(log, "parent", 3, since=2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(everything(log)) == 8
    store.close()


@pytest.mark.parametrize("url", ["s3://theirs/s", "s3://theirs/s?region=eu-south-1"])
def test_a_ticket_leads_to_amazon_if_the_users_own_store_is_there(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Its host is in no URL."""
    monkeypatch.setenv("HOPAAS_STORE", "s3://mine/s?endpoint=https://s3.example.org")
    with pytest.raises(ConfigurationError, match="a host that you have not named"):
        credentials.check_named(url, servers_of(url), by="the ticket")
    monkeypatch.setenv("HOPAAS_STORE", "s3://mine/s")
    credentials.check_named(url, servers_of(url), by="the ticket")
    with pytest.raises(ConfigurationError, match="a host that you have not named"):
        credentials.check_named("", [("s3.example.org", 443)], by="the ticket")
