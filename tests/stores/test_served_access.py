"""Who may do what through a server: one table of cases, for the database's judgement and for `remote.access`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

import hopaas_p2p
from hopaas_p2p import access
from hopaas_p2p.core import codec
from hopaas_p2p.core.names import NO_REQUEST, request_name
from hopaas_p2p.core.records import (
    FORMAT,
    Commit,
    Float,
    PeerJoin,
    Stamp,
    StudyControl,
    StudyRegistered,
    StudyRemoved,
    TrialFinish,
    TrialState,
)
from hopaas_p2p.errors import BrokenChain, ConfigurationError, Denied, HopaasError, InvalidInput, StoreUnreachable
from hopaas_p2p.open import open_store
from hopaas_p2p.peer.spool import SpoolSender
from hopaas_p2p.remote import protocol
from hopaas_p2p.remote.access import AccessList, GrantSet, TokenSet, UserSet, digest
from hopaas_p2p.remote.client import RemoteAddress, RemoteStore
from hopaas_p2p.remote.https import HttpsSession
from hopaas_p2p.remote.protocol import StoreRequest
from hopaas_p2p.remote.server import ListedService, PostgresService, Service, _places
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.spool import Spooled
from hopaas_p2p.stores import checks
from hopaas_p2p.stores.base import Beat, Outgoing, read_all
from hopaas_p2p.stores.directory.log import FolderLog
from hopaas_p2p.stores.postgres.connect import query
from hopaas_p2p.stores.postgres.store import PostgresStore
from hopaas_p2p.stores.s3 import address as s3_address
from hopaas_p2p.stores.s3 import errors as s3_errors
from hopaas_p2p.stores.s3 import gc
from hopaas_p2p.stores.s3.store import S3Store
from hopaas_p2p.testing.commits import append
from tests.support.ports import free_port
from tests.support.processes import SPACE, cli, until
from tests.support.served import Serve, forget_servers


def _commit(writer: str, about: str = "") -> Outgoing:
    commit = Commit(writer, 1, writer, 0, (StudyControl("stopped", None),))
    return Outgoing(f"{writer}:1", codec.encode(commit), about)


class _With(RemoteAddress):
    """An address with a token of its own."""

    secret: Secret

    def token(self) -> Secret:
        return self.secret


class Site:
    """A store that is served, and people with tokens of it."""

    def __init__(self, url: str, served: str) -> None:
        self.url, self.served = url, served
        self._stores: dict[str, RemoteStore] = {}

    def person(self, user: str, **options: Any) -> RemoteStore:
        if user not in self._stores:
            with contextlib.suppress(InvalidInput):
                access.add_user(self.url, user)
            self._stores[user] = self.with_token(access.create_token(self.url, user, **options).secret)
        return self._stores[user]

    def guest_of(self, uuid: str, role: str) -> RemoteStore:
        name = access.guest(self.url, uuid, role)
        return self.person(name)

    def with_token(self, secret: Secret) -> RemoteStore:
        store = RemoteStore(self.served)
        store.connections.address = _With(*store.connections.address)
        store.connections.address.secret = secret
        return store

    def study(self, user: str = "ann", name: str = "s") -> str:
        """A study of this user's: its uuid."""
        store, uuid = self.person(user), f"uuid-of-{name}"
        append(store.log(uuid), _commit(f"{user}-{name}"))
        opened = Commit(f"opener-{name}", 1, f"opener-{name}", 0, (StudyRegistered(uuid, name),))
        append(store.catalog(), Outgoing(f"opener-{name}:1", codec.encode(opened), about=uuid))
        return uuid

    def close(self) -> None:
        for store in self._stores.values():
            store.close()


@pytest.fixture(params=["directory", "postgres"])
def site(request: pytest.FixtureRequest, serve: Serve, tmp_path: Path) -> Iterator[Site]:
    if request.param == "directory":
        url = str(tmp_path / "store")
        open_store(url).close()
    else:
        url = request.getfixturevalue("postgres_url")
    with contextlib.closing(Site(url, serve(url).url)) as made:
        yield made


def _asked(store: RemoteStore, name: str) -> list[str]:
    """The request of a rescue, as far as the store took it."""
    store.beat(Beat(name, "now"))
    return list(store.beats([name]))


def test_a_server_names_the_token_by_which_it_knows_a_caller_and_stamps_its_user(site: Site) -> None:
    uuid = site.study("ann")
    assert re.fullmatch(r"ann\.[0-9a-f]{8}", site.person("ann").login())
    assert {entry.stamp.author for entry in read_all(site.person("ann").log(uuid))} == {"ann"}


ACTIONS: dict[str, Callable[[RemoteStore, str, Path], Any]] = {
    "read": lambda store, uuid, _: list(read_all(store.log(uuid))),
    "append": lambda store, uuid, _: append(store.log(uuid), _commit("another")),
    "find a snapshot": lambda store, uuid, _: store.log(uuid).newest_snapshot(),
    "keep a snapshot": lambda store, uuid, _: store.log(uuid).put_snapshot(1, b"any bytes"),
    "keep a file": lambda store, uuid, path: store.artifacts().put(f"{uuid}/file", path),
    "read a file": lambda store, uuid, path: store.artifacts().get(f"{uuid}/there", path.with_name("copy")),
    "list files": lambda store, uuid, _: store.artifacts().keys(f"{uuid}/"),
    "remove a file": lambda store, uuid, _: store.artifacts().delete(f"{uuid}/there"),
    "ask live peers": lambda store, uuid, _: _asked(store, request_name(uuid)),
    "destroy": lambda store, uuid, _: store.log(uuid).destroy(),
}
LEAST = {
    **dict.fromkeys(("read", "find a snapshot", "read a file", "list files"), "viewer"),
    **dict.fromkeys(("append", "keep a snapshot", "keep a file", "remove a file"), "worker"),
    **dict.fromkeys(("ask live peers", "destroy"), "owner"),
}
ROLES = (None, "viewer", "worker", "owner")


@pytest.mark.parametrize("role", ROLES)
def test_each_role_may_do_what_the_table_says(site: Site, tmp_path: Path, role: str | None) -> None:
    uuid, file = site.study(), tmp_path / "a file"
    file.write_text("content")
    site.person("ann").artifacts().put(f"{uuid}/there", file)
    bob = site.person("bob")
    if role is not None:
        access.grant(site.url, "s", "bob", role)
    for action, do in ACTIONS.items():
        if ROLES.index(role) >= ROLES.index(LEAST[action]):
            do(bob, uuid, file)
        else:
            with pytest.raises(Denied, match=r"hopaas-p2p admin grant|no grant"):
                assert do(bob, uuid, file) == []
                raise Denied("no grant: there is nothing to list")
    if role != "owner":  # who has destroyed it
        assert (bob.shared() or set()) - {"catalog"} == (set() if role is None else {uuid})


def test_whoever_writes_first_to_a_log_owns_it_and_every_commit_names_its_author(site: Site) -> None:
    uuid = site.study()
    assert [(one.user, one.role) for one in access.grants(site.url, "s")] == [("ann", "owner")]
    entries = list(read_all(site.person("ann").log(uuid)))
    assert [(one.stamp.author, one.stamp.role) for one in entries] == [("ann", "owner")]
    assert entries[0].stamp.at > 0
    (opened,) = read_all(site.person("bob").catalog())
    assert (opened.stamp.author, opened.stamp.role) == ("ann", f"owner:{uuid}")


def test_a_guest_takes_part_in_one_study_and_creates_none(site: Site) -> None:
    uuid, other = site.study(), site.study("ann", "other")
    guest = site.guest_of(uuid, "worker")
    access.grant(site.url, "s", access.guest(site.url, uuid, "worker"), "worker")
    append(guest.log(uuid), _commit("of-a-guest"))
    list(read_all(guest.catalog()))
    assert [one for one in checks.examine(guest) if not one.passed and one.check != "tls"] == []
    for forbidden in (
        lambda: list(read_all(guest.log(other))),
        lambda: append(guest.log("new"), _commit("x")),
        lambda: append(guest.catalog(), _commit("g", about="new")),
        lambda: guest.artifacts().put("elsewhere/file", Path(__file__)),
    ):
        with pytest.raises(Denied):
            forbidden()
    with pytest.raises(Denied, match="guest of one study: it can neither create nor delete"):
        append(guest.catalog(), _commit("g", about=uuid))
    with pytest.raises((InvalidInput, Denied), match="guest of one study"):
        access.grant(site.url, "other", access.guest(site.url, uuid, "worker"), "worker")


def test_only_an_owner_of_a_study_closes_it_in_the_catalog(site: Site) -> None:
    site.study()
    bob = site.person("bob")
    append(bob.catalog(), _commit("b", about="uuid-of-s"))
    assert list(read_all(bob.catalog()))[-1].stamp.role == "worker"
    with pytest.raises(Denied):
        bob.catalog().destroy()


def test_gc_of_a_served_bucket_keeps_the_users_and_a_study_that_a_mere_worker_calls_removed(
    store: S3Store, serve: Serve
) -> None:
    store.prove()  # which makes it
    with contextlib.closing(Site(store.url, serve(store.url).url)) as site:
        bob, uuid = site.person("bob"), site.study()
        removal = Commit("bob", 1, "bob", 0, (StudyRemoved(uuid),))
        append(bob.catalog(), Outgoing("bob:1", codec.encode(removal), about=uuid))
        users = access.users(store.url)
        assert list(gc._collect(store, -60.0, dry_run=False)) == []
        assert access.users(store.url) == users
        assert [one.lsn for one in read_all(site.person("ann").log(uuid))] == [1]


def test_a_study_keeps_its_last_owner(site: Site) -> None:
    site.study()
    for take in (lambda: access.revoke(site.url, "s", "ann"), lambda: access.grant(site.url, "s", "ann", "viewer")):
        with pytest.raises((InvalidInput, Denied), match="only owner"):
            take()
    site.person("bob")
    access.grant(site.url, "s", "bob", "owner")
    access.revoke(site.url, "s", "ann")
    with pytest.raises(Denied):
        list(read_all(site.person("ann").log("uuid-of-s")))


def test_nobody_beats_for_the_peer_of_another_user(site: Site) -> None:
    ann, bob = site.person("ann"), site.person("bob")
    ann.beat(Beat("peer-of-ann", "1"))
    before = bob.beats(["peer-of-ann"])
    with contextlib.suppress(Denied):
        bob.beat(Beat("peer-of-ann", "2"))
    assert ann.beats(["peer-of-ann"]) == before != {}
    ann.beat(Beat("peer-of-ann", "3"))
    assert ann.beats(["peer-of-ann"]) != before


def test_a_guest_ends_nothing_and_uses_up_nothing_of_a_peer_that_works_in_the_directory_itself(
    serve: Serve, tmp_path: Path
) -> None:
    with contextlib.closing(hopaas_p2p.open_study(str(tmp_path / "store"), "s")) as study:
        trial, peer, uuid = study.ask(), study.storage.peer.uuid, study.handle.uuid
        with contextlib.closing(Site(str(tmp_path / "store"), serve(str(tmp_path / "store")).url)) as site:
            guest = site.guest_of(uuid, "worker")
            access.grant(site.url, "s", access.guest(site.url, uuid, "worker"), "worker")
            forged = TrialFinish(trial.number, 1, TrialState.COMPLETE, (-99.0,)), PeerJoin({"host": "elsewhere"})
            for writer, seq in ((peer, 10**9), ("guests", 1)):
                commit = codec.encode(Commit(writer, seq, peer, 0, forged))
                append(guest.log(uuid), Outgoing(f"{writer}:{seq}", commit))
            end = codec.encode(
                Commit(peer, 1000, peer, 0, (TrialFinish(trial.number, 1, TrialState.COMPLETE, (0.5,)),))
            )
            kept = Spooled(guest.url, uuid, "s", [trial.number], 0, "unsent", [(0, None)], [end])
            with pytest.raises(Denied, match=r"wrote to the store directly.* send the results directly"):
                SpoolSender(guest, now_us=lambda: 0).send(kept, {}, writer="sender")
        study.tell(trial, 1.0)
        assert study.trials[0].values == [1.0]
        assert study.state.refusals == {"author": 5}
        assert study.state.peers[peer]["host"] != "elsewhere"


def test_a_rescue_asks_whatever_others_did_under_its_name_and_takes_its_request_back(site: Site) -> None:
    uuid = site.study()
    name, ann, bob = request_name(uuid), site.person("ann"), site.person("bob")
    access.grant(site.url, "s", "bob", "worker")
    for squat in (
        lambda: bob.beat(Beat(name, "bob's")),
        lambda: append(bob.log(uuid), _commit(name)),  # as this is its peer now
        lambda: bob.beat(Beat(name, "bob's")),
    ):
        with contextlib.suppress(Denied):
            squat()
    assert bob.beats([name]) == {}
    ann.beat(Beat(name, "ann's"))
    with contextlib.suppress(Denied):
        bob.remove_beat(name)
    assert bob.beats([name]) == {name: "ann's"}
    access.grant(site.url, "s", "bob", "owner")
    bob.beat(Beat(name, NO_REQUEST))
    assert ann.beats([name]) == {name: NO_REQUEST}


def test_a_revoked_token_and_a_removed_user_are_refused_at_the_next_request(site: Site) -> None:
    site.person("ann")
    token = access.create_token(site.url, "ann")
    store, bob = site.with_token(token.secret), site.person("bob")
    for one in (store, bob):
        list(read_all(one.catalog()))
    access.revoke_token(site.url, token.name)
    with pytest.raises(Denied, match=r"hopaas-p2p admin token create|expired or was revoked"):
        list(read_all(store.catalog()))
    access.remove_user(site.url, "bob")
    with pytest.raises(Denied):
        list(read_all(bob.catalog()))
    list(read_all(site.person("ann").catalog()))
    store.close()


def test_a_token_that_does_not_exist_is_not_revoked(site: Site) -> None:
    site.person("ann", label="my cluster")
    for name in ("my cluster", "ann.00000000", "", "x" * 100):
        with pytest.raises(InvalidInput, match=r"there is no token .*; list them with: hopaas-p2p"):
            access.revoke_token(site.url, name)
    if not site.url.startswith("postgresql"):
        with contextlib.closing(open_store(site.url)) as store:
            roles = AccessList(store).read()
            assert roles.lsn == len(roles.users) + len(roles.tokens), "nothing is written for it"


def test_a_token_that_has_expired_is_refused(site: Site) -> None:
    site.person("ann")
    token = access.create_token(site.url, "ann")
    store = site.with_token(token.secret)
    list(read_all(store.catalog()))
    with contextlib.closing(open_store(site.url)) as opened:
        if isinstance(opened, PostgresStore):
            with opened.connect() as connection:
                query(connection, f"ALTER ROLE \"{token.name}\" VALID UNTIL '2001-01-01'")
        else:
            there = AccessList(opened)
            there.read()
            there.change(TokenSet(token.name, "ann", digest(token.secret.reveal().partition(":")[2]), 1))
    with pytest.raises(Denied):
        list(read_all(store.catalog()))
    store.close()


def test_a_wrong_secret_is_refused_whoever_it_is_said_to_be(site: Site) -> None:
    site.person("ann")
    token = access.create_token(site.url, "ann")
    for secret in (f"{token.name}:wrong", f"{token.name}:", "nobody:x", ":x", f"ann:{token.secret.reveal()}"):
        store = site.with_token(Secret(secret))
        with pytest.raises(Denied, match="401"):
            store.facts()
        store.close()
    found = site.with_token(token.secret)
    facts = found.facts()
    assert facts.token == token.name
    assert facts.expires is not None
    found.close()


def test_a_users_grant_is_listed_with_who_gave_it(site: Site) -> None:
    site.study()
    site.person("bob")
    access.grant(site.url, "s", "bob", "viewer")
    assert [(one.user, one.role) for one in access.grants(site.url, "s")] == [("ann", "owner"), ("bob", "viewer")]
    assert [one.name for one in access.users(site.url)] == ["ann", "bob", "operator"]
    assert {one.user for one in access.tokens(site.url)} == {"ann", "bob", "operator"}
    for wrong in (lambda: access.grant(site.url, "s", "nobody", "viewer"), lambda: access.add_user(site.url, "bob")):
        with pytest.raises((InvalidInput, ConfigurationError)):
            wrong()


def test_the_doctor_finds_nothing_wrong_with_a_store_that_is_served(site: Site) -> None:
    found = list(checks.examine(site.person("ann")))
    assert [one for one in found if not one.passed] == []
    assert {"reach", "write and read", "beat"} <= {one.check for one in found}


def test_a_study_runs_with_peers_at_the_store_itself_and_through_the_server(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.person("ann")
    with contextlib.closing(hopaas_p2p.open_study(site.url, "s", space=SPACE, budget=8)) as direct:
        site.person("bob")
        access.grant(site.url, "s", "bob", "worker")
        secret = access.create_token(site.url, "bob").secret.reveal()
        monkeypatch.setenv("HOPAAS_TOKEN", secret)
        with contextlib.closing(hopaas_p2p.open_study(site.served, "s", create=False)) as remote:
            for study in (direct, remote, direct, remote):
                trial = study.ask()
                study.tell(trial, trial.params["lr"])
            remote.optimize(lambda trial: trial.params["lr"])
            assert [trial.state.name for trial in remote.state.trials] == ["COMPLETE"] * 8
            with pytest.raises(Denied):
                remote.stop_all()
        until(lambda: [trial.state.name for trial in direct.state.trials] == ["COMPLETE"] * 8)


def test_a_viewer_learns_the_role_that_its_request_takes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.person("ann")
    hopaas_p2p.open_study(site.url, "s", space=SPACE).close()
    site.person("bob")
    access.grant(site.url, "s", "bob", "viewer")
    monkeypatch.setenv("HOPAAS_TOKEN", access.create_token(site.url, "bob").secret.reveal())
    with contextlib.closing(hopaas_p2p.open_study(site.served, "s", create=False)) as study:
        with pytest.raises(Denied, match=r"only a viewer .* takes at least a worker.* USER worker"):
            study.enqueue_trial({})
        with pytest.raises(Denied, match=r"only a viewer .* takes an owner.* USER owner"):
            study.pause()


def test_a_user_that_only_has_a_guests_name_is_not_invited(site: Site) -> None:
    name = access.guest(site.url, "uuid-of-s", "worker")
    assert access.guest(site.url, "uuid-of-s", "worker") == name
    access.remove_user(site.url, name)
    access.add_user(site.url, name)
    with pytest.raises(InvalidInput, match="is not this study's guest"):
        access.guest(site.url, "uuid-of-s", "worker")


def test_one_string_lets_a_guest_take_part_in_a_directory(site: Site, tmp_path: Path) -> None:
    """As the person types it who serves the directory, and the one at the other site."""
    site.person("ann")
    with contextlib.closing(hopaas_p2p.open_study(site.url, "s", space={"x": Float(0, 1)}, budget=3)):
        pass
    trusting = {"HOPAAS_CA_FILE": os.environ["HOPAAS_CA_FILE"]}
    made = cli("invite", "s", "--via", site.served, "--site", "north", HOPAAS_STORE=site.url, **trusting)
    (tmp_path / "north.invitation").write_text(made.stdout)
    words = ["join", str(tmp_path / "north.invitation"), "--logs", str(tmp_path / "logs"), "--"]
    trial = ["sh", "-c", 'echo "{\\"value\\": {x}}"']
    joined = cli(*words, *trial, check=False, XDG_CONFIG_HOME=str(tmp_path / "north"), HOPAAS_TOKEN="", HOPAAS_STORE="")
    assert joined.returncode == 0, joined.stderr
    assert "Connection: direct" in joined.stderr
    with contextlib.closing(hopaas_p2p.open_study(site.url, "s", create=False)) as study:
        assert [trial.state.name for trial in study.state.trials] == ["COMPLETE"] * 3
        authors = {info["user"] for info in study.state.peers.values() if info.get("site") == "north"}
    assert {author.partition("-")[0] for author in authors} == {"guest"}
    (name,) = [one.name for one in access.tokens(site.url) if one.label == "invitation to s for north"]
    revoked = cli("admin", "token", "revoke", name, HOPAAS_STORE=site.url)
    assert "Revoked" in revoked.stderr + revoked.stdout
    refused = cli("join", "--", *trial, check=False, XDG_CONFIG_HOME=str(tmp_path / "north"), HOPAAS_TOKEN="")
    assert refused.returncode == 77
    assert "your invitation to 's' has expired or was revoked. Ask its sender for another" in refused.stderr
    assert "cannot be reached" not in refused.stderr


def test_a_job_of_a_joined_study_whose_server_is_away_waits_as_a_worker_does_and_is_run_again(
    site: Site, tmp_path: Path
) -> None:
    site.person("ann")
    with contextlib.closing(hopaas_p2p.open_study(site.url, "s", space={"x": Float(0, 1)}, budget=3)):
        pass
    trusting = {"HOPAAS_CA_FILE": os.environ["HOPAAS_CA_FILE"]}
    made = cli("invite", "s", "--via", site.served, HOPAAS_STORE=site.url, **trusting)
    (tmp_path / "s.invitation").write_text(made.stdout)
    at_site = {"XDG_CONFIG_HOME": str(tmp_path / "site"), "HOPAAS_TOKEN": "", "HOPAAS_STORE": ""}
    cli("join", str(tmp_path / "s.invitation"), **at_site)
    (settings,) = (tmp_path / "site").rglob("s.toml")
    settings.write_text(settings.read_text().replace(site.served.rpartition(":")[2], str(free_port())))

    job = cli("join", "--", "sh", "-c", ": {x}", check=False, HOPAAS_PATIENCE="0.5", **at_site)
    assert job.returncode == 75, job.stderr
    assert "cannot be reached from here (tried: direct)" in job.stderr
    assert "Run this job again later" in job.stderr
    person = cli("join", check=False, **at_site)
    assert person.returncode == 78, "who only asks for the route is told at once"


# --- what only a server that keeps the list itself can get wrong ---------------------------------------------------


def test_no_commit_gets_round_its_stamp(site: Site) -> None:
    """However it is encoded, a worker's commit is stored with what the server says of it, or not at all."""
    uuid = site.study()
    bob = site.person("bob")
    access.grant(site.url, "s", "bob", "worker")
    good = _commit("forger").payload
    long = b"\xdc\x00\x06" + good[5:]
    long = zlib.crc32(long).to_bytes(4, "little") + long
    as_owner = codec.attach(good, 0, Stamp("ann", "owner", 1))
    twice = codec.attach(as_owner, None, Stamp("ann", "owner", 1))
    assert isinstance(codec.decode(long), Commit)
    for number, payload in enumerate((good, long, as_owner, twice)):
        with contextlib.suppress(InvalidInput):
            append(bob.log(uuid), Outgoing(f"forger:{number}", payload))
    stamps = [one.stamp for one in read_all(open_store(site.url).log(uuid))]
    assert stamps[0].author == "ann"
    assert {(one.author, one.role) for one in stamps[1:]} == {("bob", "worker")}


def test_an_administrator_manages_users_through_the_server_and_nobody_else_does(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "store")
    open_store(url).close()
    served = serve(url).url  # whose token in the environment is an administrator's
    with contextlib.closing(Site(url, served)) as site:
        uuid = site.study()
        access.add_user(served, "bob")
        secret = access.create_token(served, "bob").secret
        access.grant(served, "s", "bob", "viewer")
        assert [(one.user, one.role) for one in access.grants(url, "s")] == [("ann", "owner"), ("bob", "viewer")]
        assert {one.name for one in access.users(served)} == {"operator", "ann", "bob"}
        bob = site.with_token(secret)
        assert list(read_all(bob.log(uuid)))
        access.revoke(served, "s", "bob")
        with pytest.raises(Denied):
            list(read_all(bob.log(uuid)))
        written = [entry.stamp.author for entry in read_all(open_store(url).log("access"))]
        assert written.count("operator") == 4, "the server says who wrote it"
        monkeypatch.setenv("HOPAAS_TOKEN", secret.reveal())
        for attempt in (lambda: access.add_user(served, "eve"), lambda: access.grant(served, "s", "bob", "owner")):
            with pytest.raises(Denied, match="only an administrator may manage users"):
                attempt()
        bob.close()


def test_the_users_of_a_database_are_not_managed_through_a_server(postgres_url: str, serve: Serve) -> None:
    served = serve(postgres_url).url
    with pytest.raises(Denied, match="managed at its own URL"):
        access.add_user(served, "bob")


def test_a_file_that_a_database_refuses_takes_no_room_on_the_servers_disk(
    postgres_url: str, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[int] = []
    monkeypatch.setattr(HttpsSession, "_keep", lambda _self, size, _folder: stored.append(size))
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"weights")
    large.touch()
    os.truncate(large, (64 << 20) + 1)
    with contextlib.closing(Site(postgres_url, serve(postgres_url).url)) as site:
        uuid, bob = site.study(), site.person("bob").artifacts()
        for role in ROLES[:2]:
            if role is not None:
                access.grant(postgres_url, "s", "bob", role)
            with pytest.raises(Denied):
                bob.put(f"{uuid}/x", small)
        with pytest.raises(Denied, match="belongs to no study"):
            bob.put("another/x", small)
        access.grant(postgres_url, "s", "bob", "worker")
        with pytest.raises(ConfigurationError, match="HOPAAS_ARTIFACTS"):
            bob.put(f"{uuid}/x", large)
        assert stored == []
        bob.put(f"{uuid}/x", small)
        assert stored == [7]
        assert bob.keys(uuid) == [f"{uuid}/x"]


@pytest.mark.parametrize("uuid", ["access", "..", "a/b", ""])
def test_no_request_reaches_a_log_of_the_stores_own(tmp_path: Path, serve: Serve, uuid: str) -> None:
    open_store(tmp_path / "store").close()
    with contextlib.closing(Site(str(tmp_path / "store"), serve(str(tmp_path / "store")).url)) as site:
        eve = site.person("eve")
        for call, arguments in (("exchange", (None, 0)), ("destroy", ()), ("put_snapshot_head", (1, b"x"))):
            with pytest.raises(Denied):
                eve.connections.ask(call, *arguments, place=uuid)


@pytest.mark.parametrize("name", ["../../../access/commits/x", "../../../../../outside", "/outside", "..", "a/b", ""])
def test_no_name_leads_out_of_a_log(tmp_path: Path, serve: Serve, name: str) -> None:
    """An owner, of a study that anybody may create, names pieces of its snapshots."""
    open_store(tmp_path / "store").close()
    with contextlib.closing(Site(str(tmp_path / "store"), serve(str(tmp_path / "store")).url)) as site:
        uuid, ask = site.study(), site.person("ann").connections.ask
        ask("put_block", "name", b"bytes", place=uuid)
        before = set(tmp_path.rglob("*"))
        for call, arguments in (("blocks", ([name],)), ("put_block", (name, b"x"))):
            with pytest.raises(InvalidInput):
                ask(call, *arguments, place=uuid)
        assert set(tmp_path.rglob("*")) == before


def test_nothing_is_kept_or_removed_in_a_log_before_its_first_commit(tmp_path: Path, serve: Serve) -> None:
    """Its uuid may be known: a study that is restored keeps it."""
    open_store(tmp_path / "store").close()
    with contextlib.closing(Site(str(tmp_path / "store"), serve(str(tmp_path / "store")).url)) as site:
        ask = site.person("bob").connections.ask
        list(read_all(site.person("bob").log("unborn")))
        before = set(tmp_path.rglob("*"))
        calls: tuple[tuple[Any, ...], ...] = (
            ("put_block", "x", b"x"),
            ("put_snapshot_head", 1, b"x"),
            ("destroy",),
            ("erase",),
        )
        for call, *arguments in calls:
            with pytest.raises(Denied):
                ask(call, *arguments, place="unborn")
        assert set(tmp_path.rglob("*")) == before


def test_nobody_lists_the_files_of_studies_whose_uuid_begins_alike(site: Site, tmp_path: Path) -> None:
    uuid, file = site.study(), tmp_path / "a file"
    file.write_text("content")
    site.person("ann").artifacts().put(f"{uuid}/secret", file)
    bob = site.person("bob")
    for own in ("u", uuid[:-1]):
        append(bob.log(own), _commit(f"bob-{own}"))
        bob.artifacts().put(f"{own}/file", file)
        for prefix in (own, f"{own}/../{uuid}/", f"{own}/../"):
            with contextlib.suppress(Denied, InvalidInput):
                assert not [key for key in bob.artifacts().keys(prefix) if "secret" in key]


@pytest.mark.parametrize("total", [None, 12345])
@pytest.mark.parametrize("since", [1, 5, 256, 10**9])
def test_no_commit_stands_where_nothing_was_before_it_or_on_a_false_sum(
    site: Site, since: int, total: int | None
) -> None:
    """It would end the log for everybody: anybody's list of studies, and a worker's study."""
    uuid, bob = site.study(), site.person("bob")
    access.grant(site.url, "s", "bob", "worker")
    for place in (uuid, "catalog"):
        commit = Outgoing("forger:1", _commit("forger").payload, "", total)
        with contextlib.suppress(BrokenChain, Denied, InvalidInput, StoreUnreachable):
            bob.connections.ask("exchange", commit, since, place=place)
    ann, sums = site.person("ann"), 0
    append(ann.log(uuid), _commit("ann-again"))
    append(ann.catalog(), _commit("ann-again"))
    for log in (ann.log(uuid), ann.catalog()):
        entries, sums = list(read_all(log)), 0
        assert [one.lsn for one in entries] == list(range(1, len(entries) + 1))
        for one in entries:
            assert one.before in (None, sums)
            sums = codec.following(sums, one.payload)


@pytest.mark.parametrize("many", [1, 30])
@pytest.mark.parametrize("first", [b"\x80", b"\xc0"])
def test_bytes_that_are_no_commit_do_not_break_off_the_chain(
    tmp_path: Path, serve: Serve, first: bytes, many: int
) -> None:
    """Nor for a server that has read nothing of the log, as after a restart: it would note no second history then."""
    url, uuid = str(tmp_path / "store"), "uuid-of-s"
    open_store(url).close()
    log = serve(url).log(uuid)
    append(log, _commit("ann"))
    for number in range(many):
        body = first + number.to_bytes(2, "big") + b"\xc0" * 40
        append(log, Outgoing(f"forger:{number}", zlib.crc32(body).to_bytes(4, "little") + body))
    access.remove_user(url, "operator")
    append(serve(url).log(uuid), _commit("later"), many + 1)
    entries, sums = list(read_all(open_store(url).log(uuid))), 0
    assert [one.lsn for one in entries] == list(range(1, many + 3))
    for one in entries:
        assert one.before == sums or (one.before is None and not one.stamp.author)
        sums = codec.following(sums, one.payload)


def test_a_commit_of_a_peer_that_is_behind_is_one_exchange_with_a_directory(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server knows the sums of what it has read lately, which each commit stands on."""
    url = str(tmp_path / "store")
    calls: list[int] = []
    open_store(url).close()
    log = serve(url).log("uuid-of-s")
    for number in range(4):
        append(log, _commit(f"first-{number}"), number)
    exchange = FolderLog.exchange
    monkeypatch.setattr(FolderLog, "exchange", lambda *given: calls.append(given[2]) or exchange(*given))
    for since in (2, 1, 4):
        append(log, _commit(f"behind-{since}"), since)
    assert calls == [2, 1, 4]


@pytest.mark.parametrize("what", [(FolderLog, "exchange"), (AccessList, "read")])
def test_an_iterator_that_runs_out_in_the_server_is_an_error_of_one_request_and_not_a_wait_without_end(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch, what: tuple[type, str]
) -> None:
    url = str(tmp_path / "store")
    open_store(url).close()
    log = serve(url).log("uuid-of-s")
    with monkeypatch.context() as patch, pytest.raises(StoreUnreachable):
        patch.setattr(*what, lambda *_: next(iter(())))
        log.exchange(None, 0)
    forget_servers()  # one of them asked to come back later
    append(log, _commit("first"))


def test_a_server_does_not_remember_whose_a_peer_was(site: Site) -> None:
    """Another server, or the store itself, may know better meanwhile."""
    ann, bob = site.person("ann"), site.person("bob")
    bob.beat(Beat("peer", "1"))
    with contextlib.closing(open_store(site.url)) as store:
        if not site.url.startswith("postgresql"):
            store.remove_beat("peer")
            store.beat(Beat("peer", "of somebody who is at the store itself"))
            with pytest.raises(Denied):
                bob.beat(Beat("peer", "2"))
    with contextlib.suppress(Denied):
        ann.beat(Beat("peer", "3"))


def test_who_beats_first_under_a_name_that_it_saw_locks_nobody_out(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ann's peer has written, but runs nothing yet, when bob beats for it."""
    site.person("ann")
    monkeypatch.setenv("HOPAAS_TOKEN", access.create_token(site.url, "ann").secret.reveal())
    with contextlib.closing(hopaas_p2p.open_study(site.served, "s", space=SPACE, budget=3)) as study:
        bob = site.person("bob")
        access.grant(site.url, "s", "bob", "worker")
        for log in (bob.catalog(), *(bob.log(uuid) for uuid in bob.shared() or () if uuid != "catalog")):
            for entry in read_all(log):
                with contextlib.suppress(Denied):
                    bob.beat(Beat(codec.decode(entry.payload).writer, "squat"))
        study.optimize(lambda trial: trial.params["lr"])
        assert [trial.state.name for trial in study.state.trials] == ["COMPLETE"] * 3


@pytest.mark.parametrize("arguments", [(Beat("a", "\0"),), (Beat("\0", "1"),)])
def test_a_text_that_no_database_takes_is_the_callers_mistake(site: Site, arguments: tuple[Beat]) -> None:
    with contextlib.suppress(InvalidInput, Denied):
        site.person("ann").connections.ask("beat", *arguments)


def test_no_error_names_the_place_of_the_store(site: Site, tmp_path: Path) -> None:
    store, uuid = site.person("ann"), site.study()
    file = tmp_path / "file"
    file.write_text("x")
    said = []
    for call in (
        lambda: store.artifacts().put(f"{uuid}/" + "x" * 400, file),
        lambda: access.revoke_token(site.url, access.tokens(site.url, user="ann")[0].name),
        lambda: list(read_all(store.log(uuid))),
    ):
        try:
            call()
        except HopaasError as error:
            said.append(str(error))
    assert said
    place = site.url.rpartition("@")[2].partition("/")[0] if "@" in site.url else str(tmp_path)
    assert not any(place in one or f"port {place.rpartition(':')[2]}" in one for one in said), said


@pytest.mark.parametrize(
    "url", ["postgresql://db.site.invalid/d", "postgresql:///d?host=/nowhere", "postgresql://127.0.0.1:1/d"]
)
def test_no_error_names_a_database_that_cannot_be_reached(url: str) -> None:
    service = PostgresService(url)
    found = asyncio.run(service.carry_out(("ann", Secret("x")), StoreRequest("shared")))
    kind, message = protocol.refusal(found) or ("", "")
    assert kind == "StoreUnreachable"
    assert not any(one in message for one in ("db.site", "nowhere", "127.0.0.1", "port 1"))
    service.close()


def test_no_error_names_a_bucket(tmp_path: Path) -> None:
    service = ListedService(open_store(str(tmp_path)))
    address = s3_address.parse("s3://lab-bucket/runs?endpoint=https://s3.example.org:9000", {})
    service._places = _places(address.url)
    for error in (s3_errors.refusal(address, 503, "SlowDown", "read"), s3_errors.unreachable(address, TimeoutError())):
        message = str(protocol.refusal(service._refused(error)))
        assert "the store" in message
        assert not any(one in message for one in ("lab-bucket", "example", "9000"))
    service.close()


def test_whoever_serves_a_folder_is_told_which_place_fails(tmp_path: Path) -> None:
    """All its callers act with this person's rights, and the folder's description names the store."""
    store = open_store(str(tmp_path))
    for service, named in ((Service(lambda _: store), True), (ListedService(store), False)):
        found = service._refused(StoreUnreachable(f"{tmp_path}/v1: Input/output error"))
        assert (str(tmp_path) in str(protocol.refusal(found))) == named
        service.close()


def _change(*changes: Any, at: int | None = None) -> Outgoing:
    body = msgspec.msgpack.encode(
        [FORMAT, "writer", 1, "mallory", int(time.time() * 1e6) if at is None else at, changes]
    )
    return Outgoing("writer:1", zlib.crc32(body).to_bytes(4, "little") + body)


_SECRET = "s" * 43
_GHOST = (
    UserSet("ghost"),
    GrantSet("catalog", "ghost", "owner"),
    TokenSet("ghost.1", "ghost", digest(_SECRET), int(time.time()) + 10**6),
)


@pytest.mark.parametrize(("ahead", "total"), [(1, None), (4, None), (1000, None), (0, 12345)])
def test_an_administrator_leaves_nothing_ahead_of_the_end_of_the_list(
    serve: Serve, tmp_path: Path, ahead: int, total: int | None
) -> None:
    """It would lock everybody out, or come into force when its author has been removed."""
    url = str(tmp_path / "store")
    open_store(url).close()
    with contextlib.closing(Site(url, serve(url).url)) as site:
        access.add_user(url, "mallory", administrator=True)
        mallory = site.person("mallory")
        end = len(mallory.connections.ask("exchange", None, 0, place="access")[0].entries)
        with pytest.raises(BrokenChain):
            mallory.connections.ask("exchange", replace(_change(*_GHOST), chain=total), end + ahead, place="access")
        uuid = site.study()
        access.remove_user(url, "mallory")
        for number in range(4):
            access.add_user(url, f"user-{number}")
        assert "ghost" not in [one.name for one in access.users(url)]
        append(site.person("ann").log(uuid), _commit("again"))
        with pytest.raises(Denied):
            site.with_token(Secret(f"ghost.1:{_SECRET}")).catalog().exchange(None, 0)


@pytest.mark.parametrize(
    ("change", "at"),
    [
        (TokenSet("t", "ann", b"", 1 << 62), None),
        (TokenSet("t", "ann", b"", -(1 << 62)), None),
        (UserSet("late"), 1 << 62),
        (UserSet("early"), -(1 << 62)),
        (UserSet("\x1b[2J"), None),
        (UserSet("n" * 1_000_000), None),
        (GrantSet("uuid-of-s", "ann", "emperor"), None),
        (GrantSet("x" * 1_000_000, "ann", "owner"), None),
    ],
)
def test_nothing_that_an_administrator_says_hides_the_lists_from_others(
    serve: Serve, tmp_path: Path, change: Any, at: int | None
) -> None:
    url = str(tmp_path / "store")
    open_store(url).close()
    with contextlib.closing(Site(url, serve(url).url)) as site:
        uuid = site.study()
        access.add_user(url, "mallory", administrator=True)
        mallory = site.person("mallory")
        before = access.users(url), access.tokens(url), access.grants(url, "s")
        end = len(mallory.connections.ask("exchange", None, 0, place="access")[0].entries)
        mallory.connections.ask("exchange", _change(change, at=at), end, place="access")
        assert (access.users(url), access.tokens(url), access.grants(url, "s")) == before
        append(site.person("ann").log(uuid), _commit("again"))
